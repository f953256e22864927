"""Watchers of an owner when something is wrong, slow, strange, too much, or in the way."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo import (
    Conversation,
    ConversationCreated,
    ConversationDeleted,
    ConversationUpdated,
    Converse,
    ConverseClosedError,
    MessageCreated,
    MessageUpdated,
    OwnerEvent,
    OwnerWatcher,
)
from converse_mongo.driver.collections import collection_of
from converse_mongo.watching import hub, owner_topic, owner_watcher
from converse_mongo.watching.registry import TopicRegistry
from tests.conftest import Commands, Facade
from tests.integration.test_owners import ADA, EVE, NEVER, OFTEN, end, soon, take, watching
from tests.streams import sequences, until

POLLING: dict[str, Any] = {**OFTEN, "change_streams": False}


def topic_of(watcher: OwnerWatcher) -> owner_topic.OwnerTopic:
    assert watcher._topic is not None
    return watcher._topic


async def give(conversation: Conversation, owner: tuple[str, str]) -> None:
    conversation.owner = type(conversation)(owner=owner).owner
    await conversation.save()


# What is not theirs any more


async def test_owner__hears_nothing_of_what_was_given_away(
    facade: Facade, commands: Commands
) -> None:
    writer = await facade()
    options = {**NEVER, "client_options": {"event_listeners": [commands]}}
    viewer = await facade(writer.database_name, **options)
    given = await writer.start_conversation(owner=ADA)
    message = await given.create_user_message("mine")
    async with watching(viewer) as watcher:
        first = await end(ADA, writer)  # from here on only changes tell
        assert (await soon(watcher)).conversation_id == first
        message.metadata = {"saved": "before"}  # told too late to be news of theirs
        await message.save()
        await give(given, EVE)
        await until(lambda: given.id in topic_of(watcher)._news)
        assert isinstance(await soon(watcher), ConversationDeleted)
        commands.sent.clear()
        message.metadata = {"saved": "after"}
        await message.save()
        await given.add_user_message("a secret")
        waiting = asyncio.create_task(soon(watcher))
        await until(lambda: topic_of(watcher).window.waiting == 1)  # it has nothing left to tell
        last = await end(ADA, writer)
        assert (await waiting).conversation_id == last
        assert str(given.id) not in str(commands.named("find"))  # and nothing is read of it


async def test_owner__forgets_what_is_gone_but_tells_who_is_slow(facade: Facade) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **NEVER)
    known = await writer.start_conversation(owner=ADA)
    async with watching(viewer) as slow, watching(viewer) as fast:
        await known.delete()
        for _ in range(10):
            await (await writer.start_conversation(owner=ADA)).delete()
        assert isinstance(await soon(fast), ConversationDeleted)
        topic, hub = topic_of(fast), viewer._open_parts.hub
        await until(lambda: topic.serial == 21)
        for _ in range(3):
            async with viewer.watch_owner(ADA):  # compares all
                pass
        assert (topic._news, topic._marks, hub._registry._owned) == ({}, {}, {})
        last = await end(ADA, writer)
        assert (await soon(fast)).conversation_id == last
        assert await soon(slow) == ConversationDeleted(conversation_id=known.id)
        assert (await soon(slow)).conversation_id == last


async def test_owner__hears_of_what_was_added_while_it_was_away(facade: Facade) -> None:
    converse = await facade(**NEVER)
    conversation = await converse.start_conversation(owner=ADA)
    async with watching(converse) as watcher:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(watcher)
        assert converse.statistics().watchers == 0
        await conversation.add_user_message("Hello")
        assert isinstance(await soon(watcher), MessageCreated)


async def test_owner__of_many_hears_of_a_deletion_while_it_was_away(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_topic, "MAX_CONVERSATIONS", 3)
    converse = await facade(**OFTEN)
    conversations = [await converse.start_conversation(owner=ADA) for _ in range(5)]
    async with watching(converse) as watcher:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(watcher)
        await conversations[4].delete()
        (deleted,) = [
            event
            for event in await take(watcher, ConversationDeleted)
            if not isinstance(event, ConversationUpdated)  # the next one is known by now
        ]
        assert deleted.conversation_id == conversations[4].id


# Saves


async def test_owner__is_told_of_a_save_with_a_cursor_that_leads_on(facade: Facade) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **NEVER)
    conversation = await writer.start_conversation(owner=ADA)
    message = await conversation.create_user_message("Hello")
    async with watching(viewer) as watcher:
        message.metadata = {"n": 1}
        await message.save()
        (updated,) = await take(watcher, MessageUpdated)
        assert updated.cursor == f"{conversation.id}.1"
        answer = await conversation.start_streaming_assistant()
        assert isinstance(await soon(watcher), MessageCreated)
        message.metadata = {"n": 2}
        await message.save()
        (updated,) = await take(watcher, MessageUpdated)
        assert updated.cursor == f"{conversation.id}.2.1-0"
    await answer.append_chunk("a")
    async with viewer.watch_conversation(conversation.id, updated.cursor) as events:
        assert sequences([await anext(events)]) == [0]


async def test_owner__is_told_of_a_save_once(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_watcher, "SAVES_KNOWN", 4)
    monkeypatch.setattr(owner_topic, "SAVES_KEPT", 4)
    writer = await facade()
    viewer = await facade(writer.database_name, **NEVER)
    conversation = await writer.start_conversation(owner=ADA)
    messages = [await conversation.create_user_message("Hello") for _ in range(5)]
    seen: list[OwnerEvent] = []
    async with watching(viewer) as watcher:

        async def listen() -> None:
            async for event in watcher:
                seen.append(event)
                if isinstance(event, MessageUpdated):
                    await saved.wait()

        saved = asyncio.Event()
        listening = asyncio.create_task(listen())
        await conversation.add_user_message("From now on it is watched.")
        await until(lambda: viewer.statistics().watchers == 2)
        await until(lambda: topic_of(watcher).window.waiting > 0)
        for message in (*messages[:4], messages[0], messages[4]):
            message.metadata = {"n": message.revision}
            await message.save()
        await until(lambda: topic_of(watcher).window.head == 6)
        saved.set()
        last = await end(ADA, writer)
        await until(lambda: seen[-1].conversation_id == last)
        listening.cancel()
    told = [(e.message_id, e.revision) for e in seen if isinstance(e, MessageUpdated)]
    assert len(told) == len(set(told)) == 6


# Waits and floods


async def test_owner__keeps_what_it_has_yet_to_read_once(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **NEVER)
    conversations = [await writer.start_conversation(owner=ADA) for _ in range(5)]
    async with watching(viewer) as watcher:
        for conversation in conversations:
            await conversation.add_user_message("Hello")
        await until(lambda: topic_of(watcher).serial == 5)
        read = owner_topic.OwnerReader.conversations

        async def read_slowly(self: Any, ids: Any) -> Any:
            await asyncio.sleep(0.5)
            return await read(self, ids)

        with monkeypatch.context() as patch:
            patch.setattr(owner_topic.OwnerReader, "conversations", read_slowly)
            for _ in range(4):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await anext(watcher)
                assert len(watcher._backlog) <= 5
        events = await take(watcher, MessageCreated, count=5)
        last = await end(ADA, writer)
        assert (await soon(watcher)).conversation_id == last
        assert {event.conversation_id for event in events} == {each.id for each in conversations}


async def test_owner__hears_of_messages_in_a_flood_of_news(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(**NEVER)
    busy, quiet = [await converse.start_conversation(owner=ADA) for _ in range(2)]
    answer = await quiet.start_streaming_assistant()
    read = owner_topic.OwnerReader.conversations

    async def read_slowly(self: Any, ids: Any) -> Any:
        await asyncio.sleep(0.005)
        return await read(self, ids)

    monkeypatch.setattr(owner_topic.OwnerReader, "conversations", read_slowly)
    async with watching(converse) as watcher:

        async def flood() -> None:
            while True:
                topic_of(watcher).tell(busy.id)
                await asyncio.sleep(0.001)

        flooding = asyncio.create_task(flood())
        await answer.append_chunks(["a", "b", "c"])
        assert sequences([await soon(watcher) for _ in range(3)]) == [0, 1, 2]
        flooding.cancel()


async def test_owner__leads_to_what_the_conversation_has_not_heard_of(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(**NEVER)
    conversation = await converse.start_conversation(owner=ADA)
    monkeypatch.setattr(TopicRegistry, "_topics_of", lambda _self, _hint: set())  # they are deaf
    async with watching(converse) as watcher:
        for position in range(3):
            await conversation.add_user_message("Hello")
            created = await soon(watcher)
            assert isinstance(created, MessageCreated)
            assert created.position == position


async def test_owner__hears_on_of_what_no_change_told(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(**NEVER)
    async with watching(converse) as watcher:
        with monkeypatch.context() as patch:
            unheard: list[Any] = []
            patch.setattr(hub.Hub, "_take", lambda _self, change: unheard.append(change))
            conversation = await converse.start_conversation(owner=ADA)
            await until(lambda: len(unheard) > 0)
            topic_of(watcher).mark_stale()
            assert isinstance(await soon(watcher), ConversationCreated)
        await conversation.add_user_message("Hello")
        assert isinstance(await soon(watcher), MessageCreated)


async def test_news__of_a_message_are_not_lost_in_others(facade: Facade) -> None:
    converse = await facade(**NEVER)
    conversation_id = ObjectId()
    async with watching(converse) as watcher:
        topic = topic_of(watcher)
        topic.tell(conversation_id, said=True)
        topic.tell(conversation_id)
        # The counter of the conversation may be behind an insert for a moment.
        assert topic.news_after(0, 10)[conversation_id].said


async def test_owner__whose_cancellation_was_swallowed_does_not_wait(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As asyncio.wait_for of Python 3.11 does, where what it waits for ends at that moment."""
    converse = await facade(**NEVER)
    conversation = await converse.start_conversation(owner=ADA)
    read = owner_topic.OwnerReader.conversations

    async def swallow(self: Any, ids: Any) -> Any:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return await read(self, ids)

    async with watching(converse) as watcher:
        with monkeypatch.context() as patch:
            patch.setattr(owner_topic.OwnerReader, "conversations", swallow)
            topic_of(watcher).tell(conversation.id)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await anext(watcher)
        last = await end(ADA, converse)
        assert (await soon(watcher)).conversation_id == last


