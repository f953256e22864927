"""Contract 5, 8 and 10: what watchers are promised."""

import asyncio
import gc
import random
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient

from converse_mongo import (
    ChunkReceived,
    ConversationNotFoundError,
    Converse,
    ConverseClosedError,
    Event,
    FinalEvent,
    InvalidCursorError,
    InvalidIdError,
    Message,
    MessageCompleted,
    MessageCreated,
    MessageNotFoundError,
    WatchError,
    WatchMode,
)
from converse_mongo.driver.change_streams import (
    ChangeStream,
    TaskChangeStream,
    ThreadChangeStream,
)
from converse_mongo.embedded import EmbeddedServer
from converse_mongo.watching import hub
from converse_mongo.watching.reconciler import Reconciler
from converse_mongo.watching.topics import WINDOW_EVENTS
from tests.conftest import Commands, Facade
from tests.streams import (
    SOON,
    assert_conversation_exact,
    assert_exact,
    collect,
    collect_restlessly,
    last_sequence,
    sequences,
    until,
)


async def start(converse: Converse) -> Message:
    return await (await converse.start_conversation()).start_streaming_assistant()


async def stream(message: Message, chunks: int, pause: float = 0.0) -> None:
    for number in range(chunks):
        await message.append_chunk(f"{number} ")
        if pause:
            await asyncio.sleep(pause)


async def attached(converse: Converse, message: Message) -> "asyncio.Task[list[Event]]":
    """Somebody who watches from now on, over a change stream that is open."""
    opened = converse.statistics().streams_opened
    watching = asyncio.create_task(collect(converse, message))
    await until(lambda: converse.statistics().watchers > 0)
    if not opened:
        await until(lambda: converse.statistics().streams_opened > 0)
    return watching


# Exactness without trouble


async def test_entering__twice_is_watching_once(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    async with converse.watch_conversation(conversation.id) as outer, outer:
        assert converse.statistics().watchers == 1
    assert converse.statistics().watchers == 0


async def test_watch__before_during_and_after(facade: Facade) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name)
    message = await start(writer)
    watching = [await attached(viewer, message)]
    for number in range(60):
        await message.append_chunk(f"{number} ")
        if number % 20 == 10:
            watching.append(asyncio.create_task(collect(viewer, message)))
    await message.complete_streaming()
    watching.append(asyncio.create_task(collect(viewer, message)))
    stored = await viewer.get_message(message.id)
    for events in await asyncio.gather(*watching):
        assert_exact(events, stored)


async def test_watch__news_come_by_the_change_stream(facade: Facade) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, check_interval=3600, poll_interval=3600)
    message = await start(writer)
    watching = await attached(viewer, message)
    await stream(message, 20)
    await message.complete_streaming()
    assert_exact(await watching, await viewer.get_message(message.id))
    assert viewer.watch_mode is WatchMode.CHANGE_STREAM
    assert viewer.statistics().changes >= 21


@pytest.mark.parametrize("after", [-1, 0, 5, 8, 9, 500])
async def test_watch__from_behind_a_sequence(converse: Converse, after: int) -> None:
    message = await start(converse)
    await stream(message, 5)
    early = asyncio.create_task(collect(converse, message, after))
    await asyncio.sleep(0)
    await stream(message, 5)
    await message.complete_streaming()
    late = await collect(converse, message, after)
    stored = await converse.get_message(message.id)
    assert_exact(late, stored, after)
    assert_exact(await early, stored, after)


async def test_watch__a_slow_viewer_leaves_the_window_and_misses_nothing(facade: Facade) -> None:
    converse = await facade()
    message = await start(converse)
    events: list[Event] = []
    async with converse.watch_message(message.id) as watcher:
        await message.append_chunk("first")
        events.append(await anext(watcher))
        for _ in range(3):
            await message.append_chunks([f"{n}," for n in range(WINDOW_EVENTS)])
            # Somebody who is quick moves the window on.
            [_ async for _ in first_of(converse.watch_message(message.id), WINDOW_EVENTS)]
        await message.complete_streaming()
        events += [event async for event in watcher]
    assert_exact(events, await converse.get_message(message.id))


async def first_of(events: Any, count: int) -> AsyncIterator[Event]:
    async for event in events:
        yield event
        count -= 1
        if not count:
            return


