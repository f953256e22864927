"""What watchers of an owner are promised: all of their conversations, from now on, exactly."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
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
    InvalidInputError,
    MessageCreated,
    MessageUpdated,
    OwnerEvent,
    OwnerWatcher,
)
from converse_mongo.driver.collections import collection_of
from converse_mongo.watching import hub, owner_topic
from converse_mongo.watching.owner_watcher import MAX_AT_REST
from converse_mongo.watching.topics import WINDOW_EVENTS
from tests.conftest import Commands, Facade
from tests.streams import SOON, assert_conversation_exact, sequences, until

ADA, EVE = ("user", "ada"), ("user", "eve")
NEVER: dict[str, Any] = {"poll_interval": 3600.0, "check_interval": 3600.0}
"""Nothing is found by looking: the change stream has to tell it."""
OFTEN: dict[str, Any] = {"poll_interval": 0.02, "check_interval": 0.02}


async def soon(watcher: OwnerWatcher) -> OwnerEvent:
    async with asyncio.timeout(SOON):
        return await anext(watcher)


async def take(watcher: OwnerWatcher, last: type[OwnerEvent], count: int = 1) -> list[OwnerEvent]:
    """Events up to the ``count``-th of a kind."""
    events: list[OwnerEvent] = []
    while count:
        events.append(await soon(watcher))
        count -= isinstance(events[-1], last)
    return events


async def end(owner: tuple[str, str], converse: Converse) -> ObjectId:
    """Marks the end of what a test does: the last conversation that is started."""
    return (await converse.start_conversation("the end", owner=owner)).id


async def take_to_end(watcher: OwnerWatcher) -> list[OwnerEvent]:
    events: list[OwnerEvent] = []
    while not (events and isinstance(events[-1], ConversationCreated) and events[-1].title):
        events.append(await soon(watcher))
    return events[:-1]


def kinds(events: Sequence[OwnerEvent]) -> list[str]:
    return [event.type for event in events]


@asynccontextmanager
async def watching(
    converse: Converse, owner: tuple[str, str] = ADA, **options: Any
) -> AsyncIterator[OwnerWatcher]:
    """A watcher over a change stream that is open."""
    async with converse.watch_owner(owner, **options) as watcher:
        if converse.watch_mode == "change_stream":
            await until(lambda: converse.statistics().streams_opened > 0)
        yield watcher


@pytest.fixture(params=["change_stream", "comparison", "polling"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The ways to hear of news: told, found beside a silent stream, found without one."""
    if request.param == "change_stream":
        return NEVER
    if request.param == "comparison":  # as some streams skip events without a word
        monkeypatch.setattr(hub.Hub, "_take", lambda _self, _change: None)
        return OFTEN
    return {**OFTEN, "change_streams": False}


# What is yielded


