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
    MessageCompleted,
    MessageCreated,
    OwnerWatcher,
)
from converse_mongo.driver.collections import collection_of
from converse_mongo.watching import hub, owner_topic
from converse_mongo.watching.owner_reader import OwnerReader
from tests.conftest import Commands, Facade
from tests.integration.test_owners import (
    ADA,
    EVE,
    NEVER,
    OFTEN,
    end,
    soon,
    take,
    topic_of,
    watching,
)
from tests.streams import until


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
    answer = await given.start_streaming_assistant()
    async with watching(viewer) as watcher:
        first = await end(ADA, writer)  # from here on only changes tell
        assert (await soon(watcher)).conversation_id == first
        await give(given, EVE)
        assert await soon(watcher) == ConversationDeleted(conversation_id=given.id)
        assert given.id not in viewer._open_parts.hub._registry.owner_routes.topics
        assert answer.id not in viewer._open_parts.hub._registry.owner_routes.topics
        commands.sent.clear()
        await given.add_user_message("a secret")
        await answer.complete_streaming()
        last = await end(ADA, writer)
        assert (await soon(watcher)).conversation_id == last
        assert str(given.id) not in str(commands.named("find"))  # and nothing is read of it


async def test_owner__forgets_what_is_gone_but_tells_who_is_slow(facade: Facade) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **NEVER)
    known = await writer.start_conversation(owner=ADA)
    async with watching(viewer) as slow, watching(viewer) as fast:
        answer = await known.start_streaming_assistant()
        assert isinstance(await soon(fast), MessageCreated)
        await known.delete()
        assert isinstance(await soon(fast), ConversationDeleted)
        for _ in range(10):
            await (await writer.start_conversation(owner=ADA)).delete()
        last = await end(ADA, writer)
        while (event := await soon(fast)).conversation_id != last:
            assert isinstance(event, ConversationCreated | ConversationDeleted)
        topic, registry = topic_of(fast), viewer._open_parts.hub._registry
        await until(lambda: not topic.dirty)
        assert list(topic.state) == list(registry.owner_routes.topics) == [last]
        created, gone = await soon(slow), await soon(slow)
        assert isinstance(created, MessageCreated)
        assert created.message_id == answer.id
        assert gone == ConversationDeleted(conversation_id=known.id)
    assert registry.owner_routes.topics == {}


async def test_owner__hears_of_what_was_added_while_it_was_away(facade: Facade) -> None:
    converse = await facade(**NEVER)
    conversation = await converse.start_conversation(owner=ADA)
    async with watching(converse) as watcher:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(watcher)
        assert converse.statistics().watchers == 0
        answer = await conversation.start_streaming_assistant()
        await answer.complete_streaming()
        assert isinstance(await soon(watcher), MessageCreated)
        assert isinstance(await soon(watcher), MessageCompleted)


async def test_owner__hears_of_an_end_while_it_was_away(facade: Facade) -> None:
    converse = await facade(**NEVER)
    conversation = await converse.start_conversation(owner=ADA)
    answer = await conversation.start_streaming_assistant()
    async with watching(converse) as watcher:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(watcher)
        await answer.complete_streaming()
        assert isinstance(await soon(watcher), MessageCompleted)


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


