"""What watchers of an owner are promised: all of their conversations, from now on, exactly."""

import asyncio
import contextlib
import gc
import random
from collections.abc import Sequence
from typing import Any

import pytest

from converse_mongo import (
    Approval,
    Conversation,
    ConversationCreated,
    ConversationDeleted,
    ConversationUpdated,
    ConverseClosedError,
    InvalidInputError,
    Message,
    MessageCancelled,
    MessageCompleted,
    MessageCreated,
    MessageFailed,
    MessageQueued,
    MessageRole,
    MessageSuspended,
    OwnerEvent,
    OwnerWatcher,
    ToolCallPart,
    ToolOutput,
)
from converse_mongo.domain.validation import now
from converse_mongo.watching import hub, owner_feed, owner_reader
from tests.conftest import Commands, Facade
from tests.integration.helpers import NEVER, OFTEN, soon
from tests.integration.owners import ADA, EVE, end, feed_of, take, watching
from tests.integration.test_work import (
    CALL,
    REQUEST,
    claim,
    enqueue,
    store_of,
    suspended,
    write,
)
from tests.streams import SOON, until

OUTPUT = ToolOutput("c1", 1)
"""Answers ``CALL``."""


async def take_to_end(watcher: OwnerWatcher) -> list[OwnerEvent]:
    events: list[OwnerEvent] = []
    while not (events and isinstance(events[-1], ConversationCreated) and events[-1].title):
        events.append(await soon(anext(watcher)))
    return events[:-1]


def kinds(events: Sequence[OwnerEvent]) -> list[str]:
    return [event.type for event in events]


async def assert_exact(events: Sequence[OwnerEvent], conversation: Conversation) -> None:
    """Asserts that these are all events of a conversation that was begun meanwhile, in order."""
    created, *said = [each for each in events if each.conversation_id == conversation.id]
    assert isinstance(created, ConversationCreated)
    messages: list[Message] = await conversation.messages()
    added = [each for each in said if isinstance(each, MessageCreated)]
    assert [each.message_id for each in added] == [each.id for each in messages]
    assert [each.position for each in added] == list(range(len(messages)))
    for message in messages:
        own = [each for each in said if getattr(each, "message_id", None) == message.id]
        streamed = message.role is MessageRole.ASSISTANT
        assert kinds(own) == ["message.created"] + [f"message.{message.status.value}"] * streamed
    ended = [each for each in messages if each.role is MessageRole.ASSISTANT]
    assert len(said) == len(messages) + len(ended)