async def test_owner__hears_of_all_that_happens_in_all_conversations(
    facade: Facade, how: dict[str, Any]
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    old = await writer.start_conversation(owner=ADA)
    await old.add_user_message("before")
    async with watching(viewer) as watcher:
        new = await writer.start_conversation(owner=ADA, metadata={"tag": 1})
        (created,) = await take(watcher, ConversationCreated)
        assert isinstance(created, ConversationCreated)
        assert (created.conversation_id, created.owner) == (new.id, ADA)
        assert (created.metadata, created.created_at) == ({"tag": 1}, new.created_at)
        for conversation in (new, old):
            question = await conversation.create_user_message("What?")
            (asked,) = await take(watcher, MessageCreated)
            assert isinstance(asked, MessageCreated)
            assert (asked.message_id, asked.content) == (question.id, "What?")
            answer = await conversation.start_streaming_assistant()
            await answer.append_chunks(["a", "b"])
            await answer.complete_streaming()
            events = [await soon(watcher) for _ in range(4)]
            assert kinds(events) == ["message.created"] + ["chunk.received"] * 2 + [
                "message.completed"
            ]
            assert {event.conversation_id for event in events} == {conversation.id}
        new.title = "A title"
        await new.save()
        (updated,) = await take(watcher, ConversationUpdated)
        assert isinstance(updated, ConversationUpdated)
        assert (updated.conversation_id, updated.title) == (new.id, "A title")
        assert (updated.owner, updated.metadata) == (ADA, {"tag": 1})
        assert updated.revision == new.revision == 1
        await new.add_user_message("More")
        assert isinstance(await soon(watcher), MessageCreated)
        last = await end(ADA, writer)  # and of the save no second time
        assert (await soon(watcher)).conversation_id == last


async def test_owner__of_many_writers_at_once_sees_each_conversation_exactly(
    facade: Facade, how: dict[str, Any]
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)

    async def talk(number: int) -> Conversation:
        conversation: Conversation = await writer.start_conversation(owner=ADA)
        for turn in range(3):
            await conversation.add_user_message(f"{number}.{turn}")
            answer = await conversation.start_streaming_assistant()
            for part in range(10):
                await answer.append_chunk(f"{part} ")
            await answer.complete_streaming()
        return conversation

    async with watching(viewer) as watcher:
        conversations = await asyncio.gather(*[talk(number) for number in range(6)])
        wanted = len(conversations) * (1 + 3 * (1 + 1 + 10 + 1))
        events = [await soon(watcher) for _ in range(wanted)]
    for conversation in conversations:
        created, *said = [each for each in events if each.conversation_id == conversation.id]
        assert isinstance(created, ConversationCreated)
        messages = [await viewer.get_message(each.id) for each in await conversation.messages()]
        assert_conversation_exact(said, messages)


async def test_owner__follows_what_streams_already_from_now_on(
    facade: Facade, how: dict[str, Any]
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    conversation = await writer.start_conversation(owner=ADA)
    answers = [await conversation.start_streaming_assistant() for _ in range(2)]
    for answer in answers:
        await answer.append_chunks(["0", "1"])
    async with watching(viewer) as watcher:
        await answers[1].append_chunk("2")
        await answers[0].fail_streaming("It broke.")
        events = [await soon(watcher) for _ in range(2)]
        assert sequences(events) == [2]
        assert sorted(kinds(events)) == ["chunk.received", "message.failed"]


async def test_owner__hears_nothing_of_others(facade: Facade, how: dict[str, Any]) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    theirs = await writer.start_conversation(owner=EVE)
    nobodys = await writer.start_conversation()
    async with watching(viewer) as watcher:
        for conversation in (
            theirs,
            nobodys,
            await writer.start_conversation(owner=EVE),
            await writer.start_conversation(owner=("team", "ada")),
        ):
            await conversation.add_user_message("a secret")
            conversation.title = "a secret"
            await conversation.save()
        last = await end(ADA, writer)
        assert [(await soon(watcher)).conversation_id] == [last]


async def test_owner__hears_of_a_conversation_that_goes_and_comes(
    facade: Facade, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_topic, "CHECKS_PER_FULL_CHECK", 2)
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    given, deleted = [await writer.start_conversation(owner=ADA) for _ in range(2)]
    async with watching(viewer) as adas, watching(viewer, EVE) as eves:
        for conversation in (given, deleted):
            await conversation.add_user_message("Hello")
            assert isinstance(await soon(adas), MessageCreated)
        await deleted.delete()
        assert await take(adas, ConversationDeleted) == [
            ConversationDeleted(conversation_id=deleted.id)
        ]
        given.owner = viewer.conversation_model(owner=EVE).owner
        await given.save()
        assert await take(adas, ConversationDeleted) == [
            ConversationDeleted(conversation_id=given.id)
        ]
        (created,) = await take(eves, ConversationCreated)
        assert created.conversation_id == given.id
        await given.add_user_message("a secret")
        for content in ("Hello", "a secret"):
            message = await soon(eves)
            assert isinstance(message, MessageCreated)
            assert message.content == content
        last = await end(ADA, writer)
        assert (await soon(adas)).conversation_id == last


async def test_owner__hears_of_saved_messages(facade: Facade, how: dict[str, Any]) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    conversation = await writer.start_conversation(owner=ADA)
    first = await conversation.create_user_message("old")
    async with watching(viewer) as watcher:
        message = await conversation.create_user_message("new")
        assert isinstance(await soon(watcher), MessageCreated)
        message.metadata = {"liked": True}
        await message.save()
        (updated,) = await take(watcher, MessageUpdated)
        assert isinstance(updated, MessageUpdated)
        assert (updated.message_id, updated.revision) == (message.id, 1)
        first.metadata = {"liked": False}
        await first.save()
        (updated,) = await take(watcher, MessageUpdated)
        assert isinstance(updated, MessageUpdated)
        assert (updated.message_id, updated.revision) == (first.id, 1)
        last = await end(ADA, writer)
        assert (await soon(watcher)).conversation_id == last


async def test_owner__without_chunks(facade: Facade) -> None:
    converse = await facade()
    conversation = await converse.start_conversation(owner=ADA)
    async with watching(converse, chunks=False) as watcher:
        answer = await conversation.start_streaming_assistant()
        await answer.append_chunks(["a"] * 50)
        await answer.complete_streaming()
        events = [await soon(watcher) for _ in range(2)]
        assert kinds(events) == ["message.created", "message.completed"]


# Trouble


async def test_owner__that_is_slow_misses_nothing(facade: Facade, how: dict[str, Any]) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    conversation = await writer.start_conversation(owner=ADA)
    count = WINDOW_EVENTS * 2
    async with watching(viewer) as watcher:
        answer = await conversation.start_streaming_assistant()
        assert isinstance(await soon(watcher), MessageCreated)
        for start in range(0, count, 64):
            await answer.append_chunks([f"{start}"] * 64)
        await answer.complete_streaming()
        await end(ADA, writer)
        events = await take_to_end(watcher)
        if len(events) < count:  # the end of the test overtook the message
            events += [await soon(watcher) for _ in range(count + 1 - len(events))]
        assert sequences(events) == list(range(count))


async def test_owner__takes_turns_between_conversations(facade: Facade) -> None:
    converse = await facade(**NEVER)
    conversations = [await converse.start_conversation(owner=ADA) for _ in range(2)]
    answers = [await each.start_streaming_assistant() for each in conversations]
    async with watching(converse) as watcher:
        for answer in answers:
            await answer.append_chunks(["a"] * 50)
        seen = {(await soon(watcher)).conversation_id for _ in range(10)}
        assert seen == {each.id for each in conversations}


async def test_owner__that_gives_up_waiting_goes_on_where_it_was(
    facade: Facade, how: dict[str, Any]
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    randomly = random.Random(5)
    seen: list[OwnerEvent] = []

    async def talk() -> Conversation:
        conversation: Conversation = await writer.start_conversation(owner=ADA)
        answer = await conversation.start_streaming_assistant()
        for part in range(25):
            await answer.append_chunk(f"{part} ")
        await answer.complete_streaming()
        return conversation

    async with watching(viewer) as watcher:
        talking = asyncio.gather(*[talk() for _ in range(4)])
        patience = 0.05
        async with asyncio.timeout(3 * SOON):
            while len(seen) < 4 * (1 + 1 + 25 + 1):
                try:
                    async with asyncio.timeout(randomly.uniform(0.0005, patience)):
                        seen.append(await anext(watcher))
                    patience = 0.05
                except TimeoutError:
                    assert viewer.statistics().watchers == 0
                    patience = min(patience * 1.2, 2.0)  # a slow machine needs longer for a read
        for conversation in await talking:
            created, *said = [each for each in seen if each.conversation_id == conversation.id]
            assert isinstance(created, ConversationCreated)
            messages = [await viewer.get_message(each.id) for each in await conversation.messages()]
            assert_conversation_exact(said, messages)


async def test_owner__whose_change_stream_is_lost(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, check_interval=3600.0)
    deaf = False
    take_change = hub.Hub._take

    def hear(self: Any, change: Any) -> None:
        if deaf:
            raise hub._StreamLostError("a test")
        take_change(self, change)

    monkeypatch.setattr(hub.Hub, "_take", hear)
    gone = await writer.start_conversation(owner=ADA)
    async with watching(viewer) as watcher:
        deaf = True
        conversation = await writer.start_conversation(owner=ADA)
        await conversation.add_user_message("Hello")
        await gone.delete()
        await until(lambda: viewer.statistics().streams_opened > 1)
        deaf = False
        events = await take(watcher, ConversationDeleted)
        events += [] if len(events) == 3 else await take(watcher, MessageCreated)
        assert sorted(kinds(events)) == [
            "conversation.created",
            "conversation.deleted",
            "message.created",
        ]


async def test_owner__with_one_broken_conversation_hears_of_the_others(
    facade: Facade, how: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    converse = await facade(**how)
    broken, sound = [await converse.start_conversation(owner=ADA) for _ in range(2)]
    answer = await broken.start_streaming_assistant()
    await answer.append_chunks(["a", "b"])
    messages = collection_of(converse.message_model)
    async with watching(converse) as watcher:
        await messages.update_one({"_id": answer.id}, {"$set": {"chunks": [], "next_sequence": 9}})
        heard = 0
        while heard < 2 or "cannot be watched" not in caplog.text:
            await sound.add_user_message("Hello")
            assert (await soon(watcher)).conversation_id == sound.id
            heard += 1
            assert heard < 500


# Bounds


async def test_owner__watches_only_where_something_happens(
    facade: Facade, how: dict[str, Any]
) -> None:
    converse = await facade(**how)
    conversations = [await converse.start_conversation(owner=ADA) for _ in range(30)]
    async with watching(converse) as watcher:
        assert converse.statistics().topics == 1
        for conversation in conversations:
            await conversation.add_user_message("Hello")
            assert (await soon(watcher)).conversation_id == conversation.id
        last = await end(ADA, converse)
        assert (await soon(watcher)).conversation_id == last
        assert converse.statistics().topics <= 1 + MAX_AT_REST + 1
        for conversation in conversations:  # also of those that it has let go
            await conversation.add_user_message("Again")
            created = await soon(watcher)
            assert isinstance(created, MessageCreated)
            assert (created.conversation_id, created.position) == (conversation.id, 1)
    assert converse.statistics().topics == converse.statistics().watchers == 0


async def test_owner__of_more_conversations_than_are_known_one_by_one(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_topic, "MAX_CONVERSATIONS", 3)
    writer = await facade()
    viewer = await facade(writer.database_name, **OFTEN)
    conversations = [await writer.start_conversation(owner=ADA) for _ in range(6)]
    await conversations[0].add_user_message("long ago")
    for conversation in conversations[1:]:
        await conversation.add_user_message("Hello")
    async with watching(viewer) as watcher:
        await conversations[5].add_user_message("known")
        assert isinstance(await soon(watcher), MessageCreated)
        answer = await conversations[0].start_streaming_assistant()
        (updated,) = await take(watcher, ConversationUpdated)
        assert updated.conversation_id == conversations[0].id
        await answer.append_chunk("on it goes")
        assert sequences([await soon(watcher)]) == [0]
        new = await writer.start_conversation(owner=ADA)
        (created,) = await take(watcher, ConversationCreated)
        assert created.conversation_id == new.id


async def test_owner__adds_no_change_stream(facade: Facade, commands: Commands) -> None:
    converse = await facade(client_options={"event_listeners": [commands]})
    conversation = await converse.start_conversation(owner=ADA)
    async with (
        converse.watch_owner(ADA) as one,
        converse.watch_owner(ADA) as other,
        converse.watch_owner(EVE),
        converse.watch_conversation(conversation.id) as events,
    ):
        await conversation.add_user_message("Hello")
        for watcher in (one, other, events):
            async with asyncio.timeout(SOON):
                assert isinstance(await anext(watcher), MessageCreated)
        assert len(commands.change_streams()) <= 1
        assert converse.statistics().topics == 3


async def test_owner__that_is_dropped_leaves_nothing(facade: Facade) -> None:
    converse = await facade()
    conversation = await converse.start_conversation(owner=ADA)
    watcher = converse.watch_owner(ADA)
    async with watcher:
        await conversation.start_streaming_assistant()
        await soon(watcher)
        assert converse.statistics().watchers == 2
    assert converse.statistics().watchers == 0
    with pytest.raises(StopAsyncIteration):
        await anext(watcher)
    dropped = await converse.watch_owner(ADA).__aenter__()
    assert converse.statistics().watchers > 0
    del dropped
    gc.collect()
    assert converse.statistics().watchers == 0


async def test_owner__is_told_when_the_facade_closes(facade: Facade) -> None:
    converse = await facade()
    async with watching(converse) as watcher:
        waiting = asyncio.create_task(soon(watcher))
        await asyncio.sleep(0)
        await converse.aclose()
        with pytest.raises(ConverseClosedError):
            await waiting


async def test_owner__closed_by_another_task_ends(facade: Facade) -> None:
    converse = await facade()
    async with watching(converse) as watcher:

        async def listen() -> list[OwnerEvent]:
            return [event async for event in watcher]

        waiting = asyncio.create_task(listen())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="being iterated"):
            await anext(watcher)
        await watcher.aclose()
        assert await waiting == []
    assert converse.statistics().watchers == 0


@pytest.mark.parametrize("owner", ["ada", ("user",), None, ("user", "\ud800"), (1, 2, 3)])
async def test_owner__that_is_none(facade: Facade, owner: Any) -> None:
    converse = await facade()
    with pytest.raises(InvalidInputError, match="owner"):
        converse.watch_owner(owner)


async def test_handlers__hear_of_saved_conversations(facade: Facade) -> None:
    converse = await facade()
    heard: list[ConversationUpdated] = []
    converse.on(ConversationUpdated, heard.append)
    conversation = await converse.start_conversation(owner=ADA)
    conversation.title = "One"
    await conversation.save()
    await conversation.save()  # nothing to save
    conversation.metadata["x"] = 1
    await conversation.save()
    assert [(each.title, each.revision) for each in heard] == [("One", 1), ("One", 2)]
    assert (await converse.get_conversation(conversation.id)).revision == 2
