"""Contract 5: how a change stream begins, and what cannot be decoded."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId, Timestamp
from bson.errors import InvalidBSON
from pymongo import MongoClient

from converse_mongo import (
    ChunkReceived,
    Converse,
)
from converse_mongo.driver import change_streams, servers
from converse_mongo.driver.collections import collection_of
from converse_mongo.embedded import EmbeddedServer
from tests.conftest import Commands, Facade
from tests.integration.helpers import NEVER, start
from tests.streams import SOON, collect, sequences, until

# The beginning


async def test_feed__begins_behind_the_last_committed_write(
    facade: Facade, client: Any, commands: Commands
) -> None:
    writer = await facade()
    message = await start(writer)
    viewer = await facade(writer.database_name, client_options={"event_listeners": [commands]})
    before = await servers.committed_time(client[writer.database_name])
    async with viewer.watch_message(message.id):
        await until(lambda: viewer.statistics().streams_opened == 1)
    (opened,) = commands.change_streams()
    begins = opened["pipeline"][0]["$changeStream"]["startAtOperationTime"]
    assert isinstance(before, Timestamp)
    assert begins > before


async def test_feed__holds_what_was_applied_and_not_yet_committed_when_it_opened(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade()
    database = collection_of(converse.message_model).database
    committed = await servers.committed_time(database)

    async def lagging(_: Any) -> Timestamp | None:
        return committed

    message = await start(converse)  # no majority has it yet
    monkeypatch.setattr(change_streams, "committed_time", lagging)
    feed = await change_streams.open_change_stream(database, [])
    try:
        async with asyncio.timeout(SOON):
            seen: list[Any] = []
            while message.id not in seen:
                seen += [change["documentKey"]["_id"] for change in await feed.next_batch()]
    finally:
        await feed.aclose()


@pytest.mark.parametrize(
    ("hello", "expected"),
    [
        ({"lastWrite": {"majorityOpTime": {"ts": Timestamp(7, 3), "t": 1}}}, Timestamp(7, 3)),
        ({"msg": "isdbgrid"}, Timestamp(9, 1)),
    ],
    ids=["replica set", "mongos"],
)
async def test_committed_time__is_told_by_each_topology(
    hello: dict[str, Any], expected: Timestamp
) -> None:
    async def command(command: Any) -> dict[str, Any]:
        if command == "hello":
            return hello
        assert command["readConcern"] == {"level": "majority"}
        return {"operationTime": Timestamp(9, 1), "ok": 1}

    admin = SimpleNamespace(command=command)
    database = SimpleNamespace(client=SimpleNamespace(admin=admin), command=command)
    assert await servers.committed_time(database) == expected


# What cannot be decoded


class UndecodableFeed:
    """A change stream that brings what the driver cannot decode, once told."""

    def __init__(self) -> None:
        self.poisoned = asyncio.Event()

    async def next_batch(self) -> list[Any]:
        await asyncio.wait_for(self.poisoned.wait(), SOON)
        raise InvalidBSON("year 10000 is out of range")

    async def aclose(self) -> None:
        pass


async def test_watch__what_cannot_be_decoded_is_a_lost_stream(facade: Facade) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **NEVER)
    message = await start(writer)
    hub = viewer._open_parts.hub
    real, feed = hub._open_stream, UndecodableFeed()
    assert real is not None
    feeds = [feed]

    async def open_stream() -> Any:
        return feeds.pop() if feeds else await real()

    hub._open_stream = open_stream
    watching = asyncio.create_task(collect(viewer, message))
    await until(lambda: viewer.statistics().streams_opened == 1)
    feed.poisoned.set()
    await until(lambda: viewer.statistics().streams_opened == 2)
    await message.append_chunks(["a", "b"])
    await message.complete_streaming()
    assert sequences(await asyncio.wait_for(watching, SOON)) == [0, 1]


MARK = datetime(2001, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)
BEYOND = 8_640_000_000_000_000
"""The last moment of JavaScript, in the year 275760, in milliseconds."""


@asynccontextmanager
async def bad_dates(server: EmbeddedServer) -> AsyncIterator[str]:
    """A proxy that turns ``MARK`` into ``BEYOND``, which a mongosh can store and Python lacks."""
    host, port = server.uri.split("//")[1].split("/")[0].split(":")
    good = struct.pack("<q", int(MARK.timestamp() * 1000))
    bad = struct.pack("<q", BEYOND)
    open_ones: set[asyncio.Task[Any]] = set()

    async def pipe(source: Any, target: Any, patch: bool) -> None:
        try:
            while data := await source.read(1 << 20):
                target.write(data.replace(good, bad) if patch else data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.close()

    async def serve(reader: Any, writer: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_ones.add(task)
        there = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pipe(reader, there[1], False), pipe(there[0], writer, True))

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"mongodb://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/?directConnection=true"
    finally:
        proxy.close()
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)


@pytest.mark.parametrize("streams", [True, False], ids=["change stream", "polling"])
async def test_watch__a_date_that_python_does_not_have_harms_no_other_message(
    start_server: Callable[..., EmbeddedServer], streams: bool
) -> None:
    server = start_server()
    options: dict[str, Any] = {"change_streams": streams, "poll_interval": 0.02}
    async with (
        bad_dates(server) as uri,
        Converse(uri, database="bad", **options) as viewer,
        Converse(server.uri, database="bad") as writer,
    ):
        message, harmed = await start(writer), await start(writer)
        watching = asyncio.create_task(collect(viewer, message))
        other = asyncio.create_task(collect(viewer, harmed))
        await until(lambda: viewer.statistics().watchers == 2)
        await message.append_chunk("a")
        with MongoClient[dict[str, Any]](server.uri) as client:
            messages = client["bad"]["messages"]
            foreign = {"_id": ObjectId(), "conversation_id": ObjectId(), "position": 0}
            messages.insert_one({**foreign, "when": MARK})
            messages.update_one(
                {"_id": harmed.id}, {"$set": {"lease.renewed_at": MARK, "when": MARK}}
            )
        await message.append_chunk("b")
        late = asyncio.create_task(collect(viewer, message, 0))
        await message.append_chunk("c")
        await message.complete_streaming()
        assert sequences(await asyncio.wait_for(watching, SOON)) == [0, 1, 2]
        assert sequences(await asyncio.wait_for(late, SOON)) == [1, 2]
        fresh = await start(writer)
        async with viewer.watch_message(fresh.id) as events:
            await fresh.append_chunk("x")
            async with asyncio.timeout(SOON):
                assert isinstance(await anext(events), ChunkReceived)
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
