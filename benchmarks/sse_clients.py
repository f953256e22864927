"""What it costs to stream to 500 browsers from one process: memory, time and processor time.

A process serves ``converse_mongo.web`` with uvicorn, another has the clients, and this one writes.
Each client reads the stream of a conversation from the cursor of its history on, as a page does,
and compares each chunk with the one that belongs there.

Against it, in turns and in the same run: itself with 1 client; and a stream by hand, with the same
server and the ``EventSourceResponse`` of sse-starlette, from a change stream and an
``asyncio.Queue`` for each client. That one cannot resume, misses what comes before it is there, and
keeps in its queue what a client does not read. For memory, also the same by hand with Starlette's
``StreamingResponse``, and with nothing between it and the server.

With ``--before``, only against an earlier version of the library, and memory against all of them.
"""

import resource
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from benchmarks.children import Child, Children
from benchmarks.figures import BenchmarkError, Figure, compare, single
from benchmarks.load_samples import percentile
from benchmarks.settings import Setting
from benchmarks.sse_clients_parts import Server, Talk, Viewers
from converse_mongo import Converse

__all__ = ["run"]

PROGRAMS = "benchmarks.sse_clients_programs"
SIDES = LIBRARY, BY_HAND = "library", "a queue each"
STARLETTE, BARE, BEFORE = "StreamingResponse", "bare ASGI", "before"
KINDS = {BY_HAND: "sse-starlette", STARLETTE: "starlette", BARE: "bare"}
CLIENTS, MORE_CLIENTS, SLOW, FEW = 500, 2000, 50, 20

CHUNKS, CHUNK_BYTES, PER_SECOND = 40, 40, 10
"""In a round: few enough for one core to keep up. How late clients are where it does not keep up
says nothing."""
LONG_CHUNKS, LONG_BYTES, GROUP = 1800, 1024, 50
"""In groups, each written when all clients have had the one before it."""
FLOOD_CHUNKS = 1500
"""At once: three times what the window of recent events holds, so that all fall out of it."""
BEHIND_CHUNKS, BEHIND_BYTES = 2048, 4096
"""What is there for a client that does not read, 8 MiB: more than all buffers on the way hold."""
STUCK_STEPS = 6
OTHER_FILES = 200

KIB, MIB = 1024, 1024 * 1024
PATIENCE = 300.0
GROWTH_TARGET, SAME_TARGET = 1.05, 1.1
MEMORY_KIB, BEFORE_TARGET = 33, 0.7

WAITING = "memory of a client that waits"
DELIVERING = "processor time of the server for a delivery"
P50_TARGET, P99_TARGET, PROCESSOR_TARGET = 1.2, 1.5, 1.5


@dataclass(frozen=True, slots=True)
class Shape:
    """What is measured in each round.

    Attributes:
        name: What it is called.
        side: Who serves.
        clients: How many read.
        slow: How many are there besides and read nothing.
    """

    name: str
    side: str
    clients: int
    slow: int = 0


ONE = Shape("1 client", LIBRARY, 1)
MANY = Shape("500 clients", LIBRARY, CLIENTS)
LAZY = Shape("500 clients beside 50 that read nothing", LIBRARY, CLIENTS, SLOW)
HAND = Shape("500 clients, a queue each", BY_HAND, CLIENTS)
SHAPES = ONE, MANY, LAZY, HAND
EARLIER = Shape("500 clients, before", BEFORE, CLIENTS)


@dataclass(slots=True)
class Findings:
    """What was found in the rounds, one value for each.

    Attributes:
        latencies: Seconds from writing a chunk to a client, by share and shape.
        processor: Seconds of the server for a delivery, by shape.
        resident: Bytes of the server when all clients were gone, by side.
        streams: Change streams that the library has opened.
    """

    latencies: dict[float, dict[str, list[float]]]
    processor: dict[str, list[float]]
    resident: dict[str, list[float]]
    streams: int = 0


@dataclass(frozen=True, slots=True)
class Pass:
    """One message that was streamed at a pace.

    Attributes:
        latencies: From writing a chunk to a client, counted by size.
        processor: Seconds of the server for a delivery.
        resident: Bytes of the server when all were gone.
        streams: Change streams that it has opened so far.
    """

    latencies: Sequence[int]
    processor: float
    resident: int
    streams: int


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    async with Children(setting.server.uri, PATIENCE) as children:
        bench = Bench(setting, children, Viewers(await children.start("clients", PROGRAMS, "view")))
        if setting.before is not None:
            return [*await bench.waiting(), *await bench.against_before()]
        return [
            *await bench.idle(),
            *await bench.rounds(),
            *await bench.long_stream(),
            *await bench.stuck(),
            *await bench.flood(),
        ]