async def test_watch__whole_message_has_just_an_end(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.create_user_message("Hi", {"chunks": "mine"})
    events = await collect(converse, message)
    assert [type(event) for event in events] == [MessageCompleted]
    assert events[0].to_dict()["metadata"] == {"chunks": "mine"}


# Trouble with the change stream


def fail(server: EmbeddedServer, commands: list[str], times: int, **how: Any) -> None:
    with MongoClient[dict[str, Any]](server.uri) as admin:
        admin.admin.command(
            "configureFailPoint",
            "failCommand",
            mode={"times": times},
            data={"failCommands": commands, **how},
        )


@pytest.mark.parametrize(
    "how",
    [
        {"errorCode": 10107},
        {"errorCode": 286},
        {"errorCode": 8000},
        {"closeConnection": True},
    ],
    ids=["not-primary", "history-lost", "unknown", "closed"],
)
@pytest.mark.parametrize("commands", [["getMore"], ["getMore", "aggregate"]], ids=str)
async def test_watch__the_change_stream_is_killed_in_mid_stream(
    failing_server: EmbeddedServer,
    facade: Facade,
    how: dict[str, Any],
    commands: list[str],
) -> None:
    writer = await facade(uri=failing_server.uri)
    viewer = await facade(
        writer.database_name,
        failing_server.uri,
        check_interval=3600,
        # After "not primary" a driver waits for the next heartbeat.
        client_options={"heartbeatFrequencyMS": 500},
    )
    message = await start(writer)
    watching = await attached(viewer, message)
    await stream(message, 10)
    for _ in range(3):
        fail(failing_server, commands, 4, **how)
        await stream(message, 10)
    await message.complete_streaming()
    assert_exact(await watching, await writer.get_message(message.id))


async def test_watch__the_server_is_killed_and_restarted(
    start_server: Callable[..., EmbeddedServer], facade: Facade, tmp_path: Path
) -> None:
    server = start_server("--sync-on-commit", storage_path=tmp_path)
    options = {"serverSelectionTimeoutMS": 1000}
    writer = await facade("crash", server.uri, client_options=options)
    viewer = await facade("crash", server.uri, client_options=options)
    message = await start(writer)
    conversation = await viewer.get_conversation(message.conversation_id)
    watching = await attached(viewer, message)
    page = asyncio.create_task(collect_conversation(viewer, conversation.id, ends=1))

    async def crash() -> None:
        for crashes_at in (15, 40):
            await until(lambda at=crashes_at: message.next_sequence >= at)  # type: ignore[misc]
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)

    await asyncio.gather(stream(message, 60), crash())
    await message.complete_streaming()
    stored = await viewer.get_message(message.id)
    assert stored.content == "".join(f"{number} " for number in range(60))
    assert_exact(await watching, stored)
    assert_conversation_exact(await page, [stored])


@pytest.mark.parametrize("skip_the_end", [False, True], ids=["in-between", "the-last"])
async def test_watch__events_are_skipped_without_a_word(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, skip_the_end: bool
) -> None:
    converse = await facade(check_interval=0.1)
    message = await start(converse)
    take = hub.Hub._take
    seen = []

    def skip(self: Any, change: Any) -> None:
        seen.append(change)
        fields = (change.get("updateDescription") or {}).get("updatedFields") or {}
        if "status" in fields if skip_the_end else len(seen) % 3:
            return
        take(self, change)

    monkeypatch.setattr(hub.Hub, "_take", skip)
    watching = await attached(converse, message)
    page = asyncio.create_task(collect_conversation(converse, message.conversation_id, ends=1))
    await stream(message, 30)
    await message.complete_streaming()
    stored = await converse.get_message(message.id)
    assert_exact(await watching, stored)
    assert_conversation_exact(await page, [stored])


async def test_watch__an_oplog_too_short_to_resume(
    start_server: Callable[..., EmbeddedServer], facade: Facade
) -> None:
    server = start_server("--oplog-max-entries", "50", "--enable-test-commands")
    writer = await facade("short", server.uri)
    viewer = await facade("short", server.uri, check_interval=0.2)
    message = await start(writer)
    noise = await writer.start_conversation()
    watching = await attached(viewer, message)
    await stream(message, 20)
    for ending in (False, True):
        # While the stream hangs, and then has to be resumed, more is written than the oplog holds.
        fail(
            server,
            ["getMore"],
            1,
            blockConnection=True,
            blockTimeMS=1500,
            closeConnection=True,
        )
        await stream(message, 80)
        if ending:
            await message.complete_streaming()
        for _ in range(40):
            await noise.add_user_message("noise")
    assert_exact(await watching, await writer.get_message(message.id))


