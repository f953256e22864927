"""Leases: the right to write to a streaming message."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from beanie import PydanticObjectId
from bson import ObjectId
from pydantic import BaseModel, ConfigDict

from converse_mongo.domain.chunks import UtcDatetime
from converse_mongo.domain.metadata import aware


class Lease(BaseModel):
    """The right to write to a streaming message, which ends without heartbeats.

    Attributes:
        epoch: The number of writers that the message has had; 0 while it is appended to by hand.
        holder: The id that the last writer gave itself.
        renewed_at: The last heartbeat, by the server's clock; ``None`` for never.
        duration: Seconds after the last heartbeat until the message counts as an orphan, and the
            next process that reads it ends it; ``None`` for never.
    """

    model_config = ConfigDict(frozen=True)

    epoch: int = 0
    holder: PydanticObjectId | None = None
    renewed_at: UtcDatetime | None = None
    duration: float | None = None

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any] | None) -> "Lease":
        """Returns the lease in a document; one that never expires if it has none."""
        if not stored:
            return cls()
        renewed_at = stored.get("renewed_at")
        # Without validation: watchers read many, and only the library writes them.
        return cls.model_construct(
            epoch=stored.get("epoch") or 0,
            holder=stored.get("holder"),
            renewed_at=aware(renewed_at) if renewed_at else None,
            duration=stored.get("duration"),
        )

    @classmethod
    def born(cls, holder: ObjectId, moment: datetime, duration: float) -> "Lease":
        """Returns the lease of a message that is inserted as claimed by ``holder``."""
        return cls(epoch=1, holder=PydanticObjectId(holder), renewed_at=moment, duration=duration)

    def is_held_by(self, other: "Lease") -> bool:
        """Returns whether the writer that was given ``other`` is still the writer."""
        return (self.epoch, self.holder) == (other.epoch, other.holder)

    def has_expired(self, server_time: datetime) -> bool:
        """Returns whether it has expired at ``server_time``, by the server's clock."""
        if self.renewed_at is None or self.duration is None:
            return False
        return (server_time - self.renewed_at).total_seconds() > self.duration
