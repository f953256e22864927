"""Guarantees that no other test would miss."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from beanie import init_beanie
from pymongo.errors import AutoReconnect

from converse_mongo import (
    DOCUMENT_MODELS,
    ChunkReceived,
    ChunksNotLoadedError,
    Conversation,
    ConversationNotFoundError,
    Converse,
    Event,
    Message,
    MessageCompleted,
    MessageCreated,
)
from converse_mongo.driver.collections import collection_of
from converse_mongo.watching import changes, hub, topics
from tests.conftest import Commands, Facade, drop_database
from tests.integration.helpers import NEVER, SilentFeed, feeds, soon, start
from tests.streams import SOON, collect, sequences, until


def watch(converse: Converse, message: Message, what: str) -> Any:
    if what == "message":
        return converse.watch_message(message.id)
    return converse.watch_conversation(message.conversation_id)


@asynccontextmanager
async def open_stream(viewer: Converse) -> AsyncIterator[None]:
    """Opens the change stream, so that topics joined later are not made stale by its opening."""
    async with viewer.watch_message((await start(viewer)).id):
        await until(lambda: viewer.statistics().streams_opened == 1)
        yield


# 6. Nothing is overwritten by accident


async def test_save__leaves_what_the_library_counts_as_it_is(facade: Facade) -> None:
    writer = await facade()
    other = await facade(writer.database_name)
    message = await start(writer)
    stale = await other.get_message(message.id)
    await message.append_chunks(["a", "b"])
    await message.complete_streaming()
    collection = collection_of(writer.message_model)
    before = await collection.find_one({"_id": message.id})
    stale.metadata["x"] = 1
    await stale.save()
    after = await collection.find_one({"_id": message.id})
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == {"metadata", "revision", "last_save", "save_mark", "updated_at"}
    assert after["metadata"] == {**before["metadata"], "x": 1}


# 5. Watching is exact


@pytest.mark.parametrize("what", ["message", "conversation"])
async def test_watch__a_skipped_event_is_noticed_at_the_next(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **NEVER)
    message = await start(writer)
    take = hub.Hub._take

    def skip_one(self: Any, change: Any) -> None:
        hint = changes.decode(change, "conversations")
        if not isinstance(hint, changes.Updated) or hint.next_sequence != 2:
            take(self, change)

    monkeypatch.setattr(hub.Hub, "_take", skip_one)
    async with open_stream(viewer), watch(viewer, message, what) as events:
        if what == "conversation":
            assert isinstance(await soon(anext(events)), MessageCreated)
        await message.append_chunk("0")
        assert sequences([await soon(anext(events))]) == [0]
        await message.append_chunk("1")
        await message.append_chunk("2")
        assert sequences([await soon(anext(events)), await soon(anext(events))]) == [1, 2]


async def test_conversation__an_end_comes_by_the_change_stream(facade: Facade) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **NEVER)
    message = await start(writer)
    async with open_stream(viewer), viewer.watch_conversation(message.conversation_id) as events:
        assert isinstance(await soon(anext(events)), MessageCreated)
        await message.append_chunk("a")
        assert isinstance(await soon(anext(events)), ChunkReceived)
        await message.complete_streaming()
        assert isinstance(await soon(anext(events)), MessageCompleted)


async def test_conversation__a_check_finds_that_it_was_deleted(facade: Facade) -> None:
    # Polled, so that no change stream that opens just then makes the watcher read again.
    converse = await facade(change_streams=False, poll_interval=0.02)
    conversation = await converse.start_conversation()
    async with converse.watch_conversation(conversation.id) as events:
        await conversation.delete()
        with pytest.raises(ConversationNotFoundError, match=str(conversation.id)):
            await soon(anext(events))


@pytest.mark.parametrize("what", ["message", "conversation"])
async def test_watch__what_was_written_before_the_stream_opened_is_read(
    facade: Facade, what: str
) -> None:
    writer = await facade(client_options={"w": "majority"})
    viewer = await facade(writer.database_name, **NEVER)
    message = await start(writer)
    silent, first, second = SilentFeed(), asyncio.Event(), asyncio.Event()
    feeds(viewer, (first, silent), (second, None))
    async with watch(viewer, message, what) as events:
        if what == "conversation":
            assert isinstance(await soon(anext(events)), MessageCreated)
        await message.append_chunk("a")
        first.set()
        assert sequences([await soon(anext(events))]) == [0]
        # The same once a stream was lost, after the look that follows at once.
        silent.lost.set()
        await until(lambda: viewer.statistics().checks == 1)
        await asyncio.sleep(0.05)
        await message.append_chunk("b")
        second.set()
        assert sequences([await soon(anext(events))]) == [1]
        assert viewer.statistics().streams_opened == 2


async def test_watch__a_lost_stream_is_replaced_by_polling_at_once(facade: Facade) -> None:
    writer = await facade(client_options={"w": "majority"})
    viewer = await facade(writer.database_name, check_interval=3600, poll_interval=0.02)
    message = await start(writer)
    silent = SilentFeed()
    feeds(viewer, (None, silent), (None, AutoReconnect("still lost")))
    async with viewer.watch_message(message.id) as events:
        await until(lambda: viewer.statistics().streams_opened == 1)
        await message.append_chunk("a")
        assert sequences([await soon(anext(events))]) == [0]
        await asyncio.sleep(0.1)  # the hub waits for the next check, which is far away
        silent.lost.set()
        await asyncio.sleep(0.1)
        await message.append_chunk("b")
        assert sequences([await soon(anext(events))]) == [1]


async def test_poll__at_its_interval_only_while_there_is_no_stream(facade: Facade) -> None:
    polling = await facade(change_streams=False, check_interval=3600, poll_interval=0.01)
    message = await start(polling)
    async with polling.watch_message(message.id) as events:
        await message.append_chunk("a")
        await soon(anext(events))
        await until(lambda: polling.statistics().checks > 3)
    live = await facade(polling.database_name, check_interval=3600, poll_interval=0.01)
    async with live.watch_message(message.id):
        await until(lambda: live.statistics().streams_opened == 1)
        await asyncio.sleep(0.05)
        checks = live.statistics().checks
        await asyncio.sleep(0.2)
        assert live.statistics().checks == checks


def slow(monkeypatch: pytest.MonkeyPatch, converse: Converse, name: str) -> Any:
    """Lets the hub's read ``name`` return only when told, with what it found before."""
    reader = converse._open_parts.hub._registry._reader
    read, began, go = getattr(reader, name), asyncio.Event(), asyncio.Event()

    async def read_slowly(*arguments: Any) -> Any:
        found = await read(*arguments)
        began.set()
        await go.wait()
        return found

    monkeypatch.setattr(reader, name, read_slowly)
    return began, go


