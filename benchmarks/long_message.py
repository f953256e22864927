"""A message of 400,000 chunks and more than 20 MB: its memory, and what a chunk costs at the end.

One process writes it, a second watches it live, a third reads it back in both ways; all they have
is compared by hash with what was written, and each chunk with the one that belongs there.
"""

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.children import Child, Children
from benchmarks.figures import BenchmarkError, Figure, Series, compare, single
from benchmarks.settings import Setting

__all__ = ["run"]

PROGRAMS = "benchmarks.long_message_programs"
MIB = 1024 * 1024
WRITER_TARGET = 10.0
"""MiB: the copy behind a writer keeps up to 8 MiB of text, 2 of them at the tenth, and a page of
chunks. The buffer, empty at the tenth, holds 1 MiB of text, which takes 4 as objects."""
READER_TARGET = 4.0
"""MiB: a window of 2 MiB, what is just being read, and what the allocator does not give back."""
COST_TARGET = 1.2


@dataclass(slots=True)
class Way:
    """One way through the message, as its child told of it.

    Attributes:
        resident: Bytes of memory by number of chunks.
        at: Seconds by number of chunks.
        result: What it had in the end.
    """

    resident: dict[int, int] = field(default_factory=dict)
    at: dict[int, float] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)


class Record:
    """What one child told.

    Attributes:
        ways: By name.
        times: Microseconds of a chunk for each part that was timed, by name.
        server_times: The same of the server's processor time; empty where that is not known.
    """

    def __init__(self) -> None:
        self.ways: defaultdict[str, Way] = defaultdict(Way)
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        self.server_times: defaultdict[str, list[float]] = defaultdict(list)

    async def follow(self, child: Child, setting: Setting) -> None:
        """Writes down all that ``child`` tells, and lets it go on where it waits.

        Raises:
            BenchmarkError: It ended too early.
        """
        began: float | None = None
        async for report in child.reports():
            if report["report"] == "begin":
                began = setting.server.cpu_seconds()
                await child.go()
            elif report["report"] == "end":
                self._take_part(report, began, setting.server.cpu_seconds())
                await child.go()
            elif report["report"] == "mark":
                self._take_mark(report, setting)
            elif report["report"] == "result":
                self.ways[report["what"]].result = report

    def _take_part(
        self, report: Mapping[str, Any], began: float | None, ended: float | None
    ) -> None:
        what, scale = report["what"], 1e6 / report["chunks"]
        self.times[what].append(report["seconds"] * scale)
        if began is not None and ended is not None:
            self.server_times[what].append((ended - began) * scale)

    def _take_mark(self, report: Mapping[str, Any], setting: Setting) -> None:
        way, done = self.ways[report["what"]], report["done"]
        way.resident[done], way.at[done] = report["resident"], report["at"]
        if len(way.at) % 20 == 1:
            setting.note(f"{report['what']}: {done:,}")


async def run(setting: Setting) -> list[Figure]:
    """Measures it once; the parts that are timed are ten hundredths of it each time."""
    writing, watching, reading = Record(), Record(), Record()
    async with setting.database() as database, Children(setting.server.uri) as children:
        common = database, str(setting.chunks)
        writer = await children.start("writer", PROGRAMS, "write", *common)
        started = await writer.expect("started")
        watcher = await children.start("watcher", PROGRAMS, "watch", *common, started["message"])
        mode = (await watcher.expect("watching"))["mode"]
        setting.note(f"{setting.chunks:,} chunks, watched by {mode}")
        await writer.go()
        await _both(writing.follow(writer, setting), watching.follow(watcher, setting))
        reader = await children.start("reader", PROGRAMS, "read", *common, started["conversation"])
        await reading.follow(reader, setting)
    _check_equal(writing.ways | watching.ways | reading.ways, setting.chunks)
    return [
        *_facts(writing.ways["writer"], watching.ways["watcher"]),
        *_costs(writing, reading),
        _growth("memory of the writer", writing.ways["writer"], WRITER_TARGET),
        _growth("memory of the watcher", watching.ways["watcher"], READER_TARGET),
        _growth("memory of the reader", reading.ways["iter_chunks"], READER_TARGET),
    ]


async def _both(*following: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            for one in following:
                tasks.create_task(one)
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


def _check_equal(ways: Mapping[str, Way], chunks: int) -> None:
    written = ways["writer"].result
    for what, way in ways.items():
        found = way.result
        equal = all(found[name] == written[name] for name in ("count", "size", "digest"))
        if not (equal and found["in_order"] and found["count"] == chunks):
            raise BenchmarkError(f"What the {what} has is not what was written: {found}")


def _facts(writer: Way, watcher: Way) -> list[Figure]:
    steady = [(done, at) for done, at in writer.at.items() if 0.1 < done / max(writer.at) < 0.9]
    (first, began), *_, (last, ended) = steady
    return [
        single("chunks; watcher, iter_chunks and iter_content equal", "", writer.result["count"]),
        single("text", "MB", writer.result["size"] / 1e6),
        single("chunks a second, between the tenths", "", (last - first) / (ended - began)),
        single(
            "the watcher's end after the writer's return",
            "ms",
            (watcher.result["at"] - writer.result["at"]) * 1e3,
        ),
    ]


def _costs(writing: Record, reading: Record) -> list[Figure]:
    """What a chunk costs, above all in the last tenth against a new message at the same time."""
    found = []
    for name, times in (
        ("writing a chunk", writing.times),
        ("server time of that, watcher included", writing.server_times),
    ):
        for tenth in ("first tenth", "last tenth") if times else ():
            against, target = f"new beside the {tenth}", COST_TARGET
            found.append(compare(name, "µs", times, of=tenth, against=against, target=target))
        if times:
            # The two are minutes apart, and the machine may do more now than it did then.
            found.append(_last_to_first(name, times, target=None))
    for name, times in (
        ("reading a chunk", reading.times),
        ("server time of that", reading.server_times),
    ):
        if times:
            found.append(_last_to_first(name, times, target=COST_TARGET))
    return found


def _last_to_first(name: str, times: Mapping[str, Series], target: float | None) -> Figure:
    return compare(name, "µs", times, of="last tenth", against="first tenth", target=target)


def _growth(name: str, way: Way, target: float) -> Figure:
    """MiB that the memory of a process grew by, at the most, after the first tenth of its way."""
    tenth = min(done for done in way.resident if 10 * done >= way.result["count"])
    growth = (way.result["peak"] - way.resident[tenth]) / MIB
    return single(f"{name}, peak over that at a tenth", "MiB", growth, target=target)
