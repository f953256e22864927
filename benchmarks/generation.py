"""How much a generation loop is slowed down when it writes its tokens through a writer.

The tokens come from another process, each a fixed time after the loop asked for it, which it does
when it is done with the one before. The same loop runs in turns with a writer and without one.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import TypeAlias

from benchmarks.children import Children
from benchmarks.figures import Figure, compare
from benchmarks.meters import Cost, Meter, Traffic
from benchmarks.raw import check_equal, open_raw_client
from benchmarks.settings import Setting
from benchmarks.token_source import TokenSource, open_token_source
from converse_mongo import Conversation, Converse

__all__ = ["run"]

Write: TypeAlias = Callable[[str], Awaitable[None]]

TARGETS = {150: 1.01, 1_000: 1.05}
"""The most that the time may be, by tokens per second."""
TURNS = 3
TURN_SECONDS = 1.0
WRITER = "through a writer"
NOWHERE = "nowhere"


@dataclass(slots=True)
class Loops:
    """What the loops of one kind took in a round.

    Attributes:
        cost: In all.
        times: Nanoseconds from one request for a token to the next.
    """

    cost: Cost = field(default_factory=Cost)
    times: list[int] = field(default_factory=list)


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
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
        for rate in TARGETS:
            setting.note(f"warming up for {rate:,} tokens per second")
            delay = await _delay(source, rate)
            await _round(conversation, source, meter, rate, delay)
            rounds = []
            for number in range(setting.rounds):
                setting.note(f"round {number + 1} of {setting.rounds}")
                rounds.append(await _round(conversation, source, meter, rate, delay))
            found += _figures(rate, rounds)
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


def _figures(rate: int, rounds: list[dict[str, Loops]]) -> list[Figure]:
    tokens = TURNS * round(rate * TURN_SECONDS)
    at = f"at {rate:,} tokens/s"
    seconds = {
        way: [loops[way].cost.seconds * 1e6 / tokens for loops in rounds]
        for way in (WRITER, NOWHERE)
    }
    client = {
        way: [loops[way].cost.client_seconds * 1e6 / tokens for loops in rounds]
        for way in (WRITER, NOWHERE)
    }
    slowest = {
        way: [quantiles(loops[way].times, n=100)[98] / 1e3 for loops in rounds]
        for way in (WRITER, NOWHERE)
    }
    return [
        compare(
            f"time of a token {at}",
            "µs",
            seconds,
            of=WRITER,
            against=NOWHERE,
            target=TARGETS[rate],
        ),
        compare(f"the same, p99 {at}", "µs", slowest, of=WRITER, against=NOWHERE),
        compare(f"client time of a token {at}", "µs", client, of=WRITER, against=NOWHERE),
    ]
