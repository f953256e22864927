"""Updates: the filters and updates of every write. Pure: nothing here does I/O.

Each filter carries ``conversation_id``, the shard key, so that a sharded cluster sends the write to
one shard. It carries ``log_id``, so that it never matches another message with the same id: see
``headers.message_key``. Each also has the conditions under which the write is still correct. One of
them is a known format: in a rolling deployment an older process must not write to what a later
version has written, since it cannot know what that means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from bson import ObjectId

from converse_mongo.domain.chunks import MessageChunk, PartChunk, StoredChunk
from converse_mongo.domain.headers import FORMATS, PARTS_FORMAT, pages_of
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.lengths import encode_metadata
from converse_mongo.domain.metadata import is_addressable, storable
from converse_mongo.domain.part_log import Record, storable_records
from converse_mongo.domain.part_merging import merge
from converse_mongo.domain.part_redaction import Redaction, redaction, swept
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.domain.validation import MAX_LIVE_BYTES, utf8_size

Document: TypeAlias = dict[str, Any]

APPENDS_KEPT = 32
APPENDS_KEPT_SECONDS = 3600.0
EARLY_STOPS_KEPT = 32

_HEARTBEAT: Document = {"lease.renewed_at": True}
"""For ``$currentDate``: a lease runs by the server's clock only."""


def any_log(key: Mapping[str, Any]) -> Document:
    """Returns the filter for whichever message has the id now, to explain a mismatch of ``key``."""
    return {name: value for name, value in key.items() if name != "log_id"}


def known(key: Mapping[str, Any]) -> Document:
    """Matches the message while it has a format that this version knows."""
    return {**key, "format": {"$in": list(FORMATS)}}


def streaming(key: Mapping[str, Any]) -> Document:
    """Matches the message while it streams."""
    return {**known(key), "status": MessageStatus.STREAMING.value}


@dataclass(frozen=True, slots=True)
class End:
    """The end of a message, as a caller wants it.

    Attributes:
        status: The final state.
        metadata: Merged into that of the message, key by key.
        error: The reason of a failure.
        stop_reason: The reason of a stop.
        is_crash: True if it is since the worker of a queued message died.
    """

    status: MessageStatus
    metadata: Mapping[str, Any]
    error: str | None = None
    stop_reason: str | None = None
    is_crash: bool = False


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
    has_parts: bool = False,
    part_size: int = 0,
) -> tuple[Document, Document]:
    """Pushes ``chunks``, numbered from the sequence that the message must still expect.

    The expected sequence in the filter is what makes it safe: of two writers one matches, and a
    repeat of the same append never matches again, since the counter never decreases. By the id on
    the first chunk a writer whose answer was lost recognizes its own append.

    Args:
        key: The message.
        chunks: The chunks.
        append_id: The id of the append.
        size: The size of the chunks in the document, in bytes.
        text_size: The size of their text, in bytes of UTF-8.
        lease: The lease of the writer. It matches until another writer takes over.
        unless_stopped: True to store nothing after a stop was requested.
        has_parts: True if a chunk is not text of the answer.
        part_size: The size of those chunks, in bytes.
    """
    stored = [chunk.to_stored() for chunk in chunks]
    stored[0]["append_id"] = append_id
    match = streaming(key) | {
        "next_sequence": chunks[0].sequence,
        "chunk_bytes": {"$not": {"$gt": MAX_LIVE_BYTES - size}},
    }
    if lease is not None:
        match |= held_by(lease)
    if unless_stopped:
        match["stop_requested_at"] = None
    update: Document = {
        "$push": {"chunks": {"$each": stored}},
        "$inc": {
            "next_sequence": len(stored),
            "chunk_bytes": size,
            "content_bytes": text_size,
        },
        "$currentDate": _HEARTBEAT,
    }
    if has_parts:
        update["$max"] = {"format": PARTS_FORMAT}  # that of a queued message is higher
        update["$inc"]["part_bytes"] = part_size
        _note_redactions(update, chunks)
    return match, update


def _note_redactions(update: Document, chunks: Sequence[MessageChunk]) -> None:
    """Notes what an append redacts, and that the chunks before it are to be swept."""
    noted = [
        redaction(chunk.part, chunk.fields.get("reason"))
        for chunk in chunks
        if isinstance(chunk, PartChunk) and chunk.event == "redact" and chunk.part is not None
    ]
    if noted:
        update["$push"]["redactions"] = {"$each": noted}
        update["$inc"]["sweeps"] = 1
        update["$set"] = {"compact_at": chunks[0].created_at}


