"""How long an appended chunk takes to a viewer in another process: the library against a loop.

The time is that from just before ``await message.append_chunk`` to the chunk being in the hands of
a viewer's consumer, on the clock that all processes share. The hand-written viewer has one change
stream, which gives it the events of its messages only, and a queue for each message.

The viewers have turns, since two at one time would take the processor from each other: in a round
library, loop, loop, library, and the next round the other way about. The pace is moderate, so that
the server keeps up: what is measured is the way, not a queue in front of it.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles

from bson import ObjectId

from benchmarks.children import Child, Children
from benchmarks.figures import BenchmarkError, Figure, compare
from benchmarks.live_latency_programs import HAND_WRITTEN, LIBRARY, TURNS, VIEWERS
from benchmarks.settings import Setting
from converse_mongo import Conversation, Converse, Message
from converse_mongo.driver.clients import close_client, open_client
from converse_mongo.driver.collections import Collection

__all__ = ["run"]

PROGRAMS = "benchmarks.live_latency_programs"
SETTLE_SECONDS = 0.5
P50_TARGET = 1.2
P99_TARGET = 1.5


@dataclass(frozen=True, slots=True)
class Load:
    """What is streamed in a turn.

    Attributes:
        messages: How many messages at one time.
        rate: Chunks a second for each.
        chunks: How many for each.
    """

    messages: int
    rate: float
    chunks: int

    def __str__(self) -> str:
        plural = "s" if self.messages > 1 else ""
        return f"{self.messages} message{plural}, {self.messages * self.rate:.0f} chunks/s in all"


LOADS = Load(1, 50.0, 125), Load(20, 5.0, 13)


@dataclass(slots=True)
class Found:
    """What one viewer had in one round with one load: milliseconds."""

    latencies: list[float] = field(default_factory=list)
    client_times: list[float] = field(default_factory=list)

    @property
    def p50(self) -> float:
        """The median of the latencies."""
        return median(self.latencies)

    @property
    def p99(self) -> float:
        """What 99 of 100 of the latencies are below."""
        return quantiles(self.latencies, n=100)[98]

    @property
    def client_time(self) -> float:
        """The processor time that a chunk took in the viewer."""
        return median(self.client_times)


Round = Mapping[tuple[Load, str], Found]


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    turns = setting.rounds * len(LOADS) * 2
    async with (
        setting.database() as database,
        Converse(setting.server.uri, database=database) as converse,
        Children(setting.server.uri) as children,
        _turns_of(setting.server.uri, database) as collection,
    ):
        viewers = {
            name: Viewer(name, await children.start(name, PROGRAMS, name, database, str(turns)))
            for name in VIEWERS
        }
        for viewer in viewers.values():
            await viewer.child.expect("ready")
        conversation = await converse.start_conversation()
        rounds: list[Round] = []
        for number in range(setting.rounds):
            setting.note(f"round {number + 1} of {setting.rounds}")
            order = VIEWERS if number % 2 == 0 else VIEWERS[::-1]
            found: defaultdict[tuple[Load, str], Found] = defaultdict(Found)
            for load in LOADS:
                for name in (*order, *reversed(order)):
                    await viewers[name].turn(collection, conversation, load, found[load, name])
            rounds.append(found)
        for viewer in viewers.values():
            await viewer.child.expect("finished")
    return figures(rounds)


@asynccontextmanager
async def _turns_of(uri: str, database: str) -> AsyncIterator[Collection]:
    client = open_client(uri, {})
    try:
        yield client[database][TURNS]
    finally:
        await close_client(client)


class Viewer:
    """A viewer, and how many turns it has had."""

    def __init__(self, name: str, child: Child) -> None:
        self.child = child
        self._name = name
        self._turns = 0

    async def turn(
        self, turns: Collection, conversation: Conversation, load: Load, found: Found
    ) -> None:
        """Streams ``load`` to it, and adds what it had to ``found``.

        Raises:
            BenchmarkError: It had something else than what was streamed.
        """
        messages = [await conversation.start_streaming_assistant() for _ in range(load.messages)]
        ids: list[ObjectId] = [message.id for message in messages]
        await turns.insert_one({"viewer": self._name, "number": self._turns, "messages": ids})
        self._turns += 1
        await self.child.go()
        await self.child.expect("watching")
        start = time.monotonic() + SETTLE_SECONDS
        async with asyncio.TaskGroup() as streams:
            tasks = [
                streams.create_task(
                    _stream(message, index, load, start + index / load.messages / load.rate)
                )
                for index, message in enumerate(messages)
            ]
        # Not sooner, since the end of one would be in the way of the chunks of another.
        await asyncio.sleep(SETTLE_SECONDS)
        for message in messages:
            await message.complete_streaming()
        for index, task in enumerate(tasks):
            appended = task.result()
            had = await self.child.expect("message")
            text = "".join(_text(index, sequence) for sequence in range(load.chunks))
            if had["index"] != index or had["text"] != text or len(had["times"]) != load.chunks:
                raise BenchmarkError(f"What {self._name} had of message {index} is not what it is.")
            found.latencies += [
                (seen - since) / 1e6 for since, seen in zip(appended, had["times"], strict=True)
            ]
        over = await self.child.expect("turn over")
        found.client_times.append(over["client_seconds"] * 1e3 / load.messages / load.chunks)


def _text(index: int, sequence: int) -> str:
    return f" {index}:{sequence}"


async def _stream(message: Message, index: int, load: Load, start: float) -> list[int]:
    """Appends the chunks of a message at their times, and tells when each append began."""
    began = []
    for sequence in range(load.chunks):
        await asyncio.sleep(start + sequence / load.rate - time.monotonic())
        began.append(time.monotonic_ns())
        await message.append_chunk(_text(index, sequence))
    return began


def figures(rounds: list[Round]) -> list[Figure]:
    """The figures of all loads, the library's against those of the loop."""
    found = []
    for load in LOADS:
        for name, target, attribute in (
            ("append to viewer, p50", P50_TARGET, "p50"),
            ("append to viewer, p99", P99_TARGET, "p99"),
            ("viewer's client time of a chunk", None, "client_time"),
        ):
            series = {
                viewer: [getattr(one[load, viewer], attribute) for one in rounds]
                for viewer in VIEWERS
            }
            found.append(
                compare(
                    *(f"{name}, {load}", "ms", series),
                    of=LIBRARY,
                    against=HAND_WRITTEN,
                    target=target,
                )
            )
    return found
