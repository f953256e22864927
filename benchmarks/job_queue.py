"""Workers beside those of procrastinate, which keeps jobs in PostgreSQL.

In both, a worker in another process writes an answer of one token, and a viewer in this one has it.
procrastinate has no tokens and no viewers: :mod:`benchmarks.procrastinate_recipe` has them by hand.

- First token: from the start of an answer to its first token at a viewer.
- Jobs: a burst of answers, until a viewer of each has had its end, with 1 and with 10 workers.
  Statements are what the server counts of all clients: commands, but those of change streams.
- Hand-over: from the SIGKILL of a worker in mid-answer to the next token, with a second worker.
"""

import asyncio
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from typing import Any, Protocol

from pymongo import MongoClient

from benchmarks.children import Child, Children
from benchmarks.figures import BenchmarkError, Figure, compare, single
from benchmarks.postgres_server import PostgresServer, can_have_postgres
from benchmarks.procrastinate_recipe import Recipe
from benchmarks.settings import Setting
from benchmarks.workers_first_tokens import p99
from benchmarks.workers_hand_overs import LEASE
from benchmarks.workers_programs import PROGRAMS, one_token, token_and_wait
from converse_mongo import ChunkReceived, Conversation, Converse

__all__ = ["run"]

LIBRARY, PROCRASTINATE = "the library", "procrastinate"
ANSWERS = 40
JOBS = 100
WORKERS = 1, 10
HAND_OVERS = 5
USUAL_LEASE = 30.0


class Way(Protocol):
    """A way to have answers written by workers."""

    async def start(self) -> str:
        """Starts an answer, and returns its key."""

    def view(self, key: str) -> AsyncIterator[str]:
        """Yields the tokens of an answer, to its end."""

    async def statements(self) -> float:
        """The number of statements so far, of all clients."""

    async def start_worker(self, children: Children, respond: str, lease: float) -> Child:
        """Starts a worker in a process, and returns once it listens."""


class Library:
    """The library."""

    def __init__(self, uri: str, converse: Converse, conversation: Conversation) -> None:
        self._uri = uri
        self._converse = converse
        self._conversation = conversation

    @classmethod
    @asynccontextmanager
    async def open(cls, setting: Setting) -> AsyncIterator[Way]:
        """In a database of its own."""
        uri = setting.server.uri
        async with setting.database() as database, Converse(uri, database) as converse:
            yield cls(uri, converse, await converse.start_conversation())

    async def start(self) -> str:
        """Starts a message in a queue."""
        return str((await self._conversation.start_streaming_assistant(queue="default")).id)

    async def view(self, key: str) -> AsyncIterator[str]:
        """Watches the message."""
        async with self._converse.watch_message(key) as events:
            async for event in events:
                if isinstance(event, ChunkReceived):
                    yield event.chunk.content

    async def statements(self) -> float:
        """Asks the server, which counts the polls of change streams apart."""
        with MongoClient[dict[str, Any]](self._uri) as client:
            counts = client.admin.command("serverStatus")["opcounters"]
        names = "insert", "query", "update", "delete", "command"
        return float(sum(counts[name] for name in names))

    async def start_worker(self, children: Children, respond: str, lease: float) -> Child:
        """Starts a worker in a process, and returns once it listens."""
        arguments = self._converse.database_name, respond, str(lease)
        child = await children.start("library", PROGRAMS, "work", *arguments)
        await child.expect("ready")
        return child


@asynccontextmanager
async def _procrastinate() -> AsyncIterator[Way]:
    """The recipe, with a PostgreSQL of its own."""
    with PostgresServer() as server:
        async with Recipe.open(server.url) as recipe:
            await recipe.create()
            async with recipe.listening():
                yield recipe


