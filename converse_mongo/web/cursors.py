"""Cursors on the wire: where a stream continues. Clients return them and never compose them.

The stream of a conversation uses ``domain.cursors.ConversationCursor``. That of a message uses
``<message id>.<sequence of the last chunk>``, and ``<message id>.end`` after its end.
"""

import re

from bson import ObjectId

from converse_mongo.domain.cursors import ENDED, NOW, message_cursor
from converse_mongo.domain.errors import InvalidCursorError
from converse_mongo.domain.events import (
    ChunkReceived,
    Event,
    FinalEvent,
    MessageSnapshot,
    WorkEvent,
)
from converse_mongo.web.errors import UnknownError

_MESSAGE_CURSOR = re.compile(r"([0-9a-f]{24})\.([0-9]{1,18}|end)")
_CONVERSATION_CURSOR = re.compile(r"([0-9a-f]{24})\..*", re.DOTALL)


def event_cursor(event: Event) -> str | None:
    """The cursor behind an event; ``None`` for news of a queued message, which have no place."""
    if isinstance(event, WorkEvent):
        return None
    if event.cursor is not None:
        return event.cursor
    if isinstance(event, ChunkReceived):
        return message_cursor(event.message_id, event.chunk.sequence + 1, ended=False)
    if isinstance(event, MessageSnapshot):
        return message_cursor(event.message_id, event.chunk_count, ended=False)
    if isinstance(event, FinalEvent):
        return message_cursor(event.message_id, event.chunk_count, ended=True)
    raise TypeError(f"{event.type} is not an event of a message stream.")


def parse_cursor(text: str, message_id: ObjectId) -> int | str:
    """The sequence in a cursor of a message, or ``"end"``.

    Raises:
        InvalidCursorError: It is not a cursor of a message.
        UnknownError: It is a cursor of another message.
    """
    found = _MESSAGE_CURSOR.fullmatch(text)
    if found is None:
        raise InvalidCursorError(
            "after is not a cursor of this stream: pass the id of its last event."
        )
    if found[1] != str(message_id):
        raise UnknownError
    return ENDED if found[2] == ENDED else int(found[2])


def check_conversation_cursor(text: str | None, conversation_id: ObjectId) -> None:
    """Refuses a cursor of another conversation.

    Raises:
        UnknownError: It is a cursor of another conversation.
    """
    found = None if text in (None, NOW) else _CONVERSATION_CURSOR.fullmatch(str(text))
    if found is not None and found[1] != str(conversation_id):
        raise UnknownError