async def test_watch__the_collection_is_dropped(facade: Facade, client: Any) -> None:
    converse = await facade(check_interval=0.1)
    message = await start(converse)
    watching = await attached(converse, message)
    await stream(message, 3)
    await client[converse.database_name].drop_collection("messages")
    with pytest.raises(MessageNotFoundError):
        await watching
    # The hub has opened a new stream, and goes on.
    other = await start(converse)
    again = asyncio.create_task(collect(converse, other))
    await stream(other, 3)
    await other.complete_streaming()
    assert_exact(await again, await converse.get_message(other.id))


@pytest.mark.commits_at_once
async def test_watch__the_collection_is_renamed_and_back(facade: Facade, client: Any) -> None:
    converse = await facade(check_interval=3600.0, poll_interval=3600.0)
    message = await start(converse)
    database = client[converse.database_name]
    async with converse.watch_message(message.id) as events:
        await until(lambda: converse.statistics().streams_opened == 1)
        await database["messages"].rename("another")
        await until(lambda: converse.statistics().streams_opened == 2)
        await database["another"].rename("messages")
        # What comes into the place of the collection may hold what no change told of.
        await until(lambda: converse.statistics().streams_opened == 3)
        await message.append_chunk("Hi")
        async with asyncio.timeout(SOON):
            assert (await anext(events)).type == "chunk.received"


async def test_watch__without_change_streams_on_a_real_server(
    start_server: Callable[..., EmbeddedServer], facade: Facade
) -> None:
    server = start_server("--standalone")
    options = {"directConnection": True}
    writer = await facade("alone", server.uri, client_options=options)
    viewer = await facade("alone", server.uri, client_options=options, poll_interval=0.02)
    assert viewer.watch_mode is WatchMode.POLLING
    await watch_everything(writer, viewer)
    assert viewer.statistics().streams_opened == 0


async def test_watch__change_streams_are_refused(
    failing_server: EmbeddedServer, facade: Facade
) -> None:
    viewer = await facade(uri=failing_server.uri, poll_interval=0.02)
    fail(failing_server, ["aggregate"], 1, errorCode=13)
    writer = await facade(viewer.database_name, failing_server.uri)
    message = await start(writer)
    watching = asyncio.create_task(collect(viewer, message))
    await until(lambda: viewer.watch_mode is WatchMode.POLLING)
    await stream(message, 10)
    await message.complete_streaming()
    assert_exact(await watching, await writer.get_message(message.id))


async def no_thread(_: Reconciler) -> bool:
    raise RuntimeError("can't start new thread")


async def test_watch__comparisons_fail_unexpectedly_for_a_while(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, change_streams=False, poll_interval=0.02)
    message = await start(writer)
    watching = asyncio.create_task(collect(viewer, message))
    await until(lambda: viewer.statistics().checks > 0)
    with monkeypatch.context() as patch:
        patch.setattr(Reconciler, "run", no_thread)
        failing = viewer.statistics().checks
        await stream(message, 5)
        await until(lambda: viewer.statistics().checks > failing + 3)
    await stream(message, 5)
    await message.complete_streaming()
    assert_exact(await watching, await writer.get_message(message.id))


async def test_watch__comparisons_fail_unexpectedly_for_good(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "FAULT_SECONDS", 0.2)
    monkeypatch.setattr(Reconciler, "run", no_thread)
    viewer = await facade(change_streams=False, poll_interval=0.02)
    message = await start(viewer)
    with pytest.raises(WatchError, match="crashed: RuntimeError"):
        await collect(viewer, message)


