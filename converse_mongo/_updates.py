"""Builds the filters and updates of every write. Pure: nothing here does I/O.

Each filter carries ``conversation_id``, the shard key, so that a sharded cluster sends the write to
one shard; each also says what must still be true for the write to happen.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from bson import ObjectId

from converse_mongo._validation import MAX_MESSAGE_BYTES
from converse_mongo.chunks import MessageChunk
from converse_mongo.types import MessageStatus

__all__ = [
    "Document",
    "append",
    "end",
    "fill",
    "find_append",
    "mark_edited",
    "message_key",
    "move_next_position",
    "save",
]

Document: TypeAlias = dict[str, Any]


def message_key(message_id: ObjectId, conversation_id: ObjectId) -> Document:
    """Names one message, and the shard it is on."""
    return {"_id": message_id, "conversation_id": conversation_id}


def append(
    key: Mapping[str, Any], chunks: Sequence[MessageChunk], append_id: ObjectId
) -> tuple[Document, Document]:
    """Pushes ``chunks``, numbered from the sequence that the message must still expect.

    The expected sequence in the filter does all the work: of two writers one matches, and no
    repeat of the same append ever matches again, since the counter never goes back. The id on the
    first chunk tells a writer whose answer was lost that the append was its own.
    """
    stored = [chunk.to_stored() for chunk in chunks]
    stored[0]["append_id"] = append_id
    size = sum([chunk.stored_size for chunk in chunks])
    return (
        {
            **key,
            "status": MessageStatus.STREAMING.value,
            "next_sequence": chunks[0].sequence,
            "chunk_bytes": {"$not": {"$gt": MAX_MESSAGE_BYTES - size}},
        },
        {
            "$push": {"chunks": {"$each": stored}},
            "$inc": {"next_sequence": len(stored), "chunk_bytes": size},
        },
    )


def find_append(append_id: ObjectId) -> Document:
    """The projection that explains why an append did not match."""
    return {
        "status": 1,
        "next_sequence": 1,
        "chunk_bytes": 1,
        "chunks": {"$elemMatch": {"append_id": append_id}},
    }


def end(
    key: Mapping[str, Any],
    end_id: ObjectId,
    status: MessageStatus,
    error: str | None,
    metadata: Mapping[str, Any],
    completed_at: datetime,
) -> tuple[Document, Document]:
    """Takes the message out of ``streaming``, once: the filter matches no message that left it."""
    return (
        {**key, "status": MessageStatus.STREAMING.value},
        {
            "$set": {
                "status": status.value,
                "error": error,
                "end_id": end_id,
                "completed_at": completed_at,
                "updated_at": completed_at,
                **_under("metadata", metadata),
            }
        },
    )


def fill(
    key: Mapping[str, Any], end_id: ObjectId, chunk_count: int, content: str | None
) -> tuple[Document, Document]:
    """Stores what is known only after the end: the number of chunks, and the joined text."""
    fields: Document = {"metadata.chunks": chunk_count}
    if content is not None:
        fields["content"] = content
    return {**key, "end_id": end_id}, {"$set": fields}


def save(changed: Mapping[str, Any], removed: Sequence[str], saved_at: datetime) -> Document:
    """Sets just the paths that a caller changed, and takes away those that a caller removed."""
    update: Document = {"$set": {**changed, "updated_at": saved_at}}
    if removed:
        update["$unset"] = dict.fromkeys(removed, "")
    return update


def mark_edited(update: Document, conversation_id: ObjectId, edited_at: datetime) -> Document:
    """The same for a message, with a mark that leads a watcher of its conversation to it."""
    update["$set"]["last_save"] = {"conversation_id": conversation_id, "at": edited_at}
    update["$inc"] = {"revision": 1}
    return update


def move_next_position(position: int, updated_at: datetime) -> Document:
    """Tells the conversation that ``position`` is taken; repeating it, or coming late, is safe."""
    return {"$max": {"next_position": position + 1, "updated_at": updated_at}}


def _under(path: str, values: Mapping[str, Any]) -> Document:
    return {f"{path}.{key}": value for key, value in values.items()}