def find_append(append_id: ObjectId) -> Document:
    """Returns the projection that explains why an append did not match."""
    state = ("status", "next_sequence", "chunk_bytes", "page_start", "log_id", "lease", "format")
    stop = ("stop_requested_at", "stop_reason")
    append = {"$elemMatch": {"append_id": append_id}}
    return dict.fromkeys((*state, *stop), 1) | {"chunks": append, "recent_appends": append}


# Pages


def page(
    key: Mapping[str, Any], chunks: Sequence[StoredChunk], sweeps: int | None = None
) -> Document:
    """Returns the page for ``chunks``, the first ones that a message embeds.

    Its id is derived from its content: of two processes that store the same page, one finds it
    stored. The id of the message would not do, since a generation that is started anew has it, too.
    It has the ``sweeps`` of the message if there are any; see :mod:`converse_mongo.store.sweeps`.
    """
    first = chunks[0]["sequence"]
    return {
        "_id": f"{key['log_id'] or key['_id']}-{first}",
        **pages_of(key),
        "first_sequence": first,
        "next_sequence": first + len(chunks),
        "chunk_bytes": sum([MessageChunk.from_stored(chunk).stored_size for chunk in chunks]),
        "chunks": list(chunks),
    } | ({} if sweeps is None else {"sweeps": sweeps})


def older_than(sweeps: int) -> Document:
    """Matches pages with chunks that were read before the last sweep."""
    return {"sweeps": {"$not": {"$gte": sweeps}}}


def trim(
    key: Mapping[str, Any],
    first: int,
    next_sequence: int,
    chunk_bytes: int,
    sweeps: int | None = None,
) -> tuple[Document, Document]:
    """Removes the chunks of a stored page from the message.

    It matches only while the message begins with that page: a second trim of the same page, or a
    late one, changes nothing. Nor does one after a redaction or a sweep since the chunks were read:
    the page may then have what they removed.
    """
    return (
        {**known(key), "page_start": first, "sweeps": sweeps},
        {
            "$set": {"page_start": next_sequence},
            "$pull": {"chunks": {"sequence": {"$lt": next_sequence}}},
            "$inc": {"chunk_bytes": -chunk_bytes},
        },
    )


# Values


def value(
    key: Mapping[str, Any], value_id: str, number: int, data: bytes
) -> tuple[Document, Document]:
    """Stores a piece of a value, for an update that inserts what it does not find.

    Unlike an insert it may be repeated in a transaction, which an error would end.
    """
    fields = {"message_id": key["_id"], "log_id": key["log_id"], "value_id": value_id}
    return (
        {"_id": f"{value_id}-{number}", "conversation_id": key["conversation_id"]},
        {"$setOnInsert": {**fields, "number": number, "data": data}},
    )


# Leases


def unchanged_lease(lease: Lease) -> Document:
    """Matches a message whose lease is unchanged: no new writer, no heartbeat."""
    # "Not later", and by the millisecond of BSON's dates: a mock keeps microseconds.
    seen = lease.renewed_at and {"$lt": lease.renewed_at + timedelta(milliseconds=1)}
    return same_writer(lease) | {"lease.renewed_at": seen}


def same_writer(lease: Lease) -> Document:
    """Matches a message that has had no other writer since, and whose writer did not release it."""
    return {"lease.epoch": lease.epoch or {"$in": [0, None]}, "lease.holder": lease.holder}


def held_by(lease: Lease) -> Document:
    """Matches while the writer that was given ``lease`` is the writer.

    The holder is unique for each claim. An epoch may occur twice, if a failover rolls back a claim
    that a majority did not have.
    """
    return {"lease.epoch": lease.epoch, "lease.holder": lease.holder}


def unheld(*, stopped: bool) -> Document:
    """Matches a message without a writer, of which a stop was requested or was not."""
    return {"lease.holder": None, "stop_requested_at": {"$ne": None} if stopped else None}


def _hold(holder: ObjectId, duration: float) -> Document:
    return {"lease.holder": holder, "lease.duration": duration}


def acquire_lease(
    key: Mapping[str, Any], holder: ObjectId, duration: float
) -> tuple[Document, Document]:
    """Makes ``holder`` the first writer of the message."""
    return (
        streaming(key) | {"lease.epoch": {"$in": [0, None]}, "work.state": None},
        {
            # The last field notifies the writer of a deleted message that had this id.
            "$set": {**_hold(holder, duration), "lease.epoch": 1, "taken_over_by": holder},
            "$currentDate": _HEARTBEAT,
        },
    )


