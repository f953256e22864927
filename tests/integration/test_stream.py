"""The change stream of a process: what it tells, when it is open, and when it is late."""

import asyncio
from collections.abc import Callable
from typing import Any

import bson
import pytest
from pymongo import ReadPreference, monitoring

from converse_mongo import (
    Conversation,
    ConversationUpdated,
    Converse,
    Message,
    MessageNotStreamingError,
    MessageUpdated,
    StreamStoppedError,
    WriterFencedError,
)
from converse_mongo.driver import change_streams, installed, servers
from converse_mongo.store import message_reads
from converse_mongo.watching import hub
from tests.conftest import Commands, Facade
from tests.integration.helpers import NEVER, SilentFeed, feeds, soon, start
from tests.streams import SOON, collect, sequences, until


class Own(Message):
    large: str = ""


class Changes(monitoring.CommandListener):
    """Keeps the change events that a client receives."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self._cursors: set[int] = set()

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        pass

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        cursor = event.reply.get("cursor", {})
        if event.command_name in ("aggregate", "getMore") and "postBatchResumeToken" in cursor:
            self.received += cursor.get("nextBatch", cursor.get("firstBatch", []))

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass

    def of(self, operation: str) -> list[dict[str, Any]]:
        return [each for each in self.received if each["operationType"] == operation]


class Streams:
    """Counts the change streams of a facade that are open."""

    def __init__(self, converse: Converse) -> None:
        self.open = self.most = 0
        the_hub = converse._open_parts.hub
        the_hub._open_stream = self._counting(the_hub._open_stream)
        the_hub._narrow_streams = {
            demand: self._counting(real) for demand, real in the_hub._narrow_streams.items()
        }

    def _counting(self, real: Any) -> Callable[[], Any]:
        async def open_stream() -> Any:
            feed = await real()
            self.open += 1
            self.most = max(self.most, self.open)
            close = feed.aclose

            async def aclose() -> None:
                await close()
                self.open -= 1

            feed.aclose = aclose
            return feed

        return open_stream


async def opened(converse: Converse, count: int = 1) -> None:
    await until(lambda: converse.statistics().streams_opened == count)


# A process that only writes


async def test_writing_process__gets_no_appends_of_others(facade: Facade) -> None:
    changes = Changes()
    writing = await facade(client_options={"event_listeners": [changes]})
    other = await facade(writing.database_name)
    async with (await start(writing)).writer():
        await opened(writing)
        theirs = await start(other)
        for number in range(20):
            await theirs.append_chunk(str(number))
        theirs.metadata["x"] = 1
        await theirs.save()
        await theirs.complete_streaming({"y": 1})
        await until(lambda: bool(changes.received))
        [end] = changes.received
    assert end["documentKey"]["_id"] == theirs.id
    assert end["updateDescription"]["updatedFields"] == {"status": "completed"}


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("stop", StreamStoppedError),
        ("end", MessageNotStreamingError),
        ("take over", WriterFencedError),
    ],
)
async def test_writing_process__hears_at_once_what_concerns_its_writers(
    facade: Facade, what: str, error: type[Exception]
) -> None:
    writing = await facade(**NEVER, lease=3600)
    other = await facade(writing.database_name)
    message = await start(writing)
    with pytest.raises(error):
        async with message.writer() as writer:
            await opened(writing)
            assert writing._open_parts.hub._demand() is hub.Demand.WRITERS
            theirs = await other.get_message(message.id)
            if what == "stop":
                await theirs.request_stop()
            elif what == "end":
                await theirs.complete_streaming()
            else:
                async with theirs.resume_writer() as successor:
                    async with asyncio.timeout(SOON):
                        await writer.wait_stopping()
                    await successor.detach()
            async with asyncio.timeout(SOON):
                await writer.wait_stopping()
            await writer.write("more")


async def test_writing_process__that_begins_to_watch_misses_nothing(facade: Facade) -> None:
    converse = await facade(**NEVER)
    streams = Streams(converse)
    other = await facade(converse.database_name)
    message = await start(other)
    async with (await start(converse)).writer():
        await opened(converse)
        watching = asyncio.create_task(collect(converse, message))
        for number in range(30):
            await message.append_chunk(str(number))
        await opened(converse, 2)
        await message.append_chunk("last")
        await message.complete_streaming()
        async with asyncio.timeout(SOON):
            assert sequences(await watching) == list(range(31))
    assert streams.most == 1


async def test_writing_process__hears_a_stop_while_its_stream_changes(facade: Facade) -> None:
    converse = await facade(**NEVER, lease=3600)
    other = await facade(converse.database_name)
    message, gate = await start(converse), asyncio.Event()
    the_hub = converse._open_parts.hub
    real = the_hub._open_stream

    async def open_stream() -> Any:
        await gate.wait()
        return await real()

    the_hub._open_stream = open_stream
    with pytest.raises(StreamStoppedError):
        async with message.writer() as writer:
            await opened(converse)
            async with converse.watch_message((await start(other)).id):
                await until(lambda: not the_hub._live)
                checks = converse.statistics().checks
                await (await other.get_message(message.id)).request_stop()
                assert converse.statistics().checks == checks
                gate.set()
                async with asyncio.timeout(SOON):
                    await writer.wait_stopping()
                await writer.write("more")


# When it is open


async def test_stream__tells_less_once_nobody_watches_and_is_closed_once_nobody_writes(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "GRACE_SECONDS", 0.05)
    changes = Changes()
    converse = await facade(**NEVER, client_options={"event_listeners": [changes]})
    streams = Streams(converse)
    other = await facade(converse.database_name)
    message = await start(other)
    async with (await start(converse)).writer():
        async with converse.watch_message(message.id) as events:
            await until(lambda: streams.open == 1)
            await message.append_chunk("a")
            await soon(anext(events))
        count = converse.statistics().streams_opened
        await opened(converse, count + 1)  # it has gone on to tell less
        changes.received.clear()
        await message.append_chunk("b")
        await message.complete_streaming()
        await until(lambda: bool(changes.received))
        assert [list(each["updateDescription"]["updatedFields"]) for each in changes.received] == [
            ["status"]
        ]
    await until(lambda: streams.open == 0)
    assert converse.watch_mode == "change_stream"
    message = await start(other)
    async with converse.watch_message(message.id) as events:
        await until(lambda: streams.open == 1)
        await message.append_chunk("c")
        assert sequences([await soon(anext(events))]) == [0]
    await until(lambda: streams.open == 0)
    assert streams.most == 1


async def test_stream__stays_open_while_watchers_come_and_go(facade: Facade) -> None:
    converse = await facade()
    message = await start(converse)
    for _ in range(10):
        async with converse.watch_message(message.id):
            await opened(converse)
    async with message.writer(), converse.watch_message(message.id):
        pass
    assert converse.statistics().streams_opened == 1


# What it tells


async def test_stream__leaves_out_what_nobody_uses(facade: Facade) -> None:
    changes, secret = Changes(), "left out"
    viewer = await facade(client_options={"event_listeners": [changes]}, **NEVER)
    other = await facade(viewer.database_name, message_model=Own)
    conversation: Conversation = await other.start_conversation(
        owner=("user", "1"), title=secret, context={"a": secret}
    )
    async with (
        viewer.watch_conversation(conversation.id, "now") as events,
        viewer.watch_owner(("user", "1")) as owned,
    ):
        await opened(viewer)
        whole = await conversation.create_user_message("x", large=secret)
        whole.metadata |= {"a": secret, "b": [secret]}
        whole.content = secret
        await whole.save()
        streamed = await conversation.start_streaming_assistant()
        await streamed.append_chunks(["told ", "in chunks"])
        await streamed.complete_streaming({"a": secret})
        conversation.context["b"] = secret
        conversation.metadata["c"] = secret
        await conversation.save()
        seen = [await soon(anext(events)) for _ in range(6)]
        async with asyncio.timeout(SOON):
            async for event in owned:
                if isinstance(event, ConversationUpdated):
                    break
    assert [event for event in seen if isinstance(event, MessageUpdated)]
    assert sequences(seen) == [0, 1]
    assert changes.of("insert")
    assert len(changes.of("update")) >= 5
    for each in changes.received:
        assert secret.encode() not in bson.encode(each), each
        fields = {"_id", "operationType", "clusterTime", "ns", "documentKey", "fullDocument"}
        assert each.keys() <= fields | {"updateDescription"}, each
        assert each.get("updateDescription", {}).keys() <= {"updatedFields"}, each
        assert "clusterTime" in each


@pytest.mark.parametrize("member", ["primary", "secondary"])
async def test_stream__is_read_from_the_member_that_was_asked_for(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, member: Any
) -> None:
    asked: list[Any] = []
    name = "ThreadChangeStream" if installed.driver_name() == "motor" else "TaskChangeStream"
    real = getattr(change_streams, name)

    def make(database: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(database.read_preference)
        return real(database, *arguments, **options)

    monkeypatch.setattr(change_streams, name, make)
    converse = await facade(stream_from=member)
    async with converse.watch_message((await start(converse)).id):
        await opened(converse)
    expected = {"primary": ReadPreference.PRIMARY, "secondary": ReadPreference.SECONDARY_PREFERRED}
    assert asked == [expected[member]]


# When it is late


@pytest.mark.parametrize("what", ["message", "conversation"])
async def test_late_stream__behind_a_mongos_is_made_good_for_what_streams(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, commands: Commands, what: str
) -> None:
    async def is_sharded(database: Any) -> bool:
        return True

    monkeypatch.setattr(servers, "is_sharded", is_sharded)
    writer = await facade()
    viewer = await facade(
        writer.database_name,
        check_interval=3600,
        poll_interval=0.05,
        client_options={"event_listeners": [commands]},
    )
    feeds(viewer, (None, SilentFeed()))
    message = await start(writer)
    watch: Any = viewer.watch_message(message.id)
    if what == "conversation":
        watch = viewer.watch_conversation(message.conversation_id, "now")
    async with watch as events:
        await opened(viewer)
        await until(lambda: viewer.statistics().checks >= 1)
        for number in range(3):
            await message.append_chunk(str(number))
            assert sequences([await soon(anext(events))]) == [number]
        await message.complete_streaming()
        assert (await soon(anext(events))).type == "message.completed"
        if what == "message":
            return
        # Where nothing streams there is nothing to ask for.
        [topic] = viewer._open_parts.hub._registry.conversations.values()
        waiting = asyncio.create_task(anext(events))  # else nobody reads what is stale by now
        await until(lambda: not (topic.open or topic.stale or topic._reading.locked()))
        await asyncio.sleep(0.2)  # a look that had begun is over
        commands.sent.clear()
        await asyncio.sleep(0.3)
        assert not commands.named("find")
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_late_stream__of_a_replica_set_is_left_to_the_checks(
    facade: Facade, commands: Commands
) -> None:
    viewer = await facade(
        check_interval=3600, poll_interval=0.02, client_options={"event_listeners": [commands]}
    )
    feeds(viewer, (None, SilentFeed()))
    async with viewer.watch_message((await start(viewer)).id):
        await opened(viewer)
        await until(lambda: viewer.statistics().checks >= 1)
        await asyncio.sleep(0.1)
        commands.sent.clear()
        await asyncio.sleep(0.3)
        assert not commands.named("find")


async def test_checks__grow_rarer_and_are_set_back_by_what_the_stream_did_not_tell(
    facade: Facade,
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, check_interval=0.05)
    feeds(viewer, (None, SilentFeed()))
    pace, grown = viewer._open_parts.hub._pace, list[float]()
    real = pace.judge

    def judge(*, untold: bool) -> None:
        real(untold=untold)
        grown.append(pace._growth)

    pace.judge = judge
    message = await start(writer)
    async with viewer.watch_message(message.id) as events:
        await opened(viewer)
        await message.append_chunk("a")
        assert sequences([await soon(anext(events))]) == [0]
        await until(lambda: grown[-1:] == [4])
        grown.clear()
        await message.append_chunk("b")
        assert sequences([await soon(anext(events))]) == [1]
        await until(lambda: 1 in grown and grown[-1] == 4)


async def test_checks__stay_rare_while_the_stream_tells_all(facade: Facade) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, check_interval=0.05)
    judged: list[bool] = []
    pace = viewer._open_parts.hub._pace
    real = pace.judge

    def judge(*, untold: bool) -> None:
        judged.append(untold)
        real(untold=untold)

    message = await start(writer)
    async with viewer.watch_message(message.id) as events:
        await opened(viewer)
        await message.append_chunk("first")
        await soon(anext(events))
        pace.judge = judge
        for number in range(200):
            await message.append_chunk(str(number))
        async with asyncio.timeout(SOON):
            for _ in range(200):
                await anext(events)
        await until(lambda: len(judged) > 2)
    assert sum(judged) <= len(judged) / 2, judged


# When it is lost


async def test_lost_stream__is_opened_again_by_each_process_at_a_time_of_its_own(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds: list[tuple[float, float]] = []

    def uniform(shortest: float, longest: float) -> float:
        bounds.append((shortest, longest))
        return shortest

    viewer = await facade(**NEVER)
    silent = SilentFeed()
    feeds(viewer, (None, silent), (None, None))
    async with viewer.watch_message((await start(viewer)).id):
        await opened(viewer)
        monkeypatch.setattr("converse_mongo.watching.hub.random.uniform", uniform)
        silent.lost.set()
        await opened(viewer, 2)
    # The comparison that follows at once, too.
    assert (0.0, hub.REOPENING_SECONDS) in bounds
    assert (0, hub.REOPENING_SECONDS / 4) in bounds


async def test_lost_stream__has_few_topics_read_at_once(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = await facade(**NEVER)
    conversation = await viewer.start_conversation()
    count, room = 40, message_reads.READS_AT_ONCE
    messages = await asyncio.gather(
        *[conversation.start_streaming_assistant() for _ in range(count)]
    )
    the_hub = viewer._open_parts.hub
    reader, gate, reading = the_hub._registry._reader, asyncio.Event(), 0
    real = reader.read

    async def read(*arguments: Any, **options: Any) -> Any:
        nonlocal reading
        reading += 1
        await gate.wait()
        return await real(*arguments, **options)

    watching = [asyncio.create_task(collect(viewer, message)) for message in messages]
    topics = the_hub._registry.messages
    await opened(viewer)
    await until(
        lambda: (
            len(topics) == count
            and all(topic.ready and not topic.stale for topic in topics.values())
        )
    )
    monkeypatch.setattr(reader, "read", read)
    the_hub._registry.mark_all_stale()
    await until(lambda: reading == room)
    await asyncio.sleep(0.05)
    assert reading == room
    gate.set()
    await asyncio.gather(*[message.complete_streaming() for message in messages])
    async with asyncio.timeout(SOON):
        await asyncio.gather(*watching)
