"""What it costs to hand a chunk to 10,000 watchers in one process, on one core.

They watch one message, or 1,000 messages. Each is a task with an ``async for``, and compares each
chunk with the one that belongs there, which is in the cost. The cost is the processor time of the
whole process, all threads: receiving and decoding the change events, delivering, the tasks' own
work. The appends are made by another process while this one stands still (SIGSTOP), and come all at
once when it goes on: so one measures a busy process, not how slowly changes trickle in from the
server. Not in the cost is the watchers' regular comparison with the database.

Against it, in turns and on the same changes: a loop over a change stream of the driver that puts
each chunk into an ``asyncio.Queue`` of each watcher, without any way to recover what it misses.
"""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from benchmarks.children import Child, Children
from benchmarks.fan_out_programs import text
from benchmarks.figures import Figure, compare, single
from benchmarks.settings import Setting
from converse_mongo import Converse, Message

__all__ = ["run"]

PROGRAMS = "benchmarks.fan_out_programs"
WATCHERS = 10_000
SHAPES = {1: 10, 1_000: 1}
"""Number of messages to number of bursts of each kind in a round."""
TARGETS = {1: 1e6 / 300_000, 10: 1e6 / 1_000_000}
"""Chunks in a burst to µs for each delivery."""
MEMORY_TARGET = 2048
SIDES = LIBRARY, BY_HAND = "library", "a queue each"
APPENDS_AT_ONCE = 8


@dataclass(slots=True)
class Findings:
    """What was found with one number of messages.

    Attributes:
        memory: Bytes for each watcher, by side.
        streams: Change streams opened, by side.
        times: Chunks in a burst to side to µs for each delivery, one for each round.
    """

    memory: dict[str, float]
    streams: dict[str, int]
    times: dict[int, dict[str, list[float]]]


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    found = {}
    for messages in SHAPES:
        found[messages] = await _watched(setting, messages)
    return figures(found)


async def _watched(setting: Setting, count: int) -> Findings:
    kinds = [chunks for chunks in TARGETS for _ in range(SHAPES[count])]
    async with (
        setting.database() as database,
        # A message without a writer that never was appended to is soon looked at as an orphan.
        Converse(setting.server.uri, database=database, idle_timeout=None) as converse,
        Children(setting.server.uri) as children,
    ):
        conversation = await converse.start_conversation()
        messages = [await conversation.start_streaming_assistant() for _ in range(count)]
        arguments = [database, str(WATCHERS // count), *map(str, kinds * setting.rounds)]
        sides, attached = {}, {}
        for side in SIDES:
            setting.note(f"{WATCHERS:,} watchers of {count:,}, {side}")
            sides[side] = await children.start(side, PROGRAMS, side, *arguments)
            attached[side] = await sides[side].expect("attached")
            await sides[side].go()
        bursts = Bursts(messages, sides, {side: attached[side]["pid"] for side in SIDES})
        times: dict[int, dict[str, list[float]]] = {
            chunks: {side: [] for side in SIDES} for chunks in TARGETS
        }
        for number in range(setting.rounds):
            setting.note(f"round {number + 1} of {setting.rounds}")
            for chunks, seconds in (await _round(bursts, kinds, number)).items():
                deliveries = WATCHERS * chunks * SHAPES[count]
                for side in SIDES:
                    times[chunks][side].append(seconds[side] * 1e6 / deliveries)
        streams = {side: (await sides[side].expect("finished"))["streams"] for side in SIDES}
    memory = {side: attached[side]["memory"] / WATCHERS for side in SIDES}
    return Findings(memory, streams, times)


class Bursts:
    """Appends to all messages while the watching processes stand still, and lets these go on.

    Args:
        messages: The messages.
        sides: The processes that watch them, by side.
        pids: Their ids.
    """

    def __init__(
        self, messages: Sequence[Message], sides: Mapping[str, Child], pids: Mapping[str, int]
    ) -> None:
        self._messages = messages
        self._sides = sides
        self._pids = pids

    async def send(self, chunks: int, order: Sequence[str]) -> dict[str, float]:
        """Appends so many chunks at once to each; returns what each side computed, in seconds."""
        for child in self._sides.values():
            await child.expect("ready")
        seconds = {}
        try:
            self._signal(signal.SIGSTOP, order)
            await self._append(chunks)
            for side in order:
                self._signal(signal.SIGCONT, [side])
                seconds[side] = (await self._sides[side].expect("delivered"))["seconds"]
        finally:
            self._signal(signal.SIGCONT, order)
        return seconds

    def _signal(self, number: signal.Signals, order: Sequence[str]) -> None:
        for side in order:
            with suppress(ProcessLookupError):
                os.kill(self._pids[side], number)

    async def _append(self, chunks: int) -> None:
        left = iter(self._messages)

        async def work() -> None:
            for message in left:
                start = message.next_sequence
                await message.append_chunks(map(text, range(start, start + chunks)))

        await asyncio.gather(*(work() for _ in range(APPENDS_AT_ONCE)))


async def _round(bursts: Bursts, kinds: Sequence[int], number: int) -> dict[int, dict[str, float]]:
    found = {chunks: dict.fromkeys(SIDES, 0.0) for chunks in TARGETS}
    for turn, chunks in enumerate(kinds, number):
        order = SIDES if turn % 2 else SIDES[::-1]
        for side, seconds in (await bursts.send(chunks, order)).items():
            found[chunks][side] += seconds
    return found


def figures(found: Mapping[int, Findings]) -> list[Figure]:
    """The figures: what each delivery and each watcher costs, and what it costs by hand."""
    result = []
    for count, findings in found.items():
        what = "1 message" if count == 1 else f"{count:,} messages"
        for chunks, target in TARGETS.items():
            series = findings.times[chunks]
            name = f"a delivery, {what}, chunks {'one at a time' if chunks == 1 else 'by ten'}"
            values = series[LIBRARY]
            result += [
                Figure(name=name, unit="µs", value=median(values), target=target, values=values),
                compare(name, "µs", series, of=LIBRARY, against=BY_HAND),
            ]
        memory = {side: [size] for side, size in findings.memory.items()}
        name = f"memory of an idle watcher with its task, {what}"
        result += [
            single(name, "bytes", findings.memory[LIBRARY], target=MEMORY_TARGET),
            compare(name, "bytes", memory, of=LIBRARY, against=BY_HAND),
            single(f"change streams, {what}", "", findings.streams[LIBRARY], target=1),
        ]
    return result
