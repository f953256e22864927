"""The child processes of the fan-out: watchers of the library, and some written by hand.

Each attaches its watchers and tells what memory they took. Then it tells for each burst of chunks
what processor time the process used until the last watcher had the last chunk of it.
"""

import asyncio
import gc
import inspect
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeAlias

from bson import ObjectId
from pymongo import MongoClient, monitoring

from benchmarks.children import SERVER_VARIABLE, tell, wait_for_parent
from benchmarks.figures import BenchmarkError
from benchmarks.meters import memory
from converse_mongo import ChunkReceived, Converse
from converse_mongo.driver.clients import close_client, open_client
from converse_mongo.watching.changes import SHORTENED

__all__ = ["text"]

AT_ONCE = 100
CHECK_SECONDS = 3600.0
"""The watchers' regular comparison with the database would fall into some bursts and not into
others: its cost is one of time, not of a delivery."""
AWAIT_MS = 1000

Watch: TypeAlias = Callable[[ObjectId, "Tally"], Coroutine[Any, Any, None]]
"""Watches a message until it is cancelled, and counts what it gets in the tally."""


def text(sequence: int) -> str:
    """The text of a chunk. All are different, so that one is known by its text."""
    return f" token {sequence:06d}"


class Tally:
    """What all watchers of this process have had.

    Attributes:
        texts: Of the chunks, in order.
        left: How many deliveries of a burst are still to come, or watchers to be attached.
        done: Set when none is.
        wrong: Where another chunk came than the next one.
        failure: Why a watcher has ended, which none is to do.
    """

    def __init__(self, chunks: int) -> None:
        self.texts = [text(sequence) for sequence in range(chunks)]
        self.left = 0
        self.done = asyncio.Event()
        self.wrong: set[int] = set()
        self.failure: BaseException | None = None

    def expect(self, count: int) -> None:
        """Begins to count down."""
        self.left = count
        self.done.clear()

    def count(self) -> None:
        """Counts one."""
        self.left -= 1
        if not self.left:
            self.done.set()

    def watcher_ended(self, task: asyncio.Task[None]) -> None:
        """Breaks the burst off: what is to come will never be all there."""
        if not task.cancelled():
            self.failure = task.exception() or BenchmarkError("A watcher has ended")
            self.done.set()


class OpenedStreams(monitoring.CommandListener):
    """Counts the change streams that a client opens."""

    def __init__(self) -> None:
        self.count = 0

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Looks whether it opens one."""
        stages = event.command.get("pipeline") or [{}]
        self.count += "$changeStream" in stages[0]

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Is of no interest."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Is of no interest."""


async def deliver(watch: Watch, ids: Sequence[ObjectId], each: int, bursts: Sequence[int]) -> None:
    """Attaches ``each`` watchers to each message, and tells what the bursts of chunks cost.

    Raises:
        BenchmarkError: A watcher had another chunk than the one that was written.
    """
    tally = Tally(sum(bursts))
    gc.collect()
    before = memory().resident
    tasks = []
    for number in range(0, len(ids) * each, AT_ONCE):
        some = range(number, min(number + AT_ONCE, len(ids) * each))
        tally.expect(len(some))
        for index in some:
            tasks.append(asyncio.create_task(watch(ids[index // each], tally)))
            tasks[-1].add_done_callback(tally.watcher_ended)
        await tally.done.wait()
    gc.collect()
    tell("attached", pid=os.getpid(), memory=memory().resident - before)
    await wait_for_parent()
    for chunks in bursts:
        tally.expect(len(tasks) * chunks)
        start = time.process_time()
        tell("ready")
        await tally.done.wait()
        if tally.failure is not None:
            raise tally.failure
        tell("delivered", seconds=time.process_time() - start)
    if tally.wrong:
        raise BenchmarkError(f"Some watchers had something else as chunk {min(tally.wrong)}")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


# The library


async def library(database: str, ids: Sequence[ObjectId], each: int, bursts: Sequence[int]) -> int:
    """Watches with :meth:`Converse.watch_message`; returns the number of change streams."""
    streams = OpenedStreams()

    async with Converse(
        os.environ[SERVER_VARIABLE],
        database=database,
        create_indexes=False,
        check_interval=CHECK_SECONDS,
        client_options={"event_listeners": [streams]},
    ) as converse:

        async def watch(message_id: ObjectId, tally: Tally) -> None:
            texts, expected = tally.texts, 0
            async with converse.watch_message(message_id) as events:
                tally.count()
                async for event in events:
                    if not isinstance(event, ChunkReceived):
                        break
                    if event.chunk.content != texts[expected]:
                        tally.wrong.add(expected)
                    expected += 1
                    tally.count()

        await deliver(watch, ids, each, bursts)
    return streams.count


# By hand


async def by_hand(database: str, ids: Sequence[ObjectId], each: int, bursts: Sequence[int]) -> int:
    """Puts what a change stream brings into a queue of each watcher.

    It is exact only because nothing goes wrong: no stream is lost, and nobody is late.
    """
    streams = OpenedStreams()
    client = open_client(os.environ[SERVER_VARIABLE], {"event_listeners": [streams]})
    queues: defaultdict[ObjectId, list[asyncio.Queue[Any]]] = defaultdict(list)
    opened = asyncio.Event()

    async def watch(message_id: ObjectId, tally: Tally) -> None:
        texts, expected = tally.texts, 0
        queue: asyncio.Queue[Any] = asyncio.Queue()
        queues[message_id].append(queue)
        tally.count()
        while True:
            chunk = await queue.get()
            if chunk["content"] != texts[expected]:
                tally.wrong.add(expected)
            expected += 1
            tally.count()

    following = asyncio.create_task(_follow(client[database].messages, queues, opened))
    try:
        await opened.wait()
        await deliver(watch, ids, each, bursts)
    finally:
        following.cancel()
        await asyncio.wait([following])
        await close_client(client)
    return streams.count


async def _follow(
    messages: Any, queues: Mapping[ObjectId, Sequence[asyncio.Queue[Any]]], opened: asyncio.Event
) -> None:
    heads: defaultdict[ObjectId, int] = defaultdict(int)
    stream = messages.watch(SHORTENED, max_await_time_ms=AWAIT_MS)
    if inspect.isawaitable(stream):  # PyMongo's
        stream = await stream
    async with stream:
        opened.set()
        async for change in stream:
            message_id = change["documentKey"]["_id"]
            for chunk in _chunks(change):
                if chunk["sequence"] == heads[message_id]:  # a new page brings some again
                    heads[message_id] += 1
                    for queue in queues.get(message_id, ()):
                        queue.put_nowait(chunk)


def _chunks(change: Mapping[str, Any]) -> list[dict[str, Any]]:
    fields = change.get("updateDescription", {}).get("updatedFields", {})
    if "chunks" in fields:
        return list(fields["chunks"])
    return [value for path, value in fields.items() if path.startswith("chunks.")]


def _ids(database: str) -> list[ObjectId]:
    with MongoClient[dict[str, Any]](os.environ[SERVER_VARIABLE]) as client:
        return [stored["_id"] for stored in client[database].messages.find({}, {"_id": 1})]


async def main(arguments: Sequence[str]) -> None:
    """Runs the program that ``arguments`` name."""
    program, database, each, *bursts = arguments
    run = library if program == "library" else by_hand
    streams = await run(database, _ids(database), int(each), [int(burst) for burst in bursts])
    tell("finished", streams=streams)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
