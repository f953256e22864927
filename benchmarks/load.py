"""A load that goes on: 200 messages that stream at once, 50 tokens a second each, 1,000 viewers.

Two processes write and two watch, on one server. Nothing may be lost: each viewer compares what it
had of a message with what was written, chunk by chunk and by hash, and with what is stored. Nothing
may grow: tasks, threads, open files and change streams in the end are compared with those after a
tenth of the time, and memory with that after half of it. Finished messages are deleted once all
have seen and compared them, so that the server holds what streams, and not all that ever did.
"""

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from pymongo import MongoClient

from benchmarks.children import Child, Children
from benchmarks.figures import BenchmarkError, Figure, compare, single
from benchmarks.load_samples import (
    PARTS,
    SAMPLES,
    TOKENS_PER_SECOND,
    VIEWERS_PER_MESSAGE,
    every_sample,
    percentile,
)
from benchmarks.settings import Setting

__all__ = ["run"]

PROGRAMS = "benchmarks.load_programs"
PROCESSES = 2
"""That write, and as many that watch."""
MIB = 1024 * 1024
MEMORY_TARGET, COUNT_TARGET = 1.1, 1.0
TASKS_TARGET = 1.1
"""Their number goes up and down as messages end and begin."""
RATE_TARGET, P50_TARGET, P99_TARGET = 1.02, 1.2, 1.5
EARLY, LATE = range(1, 4), range(PARTS - 3, PARTS)
"""The parts whose latencies are compared; in the first one it warms up."""
TENTHS = {2: "second", 6: "sixth"}
EARLY_NAME, LATE_NAME = "second to fourth tenth", "last three tenths"


@dataclass(slots=True)
class Record:
    """What the processes of a kind told, added up.

    Attributes:
        samples: By name, in order of time; each the sum over the processes.
        parts: By process: what it told at the end of each part.
        results: What each had in the end.
    """

    samples: defaultdict[str, list[float]] = field(
        default_factory=lambda: defaultdict(lambda: [0.0] * PARTS * SAMPLES)
    )
    parts: list[list[Mapping[str, Any]]] = field(default_factory=list)
    results: list[Mapping[str, Any]] = field(default_factory=list)

    async def follow(self, child: Child) -> None:
        """Writes down all that ``child`` tells.

        Raises:
            BenchmarkError: It ended too early.
        """
        parts: list[Mapping[str, Any]] = []
        self.parts.append(parts)
        async for report in child.reports():
            if report["report"] == "part":
                parts.append(report)
                for name, values in report["samples"].items():
                    for number, value in enumerate(values, report["part"] * SAMPLES):
                        self.samples[name][number] += value
            elif report["report"] == "result":
                self.results.append(report)

    def total(self, name: str) -> int:
        """The sum over the processes of something in their results."""
        return sum(result[name] for result in self.results)

    def rates(self, name: str) -> list[float]:
        """What was done a second in each part but the first, by all processes together."""
        return [
            sum(
                (parts[number][name] - parts[number - 1][name])
                / (parts[number]["at"] - parts[number - 1]["at"])
                for parts in self.parts
            )
            for number in range(1, PARTS)
        ]

    def latencies(self, number: int) -> list[int]:
        """The counts of a part, of all processes."""
        counted = [parts[number]["latencies"] for parts in self.parts]
        return [sum(counts) for counts in zip(*counted, strict=True)]


class ServerRecord:
    """What the server says of itself, at the same times.

    Attributes:
        memory: Its resident memory in MiB.
        connections: To it.
        processor: Seconds that it has computed at the end of each part, where that is known.
    """

    def __init__(self) -> None:
        self.memory: list[float] = []
        self.connections: list[float] = []
        self.processor: list[float] = []

    async def follow(self, setting: Setting) -> None:
        """Asks it for as long as the load goes on."""
        # One connection: a slow server is not to have more of them for being asked about it.
        with MongoClient[dict[str, Any]](setting.server.uri, maxPoolSize=1) as client:
            asking: list[asyncio.Task[None]] = []

            def take(number: int) -> None:
                asking.append(asyncio.create_task(asyncio.to_thread(self._ask, client)))
                if (number + 1) % SAMPLES == 0:
                    seconds = setting.server.cpu_seconds()
                    self.processor += [] if seconds is None else [seconds]
                    setting.note(f"{(number + 1) // SAMPLES} of {PARTS} parts")

            await every_sample(setting.load.minutes * 60, take)
            await asyncio.gather(*asking)

    def _ask(self, client: MongoClient[dict[str, Any]]) -> None:
        status = client.admin.command("serverStatus")
        self.memory.append(float(status.get("mem", {}).get("resident", 0)))
        self.connections.append(float(status.get("connections", {}).get("current", 0)))


async def run(setting: Setting) -> list[Figure]:
    """Measures it once, for as many minutes as it is told."""
    load, seconds = setting.load, setting.load.minutes * 60
    writing, viewing, server = Record(), Record(), ServerRecord()
    patience = 120 + 2 * seconds / PARTS
    async with setting.database() as database, Children(setting.server.uri, patience) as children:
        common = database, str(seconds)
        writers, viewers, messages = [], [], []
        for number in range(PROCESSES):
            count = (load.messages + number) // PROCESSES
            arguments = str(count), str(load.flush_interval)
            writer = await children.start(
                f"writer {number + 1}", PROGRAMS, "write", *common, *arguments
            )
            writers.append(writer)
            messages += (await writer.expect("started"))["messages"]
        for number in range(PROCESSES):
            name = f"viewer process {number + 1}"
            # Each watches messages of both writers.
            viewers.append(
                await children.start(name, PROGRAMS, "view", *common, *messages[number::PROCESSES])
            )
        watching = [await viewer.expect("watching") for viewer in viewers]
        setting.note(
            f"{len(messages)} messages, {sum(one['viewers'] for one in watching):,} viewers by "
            f"{watching[0]['mode']}, {load.minutes:g} minutes"
        )
        for child in [*viewers, *writers]:
            await child.go()
        await _all(
            *(writing.follow(writer) for writer in writers),
            *(viewing.follow(viewer) for viewer in viewers),
            server.follow(setting),
        )
    _check_complete(writing, viewing)
    return [
        *_facts(setting, writing, viewing),
        *_latencies(viewing),
        *_growth(writing, viewing),
        *_server_figures(server, setting),
    ]


