"""Leases: who may write to a streaming message."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from beanie import PydanticObjectId
from pydantic import BaseModel, ConfigDict

from converse_mongo.domain.chunks import UtcDatetime, aware

__all__ = ["Lease"]


class Lease(BaseModel):
    """Who may write to a streaming message, and how long without a heartbeat.

    Attributes:
        epoch: How many writers the message has had; 0 while it is appended to by hand.
        holder: The id that the last writer gave itself.
        renewed_at: When there was a heartbeat, by the server's clock; ``None`` for never.
        duration: Seconds from then on until whoever meets the message ends it as an orphan;
            ``None`` for never.
    """

    model_config = ConfigDict(frozen=True)

    epoch: int = 0
    holder: PydanticObjectId | None = None
    renewed_at: UtcDatetime | None = None
    duration: float | None = None

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any] | None) -> "Lease":
        """The lease in a document; one that never runs out where it has none."""
        if not stored:
            return cls()
        renewed_at = stored.get("renewed_at")
        # Without validation: watchers look at many, and nothing else writes them.
        return cls.model_construct(
            epoch=stored.get("epoch") or 0,
            holder=stored.get("holder"),
            renewed_at=aware(renewed_at) if renewed_at else None,
            duration=stored.get("duration"),
        )

    def is_held_by(self, other: "Lease") -> bool:
        """Whether the writer that was given ``other`` is still the writer."""
        return (self.epoch, self.holder) == (other.epoch, other.holder)

    def has_expired(self, server_time: datetime) -> bool:
        """Whether it has run out, when the server's clock says ``server_time``."""
        if self.renewed_at is None or self.duration is None:
            return False
        return (server_time - self.renewed_at).total_seconds() > self.duration
