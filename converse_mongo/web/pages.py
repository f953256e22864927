"""Pages of history: full of messages that browsers see, whatever lies between them."""

from dataclasses import replace
from typing import cast

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.listings import History, Range, listed_bytes, read_headers
from converse_mongo.documents.messages import Message
from converse_mongo.documents.views import replaced_id
from converse_mongo.domain.cursors import ConversationCursor
from converse_mongo.domain.types import MessageRole

MAX_READS = 8
"""The most reads for a page. A page that would take more has fewer messages."""
MAX_BEHIND = 64
"""The most answers behind a page that are looked at."""
SPARE = 8
"""The messages that are read beyond a page to find what was replaced."""


async def read_page(
    conversation: Conversation,
    roles: frozenset[MessageRole],
    limit: int,
    before: int | None,
    max_bytes: int,
) -> History:
    """Reads a page that ends when it has ``limit`` messages that are not replaced.

    Answers that were replaced do not count. They are in the page of the answer that replaced them,
    so that no page has one alone.

    Args:
        conversation: The conversation.
        roles: The roles of the messages that browsers see.
        limit: The most messages that are not replaced.
        before: The ``before`` of the page behind it; ``None`` for the newest page.
        max_bytes: The size of the texts and the metadata at which it ends, in bytes. Only its first
            message is beyond that.
    """
    newest = await conversation.history(limit, before, roles=roles, max_bytes=max_bytes)
    messages, before, asked, got = newest.messages, newest.before, limit, len(newest.messages)
    cursor = newest.cursor
    for _ in range(MAX_READS - 1):
        replaced, complete = _replaced(messages)
        count = len(messages) - len(replaced)
        left = max_bytes - sum(map(listed_bytes, messages))
        full = count > 0 and (got < asked or left <= 0)
        if before is None or full or (count >= limit and complete):
            break
        asked = max(limit - count, SPARE)
        older = await conversation.history(asked, before, roles=roles, max_bytes=max(left, 1))
        messages, before, got = older.messages + messages, older.before, len(older.messages)
        cursor = _behind(cursor, older.messages)
    replaced, _ = _replaced(messages)
    extra = len(messages) - len(replaced) - limit
    while extra > 0:
        first = messages.pop(0)
        before = cast(int, first.position) + 1
        extra -= str(first.id) not in replaced
    return replace(newest, messages=messages, before=before, cursor=cursor)


def _behind(cursor: str | None, messages: list[Message]) -> str | None:
    """A cursor that continues behind messages which were read after it."""
    if cursor is None or not messages:
        return cursor
    found = ConversationCursor.parse(cursor, messages[0].conversation_id)
    for message in messages:
        position = cast(int, message.position)
        if position not in found.open:
            continue
        if message.is_streaming:
            found = found.appended(position, message.next_sequence)
        else:
            found = found.ended(position)
    return str(found)


async def replaced_behind(
    conversation: Conversation, roles: frozenset[MessageRole], before: int
) -> set[str]:
    """The ids of the messages that are replaced by one on the page behind a page.

    Args:
        conversation: The conversation.
        roles: The roles of the messages that browsers see.
        before: The ``before`` with which the page was read.
    """
    wanted = Range(start=before, limit=MAX_BEHIND, roles=roles)
    found: set[str] = set()
    for header in await read_headers(conversation.store(), conversation.id, wanted):
        if header.role is MessageRole.USER:
            break  # only the last answer can be replaced
        if (name := replaced_id(header.metadata)) is not None:
            found.add(name)
    return found


def _replaced(messages: list[Message]) -> tuple[set[str], bool]:
    """The ids of the messages that others among them replace, and whether none is missing."""
    wanted: set[str | None] = set()
    for message in reversed(messages):
        wanted.discard(str(message.id))
        if message.role is MessageRole.USER:
            wanted.clear()  # it was deleted: only the last answer can be replaced
        wanted.add(replaced_id(message.metadata))
        wanted.discard(None)
    named = {replaced_id(message.metadata) for message in messages}
    return {str(message.id) for message in messages if str(message.id) in named}, not wanted
