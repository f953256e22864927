"""What a writer costs: for a token that it stores, and for the loop that writes the tokens.

Storing: from entering the block of ``message.writer()`` until the flush behind the last token was
acknowledged, for an answer of two thousand tokens that come as fast as they are taken; against one
awaited ``$push`` for each token with the driver, by the least update that keeps their order.

Writing: single calls of ``write`` while there is room, and of a coroutine that does nothing,
measured in turns at two paces, while the writer stores.

The loop: tokens come from another process, each a fixed time after the loop asked for it, which it
does when it is done with the one before. The same loop runs in turns with a writer and without one.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median, quantiles
from typing import TypeAlias

from benchmarks.children import Children
from benchmarks.figures import Figure, compare
from benchmarks.meters import TRAFFIC, Cost, Meter, Traffic, compare_costs
from benchmarks.raw import RawMessage, check_equal, open_raw_client
from benchmarks.settings import Setting
from benchmarks.token_source import TokenSource, open_token_source
from converse_mongo import Conversation, Converse, Message
from converse_mongo.domain.types import Granularity
from converse_mongo.domain.validation import PAGE_CHUNKS
from converse_mongo.driver.clients import Client

__all__ = ["run"]

Write: TypeAlias = Callable[[str], Awaitable[None]]

TEXT = " token."

TOKENS = 2_000
PUSHES = PAGE_CHUNKS - 1  # in a longer array each push would cost more
WRITER = "through a writer"
EACH = "through a writer, a chunk for each"
PUSH = "a push for each by hand"
WAYS: Mapping[str, int] = {WRITER: TOKENS, EACH: TOKENS, PUSH: PUSHES}
STORING_TARGET = 1 / 15

PACES: Mapping[int, int] = {150: 450, 1_000: 3_000}
"""How many calls to measure, by tokens per second."""
P99_TARGET_US = 20.0

LOOP_TARGETS = {150: 1.01, 1_000: 1.05}
"""The most that the time of the loop may be, by tokens per second."""
TURNS = 3
TURN_SECONDS = 1.0
NOWHERE = "nowhere"


@dataclass(slots=True)
class Calls:
    """Nanoseconds that single calls took."""

    write: list[int] = field(default_factory=list)
    nothing: list[int] = field(default_factory=list)

    async def write_first(self, write: Write) -> None:
        """Measures one call of each."""
        clock = time.perf_counter_ns
        start = clock()
        await write(TEXT)
        middle = clock()
        await _nowhere(TEXT)
        end = clock()
        self.write.append(middle - start)
        self.nothing.append(end - middle)

    async def nothing_first(self, write: Write) -> None:
        """The same the other way round."""
        clock = time.perf_counter_ns
        start = clock()
        await _nowhere(TEXT)
        middle = clock()
        await write(TEXT)
        end = clock()
        self.nothing.append(middle - start)
        self.write.append(end - middle)


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    return [*await _storing(setting), *await _looping(setting)]


# Storing


async def _storing(setting: Setting) -> list[Figure]:
    async with setting.database() as database:
        async with open_raw_client(setting.server) as client:
            stores = _Stores(client, database, Meter(setting.server, Traffic()))
            setting.note("warming up")
            await stores.store(0)
            rounds, called = [], []
            for number in range(setting.rounds):
                setting.note(f"storing, round {number + 1} of {setting.rounds}")
                rounds.append(await stores.store(number))
                called.append({pace: await stores.call(pace) for pace in PACES})
        setting.note("counting commands and bytes")
        traffic = Traffic()
        async with open_raw_client(setting.server, traffic) as client:
            counted = await _Stores(client, database, Meter(setting.server, traffic)).store(0)
    targets = {"time": STORING_TARGET}
    return [
        *compare_costs([counted], WAYS, of=WRITER, against=PUSH, quantities=TRAFFIC),
        *compare_costs([counted], WAYS, of=EACH, against=PUSH, quantities=TRAFFIC),
        *compare_costs(rounds, WAYS, of=WRITER, against=PUSH, targets=targets),
        *compare_costs(rounds, WAYS, of=EACH, against=PUSH),
        *_call_figures(called),
    ]


class _Stores:
    """Stores tokens in each way, and calls ``write``.

    Each way has a facade of its own, which is closed behind it: a facade with a writer has a change
    stream open, and is told of what others write.
    """

    def __init__(self, client: Client, database: str, meter: Meter) -> None:
        self._client = client
        self._database = database
        self._meter = meter

    @asynccontextmanager
    async def _message(self) -> AsyncIterator[Message]:
        async with Converse(self._client, database=self._database, sweep_interval=None) as converse:
            conversation = await converse.start_conversation()
            yield await conversation.start_streaming_assistant()

    async def store(self, number: int) -> dict[str, Cost]:
        """Stores tokens in each way, in turns."""
        costs = {way: Cost() for way in WAYS}
        ways = {
            WRITER: partial(self._write, costs[WRITER], "flush"),
            EACH: partial(self._write, costs[EACH], "token"),
            PUSH: partial(self._push, costs[PUSH]),
        }
        shift = number % len(ways)  # nobody always comes behind the same one
        for way in (list(ways) * 2)[shift : shift + len(ways)]:
            await ways[way]()
        return costs

    async def _write(self, cost: Cost, granularity: Granularity) -> None:
        async with self._message() as message:
            with ExitStack() as measured:
                measured.enter_context(self._meter.measure(cost))
                async with message.writer(granularity=granularity) as writer:
                    for _ in range(TOKENS):
                        await writer.write(TEXT)
                        await asyncio.sleep(0)  # as what reads from a model lets others run
                    await writer.flush()
                    measured.close()  # completing the message is no part of it
            chunks = TOKENS if granularity == "token" else None
            await check_equal(message, f"granularity {granularity}", TEXT * TOKENS, chunks)

    async def _push(self, cost: Cost) -> None:
        async with self._message() as message:
            raw = RawMessage(self._client[self._database].messages, message)
            with self._meter.measure(cost):
                for _ in range(PUSHES):
                    await raw.append_plainly(TEXT)
            await check_equal(message, PUSH, TEXT * PUSHES, PUSHES)

    async def call(self, pace: int) -> Calls:
        """Measures calls at a pace, in one writer."""
        calls, count = Calls(), PACES[pace]
        async with self._message() as message:
            async with message.writer() as writer:
                begun = time.perf_counter()
                for number in range(count):
                    await asyncio.sleep(begun + number / pace - time.perf_counter())
                    # Who comes first after a pause finds the caches cold.
                    await (calls.write_first if number % 2 else calls.nothing_first)(writer.write)
                await writer.flush()
            await check_equal(message, "write", TEXT * count)
        return calls


# The loop


@dataclass(slots=True)
class Loops:
    """What the loops of one kind took in a round.

    Attributes:
        cost: In all.
        times: Nanoseconds from one request for a token to the next.
    """

    cost: Cost = field(default_factory=Cost)
    times: list[int] = field(default_factory=list)


async def _looping(setting: Setting) -> list[Figure]:
    found = []
    async with (
        setting.database() as database,
        Children(setting.server.uri) as children,
        open_token_source(children) as source,
        open_raw_client(setting.server) as client,
        Converse(client, database=database, sweep_interval=None) as converse,
    ):
        conversation = await converse.start_conversation()
        meter = Meter(setting.server, Traffic())
        for rate in LOOP_TARGETS:
            setting.note(f"warming up for {rate:,} tokens per second")
            delay = await _delay(source, rate)
            await _round(conversation, source, meter, rate, delay)
            rounds = []
            for number in range(setting.rounds):
                setting.note(f"{rate:,} tokens per second, round {number + 1} of {setting.rounds}")
                rounds.append(await _round(conversation, source, meter, rate, delay))
            found += _loop_figures(rate, rounds)
    return found


async def _delay(source: TokenSource, rate: int) -> float:
    """The seconds to ask for, so that a loop that does nothing gets ``rate`` tokens per second."""
    loops = Loops()
    await _loop(source, rate, 1 / rate, _nowhere, loops)
    late = median(loops.times) / 1e9 - 1 / rate
    return max(1 / rate - late, 0.0)


async def _nowhere(_token: str) -> None:
    pass


async def _round(
    conversation: Conversation, source: TokenSource, meter: Meter, rate: int, delay: float
) -> dict[str, Loops]:
    loops = {WRITER: Loops(), NOWHERE: Loops()}
    text = ""
    message = await conversation.start_streaming_assistant()
    async with message.writer() as writer:
        for turn in range(TURNS):
            for way in (WRITER, NOWHERE) if turn % 2 else (NOWHERE, WRITER):
                write = writer.write if way == WRITER else _nowhere
                with meter.measure(loops[way].cost):
                    written = await _loop(source, rate, delay, write, loops[way])
                if way == WRITER:
                    text += written
                    await writer.flush()  # the next turn is not to have that in it
    await check_equal(message, f"{rate} tokens per second", text)
    return loops


async def _loop(source: TokenSource, rate: int, delay: float, write: Write, loops: Loops) -> str:
    """The loop; returns the text."""
    tokens = []
    since = time.perf_counter_ns()
    for _ in range(round(rate * TURN_SECONDS)):
        token = await source.next_token(delay)
        await write(token)
        tokens.append(token)
        until = time.perf_counter_ns()
        loops.times.append(until - since)
        since = until
    return "".join(tokens)


def _loop_figures(rate: int, rounds: list[dict[str, Loops]]) -> list[Figure]:
    at = f"at {rate:,} tokens/s"
    ways = {way: f"a loop {way} {at}" for way in (WRITER, NOWHERE)}
    counts = dict.fromkeys(ways.values(), TURNS * round(rate * TURN_SECONDS))
    costs = [{ways[way]: loops.cost for way, loops in each.items()} for each in rounds]
    targets = {"time": LOOP_TARGETS[rate]}
    of, against = ways[WRITER], ways[NOWHERE]
    p99 = {ways[way]: [_share(each[way].times, 99) for each in rounds] for way in ways}
    return [
        *compare_costs(costs, counts, of=of, against=against, targets=targets),
        compare("p99 of the time", "µs", p99, of=of, against=against),
    ]


def _call_figures(rounds: list[dict[int, Calls]]) -> list[Figure]:
    found = []
    for pace in PACES:
        at = f"at {pace:,} tokens/s"
        for name, share, target in (("p50", 50, None), ("p99", 99, P99_TARGET_US)):
            values = [_share(calls[pace].write, share) for calls in rounds]
            others = [_share(calls[pace].nothing, share) for calls in rounds]
            found.append(
                Figure(
                    name=f"a call of write {at}, {name}",
                    unit="µs",
                    value=median(values),
                    against="a call of nothing",
                    against_value=median(others),
                    target=target,  # of the value: a ratio to nothing would say little
                    values=values,
                    against_values=others,
                )
            )
    return found


def _share(nanoseconds: list[int], percent: int) -> float:
    """The microseconds that so many of a hundred take at the most."""
    return quantiles(nanoseconds, n=100)[percent - 1] / 1e3