async def test_watch__a_change_stream_cannot_be_closed(
    failing_server: EmbeddedServer, facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (TaskChangeStream, ThreadChangeStream):
        monkeypatch.setattr(kind, "aclose", partialmethod(close_badly, kind.aclose))
    viewer = await facade(uri=failing_server.uri)
    message = await start(viewer)
    watching = await attached(viewer, message)
    await stream(message, 3)
    fail(failing_server, ["getMore"], 1, errorCode=286)  # no driver resumes it
    await until(lambda: viewer.statistics().streams_opened > 1)
    await stream(message, 3)
    await message.complete_streaming()
    assert_exact(await watching, await viewer.get_message(message.id))


async def close_badly(stream: ChangeStream, close: Callable[..., Awaitable[None]]) -> None:
    await close(stream)
    raise RuntimeError("can't start new thread")


# Conversations


async def collect_conversation(
    converse: Converse, conversation_id: ObjectId, ends: int, after: str | None = None
) -> list[Event]:
    """The events of a conversation up to the given number of final ones."""
    seen: list[Event] = []
    async with converse.watch_conversation(conversation_id, after) as events:
        async for event in events:
            seen.append(event)
            ends -= isinstance(event, FinalEvent)
            if not ends:
                break
    return seen


async def collect_conversation_restlessly(
    converse: list[Converse], conversation_id: ObjectId, ends: int, randomly: random.Random
) -> list[Event]:
    """The same by somebody who keeps coming back, with a cursor, through another facade."""
    seen: list[Event] = []
    while True:
        patience = randomly.randint(1, 60)
        after = seen[-1].cursor if seen else None
        through = randomly.choice(converse)
        async for event in through.watch_conversation(conversation_id, after):
            seen.append(event)
            ends -= isinstance(event, FinalEvent)
            patience -= 1
            if not ends:
                return seen
            if not patience:
                break


async def watch_everything(writer: Converse, viewer: Converse) -> None:
    """Several messages stream at once in one conversation, and are watched in many ways."""
    conversation = await writer.start_conversation()
    await conversation.add_system_message("Be brief.")

    async def answer(number: int) -> None:
        own = await writer.get_conversation(conversation.id)
        for turn in range(3):
            await own.add_user_message(f"question {number}.{turn}")
            message = await own.start_streaming_assistant({"n": number})
            await stream(message, 12)
            if turn == 1:
                await message.fail_streaming("lost")
            else:
                await message.complete_streaming()

    ends = 4 * 3
    pages = [
        asyncio.create_task(collect_conversation(viewer, conversation.id, ends)),
        asyncio.create_task(collect_conversation(writer, conversation.id, ends)),
        *[
            asyncio.create_task(
                collect_conversation_restlessly(
                    [viewer, writer], conversation.id, ends, random.Random(seed)
                )
            )
            for seed in range(6)
        ],
    ]
    await asyncio.gather(*[answer(number) for number in range(4)])
    pages.append(asyncio.create_task(collect_conversation(viewer, conversation.id, ends)))
    listed = await conversation.messages()
    assert len(listed) == 1 + 4 * 3 * 2
    messages = [await writer.get_message(message.id) for message in listed]
    for events in await asyncio.gather(*pages):
        assert_conversation_exact(events, messages)


async def test_conversation__messages_that_stream_at_once(facade: Facade) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name)
    await watch_everything(writer, viewer)


async def test_conversation__polled(facade: Facade) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, change_streams=False, poll_interval=0.02)
    await watch_everything(writer, viewer)


async def test_conversation__cursor_ahead_of_the_hub(facade: Facade) -> None:
    writer = await facade(client_options={"w": "majority"})
    ahead = await facade(writer.database_name)
    behind = await facade(
        writer.database_name, change_streams=False, poll_interval=3600, check_interval=3600
    )
    conversation = await writer.start_conversation()
    message = await conversation.start_streaming_assistant()
    await message.append_chunk("a")
    async with behind.watch_conversation(conversation.id) as keeps_the_topic:
        await anext(keeps_the_topic)
        await message.append_chunks(["b", "c"])
        async with ahead.watch_conversation(conversation.id) as events:
            seen = [await anext(events) for _ in range(4)]
        await message.complete_streaming()
        rest = await collect_conversation(behind, conversation.id, 1, after=seen[-2].cursor)
    assert sequences(rest) == [2]
    assert isinstance(rest[-1], MessageCompleted)


