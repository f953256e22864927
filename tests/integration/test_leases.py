"""Leases: take-overs, stops and orphans. Contract 4, across processes."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from converse_mongo import (
    Converse,
    InvalidInputError,
    Message,
    MessageCancelled,
    MessageFailed,
    MessageNotFoundError,
    MessageNotStreamingError,
    MessageStatus,
    StreamStoppedError,
    WriterFencedError,
)
from converse_mongo.store import clock as clocks
from converse_mongo.store import leases, recovery
from tests.conftest import Commands, Facade
from tests.integration.helpers import DEAD, Between, Call, die, expired, start
from tests.streams import SOON, assert_exact, collect, until


async def until_ended(converse: Converse, message: Message) -> Message:
    """Looks at an orphan until it is ended, which the first look does not do."""
    async with asyncio.timeout(SOON):
        while (read := await converse.get_message(message.id)).is_streaming:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return read


class Looks:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


# Take-overs


async def test_take_over__fences_the_writer_before(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await start(converse)
    watching = asyncio.create_task(collect(other, message))
    taken = ""  # unless the old writer hears of the new one before it writes
    with pytest.raises(WriterFencedError) as fenced:
        async with message.writer() as old:
            await old.write("one ")
            await old.flush()
            copy = await other.get_message(message.id)
            async with copy.resume_writer() as new:
                assert copy.content == "one "
                with pytest.raises(WriterFencedError):
                    await old.write("never stored")
                    taken = "never stored"
                    await old.flush()
                await new.write("two")
            await old.write("x")
    assert fenced.value.text == taken
    read = await converse.get_message(message.id)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, "one two")
    assert read.lease is not None
    assert read.lease.epoch == 2
    assert_exact(await watching, read)


async def test_take_over__the_one_before_cannot_end_the_message(facade: Facade) -> None:
    converse = await facade()
    message = await start(converse)
    copy = await converse.get_message(message.id)
    new = copy.resume_writer()
    with pytest.raises(WriterFencedError):
        async with message.writer():
            await new.__aenter__()
    await new.write("still here")
    await new.__aexit__(None, None, None)
    assert (await converse.get_message(message.id)).content == "still here"


async def test_take_over__continues_a_long_message(facade: Facade) -> None:
    converse = await facade()
    message = await start(converse)
    await die(converse, message)
    await message.append_chunks([f"{number} " for number in range(700)])
    copy = await converse.get_message(message.id)
    async with copy.resume_writer() as writer:
        assert copy.content == message.content
        await writer.write("end")
    read = await converse.get_message(message.id)
    assert read.content == copy.content == message.content + "end"
    assert [chunk.sequence for chunk in read.chunks] == list(range(701))


async def test_take_over__by_a_pipe(facade: Facade) -> None:
    converse = await facade()
    message = await start(converse)
    await die(converse, message, "one ")

    async def tokens() -> AsyncIterator[str]:
        yield "two "
        yield "three"

    copy = await converse.get_message(message.id)
    await copy.pipe(tokens(), {"again": True}, resume=True)
    read = await converse.get_message(message.id)
    assert (read.content, read.metadata["again"]) == ("one two three", True)
    assert copy.content == read.content


def write_until_fenced(uri: str, database: str, message_id: str, pipe: Connection) -> None:
    """A process that writes as fast as it can; it says what it stored, and when it was fenced."""

    async def write() -> None:
        async with Converse(uri, database=database, create_indexes=False) as converse:
            while (message_id := await asyncio.to_thread(pipe.recv)) is not None:
                message = await converse.get_message(message_id)
                number = 0
                try:
                    async with message.writer(flush_interval=0.0005) as writer:
                        while True:
                            await writer.write(f"<old.{number}>")
                            number += 1
                            await asyncio.sleep(0)
                            if number == 5:
                                pipe.send("writing")
                except WriterFencedError as error:
                    pipe.send(("fenced", number, error.text))

    asyncio.run(write())


@pytest.mark.timeout(120)
async def test_take_over__of_a_live_writer_in_another_process(
    facade: Facade, server_uri: str
) -> None:
    converse = await facade()
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    arguments = (server_uri, converse.database_name, "", theirs)
    process = context.Process(target=write_until_fenced, args=arguments)
    process.start()
    receive = asyncio.to_thread
    try:
        for _ in range(8):
            message = await start(converse)
            pipe.send(str(message.id))
            assert await receive(pipe.recv) == "writing"
            async with message.resume_writer() as writer:
                taken_over = message.content
                for number in range(5):
                    await writer.write(f"<new.{number}>")
                    await writer.flush()
                _, written, text = await receive(pipe.recv)
            content = (await converse.get_message(message.id)).content
            assert content == taken_over + "".join(f"<new.{number}>" for number in range(5))
            # All that the old one had taken is either stored before the take-over, or given back.
            assert "".join(f"<old.{number}>" for number in range(written)) == taken_over + text
        pipe.send(None)
        await receive(process.join, 20)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


# Idempotent starts


async def test_generation__started_twice_is_one_message(facade: Facade) -> None:
    converse = await facade()
    facades = [converse, *[await facade(converse.database_name) for _ in range(3)]]
    conversation = await converse.start_conversation()
    copies = [await one.get_conversation(conversation.id) for one in facades for _ in range(5)]
    for turn in range(5):
        messages = await asyncio.gather(
            *[
                copy.start_streaming_assistant({"turn": turn}, generation_id=f"job-{turn}")
                for copy in copies
            ]
        )
        assert len({message.id for message in messages}) == 1
        assert {message.position for message in messages} == {turn}
    assert [message.position for message in await conversation.messages()] == list(range(5))
    again = await conversation.start_streaming_assistant(generation_id="job-0")
    await again.append_chunk("text")
    await again.complete_streaming()
    found = await copies[1].start_streaming_assistant(generation_id="job-0")
    assert (found.status, found.content) == (MessageStatus.COMPLETED, "text")
    other = await converse.start_conversation()
    assert (await other.start_streaming_assistant(generation_id="job-0")).id != found.id


async def test_generation__is_told_from_another(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    await conversation.start_streaming_assistant(generation_id="job")
    with pytest.raises(InvalidInputError, match="assistant"):
        await conversation.start_streaming_user(generation_id="job")
    for bad in ("", "\udc80", 5):
        with pytest.raises(InvalidInputError):
            await conversation.start_streaming_assistant(generation_id=bad)  # type: ignore[arg-type]
    assert len(await conversation.messages()) == 1


# Stops


def stop_when_told(uri: str, database: str, pipe: Connection) -> None:
    """A process that stops the messages that it is told of."""

    async def stop() -> None:
        async with Converse(uri, database=database, create_indexes=False) as converse:
            pipe.send("ready")
            message_id = await asyncio.to_thread(pipe.recv)
            pipe.send(str(await converse.request_stop(message_id, "enough")))

    asyncio.run(stop())


@pytest.mark.parametrize("interrupt", [True, False], ids=["interrupted", "noticed"])
async def test_stop__from_another_process_while_the_model_is_silent(
    facade: Facade, server_uri: str, interrupt: bool
) -> None:
    converse = await facade()
    message = await start(converse)
    watching = asyncio.create_task(collect(converse, message))
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(
        target=stop_when_told, args=(server_uri, converse.database_name, theirs)
    )
    process.start()
    silence = asyncio.Event()

    async def tokens() -> AsyncIterator[str]:
        yield "partial"
        silence.set()
        await asyncio.sleep(10)
        pytest.fail("the model was not interrupted")

    async def generate() -> None:
        if interrupt:
            await message.pipe(tokens())
        async with message.writer() as writer:
            await writer.write("partial")
            silence.set()
            assert await writer.wait_stopping() == "enough"
            assert writer.stopping
            await writer.write("more")

    try:
        assert await asyncio.to_thread(pipe.recv) == "ready"
        generating = asyncio.create_task(generate())
        await silence.wait()
        pipe.send(str(message.id))
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(StreamStoppedError) as stopped:
            await generating
        assert loop.time() - began < 9  # the next token would have come later
        assert stopped.value.reason == "enough"
        assert await asyncio.to_thread(pipe.recv) in ("streaming", "cancelled")
    finally:
        process.join(10)
        process.kill()
    read = await converse.get_message(message.id)
    assert (read.status, read.content) == (MessageStatus.CANCELLED, "partial")
    assert read.stop_reason == message.stop_reason == "enough"
    events = await watching
    assert_exact(events, read)
    assert isinstance(events[-1], MessageCancelled)
    assert events[-1].reason == "enough"


async def test_stop__is_learnt_at_the_next_flush_without_a_hub(facade: Facade) -> None:
    converse = await facade(change_streams=False, poll_interval=3600, check_interval=3600)
    other = await facade(converse.database_name)
    message = await start(converse)
    with pytest.raises(StreamStoppedError):
        async with message.writer(flush_interval=0.01) as writer:
            await writer.write("one ")
            await writer.flush()
            assert await other.request_stop(message.id) is MessageStatus.STREAMING
            while True:
                await writer.write("two ")
                await asyncio.sleep(0.002)
    read = await other.get_message(message.id)
    assert read.is_cancelled
    # What was written before the writer heard of it is stored: no token that it took is lost.
    assert read.content == message.content
    assert len(read.content) // 4 == writer.statistics().tokens


async def test_stop__is_learnt_by_a_heartbeat_without_a_hub(facade: Facade) -> None:
    converse = await facade(
        change_streams=False, poll_interval=3600, check_interval=3600, lease=0.3
    )
    message = await start(converse)
    async with message.writer() as writer:
        await writer.write("text")
        assert await message.request_stop("enough") is MessageStatus.STREAMING
        assert await writer.wait_stopping() == "enough"
    assert (message.status, message.content) == (MessageStatus.CANCELLED, "text")


async def test_stop__that_the_loop_did_not_notice(facade: Facade) -> None:
    converse = await facade(change_streams=False, poll_interval=3600, check_interval=3600)
    message = await start(converse)
    with pytest.raises(StreamStoppedError):
        async with message.writer(flush_interval=60) as writer:
            await writer.write("one ")
            await writer.flush()
            await message.request_stop()
            await writer.write("two")
    read = await converse.get_message(message.id)
    assert (read.status, read.content) == (MessageStatus.CANCELLED, "one two")


async def test_stop__polled_where_there_is_no_change_stream(facade: Facade) -> None:
    converse = await facade(change_streams=False, poll_interval=0.02)
    message = await start(converse)
    async with message.writer() as writer:
        await message.request_stop()
        assert await writer.wait_stopping() is None
        assert writer.stopping
    assert message.is_cancelled


async def test_stop__of_a_message_without_a_writer_ends_it(facade: Facade) -> None:
    converse = await facade(**DEAD)
    by_hand = await start(converse)
    await by_hand.append_chunk("text")
    assert await by_hand.request_stop("enough") is MessageStatus.CANCELLED
    with pytest.raises(MessageNotStreamingError) as ended:
        await by_hand.append_chunk("more")
    assert ended.value.status is MessageStatus.CANCELLED

    dead = await start(converse)
    await die(converse, dead, "text")
    await expired(converse, dead)
    assert await converse.request_stop(str(dead.id)) is MessageStatus.STREAMING
    read = await until_ended(converse, dead)
    assert (read.status, read.content) == (MessageStatus.CANCELLED, "text")


async def test_stop__of_a_writer_that_dies_before_it_hears_of_it(facade: Facade) -> None:
    converse = await facade(**DEAD)
    message = await start(converse)
    await die(converse, message, "text")
    assert await message.request_stop("enough") is MessageStatus.STREAMING
    await expired(converse, message)
    read = await until_ended(converse, message)
    assert (read.status, read.stop_reason) == (MessageStatus.CANCELLED, "enough")


async def test_stop__before_a_writer_comes(facade: Facade) -> None:
    converse = await facade()
    message = await start(converse)
    await die(converse, message, "text")
    await message.request_stop("enough")
    with pytest.raises(StreamStoppedError):
        await message.resume_writer().__aenter__()
    read = await converse.get_message(message.id)
    assert (read.status, read.content) == (MessageStatus.CANCELLED, "text")


async def test_stop__changes_nothing_about_an_ended_message(converse: Converse) -> None:
    message = await start(converse)
    await message.complete_streaming()
    assert await message.request_stop("late") is MessageStatus.COMPLETED
    assert (await converse.get_message(message.id)).stop_reason is None
    with pytest.raises(MessageNotFoundError):
        await converse.request_stop("5" * 24)
    with pytest.raises(InvalidInputError):
        await message.request_stop("x" * 20_000)


async def test_cancel__by_hand(converse: Converse) -> None:
    message = await start(converse)
    await message.append_chunk("text")
    await message.cancel_streaming("enough", {"by": "me"})
    read = await converse.get_message(message.id)
    assert read.is_cancelled
    assert (read.stop_reason, read.metadata["by"]) == ("enough", "me")


# Orphans


@pytest.mark.parametrize("who", ["message", "conversation"])
async def test_orphan__is_ended_by_whoever_watches_it(facade: Facade, who: str) -> None:
    converse = await facade(**DEAD)
    message = await start(converse)
    await die(converse, message, "partial ", "text")
    viewer = await facade(converse.database_name, poll_interval=0.05, check_interval=0.1)
    if who == "message":
        events = await collect(viewer, message)
    else:
        events = []
        async for event in viewer.watch_conversation(message.conversation_id):
            events.append(event)
            if isinstance(event, MessageFailed):
                break
    end = events[-1]
    assert isinstance(end, MessageFailed)
    assert (end.error, end.chunk_count) == ("interrupted", 2)
    assert (await converse.get_message(message.id)).content == "partial text"


async def test_orphan__that_never_began_is_ended_too(facade: Facade) -> None:
    converse = await facade(**DEAD)
    events = await collect(converse, await start(converse))
    assert [event.type for event in events] == ["message.failed"]


async def test_orphan__is_ended_by_a_reader(facade: Facade) -> None:
    converse = await facade(**DEAD)
    message = await start(converse)
    await die(converse, message, "text")
    assert (await converse.get_message(message.id)).is_streaming
    await expired(converse, message)
    assert (await converse.get_message(message.id)).is_streaming
    read = await until_ended(converse, message)
    assert (read.status, read.error, read.content) == (
        MessageStatus.FAILED,
        "interrupted",
        "text",
    )
    assert read.metadata["chunks"] == 1


async def test_orphan__is_ended_in_a_listing(facade: Facade) -> None:
    converse = await facade(**DEAD)
    message = await start(converse)
    await die(converse, message, "text")
    await expired(converse, message)
    conversation = await converse.get_conversation(message.conversation_id)
    async with asyncio.timeout(SOON):
        while (listed := (await conversation.messages())[0]).is_streaming:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (listed.status, listed.content) == (MessageStatus.FAILED, "text")


async def test_orphan__is_settled_once(facade: Facade) -> None:
    converse = await facade(**DEAD)
    facades = [converse, *[await facade(converse.database_name, **DEAD) for _ in range(2)]]
    messages = [await start(converse) for _ in range(5)]
    for message in messages:
        await die(converse, message, "text")
    for message in messages:
        await expired(converse, message)
    found = await asyncio.gather(
        *[one.recover_stale() for one in facades for _ in range(3)],
        *[one.get_message(message.id) for one in facades for message in messages],
    )
    ended = {(await converse.get_message(message.id)).completed_at for message in messages}
    assert len(ended) <= len(messages)
    for message in messages:
        read = await converse.get_message(message.id)
        seen = {
            event.completed_at
            for events in found
            if isinstance(events, list)
            for event in events
            if event.message_id == message.id
        } | {
            one.completed_at
            for one in found
            if isinstance(one, Message) and one.id == message.id and not one.is_streaming
        }
        assert seen == {read.completed_at}


async def test_recover__fails_or_completes(facade: Facade) -> None:
    converse = await facade(**DEAD)
    empty, partial, alive = [await start(converse) for _ in range(3)]
    await die(converse, empty)
    await die(converse, partial, "text")
    await expired(converse, empty)
    await expired(converse, partial)
    async with alive.writer() as writer:
        await writer.write("fine")
        recovered = await converse.recover_stale(complete_partial=True)
        assert {event.message_id: event.type for event in recovered} == {
            empty.id: "message.failed",
            partial.id: "message.completed",
        }
        assert await converse.recover_stale() == []
    read = await converse.get_message(partial.id)
    assert (read.content, read.metadata["partial"]) == ("text", True)
    assert alive.is_completed


async def test_recover__in_the_background(facade: Facade) -> None:
    converse = await facade(**DEAD)
    message = await start(converse)
    await die(converse, message, "text")
    await facade(converse.database_name, sweep_interval=0.05)
    store = converse.message_model.store()
    while True:  # without looking at it through the library, which would end it
        state = await store.reader.state(message.id, message.conversation_id)
        assert state is not None
        if state.status.is_final:
            break
        await asyncio.sleep(0.02)
    assert (state.status, state.error) == (MessageStatus.FAILED, "interrupted")


class Trouble:
    """For a :class:`Between`: fails some calls as a lost connection does."""

    def __init__(self) -> None:
        self.left = 0

    async def __call__(self, call: Call, *arguments: Any, **options: Any) -> Any:
        if self.left:
            self.left -= 1
            raise AutoReconnect("the network is down")
        return await call(*arguments, **options)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """The clock by which this process tells how far apart two looks are."""
    clock = Looks()
    monkeypatch.setattr(leases, "time", clock)
    monkeypatch.setattr(clocks, "ESTIMATED_SECONDS", -1)  # the server's clock is asked each time
    return clock


async def test_orphan__is_ended_at_the_second_look(facade: Facade, looks: Looks) -> None:
    converse = await facade(change_streams=False, poll_interval=3600, lease=0.3, idle_timeout=0.3)
    message = await start(converse)
    await die(converse, message, "text")
    await expired(converse, message)
    for passed in (0.0, 0.05, 0.04):  # a third of the lease is 0.1
        looks.now += passed
        assert (await converse.get_message(message.id)).is_streaming
    looks.now += 0.02
    assert (await converse.get_message(message.id)).is_failed


@pytest.mark.parametrize("what", ["a call fails", "a heartbeat", "another writer"])
async def test_orphan__is_looked_at_anew_after(facade: Facade, looks: Looks, what: str) -> None:
    converse = await facade(change_streams=False, poll_interval=3600, lease=0.3, idle_timeout=0.3)
    message = await start(converse)
    other = await start(converse)
    await die(converse, message, "text")
    store = converse.message_model.store()
    trouble = Trouble()
    Between(store, update_one=trouble)
    await expired(converse, message)
    assert (await converse.get_message(message.id)).is_streaming
    looks.now += 1
    if what == "a call fails":
        trouble.left = 1
        await other.append_chunk("of another message")
    elif what == "a heartbeat":
        await message.append_chunk(" and more")
    else:
        await store.leases.take_over(message._own_key())
    await expired(converse, message)
    for passed in (0.0, 0.05):
        looks.now += passed
        assert (await converse.get_message(message.id)).is_streaming
    looks.now += 0.06
    assert (await converse.get_message(message.id)).is_failed


async def test_orphan__of_the_same_id_is_another_one(facade: Facade, looks: Looks) -> None:
    converse = await facade(change_streams=False, poll_interval=3600, lease=0.3, idle_timeout=0.3)
    conversation = await converse.start_conversation()
    for _ in range(2):
        message = await conversation.start_streaming_assistant(generation_id="job")
        await die(converse, message, "text")
        await expired(converse, message)
        assert (await converse.get_message(message.id)).is_streaming
        looks.now += 1
        await message.delete()


async def test_recover__waits_once_for_all_second_looks(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(change_streams=False, poll_interval=3600, lease=0.3, idle_timeout=0.3)
    messages = [await start(converse) for _ in range(5)]
    for message in messages:
        await die(converse, message, "text")
    for message in messages:
        await expired(converse, message)
    store = converse.message_model.store()
    waits: list[float] = []
    real = recovery.pause

    async def pause(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            store.note_trouble()  # so that all are looked at once more
        await real(seconds)

    monkeypatch.setattr(recovery, "pause", pause)
    recovered = await converse.recover_stale()
    assert {event.message_id for event in recovered} == {message.id for message in messages}
    assert len(waits) == 2
    assert not store.leases._looks


async def test_looks__are_bounded(
    facade: Facade, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LOOKS_KEPT", 2)
    converse = await facade(change_streams=False, poll_interval=3600, lease=0.3, idle_timeout=0.3)
    for _ in range(4):
        message = await start(converse)
        await die(converse, message, "text")
        await expired(converse, message)
        await converse.get_message(message.id)
    assert len(message.store().leases._looks) == 2


async def test_lease__of_a_silent_writer_is_renewed(facade: Facade) -> None:
    converse = await facade(**DEAD)
    other = await facade(converse.database_name, poll_interval=0.05, check_interval=0.1)
    message = await start(converse)
    watching = asyncio.create_task(collect(other, message))
    async with message.writer() as writer:
        await writer.write("text")
        await asyncio.sleep(1)  # three leases of silence
        await other.recover_stale()
        await writer.write(" and more")
    assert (await converse.get_message(message.id)).content == "text and more"
    assert_exact(await watching, await converse.get_message(message.id))


async def test_lease__of_a_writer_that_was_only_slow(facade: Facade) -> None:
    converse = await facade(lease=0.3)
    other = await facade(converse.database_name)
    message = await start(converse)
    store = converse.message_model.store()
    asleep = asyncio.Event()
    real = store.leases.renew

    async def renew(*arguments: Any) -> Any:
        await asleep.wait()
        return await real(*arguments)

    with pytest.raises(WriterFencedError, match="orphan") as fenced:
        async with message.writer(flush_interval=60) as writer:
            await writer.write("stored ")
            await writer.flush()
            store.leases.renew = renew  # not before: a writer that renews does not flush
            await expired(other, message)
            assert [event.message_id for event in await other.recover_stale()] == [message.id]
            asleep.set()
            await writer.write("lost")
            await writer.flush()
    assert fenced.value.text in ("lost", "")
    read = await other.get_message(message.id)
    assert (read.status, read.content) == (MessageStatus.FAILED, "stored ")


async def test_lease__runs_by_the_clock_of_the_server(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process whose own clock is wrong by an hour ends nothing that lives, and what is dead."""
    from converse_mongo.domain import validation

    converse = await facade(**DEAD)
    alive = await start(await facade(converse.database_name))
    dead = await start(converse)
    await die(converse, dead, "text")
    await expired(converse, dead)
    real = validation.now
    for wrong in (timedelta(hours=1), timedelta(hours=-1)):
        for module in ("store.ends", "store.appends", "documents.base"):
            monkeypatch.setattr(f"converse_mongo.{module}.now", lambda by=wrong: real() + by)
        viewer = await facade(converse.database_name)
        async with (await start(viewer)).writer() as writer:
            await writer.write("x")
            assert alive.id not in [event.message_id for event in await viewer.recover_stale()]
    assert (await converse.get_message(dead.id)).is_failed


