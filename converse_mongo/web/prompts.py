"""Prompts: the messages that a model is told before it answers."""

from collections.abc import Collection, Iterable

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.documents.prompting import PROMPT_ROLES, is_told
from converse_mongo.documents.views import replaced_id
from converse_mongo.domain.errors import ChunksNotLoadedError, InvalidInputError
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.domain.validation import check_count

_TOLD = (MessageStatus.COMPLETED, MessageStatus.CANCELLED)


async def prompt_messages(
    conversation: Conversation,
    answer: Message,
    limit: int | None = None,
    *,
    roles: Collection[MessageRole | str] = PROMPT_ROLES,
    parts: bool = False,
) -> list[Message]:
    """Returns the messages to pass to the model for an answer, in order.

    These are the messages before the answer that completed or were stopped, and have text. An
    answer that was replaced is left out, whatever became of the one that replaces it.

    Args:
        conversation: The conversation.
        answer: The answer that is to be written.
        limit: The most messages, the newest; ``None`` for all.
        roles: The roles of the messages; by default all but the calls and results of tools.
        parts: True for the translators of ``converse_mongo.integrations``: messages that have no
            text, but tool calls or files, are there as well, and so are those that failed after a
            tool ran.

    Raises:
        InvalidInputError: An argument is invalid.
        StoreUnavailableError: MongoDB did not answer.
    """
    check_count(limit, "limit")
    try:
        wanted = {MessageRole(role) for role in roles}
    except ValueError as error:
        raise InvalidInputError(f"roles={roles!r}: {error}.") from error
    replaced = {replaced_id(answer.metadata)}
    found: list[Message] = []
    if limit == 0:
        return found
    # What replaces a message comes behind it.
    async for message in conversation.messages(before=answer.position, newest_first=True):
        replaced.add(replaced_id(message.metadata))
        if (
            message.role in wanted
            and (_has_parts_to_tell(message) if parts else _has_text(message))
            and str(message.id) not in replaced
        ):
            found.append(message)
            if len(found) == limit:
                break
    return found[::-1]


def _has_text(message: Message) -> bool:
    return message.status in _TOLD and bool(message.content.strip())


def _has_parts_to_tell(message: Message) -> bool:
    if message.is_streaming:
        return False
    try:
        return is_told(message.role, message.status, message.parts)
    except ChunksNotLoadedError:  # larger than any prompt
        return False


def without_replaced(messages: Iterable[Message]) -> list[Message]:
    """Returns the messages that no other among them replaces, as they are shown to users.

    For the prompt of a model use :func:`prompt_messages`.
    """
    listed = list(messages)
    replaced = {replaced_id(message.metadata) for message in listed}
    return [message for message in listed if str(message.id) not in replaced]
