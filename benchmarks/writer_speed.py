"""What a token costs that a writer stores, and how long the loop that writes it is held up.

Storing: from entering the block of ``message.writer()`` until the flush behind the last token was
acknowledged, for an answer of two thousand tokens that come as fast as they are taken; against one
awaited ``$push`` for each token with the driver, by the least update that keeps their order.

Writing: single calls of ``write`` while there is room, and of a coroutine that does nothing,
measured in turns, while the writer stores; at two paces, and as fast as they are taken.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median, quantiles
from typing import TypeAlias

from benchmarks.figures import Figure, compare
from benchmarks.meters import Cost, Meter, Traffic
from benchmarks.raw import RawMessage, check_equal, open_raw_client
from benchmarks.settings import Setting
from converse_mongo import Converse, Message
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
TIME_TARGET = 1 / 15

PACES: Mapping[int | None, int] = {150: 450, 1_000: 3_000, None: 5_000}
"""How many calls to measure, by tokens per second; ``None`` for as fast as they are taken."""
P99_TARGET_US = 20.0


async def _nothing(_token: str) -> None:
    pass


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
        await _nothing(TEXT)
        end = clock()
        self.write.append(middle - start)
        self.nothing.append(end - middle)

    async def nothing_first(self, write: Write) -> None:
        """The same the other way round."""
        clock = time.perf_counter_ns
        start = clock()
        await _nothing(TEXT)
        middle = clock()
        await write(TEXT)
        end = clock()
        self.nothing.append(middle - start)
        self.write.append(end - middle)


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    stored: list[dict[str, Cost]] = []
    called: list[dict[int | None, Calls]] = []
    async with setting.database() as database:
        async with open_raw_client(setting.server) as client:
            bench = _Bench(client, database, Meter(setting.server, Traffic()))
            setting.note("warming up")
            await bench.store(0)
            for number in range(setting.rounds):
                setting.note(f"round {number + 1} of {setting.rounds}")
                stored.append(await bench.store(number))
                called.append({pace: await bench.call(pace) for pace in PACES})
        setting.note("counting commands and bytes")
        traffic = Traffic()
        async with open_raw_client(setting.server, traffic) as client:
            counted = await _Bench(client, database, Meter(setting.server, traffic)).store(0)
    return [*_stored_figures([counted], stored), *_called_figures(called)]


class _Bench:
    """Measures one round after the other.

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

    async def call(self, pace: int | None) -> Calls:
        """Measures calls at a pace, in one writer."""
        calls, count = Calls(), PACES[pace]
        async with self._message() as message:
            async with message.writer() as writer:
                begun = time.perf_counter()
                for number in range(count):
                    if pace is not None:
                        await asyncio.sleep(begun + number / pace - time.perf_counter())
                    # Who comes first after a pause finds the caches cold.
                    await (calls.write_first if number % 2 else calls.nothing_first)(writer.write)
                await writer.flush()
            await check_equal(message, "write", TEXT * count)
        return calls


def _stored_figures(counted: list[dict[str, Cost]], stored: list[dict[str, Cost]]) -> list[Figure]:
    found = []
    for name, unit, attribute, scale, rounds in (
        ("commands for 1,000 tokens", "", "commands", 1e3, counted),
        ("bytes sent for a token", "bytes", "sent", 1.0, counted),
        ("server time of a token", "µs", "server_seconds", 1e6, stored),
        ("client time of a token", "µs", "client_seconds", 1e6, stored),
        ("time of a token", "µs", "seconds", 1e6, stored),
    ):
        if any(getattr(cost, attribute) is None for costs in rounds for cost in costs.values()):
            continue  # the server does not tell
        series = {
            way: [getattr(costs[way], attribute) * scale / tokens for costs in rounds]
            for way, tokens in WAYS.items()
        }
        target = TIME_TARGET if attribute == "seconds" else None
        found += [
            compare(name, unit, series, of=WRITER, against=PUSH, target=target),
            compare(name, unit, series, of=EACH, against=PUSH),
        ]
    return found


def _called_figures(rounds: list[dict[int | None, Calls]]) -> list[Figure]:
    found = []
    for pace in PACES:
        at = "as fast as it goes" if pace is None else f"at {pace:,} tokens/s"
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
    """The microseconds that so many of a hundred calls take at the most."""
    return quantiles(nanoseconds, n=100)[percent - 1] / 1e3