async def _all(*following: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            for one in following:
                tasks.create_task(one)
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


def _check_complete(writing: Record, viewing: Record) -> None:
    """Each message and each token that was written has to be at each of its viewers."""
    for name, times in (("messages", 1), ("tokens", VIEWERS_PER_MESSAGE)):
        written, viewed = writing.total(name), viewing.total(name)
        if viewed != written * times:
            raise BenchmarkError(f"{viewed} {name} came of {written} written, {times} times each")


def _facts(setting: Setting, writing: Record, viewing: Record) -> list[Figure]:
    load = setting.load
    reached = writing.rates("tokens")
    asked = [float(load.messages * TOKENS_PER_SECOND)] * len(reached)
    tokens, writes = writing.total("tokens"), writing.total("writes")
    return [
        single("minutes", "", load.minutes),
        single("messages at once", "", load.messages),
        single(
            "messages completed, equal at all viewers and stored", "", writing.total("messages")
        ),
        single(f"tokens, each seen by {VIEWERS_PER_MESSAGE} viewers", "", tokens),
        compare(
            "time for a token, all messages together",
            "µs",
            {
                "as it was reached": [1e6 / rate for rate in reached],
                "as it was asked for": [1e6 / rate for rate in asked],
            },
            of="as it was reached",
            against="as it was asked for",
            target=RATE_TARGET,
        ),
        single("appends a second", "", fmean(writing.rates("writes"))),
        single("tokens in an append", "", tokens / max(writes, 1)),
        single("appends tried again", "", writing.total("retries")),
        single("tokens that waited for room in a buffer", "", writing.total("waits")),
        single(
            "text not stored yet, all buffers at the most",
            "KiB",
            max(writing.samples["waiting"]) / 1024,
        ),
        single(
            "tokens written before their viewer came",
            "%",
            100 * viewing.total("early_tokens") / max(viewing.total("tokens"), 1),
        ),
        *_processor("writers", "a token", writing),
        *_processor("viewers", "a token at a viewer", viewing),
    ]


def _processor(who: str, what: str, record: Record) -> list[Figure]:
    used, done = fmean(record.rates("processor")), fmean(record.rates("tokens"))
    return [
        single(f"processor time of the {who} for {what}", "µs", 1e6 * used / done),
        single(f"{who}, of one core", "%", 100 * used),
    ]


def _latencies(viewing: Record) -> list[Figure]:
    found = []
    for name, share, target in (("p50", 0.5, P50_TARGET), ("p99", 0.99, P99_TARGET)):
        series = {
            part_name: [1e3 * percentile(viewing.latencies(number), share) for number in parts]
            for part_name, parts in ((EARLY_NAME, EARLY), (LATE_NAME, LATE))
        }
        found.append(
            compare(
                f"token to viewer, {name}",
                "ms",
                series,
                of=LATE_NAME,
                against=EARLY_NAME,
                target=target,
            )
        )
    return found


def _growth(writing: Record, viewing: Record) -> list[Figure]:
    found = []
    for who, record in (("writers", writing), ("viewers", viewing)):
        for name, what, unit, scale, target in (
            ("resident", "memory", "MiB", 1 / MIB, MEMORY_TARGET),
            ("tasks", "asyncio tasks", "", 1.0, TASKS_TARGET),
            ("threads", "threads", "", 1.0, COUNT_TARGET),
            ("files", "open files and connections", "", 1.0, COUNT_TARGET),
        ):
            values = [value * scale for value in record.samples[name]]
            # An allocator keeps the most that was ever needed, which takes minutes to come.
            since = 6 if name == "resident" else 2
            found.append(_last_tenth(f"{what} of the {who}", unit, values, target, since))
        opened = max(part["streams"] for parts in record.parts for part in parts)
        found.append(
            single(f"change streams opened by each of the {who}", "", opened, target=COUNT_TARGET)
        )
    return found


def _server_figures(server: ServerRecord, setting: Setting) -> list[Figure]:
    found = [
        _last_tenth("connections to the server", "", server.connections, COUNT_TARGET),
        _last_tenth("memory of the server", "MiB", server.memory, None, since=6),
    ]
    if server.processor:
        seconds = setting.load.minutes * 60 * (PARTS - 1) / PARTS
        used = server.processor[-1] - server.processor[0]
        found.append(single("server, of one core", "%", 100 * used / seconds))
    return found


def _last_tenth(
    name: str, unit: str, values: Sequence[float], target: float | None, since: int = 2
) -> Figure:
    """The samples of the last tenth against those of an earlier one: in the first it warms up."""
    against = f"{TENTHS[since]} tenth"
    earlier = values[(since - 1) * SAMPLES : since * SAMPLES]
    series = {"last tenth": values[-SAMPLES:], against: earlier}
    return compare(name, unit, series, of="last tenth", against=against, target=target)