def take_over(
    key: Mapping[str, Any], seen: Lease, holder: ObjectId, duration: float
) -> tuple[Document, Document]:
    """Makes ``holder`` the next writer: no append of an earlier epoch matches any more."""
    return (
        streaming(key) | same_writer(seen) | {"work.state": {"$in": [None, "running"]}},
        {
            "$set": {
                **_hold(holder, duration),
                "lease.epoch": seen.epoch + 1,
                # A change stream cannot filter on an updated field with a dot in its path.
                "taken_over_by": holder,
            },
            "$currentDate": _HEARTBEAT,
        },
    )


def renew_lease(key: Mapping[str, Any], lease: Lease) -> tuple[Document, Document]:
    """Sends the heartbeat of a writer that has nothing to write.

    It matches only while there is no news for the writer.
    """
    return (
        streaming(key) | held_by(lease) | {"stop_requested_at": None},
        {"$currentDate": _HEARTBEAT},
    )


def release_lease(
    key: Mapping[str, Any], lease: Lease, duration: float | None
) -> tuple[Document, Document]:
    """Releases a message for another writer, unless it has a queue to go back to."""
    return (
        streaming(key) | held_by(lease) | {"work.state": None},
        {
            "$set": {"lease.duration": duration, "lease.holder": None},
            "$currentDate": _HEARTBEAT,
        },
    )


def start_lease(key: Mapping[str, Any]) -> tuple[Document, Document]:
    """Starts the lease of a message that nobody has written to yet.

    An insert cannot set the server's time; the first process that reads the message does.
    """
    return (
        streaming(key) | {"lease.renewed_at": None, "lease.duration": {"$ne": None}},
        {"$currentDate": _HEARTBEAT},
    )


def request_stop(key: Mapping[str, Any], reason: str | None) -> tuple[Document, Document]:
    """Requests a stop of a message that has a writer; the first request sets the reason.

    One without a writer ends at once instead: see :func:`unheld`.
    """
    return (
        streaming(key) | {"stop_requested_at": None, "lease.holder": {"$ne": None}},
        {"$set": {"stop_reason": reason}, "$currentDate": {"stop_requested_at": True}},
    )


# Turns and early stops


def take_turn(conversation_id: ObjectId, holder: ObjectId) -> tuple[Document, Document]:
    """Gives ``holder`` the turn to begin an answer in a conversation, if nobody has it."""
    return (
        {"_id": conversation_id, "answer_turn": None},
        {"$set": {"answer_turn.holder": holder}, "$currentDate": {"answer_turn.at": True}},
    )


def end_turn(conversation_id: ObjectId, holder: ObjectId) -> tuple[Document, Document]:
    """Ends the turn of ``holder``, and no other."""
    return {"_id": conversation_id, "answer_turn.holder": holder}, {"$unset": {"answer_turn": ""}}


def stop_turn(
    conversation_id: ObjectId, message_ids: Sequence[ObjectId] | None, reason: str | None
) -> tuple[Document, Document]:
    """Notes for whoever has the turn that its answer is to stop: any, or one of some messages."""
    ids = None if message_ids is None else list(message_ids)
    stops = {"$each": [{"message_ids": ids, "reason": reason}], "$slice": -EARLY_STOPS_KEPT}
    return (
        {"_id": conversation_id, "answer_turn.holder": {"$ne": None}},
        {"$push": {"answer_turn.stops": stops}},
    )


def stop_early(
    conversation_id: ObjectId, message_id: ObjectId, reason: str | None
) -> tuple[Document, Document]:
    """Notes the stop of a message that does not exist yet; the first one sets the reason."""
    stop = {"message_id": message_id, "reason": reason}
    return (
        {"_id": conversation_id, "early_stops.message_id": {"$ne": message_id}},
        {"$push": {"early_stops": {"$each": [stop], "$slice": -EARLY_STOPS_KEPT}}},
    )


def forget_stop(conversation_id: ObjectId, message_id: ObjectId) -> tuple[Document, Document]:
    """Forgets the early stop of a message."""
    return {"_id": conversation_id}, {"$pull": {"early_stops": {"message_id": message_id}}}


# Ends

_OF_NO_END = tuple(f"work.{name}" for name in ("state", "due", "available_at", "pending"))
"""The fields of a queued message that ask something of others. Where there are none, an end writes
none. The ticket stays: it tells which place is to be given back."""