async def test_owner__closed_at_any_moment_leaves_nothing(facade: Facade) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **OFTEN)
    conversations = [await writer.start_conversation(owner=ADA) for _ in range(3)]
    randomly = random.Random(7)

    async def listen(watcher: OwnerWatcher) -> int:
        return len([event async for event in watcher])

    async def talk() -> None:
        while True:
            answer = await randomly.choice(conversations).start_streaming_assistant()
            await answer.append_chunks(["a", "b"])
            await answer.complete_streaming()

    talking = asyncio.create_task(talk())
    for _ in range(40):
        watcher = viewer.watch_owner(ADA)
        listening = asyncio.create_task(listen(watcher))
        await asyncio.sleep(randomly.uniform(0, 0.03))
        await watcher.aclose()
        async with asyncio.timeout(5):
            await listening
        assert viewer.statistics().watchers == viewer.statistics().topics == 0
    talking.cancel()


# Strangers in the database


@pytest.mark.parametrize(
    "strange",
    [
        {"owner": {"type": "user", "id": {"a": 1}}},
        {"owner": {"type": ["user"], "id": "ada"}},
        {"owner": "ada"},
        {"_id": {"a": 1}, "owner": {"type": "user", "id": "eve"}},
        {"owner": {"type": "user", "id": "ada"}, "updated_at": "now", "created_at": "now"},
        {"message": True, "_id": {"a": 1}, "conversation_id": 1},
        {"message": True, "conversation_id": {"a": 1}, "position": 1},
    ],
    ids=str,
)
async def test_owner__hears_on_when_a_strange_document_comes(
    facade: Facade, strange: dict[str, Any]
) -> None:
    converse = await facade(check_interval=0.02)
    conversation = await converse.start_conversation(owner=ADA)
    strange = dict(strange)
    model = converse.message_model if strange.pop("message", False) else converse.conversation_model
    async with watching(converse) as watcher:
        await collection_of(model).insert_one(strange)
        await conversation.add_user_message("Hello")
        assert isinstance((await take(watcher, MessageCreated))[-1], MessageCreated)
        async with converse.watch_owner(ADA) as another:
            await conversation.add_user_message("Hello")
            assert isinstance(await soon(another), MessageCreated)