@pytest.mark.parametrize("what", ["message", "conversation"])
@pytest.mark.parametrize("room", [1000, 2])
async def test_watch__hints_that_come_while_reading_are_held(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, what: str, room: int
) -> None:
    monkeypatch.setattr(topics, "HELD_HINTS", room)
    writer = await facade()
    viewer = await facade(writer.database_name, **NEVER)
    message = await start(writer)
    async with open_stream(viewer):
        read = {"message": "read_tail", "conversation": "streaming"}[what]
        began, go = slow(monkeypatch, viewer, read)

        async def see() -> list[Event]:
            seen: list[Event] = []
            async for event in watch(viewer, message, what):
                seen.append(event)
                if sequences(seen) == list(range(5)):
                    break
            return seen

        watching = asyncio.create_task(see())
        await began.wait()
        changes = viewer.statistics().changes
        for number in range(5):
            await message.append_chunk(str(number))
        await until(lambda: viewer.statistics().changes == changes + 5)
        go.set()
        async with asyncio.timeout(SOON):
            assert sequences(await watching) == list(range(5))


# 3 and 4. What a writer that died leaves behind


async def test_end__a_writer_that_died_before_the_text_was_joined(facade: Facade) -> None:
    writer = await facade()
    message = await start(writer)
    await message.append_chunks(["a", "b"])
    await message.complete_streaming({"n": 1})
    await collection_of(writer.message_model).update_one(
        {"_id": message.id}, {"$set": {"content": ""}, "$unset": {"metadata.chunks": ""}}
    )
    conversation = await writer.get_conversation(message.conversation_id)
    for read in (await writer.get_message(message.id), (await conversation.messages())[0]):
        assert read.content == "ab"
        assert read.metadata == {"n": 1, "chunks": 2}
    (*_, end) = await collect(writer, message)
    assert end.metadata == {"n": 1, "chunks": 2}  # type: ignore[attr-defined]


