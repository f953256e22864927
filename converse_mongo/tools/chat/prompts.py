"""The prompt of a conversation, and its title."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from converse_mongo import Conversation, FilePart, Message, MessageRole, StoredValue
from converse_mongo.web import prompt_messages

MAX_MESSAGES = 60
MAX_CHARACTERS = 60_000
MAX_FILE_CHARACTERS = 24 * 1024 * 1024
"""The most characters of the addresses of files, which have the files themselves in Base64."""
MAX_TITLE = 60
MAX_READ = 1000
"""The part of a question that its title is made of."""
UNTITLED = "New conversation"
JOINERS = "\u200c\u200d"
"""These join letters of some scripts, and emoji."""
MARKS = (
    (re.compile(r"(?m)^\s*(?:`{3,}|~{3,}).*$"), ""),
    (re.compile(r"(?m)^\s*(?:[-*_]\s*){3,}$"), ""),
    (re.compile(r"(?m)^\s*(?:#{1,6}\s|>\s?|[-*+]\s(?:\[[ xX]\]\s)?|\d{1,9}[.)]\s)+"), ""),
    (re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*\)"), r"\1"),
    (re.compile(r"(?<!\w)(\*{1,3}|_{1,3}|~~|`+)(?=\S)([^*_~`]+?)(?<=\S)\1(?!\w)"), r"\2"),
)
"""The marks of Markdown that are taken out of titles, and what stays."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file of a message."""

    name: str
    media_type: str
    url: str


@dataclass(frozen=True, slots=True)
class Said:
    """A message of the prompt."""

    role: Literal["user", "assistant"]
    content: str
    files: tuple[Attachment, ...] = ()


async def said_before(conversation: Conversation, answer: Message) -> list[Said]:
    """Returns the messages before an answer, the oldest first, up to the limits above."""
    told = await prompt_messages(
        conversation,
        answer,
        MAX_MESSAGES,
        roles=(MessageRole.USER, MessageRole.ASSISTANT),
        parts=True,
    )
    said: list[Said] = []
    room, room_of_files = MAX_CHARACTERS, MAX_FILE_CHARACTERS
    for message in reversed(told):
        room -= len(message.content)
        if said and room < 0:
            break
        if message.role is MessageRole.USER:
            files = await _files_of(message)
            room_of_files -= sum(len(each.url) for each in files)
            said.append(Said("user", message.content, files if room_of_files >= 0 else ()))
        elif message.content.strip():
            said.append(Said("assistant", message.content))
    return said[::-1]


async def _files_of(message: Message) -> tuple[Attachment, ...]:
    found: list[Attachment] = []
    for part in message.parts:
        if isinstance(part, FilePart) and not part.redacted:
            url = part.fields.get("url")
            if isinstance(url, StoredValue):
                url = await message.load_value(url)
            if isinstance(url, str):
                found.append(Attachment(part.name or "file", part.media_type, url))
    return tuple(found)


async def name_conversation(conversation: Conversation, said: list[Said]) -> None:
    """Sets the title of a conversation from its first question."""
    if conversation.title is None and said:
        first = said[0]
        conversation.title = title_for(first.content or ", ".join(f.name for f in first.files))
        await conversation.save()  # writes only the title


def title_for(question: str) -> str:
    """Shortens a question to one line of plain text, between words."""
    text = "".join(map(_visible, question[:MAX_READ]))
    for mark, kept in MARKS:
        text = mark.sub(kept, text)
    line = " ".join(text.split())
    if len(line) <= MAX_TITLE:
        return line or UNTITLED
    head = line[:MAX_TITLE].rpartition(" ")[0] or line[: MAX_TITLE - 1]
    return head.rstrip(" ,;:.") + "…"


def _visible(character: str) -> str:
    """Leaves out what has no shape of its own, such as overrides of the direction of a text."""
    category = unicodedata.category(character)
    if category in ("Cc", "Zl", "Zp"):
        return "\n" if character in "\n\r\u2028\u2029" else " "
    return "" if category in ("Cf", "Cs", "Co") and character not in JOINERS else character