async def test_owner__of_many_hears_on_of_one_that_others_do_not_know(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window begins with such a conversation later than who has watched it for long."""
    monkeypatch.setattr(owner_topic, "MAX_CONVERSATIONS", 3)
    converse = await facade(**NEVER)
    old, *others = [await converse.start_conversation(owner=ADA) for _ in range(3)]
    async with watching(converse) as watcher:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(watcher)
        for other in (*others, await converse.start_conversation(owner=ADA)):
            await other.add_user_message("Hello")
        assert len(await take(watcher, MessageCreated, count=3)) == 4
        assert old.id not in topic_of(watcher).state
        await old.add_user_message("Hello")
        topic_of(watcher).mark_stale()
        created = await soon(watcher)
        assert isinstance(created, MessageCreated)
        assert (created.conversation_id, created.position) == (old.id, 0)


# Waits and floods


async def test_owner__keeps_what_it_has_yet_to_read_once(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **NEVER)
    conversations = [await writer.start_conversation(owner=ADA) for _ in range(5)]
    async with watching(viewer) as watcher, watching(viewer):  # of whom one does not listen
        for conversation in conversations:
            await conversation.add_user_message("Hello")
        await until(lambda: len(topic_of(watcher).dirty) == 5)
        read, stuck = OwnerReader.rows, asyncio.Event()

        async def read_slowly(self: Any, *places: Any) -> Any:
            stuck.set()
            await asyncio.sleep(3600)

        with monkeypatch.context() as patch:
            patch.setattr(OwnerReader, "rows", read_slowly)
            for _ in range(4):
                stuck.clear()
                waiting = asyncio.create_task(soon(watcher))
                await stuck.wait()
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
        assert OwnerReader.rows is read
        events = await take(watcher, MessageCreated, count=5)
        last = await end(ADA, writer)
        assert (await soon(watcher)).conversation_id == last
        assert {event.conversation_id for event in events} == {each.id for each in conversations}


async def test_owner__hears_of_the_others_in_a_flood_of_news(facade: Facade) -> None:
    converse = await facade(**NEVER)
    busy, quiet = [await converse.start_conversation(owner=ADA) for _ in range(2)]
    async with watching(converse) as watcher:

        async def flood() -> None:
            while True:
                topic_of(watcher).tell(busy.id)
                await asyncio.sleep(0)

        flooding = asyncio.create_task(flood())
        for number in range(3):
            await quiet.add_user_message(str(number))
            created = await soon(watcher)
            assert isinstance(created, MessageCreated)
            assert created.content == str(number)
        async with converse.watch_owner(ADA):  # and who comes gets in
            pass
        flooding.cancel()


async def test_owner__is_told_of_what_happens_while_it_finds_out_what_streams(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hints of a message do not say whose it is, until it was found to stream."""
    converse = await facade(**NEVER)
    conversation = await converse.start_conversation(owner=ADA)
    answer = await conversation.start_streaming_assistant()
    read = OwnerReader.streaming

    async def read_late(self: OwnerReader, ids: list[ObjectId]) -> Any:
        found = await read(self, ids)
        if not ids or "Hello" in [each.content for each in await conversation.messages()]:
            return found
        await until(lambda: converse.statistics().streams_opened > 0)
        before = converse.statistics().changes
        await answer.complete_streaming()
        await conversation.add_user_message("Hello")
        await until(lambda: converse.statistics().changes >= before + 2)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(OwnerReader, "streaming", read_late)
        watcher = await converse.watch_owner(ADA).__aenter__()
    async with watcher:
        assert topic_of(watcher).state == {conversation.id: owner_topic.Known(0, 2)}
        last = await end(ADA, converse)
        assert (await soon(watcher)).conversation_id == last


async def test_owner__hears_of_a_message_that_its_conversation_does_not_count(
    facade: Facade,
) -> None:
    """As where a writer dies between the message and the counter."""
    converse = await facade(**NEVER)
    conversation = await converse.start_conversation(owner=ADA)
    async with watching(converse) as watcher:
        await conversation.add_user_message("one")
        assert isinstance(await soon(watcher), MessageCreated)
        messages = collection_of(converse.message_model)
        stored = await messages.find_one({"conversation_id": conversation.id})
        assert stored is not None
        await messages.insert_one({**stored, "_id": ObjectId(), "position": 1, "content": "two"})
        created = await soon(watcher)
        assert isinstance(created, MessageCreated)
        assert (created.position, created.content) == (1, "two")


async def test_owner__hears_on_of_what_no_change_told(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(**NEVER)
    async with watching(converse) as watcher:
        with monkeypatch.context() as patch:
            unheard: list[Any] = []
            patch.setattr(hub.Hub, "_take", lambda _self, change: unheard.append(change))
            conversation = await converse.start_conversation(owner=ADA)
            answer = await conversation.start_streaming_assistant()
            await until(lambda: len(unheard) > 1)
            topic_of(watcher).mark_stale()
            assert isinstance(await soon(watcher), ConversationCreated)
            assert isinstance(await soon(watcher), MessageCreated)
        await answer.complete_streaming()
        assert isinstance(await soon(watcher), MessageCompleted)
        await conversation.add_user_message("Hello")
        assert isinstance(await soon(watcher), MessageCreated)


async def test_owner__whose_cancellation_was_swallowed_does_not_wait(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As asyncio.wait_for of Python 3.11 does, where what it waits for ends at that moment."""
    converse = await facade(**NEVER)
    conversation = await converse.start_conversation(owner=ADA)
    read = OwnerReader.conversations

    async def swallow(self: Any, ids: Any) -> Any:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return await read(self, ids)

    async with watching(converse) as watcher:
        with monkeypatch.context() as patch:
            patch.setattr(OwnerReader, "conversations", swallow)
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
        commands.sent.clear()
        await conversation.add_user_message("Hello")
        assert {event.type for event in await asyncio.gather(*waiting)} == {"message.created"}
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
        await until(lambda: topic_of(watcher).hints == 2)
        updated = await soon(watcher)
        assert isinstance(updated, ConversationUpdated)
        assert (updated.title, updated.revision) == ("three", 2)
        last = await end(ADA, converse)
        created = await soon(watcher)
        assert isinstance(created, ConversationCreated)
        assert created == replace(created, conversation_id=last)
