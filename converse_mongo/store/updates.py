"""Builds the filters and updates of every write. Pure: nothing here does I/O.

Each filter carries ``conversation_id``, the shard key, so that a sharded cluster sends the write to
one shard. It carries ``log_id``, so that it never matches another message with the same id: see
``_state.message_key``. Each also says what must still be true for the write to happen.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from bson import ObjectId

from converse_mongo.domain.chunks import MessageChunk, StoredChunk, text_of
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.lengths import encode_lengths
from converse_mongo.domain.metadata import is_addressable, storable
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.domain.validation import MAX_LIVE_BYTES

__all__ = [
    "Document",
    "acquire_lease",
    "any_log",
    "append",
    "compact",
    "end",
    "fill",
    "find_append",
    "finish_compaction",
    "held_by",
    "mark_edited",
    "mark_saved",
    "may_repeat",
    "move_next_position",
    "page",
    "pages_of",
    "release_lease",
    "renew_lease",
    "request_stop",
    "same_writer",
    "save",
    "save_unaddressable",
    "start_lease",
    "take_over",
    "trim",
    "unchanged_lease",
]

Document: TypeAlias = dict[str, Any]

APPENDS_KEPT = 32

_SIGN_OF_LIFE: Document = {"lease.renewed_at": True}
"""For ``$currentDate``: the lease runs by the server's clock and nobody else's."""


def any_log(key: Mapping[str, Any]) -> Document:
    """The filter for whichever message has the id now: it explains why ``key`` did not match."""
    return {name: value for name, value in key.items() if name != "log_id"}


def _streaming(key: Mapping[str, Any]) -> Document:
    return {**key, "status": MessageStatus.STREAMING.value}


# Appends


def append(
    key: Mapping[str, Any],
    chunks: Sequence[MessageChunk],
    append_id: ObjectId,
    size: int,
    text_size: int,
    lease: Lease | None = None,
    *,
    unless_stopped: bool = False,
) -> tuple[Document, Document]:
    """Pushes ``chunks``, numbered from the sequence that the message must still expect.

    The expected sequence in the filter does all the work: of two writers one matches, and no
    repeat of the same append ever matches again, since the counter never goes back. The id on the
    first chunk tells a writer whose answer was lost that the append was its own.

    Args:
        size: What the chunks take in the document, in bytes.
        text_size: The size of their text, in bytes of UTF-8.
        lease: That of the writer who appends. It matches until another takes the message over.
        unless_stopped: Whether a stop that was asked for keeps the chunks out.
    """
    stored = [chunk.to_stored() for chunk in chunks]
    stored[0]["append_id"] = append_id
    match = _streaming(key) | {
        "next_sequence": chunks[0].sequence,
        "chunk_bytes": {"$not": {"$gt": MAX_LIVE_BYTES - size}},
    }
    if lease is not None:
        match |= held_by(lease)
    if unless_stopped:
        match["stop_requested_at"] = None
    return match, {
        "$push": {"chunks": {"$each": stored}},
        "$inc": {
            "next_sequence": len(stored),
            "chunk_bytes": size,
            "content_bytes": text_size,
        },
        "$currentDate": _SIGN_OF_LIFE,
    }


def find_append(append_id: ObjectId) -> Document:
    """The projection that explains why an append did not match."""
    return {
        "status": 1,
        "next_sequence": 1,
        "chunk_bytes": 1,
        "page_start": 1,
        "log_id": 1,
        "lease": 1,
        "stop_requested_at": 1,
        "stop_reason": 1,
        "chunks": {"$elemMatch": {"append_id": append_id}},
        "recent_appends": {"$elemMatch": {"append_id": append_id}},
    }


# Pages


def page(key: Mapping[str, Any], chunks: Sequence[StoredChunk]) -> Document:
    """The page that takes ``chunks``, the first of what is embedded, out of a message.

    Its id says what it holds, so that of two who seal the same page one finds it done. The id of
    the message would not do: that of a generation comes again when the message was deleted.
    """
    first = chunks[0]["sequence"]
    return {
        "_id": f"{key['log_id'] or key['_id']}-{first}",
        **pages_of(key),
        "first_sequence": first,
        "next_sequence": first + len(chunks),
        "chunk_bytes": sum([MessageChunk.from_stored(chunk).stored_size for chunk in chunks]),
        "chunks": list(chunks),
    }


def pages_of(key: Mapping[str, Any]) -> Document:
    """The filter for the pages of a message, and of no other with the same id."""
    return {
        "conversation_id": key["conversation_id"],
        "message_id": key["_id"],
        "log_id": key["log_id"],
    }


def trim(
    key: Mapping[str, Any], first: int, next_sequence: int, chunk_bytes: int
) -> tuple[Document, Document]:
    """Takes the chunks of a page, which is stored by now, out of the message.

    It matches only while the page begins where the message does: a second trim of the same page,
    or one that comes late, changes nothing.
    """
    return (
        {**key, "page_start": first},
        {
            "$set": {"page_start": next_sequence},
            "$pull": {"chunks": {"sequence": {"$lt": next_sequence}}},
            "$inc": {"chunk_bytes": -chunk_bytes},
        },
    )


# Leases


def unchanged_lease(lease: Lease) -> Document:
    """Matches a message whose lease is still what it was: no writer came, none gave a sign."""
    # "Not later" and by a millisecond, the step of BSON's dates: a mock keeps microseconds.
    seen = lease.renewed_at and {"$lt": lease.renewed_at + timedelta(milliseconds=1)}
    return same_writer(lease) | {"lease.renewed_at": seen}


def same_writer(lease: Lease) -> Document:
    """Matches a message that has had no other writer since, and whose writer did not let go."""
    return {"lease.epoch": lease.epoch or {"$in": [0, None]}, "lease.holder": lease.holder}


def held_by(lease: Lease) -> Document:
    """Matches while the writer that was given ``lease`` is the writer.

    The holder is unique for each claim. An epoch may be given twice, when a failover takes a claim
    back that a majority did not have.
    """
    return {"lease.epoch": lease.epoch, "lease.holder": lease.holder}


def _hold(holder: ObjectId, duration: float) -> Document:
    return {"lease.holder": holder, "lease.duration": duration}


def acquire_lease(
    key: Mapping[str, Any], holder: ObjectId, duration: float
) -> tuple[Document, Document]:
    """Makes ``holder`` the first writer of the message."""
    return (
        _streaming(key) | {"lease.epoch": {"$in": [0, None]}},
        {
            # The writer of a deleted message that had this id hears of its successor by the last.
            "$set": {**_hold(holder, duration), "lease.epoch": 1, "taken_over_by": holder},
            "$currentDate": _SIGN_OF_LIFE,
        },
    )


def take_over(
    key: Mapping[str, Any], seen: Lease, holder: ObjectId, duration: float
) -> tuple[Document, Document]:
    """Makes ``holder`` the next writer: from here on no append of an earlier epoch matches."""
    return (
        _streaming(key) | same_writer(seen),
        {
            "$set": {
                **_hold(holder, duration),
                "lease.epoch": seen.epoch + 1,
                # A change stream cannot be asked for updates of a field with a dot in its path.
                "taken_over_by": holder,
            },
            "$currentDate": _SIGN_OF_LIFE,
        },
    )


def renew_lease(key: Mapping[str, Any], lease: Lease) -> tuple[Document, Document]:
    """Sends a heartbeat of a writer that has nothing to write.

    It matches only while there is no news for the writer.
    """
    return (
        _streaming(key) | held_by(lease) | {"stop_requested_at": None},
        {"$currentDate": _SIGN_OF_LIFE},
    )


def release_lease(
    key: Mapping[str, Any], lease: Lease, duration: float | None
) -> tuple[Document, Document]:
    """Lets go of a message that another writer is to go on with."""
    return (
        _streaming(key) | held_by(lease),
        {
            "$set": {"lease.duration": duration, "lease.holder": None},
            "$currentDate": _SIGN_OF_LIFE,
        },
    )


def start_lease(key: Mapping[str, Any]) -> tuple[Document, Document]:
    """Starts the clock of a message that nobody has written to yet.

    An insert cannot ask for the server's time; whoever meets the message first does.
    """
    return (
        _streaming(key) | {"lease.renewed_at": None, "lease.duration": {"$ne": None}},
        {"$currentDate": _SIGN_OF_LIFE},
    )


def request_stop(key: Mapping[str, Any], reason: str | None) -> tuple[Document, Document]:
    """Tells the writer of a message to stop; the first who asks gives the reason."""
    return (
        _streaming(key) | {"stop_requested_at": None},
        {"$set": {"stop_reason": reason}, "$currentDate": {"stop_requested_at": True}},
    )


# Ends


def end(
    key: Mapping[str, Any],
    end_id: ObjectId,
    status: MessageStatus,
    metadata: Mapping[str, Any],
    completed_at: datetime,
    *,
    error: str | None = None,
    stop_reason: str | None = None,
    retention: float | None = None,
    condition: Mapping[str, Any] | None = None,
    fence: bool = False,
) -> tuple[Document, Document | list[Document]]:
    """Takes the message out of ``streaming``, once: the filter matches no message that left it.

    Args:
        retention: Seconds from now on until the chunks may be merged away.
        condition: What else must be true.
        fence: Whether a writer that may be alive after all is to learn of it.
    """
    fields: Document = {
        "status": status.value,
        "error": error,
        "end_id": end_id,
        "completed_at": completed_at,
        "updated_at": completed_at,
    }
    if status is MessageStatus.CANCELLED and stop_reason is not None:
        fields["stop_reason"] = stop_reason
    if retention is not None:
        fields["compact_at"] = completed_at + timedelta(seconds=retention)
    match = _streaming(key) | dict(condition or {})
    if not all(map(is_addressable, metadata)):
        stage = {path: {"$literal": value} for path, value in fields.items()}
        stage["metadata"] = _merge("metadata", metadata)
        if fence:
            stage["lease.epoch"] = {"$add": [{"$ifNull": ["$lease.epoch", 0]}, 1]}
        return match, [{"$set": stage}]
    update: Document = {"$set": fields | _under("metadata", metadata)}
    if fence:
        update["$inc"] = {"lease.epoch": 1}
    return match, update


def fill(
    key: Mapping[str, Any], end_id: ObjectId, chunk_count: int, content: str | None
) -> tuple[Document, Document]:
    """Stores what is known only after the end: the number of chunks, and the joined text."""
    fields: Document = {"metadata.chunks": chunk_count}
    if content is not None:
        fields["content"] = content
    return {**key, "end_id": end_id}, {"$set": fields}


def compact(
    key: Mapping[str, Any], end_id: ObjectId, chunks: Sequence[StoredChunk]
) -> tuple[Document, Document]:
    """Replaces the chunks of an ended message by its text and where each of them ended in it.

    The ids of the last appends stay, for writers whose answer was lost: they ask within seconds. It
    matches once: what is read of a merged message has those ids no more.
    """
    appends = [
        {"append_id": chunk["append_id"], "sequence": chunk["sequence"]}
        for chunk in chunks
        if "append_id" in chunk
    ]
    return (
        {**key, "end_id": end_id, "compacted": {"$ne": True}},
        {
            "$set": {
                "content": text_of(chunks),
                "chunk_lengths": encode_lengths([chunk["content"] for chunk in chunks]),
                "recent_appends": appends[-APPENDS_KEPT:],
                "chunks": [],
                "chunk_bytes": 0,
                "page_start": len(chunks),
                "compacted": True,
                "metadata.chunks": len(chunks),
            }
        },
    )


def finish_compaction(key: Mapping[str, Any]) -> tuple[Document, Document]:
    """Says that nothing is left to merge away."""
    return dict(key), {"$unset": {"compact_at": ""}}


# Saves and positions


def save(changed: Mapping[str, Any], removed: Sequence[str], saved_at: datetime) -> Document:
    """Sets just the paths that a caller changed, and takes away those that a caller removed."""
    update: Document = {"$set": {**changed, "updated_at": saved_at}, "$inc": {"revision": 1}}
    if removed:
        update["$unset"] = dict.fromkeys(removed, "")
    return update


def save_unaddressable(
    changes: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]],
) -> list[Document]:
    """Sets and removes keys of mappings that no path can name, since they hold dots or dollars.

    Args:
        changes: The field, with what to set in it and which keys to remove.
    """
    stage = {name: _merge(name, assigned, removed) for name, (assigned, removed) in changes.items()}
    return [{"$set": stage}]


def _merge(name: str, assigned: Mapping[str, Any], removed: Sequence[str] = ()) -> Document:
    """The expression of a mapping with some keys set and some removed, whatever they hold."""
    before: Any = f"${name}"
    if removed:
        stays = {"$not": [{"$in": ["$$each.k", {"$literal": list(removed)}]}]}
        fields = {"input": {"$objectToArray": before}, "as": "each", "cond": stays}
        before = {"$arrayToObject": {"$filter": fields}}
    # One by one: "$ref" and "$id" in one document would be taken for a DBRef on some ways.
    added = [{"$literal": {key: storable(value)}} for key, value in assigned.items()]
    return {"$mergeObjects": [before, *added]}


def mark_edited(
    update: Document, conversation_id: ObjectId, role: MessageRole, edited_at: datetime
) -> Document:
    """The same for a message, with what leads a watcher of its conversation to it."""
    update["$set"]["last_save"] = {
        "conversation_id": conversation_id,
        "role": role.value,
        "at": edited_at,
    }
    return update


def mark_saved(update: Document, mark_type: Any) -> Document:
    """The same with the moment of the save in the server's logical time."""
    return {**update, "$currentDate": {"save_mark": mark_type}}


_REPEATABLE = frozenset(
    {
        "$addToSet",
        "$currentDate",
        "$max",
        "$min",
        "$pull",
        "$pullAll",
        "$set",
        "$setOnInsert",
        "$unset",
    }
)


def may_repeat(update: Mapping[str, Any]) -> bool:
    """Whether an update that an application made changes nothing more when it is made again."""
    return _REPEATABLE.issuperset(update)


def move_next_position(position: int, updated_at: datetime) -> Document:
    """Tells the conversation that ``position`` is taken; repeating it, or coming late, is safe."""
    return {"$max": {"next_position": position + 1, "updated_at": updated_at}}


def _under(path: str, values: Mapping[str, Any]) -> Document:
    return {f"{path}.{key}": storable(value) for key, value in values.items()}
