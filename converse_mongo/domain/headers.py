"""What the library reads of a message besides its text, and the events that follow from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bson import ObjectId

from converse_mongo.domain.chunks import MessageChunk, aware
from converse_mongo.domain.events import (
    ChunkReceived,
    FinalEvent,
    MessageCancelled,
    MessageCompleted,
    MessageFailed,
)
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.metadata import restored
from converse_mongo.domain.types import MessageRole, MessageStatus

__all__ = ["COUNTERS", "HEADER", "MessageHeader", "message_key", "with_chunk_count"]

COUNTERS = {
    "conversation_id": 1,
    "log_id": 1,
    "status": 1,
    "next_sequence": 1,
    "lease": 1,
    "stop_requested_at": 1,
}
"""The projection that tells whether a message moved on, and whether its writer lives."""

HEADER = COUNTERS | {
    "position": 1,
    "role": 1,
    "page_start": 1,
    "content_bytes": 1,
    "metadata": 1,
    "error": 1,
    "stop_reason": 1,
    "retention": 1,
    "created_at": 1,
    "completed_at": 1,
    "end_id": 1,
    "compacted": 1,
}
"""The projection of all that a :class:`MessageHeader` holds: neither text nor chunks."""


def message_key(
    message_id: ObjectId, conversation_id: ObjectId, log_id: ObjectId | None
) -> dict[str, Any]:
    """The filter that finds one message: not a later one that was given the same id.

    A generation that is deleted and started anew has the same ``_id``. Its ``log_id`` is new. A
    message that an earlier version stored may have none, which ``None`` matches.
    """
    return {"_id": message_id, "conversation_id": conversation_id, "log_id": log_id}


@dataclass(frozen=True, slots=True)
class MessageHeader:
    """A message without its text."""

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

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> "MessageHeader":
        """The state in ``stored``, a document read with :data:`STATE`."""
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
        )

    @property
    def key(self) -> dict[str, Any]:
        """The filter that finds this message."""
        return message_key(self.message_id, self.conversation_id, self.log_id)

    @property
    def streamed(self) -> bool:
        """Whether the message was ever streaming: only such a one has chunks and an end."""
        return not self.status.is_final or self.end_id is not None

    def chunk_received(self, chunk: MessageChunk, cursor: str | None = None) -> ChunkReceived:
        """The event of one of its chunks."""
        return ChunkReceived(
            conversation_id=self.conversation_id,
            message_id=self.message_id,
            role=self.role,
            chunk=chunk,
            cursor=cursor,
        )

    def ended(self, cursor: str | None = None) -> FinalEvent:
        """The final event of a message that has ended."""
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


def with_chunk_count(metadata: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The metadata of an ended stream, with the number of its chunks.

    The count is stored a moment after the end itself (see ``store.ends``); who reads between the
    two gets the same answer from here.
    """
    return {**metadata, "chunks": count}
