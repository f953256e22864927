"""The two viewers of live chunks, each a process of its own: the library, and a loop by hand.

A viewer takes its turns from the collection ``turns``, whose next one is there when the parent lets
it go on. Whatever it follows with is opened for the turn and closed after it, so that nothing of it
runs while the other viewer has its turn.
"""

import asyncio
import inspect
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from bson import ObjectId

from benchmarks.children import SERVER_VARIABLE, tell, wait_for_parent
from converse_mongo import ChunkReceived, Converse, MessageCompleted
from converse_mongo.driver.clients import close_client, open_client
from converse_mongo.driver.collections import Collection

__all__ = ["LIBRARY", "TURNS", "VIEWERS"]

TURNS = "turns"
LIBRARY, HAND_WRITTEN = VIEWERS = "the library", "a hand-written loop"


class Seen:
    """What a viewer had of one message.

    Attributes:
        times: When each chunk was in its hands: nanoseconds of the clock that all processes share.
        texts: The texts of the chunks.
    """

    def __init__(self) -> None:
        self.times: list[int] = []
        self.texts: list[str] = []

    def take(self, text: str) -> None:
        """Takes the next chunk."""
        self.times.append(time.monotonic_ns())
        self.texts.append(text)


# The library


@asynccontextmanager
async def follow_with_library(
    uri: str, database: str, messages: Sequence[ObjectId]
) -> AsyncIterator[dict[ObjectId, Seen]]:
    """Follows ``messages`` until all have ended, which leaving it waits for."""
    seen = {message_id: Seen() for message_id in messages}
    async with Converse(uri, database=database, create_indexes=False) as converse:
        attached = asyncio.Semaphore(0)

        async def consume(message_id: ObjectId) -> None:
            async with converse.watch_message(message_id) as events:
                attached.release()
                async for event in events:
                    if isinstance(event, ChunkReceived):
                        seen[message_id].take(event.chunk.content)
                    elif not isinstance(event, MessageCompleted):
                        raise TypeError(f"An unexpected end: {event!r}")

        async with asyncio.TaskGroup() as consumers:
            for message_id in messages:
                consumers.create_task(consume(message_id))
            for _ in messages:
                await attached.acquire()
            await _wait_for_change_stream(converse)
            yield seen


async def _wait_for_change_stream(converse: Converse) -> None:
    """Until then it would learn of news by polling, which is not what is measured."""
    while not converse.statistics().streams_opened:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)


# By hand


@asynccontextmanager
async def follow_by_hand(
    uri: str, database: str, messages: Sequence[ObjectId]
) -> AsyncIterator[dict[ObjectId, Seen]]:
    """The same with one change stream for all messages, and a queue for each."""
    seen = {message_id: Seen() for message_id in messages}
    queues: dict[ObjectId, asyncio.Queue[Mapping[str, Any] | None]] = {
        message_id: asyncio.Queue() for message_id in messages
    }

    async def consume(message_id: ObjectId) -> None:
        while (chunk := await queues[message_id].get()) is not None:
            seen[message_id].take(chunk["content"])

    client = open_client(uri, {})
    try:
        async with asyncio.TaskGroup() as tasks:
            for message_id in messages:
                tasks.create_task(consume(message_id))
            opened = asyncio.Event()
            tasks.create_task(_dispatch(client[database].messages, queues, opened))
            await opened.wait()
            yield seen
    finally:
        await close_client(client)


async def _dispatch(
    collection: Collection,
    queues: Mapping[ObjectId, asyncio.Queue[Mapping[str, Any] | None]],
    opened: asyncio.Event,
) -> None:
    """Gives each message its chunks, each once and in order, and ``None`` for the end."""
    stream = collection.watch(_pipeline(queues))
    if inspect.isawaitable(stream):  # PyMongo's; Motor's opens with the block
        stream = await stream
    expected = dict.fromkeys(queues, 0)
    streaming = set(queues)
    async with stream:
        opened.set()
        async for change in stream:
            message_id = change["documentKey"]["_id"]
            fields = change["updateDescription"]["updatedFields"]
            for path, value in fields.items():
                if not path.startswith("chunks"):
                    continue
                # The first chunk of an array may come as the array, as does what a page leaves.
                for chunk in value if isinstance(value, list) else [value]:
                    if chunk["sequence"] == expected[message_id]:
                        expected[message_id] += 1
                        queues[message_id].put_nowait(chunk)
            if "status" in fields:
                queues[message_id].put_nowait(None)
                streaming.discard(message_id)
                if not streaming:
                    return


def _pipeline(messages: Mapping[ObjectId, Any]) -> list[dict[str, Any]]:
    return [
        {"$match": {"operationType": "update", "documentKey._id": {"$in": list(messages)}}},
        # Of a long text that is joined in the end a viewer has had all.
        {"$project": {"updateDescription.updatedFields.content": 0}},
    ]


# The process


async def main(arguments: Sequence[str]) -> None:
    """Takes its turns, as many as ``arguments`` say."""
    viewer, database, turns = arguments
    uri = os.environ[SERVER_VARIABLE]
    follow = follow_with_library if viewer == LIBRARY else follow_by_hand
    client = open_client(uri, {})
    try:
        tell("ready")
        for number in range(int(turns)):
            await wait_for_parent()
            turn = await client[database][TURNS].find_one({"viewer": viewer, "number": number})
            async with follow(uri, database, turn["messages"]) as seen:
                tell("watching")
                used = time.process_time()
            used = time.process_time() - used
            for index, message_id in enumerate(turn["messages"]):
                had = seen[message_id]
                tell("message", index=index, times=had.times, text="".join(had.texts))
            tell("turn over", client_seconds=used)
    finally:
        await close_client(client)
    tell("finished")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