@asynccontextmanager
async def _open_ways(setting: Setting) -> AsyncIterator[Mapping[str, Way]]:
    async with AsyncExitStack() as stack:
        ways = {LIBRARY: await stack.enter_async_context(Library.open(setting))}
        if can_have_postgres():
            ways[PROCRASTINATE] = await stack.enter_async_context(_procrastinate())
        yield ways


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    found: list[Figure] = []
    if not can_have_postgres():
        setting.note("without procrastinate: it needs initdb and postgres on the path")
    async with _open_ways(setting) as ways, Children(setting.server.uri) as children:
        for count in WORKERS:
            before = 0 if count == WORKERS[0] else WORKERS[0]
            for way in ways.values():
                for _ in range(count - before):
                    await way.start_worker(children, one_token.__name__, USUAL_LEASE)
            if count == WORKERS[0]:
                setting.note("first tokens")
                found += await _first_tokens(setting, ways)
            setting.note(f"jobs of {count} worker{'s' if count > 1 else ''}")
            found += await _jobs(setting, ways, count)
    setting.note("hand-overs")
    async with _open_ways(setting) as ways:
        found += await _hand_overs(setting, ways)
    return found


async def _first_tokens(setting: Setting, ways: Mapping[str, Way]) -> list[Figure]:
    series: defaultdict[str, list[list[float]]] = defaultdict(list)
    for _ in range(setting.rounds):
        for name, way in ways.items():
            times = []
            for _ in range(ANSWERS):
                since = time.monotonic()
                tokens = way.view(await way.start())
                await anext(tokens)
                times.append((time.monotonic() - since) * 1e3)
                async for _ in tokens:
                    pass
            series[name].append(times)
    return [
        _figure(
            f"start to first token, {name}",
            "ms",
            {way: [of(times) for times in rounds] for way, rounds in series.items()},
        )
        for name, of in (("p50", median), ("p99", p99))
    ]


async def _jobs(setting: Setting, ways: Mapping[str, Way], count: int) -> list[Figure]:
    times: defaultdict[str, list[float]] = defaultdict(list)
    statements: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(setting.rounds):
        for name, way in ways.items():
            before, since = await way.statements(), time.monotonic()
            viewers = [asyncio.create_task(_view(way, await way.start())) for _ in range(JOBS)]
            await asyncio.gather(*viewers)
            times[name].append((time.monotonic() - since) * 1e3 / JOBS)
            statements[name].append((await way.statements() - before) / JOBS)
    workers = f"{count} worker{'s' if count > 1 else ''}"
    return [
        _figure(f"a job, {workers}", "ms", times),
        _figure(f"statements of a job, {workers}", "", statements),
    ]


async def _hand_overs(setting: Setting, ways: Mapping[str, Way]) -> list[Figure]:
    """A worker of each way is killed, and the second one is the first of the next time."""
    series: defaultdict[str, list[float]] = defaultdict(list)

    async def start(children: Children, way: Way) -> Child:
        return await way.start_worker(children, token_and_wait.__name__, LEASE)

    async with Children(setting.server.uri) as children:
        workers = {name: await start(children, way) for name, way in ways.items()}
        for _ in range(HAND_OVERS):
            for name, way in ways.items():
                tokens = way.view(await way.start())
                await anext(tokens)
                first, workers[name] = workers[name], await start(children, way)
                since = time.monotonic()
                first.signal(signal.SIGKILL)
                await anext(tokens)
                series[name].append((time.monotonic() - since) * 1e3)
                async for _ in tokens:
                    pass
    return [_figure(f"SIGKILL to the next token, lease {LEASE:g} s", "ms", series)]


async def _view(way: Way, key: str) -> None:
    if [token async for token in way.view(key)] != ["token"]:
        raise BenchmarkError(f"The answer {key} was not one token.")


def _figure(name: str, unit: str, series: Mapping[str, Sequence[float]]) -> Figure:
    if PROCRASTINATE not in series:
        return single(f"{name}, {LIBRARY}", unit, median(series[LIBRARY]))
    return compare(name, unit, series, of=LIBRARY, against=PROCRASTINATE)