async def test_idle__messages_by_hand_live_on_with_each_append(facade: Facade) -> None:
    converse = await facade(idle_timeout=3600)
    message = await start(converse)
    messages = message.store().messages

    async def let_pass(**time: float) -> None:
        found = await messages.find_one({"_id": message.id})
        earlier = found["lease"]["renewed_at"] - timedelta(**time)
        await messages.update_one({"_id": message.id}, {"$set": {"lease.renewed_at": earlier}})

    for _ in range(3):
        await message.append_chunk("x")
        await let_pass(minutes=40)
        assert await converse.recover_stale() == []
    await let_pass(minutes=40)
    assert len(await converse.recover_stale()) == 1

    for_ever = await facade(converse.database_name, idle_timeout=None)
    message = await start(for_ever)
    assert message.lease is not None
    assert message.lease.duration is None
    assert await converse.recover_stale() == []


async def test_costs__reading_an_ended_message_asks_for_nothing_more(
    facade: Facade, commands: Commands
) -> None:
    converse = await facade(client_options={"event_listeners": [commands]})
    message = await start(converse)
    await message.append_chunk("x")
    await message.complete_streaming()
    commands.sent.clear()
    await converse.get_message(message.id)
    assert [name for name, _ in commands.sent] == ["find"]
    commands.sent.clear()
    await until(lambda: not commands.sent)