class Bench:
    """All that is measured, with one process of clients."""

    def __init__(self, setting: Setting, children: Children, viewers: Viewers) -> None:
        self._setting = setting
        self._children = children
        self._viewers = viewers

    @asynccontextmanager
    async def _serving(self, side: str) -> AsyncIterator[tuple[Server, Converse]]:
        """A new server, which has served some clients already, and who writes to its database."""
        uri = self._setting.server.uri
        async with (
            self._setting.database() as database,
            Converse(uri, database=database, idle_timeout=None) as converse,
        ):
            child = await self._start(side, database)
            try:
                server = Server(child, (await child.expect("serving"))["port"])
                await self._pass(server, converse, Shape("", side, FEW))
                yield server, converse
            finally:
                await child.end()

    async def _start(self, side: str, database: str) -> Child:
        if side in KINDS:
            arguments = "by hand", database, KINDS[side]
            return await self._children.start(side, PROGRAMS, *arguments)
        of = self._setting.before if side == BEFORE else None
        return await self._children.start(side, PROGRAMS, LIBRARY, database, of=of)

    async def _pass(self, server: Server, converse: Converse, shape: Shape) -> Pass:
        """Streams one message, at a pace, to the clients of a shape."""
        talk = await Talk.start(converse)
        if shape.slow:
            await talk.write_many(BEHIND_CHUNKS, BEHIND_BYTES)
        start = len(talk.written)
        path = await talk.path_from_here()
        await self._viewers.open(
            *(server, [path] * shape.clients, [talk.path] * shape.slow), goals=[start + CHUNKS]
        )
        await server.settled(shape.clients + shape.slow)
        await talk.write_slowly(CHUNKS, CHUNK_BYTES, PER_SECOND)
        latencies = (await self._viewers.reached())["latencies"]
        after = await server.state()
        await talk.end()
        await self._viewers.ended()
        # Those that have not read are still there: had all been on its way to them, they were not.
        left = await server.state()
        if shape.slow and left["watchers"] < shape.slow:
            raise BenchmarkError("A client that read nothing was sent all: the buffers are larger")
        await self._viewers.leave(talk.written, start=start, slow=shape.slow > 0)
        gone = await server.settled(0)
        used = after["used"] / (CHUNKS * shape.clients)
        return Pass(latencies, used, gone["resident"], gone["streams"])

    # Clients that wait

    async def waiting(self) -> list[Figure]:
        """What a client takes that waits, against all others."""
        sides = [LIBRARY, *KINDS, *([BEFORE] if self._setting.before else [])]
        memory = {side: await self._idle(side, CLIENTS, conversations=1) for side in sides}
        apart = await self._idle(LIBRARY, CLIENTS, conversations=CLIENTS)
        return [
            *(
                compare(
                    WAITING,
                    "KiB",
                    {each: [size] for each, size in memory.items()},
                    of=LIBRARY,
                    against=side,
                )
                for side in sides[1:]
            ),
            single(WAITING, "KiB", memory[LIBRARY], target=MEMORY_KIB),
            single(f"{WAITING}, each in a conversation of its own", "KiB", apart),
        ]

    async def idle(self) -> list[Figure]:
        """The same, and with more clients."""
        found = await self.waiting()
        more, fewer = "2,000 at once", "500 at once"
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= files < MORE_CLIENTS + OTHER_FILES:  # less than 0 is no limit
            self._setting.note(f"no {MORE_CLIENTS:,} clients: {files:,} files may be open")
            return found
        many = await self._idle(LIBRARY, MORE_CLIENTS, conversations=1)
        series = {more: [many], fewer: [found[0].value]}
        return [
            *found,
            compare(WAITING, "KiB", series, of=more, against=fewer, target=SAME_TARGET),
        ]

    async def _idle(self, side: str, clients: int, conversations: int) -> float:
        self._setting.note(f"{clients:,} clients of {conversations:,} conversations, {side}")
        async with self._serving(side) as (server, converse):
            talks = [await Talk.start(converse) for _ in range(conversations)]
            paths = [await talk.path_from_here() for talk in talks]
            before = await server.settled(0)
            all_paths = [paths[number % conversations] for number in range(clients)]
            ends = conversations == 1
            await self._viewers.open(server, all_paths, ends=ends)
            opened = await server.settled(clients)
            if opened["watchers"] != clients:
                raise BenchmarkError(f"{opened['watchers']} clients are there, of {clients}")
            if ends:
                await talks[0].write_many(GROUP, CHUNK_BYTES)
                await talks[0].end()
            await self._viewers.ended()
            await self._viewers.leave(talks[0].written)
            await server.settled(0)
        return float(opened["resident"] - before["resident"]) / clients / KIB

    # Messages at a pace

    async def rounds(self) -> list[Figure]:
        """How late clients are, and what a delivery takes."""
        found = Findings(
            {share: {shape.name: [] for shape in SHAPES} for share in (0.5, 0.99)},
            {shape.name: [] for shape in SHAPES},
            {side: [] for side in SIDES},
        )
        async with self._serving(LIBRARY) as library, self._serving(BY_HAND) as by_hand:
            servers = {LIBRARY: library, BY_HAND: by_hand}
            for number in range(self._setting.rounds):
                self._setting.note(f"round {number + 1} of {self._setting.rounds}")
                for shape in SHAPES if number % 2 else SHAPES[::-1]:
                    passed = await self._pass(*servers[shape.side], shape)
                    for share, series in found.latencies.items():
                        series[shape.name].append(percentile(passed.latencies, share))
                    found.processor[shape.name].append(passed.processor)
                    if shape in (MANY, HAND):
                        found.resident[shape.side].append(passed.resident)
                    if shape.side == LIBRARY:
                        found.streams = passed.streams
        return _round_figures(found)

    async def against_before(self) -> list[Figure]:
        """What a delivery takes, and how late clients are, against an earlier version."""
        pair = MANY, EARLIER
        used: dict[str, list[float]] = {shape.name: [] for shape in pair}
        late: dict[str, list[float]] = {shape.name: [] for shape in pair}
        async with self._serving(LIBRARY) as library, self._serving(BEFORE) as before:
            for number in range(self._setting.rounds):
                self._setting.note(f"round {number + 1} of {self._setting.rounds}")
                for shape in pair if number % 2 else pair[::-1]:
                    server, converse = library if shape is MANY else before
                    passed = await self._pass(server, converse, shape)
                    used[shape.name].append(1e6 * passed.processor)
                    late[shape.name].append(1e3 * percentile(passed.latencies, 0.5))
        of, against = MANY.name, EARLIER.name
        return [
            compare(DELIVERING, "µs", used, of=of, against=against, target=BEFORE_TARGET),
            compare("chunk to client, p50", "ms", late, of=of, against=against),
        ]

    # A long stream

    async def long_stream(self) -> list[Figure]:
        """Whether a server grows with the length of what it streams, and how much it delivers."""
        seconds: dict[str, list[float]] = {}
        resident: list[float] = []
        for shape, chunks in ((MANY, LONG_CHUNKS), (ONE, LONG_CHUNKS), (HAND, LONG_CHUNKS // 4)):
            self._setting.note(f"{chunks:,} chunks one group after the other, {shape.name}")
            grown, seconds[shape.name] = await self._long(shape, chunks)
            resident = resident or grown
        third = len(resident) // 3
        last, first = "last third", "first third"
        shortest = min(map(len, seconds.values()))
        times = {name: values[-shortest:] for name, values in seconds.items()}
        text = f"of {LONG_CHUNKS:,} chunks of 1 KiB to {CLIENTS} clients"
        return [
            compare(
                f"memory of the server, {text}",
                "MiB",
                {last: resident[-third:], first: resident[:third]},
                of=last,
                against=first,
                target=GROWTH_TARGET,
            ),
            *(
                compare(
                    "time for a delivery, as many as can be",
                    "µs",
                    times,
                    of=MANY.name,
                    against=other.name,
                )
                for other in (ONE, HAND)
            ),
        ]

    async def _long(self, shape: Shape, chunks: int) -> tuple[list[float], list[float]]:
        """The memory of the server in MiB and µs for a delivery, group by group."""
        resident, seconds = [], []
        async with self._serving(shape.side) as (server, converse):
            talk = await Talk.start(converse)
            path = await talk.path_from_here()
            goals = range(GROUP, chunks + 1, GROUP)
            await self._viewers.open(server, [path] * shape.clients, goals=[*goals])
            await server.settled(shape.clients)
            for _ in goals:
                start = time.monotonic()
                await talk.write_many(GROUP, LONG_BYTES)
                reached = await self._viewers.reached()
                seconds.append(1e6 * (reached["at"] - start) / (GROUP * shape.clients))
                resident.append((await server.state())["resident"] / MIB)
            await talk.end()
            await self._viewers.ended()
            await self._viewers.leave(talk.written)
            await server.settled(0)
        return resident, seconds

    # Clients that do not keep up

    async def stuck(self) -> list[Figure]:
        """What a client takes that reads nothing, and whether that grows with what it misses."""
        self._setting.note(f"{SLOW} clients that read nothing")
        async with self._serving(LIBRARY) as (server, converse):
            talk = await Talk.start(converse)
            await talk.write_many(BEHIND_CHUNKS, BEHIND_BYTES)
            before = await server.settled(0)
            await self._viewers.open(server, [], [talk.path] * SLOW, ends=False)
            await self._viewers.ended()
            stuck = await server.settled(SLOW)
            grown = []
            for _ in range(STUCK_STEPS):
                await talk.write_many(BEHIND_CHUNKS // STUCK_STEPS, BEHIND_BYTES)
                grown.append((await server.settled(SLOW))["resident"] / MIB)
            await talk.end()
            await self._viewers.leave(talk.written, start=None, slow=True)
            await server.settled(0)
        size = (stuck["resident"] - before["resident"]) / SLOW / KIB
        later, earlier = "8 MiB later", "at first"
        return [
            single("memory of a client that reads nothing", "KiB", size),
            compare(
                f"memory of the server, {SLOW} clients that read nothing",
                "MiB",
                {later: grown[-1:], earlier: [stuck["resident"] / MIB]},
                of=later,
                against=earlier,
                target=GROWTH_TARGET,
            ),
        ]

    async def flood(self) -> list[Figure]:
        """What clients take that all fall behind, since more comes than the server can send."""
        self._setting.note(f"{FLOOD_CHUNKS:,} chunks at once to {CLIENTS} clients")
        async with self._serving(LIBRARY) as (server, converse):
            talk = await Talk.start(converse)
            path = await talk.path_from_here()
            await self._viewers.open(server, [path] * CLIENTS, goals=[FLOOD_CHUNKS])
            before = await server.settled(CLIENTS)
            start = time.monotonic()
            await talk.write_many(FLOOD_CHUNKS, LONG_BYTES)
            await talk.end()
            seconds = (await self._viewers.reached())["at"] - start
            await self._viewers.ended()
            after = await server.state()
            await self._viewers.leave(talk.written)
            await server.settled(0)
        peak = (after["peak"] - before["resident"]) / CLIENTS / KIB
        what = f"{FLOOD_CHUNKS:,} chunks of 1 KiB at once to {CLIENTS} clients"
        return [
            single(f"memory of a client at the most, {what}", "KiB", peak),
            single(f"time for a delivery, {what}", "µs", 1e6 * seconds / (FLOOD_CHUNKS * CLIENTS)),
        ]


def _round_figures(found: Findings) -> list[Figure]:
    result = []
    for share, name, target in ((0.5, "p50", P50_TARGET), (0.99, "p99", P99_TARGET)):
        series = {
            shape: [1e3 * value for value in values]
            for shape, values in found.latencies[share].items()
        }
        for of, against, most in ((MANY, ONE, None), (MANY, HAND, target), (LAZY, MANY, target)):
            result.append(
                compare(
                    f"chunk to client, {name}",
                    "ms",
                    series,
                    of=of.name,
                    against=against.name,
                    target=most,
                )
            )
    processor = {
        shape: [1e6 * value for value in values] for shape, values in found.processor.items()
    }
    for against, most in ((ONE, None), (HAND, PROCESSOR_TARGET)):
        result.append(
            compare(
                DELIVERING,
                "µs",
                processor,
                of=MANY.name,
                against=against.name,
                target=most,
            )
        )
    later, earlier = "later rounds", "earlier rounds"
    for side in SIDES:
        values = [value / MIB for value in found.resident[side]]
        half = len(values) // 2  # the first round of an odd number is left out
        result.append(
            compare(
                f"memory of the server when all are gone, {side}",
                "MiB",
                {later: values[-half:], earlier: values[-2 * half : -half]},
                of=later,
                against=earlier,
                target=GROWTH_TARGET if side == LIBRARY else None,
            )
        )
    result.append(single("change streams opened", "", found.streams, target=1))
    return result
