"""Conversation summaries: what events report of a conversation, and those events."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from bson import ObjectId

from converse_mongo.domain.events import ConversationCreated, ConversationUpdated
from converse_mongo.domain.metadata import aware, restored
from converse_mongo.domain.owners import OwnerKey, owner_key

MARKERS = {"owner": 1, "next_position": 1, "revision": 1, "created_at": 1, "updated_at": 1}
"""The projection of a :class:`ChangeMarkers`, with the owner."""

SUMMARY = MARKERS | {"title": 1, "metadata": 1}
"""The projection of all that a :class:`ConversationSummary` holds."""

NEVER = datetime(1970, 1, 2, tzinfo=UTC)
"""The date of a document without one, which the library has not written."""


def _moment(stored: Mapping[str, Any], name: str) -> datetime:
    found = stored.get(name)
    return aware(found) if isinstance(found, datetime) else NEVER


class ChangeMarkers(NamedTuple):
    """The fields that change when messages are added to a conversation, or it is saved."""

    next_position: int
    revision: int
    created_at: datetime
    updated_at: datetime

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> "ChangeMarkers":
        """Returns the values in a document, or in its projection :data:`MARKERS`."""
        return cls(
            stored.get("next_position", 0),
            stored.get("revision", 0),
            _moment(stored, "created_at"),
            _moment(stored, "updated_at"),
        )


@dataclass(frozen=True, slots=True)
class ConversationSummary:
    """A conversation as events report it."""

    conversation_id: ObjectId
    owner: OwnerKey | None
    title: str | None
    metadata: Mapping[str, Any]
    created_at: datetime
    next_position: int
    revision: int

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> "ConversationSummary":
        """Returns the values in a document, or in its projection :data:`SUMMARY`."""
        return cls(
            conversation_id=stored["_id"],
            owner=owner_key(stored),
            title=stored.get("title"),
            metadata=restored(stored.get("metadata") or {}),
            created_at=_moment(stored, "created_at"),
            next_position=stored.get("next_position", 0),
            revision=stored.get("revision", 0),
        )

    def created(self) -> ConversationCreated:
        """Makes the event that it was started."""
        return ConversationCreated(
            conversation_id=self.conversation_id,
            title=self.title,
            owner=self.owner,
            metadata=self.metadata,
            created_at=self.created_at,
        )

    def updated(self) -> ConversationUpdated:
        """Makes the event that it was saved."""
        return ConversationUpdated(
            conversation_id=self.conversation_id,
            title=self.title,
            owner=self.owner,
            metadata=self.metadata,
            revision=self.revision,
        )
