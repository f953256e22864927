"""What all appends share, of text, of parts and of answers: is it stored, and who is told."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from bson import ObjectId

from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.errors import StoreUnavailableError
from converse_mongo.domain.events import ChunkReceived
from converse_mongo.domain.types import MessageRole
from converse_mongo.store.collections import Collections, WriteQueue


async def stored_at(
    collections: Collections,
    key: Mapping[str, Any],
    append_id: ObjectId,
    found: Mapping[str, Any],
    earliest: float,
) -> int | None:
    """Returns the sequence of the first chunk of an append, ``None`` if it is not stored.

    Args:
        collections: Where the message is.
        key: The message.
        append_id: The id of the append.
        found: The message, in the projection ``updates.find_append``.
        earliest: The sequence before which it cannot have been stored.

    Raises:
        StoreUnavailableError: No answer for ``retry_timeout`` seconds.
    """
    # The chunk itself, or the entry that a merge leaves of the last appends.
    stored = found.get("chunks") or found.get("recent_appends")
    if stored:
        return cast(int, stored[0]["sequence"])
    if found.get("page_start", 0) <= earliest:
        return None
    return await collections.call(
        collections.reader.appended,
        *(key, append_id, max(int(earliest), 0)),
        what=f"read message {key['_id']}",
    )


async def publish_chunks(
    collections: Collections,
    queue: WriteQueue,
    key: Mapping[str, Any],
    chunks: Sequence[MessageChunk],
) -> None:
    """Tells the handlers of this process of chunks that were appended."""
    handlers = collections.handlers
    if not handlers.wants(ChunkReceived):
        return
    for chunk in chunks:
        await handlers.publish(
            ChunkReceived(
                conversation_id=key["conversation_id"],
                message_id=key["_id"],
                role=cast(MessageRole, queue.role),
                chunk=chunk,
            )
        )


def with_append_id(
    error: StoreUnavailableError, advice: str, append_id: ObjectId
) -> StoreUnavailableError:
    """Adds to an error how to try again; raise it from ``error.__cause__ or error``."""
    return StoreUnavailableError(f"{error} {advice} append_id=ObjectId('{append_id}').", append_id)
