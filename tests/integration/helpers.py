"""Shared by integration tests: starts, gates, failures, and reads of stored documents."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pymongo import MongoClient
from pymongo.errors import AutoReconnect

from converse_mongo import (
    Converse,
    Message,
)
from converse_mongo.embedded import EmbeddedServer
from converse_mongo.store import Store
from tests.streams import (
    SOON,
)


async def start(converse: Converse, **options: Any) -> Message:
    return await (await converse.start_conversation()).start_streaming_assistant(**options)


async def fill(message: Message, count: int) -> None:
    await message.append_chunks([f"{number} " for number in range(count)])


def text_of(count: int) -> str:
    return "".join(f"{number} " for number in range(count))


async def raw(converse: Converse, message: Message) -> dict[str, Any]:
    found = await converse.message_model.store().messages.find_one({"_id": message.id})
    assert found is not None
    return dict(found)


async def pages_of(converse: Converse, message: Message) -> list[dict[str, Any]]:
    pages = converse.message_model.store().pages
    cursor = pages.find({"message_id": message.id}).sort([("first_sequence", 1)])
    return [page async for page in cursor]


async def gone(converse: Converse, message: Message) -> bool:
    document = await raw(converse, message)
    return not document["chunks"] and not await pages_of(converse, message)


async def stored(converse: Converse, message: Message) -> Message:
    return await converse.get_message(message.id)


async def tokens(count: int) -> AsyncIterator[str]:
    for number in range(count):
        yield f"{number} "
        await asyncio.sleep(0)


class Gate:
    """A collection whose appends wait until they are let through, and can fail."""

    def __init__(self, converse: Converse) -> None:
        store = converse.message_model.store()
        self._collection = store.messages
        self._store = store
        store.messages = self
        self.open = asyncio.Event()
        self.failing = False
        self.arrived = self.running = self.most = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collection, name)

    async def update_one(self, match: Any, update: Any) -> Any:
        if "$push" not in update:
            return await self._collection.update_one(match, update)
        self.arrived += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.open.wait()
            if self.failing:
                raise AutoReconnect("the network is down")
            return await self._collection.update_one(match, update)
        finally:
            self.running -= 1


DEAD: dict[str, Any] = {"lease": 0.3, "idle_timeout": 0.3, "poll_interval": 0.05}
"""A facade whose writers count as dead soon."""


async def die(converse: Converse, message: Message, *words: str) -> None:
    """Writes some words as a writer that then gives no heartbeat any more."""
    store = converse.message_model.store()
    await store.leases.acquire(message._own_key())
    for word in words:
        await message.append_chunk(word)


async def expired(converse: Converse, message: Message) -> None:
    """Waits until the lease of ``message`` has run out, by the server's clock."""
    store = converse.message_model.store()
    while True:
        state = await store.reader.state(message.id, message.conversation_id)
        assert state is not None
        if state.lease.has_expired(await store.reader.server_time()):
            return
        await asyncio.sleep(0.02)


Call = Callable[..., Awaitable[Any]]


class Between:
    """The messages of a store, with a test between it and some of its calls.

    ``Between(store, update_one=between)`` makes of each ``update_one(*arguments)`` a
    ``between(update_one, *arguments)``. ``append=`` is for those updates that append.
    """

    def __init__(self, store: Store, **between: Call) -> None:
        self._real, self._between = store.messages, between
        store.messages = self

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if name == "update_one" and "append" in self._between:
            return partial(self._update, real)
        return partial(self._between[name], real) if name in self._between else real

    async def _update(self, real: Call, match: Any, update: Any) -> Any:
        if "$push" in update:
            return await self._between["append"](real, match, update)
        return await real(match, update)


async def soon(awaitable: Awaitable[Any]) -> Any:
    async with asyncio.timeout(SOON):
        return await awaitable


class Meanwhile:
    """For a :class:`Between`: has something happen right after the first of some calls."""

    def __init__(self, happens: Any, *, lost: bool = False) -> None:
        self._happens, self._lost = happens, lost
        self.happened = False

    async def __call__(self, call: Call, *arguments: Any, **options: Any) -> Any:
        answer = await call(*arguments, **options)
        if not self.happened:
            self.happened = True
            await self._happens()
            if self._lost:
                raise AutoReconnect("the answer is lost")
        return answer


@contextmanager
def failing(
    server: EmbeddedServer, commands: list[str], mode: Any = "alwaysOn", **how: Any
) -> Iterator[None]:
    with MongoClient[dict[str, Any]](server.uri) as admin:

        def configure(mode: Any, **data: Any) -> None:
            admin.admin.command("configureFailPoint", "failCommand", mode=mode, **data)

        configure(mode, data={"failCommands": commands, **how})
        try:
            yield
        finally:
            configure("off")


NEVER: dict[str, Any] = {"poll_interval": 3600.0, "check_interval": 3600.0}
"""Nothing is found by looking: the change stream has to tell it."""


OFTEN: dict[str, Any] = {"poll_interval": 0.02, "check_interval": 0.02}


class SilentFeed:
    """A change stream that brings nothing, SOON, until it is lost."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    async def next_batch(self) -> list[Any]:
        await self.lost.wait()
        raise AutoReconnect("lost")

    async def aclose(self) -> None:
        pass


def feeds(converse: Converse, *how: Any) -> None:
    """Makes the hub of ``converse`` open these feeds, one after the other; the last for ever."""
    the_hub = converse._open_parts.hub
    real, left = the_hub._open_stream, list(how)

    async def open_stream() -> Any:
        gate, feed = left[0] if len(left) == 1 else left.pop(0)
        if gate is not None:
            await gate.wait()
        if isinstance(feed, Exception):
            raise feed
        return feed or await real()  # type: ignore[misc]

    the_hub._open_stream = open_stream
