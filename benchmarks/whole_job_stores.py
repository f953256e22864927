"""The servers of the whole job, and what is left in them after a crash."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.children import Children
from benchmarks.figures import BenchmarkError
from benchmarks.redis_server import RedisServer, redis_program
from benchmarks.servers import EMBEDDED_OPTIONS
from benchmarks.settings import Setting
from benchmarks.whole_job_programs import Places, Tokens, open_way
from converse_mongo.embedded import EmbeddedServer

__all__ = ["PROGRAMS", "Loss", "Stores", "open_stores", "tokens_lost"]

PROGRAMS = "benchmarks.whole_job_programs"
CRASH_TOKENS, CRASH_RATE = 200, 100.0
SILENCE_SECONDS = 1.0
"""A viewer of a stream that nobody produces any more waits for ever: this long is enough."""


@dataclass(frozen=True, slots=True)
class Stores:
    """The servers: MongoDB's, and, where Redis is to be had, one in memory and one durable.

    Attributes:
        uri: The MongoDB.
        mongodb: Its process; ``None`` for one that was given.
        redis: The Redis in memory.
        redis_durable: The other one.
    """

    uri: str
    mongodb: EmbeddedServer | None
    redis: RedisServer | None = None
    redis_durable: RedisServer | None = None

    def places(self, database: str) -> Places:
        """Where they are, with a database of the MongoDB."""
        if self.redis is None or self.redis_durable is None:
            return Places(database)
        return Places(database, self.redis.url, self.redis_durable.url)

    def crash(self) -> None:
        """Kills all, and starts them again with what they have on the disk."""
        servers = [self.mongodb, self.redis, self.redis_durable]
        for server in servers:
            if server is not None:
                server.kill()
        for server in servers:
            if server is not None:
                server.start()


@contextmanager
def open_stores(setting: Setting, *, redis: bool) -> Iterator[Stores]:
    """Starts them; a MongoDB that was given is used as it is."""
    with ExitStack() as stack:
        uri, mongodb = setting.server.uri, None
        if setting.server.kind == "embedded":
            directory = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="benchmark-mongodb-")
            )
            mongodb = stack.enter_context(
                EmbeddedServer(Path(directory), arguments=["--sync-on-commit"])
            )
            uri = mongodb.uri + EMBEDDED_OPTIONS
        program = redis_program() if redis else None
        if program is None:
            yield Stores(uri, mongodb)
            return
        yield Stores(
            uri,
            mongodb,
            stack.enter_context(RedisServer(program, durable=False)),
            stack.enter_context(RedisServer(program, durable=True)),
        )


@dataclass(frozen=True, slots=True)
class Loss:
    """Of the tokens that a producer had taken, how many a viewer who comes then does not get."""

    producer: int
    servers: int | None


async def tokens_lost(way: str, stores: Stores, places: Places, children: Children) -> Loss:
    """Has a producer killed, and then the servers that are ours.

    Raises:
        BenchmarkError: What is left is not the beginning of what was streamed.
    """
    arguments = places.to_json(), way, str(CRASH_TOKENS), str(CRASH_RATE)
    producer = await children.start("producer", PROGRAMS, "crash", *arguments)
    key = (await producer.expect("started"))["key"]
    await producer.expect("crashing")
    await producer.end()
    after_producer = await _lost(way, stores, places, key)
    if stores.mongodb is None:
        return Loss(after_producer, None)
    await asyncio.to_thread(stores.crash)
    return Loss(after_producer, await _lost(way, stores, places, key))


async def _lost(way: str, stores: Stores, places: Places, key: str) -> int:
    expected, found = Tokens.expected(CRASH_TOKENS), ""
    async with open_way(way, stores.uri, places) as opened:
        texts = opened.view(key)
        try:
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    found += await anext(texts)
        except (TimeoutError, StopAsyncIteration, LookupError):
            pass
    if not expected.startswith(found):
        raise BenchmarkError(f"What is left of a crash of {way} is not what was streamed.")
    return CRASH_TOKENS - next(
        count for count in range(CRASH_TOKENS, -1, -1) if found.startswith(Tokens.expected(count))
    )
