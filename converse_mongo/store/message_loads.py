"""Loads of one message, with retries: what must be there, and else is an error."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from bson import ObjectId

from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.errors import MessageNotFoundError, WatchError
from converse_mongo.domain.headers import HEADER, MessageHeader
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.validation import check_sequence
from converse_mongo.store.collections import Collections
from converse_mongo.store.message_reads import CHUNKS_PER_READ


async def load_stored(
    collections: Collections, key: Mapping[str, Any], longest: int | None = None
) -> dict[str, Any]:
    """Reads a message as it is stored, with its chunks.

    Args:
        collections: Where it is.
        key: The filter for the message.
        longest: The most bytes of text to read; ``None`` for no limit.

    Raises:
        MessageNotFoundError: The message does not exist.
        StoreUnavailableError: MongoDB did not answer.
    """
    what = f"read message {key['_id']}"
    stored = await collections.call(collections.reader.document, key, longest, what=what)
    if stored is None:
        raise MessageNotFoundError(key["_id"])
    return stored


async def find_header(collections: Collections, key: ObjectId) -> MessageHeader:
    """Reads the header of a message.

    Raises:
        MessageNotFoundError: The message does not exist.
        StoreUnavailableError: MongoDB did not answer.
    """
    find = collections.messages.find_one
    stored = await collections.call(find, {"_id": key}, HEADER, what=f"read message {key}")
    if stored is None:
        raise MessageNotFoundError(key)
    return MessageHeader.from_stored(stored)


async def find_log(
    collections: Collections, key: Mapping[str, Any]
) -> tuple[MessageHeader, PartLog] | None:
    """Reads the header and the log of a message; ``None`` if no message has its id.

    Another message with the same id may be found: its ``log_id`` tells.

    Raises:
        StoreUnavailableError: MongoDB did not answer.
    """
    return await collections.call(
        collections.reader.parts,
        *(key["_id"], key["conversation_id"]),
        what=f"read message {key['_id']}",
    )


async def load_chunks(
    collections: Collections, key: Mapping[str, Any], after: int | None, page_start: int
) -> AsyncIterator[MessageChunk]:
    """Yields the chunks of a message in order, some pages at a time.

    Args:
        collections: Where it is.
        key: The filter for the message.
        after: The sequence of the last chunk to leave out; ``None`` for none.
        page_start: The expected sequence of the first chunk that it embeds.

    Raises:
        InvalidCursorError: ``after`` is not a sequence.
        MessageNotFoundError: The message does not exist.
        WatchError: A chunk is missing: something else wrote to the message.
        StoreUnavailableError: MongoDB did not answer.
    """
    start, message_id = check_sequence(after), key["_id"]
    while True:
        found = await collections.call(
            collections.reader.read,
            *(message_id, key["conversation_id"], start, CHUNKS_PER_READ, page_start),
            what=f"read message {message_id}",
        )
        if found is None or found[0].log_id != key["log_id"]:
            raise MessageNotFoundError(message_id)
        state, chunks = found
        for chunk in chunks:
            yield chunk
        start += len(chunks)
        if start >= state.next_sequence:
            return
        if not chunks:
            raise WatchError(
                f"Chunk {start} of message {message_id} is missing: the message or its pages were "
                "modified outside converse_mongo."
            )
        page_start = state.page_start
