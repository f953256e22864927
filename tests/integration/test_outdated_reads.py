"""Contract 5 where majority reads go back in time, or lag: no watcher is told what is not so."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from bson import ObjectId

from converse_mongo import (
    Conversation,
    ConversationCreated,
    ConversationNotFoundError,
    Converse,
    Event,
    InvalidCursorError,
    Message,
    MessageCreated,
    MessageNotFoundError,
    WatchError,
    WatchMode,
)
from converse_mongo.driver.collections import collection_of
from converse_mongo.watching import doubts
from converse_mongo.watching.changes import Inserted
from converse_mongo.watching.doubts import OutdatedReadError
from converse_mongo.watching.owner_reader import OwnerReader
from tests.conftest import Facade
from tests.faults.failover import run_failovers
from tests.integration.helpers import start
from tests.majority import Majority, behind
from tests.streams import SOON, assert_exact, collect, sequences, text, until

pytestmark = pytest.mark.commits_at_once  # what lags here is the stand-in's

SEEDS = (1, 4, 6, 11)


@pytest.fixture
def embedded_uri(server_uri: str, request: pytest.FixtureRequest) -> str:
    """The shared server, where it is the embedded one: the stand-in follows no real majority."""
    if not server_uri.startswith("mongodb://127.0.0.1"):
        pytest.skip("a real replica set has a majority of its own")
    return server_uri


@pytest.mark.parametrize("seed", SEEDS)
async def test_failover__watchers_stay_exact(embedded_uri: str, seed: int) -> None:
    assert await run_failovers(seed, embedded_uri)


class Scene:
    """A conversation with a viewer whose majority reads can be set back."""

    def __init__(self, writer: Converse, viewer: Converse, majority: Majority) -> None:
        self.writer = writer
        self.viewer = viewer
        self.majority = majority

    async def older(self) -> None:
        """Has majority reads show what was before; the older copy stands still meanwhile."""
        await self.majority.has_all()
        self.majority.failing_over = True

    def read_again(self) -> None:
        """Has everything that is watched read from the database."""
        self.viewer._open_parts.hub._registry.mark_all_stale()

    async def was_read(self) -> None:
        """Waits until that was tried, and found outdated."""
        topics = self.viewer._open_parts.hub._registry.all()
        await until(lambda: any(getattr(topic, "_again_at", 0) for topic in topics))

    def skip_events(self) -> None:
        """Has the viewer hear of nothing."""
        self.viewer._open_parts.hub._take = lambda change: None  # type: ignore[method-assign]

    def newer(self) -> None:
        self.majority.failing_over = False

    async def show_older(self, collection: str, document: dict[str, Any]) -> None:
        """Adds a document to what the older copy shows."""
        copy = self.majority._client[self.majority.copies[1]][collection]
        await asyncio.to_thread(copy.insert_one, document)

    async def stored(self, document: Conversation | Message) -> dict[str, Any]:
        """A document as the primary has it."""
        found = await collection_of(type(document)).find_one({"_id": document.id})
        return dict(found)


NEVER_LAGS = 3600.0
"""The lag of an older copy that stays as it was when the test began."""


@pytest_asyncio.fixture
async def scene(
    embedded_uri: str, facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Scene]:
    with behind(monkeypatch, embedded_uri, 0.0, NEVER_LAGS) as majorities:
        options = {"check_interval": 3600.0, "poll_interval": 3600.0}
        writer = await facade(**options)
        viewer = await facade(writer.database_name, **options)
        yield Scene(writer, viewer, majorities[writer.database_name])
        # They are closed before what they read from is taken away.
        await viewer.aclose()
        await writer.aclose()


class Seen:
    """Watches, and keeps what it sees."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self.events: list[Event] = []
        self._task = asyncio.create_task(self._watch(events))

    async def _watch(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            self.events.append(event)

    @property
    def types(self) -> list[str]:
        return [event.type.partition(".")[2] for event in self.events]

    async def has(self, count: int) -> None:
        async with asyncio.timeout(SOON):
            while len(self.events) < count:
                if self._task.done():
                    self._task.result()
                    raise AssertionError(f"It ended after {self.types}")
                await asyncio.sleep(0.005)

    async def raises(self, error: type[BaseException]) -> None:
        with pytest.raises(error):
            await asyncio.wait_for(self._task, SOON)

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_older__conversation_is_told_of_nothing_twice_and_misses_nothing(
    scene: Scene,
) -> None:
    conversation = await scene.writer.start_conversation()
    await scene.majority.has_all()
    seen = Seen(scene.viewer.watch_conversation(conversation.id))
    await until(lambda: scene.viewer.statistics().streams_opened == 1)
    first = await conversation.start_streaming_assistant()
    await first.append_chunks(["a", "b"])
    await first.complete_streaming()
    second = await conversation.start_streaming_assistant()
    await second.append_chunk("c")
    await seen.has(6)
    await scene.older()
    scene.read_again()
    await scene.was_read()
    await conversation.add_user_message("while it is older")
    await second.append_chunk("d")
    scene.newer()
    await seen.has(8)
    await second.complete_streaming()
    await seen.has(9)
    assert [seen.types.count(kind) for kind in ("created", "received", "completed")] == [3, 4, 2]
    assert text(seen.events) == "abcd"
    await seen.end()


async def test_older__message_has_no_hole_and_is_not_missing(scene: Scene) -> None:
    message = await start(scene.writer)
    await scene.majority.has_all()
    watching = asyncio.create_task(collect(scene.viewer, message))
    await until(lambda: scene.viewer.statistics().streams_opened == 1)
    await message.append_chunks(["a", "b", "c"])
    await until(lambda: scene.viewer.statistics().changes > 0)
    await scene.older()
    scene.read_again()
    await scene.was_read()
    await message.append_chunk("d")
    await message.complete_streaming()
    await scene.majority.has_all()
    scene.newer()
    assert_exact(await asyncio.wait_for(watching, SOON), await scene.writer.get_message(message.id))


async def test_older__message_is_not_missing_though_its_start_is_told_late(scene: Scene) -> None:
    message = await start(scene.writer)
    document = await message.store().messages.find_one({"_id": message.id})
    await scene.majority.has_all()
    watching = asyncio.create_task(collect(scene.viewer, message))
    await until(lambda: scene.viewer.statistics().streams_opened == 1)
    await message.append_chunk("a")
    await until(lambda: scene.viewer.statistics().changes > 0)
    await scene.older()
    scene.viewer._open_parts.hub._registry.take(
        Inserted(message.id, message.conversation_id, document)
    )
    await scene.was_read()
    await message.complete_streaming()
    await scene.majority.has_all()
    scene.newer()
    assert sequences(await asyncio.wait_for(watching, SOON)) == [0]


async def test_older__new_message_is_there(scene: Scene) -> None:
    message = await start(scene.writer)
    await scene.older()
    watching = asyncio.create_task(collect(scene.viewer, message))
    in_conversation = Seen(scene.viewer.watch_conversation(message.conversation_id))
    await until(lambda: scene.viewer.statistics().watchers == 2)
    await message.append_chunk("a")
    await message.complete_streaming()
    await scene.majority.has_all()
    scene.newer()
    assert sequences(await asyncio.wait_for(watching, SOON)) == [0]
    await in_conversation.has(3)
    await in_conversation.end()


async def test_older__cursor_that_is_ahead_is_waited_for(scene: Scene) -> None:
    conversation = await scene.writer.start_conversation()
    await conversation.add_user_message("one")
    await scene.majority.has_all()
    keeps = Seen(scene.viewer.watch_conversation(conversation.id))
    await keeps.has(1)
    await scene.older()
    scene.skip_events()
    await conversation.add_user_message("two")
    after = f"{conversation.id}.2"
    came_back = Seen(scene.viewer.watch_conversation(conversation.id, after))
    await scene.was_read()
    await conversation.add_user_message("three")
    await scene.majority.has_all()
    scene.newer()
    await came_back.has(1)
    (event,) = came_back.events
    assert isinstance(event, MessageCreated)
    assert event.content == "three"
    await came_back.end()
    await keeps.end()


async def test_older__owner_is_not_told_that_a_conversation_is_gone(scene: Scene) -> None:
    owner = ("user", "1")
    seen = Seen(scene.viewer.watch_owner(owner))
    await until(lambda: scene.viewer.statistics().streams_opened == 1)
    feeds = scene.viewer._open_parts.hub._registry.owners
    await until(lambda: bool(feeds) and all(feed.ready for feed in feeds))
    await scene.writer.start_conversation("one", owner=owner)
    await seen.has(1)
    await scene.older()
    scene.read_again()
    second = await scene.writer.start_conversation("two", owner=owner)
    await scene.majority.has_all()
    scene.newer()
    await seen.has(2)
    assert [type(event) for event in seen.events] == [ConversationCreated] * 2
    assert seen.events[1].conversation_id == second.id
    await seen.end()


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> list[OutdatedReadError]:
    """The reads of owners that were found outdated."""
    refused: list[OutdatedReadError] = []
    read = OwnerReader._read

    async def record(self: OwnerReader, asked: Any) -> Any:
        try:
            return await read(self, asked)
        except OutdatedReadError as error:
            refused.append(error)
            raise

    monkeypatch.setattr(OwnerReader, "_read", record)
    return refused


async def test_older__owner_is_told_of_a_conversation_that_was_not_there_yet(
    scene: Scene, refusals: list[OutdatedReadError]
) -> None:
    seen = Seen(scene.viewer.watch_owner(("user", "1")))
    await until(lambda: scene.viewer.statistics().streams_opened == 1)
    feeds = scene.viewer._open_parts.hub._registry.owners
    await until(lambda: bool(feeds) and all(feed.ready for feed in feeds))
    await scene.older()
    first = await scene.writer.start_conversation("one", owner=("user", "1"))
    await until(lambda: len(refusals) > 0)  # it has heard of it, and the majority lacks it
    assert seen.events == []
    await scene.majority.has_all()
    scene.newer()
    await seen.has(1)
    assert seen.events[0].conversation_id == first.id
    await seen.end()


async def test_older__owner_is_told_of_messages_that_it_does_not_show(
    scene: Scene, refusals: list[OutdatedReadError]
) -> None:
    owner = ("user", "1")
    conversation = await scene.writer.start_conversation(owner=owner)
    question = await conversation.create_user_message("one")
    answer = await conversation.start_streaming_assistant()
    await scene.majority.has_all()
    await scene.older()
    document = await scene.stored(conversation)
    await scene.show_older("conversations", {**document, "next_position": 4})
    await scene.show_older("messages", await scene.stored(question))
    scene.newer()
    seen = Seen(scene.viewer.watch_owner(owner))
    await until(lambda: scene.viewer.statistics().streams_opened == 1)
    scene.majority.failing_over = True
    await conversation.add_user_message("two")
    await answer.complete_streaming()
    await conversation.add_user_message("three")
    await until(lambda: len(refusals) > 0)
    await scene.majority.has_all()
    scene.newer()
    await seen.has(3)
    await seen.end()
    assert seen.types == ["completed", "created", "created"]


async def test_older__owner_is_not_told_again_of_what_is_gone(
    scene: Scene, refusals: list[OutdatedReadError]
) -> None:
    owner = ("user", "1")
    seen = Seen(scene.viewer.watch_owner(owner))
    await until(lambda: scene.viewer.statistics().streams_opened == 1)
    gone = await scene.writer.start_conversation(owner=owner)
    await seen.has(1)
    await scene.show_older("conversations", await scene.stored(gone))
    await gone.delete()
    await seen.has(2)
    await scene.older()
    scene.read_again()
    await until(lambda: len(refusals) > 0)
    scene.newer()
    last = await scene.writer.start_conversation(owner=owner)
    await seen.has(3)
    await seen.end()
    assert seen.types == ["created", "deleted", "created"]
    assert seen.events[2].conversation_id == last.id


# What is so is believed


async def refused_soon(refused: Callable[[], Awaitable[Any]], error: type[Exception]) -> None:
    """Asserts that something is refused long before a doubt would be believed."""
    before = time.monotonic()
    with pytest.raises(error):
        await asyncio.wait_for(refused(), SOON)
    assert time.monotonic() - before < doubts.DOUBT_SECONDS


@pytest.fixture
def slow_doubts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubts that are never believed within a test, so that no machine is too slow for one."""
    monkeypatch.setattr(doubts, "DOUBT_SECONDS", 10 * SOON)
    monkeypatch.setattr(doubts.Doubts.__init__, "__defaults__", (10 * SOON,))


@pytest.mark.usefixtures("slow_doubts")
async def test_unknown__is_refused_at_once(converse: Converse) -> None:
    await refused_soon(lambda: anext(converse.watch_message(ObjectId())), MessageNotFoundError)
    await refused_soon(
        lambda: anext(converse.watch_conversation(ObjectId())), ConversationNotFoundError
    )


@pytest.mark.usefixtures("slow_doubts")
@pytest.mark.parametrize("streams", [True, False], ids=["change stream", "polling"])
async def test_cursor__that_was_not_given_is_refused_at_once(facade: Facade, streams: bool) -> None:
    converse = await facade(change_streams=streams)
    conversation = await converse.start_conversation()
    await conversation.add_user_message("hi")  # at position 0, and never streamed
    message = await conversation.start_streaming_assistant()
    await message.append_chunks(["a", "b"])
    ended = await conversation.start_streaming_assistant()
    await ended.append_chunk("x")
    await ended.complete_streaming()
    forged = [
        "1.0-0",
        "1.0-7",
        "3.0-0.1-2",
        "3.1-3",
        "3.1-2.2-2",
        "3",
        "4.1-2",
        "9.1-2",
        "3.1-2.1-2",
        "3.2-1.1-2",
        "03.1-2",
        "3.1-02",
        "1.1-0",
    ]

    def refused(cursor: str) -> Callable[[], Awaitable[Any]]:
        async def watch() -> Event:
            after = f"{conversation.id}.{cursor}"
            return await anext(converse.watch_conversation(conversation.id, after))

        return watch

    for cursor in forged:
        await refused_soon(refused(cursor), InvalidCursorError)
    for cursor, expected in (("3.1-2.2-1", "completed"), ("3.1-1", "received"), ("1", "created")):
        events = converse.watch_conversation(conversation.id, f"{conversation.id}.{cursor}")
        assert (await asyncio.wait_for(anext(events), SOON)).type.endswith(expected)


async def watch_deletions(writer: Converse, viewer: Converse) -> None:
    """Asserts that a message and a conversation which are deleted end the watching of them."""
    message = await start(writer)
    conversation = await writer.get_conversation(message.conversation_id)
    seen = Seen(viewer.watch_message(message.id))
    in_conversation = Seen(viewer.watch_conversation(conversation.id))
    if viewer.watch_mode is WatchMode.CHANGE_STREAM:
        await until(lambda: viewer.statistics().streams_opened == 1)
    await in_conversation.has(1)
    await message.delete()
    await seen.raises(MessageNotFoundError)
    await conversation.add_user_message("still here")
    await in_conversation.has(2)
    await conversation.delete()
    await in_conversation.raises(ConversationNotFoundError)


@pytest.mark.usefixtures("slow_doubts")
async def test_deleted__is_believed_at_once_where_the_change_stream_tells(facade: Facade) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, check_interval=3600.0, poll_interval=3600.0)
    await watch_deletions(writer, viewer)


async def test_deleted__is_believed_once_it_stood_where_nothing_tells(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubts.Doubts.__init__, "__defaults__", (0.2,))
    writer = await facade()
    viewer = await facade(writer.database_name, change_streams=False, poll_interval=0.02)
    await watch_deletions(writer, viewer)


async def test_hole__is_believed_once_it_stood(
    facade: Facade, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubts.Doubts.__init__, "__defaults__", (0.2,))
    converse = await facade()
    message = await start(converse)
    await message.append_chunks(["a", "b", "c"])
    chunk = {"$pull": {"chunks": {"sequence": 1}}}
    await client[converse.database_name]["messages"].update_one({"_id": message.id}, chunk)
    with pytest.raises(WatchError, match="Chunk"):
        await asyncio.wait_for(collect(converse, message, after=-1), SOON)


# A message that was deleted and started anew


@pytest.mark.usefixtures("slow_doubts")
@pytest.mark.parametrize("what", ["message", "conversation"])
async def test_restart__is_no_continuation(facade: Facade, what: str) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, check_interval=3600.0, poll_interval=3600.0)
    old = await start(writer, generation_id="g")
    conversation = await writer.get_conversation(old.conversation_id)
    watcher: Any = (
        viewer.watch_message(old.id)
        if what == "message"
        else viewer.watch_conversation(conversation.id)
    )
    seen = Seen(watcher)
    await until(lambda: viewer.statistics().streams_opened == 1)
    await old.append_chunks(["old 0", "old 1"])
    await seen.has(2 if what == "message" else 3)
    await old.delete()
    new = await conversation.start_streaming_assistant(generation_id="g")
    assert new.id == old.id
    await new.append_chunks([f"new {number}" for number in range(4)])
    await new.complete_streaming()
    if what == "message":
        await seen.raises(MessageNotFoundError)
        assert text(seen.events) == "old 0old 1"
    else:
        await seen.has(3 + 1 + 4 + 1)
        assert text(seen.events) == "old 0old 1new 0new 1new 2new 3"
        await seen.end()
    assert sequences(await collect(viewer, new)) == [0, 1, 2, 3]


@pytest.mark.usefixtures("slow_doubts")
@pytest.mark.parametrize("what", ["message", "conversation"])
async def test_restart__late_news_of_the_old_one_are_not_taken_for_news_of_the_new(
    facade: Facade, what: str
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, check_interval=3600.0, poll_interval=3600.0)
    other = await start(writer)
    hub = viewer._open_parts.hub
    held: list[Any] = []
    take = hub._take
    async with viewer.watch_message(other.id):
        await until(lambda: viewer.statistics().streams_opened == 1)
        hub._take = held.append  # a stream that lags
        old = await start(writer, generation_id="g")
        await old.append_chunks(["old 0", "old 1"])
        await old.append_chunk("old 2")
        conversation = await writer.get_conversation(old.conversation_id)
        await old.delete()
        new = await conversation.start_streaming_assistant(generation_id="g")
        await new.append_chunks(["new 0", "new 1"])
        watcher: Any = (
            viewer.watch_message(new.id)
            if what == "message"
            else viewer.watch_conversation(conversation.id)
        )
        seen = Seen(watcher)
        count = 2 if what == "message" else 3
        await seen.has(count)
        await until(lambda: len(held) >= 7)
        for change in held:
            take(change)
        hub._take = take
        await new.append_chunk("new 2")
        await new.complete_streaming()
        await seen.has(count + 2)
        assert text(seen.events) == "new 0new 1new 2"
        await seen.end()