Break = Callable[[Any, Any, ObjectId, ObjectId], Any]


async def without_position(messages: Any, _: Any, message: ObjectId, __: ObjectId) -> None:
    await messages.update_one({"_id": message}, {"$unset": {"position": 1}})


async def of_no_role(messages: Any, _: Any, message: ObjectId, __: ObjectId) -> None:
    await messages.update_one({"_id": message}, {"$set": {"role": "nobody"}})


async def without_counter(messages: Any, _: Any, message: ObjectId, __: ObjectId) -> None:
    await messages.update_one({"_id": message}, {"$unset": {"next_sequence": 1}})


async def without_end(_: Any, conversations: Any, __: ObjectId, conversation: ObjectId) -> None:
    await conversations.update_one({"_id": conversation}, {"$unset": {"next_position": 1}})


async def set_back(messages: Any, conversations: Any, _: ObjectId, conversation: ObjectId) -> None:
    await messages.delete_many({"conversation_id": conversation})
    await conversations.update_one({"_id": conversation}, {"$set": {"next_position": 0}})
    await conversations.update_one({"_id": conversation}, {"$inc": {"revision": 1}})
    await messages.insert_one(
        {"conversation_id": conversation, "position": 0, "role": "user", "status": "completed"}
    )


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize(
    "spoil", [without_position, of_no_role, without_counter, without_end, set_back]
)
async def test_owner__hears_of_the_others_when_a_conversation_is_broken(
    facade: Facade, spoil: Break, when: str
) -> None:
    converse = await facade(check_interval=0.02)
    broken, sound = [await converse.start_conversation(owner=ADA) for _ in range(2)]
    await broken.add_user_message("Hello")
    answer = await broken.start_streaming_assistant()
    messages = collection_of(converse.message_model)
    conversations = collection_of(converse.conversation_model)
    if when == "before":
        await spoil(messages, conversations, answer.id, broken.id)
    async with watching(converse) as watcher:
        if when == "meanwhile":
            await spoil(messages, conversations, answer.id, broken.id)
        for number in range(10):
            await sound.create_user_message(str(number))
            while True:
                event = await soon(watcher)
                if event.conversation_id == sound.id:
                    break
            assert isinstance(event, MessageCreated)
            assert event.content == str(number)


