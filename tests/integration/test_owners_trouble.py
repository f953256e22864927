"""Watchers of an owner when something is wrong, slow, strange, too much, or in the way."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import AutoReconnect

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
from converse_mongo.domain.validation import now
from converse_mongo.driver.collections import collection_of
from converse_mongo.watching import hub, owner_feed
from converse_mongo.watching.doubts import OutdatedReadError
from converse_mongo.watching.owner_reader import OwnerReader
from tests.conftest import Commands, Facade
from tests.integration.helpers import NEVER, OFTEN, soon
from tests.integration.owners import ADA, EVE, end, feed_of, take, watching
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
        for _ in range(2):  # after which nothing else is to be read
            first = await end(ADA, writer)
            assert (await soon(anext(watcher))).conversation_id == first
        await give(given, EVE)
        assert await soon(anext(watcher)) == ConversationDeleted(conversation_id=given.id)
        assert given.id not in viewer._open_parts.hub._registry.owner_routes.feeds
        assert answer.id not in viewer._open_parts.hub._registry.owner_routes.feeds
        commands.sent.clear()
        await given.add_user_message("a secret")
        await answer.complete_streaming()
        last = await end(ADA, writer)
        assert (await soon(anext(watcher))).conversation_id == last
        assert str(given.id) not in str(commands.named("find"))  # and nothing is read of it


async def test_owner__forgets_what_is_gone_but_tells_who_is_slow(facade: Facade) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **NEVER)
    known = await writer.start_conversation(owner=ADA)
    async with watching(viewer) as slow, watching(viewer) as fast:
        await known.start_streaming_assistant()
        assert isinstance(await soon(anext(fast)), MessageCreated)
        await known.delete()
        assert isinstance(await soon(anext(fast)), ConversationDeleted)
        for _ in range(10):
            await (await writer.start_conversation(owner=ADA)).delete()
        last = await end(ADA, writer)
        while (event := await soon(anext(fast))).conversation_id != last:
            assert isinstance(event, ConversationCreated | ConversationDeleted)
        feed, routes = feed_of(fast), viewer._open_parts.hub._registry.owner_routes
        await until(lambda: not feed.dirty)
        assert list(feed.known) == [last]
        assert {key for key, feeds in routes.feeds.items() if feed in feeds} == {ADA, last}
        # Of what was added to it, nothing can be read any more.
        assert await soon(anext(slow)) == ConversationDeleted(conversation_id=known.id)
        assert (await soon(anext(slow))).conversation_id == last
    assert routes.feeds == {}


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
        assert isinstance(await soon(anext(watcher)), MessageCreated)
        assert isinstance(await soon(anext(watcher)), MessageCompleted)


async def test_owner__hears_of_an_end_while_it_was_away(facade: Facade) -> None:
    converse = await facade(**NEVER)
    conversation = await converse.start_conversation(owner=ADA)
    answer = await conversation.start_streaming_assistant()
    async with watching(converse) as watcher:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(watcher)
        await answer.complete_streaming()
        assert isinstance(await soon(anext(watcher)), MessageCompleted)


async def test_owner__of_many_hears_of_a_deletion_while_it_was_away(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_feed, "MAX_CONVERSATIONS", 3)
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
    monkeypatch.setattr(owner_feed, "MAX_CONVERSATIONS", 3)
    converse = await facade(**NEVER)
    old, *others = [await converse.start_conversation(owner=ADA) for _ in range(3)]
    async with watching(converse) as watcher:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(watcher)
        for other in (*others, await converse.start_conversation(owner=ADA)):
            await other.add_user_message("Hello")
        assert len(await take(watcher, MessageCreated, count=3)) == 4
        async with watching(converse) as newcomer:
            await old.add_user_message("Hello")
            created = await soon(anext(watcher))
            assert isinstance(created, MessageCreated)
            assert (created.conversation_id, created.position) == (old.id, 0)
            assert old.id in feed_of(watcher).known
            assert old.id not in feed_of(newcomer).known


async def test_owner__hears_of_no_more_unknown_conversations_than_it_may_keep(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_feed, "MAX_CONVERSATIONS", 3)
    writer = await facade()
    viewer = await facade(writer.database_name, **NEVER)
    async with watching(viewer) as slow:
        first = await end(ADA, writer)
        assert (await soon(anext(slow))).conversation_id == first  # from here on only hints tell
        kept = []
        for _ in range(10):
            await (await writer.start_conversation(owner=ADA)).delete()
            kept.append(await writer.start_conversation(owner=ADA))
        await until(lambda: feed_of(slow).hints == 21)
        assert len(feed_of(slow).dirty) == 3 + 1  # of which one stands for all
        created = [await soon(anext(slow)) for _ in kept]
        assert {each.type for each in created} == {"conversation.created"}
        assert {each.conversation_id for each in created} == {each.id for each in kept}
        last = await end(ADA, writer)
        assert (await soon(anext(slow))).conversation_id == last


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
        await until(lambda: len(feed_of(watcher).dirty) == 5 + 1)  # of which one stands for all
        read, stuck = OwnerReader.news, asyncio.Event()

        async def read_slowly(self: Any, *places: Any) -> Any:
            stuck.set()
            await asyncio.sleep(3600)

        with monkeypatch.context() as patch:
            patch.setattr(OwnerReader, "news", read_slowly)
            for _ in range(4):
                stuck.clear()
                waiting = asyncio.create_task(soon(anext(watcher)))
                await stuck.wait()
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
        assert OwnerReader.news is read
        events = await take(watcher, MessageCreated, count=5)
        last = await end(ADA, writer)
        assert (await soon(anext(watcher))).conversation_id == last
        assert {event.conversation_id for event in events} == {each.id for each in conversations}


async def test_owner__reads_again_what_could_not_be_read(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(**NEVER)
    conversation = await converse.start_conversation(owner=ADA)
    read, failures = OwnerReader.news, [AutoReconnect("a test"), OutdatedReadError()]

    async def fail(self: OwnerReader, asked: Any) -> Any:
        if failures:
            raise failures.pop()
        return await read(self, asked)

    async with watching(converse) as watcher:
        await conversation.add_user_message("one")
        assert isinstance(await soon(anext(watcher)), MessageCreated)
        monkeypatch.setattr(OwnerReader, "news", fail)
        await conversation.add_user_message("two")
        created = await soon(anext(watcher))
        assert isinstance(created, MessageCreated)
        assert (created.content, failures) == ("two", [])


async def test_owner__hears_of_the_others_in_a_flood_of_news(facade: Facade) -> None:
    converse = await facade(**NEVER)
    busy, quiet = [await converse.start_conversation(owner=ADA) for _ in range(2)]
    async with watching(converse) as watcher:

        async def flood() -> None:
            while True:
                feed_of(watcher).mark(busy.id)
                await asyncio.sleep(0)

        flooding = asyncio.create_task(flood())
        for number in range(3):
            await quiet.add_user_message(str(number))
            created = await soon(anext(watcher))
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
        before = converse.statistics().changes
        await answer.complete_streaming()
        await conversation.add_user_message("Hello")
        await until(lambda: converse.statistics().changes >= before + 2)
        return found

    async with watching(converse, EVE):
        with monkeypatch.context() as patch:
            patch.setattr(OwnerReader, "streaming", read_late)
            watcher = await converse.watch_owner(ADA).__aenter__()
    async with watcher:
        completed, created = await soon(anext(watcher)), await soon(anext(watcher))
        assert isinstance(completed, MessageCompleted)
        assert isinstance(created, MessageCreated)
        assert (completed.message_id, created.content) == (answer.id, "Hello")
        last = await end(ADA, converse)
        assert (await soon(anext(watcher))).conversation_id == last


async def test_owner__is_not_compared_before_it_began(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is known yet, so that all would be new."""
    monkeypatch.setattr(owner_feed, "MAX_CONVERSATIONS", 1)
    monkeypatch.setattr(owner_feed, "CHECKS_PER_FULL_CHECK", 10**6)
    converse = await facade(**OFTEN)
    for _ in range(3):
        await converse.start_conversation(owner=ADA)
    read = OwnerReader.streaming

    async def read_late(self: OwnerReader, ids: list[ObjectId]) -> Any:
        checks = converse.statistics().checks
        await until(lambda: converse.statistics().checks > checks + 2)
        return await read(self, ids)

    async with watching(converse, EVE):
        with monkeypatch.context() as patch:
            patch.setattr(OwnerReader, "streaming", read_late)
            watcher = await converse.watch_owner(ADA).__aenter__()
    async with watcher:
        last = await end(ADA, converse)
        assert (await soon(anext(watcher))).conversation_id == last