async def test_find_expired__asks_once_for_all_messages(facade: Facade, commands: Commands) -> None:
    converse = await facade(client_options={"event_listeners": [commands]})
    conversation = await converse.start_conversation()
    messages = [await conversation.start_streaming_assistant() for _ in range(10)]
    for message in messages[5:]:
        await message.append_chunk("word")
    store = converse.message_model.store()
    keys = {message.id: message.conversation_id for message in messages}

    async def find_expired(**changes: Any) -> tuple[list[Any], list[str]]:
        found = await store.reader.counters(keys)
        held = {key: counters.lease.model_copy(update=changes) for key, counters in found.items()}
        commands.sent.clear()
        orphans = await store.leases.find_expired(held, keys)
        return sorted(orphans), [name for name, _ in commands.sent]

    assert await find_expired() == ([], ["update", "hello"])
    assert await find_expired() == ([], [])
    assert await find_expired(duration=0.001) == (sorted(keys), [])


async def test_check__starts_the_leases_of_all_that_nobody_has_written_to(facade: Facade) -> None:
    converse = await facade(poll_interval=0.02, check_interval=0.02)
    conversation = await converse.start_conversation()
    messages = [await conversation.start_streaming_assistant() for _ in range(3)]
    tasks = [asyncio.create_task(collect(converse, message)) for message in messages]
    store = converse.message_model.store()
    for message in messages:
        async with asyncio.timeout(20):
            while True:
                state = await store.reader.state(message.id, message.conversation_id)
                assert state is not None
                if state.lease.renewed_at is not None:
                    break
                await asyncio.sleep(0.01)
    for message in messages:
        await message.complete_streaming()
    await asyncio.gather(*tasks)
