"""The whole job: an answer streams to five viewers in five processes, and is stored.

The library against the popular recipe on Redis Streams, which saves the finished message in
MongoDB, and against two packages for Redis; ``redis_recipe`` says what each of them does. In each
round each has an answer of 300 tokens at 100 tokens a second, the pace of a model, and one of 2,000
tokens as fast as it takes them, one in each turn of the event loop; the order shifts from round to
round. What each viewer had is compared by hash with what was streamed.

The library writes in its default way, in which tokens gather for up to 40 ms and are one chunk, and
token by token: with a ``flush_interval`` of 1 ms, and a chunk for each token.

What it has stored is on the disk: the embedded MongoDB of this benchmark keeps its data in files
and syncs each commit. The same of Redis is ``appendfsync always``; by default it has nothing on the
disk, and is measured like that, too. The packages are measured on the one in memory.

In the end each producer is killed after 200 tokens, then the servers are killed and started again:
how many tokens can a viewer who comes then not have any more? What the ways on Redis have left is
in Redis, and nothing of it in MongoDB. A server that was given is not killed.
"""

import asyncio
import hashlib
import importlib.util
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import accumulate
from statistics import median, quantiles

from benchmarks.children import Child, Children
from benchmarks.figures import BenchmarkError, Figure, compare, single
from benchmarks.redis_server import redis_program
from benchmarks.settings import Setting
from benchmarks.whole_job_programs import (
    ASSISTANT_STREAM,
    JOBS,
    LIBRARY,
    REDIS,
    REDIS_DURABLE,
    RESUMABLE_STREAM,
    TOKENWISE,
    Places,
    Tokens,
    open_way,
)
from benchmarks.whole_job_stores import CRASH_TOKENS, PROGRAMS, Loss, open_stores, tokens_lost
from converse_mongo import Converse
from converse_mongo.driver.clients import close_client, open_client
from converse_mongo.driver.collections import Collection

__all__ = ["run"]

VIEWERS = 5
SETTLE_SECONDS = 0.3
PACED_TOKENS, PACED_RATE = 300, 100.0
FAST_TOKENS = 2000
PAIRS = (
    (LIBRARY, REDIS_DURABLE),
    (TOKENWISE, REDIS_DURABLE),
    (LIBRARY, REDIS),
    (LIBRARY, ASSISTANT_STREAM),
    (LIBRARY, RESUMABLE_STREAM),
)
NO_SLOWER = 1.0
MODULES = {
    REDIS: ["redis"],
    REDIS_DURABLE: ["redis"],
    ASSISTANT_STREAM: ["redis", "assistant_stream"],
    RESUMABLE_STREAM: ["redis", "resumable_stream"],
}


@dataclass(frozen=True, slots=True)
class Done:
    """What a job took, in milliseconds.

    Attributes:
        latencies: From each token to each viewer.
        end: From the last token to the end at the last viewer.
        total: From the first token until all viewers have all and the producer has returned.
        client: Processor time of the producer and all viewers.
    """

    latencies: Sequence[float]
    end: float
    total: float
    client: float

    @property
    def p50(self) -> float:
        """The median of the latencies."""
        return median(self.latencies)

    @property
    def p99(self) -> float:
        """What 99 of 100 of the latencies are below."""
        return quantiles(self.latencies, n=100)[98]


@dataclass(frozen=True, slots=True)
class Round:
    """The jobs of a round, by way."""

    paced: Mapping[str, Done]
    fast: Mapping[str, Done]


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    ways = _ways(setting)
    async with AsyncExitStack() as stack:
        stores = stack.enter_context(open_stores(setting, redis=REDIS in ways))
        database = await stack.enter_async_context(setting.database())
        places = stores.places(database)
        async with Converse(stores.uri, database=database):
            pass  # it has made the indexes
        client = open_client(stores.uri, {})
        stack.push_async_callback(close_client, client)
        children = await stack.enter_async_context(Children(stores.uri))
        arguments = "view", places.to_json(), str(setting.rounds * len(ways) * 2)
        viewers = [
            await children.start(f"viewer {number}", PROGRAMS, *arguments)
            for number in range(VIEWERS)
        ]
        for viewer in viewers:
            await viewer.expect("ready")
        stage = Stage(stores.uri, places, client[database][JOBS], viewers)
        rounds = []
        for number in range(setting.rounds):
            setting.note(f"round {number + 1} of {setting.rounds}")
            shift = number % len(ways)
            order = ways[shift:] + ways[:shift]
            paced = {way: await stage.job(way, PACED_TOKENS, PACED_RATE) for way in order}
            fast = {way: await stage.job(way, FAST_TOKENS, None) for way in order}
            rounds.append(Round(paced, fast))
        for viewer in viewers:
            await viewer.expect("finished")
        setting.note("crashes")
        lost = {way: await tokens_lost(way, stores, places, children) for way in ways}
    return [*figures(rounds, ways), *_crash_figures(lost)]


