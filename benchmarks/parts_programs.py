"""A child process of ``parts``: what an append takes of the library's own code.

It runs with the library of any checkout since commit a8a96e5, so it uses what all of them have. The
answers of the server are made up, so that the driver and the server take no time.
"""

import asyncio
import gc
import os
import sys
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import bson

from benchmarks.children import SERVER_VARIABLE, tell, wait_for_parent
from converse_mongo import Conversation, Converse, Message

TEXT = " token."
APPENDS = 250
"""In a message: fewer than those that fill a page."""
MESSAGES = 12
TOKENS = 2_500
FLUSH_TOKENS = 20


class Stub:
    """A collection whose updates match and do nothing."""

    def __init__(self, collection: Any) -> None:
        self._collection = collection
        self.answer = SimpleNamespace(matched_count=1, modified_count=1)
        self.bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collection, name)

    async def update_one(self, match: Any, update: Any) -> Any:
        """Says at once that an append was stored."""
        if "$push" not in update:
            return await self._collection.update_one(match, update)
        if not self.bytes:
            self.bytes = len(bson.encode(match)) + len(bson.encode(update))
        return self.answer


async def by_hand(message: Message) -> None:
    """Appends chunks by hand."""
    for _ in range(APPENDS):
        await message.append_chunk(TEXT)


async def by_writer(message: Message) -> None:
    """Appends chunks by a writer, each alone."""
    async with message.writer(flush_interval=0.001) as writer:
        for _ in range(APPENDS):
            await writer.write(TEXT)
            await writer.flush()
        await writer.detach()


async def tokens(message: Message) -> None:
    """Writes tokens, many to an append."""
    async with message.writer(flush_interval=0.001) as writer:
        for number in range(TOKENS):
            await writer.write(TEXT)
            if not number % FLUSH_TOKENS:
                await writer.flush()
        await writer.detach()


WAYS: dict[str, tuple[Callable[[Message], Awaitable[None]], int]] = {
    "append_chunk": (by_hand, APPENDS),
    "an append by a writer": (by_writer, APPENDS),
    "a call of write": (tokens, TOKENS),
}


async def measure(conversation: Conversation) -> dict[str, float]:
    """Microseconds of processor time for each way: the least of some messages.

    Whatever else the machine does makes a message dearer, and none cheaper.
    """
    found = {}
    for name, (way, count) in WAYS.items():
        times = []
        for _ in range(MESSAGES):
            message = await conversation.start_streaming_assistant()
            gc.collect()
            gc.disable()
            start = time.process_time()
            await way(message)
            times.append((time.process_time() - start) * 1e6 / count)
            gc.enable()
            await message.delete()
        found[name] = min(times)
    return found


async def count(conversation: Conversation) -> dict[str, float]:
    """Calls of functions for each way: the load of the machine does not change them."""
    found = {}
    for name, (way, number) in WAYS.items():
        message = await conversation.start_streaming_assistant()
        calls = 0

        def called(_frame: object, event: str, _argument: object) -> None:
            nonlocal calls
            if event in ("call", "c_call"):
                calls += 1

        sys.setprofile(called)
        try:
            await way(message)
        finally:
            sys.setprofile(None)
        found[name] = calls / number
        await message.delete()
    return found


async def main() -> None:
    """Measures whenever the parent asks."""
    async with Converse(
        os.environ[SERVER_VARIABLE],
        database=f"bench_{os.getpid()}",
        change_streams=False,
        poll_interval=3600,
        sweep_interval=None,
    ) as converse:
        store = converse.message_model.store()
        stub = Stub(store.messages)
        store.messages = stub
        conversation = await converse.start_conversation()
        await measure(conversation)
        tell("ready", bytes=stub.bytes, calls=await count(conversation))
        while True:
            await wait_for_parent()
            tell("measured", **await measure(conversation))


if __name__ == "__main__":
    asyncio.run(main())