def end(
    key: Mapping[str, Any],
    end_id: ObjectId,
    end: End,
    completed_at: datetime,
    *,
    retention: float | None = None,
    condition: Mapping[str, Any] | None = None,
    fence: bool = False,
) -> tuple[Document, Document | list[Document]]:
    """Ends the message, once: the filter matches no message that has left ``streaming``.

    Args:
        key: The message.
        end_id: The id of this end.
        end: The end.
        completed_at: The time of the end.
        retention: Seconds until the chunks are due to be merged.
        condition: A further condition of the filter.
        fence: True to fence off a writer that may still be alive.
    """
    fields: Document = {
        "status": end.status.value,
        "error": end.error,
        "end_id": end_id,
        "completed_at": completed_at,
        "updated_at": completed_at,
    }
    if end.status is MessageStatus.CANCELLED and end.stop_reason is not None:
        fields["stop_reason"] = end.stop_reason
    if retention is not None:
        fields["compact_at"] = completed_at + timedelta(seconds=retention)
    match = streaming(key) | dict(condition or {})
    if not all(map(is_addressable, end.metadata)):
        stage = {path: {"$literal": value} for path, value in fields.items()}
        stage["metadata"] = _merge("metadata", end.metadata)
        if fence:
            stage["lease.epoch"] = {"$add": [{"$ifNull": ["$lease.epoch", 0]}, 1]}
        return match, [{"$set": stage}, {"$unset": list(_OF_NO_END)}]
    update: Document = {
        "$set": fields | _under("metadata", end.metadata),
        "$unset": dict.fromkeys(_OF_NO_END, ""),
    }
    if fence:
        update["$inc"] = {"lease.epoch": 1}
        if end.is_crash:
            update["$inc"]["work.crashes"] = 1
    return match, update


def fill(
    key: Mapping[str, Any],
    end_id: ObjectId,
    chunk_count: int,
    content: str | None,
    records: Sequence[Record] | None = None,
    redactions: Sequence[Redaction] | None = None,
) -> tuple[Document, Document]:
    """Stores what is known only after the end: the number of chunks, the text, and the parts.

    A redaction since the end has stored them without what it redacted.
    """
    fields: Document = {"metadata.chunks": chunk_count}
    if content is not None:
        fields["content"] = content
    if records is not None:
        fields["parts"] = storable_records(records)
        # A reset has taken text back.
        fields["content_bytes"] = utf8_size(content or "")
    return {**known(key), "end_id": end_id, "redactions": redactions}, {"$set": fields}


def compact(
    key: Mapping[str, Any],
    end_id: ObjectId,
    chunks: Sequence[StoredChunk],
    retention: float | None = None,
    redactions: Sequence[Redaction] | None = None,
) -> tuple[Document, Document]:
    """Replaces the chunks of an ended message by its text, and what it takes to expand them.

    The ids of the last appends stay, for writers whose answer was lost: they ask within seconds, so
    after a ``retention`` of an hour nobody does. It matches once, since the chunks that are read of
    a merged message do not have those ids, and only while no more is redacted.
    """
    appends = [
        {"append_id": chunk["append_id"], "sequence": chunk["sequence"]}
        for chunk in chunks
        if "append_id" in chunk
    ]
    fields = {
        **merged_log(chunks, redactions),
        "chunks": [],
        "chunk_bytes": 0,
        "page_start": len(chunks),
        "compacted": True,
        "metadata.chunks": len(chunks),
    }
    if retention is None or retention < APPENDS_KEPT_SECONDS:
        fields["recent_appends"] = appends[-APPENDS_KEPT:]
    unmerged = {"compacted": {"$ne": True}, "redactions": redactions}
    return {**known(key), "end_id": end_id, **unmerged}, {"$set": fields}


def merged_log(
    chunks: Sequence[StoredChunk], redactions: Sequence[Redaction] | None = None
) -> Document:
    """Returns the fields that hold merged chunks, without what was redacted."""
    if redactions:
        chunks = swept(chunks, [each["part"] for each in redactions])
    merged = merge(chunks)
    fields: Document = {"content": merged.content, "chunk_lengths": merged.lengths}
    if runs := encode_metadata(chunks):
        fields["chunk_metadata"] = runs
    if merged.events:
        fields["chunk_events"] = merged.events
    return fields


def finish_compaction(key: Mapping[str, Any]) -> tuple[Document, Document]:
    """Marks a message as having nothing left to merge."""
    return known(key), {"$unset": {"compact_at": ""}}


# Redactions