async def test_conversation__of_a_save_while_it_reads_what_it_missed(facade: Facade) -> None:
    converse = await facade(check_interval=3600.0)
    conversation = await converse.start_conversation()
    message = await conversation.create_user_message("old")
    async with converse.watch_conversation(conversation.id) as ahead:
        assert (await anext(ahead)).type == "message.created"
        async with converse.watch_conversation(conversation.id) as events:
            assert (await anext(events)).type == "message.created"  # read, not told
            await until(lambda: converse.statistics().streams_opened == 1)
            message.metadata = {"liked": True}
            await message.save()
            async with asyncio.timeout(SOON):
                assert (await anext(ahead)).type == "message.updated"
                assert (await anext(events)).type == "message.updated"


async def test_conversation__deleted_messages_are_passed_over(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    messages = [await conversation.create_user_message(str(number)) for number in range(5)]
    for number in (0, 2, 4):
        await messages[number].delete()
    # With the write concern w:1 the majority hears of it a little later.
    committed = converse.message_model.store().committed
    async with asyncio.timeout(SOON):
        while [each["position"] async for each in committed.find({})] != [1, 3]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    async with converse.watch_conversation(conversation.id) as events:
        seen = [await anext(events), await anext(events)]
        await conversation.add_user_message("5")
        seen.append(await anext(events))
    assert [event.content for event in seen if isinstance(event, MessageCreated)] == ["1", "3", "5"]


async def test_conversation__ends_when_it_is_deleted(facade: Facade) -> None:
    converse = await facade(check_interval=0.05)
    conversation = await converse.start_conversation()
    async with converse.watch_conversation(conversation.id) as events:
        await conversation.delete()
        with pytest.raises(ConversationNotFoundError, match=str(conversation.id)):
            await anext(events)


# What is not there, and what makes no sense


async def test_watch__nothing_is_there(converse: Converse) -> None:
    nothing = ObjectId()
    with pytest.raises(MessageNotFoundError, match=str(nothing)):
        await anext(converse.watch_message(nothing))
    with pytest.raises(ConversationNotFoundError, match=str(nothing)):
        await anext(converse.watch_conversation(nothing))
    assert converse.statistics().watchers == 0


async def test_watch__senseless_arguments(converse: Converse) -> None:
    message = await start(converse)
    with pytest.raises(InvalidIdError):
        converse.watch_message("no id")
    for after in (True, -2, "0", 1.5):
        with pytest.raises(InvalidCursorError):
            converse.watch_message(message.id, after)  # type: ignore[arg-type]
    other = ObjectId()
    for cursor in ("", "x", f"{other}.0", 3, f"{message.conversation_id}.1.1-0"):
        with pytest.raises(InvalidCursorError):
            converse.watch_conversation(message.conversation_id, cursor)  # type: ignore[arg-type]
    forged = f"{message.conversation_id}.99"
    with pytest.raises(InvalidCursorError, match="ahead"):
        await anext(converse.watch_conversation(message.conversation_id, forged))


async def test_watch__a_message_is_deleted_meanwhile(converse: Converse) -> None:
    message = await start(converse)
    watching = await attached(converse, message)
    await stream(message, 3)
    await message.delete()
    with pytest.raises(MessageNotFoundError):
        await watching


# 8. One change stream


async def test_one_stream__a_thousand_watchers(facade: Facade, commands: Commands) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, client_options={"event_listeners": [commands]})
    message = await start(writer)
    watching = [asyncio.create_task(collect(viewer, message)) for _ in range(1000)]
    watching += [
        asyncio.create_task(collect_conversation(viewer, message.conversation_id, ends=1))
        for _ in range(50)
    ]
    await until(lambda: viewer.statistics().watchers == 1050)
    await until(lambda: viewer.statistics().streams_opened == 1)
    assert viewer.statistics().topics == 2
    await stream(message, 20)
    await message.complete_streaming()
    stored = await viewer.get_message(message.id)
    results = await asyncio.gather(*watching)
    for events in results[:1000]:
        assert_exact(events, stored)
    for events in results[1000:]:
        assert_conversation_exact(events, [stored])
    assert len(commands.change_streams()) == 1
    assert viewer.statistics().watchers == viewer.statistics().topics == 0


# 10. Bounded