async def test_owner__hears_of_a_message_that_its_conversation_does_not_count(
    facade: Facade,
) -> None:
    """As where a writer dies between the message and the counter."""
    converse = await facade(**NEVER)
    conversation = await converse.start_conversation(owner=ADA)
    async with watching(converse) as watcher:
        await conversation.add_user_message("one")
        assert isinstance(await soon(anext(watcher)), MessageCreated)
        messages = collection_of(converse.message_model)
        stored = await messages.find_one({"conversation_id": conversation.id})
        assert stored is not None
        await messages.insert_one({**stored, "_id": ObjectId(), "position": 1, "content": "two"})
        created = await soon(anext(watcher))
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
            feed_of(watcher).mark_stale()
            assert isinstance(await soon(anext(watcher)), ConversationCreated)
            assert isinstance(await soon(anext(watcher)), MessageCreated)
        await answer.complete_streaming()
        assert isinstance(await soon(anext(watcher)), MessageCompleted)
        await conversation.add_user_message("Hello")
        assert isinstance(await soon(anext(watcher)), MessageCreated)


async def test_owner__whose_cancellation_was_swallowed_does_not_wait(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As asyncio.wait_for of Python 3.11 does, where what it waits for ends at that moment."""
    converse = await facade(**NEVER)
    conversation = await converse.start_conversation(owner=ADA)
    read = OwnerReader.news

    async def swallow(self: Any, *arguments: Any) -> Any:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return await read(self, *arguments)

    async with watching(converse) as watcher:
        with monkeypatch.context() as patch:
            patch.setattr(OwnerReader, "news", swallow)
            feed_of(watcher).mark(conversation.id)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await anext(watcher)
        last = await end(ADA, converse)
        assert (await soon(anext(watcher))).conversation_id == last


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
        routes = viewer._open_parts.hub.owner_routes
        assert not routes.feeds
        assert not routes.reading
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
            assert isinstance(await soon(anext(another)), MessageCreated)


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
                event = await soon(anext(watcher))
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
        waiting = [asyncio.create_task(soon(anext(each))) for each in watchers]
        await until(lambda: not any(feed_of(each).dirty for each in watchers))
        commands.sent.clear()
        conversation.title = "A title"
        await conversation.save()
        events = await asyncio.gather(*waiting)
        assert {(event.type, event.conversation_id) for event in events} == {
            ("conversation.updated", conversation.id)
        }
        assert len(commands.named("find")) < 5
        waiting = [asyncio.create_task(soon(anext(each))) for each in watchers]
        commands.sent.clear()
        await conversation.add_user_message("Hello")
        assert {event.type for event in await asyncio.gather(*waiting)} == {"message.created"}
        assert len(commands.named("find")) < 5
        waiting = [asyncio.create_task(soon(anext(each))) for each in watchers]
        conversation.title = "Another"
        await conversation.save()
        for event in await asyncio.gather(*waiting):
            assert isinstance(event, ConversationUpdated)
            assert event.title == "Another"  # what was read for the news before is not enough


async def test_owner__shares_no_read_that_began_before_the_news(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(**NEVER)
    conversation = await converse.start_conversation("one", owner=ADA)
    read, was_read, may_return = OwnerReader._read, asyncio.Event(), asyncio.Event()

    async def return_late(self: OwnerReader, asked: Any) -> Any:
        found = await read(self, asked)
        was_read.set()
        await may_return.wait()
        return found

    async with watching(converse) as first, watching(converse) as second:
        conversation.title = "two"
        await conversation.save()
        for watcher in (first, second):
            assert isinstance(await soon(anext(watcher)), ConversationUpdated)
        with monkeypatch.context() as patch:
            patch.setattr(OwnerReader, "_read", return_late)
            waiting = asyncio.create_task(soon(anext(first)))
            conversation.title = "three"
            await conversation.save()
            await was_read.wait()
        hints = feed_of(second).hints
        conversation.title = "four"
        await conversation.save()
        await until(lambda: feed_of(second).hints > hints)
        updated = await soon(anext(second))
        assert isinstance(updated, ConversationUpdated)
        assert updated.title == "four"
        may_return.set()
        for title in ("three", "four"):
            updated = await waiting if title == "three" else await soon(anext(first))
            assert isinstance(updated, ConversationUpdated)
            assert updated.title == title


async def test_owners__are_compared_in_one_query_of_what_changed_lately(
    facade: Facade, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_feed, "CHECKS_PER_FULL_CHECK", 10**6)
    options = {**OFTEN, "client_options": {"event_listeners": [commands]}}
    converse = await facade(**options)
    began = now()
    async with contextlib.AsyncExitStack() as stack:
        for owner in (ADA, ADA, EVE, EVE):
            await converse.start_conversation(owner=owner)
            await stack.enter_async_context(watching(converse, owner))
        commands.sent.clear()
        checks = converse.statistics().checks
        await until(lambda: converse.statistics().checks >= checks + 3)
        compared = [each["filter"]["$or"] for each in commands.named("find")]
        assert compared
        for clauses in compared:
            assert len(clauses) == 2
            for clause in clauses:
                assert clause["updated_at"]["$gte"] > began - timedelta(minutes=2)


async def test_owners__are_not_all_compared_in_full_at_once(facade: Facade) -> None:
    converse = await facade(**NEVER)
    async with contextlib.AsyncExitStack() as stack:
        watchers = [
            await stack.enter_async_context(converse.watch_owner(("user", number)))
            for number in range(60)
        ]
        for _ in range(owner_feed.CHECKS_PER_FULL_CHECK):
            due = [feed_of(each).due() for each in watchers]
            assert due.count(None) < 30
            for each in watchers:
                feed_of(each).dirty.clear()


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
        await until(lambda: feed_of(watcher).hints == 2)
        updated = await soon(anext(watcher))
        assert isinstance(updated, ConversationUpdated)
        assert (updated.title, updated.revision) == ("three", 2)
        last = await end(ADA, converse)
        created = await soon(anext(watcher))
        assert isinstance(created, ConversationCreated)
        assert created == replace(created, conversation_id=last)
