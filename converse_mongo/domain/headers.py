"""Message headers: a message without its text, and the events that follow from it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId

from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.errors import UnknownFormatError
from converse_mongo.domain.events import (
    ChunkReceived,
    FinalEvent,
    MessageCancelled,
    MessageCompleted,
    MessageCreated,
    MessageFailed,
)
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.metadata import aware, restored
from converse_mongo.domain.part_redaction import Redaction
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.domain.validation import MAX_SECONDS
from converse_mongo.domain.work import Work

PARTS_FORMAT = 2
"""The format of a message with parts. A message of text alone has none."""

WORK_FORMAT = 3
"""The format of a message that was queued for workers, whatever its chunks are."""

FORMATS: tuple[int | None, ...] = (None, PARTS_FORMAT, WORK_FORMAT)
"""The formats of messages that this version writes to."""


def check_format(message_id: ObjectId, found: object) -> None:
    """Refuses a message that a later version wrote to, which may mean more than is known here.

    Raises:
        UnknownFormatError: The format is not known.
    """
    if found not in FORMATS:
        raise UnknownFormatError(message_id, found)


def shows_parts(known: int | None, part_bytes: int, redactions: object) -> bool:
    """Returns whether a message has more than the text of the answer.

    Args:
        known: Its format.
        part_bytes: Its ``part_bytes``.
        redactions: What was redacted in it, if anything was.
    """
    if known == WORK_FORMAT:
        return bool(part_bytes or redactions)
    return known is not None


def message_key(
    message_id: ObjectId, conversation_id: ObjectId, log_id: ObjectId | None
) -> dict[str, Any]:
    """Returns the filter for one message, and for no later message with the same id.

    A generation that is deleted and started anew has the same ``_id``. Its ``log_id`` is new. A
    message that an earlier version stored may have no ``log_id``, which ``None`` matches.
    """
    return {"_id": message_id, "conversation_id": conversation_id, "log_id": log_id}


def pages_of(key: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the filter for the pages of a message, given by its :func:`message_key`."""
    return {
        "conversation_id": key["conversation_id"],
        "message_id": key["_id"],
        "log_id": key["log_id"],
    }


@dataclass(frozen=True, slots=True)
class MessageHeader:
    """A message without its text and its chunks."""

    message_id: ObjectId
    conversation_id: ObjectId
    position: int
    role: MessageRole
    status: MessageStatus
    next_sequence: int
    page_start: int
    log_id: ObjectId | None
    content_bytes: int
    metadata: dict[str, Any]
    error: str | None
    lease: Lease
    stop_requested: bool
    stop_reason: str | None
    retention: float | None
    created_at: datetime
    completed_at: datetime | None
    end_id: ObjectId | None
    compacted: bool
    format: int | None
    part_bytes: int
    redactions: list[Redaction] | None
    sweeps: int | None
    work: Work | None = None

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> "MessageHeader":
        """Returns the header in a document, or in its projection :data:`HEADER`."""
        completed_at = stored.get("completed_at")
        return cls(
            message_id=stored["_id"],
            conversation_id=stored["conversation_id"],
            position=stored["position"],
            role=MessageRole(stored["role"]),
            status=MessageStatus(stored["status"]),
            next_sequence=stored.get("next_sequence", 0),
            page_start=stored.get("page_start", 0),
            log_id=stored.get("log_id"),
            content_bytes=stored.get("content_bytes", 0),
            metadata=restored(stored.get("metadata") or {}),
            error=stored.get("error"),
            lease=Lease.from_stored(stored.get("lease")),
            stop_requested=stored.get("stop_requested_at") is not None,
            stop_reason=stored.get("stop_reason"),
            retention=stored.get("retention"),
            created_at=aware(stored["created_at"]),
            completed_at=aware(completed_at) if completed_at else None,
            end_id=stored.get("end_id"),
            compacted=bool(stored.get("compacted")),
            format=stored.get("format"),
            part_bytes=stored.get("part_bytes", 0),
            redactions=stored.get("redactions"),
            sweeps=stored.get("sweeps"),
            work=Work.from_stored(stored.get("work")),
        )

    @property
    def key(self) -> dict[str, Any]:
        """The filter for this message."""
        return message_key(self.message_id, self.conversation_id, self.log_id)

    @property
    def has_parts(self) -> bool:
        """True if its chunks are more than the text of the answer."""
        return shows_parts(self.format, self.part_bytes, self.redactions)

    @property
    def is_known(self) -> bool:
        """True if this version may write to the message."""
        return self.format in FORMATS

    @property
    def merges_at(self) -> datetime | None:
        """When its chunks are to be merged; ``None`` for never, and while it streams."""
        if self.completed_at is None or self.retention is None or not self.streamed:
            return None
        return self.completed_at + timedelta(seconds=min(self.retention, MAX_SECONDS))

    @property
    def streamed(self) -> bool:
        """True if the message was ever streaming: only then it has chunks and an end."""
        return not self.status.is_final or self.end_id is not None

    def chunk_received(self, chunk: MessageChunk, cursor: str | None = None) -> ChunkReceived:
        """Makes the event of one of its chunks."""
        return ChunkReceived(
            conversation_id=self.conversation_id,
            message_id=self.message_id,
            role=self.role,
            chunk=chunk,
            cursor=cursor,
        )

    def ended(self, cursor: str | None = None) -> FinalEvent:
        """Makes the final event of a message that has ended."""
        metadata = self.metadata
        if self.streamed:
            metadata = with_chunk_count(metadata, self.next_sequence)
        common: dict[str, Any] = {
            "conversation_id": self.conversation_id,
            "message_id": self.message_id,
            "role": self.role,
            "chunk_count": self.next_sequence,
            "metadata": metadata,
            "completed_at": self.completed_at or self.created_at,
            "cursor": cursor,
        }
        if self.status is MessageStatus.FAILED:
            return MessageFailed(**common, error=self.error or "")
        if self.status is MessageStatus.CANCELLED:
            return MessageCancelled(**common, reason=self.stop_reason)
        return MessageCompleted(**common)


_STORED_NAMES = {"message_id": "_id", "stop_requested": "stop_requested_at"}

HEADER = {
    name: 1
    for name in (_STORED_NAMES.get(each.name, each.name) for each in fields(MessageHeader))
    if name != "_id"
}
"""The projection of all that a :class:`MessageHeader` holds."""


@dataclass(frozen=True, slots=True)
class MessageRow:
    """A message of a conversation, with the text that it was created with."""

    state: MessageHeader
    content: str

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> "MessageRow":
        """Returns the row in a document, or in its projection :data:`HEADER` with ``content``."""
        state = MessageHeader.from_stored(stored)
        return cls(state, "" if state.streamed else stored.get("content") or "")

    def created(self, cursor: str | None = None) -> MessageCreated:
        """Makes the event that the message was added."""
        state = self.state
        return MessageCreated(
            conversation_id=state.conversation_id,
            message_id=state.message_id,
            position=state.position,
            role=state.role,
            streaming=state.streamed,
            content=self.content,
            metadata=state.metadata,
            created_at=state.created_at,
            has_parts=state.has_parts and not state.streamed,
            cursor=cursor,
        )


def with_chunk_count(metadata: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Adds the number of chunks to the metadata of an ended stream.

    The count is stored a moment after the end itself (see ``store.ends``). A reader between the
    two gets the same answer from here.
    """
    return {**metadata, "chunks": count}
