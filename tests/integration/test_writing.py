"""Contract 1 to 4, 6 and 9: what writers are promised."""

import asyncio
import random
from typing import Any

import pytest
from beanie import Document
from bson import ObjectId
from pymongo.errors import AutoReconnect, DuplicateKeyError

from converse_mongo import (
    ConfigurationError,
    ConversationNotFoundError,
    Converse,
    Message,
    MessageCompleted,
    MessageCreated,
    MessageFailed,
    MessageNotFoundError,
    MessageNotStreamingError,
    MessageStatus,
    ProtectedFieldError,
    StoreUnavailableError,
)
from converse_mongo.driver.collections import collection_of
from tests.conftest import Commands, Facade
from tests.integration.helpers import soon
from tests.streams import assert_exact, collect, collect_restlessly


async def start(converse: Converse) -> Message:
    return await (await converse.start_conversation()).start_streaming_assistant()


# 1. Sequences


async def write_many(
    facades: list[Converse], message: Message, writers: int, chunks: int, watchers: int
) -> None:
    """Lets writers and watchers, each with a copy of its own, loose on one message."""
    randomly = random.Random(1)
    total = writers * chunks
    moments = [asyncio.Event() for _ in range(total)]

    async def write(number: int) -> None:
        own = await facades[number % len(facades)].get_message(message.id)
        for turn in range(chunks):
            chunk = await own.append_chunk(f"<{number}.{turn}>")
            moments[chunk.sequence].set()

    async def watch(number: int) -> Any:
        await moments[randomly.randrange(total)].wait()
        watched = facades[number % len(facades)]
        if number % 2:
            return await collect_restlessly(watched, message, random.Random(number))
        return await collect(watched, message)

    watching = [asyncio.create_task(watch(number)) for number in range(watchers)]
    await asyncio.gather(*[write(number) for number in range(writers)])
    await message.complete_streaming()

    stored = await facades[0].get_message(message.id)
    assert [chunk.sequence for chunk in stored.chunks] == list(range(total))
    contents = [chunk.content for chunk in stored.chunks]
    for number in range(writers):
        own = [content for content in contents if content.startswith(f"<{number}.")]
        assert own == [f"<{number}.{turn}>" for turn in range(chunks)]
    for events in await asyncio.gather(*watching):
        assert_exact(events, stored)


async def test_sequences__fifty_writers_and_twenty_watchers(converse: Converse) -> None:
    await write_many([converse], await start(converse), writers=50, chunks=3, watchers=20)


async def test_sequences__writers_that_do_not_know_each_other(facade: Facade) -> None:
    first = await facade()
    facades = [first, *[await facade(first.database_name) for _ in range(4)]]
    await write_many(facades, await start(first), writers=10, chunks=8, watchers=10)


# 2. Acknowledged is stored


async def test_acknowledged__is_in_every_later_read_and_watcher(facade: Facade) -> None:
    writer = await facade()
    reader = await facade(writer.database_name)
    message = await start(writer)
    async with reader.watch_message(message.id) as events:
        for number in range(30):
            chunk = await message.append_chunk(f"{number} ", {"n": number})
            read = await reader.get_message(message.id)
            assert read.chunks[-1] == chunk
            assert read.content == message.content
            assert (await anext(events)).chunk == chunk


async def test_acknowledged__unacknowledged_clients_are_refused(server_uri: str) -> None:
    with pytest.raises(ConfigurationError, match="w=0"):
        await Converse(server_uri, database="test", client_options={"w": 0}).open()


# 3. Once


class Faulty:
    """A collection whose answers get lost: before or after the call has reached the server."""

    def __init__(self, collection: Any, call: str, *, applied: bool, times: int = 1) -> None:
        self._collection = collection
        self._call = call
        self._applied = applied
        self.left = times

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._collection, name)
        if name != self._call:
            return found

        async def lose(*arguments: Any, **options: Any) -> Any:
            if not self.left:
                return await found(*arguments, **options)
            self.left -= 1
            if self._applied:
                await found(*arguments, **options)
            raise AutoReconnect("connection closed")

        # Motor's methods are no coroutine functions, either.
        return lambda *arguments, **options: asyncio.ensure_future(lose(*arguments, **options))