async def test_end__text_of_other_writers_is_read_back(facade: Facade) -> None:
    writer = await facade()
    other = await facade(writer.database_name)
    message = await start(writer)
    theirs = await other.get_message(message.id)
    await message.append_chunk("a")
    await theirs.append_chunk("b")
    await message.complete_streaming()
    assert message.content == "ab"
    assert (await other.get_message(message.id)).content == "ab"


# 9. Shard-ready


async def test_shards__checks_name_the_shard_key(facade: Facade, commands: Commands) -> None:
    viewer = await facade(
        change_streams=False, poll_interval=0.01, client_options={"event_listeners": [commands]}
    )
    message = await start(viewer)
    async with (
        viewer.watch_message(message.id),
        viewer.watch_conversation(message.conversation_id),
    ):
        commands.sent.clear()
        checks = viewer.statistics().checks
        await until(lambda: viewer.statistics().checks > checks + 1)
    found = [find["filter"] for find in commands.named("find") if find["find"] == "messages"]
    assert found
    for match in found:
        assert all("conversation_id" in clause for clause in match.get("$or", [match])), match


async def test_shards__listing_what_streams_names_the_shard_key(
    facade: Facade, commands: Commands
) -> None:
    converse = await facade(client_options={"event_listeners": [commands]})
    message = await start(converse)
    await message.append_chunk("a")
    conversation = await converse.get_conversation(message.conversation_id)
    commands.sent.clear()
    assert [found.content for found in await conversation.messages()] == ["a"]
    found = [find["filter"] for find in commands.named("find") if find["find"] == "messages"]
    found = [match for match in found if "compact_at" not in match]  # a look in the background
    assert len(found) == 2
    assert all("conversation_id" in match for match in found), found


# Listings


async def test_listing__leaves_the_chunks_of_ended_messages_in_the_database(
    facade: Facade,
) -> None:
    converse = await facade()
    message = await start(converse)
    await message.append_chunks(["a", "b"])
    await message.complete_streaming()
    conversation = await converse.get_conversation(message.conversation_id)
    streaming = await conversation.start_streaming_assistant()
    await streaming.append_chunk("c")
    ended, growing = await conversation.messages()
    assert (ended.content, ended.next_sequence) == ("ab", 2)
    assert not ended.chunks.is_loaded
    with pytest.raises(ChunksNotLoadedError):
        list(ended.chunks)
    assert growing.content == "c"
    assert [chunk.content for chunk in growing.chunks] == ["c"]


# Classes that an application has bound itself


async def test_documents__bound_by_the_application_stay_where_they_are(
    facade: Facade, client: Any, server_uri: str
) -> None:
    name = f"test_{uuid4().hex[:16]}"
    try:
        await init_beanie(database=client[name], document_models=DOCUMENT_MODELS)
        converse = await facade()
        theirs = await converse.start_conversation()
        assert (theirs.title, theirs.owner, theirs.next_position) == (None, None, 0)
        message = await theirs.start_streaming_assistant()
        await message.append_chunk("b")
        assert (await converse.get_message(message.id)).content == "b"

        own = await Conversation.start("own")
        await own.add_user_message("a")
        assert await client[name]["messages"].count_documents({}) == 1
        database = client[converse.database_name]
        assert await database["messages"].count_documents({}) == 1
        assert await database["conversations"].count_documents({}) == 1
    finally:
        await drop_database(server_uri, name)
