"""Decodes the events of a MongoDB change stream into hints. Pure, no I/O.

The shapes are those of https://www.mongodb.com/docs/manual/reference/change-events/update/. A hint
may be late, repeated or missing. It tells where to read, and carries chunks to save the read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from bson import ObjectId, Timestamp

from converse_mongo.domain.chunks import StoredChunk
from converse_mongo.domain.headers import HEADER
from converse_mongo.domain.metadata import aware
from converse_mongo.domain.owners import OwnerKey, owner_key
from converse_mongo.domain.work import WorkState

_UPDATED = "updateDescription.updatedFields"

SHORTENED: list[dict[str, Any]] = [
    # Three stages, since one cannot include and exclude. First, the used parts of an event.
    {
        "$project": {
            **dict.fromkeys(("operationType", "clusterTime", "ns", "to", "documentKey"), 1),
            # Of documents: the fields of a new message, and the owner of a conversation.
            **{f"fullDocument.{name}": 1 for name in ("_id", *HEADER, "content", "owner")},
            _UPDATED: 1,
        }
    },
    # An inclusion drops updated fields with a dot in the name, such as "chunks.7". So only saves
    # and ends include: of their dotted fields, "context.x" and "metadata.x", none is used.
    {
        "$addFields": {
            _UPDATED: {
                "$switch": {
                    "branches": [
                        {
                            "case": {"$gt": [f"${_UPDATED}.{mark}", None]},
                            "then": {name: f"${_UPDATED}.{name}" for name in used},
                        }
                        for mark, used in (
                            ("revision", ("revision", "last_save", "owner")),
                            ("status", ("status", "next_sequence", "stop_requested_at")),
                        )
                    ],
                    "default": f"${_UPDATED}",
                }
            }
        }
    },
    # The text that came chunk by chunk, and counters that are not used.
    {
        "$project": {
            f"{_UPDATED}.{name}": 0
            for name in (
                *("content", "parts", "recent_appends"),
                *("chunk_lengths", "chunk_metadata", "chunk_events"),
                *("chunk_bytes", "content_bytes", "part_bytes", "format"),
                *("page_start", "compact_at", "compacted", "redactions", "sweeps"),
            )
        }
    },
]
"""The stages that shorten the events of a change stream."""


def pipeline(messages: str, conversations: str) -> list[dict[str, Any]]:
    """The pipeline for watchers: all changes of messages, few of conversations.

    A conversation is also updated with each new message, which the message itself reports.

    Args:
        messages: The name of the collection of messages.
        conversations: The name of the collection of conversations.
    """
    wanted = [
        {"ns.coll": messages},
        {"ns.coll": conversations, "operationType": {"$ne": "update"}},
        {
            "ns.coll": conversations,
            "updateDescription.updatedFields.revision": {"$exists": True},
        },
        # A collection renamed to one of these. Atlas's shared tiers reject $in on a namespace.
        {"to.coll": messages},
        {"to.coll": conversations},
        # These concern no collection.
        {"operationType": {"$in": ["dropDatabase", "invalidate"]}},
    ]
    return [{"$match": {"$or": wanted}}, *SHORTENED]


def writers_pipeline(messages: str, conversations: str) -> list[dict[str, Any]]:
    """The pipeline for a process that only writes: stops, ends, take-overs and deletions.

    Args:
        messages: The name of the collection of messages.
        conversations: The name of the collection of conversations.
    """
    return [{"$match": {"$or": _for_writers(messages, conversations)}}, *SHORTENED]


def _for_writers(messages: str, conversations: str) -> list[dict[str, Any]]:
    news = [
        {f"{_UPDATED}.{name}": {"$exists": True}}
        for name in ("status", "stop_requested_at", "taken_over_by")
    ]
    return [
        {"ns.coll": messages, "operationType": "update", "$or": news},
        {"ns.coll": messages, "operationType": "delete"},
        {"ns.coll": conversations, "operationType": "delete"},
    ]


def workers_pipeline(messages: str, conversations: str) -> list[dict[str, Any]]:
    """The pipeline for a process with workers: what writers need, and what waits for a worker.

    Args:
        messages: The name of the collection of messages.
        conversations: The name of the collection of conversations.
    """
    queued = [
        {
            "ns.coll": messages,
            "fullDocument.work.state": {"$in": [WorkState.QUEUED.value, WorkState.DELAYED.value]},
        },
        {"ns.coll": messages, f"{_UPDATED}.queued": {"$exists": True}},
    ]
    wanted = [*_for_writers(messages, conversations), *queued]
    return [{"$match": {"$or": wanted}}, *SHORTENED]


_WRITER_FIELDS = frozenset({"status", "stop_requested_at"})
_INVALIDATING = frozenset({"drop", "rename", "dropDatabase", "invalidate"})


@dataclass(frozen=True, slots=True)
class Inserted:
    """A message was created, or replaced as a whole."""

    message_id: ObjectId
    conversation_id: ObjectId | None
    document: Mapping[str, Any]
    time: Timestamp | None = None


@dataclass(frozen=True, slots=True)
class Updated:
    """Fields of a message changed.

    Attributes:
        chunks: The appended chunks that the event carries, in order.
        next_sequence: The counter after an append, else ``None``.
        ended: Whether the message left ``streaming``.
        concerns_writer: Whether the writer of the message has to stop.
        holder: The id of a new writer, else ``None``.
        conversation_id: The conversation, if fields of the message were saved, else ``None``.
        revision: The number of saves, if fields were saved.
        role: The role of the message, as stored, if fields were saved by a version that stores it.
        queue: The queue in which the message waits for a worker since the change, else ``None``.
        due: When a worker can claim it; ``None`` for at once.
        queued_at: When it was queued, if it can be claimed at once.
        work: The fields of ``work`` that changed, by name.
        time: The time of the change by the server's clock.
    """

    message_id: ObjectId
    chunks: list[StoredChunk]
    next_sequence: int | None = None
    ended: bool = False
    concerns_writer: bool = False
    holder: ObjectId | None = None
    conversation_id: ObjectId | None = None
    revision: int = 0
    role: str | None = None
    queue: str | None = None
    due: datetime | None = None
    queued_at: datetime | None = None
    work: Mapping[str, Any] | None = None
    time: Timestamp | None = None


@dataclass(frozen=True, slots=True)
class Deleted:
    """A message was removed from the database."""

    message_id: ObjectId
    time: Timestamp | None = None
    conversation_id: None = None


@dataclass(frozen=True, slots=True)
class ConversationChanged:
    """A conversation was started, saved or removed.

    Attributes:
        owner: The type and the id of its owner, if the event has them.
        deleted: Whether it was removed.
    """

    conversation_id: ObjectId
    owner: OwnerKey | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class StreamInvalidated:
    """A collection was dropped or renamed. What was known of it is not valid any more."""

    operation: str


MessageHint: TypeAlias = Inserted | Updated | Deleted
Hint: TypeAlias = MessageHint | ConversationChanged | StreamInvalidated


def decode(change: Mapping[str, Any], conversations: str) -> Hint | None:
    """The hint in a change event; ``None`` if it has none.

    Args:
        change: The event.
        conversations: The name of the collection of conversations. The other one is of messages.
    """
    operation = change["operationType"]
    if operation in _INVALIDATING:
        return StreamInvalidated(operation)
    if change["ns"]["coll"] == conversations:
        return _decode_conversation(change)
    message_id = change["documentKey"]["_id"]
    if operation == "update":
        fields = change["updateDescription"].get("updatedFields") or {}
        return _decode_update(message_id, fields, change.get("clusterTime"))
    if operation == "delete":
        return Deleted(message_id, change.get("clusterTime"))
    if operation in ("insert", "replace"):
        document = change.get("fullDocument") or {}
        return Inserted(
            message_id, document.get("conversation_id"), document, change.get("clusterTime")
        )
    return None


def _decode_conversation(change: Mapping[str, Any]) -> ConversationChanged:
    document = change.get("fullDocument") or {}
    changed = (change.get("updateDescription") or {}).get("updatedFields") or {}
    return ConversationChanged(
        change["documentKey"]["_id"],
        owner_key(document) or owner_key(changed),
        deleted=change["operationType"] == "delete",
    )


def _decode_update(
    message_id: ObjectId, fields: Mapping[str, Any], time: Timestamp | None
) -> Updated:
    chunks: list[StoredChunk] = []
    work: dict[str, Any] = {}
    for path, value in fields.items():
        # A push arrives as "chunks.7". For an empty array, some servers send the whole array.
        if path == "chunks":
            chunks.extend(value or ())
        elif path.startswith("chunks.") and path[7:].isdigit():
            chunks.append(value)
        elif path.startswith("work."):
            work[path[5:]] = value
    save, queued = fields.get("last_save"), fields.get("queued")
    return Updated(
        message_id,
        chunks,
        next_sequence=fields.get("next_sequence"),
        ended="status" in fields,
        concerns_writer=not _WRITER_FIELDS.isdisjoint(fields),
        holder=fields.get("lease.holder") or (fields.get("lease") or {}).get("holder"),
        conversation_id=save["conversation_id"] if save else None,
        revision=fields.get("revision", 0),
        role=save.get("role") if save else None,
        queue=queued["queue"] if queued else None,
        due=aware(queued["at"]) if queued and queued.get("at") else None,
        queued_at=aware(work["due"]) if queued and "at" not in queued and "due" in work else None,
        work=work or None,
        time=time,
    )
