"""The wire form: what browsers are told of events, messages and conversations."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bson import ObjectId
from starlette.responses import Response

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.domain.errors import InvalidCursorError
from converse_mongo.domain.events import (
    ChunkReceived,
    Event,
    FinalEvent,
    MessageCreated,
    MessageFailed,
)
from converse_mongo.domain.jsonable import jsonable
from converse_mongo.domain.types import MessageStatus

__all__ = [
    "ENDED",
    "REPLACES",
    "Json",
    "Presenter",
    "event_id",
    "parse_event_id",
    "replaced_id",
    "to_json",
]

REPLACES = "replaces"
"""The key in the metadata of an answer: the id of the one that it is given instead of."""

PRIVATE_ERROR = "The answer could not be completed."
SAFE_ERRORS = frozenset({"interrupted"})
"""What the library itself stores as the error of an orphan."""

ENDED = "end"
"""In the place of a sequence: the end was seen as well."""

_LINE_ENDS = {ord(each): f"\\u{ord(each):04x}" for each in "\x85\u2028\u2029"}
_EVENT_ID = re.compile(r"([0-9a-f]{24})\.([0-9]{1,18}|end)")


@dataclass(frozen=True, slots=True)
class Presenter:
    """Turns what happened into what may be told.

    Attributes:
        show_errors: Whether the stored error of a failed message is for users.
        show_metadata: Picks what users may see of metadata.
    """

    show_errors: bool
    show_metadata: Callable[[Mapping[str, Any]], Mapping[str, Any]]

    def event(self, event: Event) -> dict[str, Any]:
        """An event, without its cursor."""
        fields = event.to_dict()
        del fields["cursor"]
        fields.pop("owner", None)  # how the application names its users is its own affair
        if "metadata" in fields:
            fields["metadata"] = self.metadata(getattr(event, "metadata", {}))
        if isinstance(event, MessageCreated):
            fields["replaces"] = replaced_id(event.metadata)
        if isinstance(event, ChunkReceived) and event.chunk.metadata:
            fields["chunk"]["metadata"] = self.metadata(event.chunk.metadata)
        if isinstance(event, MessageFailed):
            fields["error"] = self.error(event.error)
        return fields

    def message(self, message: Message) -> dict[str, Any]:
        """A message with its text so far; ``chunk_count`` says up to where that reaches."""
        return {
            "id": str(message.id),
            "conversation_id": str(message.conversation_id),
            "position": message.position,
            "role": message.role.value,
            "status": message.status.value,
            "content": message.content,
            "chunk_count": message.next_sequence,
            "metadata": self.metadata(message.metadata),
            "replaces": replaced_id(message.metadata),
            "error": self.error(message.error)
            if message.status is MessageStatus.FAILED and message.error is not None
            else None,
            "stop_reason": message.stop_reason,
            "created_at": message.created_at.isoformat(),
            "completed_at": jsonable(message.completed_at),
        }

    def conversation(self, conversation: Conversation) -> dict[str, Any]:
        """A conversation, without its context, which is for the model."""
        return {
            "id": str(conversation.id),
            "title": conversation.title,
            "metadata": self.metadata(conversation.metadata),
            "created_at": conversation.created_at.isoformat(),
            "updated_at": conversation.updated_at.isoformat(),
        }

    def metadata(self, metadata: Mapping[str, Any]) -> Any:
        """What users may see of it."""
        return jsonable(self.show_metadata(metadata))

    def error(self, error: str) -> str:
        """What users may see of it."""
        return error if self.show_errors or error in SAFE_ERRORS else PRIVATE_ERROR


def replaced_id(metadata: Mapping[str, Any]) -> str | None:
    """The id of the answer that the message with this metadata is given instead of."""
    found = metadata.get(REPLACES)
    return found if isinstance(found, str) else None


def to_json(value: Any) -> str:
    """JSON in one line, whatever a reader takes for the end of one.

    Infinity and NaN, which JSON does not have, become null, so that a browser can read the rest.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
        text = json.dumps(finite, ensure_ascii=False, separators=(",", ":"))
    return text if text.isascii() else text.translate(_LINE_ENDS)


class Json(Response):
    """An answer in JSON, which nobody may keep."""

    media_type = "application/json"

    def __init__(self, value: Any, status: int = 200) -> None:
        super().__init__(to_json(value), status, {"cache-control": "no-store"})


def event_id(event: Event) -> str:
    """What a client gives back to go on behind ``event``."""
    if event.cursor is not None:
        return event.cursor
    if isinstance(event, ChunkReceived):
        return f"{event.message_id}.{event.chunk.sequence}"
    if isinstance(event, FinalEvent):
        return f"{event.message_id}.{ENDED}"
    raise TypeError(f"{event.type} is no event of a message")


def parse_event_id(text: str, message_id: ObjectId) -> int | str:
    """The sequence that an id of an event of a message stands for, or ``ENDED``.

    Raises:
        InvalidCursorError: It is none.
        LookupError: It is one of another message.
    """
    found = _EVENT_ID.fullmatch(text)
    if found is None:
        raise InvalidCursorError(
            "after is no id of an event of this stream: pass the last one that it sent."
        )
    if found[1] != str(message_id):
        raise LookupError("an id of another message")
    return ENDED if found[2] == ENDED else int(found[2])