# Many


async def test_owner__with_many_watchers_is_read_once_for_all(
    facade: Facade, commands: Commands
) -> None:
    writer = await facade()
    options = {**NEVER, "client_options": {"event_listeners": [commands]}}
    viewer = await facade(writer.database_name, **options)
    conversation = await writer.start_conversation(owner=ADA)
    async with contextlib.AsyncExitStack() as stack:
        watchers = [await stack.enter_async_context(watching(viewer)) for _ in range(20)]
        waiting = [asyncio.create_task(soon(each)) for each in watchers]
        await until(lambda: topic_of(watchers[0]).window.waiting == 20)
        commands.sent.clear()
        conversation.title = "A title"
        await conversation.save()
        events = await asyncio.gather(*waiting)
        assert {(event.type, event.conversation_id) for event in events} == {
            ("conversation.updated", conversation.id)
        }
        assert len(commands.named("find")) < 5
        waiting = [asyncio.create_task(soon(each)) for each in watchers]
        conversation.title = "Another"
        await conversation.save()
        for event in await asyncio.gather(*waiting):
            assert isinstance(event, ConversationUpdated)
            assert event.title == "Another"  # what was read for the news before is not enough


async def test_owners__are_not_all_compared_in_full_at_once(facade: Facade) -> None:
    converse = await facade(**NEVER)
    async with contextlib.AsyncExitStack() as stack:
        watchers = [
            await stack.enter_async_context(converse.watch_owner(("user", number)))
            for number in range(60)
        ]
        for _ in range(owner_topic.CHECKS_PER_FULL_CHECK):
            due = [topic_of(each).due() for each in watchers]
            assert due.count(None) < 30
            for each in watchers:
                topic_of(each).stale = False


async def test_owner__cannot_be_entered_when_the_facade_has_closed(facade: Facade) -> None:
    converse: Converse = await facade()
    watcher = converse.watch_owner(ADA)
    await converse.aclose()
    with pytest.raises(ConverseClosedError):
        await watcher.__aenter__()


async def test_owner__is_told_the_last_of_several_saves(facade: Facade) -> None:
    converse = await facade(**NEVER)
    conversation = await converse.start_conversation("one", owner=ADA)
    async with watching(converse) as watcher:
        for title in ("two", "three"):
            conversation.title = title
            await conversation.save()
        await until(lambda: topic_of(watcher).serial == 2)
        updated = await soon(watcher)
        assert isinstance(updated, ConversationUpdated)
        assert (updated.title, updated.revision) == ("three", 2)
        last = await end(ADA, converse)
        created = await soon(watcher)
        assert isinstance(created, ConversationCreated)
        assert created == replace(created, conversation_id=last)