@pytest.fixture(params=["change_stream", "comparison", "polling"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The ways to hear of news: told, found beside a silent stream, found without one."""
    monkeypatch.setattr(owner_feed, "CHECKS_PER_FULL_CHECK", 10**6)  # each check has to find it
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
            asked = await soon(anext(watcher))
            assert isinstance(asked, MessageCreated)
            assert (asked.message_id, asked.content) == (question.id, "What?")
            assert (asked.role, asked.streaming, asked.cursor) == ("user", False, None)
            answer = await conversation.start_streaming_assistant()
            begun = await soon(anext(watcher))
            assert isinstance(begun, MessageCreated)
            assert (begun.message_id, begun.streaming, begun.content) == (answer.id, True, "")
            await answer.append_chunks(["a", "b"])
            await answer.complete_streaming({"model": "small"})
            ended = await soon(anext(watcher))
            assert isinstance(ended, MessageCompleted)
            assert (ended.message_id, ended.chunk_count) == (answer.id, 2)
            assert ended.metadata == {"model": "small", "chunks": 2}
            assert {each.conversation_id for each in (asked, begun, ended)} == {conversation.id}
        new.title = "A title"
        await new.save()
        (updated,) = await take(watcher, ConversationUpdated)
        assert isinstance(updated, ConversationUpdated)
        assert (updated.conversation_id, updated.title) == (new.id, "A title")
        assert (updated.owner, updated.metadata) == (ADA, {"tag": 1})
        assert updated.revision == new.revision == 1
        await new.add_user_message("More")
        assert isinstance(await soon(anext(watcher)), MessageCreated)
        last = await end(ADA, writer)  # and of the save no second time
        assert (await soon(anext(watcher))).conversation_id == last


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
            await answer.append_chunk("text")
            if turn == 2:
                await answer.cancel_streaming()
            else:
                await answer.complete_streaming()
        return conversation

    async with watching(viewer) as watcher:
        conversations = await asyncio.gather(*[talk(number) for number in range(6)])
        wanted = len(conversations) * (1 + 3 * (1 + 1 + 1))
        events = [await soon(anext(watcher)) for _ in range(wanted)]
    for conversation in conversations:
        await assert_exact(events, conversation)


async def test_owner__hears_of_the_end_of_what_streams_already(
    facade: Facade, how: dict[str, Any]
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    conversation = await writer.start_conversation(owner=ADA)
    answers = [await conversation.start_streaming_assistant() for _ in range(2)]
    async with watching(viewer) as watcher:
        await answers[1].append_chunk("a")
        await answers[0].fail_streaming("It broke.")
        failed = await soon(anext(watcher))
        assert isinstance(failed, MessageFailed)
        assert (failed.message_id, failed.error) == (answers[0].id, "It broke.")
        await answers[1].complete_streaming()
        completed = await soon(anext(watcher))
        assert isinstance(completed, MessageCompleted)
        assert (completed.message_id, completed.chunk_count) == (answers[1].id, 1)


async def test_owner__hears_when_an_answer_begins_to_wait_for_people_and_goes_on(
    facade: Facade, how: dict[str, Any]
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    conversation = await writer.start_conversation(owner=ADA)
    async with watching(viewer) as watcher:
        assert watcher.waiting == []
        answer = await enqueue(conversation, key="k")
        assert isinstance(await soon(anext(watcher)), MessageCreated)
        claimed = await claim(writer, answer)
        await write(writer, claimed, CALL, REQUEST)
        await store_of(writer).jobs.suspend(claimed.key, claimed.lease)
        for left, given in (["c1", "c2"], Approval("c2", approved=True)), (["c1"], OUTPUT):
            waits = await soon(anext(watcher))
            assert isinstance(waits, MessageSuspended)
            assert (waits.message_id, waits.conversation_id) == (answer.id, conversation.id)
            assert (waits.role, waits.attempt) == (MessageRole.ASSISTANT, 1)
            assert [each.call_id for each in waits.pending] == left
            assert watcher.waiting == [waits]
            await writer.answer_tool_calls(answer.id, [given])
        went_on = await soon(anext(watcher))
        assert isinstance(went_on, MessageQueued)
        assert (went_on.message_id, went_on.attempt) == (answer.id, 1)
        assert watcher.waiting == []
        claimed = await claim(writer, answer)  # which is no news in a list
        await write(writer, claimed, ToolCallPart("ask", "c3", executor="client", input={}))
        await store_of(writer).jobs.suspend(claimed.key, claimed.lease)
        waits = await soon(anext(watcher))
        assert isinstance(waits, MessageSuspended)
        assert [each.call_id for each in waits.pending] == ["c3"]
        await answer.cancel_streaming()
        assert isinstance(await soon(anext(watcher)), MessageCancelled)
        assert watcher.waiting == []


async def test_owner__knows_what_waits_from_the_start(facade: Facade, how: dict[str, Any]) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    conversation = await writer.start_conversation(owner=ADA)
    waits = await suspended(conversation, CALL)
    await suspended(writer, CALL)  # of nobody
    await enqueue(conversation)
    async with watching(viewer) as watcher:
        (event,) = watcher.waiting
        assert isinstance(event, MessageSuspended)
        assert (event.message_id, event.conversation_id) == (waits.id, conversation.id)
        assert [each.call_id for each in event.pending] == ["c1"]
        await writer.answer_tool_calls(waits.id, [OUTPUT])
        went_on = await soon(anext(watcher))
        assert isinstance(went_on, MessageQueued)
        assert went_on.message_id == waits.id
        assert watcher.waiting == []
        await conversation.delete()
        assert isinstance(await soon(anext(watcher)), ConversationDeleted)


async def test_owner__hears_of_the_end_that_a_dead_writer_left(
    facade: Facade, how: dict[str, Any]
) -> None:
    writer = await facade(lease=0.1, idle_timeout=0.1)
    viewer = await facade(writer.database_name, **{**how, **OFTEN})
    conversation = await writer.start_conversation(owner=ADA)
    async with watching(viewer) as watcher:
        answer = await conversation.start_streaming_assistant()
        assert isinstance(await soon(anext(watcher)), MessageCreated)
        failed = await soon(anext(watcher))
        assert isinstance(failed, MessageFailed)
        assert (failed.message_id, failed.error) == (answer.id, "interrupted")


async def test_owner__hears_of_saves_of_messages_and_of_deleted_ones_nothing(
    facade: Facade, how: dict[str, Any]
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    conversation = await writer.start_conversation(owner=ADA)
    message = await conversation.create_user_message("old")
    answer = await conversation.start_streaming_assistant()
    async with watching(viewer) as watcher:
        message.metadata = {"liked": True}
        await message.save()
        await answer.append_chunk("a")
        waiting = asyncio.create_task(soon(anext(watcher)))
        await answer.delete()
        await until(lambda: feed_of(watcher).open == {})
        last = await end(ADA, writer)
        assert (await waiting).conversation_id == last


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
        assert [(await soon(anext(watcher))).conversation_id] == [last]


async def test_owner__hears_of_a_conversation_that_goes_and_comes(
    facade: Facade, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_feed, "CHECKS_PER_FULL_CHECK", 2)
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    given, deleted = [await writer.start_conversation(owner=ADA) for _ in range(2)]
    async with watching(viewer) as adas, watching(viewer, EVE) as eves:
        for conversation in (given, deleted):
            await conversation.add_user_message("Hello")
            assert isinstance(await soon(anext(adas)), MessageCreated)
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
            message = await soon(anext(eves))
            assert isinstance(message, MessageCreated)
            assert message.content == content
        last = await end(ADA, writer)
        assert (await soon(anext(adas))).conversation_id == last


async def test_owner__hears_of_a_conversation_that_is_made_anew(
    facade: Facade, how: dict[str, Any]
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    old = await writer.start_conversation(owner=ADA)
    await old.add_user_message("old")
    await old.start_streaming_assistant()
    messages = await old.messages()
    async with watching(viewer) as watcher:
        old.title = "A title"
        await old.save()
        assert isinstance(await soon(anext(watcher)), ConversationUpdated)
        for message in messages:
            await message.delete()
        await old.delete()
        await until(lambda: now() > old.created_at)
        new = await writer.conversation_model(id=old.id, owner=ADA).insert()
        await new.add_user_message("new")
        (deleted,) = await take(watcher, ConversationDeleted)
        assert deleted.conversation_id == old.id
        await assert_exact([await soon(anext(watcher)), await soon(anext(watcher))], new)
        last = await end(ADA, writer)
        assert (await soon(anext(watcher))).conversation_id == last


async def test_owner__hears_of_a_message_that_is_made_anew(
    facade: Facade, how: dict[str, Any]
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    conversation = await writer.start_conversation(owner=ADA)
    async with watching(viewer) as watcher:
        old = await conversation.start_streaming_assistant(generation_id="one")
        assert isinstance(await soon(anext(watcher)), MessageCreated)
        await old.delete()
        new = await conversation.start_streaming_assistant(generation_id="one")
        await new.complete_streaming()
        created, completed = await soon(anext(watcher)), await soon(anext(watcher))
        assert isinstance(created, MessageCreated)
        assert isinstance(completed, MessageCompleted)
        assert new.id == old.id == created.message_id == completed.message_id
        assert (created.position, new.position) == (1, 1)
        last = await end(ADA, writer)
        assert (await soon(anext(watcher))).conversation_id == last


@pytest.mark.parametrize("chunks", [True, 1])
async def test_owner__tells_of_no_chunks(facade: Facade, chunks: Any) -> None:
    converse = await facade()
    with pytest.raises(InvalidInputError, match="watch_conversation"):
        converse.watch_owner(ADA, chunks=chunks)
    converse.watch_owner(ADA, chunks=False)


# Trouble


async def test_owner__that_is_slow_misses_nothing(
    facade: Facade, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_feed, "CHECKS_PER_FULL_CHECK", 2)  # which finds the deletion
    monkeypatch.setattr(owner_reader, "ROWS_PER_READ", 3)
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    known, gone = [await writer.start_conversation(owner=ADA) for _ in range(2)]
    answer = await known.start_streaming_assistant()
    async with watching(viewer) as slow, watching(viewer) as fast:
        known.title = "A title"
        await known.save()
        await answer.complete_streaming()
        await gone.delete()
        conversations = [await writer.start_conversation(owner=ADA) for _ in range(3)]
        for conversation in conversations:
            for _ in range(3):
                await conversation.add_user_message("Hello")
                streamed = await conversation.start_streaming_assistant()
                await streamed.complete_streaming()
        count = 3 + len(conversations) * (1 + 3 * 3)
        for watcher in (fast, slow):
            assert len(feed_of(watcher).dirty.keys() - {None}) <= 2 + len(conversations)
            assert not feed_of(watcher).events
            events = [await soon(anext(watcher)) for _ in range(count)]
            of_known = [event for event in events if event.conversation_id == known.id]
            assert sorted(kinds(of_known)) == ["conversation.updated", "message.completed"]
            (deleted,) = [event for event in events if event.conversation_id == gone.id]
            assert isinstance(deleted, ConversationDeleted)
            for conversation in conversations:
                await assert_exact(events, conversation)
        last = await end(ADA, writer)
        for watcher in (fast, slow):
            assert (await soon(anext(watcher))).conversation_id == last


async def test_owner__that_gives_up_waiting_goes_on_where_it_was(
    facade: Facade, how: dict[str, Any]
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    randomly = random.Random(5)
    seen: list[OwnerEvent] = []

    async def talk() -> Conversation:
        conversation: Conversation = await writer.start_conversation(owner=ADA)
        for _ in range(6):
            await (await conversation.start_streaming_assistant()).complete_streaming()
        return conversation

    async with watching(viewer) as watcher:
        talking = asyncio.gather(*[talk() for _ in range(4)])
        patience = 0.05
        async with asyncio.timeout(3 * SOON):
            while len(seen) < 4 * (1 + 6 * 2):
                try:
                    async with asyncio.timeout(randomly.uniform(0.0005, patience)):
                        seen.append(await anext(watcher))
                    patience = 0.05
                except TimeoutError:
                    assert viewer.statistics().watchers == 0
                    patience = min(patience * 1.2, 2.0)  # a slow machine needs longer for a read
        for conversation in await talking:
            await assert_exact(seen, conversation)


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
    gone, known = [await writer.start_conversation(owner=ADA) for _ in range(2)]
    answer = await known.start_streaming_assistant()
    async with watching(viewer) as watcher:
        deaf = True
        conversation = await writer.start_conversation(owner=ADA)
        await conversation.add_user_message("Hello")
        await answer.complete_streaming()
        await gone.delete()
        await until(lambda: viewer.statistics().streams_opened > 1)
        deaf = False
        events = [await soon(anext(watcher)) for _ in range(4)]
        await assert_exact(events, conversation)
        others = [each for each in events if each.conversation_id != conversation.id]
        assert sorted((each.type, each.conversation_id) for each in others) == [
            ("conversation.deleted", gone.id),
            ("message.completed", known.id),
        ]
        last = await end(ADA, writer)
        assert (await soon(anext(watcher))).conversation_id == last


# Bounds


async def test_owner__is_one_topic_whatever_happens(facade: Facade, how: dict[str, Any]) -> None:
    converse = await facade(**how)
    conversations = [await converse.start_conversation(owner=ADA) for _ in range(5)]
    async with watching(converse) as watcher:
        for position in range(2):
            for conversation in conversations:
                await conversation.add_user_message("Hello")
                created = await soon(anext(watcher))
                assert isinstance(created, MessageCreated)
                assert (created.conversation_id, created.position) == (conversation.id, position)
        assert converse.statistics().topics == converse.statistics().watchers == 1
    assert converse.statistics().topics == converse.statistics().watchers == 0


async def test_owner__of_more_conversations_than_are_known_one_by_one(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_feed, "MAX_CONVERSATIONS", 3)
    writer = await facade()
    viewer = await facade(writer.database_name, **OFTEN)
    conversations = [await writer.start_conversation(owner=ADA) for _ in range(6)]
    await conversations[0].add_user_message("long ago")
    for conversation in conversations[1:]:
        await conversation.add_user_message("Hello")
    async with watching(viewer) as watcher:
        await conversations[5].add_user_message("known")
        assert isinstance(await soon(anext(watcher)), MessageCreated)
        answer = await conversations[0].start_streaming_assistant()
        (updated,) = await take(watcher, ConversationUpdated)
        assert updated.conversation_id == conversations[0].id
        for kind in (MessageCreated, MessageCompleted):
            event = await soon(anext(watcher))
            assert isinstance(event, kind)
            assert event.message_id == answer.id
            if kind is MessageCreated:
                await answer.complete_streaming()
        await conversations[0].add_user_message("From now on it is known.")
        assert isinstance(await soon(anext(watcher)), MessageCreated)
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
        await soon(anext(watcher))
        assert converse.statistics().watchers == 1
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
        waiting = asyncio.create_task(soon(anext(watcher)))
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


async def test_owner__reads_nothing_for_workers_and_two_documents_for_what_waits(
    facade: Facade, commands: Commands
) -> None:
    writer = await facade()
    options = {**NEVER, "client_options": {"event_listeners": [commands]}}
    viewer = await facade(writer.database_name, **options)
    conversation = await writer.start_conversation(owner=ADA)
    async with watching(viewer) as watcher:
        answer = await enqueue(conversation)
        assert isinstance(await soon(anext(watcher)), MessageCreated)
        listening = asyncio.create_task(soon(anext(watcher)))
        await until(lambda: not feed_of(watcher).dirty)
        commands.sent.clear()
        claimed = await claim(writer, answer)
        await write(writer, claimed, "so far", CALL)
        hints, jobs = feed_of(watcher).hints, store_of(writer).jobs
        await jobs.hand_over(claimed.key, claimed.lease, "q")
        claimed = await claim(writer, answer)
        await until(lambda: feed_of(watcher).hints >= hints + 2)
        assert not commands.named("find")
        await jobs.suspend(claimed.key, claimed.lease)
        assert isinstance(await listening, MessageSuspended)
        read = [each["find"] for each in commands.named("find")]
        assert sorted(read) == ["conversations", "messages"]


async def test_owner__is_compared_once_for_all_watchers(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_feed, "CHECKS_PER_FULL_CHECK", 1)
    compared: list[Any] = []
    changed = owner_reader.OwnerReader.changed

    async def record(self: Any, owners: Any) -> Any:
        compared.extend(owners)
        return await changed(self, owners)

    monkeypatch.setattr(owner_reader.OwnerReader, "changed", record)
    converse = await facade(poll_interval=0.1, check_interval=0.1)
    await converse.start_conversation(owner=ADA)
    async with contextlib.AsyncExitStack() as stack:
        watchers = [await stack.enter_async_context(converse.watch_owner(ADA)) for _ in range(20)]
        waiting = [asyncio.create_task(anext(watcher)) for watcher in watchers]
        begun = converse.statistics().checks
        await until(lambda: converse.statistics().checks >= begun + 2)  # each began with one
        checks, before = converse.statistics().checks, len(compared)
        await until(lambda: converse.statistics().checks >= checks + 5)
        assert len(compared) - before <= 2 * (converse.statistics().checks - checks)
        await converse.start_conversation(owner=ADA)
        await soon(asyncio.gather(*waiting))