def _ways(setting: Setting) -> list[str]:
    """The ways that can be gone here."""
    ways = [LIBRARY, TOKENWISE]
    if redis_program() is None:
        setting.note("redis-server is not installed: there are no figures of Redis")
        return ways
    for way, modules in MODULES.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            setting.note(f"{', '.join(missing)} is not installed: there are no figures of {way}")
        else:
            ways.append(way)
    return ways


class Stage:
    """Where jobs are done, one after the other: this process produces, the children view."""

    def __init__(
        self, uri: str, places: Places, jobs: Collection, viewers: Sequence[Child]
    ) -> None:
        self._uri = uri
        self._places = places
        self._jobs = jobs
        self._viewers = viewers
        self._number = 0

    async def job(self, way: str, count: int, rate: float | None) -> Done:
        """Streams ``count`` tokens in one way.

        Raises:
            BenchmarkError: A viewer had something else.
        """
        tokens, used, began = Tokens(count, rate), 0.0, 0

        async def started(key: str) -> None:
            nonlocal used, began
            await self._jobs.insert_one({"number": self._number, "way": way, "key": key})
            self._number += 1
            for viewer in self._viewers:
                await viewer.go()
            for viewer in self._viewers:
                await viewer.expect("watching")
            await asyncio.sleep(SETTLE_SECONDS)  # until each is there
            used, began = time.process_time(), time.monotonic_ns()
            tokens.gate.set()

        async with open_way(way, self._uri, self._places) as opened:
            await opened.produce(aiter(tokens), started)
            returned, used = time.monotonic_ns(), time.process_time() - used
            views = [await _view(viewer, tokens, way) for viewer in self._viewers]
        last = max(view.ended for view in views)
        return Done(
            [latency for view in views for latency in view.latencies],
            (last - tokens.sent[-1]) / 1e6,
            (max(last, returned) - began) / 1e6,
            (used + sum(view.client_seconds for view in views)) * 1e3,
        )


@dataclass(frozen=True, slots=True)
class View:
    """What a viewer had: ``ended`` in nanoseconds, ``latencies`` in milliseconds."""

    ended: int
    client_seconds: float
    latencies: Sequence[float]


async def _view(viewer: Child, tokens: Tokens, way: str) -> View:
    report = await viewer.expect("viewed")
    arrivals: list[tuple[int, int]] = []
    while len(arrivals) < report["arrivals"]:
        arrivals += (await viewer.expect("arrivals"))["arrivals"]
    text = Tokens.expected(len(tokens.sent))
    if report["digest"] != hashlib.sha256(text.encode()).hexdigest():
        raise BenchmarkError(f"What the {viewer.name} of {way} had is not what was streamed.")
    sizes = [size for size, _ in arrivals]
    ends = accumulate(len(Tokens.text(sequence)) for sequence in range(len(tokens.sent)))
    # A token has come once there is as much text as up to its end, in pieces of whatever size.
    latencies = [
        (arrivals[bisect_left(sizes, end)][1] - sent) / 1e6
        for end, sent in zip(ends, tokens.sent, strict=True)
    ]
    return View(report["ended"], report["client_seconds"], latencies)


def figures(rounds: Sequence[Round], ways: Sequence[str]) -> list[Figure]:
    """The figures of all ways, the library's against those of each other one."""
    found = []
    for name, paced, attribute in (
        ("token to viewer, p50", True, "p50"),
        ("token to viewer, p99", True, "p99"),
        ("last token to the last viewer's end", True, "end"),
        (f"{PACED_TOKENS} tokens, client time of all", True, "client"),
        (f"{FAST_TOKENS:,} tokens at once until all have all", False, "total"),
        (f"{FAST_TOKENS:,} tokens at once, client time of all", False, "client"),
    ):
        jobs = [one.paced if paced else one.fast for one in rounds]
        series = {way: [getattr(job[way], attribute) for job in jobs] for way in ways}
        found += [
            compare(*(name, "ms", series), of=mine, against=other, target=_target(attribute, other))
            for mine, other in PAIRS
            if other in ways
        ] or [single(f"{name}, {mine}", "ms", median(series[mine])) for mine in ways]
    return found


def _target(attribute: str, other: str) -> float | None:
    """To the viewers no slower than what is as durable."""
    return NO_SLOWER if other == REDIS_DURABLE and attribute != "client" else None


def _crash_figures(lost: Mapping[str, Loss]) -> list[Figure]:
    found = []
    for way, loss in lost.items():
        name = f"tokens lost of {CRASH_TOKENS}, {way}"
        found.append(single(f"{name}: producer killed", "", loss.producer))
        if loss.servers is not None:
            found.append(single(f"{name}: servers killed, too", "", loss.servers))
    return found