def break_messages(converse: Converse, call: str, **options: Any) -> Faulty:
    store = converse.message_model.store()
    broken = store.messages = Faulty(store.messages, call, **options)
    return broken


@pytest.mark.parametrize("applied", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("times", [1, 3])
async def test_once__answer_of_an_append_is_lost(
    converse: Converse, applied: bool, times: int
) -> None:
    message = await start(converse)
    await message.append_chunk("a")
    broken = break_messages(converse, "update_one", applied=applied, times=times)
    chunks = await message.append_chunks(["b", "c"])
    assert broken.left == 0
    assert [(chunk.sequence, chunk.content) for chunk in chunks] == [(1, "b"), (2, "c")]
    await message.append_chunk("d")
    stored = await converse.get_message(message.id)
    assert stored.content == message.content == "abcd"
    assert stored.next_sequence == 4


async def test_once__another_writer_came_in_between(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await start(converse)
    theirs = await other.get_message(message.id)
    break_messages(converse, "update_one", applied=True)
    append = asyncio.create_task(message.append_chunk("mine"))
    await asyncio.sleep(0)
    await theirs.append_chunk("theirs")
    await append
    await message.append_chunk("more")
    stored = await other.get_message(message.id)
    assert sorted(chunk.content for chunk in stored.chunks) == ["mine", "more", "theirs"]
    assert [chunk.sequence for chunk in stored.chunks] == [0, 1, 2]


@pytest.mark.parametrize("applied", [True, False], ids=["after", "before"])
async def test_once__an_append_given_up_is_tried_again(facade: Facade, applied: bool) -> None:
    converse = await facade(retry_timeout=0.1)
    message = await start(converse)
    await message.append_chunk("a")
    break_messages(converse, "update_one", applied=applied, times=1000)
    with pytest.raises(StoreUnavailableError, match="append_id") as raised:
        await message.append_chunk("b")
    append_id = raised.value.append_id
    assert append_id is not None

    # Somewhere else, and after somebody else has gone on: it is known by its id.
    elsewhere = await facade(converse.database_name)
    theirs = await elsewhere.get_message(message.id)
    await theirs.append_chunk("c")
    for _ in range(2):
        chunk = await theirs.append_chunk("b", append_id=append_id)
        assert chunk.sequence == (1 if applied else 2)
    stored = await elsewhere.get_message(message.id)
    assert stored.content == ("abc" if applied else "acb")


@pytest.mark.parametrize("applied", [True, False], ids=["after", "before"])
async def test_once__answer_of_an_end_is_lost(converse: Converse, applied: bool) -> None:
    message = await start(converse)
    await message.append_chunk("a")
    break_messages(converse, "update_one", applied=applied)
    await message.complete_streaming({"n": 1})
    stored = await converse.get_message(message.id)
    assert stored.is_completed
    assert stored.metadata == message.metadata == {"n": 1, "chunks": 1}


async def test_once__answer_of_an_insert_is_lost(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    from beanie import Document

    conversation = await converse.start_conversation()
    insert = Document.insert
    lost: list[Document] = []

    async def insert_and_lose(self: Document, *arguments: Any, **options: Any) -> Any:
        await insert(self, *arguments, **options)
        if len(lost) < 2:
            lost.append(self)
            raise AutoReconnect("connection closed")

    monkeypatch.setattr(Document, "insert", insert_and_lose)
    await conversation.add_user_message("a")
    await conversation.add_user_message("b")
    assert len(lost) == 2
    listed = await conversation.messages()
    assert [(message.position, message.content) for message in listed] == [(0, "a"), (1, "b")]


# 4. One end


async def test_end__append_complete_and_fail_race(facade: Facade) -> None:
    facades = [await facade()]
    facades.append(await facade(facades[0].database_name))
    conversation = await facades[0].start_conversation()
    for turn in range(30):
        message = await conversation.start_streaming_assistant()
        copies = [await facades[number % 2].get_message(message.id) for number in range(4)]

        async def append(copy: Message) -> int:
            for stored in range(50):
                try:
                    await copy.append_chunk("x")
                except MessageNotStreamingError:
                    return stored
            return 50

        calls = [copies[0].complete_streaming(), copies[1].fail_streaming("lost")]
        if turn % 2:
            calls.reverse()
        ends = asyncio.gather(*calls, return_exceptions=True)
        appended = await asyncio.gather(append(copies[2]), append(copies[3]))
        results = await ends

        losers = [result for result in results if isinstance(result, Exception)]
        assert [type(loser) for loser in losers] == [MessageNotStreamingError]
        stored = await facades[0].get_message(message.id)
        assert str(stored.id) in str(losers[0])
        assert stored.status.value in str(losers[0])
        assert stored.next_sequence == len(stored.chunks) == sum(appended)
        assert stored.content == "x" * sum(appended)
        assert stored.metadata["chunks"] == sum(appended)
        events = [event async for event in facades[1].watch_message(message.id)]
        assert_exact(events, stored)
        assert isinstance(events[-1], MessageCompleted if stored.is_completed else MessageFailed)


@pytest.mark.parametrize("first", ["complete", "fail"])
async def test_end__a_second_one_changes_nothing(facade: Facade, first: str) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await start(converse)
    theirs = await other.get_message(message.id)
    await message.append_chunk("a")
    if first == "complete":
        await message.complete_streaming({"by": "first"})
    else:
        await message.fail_streaming("first", {"by": "first"})
    before = await converse.message_model.store().messages.find_one({"_id": message.id})
    for call in (
        theirs.complete_streaming({"by": "second"}),
        theirs.fail_streaming("second", {"by": "second"}),
        theirs.append_chunk("b"),
        message.mark_as_error("third"),
    ):
        with pytest.raises(MessageNotStreamingError, match=message.status.value):
            await call
    after = await converse.message_model.store().messages.find_one({"_id": message.id})
    assert after == before
    assert before["metadata"] == {"by": "first", "chunks": 1}


async def test_end__a_flood_of_appends_does_not_hold_it_up(facade: Facade) -> None:
    writer, stopper = await facade(), None
    stopper = await facade(writer.database_name)
    message = await start(writer)

    async def flood() -> None:
        while True:
            await message.append_chunk("x")

    flooding = asyncio.create_task(flood())
    theirs = await stopper.get_message(message.id)
    while (await theirs.refresh()).next_sequence < 20:
        pass
    await theirs.fail_streaming("stopped")
    with pytest.raises(MessageNotStreamingError):
        await flooding


# 6. Nothing is overwritten by accident


async def test_save__of_a_stale_copy_beside_a_writer(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await start(converse)
    stale = await other.get_message(message.id)

    async def write() -> None:
        for number in range(50):
            await message.append_chunk(f"{number} ")
        await message.complete_streaming({"total_tokens": 50})

    async def save() -> None:
        for number in range(50):
            stale.metadata["seen"] = number
            await stale.save()
            await asyncio.sleep(0)

    await asyncio.gather(write(), save())
    stored = await converse.get_message(message.id)
    assert stored.content == "".join(f"{number} " for number in range(50))
    assert stored.next_sequence == len(stored.chunks) == 50
    assert stored.is_completed
    assert stored.metadata == {"seen": 49, "total_tokens": 50, "chunks": 50}
    assert stored.revision == 50


async def test_create__at_a_position_whose_message_is_deleted_meanwhile(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade()
    conversation = await converse.start_conversation()
    gone = await conversation.create_user_message("its counter is not stored")
    messages = collection_of(converse.message_model)
    await collection_of(converse.conversation_model).update_one(
        {"_id": conversation.id}, {"$set": {"next_position": 0}}
    )
    store, collisions = converse.message_model.store(), list[DuplicateKeyError]()
    call = store.call

    async def call_and_delete(*arguments: Any, **options: Any) -> Any:
        try:
            return await call(*arguments, **options)
        except DuplicateKeyError as error:
            collisions.append(error)
            await messages.delete_one({"_id": gone.id})
            raise

    monkeypatch.setattr(store, "call", call_and_delete)
    message = await conversation.create_user_message("next")
    assert message.position == 1
    assert len(collisions) == 1


async def test_save__writes_only_what_changed(facade: Facade) -> None:
    converse = await facade()
    conversation = await converse.start_conversation("old", {"a": 1, "b": 1})
    one = await converse.get_conversation(conversation.id)
    two = await converse.get_conversation(conversation.id)
    await conversation.add_user_message("counts")
    one.title = "new"
    one.metadata["a"] = 2
    await one.save()
    two.metadata["c"] = 3
    del two.metadata["b"]
    await two.save()
    stored = await converse.get_conversation(conversation.id)
    assert stored.title == "new"
    assert stored.metadata == {"a": 2, "c": 3}
    assert stored.next_position == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", MessageStatus.COMPLETED),
        ("next_sequence", 7),
        ("position", 9),
        ("conversation_id", ObjectId()),
        ("content", "other"),
        ("error", "none"),
    ],
)
async def test_save__refuses_fields_of_the_library(
    converse: Converse, name: str, value: object
) -> None:
    message = await start(converse)
    await message.append_chunk("a")
    setattr(message, name, value)
    with pytest.raises(ProtectedFieldError, match=name):
        await message.save()
    stored = await converse.get_message(message.id)
    assert stored.content == "a"
    assert stored.is_streaming


@pytest.mark.parametrize("name", ["status", "content", "next_sequence", "end_id", "chunks.0"])
async def test_update__refuses_fields_of_the_library(converse: Converse, name: str) -> None:
    message = await start(converse)
    await message.append_chunk("a")
    with pytest.raises(ProtectedFieldError):
        await message.set({name: "other"})
    await message.set({"metadata.mine": 1})
    assert message.metadata == {"mine": 1}
    assert (await converse.get_message(message.id)).content == "a"


async def test_update__of_what_is_gone_raises(converse: Converse) -> None:
    message = await start(converse)
    conversation = await converse.get_conversation(message.conversation_id)
    other = await converse.get_conversation(message.conversation_id)
    await (await converse.get_message(message.id)).delete()
    with pytest.raises(MessageNotFoundError):
        await message.set({"metadata.mine": 1})
    await other.delete()
    with pytest.raises(ConversationNotFoundError):
        await conversation.inc({"metadata.n": 1})


async def test_replace__is_refused(converse: Converse) -> None:
    message = await start(converse)
    with pytest.raises(ProtectedFieldError, match="save"):
        await message.replace()


# 9. Shard-ready


async def test_shards__every_write_names_the_shard_key(facade: Facade, commands: Commands) -> None:
    # Without the search for chunks to merge, which is one for all conversations.
    converse = await facade(retention="keep", client_options={"event_listeners": [commands]})
    message = await start(converse)
    await message.append_chunk("a")
    await message.append_chunks(["b", "c"])
    message.metadata["x"] = 1
    await message.save()
    await message.complete_streaming()
    await (await start(converse)).fail_streaming("no")
    await (await converse.get_conversation(message.conversation_id)).messages()

    filters = [
        update["q"]
        for command in commands.named("update")
        if command["update"] == "messages"
        for update in command["updates"]
    ]
    filters += [
        command["filter"] for command in commands.named("find") if command["find"] == "messages"
    ]
    assert len(filters) >= 8
    assert all("conversation_id" in match for match in filters), filters
    inserted = [
        document
        for command in commands.named("insert")
        if command["insert"] == "messages"
        for document in command["documents"]
    ]
    assert len(inserted) == 2
    assert all("conversation_id" in document for document in inserted)


async def test_shards__unique_indexes_begin_with_the_shard_key(converse: Converse) -> None:
    indexes = await collection_of(converse.message_model).index_information()
    unique = [index["key"] for index in indexes.values() if index.get("unique")]
    assert unique
    assert all(key[0][0] == "conversation_id" for key in unique)


# The order of messages


async def test_order__many_processes_add_to_one_conversation(facade: Facade) -> None:
    first = await facade()
    conversation = await first.start_conversation()
    facades = [first, await facade(first.database_name), await facade(first.database_name)]

    async def add(number: int) -> None:
        own = await facades[number % 3].get_conversation(conversation.id)
        for turn in range(10):
            await own.add_user_message(f"{number}.{turn}")

    await asyncio.gather(*[add(number) for number in range(9)])
    orders = [
        [(m.position, m.content) for m in await found.messages()]
        for found in [await each.get_conversation(conversation.id) for each in facades]
    ]
    assert orders[0] == orders[1] == orders[2]
    assert [position for position, _ in orders[0]] == list(range(90))
    for number in range(9):
        own = [content for _, content in orders[0] if content.startswith(f"{number}.")]
        assert own == [f"{number}.{turn}" for turn in range(10)]


async def test_order__a_writer_that_died_before_moving_the_counter_is_helped(
    converse: Converse,
) -> None:
    conversation = await converse.start_conversation()
    await conversation.add_user_message("a")
    await collection_of(converse.conversation_model).update_one(
        {"_id": conversation.id}, {"$set": {"next_position": 0}}
    )
    await conversation.add_user_message("b")
    assert [message.position for message in await conversation.messages()] == [0, 1]
    assert (await conversation.refresh()).next_position == 2


async def test_order__positions_are_not_given_twice_after_a_delete(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.create_user_message("a")
    await message.delete()
    assert (await conversation.create_user_message("b")).position == 1


async def test_order__a_position_whose_counter_was_not_moved_is_not_given_twice(
    converse: Converse,
) -> None:
    conversation = await converse.start_conversation()
    gone = await conversation.create_user_message("its counter is not stored")
    await collection_of(converse.conversation_model).update_one(
        {"_id": conversation.id}, {"$set": {"next_position": 0}}
    )
    async with converse.watch_conversation(conversation.id) as events:
        seen = aiter(events)
        assert (await soon(anext(seen))).message_id == gone.id
        await gone.delete()
        message = await conversation.create_user_message("next")
        assert message.position == 1
        while (event := await soon(anext(seen))).message_id != message.id:
            pass
    assert isinstance(event, MessageCreated)


async def test_order__a_try_that_comes_late_takes_no_position_of_a_deleted_message(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade()
    conversation = await converse.start_conversation()
    elsewhere = await (await facade(converse.database_name)).get_conversation(conversation.id)
    real, gone = Document.insert, list[Message]()

    async def insert(self: Any, **options: Any) -> Any:
        if self.content == "late" and not gone:
            gone.append(await elsewhere.create_user_message("deleted meanwhile"))
            await gone[0].delete()
            raise AutoReconnect("it was never sent")
        return await real(self, **options)

    monkeypatch.setattr(Document, "insert", insert)
    late = await conversation.create_user_message("late")
    assert (gone[0].position, late.position) == (0, 1)


# Limits and what is not there


async def test_limit__sixteen_mebibytes_are_none(converse: Converse) -> None:
    message = await start(converse)
    mebibyte = "x" * 1024 * 1024
    for _ in range(6):
        await message.append_chunks([mebibyte] * 3)
    largest = "x" * (1024 * 1024 - 100)
    await message.complete_streaming({"largest": largest})
    read = await converse.get_message(message.id)
    assert read.is_completed
    assert read.content == mebibyte * 18
    assert read.metadata["chunks"] == len(read.chunks) == 18
    assert sum([len(piece) async for piece in read.iter_content()]) == 18 * 1024 * 1024
    listed = await (await converse.get_conversation(message.conversation_id)).messages()
    assert (listed[0].content, listed[0].content_bytes) == ("", 18 * 1024 * 1024)


async def test_append__to_a_message_that_is_gone(converse: Converse) -> None:
    message = await start(converse)
    await message.delete()
    with pytest.raises(MessageNotFoundError):
        await message.append_chunk("x")
    with pytest.raises(MessageNotFoundError):
        await message.complete_streaming()
