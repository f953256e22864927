"""The prompt of a conversation, and its title."""

from dataclasses import dataclass
from typing import Literal

from converse_mongo import Conversation, Message, MessageRole
from converse_mongo.web import prompt_messages

MAX_MESSAGES = 60
MAX_CHARACTERS = 60_000
MAX_TITLE = 60


@dataclass(frozen=True, slots=True)
class Said:
    """A message of the prompt."""

    role: Literal["user", "assistant"]
    content: str


async def said_before(conversation: Conversation, answer: Message) -> list[Said]:
    """Returns the messages before an answer, the oldest first, up to the limits above."""
    told = await prompt_messages(
        conversation, answer, MAX_MESSAGES, roles=(MessageRole.USER, MessageRole.ASSISTANT)
    )
    said: list[Said] = []
    room = MAX_CHARACTERS
    for message in reversed(told):
        room -= len(message.content)
        if said and room < 0:
            break
        if message.role is MessageRole.USER:
            said.append(Said("user", message.content))
        else:
            said.append(Said("assistant", message.content))
    return said[::-1]


async def name_conversation(conversation: Conversation, said: list[Said]) -> None:
    """Sets the title of a conversation from its first question."""
    if conversation.title is None and said:
        conversation.title = title_for(said[0].content)
        await conversation.save()  # writes only the title


def title_for(question: str) -> str:
    """Shortens a question to one line, between words."""
    line = " ".join(question.split())
    if len(line) <= MAX_TITLE:
        return line
    head = line[:MAX_TITLE].rpartition(" ")[0] or line[: MAX_TITLE - 1]
    return head.rstrip(" ,;:.") + "…"
