"""What one would write by hand with the driver: appends to a message without the library.

They are as good as they can be: nothing is computed that is not sent, nothing is looked at again.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId

from benchmarks.figures import BenchmarkError
from benchmarks.meters import Traffic
from benchmarks.servers import Server
from converse_mongo import Message
from converse_mongo.domain.validation import CHUNK_OVERHEAD, MAX_LIVE_BYTES
from converse_mongo.driver.clients import (
    Client,
    close_client,
    open_client,
)
from converse_mongo.driver.collections import Collection

__all__ = ["RawMessage", "check_equal", "open_raw_client"]

SOCKET_TIMEOUT_MS = 30_000


@asynccontextmanager
async def open_raw_client(server: Server, traffic: Traffic | None = None) -> AsyncIterator[Client]:
    """A client of the driver that the library uses, to be shared with it.

    So both use the same options and connections. Without ``traffic`` nobody listens to commands,
    which would cost time of every command.
    """
    listeners = {} if traffic is None else {"event_listeners": [traffic]}
    client = open_client(server.uri, {"socketTimeoutMS": SOCKET_TIMEOUT_MS, **listeners})
    try:
        yield client
    finally:
        await close_client(client)


class RawMessage:
    """A message that the library made, and that is appended to by hand.

    Args:
        messages: The collection that it is in.
        message: What the library says of it; it streams and is empty.
    """

    def __init__(self, messages: Collection, message: Message) -> None:
        self._messages = messages
        self.message = message
        self._id = message.id
        self._conversation_id = message.conversation_id
        self._next_sequence = 0

    async def append(self, text: str) -> None:
        """Appends a chunk by the update that the library makes."""
        sequence = self._next_sequence
        length = len(text.encode())
        size = CHUNK_OVERHEAD + length
        result = await self._messages.update_one(
            {
                "_id": self._id,
                "conversation_id": self._conversation_id,
                "status": "streaming",
                "next_sequence": sequence,
                "chunk_bytes": {"$not": {"$gt": MAX_LIVE_BYTES - size}},
            },
            {
                "$push": {
                    "chunks": {
                        "$each": [
                            {
                                "sequence": sequence,
                                "content": text,
                                "created_at": datetime.now(UTC),
                                "append_id": ObjectId(),
                            }
                        ]
                    }
                },
                "$inc": {"next_sequence": 1, "chunk_bytes": size, "content_bytes": length},
                "$currentDate": {"lease.renewed_at": True},
            },
        )
        self._go_on(result)

    async def append_plainly(self, text: str) -> None:
        """Appends a chunk by the least update that keeps the order of chunks.

        A retry might store it twice, nobody can move chunks away, and nobody knows when the writer
        was last alive.
        """
        sequence = self._next_sequence
        chunk = {"sequence": sequence, "content": text, "created_at": datetime.now(UTC)}
        result = await self._messages.update_one(
            {
                "_id": self._id,
                "conversation_id": self._conversation_id,
                "status": "streaming",
                "next_sequence": sequence,
            },
            {"$push": {"chunks": chunk}, "$inc": {"next_sequence": 1}},
        )
        self._go_on(result)

    def _go_on(self, result: Any) -> None:
        if result.matched_count != 1:
            raise BenchmarkError(f"Chunk {self._next_sequence} was not appended by hand.")
        self._next_sequence += 1


async def check_equal(message: Message, what: str, text: str, chunks: int | None = None) -> None:
    """Loads ``message`` and compares it with what was written to it.

    Raises:
        BenchmarkError: Its text, or the number of its chunks, is another.
    """
    await message.refresh()
    stored = [chunk.content async for chunk in message.iter_chunks()]
    if "".join(stored) != text or (chunks is not None and len(stored) != chunks):
        raise BenchmarkError(
            f"{what}: {len(stored)} chunks of together {sum(map(len, stored))} characters are "
            f"stored, and not what was written, {len(text)} characters."
        )