async def test_bounded__nothing_is_left_by_who_leaves(facade: Facade) -> None:
    converse = await facade()
    message = await start(converse)
    await message.append_chunk("a")

    async for _ in converse.watch_message(message.id):
        break
    assert converse.statistics().watchers == 0

    async with converse.watch_message(message.id) as events:
        async for _ in events:
            break
    assert converse.statistics().watchers == 0

    waiting = [asyncio.create_task(collect(converse, message)) for _ in range(50)]
    waiting += [
        asyncio.create_task(collect_restlessly(converse, message, random.Random(seed)))
        for seed in range(20)
    ]
    await until(lambda: converse.statistics().watchers >= 50)
    for task in waiting:
        task.cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert converse.statistics().watchers == converse.statistics().topics == 0


async def test_bounded__a_timed_out_wait_loses_nothing(converse: Converse) -> None:
    message = await start(converse)
    watcher = converse.watch_message(message.id)
    seen = []
    for number in range(10):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(watcher), 0.01)
        assert converse.statistics().watchers == 0
        await message.append_chunk(f"{number} ")
        seen.append(await anext(watcher))
    await message.complete_streaming()
    seen += [event async for event in watcher]
    assert_exact(seen, await converse.get_message(message.id))


async def test_bounded__window_of_a_topic(converse: Converse) -> None:
    message = await start(converse)
    async with converse.watch_message(message.id) as watcher:
        topic = watcher._topic
        assert topic is not None
        quick = asyncio.create_task(collect(converse, message))  # keeps the window moving
        for _ in range(10):
            await message.append_chunks(["x" * 100] * 300)
            await until(lambda: topic.window.head == message.next_sequence)
            assert topic.window.head - topic.window.first <= WINDOW_EVENTS
        big = "x" * 1024 * 1024
        for _ in range(4):
            await message.append_chunk(big)
        await until(lambda: topic.window.head == message.next_sequence)
        assert topic.window.head - topic.window.first <= 2
        await message.complete_streaming()
        assert sequences(await quick) == list(range(3004))
        seen = [await anext(watcher) for _ in range(3004)]
    assert sequences(seen) == list(range(3004))


@pytest.mark.commits_at_once
async def test_close__ends_watchers_and_frees_everything(server_uri: str) -> None:
    before = set(threading.enumerate())
    converse = await Converse(server_uri, database="test_close").open()
    message = await start(converse)
    classes = weakref.WeakSet([converse.message_model, converse.conversation_model])
    watching = await attached(converse, message)
    await converse.aclose()
    with pytest.raises(ConverseClosedError):
        await watching
    with pytest.raises(ConverseClosedError):
        await message.append_chunk("x")
    with pytest.raises(ConverseClosedError):
        converse.watch_message(message.id)
    await converse.aclose()
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("converse_mongo"):
            await asyncio.to_thread(thread.join, 5)
            assert not thread.is_alive()
    tasks = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in tasks if name.startswith("converse_mongo")]
    del message, watching
    async with asyncio.timeout(SOON):  # the driver may still have a task of its own
        while classes:
            gc.collect()
            await asyncio.sleep(0.02)


async def test_close__while_the_server_hangs(
    start_server: Callable[..., EmbeddedServer],
) -> None:
    import os
    import signal

    server = start_server()
    options = {"serverSelectionTimeoutMS": 2000}
    converse = await Converse(server.uri, database="hang", client_options=options).open()
    watching = await attached(converse, await start(converse))
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(10):
            await converse.aclose()
    finally:
        server.kill()
    # Once the server is gone for good, nothing is left of what waited for it.
    await until(
        lambda: (
            not [
                task for task in asyncio.all_tasks() if task.get_name().startswith("converse_mongo")
            ]
        )
    )
    with pytest.raises(ConverseClosedError):
        await watching


async def test_resume__reads_only_what_is_missing(facade: Facade, commands: Commands) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, client_options={"event_listeners": [commands]})
    message = await start(writer)
    await message.append_chunks([f"{number} " for number in range(2000)])
    seen: list[Event] = []
    async for event in viewer.watch_message(message.id, after=1989):
        seen.append(event)
        if len(seen) == 10:
            break
    assert last_sequence(seen) == 1999
    assert isinstance(seen[0], ChunkReceived)
    assert seen[0].chunk.sequence == 1990
    # The message embeds the chunks from 1792 on; not one page was read.
    slices = [
        find["projection"]["chunks"]
        for find in commands.named("find")
        if "chunks" in find.get("projection", {})
    ]
    assert slices
    assert all("$slice" in each for each in slices)
    assert not [find for find in commands.named("find") if find["find"] == "message_chunk_pages"]