def sweep(
    key: Mapping[str, Any],
    page_start: int | None,
    sweeps: int | None,
    changed: Mapping[int, StoredChunk],
    freed: int,
) -> tuple[Document, Document]:
    """Replaces embedded chunks, by their index, by what a sweep makes of them.

    It matches only while the message embeds the chunks from the same sequence on. It also counts,
    so that no page becomes part of the message whose chunks were read before.

    Args:
        key: The message.
        page_start: The sequence of its first embedded chunk.
        sweeps: The sweeps and redactions so far.
        changed: The new chunks.
        freed: The bytes that they take less.
    """
    match = {
        **known(key),
        "page_start": page_start,
        "sweeps": sweeps,
        "compacted": {"$ne": True},
    }
    update: Document = {"$inc": {"sweeps": 1}}
    if changed:
        update["$inc"]["chunk_bytes"] = -freed
        last = max(changed)  # a failover may have taken the last chunks back
        match[f"chunks.{last}.sequence"] = changed[last]["sequence"]
        update["$set"] = {f"chunks.{index}": chunk for index, chunk in changed.items()}
    return match, update


def finish_sweep(
    key: Mapping[str, Any], sweeps: int, status: MessageStatus, merges_at: datetime | None
) -> tuple[Document, Document]:
    """Notes that nothing is left to sweep: the chunks are due again when they were before."""
    update = {"$set": {"compact_at": merges_at}} if merges_at else {"$unset": {"compact_at": ""}}
    return {**known(key), "sweeps": sweeps, "status": status.value}, update


def redact(
    key: Mapping[str, Any],
    seen: Mapping[str, Any],
    redacted: Redaction,
    save: Document,
) -> tuple[Document, Document]:
    """Redacts a part of a message that has ended.

    It matches only while what the redaction was made from is stored: a second try, after a lost
    answer, changes nothing.

    Args:
        key: The message.
        seen: The document as it was read.
        redacted: The redaction.
        save: The update of a save, which stores what is left.
    """
    assumed = ("status", "end_id", "compacted", "revision", "redactions", "sweeps")
    match = {**known(key), **{name: seen.get(name) for name in assumed}}
    counted = {**save["$inc"], "sweeps": 1}
    return match, {**save, "$push": {"redactions": redacted}, "$inc": counted}


# Saves and positions


def save(changed: Mapping[str, Any], removed: Sequence[str], saved_at: datetime) -> Document:
    """Sets only the paths that a caller changed, and removes those that it removed."""
    update: Document = {"$set": {**changed, "updated_at": saved_at}, "$inc": {"revision": 1}}
    if removed:
        update["$unset"] = dict.fromkeys(removed, "")
    return update


def save_message(
    changed: Mapping[str, Any],
    removed: Sequence[str],
    saved_at: datetime,
    conversation_id: ObjectId,
    role: MessageRole,
    mark_type: Any,
) -> Document:
    """Saves fields of a message as :func:`save` does, and marks it for watchers.

    Args:
        changed: The paths to set.
        removed: The paths to remove.
        saved_at: The time of the save.
        conversation_id: Leads a watcher to the message, with the role.
        role: The role of the message.
        mark_type: The type of the moment of the save in the server's logical time.
    """
    update = save(changed, removed, saved_at)
    last_save = {"conversation_id": conversation_id, "role": role.value, "at": saved_at}
    update["$set"]["last_save"] = last_save
    return {**update, "$currentDate": {"save_mark": mark_type}}


def save_unaddressable(
    changes: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]],
) -> list[Document]:
    """Sets and removes keys of mappings that no path can name, since they contain dots or dollars.

    Args:
        changes: By field, the values to set and the keys to remove.
    """
    stage = {name: _merge(name, assigned, removed) for name, (assigned, removed) in changes.items()}
    return [{"$set": stage}]


def _merge(name: str, assigned: Mapping[str, Any], removed: Sequence[str] = ()) -> Document:
    """Returns the expression of a mapping with some keys set and some removed."""
    before: Any = f"${name}"
    if removed:
        stays = {"$not": [{"$in": ["$$each.k", {"$literal": list(removed)}]}]}
        fields = {"input": {"$objectToArray": before}, "as": "each", "cond": stays}
        before = {"$arrayToObject": {"$filter": fields}}
    # One by one: a document with "$ref" and "$id" may be decoded as a DBRef.
    added = [{"$literal": {key: storable(value)}} for key, value in assigned.items()]
    return {"$mergeObjects": [before, *added]}


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
    """Returns whether an update of the application is safe to repeat."""
    return _REPEATABLE.issuperset(update)


def move_next_position(position: int, updated_at: datetime) -> Document:
    """Marks ``position`` of a conversation as used; safe to repeat, and to apply late."""
    return {"$max": {"next_position": position + 1, "updated_at": updated_at}}


def _under(path: str, values: Mapping[str, Any]) -> Document:
    return {f"{path}.{key}": storable(value) for key, value in values.items()}
