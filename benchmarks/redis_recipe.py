"""How people stream answers with Redis: the popular recipe by hand, and two packages for it.

None of them stores the answer while it streams: Redis has it for a while, and the application saves
the finished message in its database, which is the last step of :meth:`Way.produce` in each.

- The recipe: ``XADD`` for each token, viewers that ``XREAD BLOCK`` from the last id that they had,
  and one ``insert_one`` of the finished message.
- ``assistant-stream`` 0.0.36 (``assistant_stream.resumable``): a Redis stream with a ``GET`` and a
  pipeline of three commands for each token; readers ask anew each 100 ms, its default.
- ``resumable-stream`` 0.2.0: the text is in the memory of the producer, which publishes each token
  to each reader. ``redis_url=``, as its README has it, raises ``TypeError`` in that version, so its
  own publisher and subscriber are passed.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Protocol, TypeAlias
from uuid import uuid4

from converse_mongo.driver.collections import Collection

__all__ = ["AssistantStream", "Recipe", "ResumableStream", "Started", "Way"]

Started: TypeAlias = Callable[[str], Awaitable[None]]
"""Told the key of a stream once viewers can come."""

KEPT_SECONDS = 3600
BLOCK_MS = 5000


class Way(Protocol):
    """A way to stream an answer to viewers in other processes."""

    async def produce(self, tokens: AsyncIterator[str], started: Started) -> None:
        """Streams ``tokens``; returns when the answer has ended and is stored."""

    def view(self, key: str) -> AsyncIterator[str]:
        """Yields the text of a stream from its beginning to its end, as it comes.

        Raises:
            LookupError: There is no such stream.
        """


async def _save(messages: Collection, text: str) -> None:
    now = datetime.now(UTC)
    await messages.insert_one(
        {"role": "assistant", "status": "completed", "content": text, "completed_at": now}
    )


class Recipe:
    """Redis Streams by hand."""

    def __init__(self, client: Any, messages: Collection) -> None:
        self._redis = client
        self._messages = messages

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, messages: Collection) -> AsyncIterator["Recipe"]:
        """On the Redis at ``url``, with finished messages in ``messages``."""
        async with import_module("redis.asyncio").from_url(url, decode_responses=True) as client:
            yield cls(client, messages)

    async def produce(self, tokens: AsyncIterator[str], started: Started) -> None:
        """Adds each token to a stream of Redis, then its end, then saves the message."""
        key = f"answer:{uuid4().hex}"
        await started(key)
        parts = []
        async for token in tokens:
            parts.append(token)
            await self._redis.xadd(key, {"token": token})
        await self._redis.xadd(key, {"end": "1"})
        await _save(self._messages, "".join(parts))
        await self._redis.expire(key, KEPT_SECONDS)

    async def view(self, key: str) -> AsyncIterator[str]:
        """Reads the stream from its beginning to its end; one that is not there may still come."""
        last = "0"
        while True:
            found = await self._redis.xread({key: last}, block=BLOCK_MS)
            for _key, entries in found:
                for entry_id, fields in entries:
                    if "end" in fields:
                        return
                    yield fields["token"]
                    last = entry_id


class AssistantStream:
    """The package ``assistant-stream``."""

    def __init__(self, client: Any, messages: Collection) -> None:
        self._messages = messages
        self._package = import_module("assistant_stream.resumable")
        self._store = self._package.create_redis_resumable_stream_store(client)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, messages: Collection) -> AsyncIterator["AssistantStream"]:
        """On the Redis at ``url``, with finished messages in ``messages``."""
        async with import_module("redis.asyncio").from_url(url) as client:
            yield cls(client, messages)

    async def produce(self, tokens: AsyncIterator[str], started: Started) -> None:
        """Has the package append each token, then saves the message."""
        parts = []

        async def encoded() -> AsyncIterator[bytes]:
            async for token in tokens:
                parts.append(token)
                yield token.encode()

        running: list[Any] = []
        context = self._package.create_resumable_stream_context(
            store=self._store, wait_until=running.append
        )
        key = uuid4().hex
        await context.run(key, encoded)
        await started(key)
        await running[0]
        await _save(self._messages, "".join(parts))

    async def view(self, key: str) -> AsyncIterator[str]:
        """Has the package read the stream."""
        context = self._package.create_resumable_stream_context(store=self._store)
        chunks = await context.resume(key)
        if chunks is None:
            raise LookupError(key)
        async for chunk in chunks:
            yield chunk.decode()


class ResumableStream:
    """The package ``resumable-stream``."""

    def __init__(self, publisher: Any, subscriber: Any, messages: Collection) -> None:
        self._messages = messages
        self._context = import_module("resumable_stream").create_resumable_stream_context(
            publisher=publisher, subscriber=subscriber
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, messages: Collection) -> AsyncIterator["ResumableStream"]:
        """On the Redis at ``url``, with finished messages in ``messages``."""
        package = import_module("resumable_stream")
        async with AsyncExitStack() as stack:
            sides = package.RedisPublisher(url), package.RedisSubscriber(url)
            for side in sides:
                await side.connect()
                stack.push_async_callback(side.close)
            yield cls(*sides, messages)

    async def produce(self, tokens: AsyncIterator[str], started: Started) -> None:
        """Has the package publish each token, then saves the message."""
        key = uuid4().hex
        stream = await self._context.create_new_resumable_stream(key, lambda: tokens)
        await started(key)
        await _save(self._messages, "".join([token async for token in stream]))

    async def view(self, key: str) -> AsyncIterator[str]:
        """Asks the producer for the text so far and all that follows."""
        stream = await self._context.resume_existing_stream(key)
        if stream is None or stream == "NOT_FOUND":
            raise LookupError(key)
        async for text in stream:
            yield text
