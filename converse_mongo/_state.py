"""What the library reads of a message besides its text, and the events that follow from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bson import ObjectId

from converse_mongo.chunks import MessageChunk, aware
from converse_mongo.events import ChunkReceived, FinalEvent, MessageCompleted, MessageFailed
from converse_mongo.types import MessageRole, MessageStatus

__all__ = ["COUNTERS", "STATE", "MessageState"]

COUNTERS = {"conversation_id": 1, "status": 1, "next_sequence": 1}
"""The projection that tells whether a message moved on."""

STATE = COUNTERS | {
    "position": 1,
    "role": 1,
    "metadata": 1,
    "error": 1,
    "created_at": 1,
    "completed_at": 1,
    "end_id": 1,
}
"""The projection of all that a :class:`MessageState` holds: neither text nor chunks."""


@dataclass(frozen=True, slots=True)
class MessageState:
    """A message without its text."""

    message_id: ObjectId
    conversation_id: ObjectId
    position: int
    role: MessageRole
    status: MessageStatus
    next_sequence: int
    metadata: dict[str, Any]
    error: str | None
    created_at: datetime
    completed_at: datetime | None
    end_id: ObjectId | None

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> "MessageState":
        """The state in ``stored``, a document read with :data:`STATE`."""
        completed_at = stored.get("completed_at")
        return cls(
            message_id=stored["_id"],
            conversation_id=stored["conversation_id"],
            position=stored["position"],
            role=MessageRole(stored["role"]),
            status=MessageStatus(stored["status"]),
            next_sequence=stored.get("next_sequence", 0),
            metadata=stored.get("metadata") or {},
            error=stored.get("error"),
            created_at=aware(stored["created_at"]),
            completed_at=aware(completed_at) if completed_at else None,
            end_id=stored.get("end_id"),
        )

    @property
    def streamed(self) -> bool:
        """Whether the message was ever streaming: only such a one has chunks and an end."""
        return not self.status.is_final or self.end_id is not None

    def chunk_received(self, chunk: MessageChunk, cursor: str | None = None) -> ChunkReceived:
        """The event of one of its chunks."""
        return ChunkReceived(
            conversation_id=self.conversation_id,
            message_id=self.message_id,
            chunk=chunk,
            cursor=cursor,
        )

    def ended(self, cursor: str | None = None) -> FinalEvent:
        """The final event of a message that has ended."""
        completed_at = self.completed_at or self.created_at
        metadata = self.metadata
        if self.streamed:
            metadata = with_chunk_count(metadata, self.next_sequence)
        if self.status is MessageStatus.FAILED:
            return MessageFailed(
                conversation_id=self.conversation_id,
                message_id=self.message_id,
                chunk_count=self.next_sequence,
                metadata=metadata,
                completed_at=completed_at,
                error=self.error or "",
                cursor=cursor,
            )
        return MessageCompleted(
            conversation_id=self.conversation_id,
            message_id=self.message_id,
            chunk_count=self.next_sequence,
            metadata=metadata,
            completed_at=completed_at,
            cursor=cursor,
        )


def with_chunk_count(metadata: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The metadata of an ended stream, with the number of its chunks.

    The count is stored a moment after the end itself (see ``store.Store.end``); who reads between
    the two gets the same answer from here.
    """
    return {**metadata, "chunks": count}
