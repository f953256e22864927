"""The ways of a whole job, and its child processes: viewers, and a producer that crashes half-way.

A viewer takes its jobs from the collection ``jobs``, whose next one is there when the parent lets
it go on.
"""

import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.children import SERVER_VARIABLE, tell, wait_for_parent
from benchmarks.redis_recipe import AssistantStream, Recipe, ResumableStream, Started, Way
from converse_mongo import ChunkReceived, Converse
from converse_mongo.driver.clients import close_client, open_client

__all__ = [
    "ASSISTANT_STREAM",
    "JOBS",
    "LIBRARY",
    "REDIS",
    "REDIS_DURABLE",
    "RESUMABLE_STREAM",
    "TOKENWISE",
    "Places",
    "Tokens",
    "open_way",
]

LIBRARY = "the library"
TOKENWISE = "the library, token by token"
REDIS = "Redis Streams, in memory"
REDIS_DURABLE = "Redis Streams, appendfsync always"
ASSISTANT_STREAM = "assistant-stream, in memory"
RESUMABLE_STREAM = "resumable-stream, in memory"

JOBS = "jobs"
WRITER_OPTIONS: dict[str, dict[str, Any]] = {
    LIBRARY: {},
    TOKENWISE: {"flush_interval": 0.001, "granularity": "token"},
}
"""By default tokens gather for up to 40 ms, and are one chunk."""

_REDIS_WAYS: dict[str, Any] = {
    REDIS: Recipe,
    REDIS_DURABLE: Recipe,
    ASSISTANT_STREAM: AssistantStream,
    RESUMABLE_STREAM: ResumableStream,
}


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything is: a database of the MongoDB, and the two Redis, if there are any."""

    database: str
    redis: str | None = None
    redis_durable: str | None = None

    def to_json(self) -> str:
        """As an argument of a child."""
        return json.dumps(asdict(self))


@asynccontextmanager
async def open_way(name: str, uri: str, places: Places) -> AsyncIterator[Way]:
    """The way ``name``, connected."""
    async with AsyncExitStack() as stack:
        if name in WRITER_OPTIONS:
            converse = Converse(uri, database=places.database, create_indexes=False)
            await stack.enter_async_context(converse)
            yield Library(converse, WRITER_OPTIONS[name])
            return
        url = places.redis_durable if name == REDIS_DURABLE else places.redis
        client = open_client(uri, {})
        stack.push_async_callback(close_client, client)
        messages = client[places.database]["finished"]
        yield await stack.enter_async_context(_REDIS_WAYS[name].open(url or "", messages))


class Library:
    """The library, with some options of a writer."""

    def __init__(self, converse: Converse, options: Mapping[str, Any]) -> None:
        self._converse = converse
        self._options = options

    async def produce(self, tokens: AsyncIterator[str], started: Started) -> None:
        """Writes all to one message."""
        conversation = await self._converse.start_conversation()
        message = await conversation.start_streaming_assistant()
        await started(str(message.id))
        async with message.writer(**self._options) as writer:
            async for token in tokens:
                await writer.write(token)

    async def view(self, key: str) -> AsyncIterator[str]:
        """Watches the message."""
        async with self._converse.watch_message(key) as events:
            async for event in events:
                if isinstance(event, ChunkReceived):
                    yield event.chunk.content


class Tokens:
    """The tokens of a model.

    Attributes:
        sent: When each was handed out: nanoseconds of the clock that all processes share.
        gate: To be set once the viewers are there; no token comes before.
    """

    def __init__(self, count: int, rate: float | None) -> None:
        self._count = count
        self._rate = rate
        self.sent: list[int] = []
        self.gate = asyncio.Event()

    @staticmethod
    def text(sequence: int) -> str:
        """The text of a token."""
        return f" token{sequence}"

    @classmethod
    def expected(cls, count: int) -> str:
        """The text of the first ``count`` tokens."""
        return "".join(map(cls.text, range(count)))

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yields them at their rate; without one, each in the next turn of the event loop."""
        await self.gate.wait()
        start = time.monotonic()
        for sequence in range(self._count):
            pause = start + sequence / self._rate - time.monotonic() if self._rate else 0
            await asyncio.sleep(max(pause, 0))
            self.sent.append(time.monotonic_ns())
            yield self.text(sequence)


# The viewer


async def view(uri: str, places: Places, jobs: int) -> None:
    """Views as many jobs, each with all that it takes opened for it and closed after it."""
    client = open_client(uri, {})
    try:
        tell("ready")
        for number in range(jobs):
            await wait_for_parent()
            job = await client[places.database][JOBS].find_one({"number": number})
            async with open_way(job["way"], uri, places) as way:
                await _view_job(way, job)
    finally:
        await close_client(client)
    tell("finished")


async def _view_job(way: Way, job: Mapping[str, str]) -> None:
    arrivals: list[tuple[int, int]] = []
    digest, size, used = hashlib.sha256(), 0, time.process_time()
    tell("watching")
    async for text in way.view(job["key"]):
        now = time.monotonic_ns()
        size += len(text)
        digest.update(text.encode())
        arrivals.append((size, now))
    ended, used = time.monotonic_ns(), time.process_time() - used
    tell(
        "viewed",
        digest=digest.hexdigest(),
        ended=ended,
        client_seconds=used,
        arrivals=len(arrivals),
    )
    for start in range(0, len(arrivals), 500):  # a report is one line, which is not to be long
        tell("arrivals", arrivals=arrivals[start : start + 500])


# The producer that crashes


async def crash(uri: str, places: Places, name: str, tokens: int, rate: float) -> None:
    """Produces ``tokens`` tokens and is killed as it makes the next one."""
    source = Tokens(tokens, rate)

    async def until_killed() -> AsyncIterator[str]:
        async for token in source:
            yield token
        await asyncio.sleep(1 / rate)
        tell("crashing")
        os.kill(os.getpid(), signal.SIGKILL)

    async def started(key: str) -> None:
        tell("started", key=key)
        source.gate.set()

    async with open_way(name, uri, places) as way:
        await way.produce(until_killed(), started)


async def main(arguments: Sequence[str]) -> None:
    """Runs the program that ``arguments`` name."""
    program, where, *rest = arguments
    uri, places = os.environ[SERVER_VARIABLE], Places(**json.loads(where))
    if program == "view":
        await view(uri, places, int(rest[0]))
    else:
        await crash(uri, places, rest[0], int(rest[1]), float(rest[2]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
