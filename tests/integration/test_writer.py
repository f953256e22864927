"""The writer: tokens in, batched appends out; nothing waits, nothing grows, nothing is lost."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect

from converse_mongo import (
    ConfigurationError,
    Converse,
    ConverseClosedError,
    InvalidContentError,
    InvalidInputError,
    Message,
    MessageCancelled,
    MessageNotStreamingError,
    MessageStatus,
    MessageWriter,
    WriterError,
    WriterExistsError,
    WriterFailedError,
    WriterFencedError,
)
from converse_mongo.domain.types import Granularity
from tests.conftest import Facade
from tests.integration.helpers import Gate, start, stored, text_of, tokens
from tests.streams import SOON, assert_exact, collect, until

# Ends


async def test_writer__completes_on_a_clean_exit(facade: Facade) -> None:
    converse, other = (first := await facade()), await facade(first.database_name)
    message = await start(converse)
    watching = asyncio.create_task(collect(other, message))
    async with message.writer(metadata={"model": "small"}) as writer:
        async for token in tokens(100):
            await writer.write(token)
        writer.metadata["usage"] = {"tokens": 100}
    read = await stored(other, message)
    assert read.is_completed
    assert read.content == message.content == text_of(100)
    assert read.metadata == message.metadata
    assert read.metadata["usage"] == {"tokens": 100}
    assert read.metadata["model"] == "small"
    assert read.metadata["chunks"] == len(read.chunks) == len(message.chunks)
    assert_exact(await watching, read)


async def test_writer__fails_on_an_exception_and_keeps_the_text(converse: Converse) -> None:
    message = await start(converse)
    with pytest.raises(ValueError, match="no more"):
        async with message.writer() as writer:
            await writer.write("partial ")
            await writer.write("text")
            raise ValueError("no more \udc80")
    read = await stored(converse, message)
    assert (read.status, read.error, read.content) == (
        MessageStatus.FAILED,
        "no more ?",
        "partial text",
    )


async def test_writer__is_cancelled_with_its_task(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    heard: list[MessageCancelled] = []
    converse.on(MessageCancelled, heard.append)
    message = await start(converse)
    watching = asyncio.create_task(collect(other, message))
    written = asyncio.Event()

    async def generate() -> None:
        async with message.writer() as writer:
            await writer.write("partial ")
            await writer.write("text")
            written.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(generate())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    read = await stored(other, message)
    assert (read.status, read.content) == (MessageStatus.CANCELLED, "partial text")
    assert message.is_cancelled
    assert_exact(await watching, read)
    assert [event.type for event in heard] == ["message.cancelled"]


async def test_writer__stores_all_however_often_it_is_cancelled(converse: Converse) -> None:
    message = await start(converse)
    gate = Gate(converse)
    written = asyncio.Event()

    async def generate() -> None:
        async with message.writer() as writer:
            for word in ("one ", "two ", "three"):
                await writer.write(word)
            written.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(generate())
    await written.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    read = await stored(converse, message)
    assert (read.status, read.content) == (MessageStatus.CANCELLED, "one two three")


async def test_writer__says_so_if_another_call_ended_the_message(converse: Converse) -> None:
    message = await start(converse)
    with pytest.raises(MessageNotStreamingError):
        async with message.writer() as writer:
            await writer.write("text")
            await writer.flush()
            await (await stored(converse, message)).complete_streaming()
            assert await writer.wait_stopping() is None  # told by the change stream
            await writer.write("more")
    assert (await stored(converse, message)).content == "text"


# Group commit


async def test_flush__the_first_token_goes_at_once_and_the_tail_by_a_timer(
    converse: Converse,
) -> None:
    message = await start(converse)
    async with message.writer(flush_interval=0.05) as writer:
        await writer.write("first")
        await until(lambda: writer.statistics().chunks == 1)
        await writer.write(" second")
        await writer.write(" third")
        # No further token pushes these two out.
        await until(lambda: writer.statistics().writes == 2)
        assert (await stored(converse, message)).content == "first second third"
    assert [chunk.content for chunk in message.chunks] == ["first", " second third"]


async def test_flush__gathers_while_one_write_is_in_flight(converse: Converse) -> None:
    message = await start(converse)
    gate = Gate(converse)
    async with message.writer(flush_interval=0.001) as writer:
        await writer.write("0 ")
        await until(lambda: gate.arrived == 1)
        for number in range(1, 500):
            await writer.write(f"{number} ")
            await asyncio.sleep(0)
        assert (gate.arrived, gate.most) == (1, 1)
        gate.open.set()
        await writer.flush()
        assert writer.statistics().chunks == 2
    assert gate.most == 1
    assert (await stored(converse, message)).content == text_of(500)


async def test_flush__interval_bounds_the_writes(converse: Converse) -> None:
    message = await start(converse)
    loop = asyncio.get_running_loop()
    async with message.writer(flush_interval=0.1) as writer:
        began = loop.time()
        for number in range(200):
            await writer.write(f"{number} ")
            await asyncio.sleep(0.002)
        elapsed = loop.time() - began
    assert writer.statistics().writes <= elapsed / 0.1 + 2
    assert message.content == text_of(200)


async def test_granularity__of_tokens_and_of_metadata(converse: Converse) -> None:
    message = await start(converse)
    gate = Gate(converse)
    async with message.writer(granularity="token") as writer:
        for word in ("a", "b", "", "c"):
            await writer.write(word)
        gate.open.set()
    assert [chunk.content for chunk in message.chunks] == ["a", "b", "c"]
    assert writer.statistics().tokens == 3

    message = await start(converse)
    async with message.writer(flush_interval=60) as writer:
        await writer.write("thinking", {"kind": "reasoning"})
        await writer.flush()
        await writer.write(" hard", {"kind": "reasoning"})
        await writer.write("!", {"kind": "reasoning"})
        await writer.write("Use ")
        await writer.write("open().")
    chunks = (await stored(converse, message)).chunks
    assert [(chunk.content, dict(chunk.metadata)) for chunk in chunks] == [
        ("thinking", {"kind": "reasoning"}),
        (" hard!", {"kind": "reasoning"}),
        ("Use open().", {}),
    ]


async def test_batches__keep_the_limits_of_an_append(converse: Converse) -> None:
    message = await start(converse)
    megabyte = "é" * 500_000
    async with message.writer(max_buffered=16 * 1024 * 1024, flush_interval=60) as writer:
        await writer.write("first")
        await writer.flush()
        for _ in range(10):
            await writer.write(megabyte)
    assert writer.statistics().writes >= 4
    read = await stored(converse, message)
    assert len(read.chunks) == 11
    assert read.content == "first" + megabyte * 10

    message = await start(converse)
    async with message.writer(granularity="token") as writer:
        async for token in tokens(2000):
            await writer.write(token)
    read = await stored(converse, message)
    assert len(read.chunks) == 2000
    assert read.content == text_of(2000)


async def test_batches__count_metadata_too(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer(max_buffered=3_000_000, flush_interval=60) as writer:
        await writer.write("first")
        await writer.flush()
        for number in range(80):
            await writer.write("x", {"number": number, "blob": "y" * 100_000})
    assert writer.statistics().waits
    assert writer.statistics().bytes == 85
    read = await stored(converse, message)
    assert [chunk.metadata["number"] for chunk in read.chunks[1:]] == list(range(80))


async def test_copy__holds_no_more_than_a_page_of_chunks(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer(granularity="token") as writer:
        async for token in tokens(600):
            await writer.write(token)
        await writer.flush()
        assert not message.chunks.is_loaded
        assert message.content == text_of(600)
    assert (message.next_sequence, message.content) == (600, text_of(600))
    assert len((await message.refresh()).chunks) == 600


# Back-pressure


async def test_buffer__makes_write_wait_and_loses_nothing(converse: Converse) -> None:
    message = await start(converse)
    gate = Gate(converse)
    async with message.writer(max_buffered=10) as writer:
        await writer.write("12345")
        await until(lambda: gate.arrived == 1)
        await writer.write("67890")  # what is in flight counts, too
        waiting = asyncio.create_task(writer.write("abc"))
        given_up = asyncio.create_task(writer.write("never"))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        gate.open.set()
        await waiting
        # One that is larger than the buffer goes through an empty one.
        await writer.write("x" * 100)
    assert writer.statistics().waits >= 2
    assert message.content == "1234567890abc" + "x" * 100
    assert (await stored(converse, message)).content == message.content


async def test_flush__waits_for_what_was_written_before_it(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer(flush_interval=60) as writer:
        for number in range(20):
            await writer.write(f"{number} ")
            await writer.flush()
            assert (await stored(converse, message)).content == text_of(number + 1)
        await writer.flush()
        assert writer.statistics().writes == 20


# Faults


async def test_faults__are_tried_again_and_stored_once(facade: Facade) -> None:
    converse = await facade()
    message = await start(converse)
    store = converse.message_model.store()
    real, calls = store.messages, 0

    class Losing:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        async def update_one(self, *arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls % 3 == 1:
                raise AutoReconnect("lost before")
            result = await real.update_one(*arguments, **options)
            if calls % 3 == 2:
                raise AutoReconnect("lost after")
            return result

    store.messages = Losing()
    async with message.writer(flush_interval=0.001) as writer:
        for number in range(10):
            await writer.write(f"{number} ")
            await writer.flush()
    statistics = writer.statistics()
    assert (statistics.tokens, statistics.chunks, statistics.writes) == (10, 10, 10)
    assert statistics.retries >= 10
    assert statistics.bytes == len(text_of(10))
    read = await stored(converse, message)
    assert read.content == text_of(10)
    assert len(read.chunks) == 10


async def test_faults__that_last_give_the_text_back(facade: Facade) -> None:
    converse = await facade(retry_timeout=0.3)
    message = await start(converse)
    gate = Gate(converse)
    with pytest.raises(WriterFailedError) as failed:
        async with message.writer(max_buffered=20) as writer:
            await writer.write("stored ")
            gate.open.set()
            await writer.flush()
            gate.failing = True
            await writer.write("lost ")
            await writer.write("too ")
            await writer.flush()
    assert failed.value.text == "lost too "
    assert failed.value.append_id is not None
    assert failed.value.message_id == message.id
    gate.failing = False
    read = await stored(converse, message)
    assert (read.status, read.content) == (MessageStatus.STREAMING, "stored ")
    # What was given back can be stored, once, by hand.
    assert failed.value.text == "".join(failed.value.unconfirmed) + failed.value.unsent
    for _ in range(2):
        await read.append_chunks(failed.value.unconfirmed, append_id=failed.value.append_id)
    if failed.value.unsent:
        await read.append_chunk(failed.value.unsent)
    assert (await stored(converse, message)).content == "stored lost too "


async def test_faults__wake_whoever_waits_for_room(facade: Facade) -> None:
    converse = await facade(retry_timeout=0.2)
    message = await start(converse)
    gate = Gate(converse)
    gate.failing = True
    gate.open.set()
    with pytest.raises(WriterFailedError) as failed:
        async with message.writer(max_buffered=4) as writer:
            while True:
                await writer.write("1234")
    assert failed.value.text in ("1234", "12341234")


# Interrupting


async def test_interrupt__tells_itself_from_other_cancellations(converse: Converse) -> None:
    message = await start(converse)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit:
            async with message.writer(interrupt=True) as writer:
                await writer.write("text")
                limit.reschedule(asyncio.get_running_loop().time())
                await asyncio.sleep(3600)
    read = await stored(converse, message)
    assert (read.status, read.content) == (MessageStatus.CANCELLED, "text")


async def test_pipe__closes_its_tokens(converse: Converse) -> None:
    message = await start(converse)
    closed = asyncio.Event()

    async def broken() -> AsyncIterator[str]:
        try:
            yield "a"
            yield b"b"  # type: ignore[misc]
        finally:
            closed.set()

    with pytest.raises(InvalidContentError):
        await message.pipe(broken())
    assert closed.is_set()
    read = await stored(converse, message)
    assert (read.status, read.content) == (MessageStatus.FAILED, "a")
    with pytest.raises(InvalidInputError, match="append_chunks"):
        await (await start(converse)).pipe(["a"])  # type: ignore[arg-type]
    async with (await start(converse)).writer() as writer:
        with pytest.raises(InvalidInputError, match="append_chunks"):
            await writer.pipe(["a"])  # type: ignore[arg-type]
        await writer.write("b")


async def test_pipe__writes_all_and_completes(converse: Converse) -> None:
    message = await start(converse)
    assert await message.pipe(tokens(50), {"finish_reason": "stop"}) is message
    read = await stored(converse, message)
    assert read.content == text_of(50)
    assert read.metadata["finish_reason"] == "stop"


# Halves of characters


@pytest.mark.parametrize("granularity", ["flush", "token"])
async def test_halves__of_an_emoji_are_joined(converse: Converse, granularity: Granularity) -> None:
    deltas = ["Great ", "\ud83d", "", "\ude80", " job \ud83d", "\ude80\ud83d"]
    text = "Great \U0001f680 job \U0001f680"

    async def generate() -> AsyncIterator[str]:
        for delta in deltas:
            yield delta

    message = await start(converse)
    await message.pipe(generate(), granularity=granularity)
    read = await stored(converse, message)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, text + "\ufffd")
    assert read.content == message.content == "".join(chunk.content for chunk in read.chunks)

    message = await start(converse)
    async with message.writer(granularity=granularity) as writer:
        for delta in deltas:
            await writer.write(delta)
        await writer.flush()  # does not wait for the half
        assert (await stored(converse, message)).content == text
        assert (writer.statistics().tokens, writer.statistics().replaced) == (5, 0)
        await writer.write("\udc80")
    read = await stored(converse, message)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, text + "\U0001f480")
    with pytest.raises(InvalidContentError, match="surrogate"):
        await (await start(converse)).append_chunk("\ud83d")


@pytest.mark.parametrize("how", ["raises", "is stopped", "detaches", "is fenced"])
async def test_halves__that_stay_are_replaced_however_it_ends(converse: Converse, how: str) -> None:
    message = await start(converse)
    with (
        pytest.raises((ValueError, WriterFencedError))
        if how
        in (
            "raises",
            "is fenced",
        )
        else contextlib.nullcontext() as raised
    ):
        async with message.writer() as writer:
            await writer.write("\udc80text")
            await writer.flush()
            await writer.write("\ud83d")
            if how == "raises":
                raise ValueError
            if how == "detaches":
                await writer.detach()
            elif how == "is stopped":
                await message.request_stop()
                await until(lambda: writer.stopping)
            elif how == "is fenced":
                async with (await stored(converse, message)).resume_writer():
                    pass
    assert writer.statistics().replaced == 2
    read = await stored(converse, message)
    if how == "is fenced":
        assert raised is not None
        assert raised.value.text == "\ufffd"  # type: ignore[attr-defined]
        assert read.content == "\ufffdtext"
    else:
        assert read.content == "\ufffdtext\ufffd"


# A generation loop that awaits nothing else


async def test_write__stores_while_the_loop_blocks_between_tokens(
    facade: Facade, server_uri: str
) -> None:
    converse = await facade()
    message = await start(converse)
    count = shown = 0
    with MongoClient[dict[str, Any]](server_uri) as client:
        messages = client[converse.database_name].messages
        async with message.writer() as writer:
            for count in range(200):
                await writer.write(f"{count} ")
                time.sleep(0.02)  # noqa: ASYNC251 - a synchronous SDK waits for the model
                found = messages.find_one({"_id": message.id})
                if found and (shown := found["next_sequence"]) > 2:
                    break
    assert shown > 2, "nothing was stored before the end of the block"
    assert (await stored(converse, message)).content == text_of(count + 1)


async def test_write__stores_while_the_loop_never_waits(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer(max_buffered=2**30) as writer:
        until_then = time.monotonic() + SOON
        while not writer.statistics().chunks and time.monotonic() < until_then:
            await writer.write("token ")
        assert writer.statistics().chunks
    assert (await stored(converse, message)).is_completed


async def test_write__gives_signs_of_life_while_the_loop_blocks(
    facade: Facade, server_uri: str
) -> None:
    converse = await facade(lease=2)
    message = await start(converse)
    with MongoClient[dict[str, Any]](server_uri) as client:
        messages = client[converse.database_name].messages
        seen = set()
        async with message.writer(flush_interval=3600) as writer:
            for _ in range(100):
                await writer.write("token ")
                time.sleep(0.11)  # noqa: ASYNC251
                found = messages.find_one({"_id": message.id}) or {}
                seen.add(found["lease"]["renewed_at"])
                if len(seen) > 2:
                    break
    assert len(seen) > 2


def recover(uri: str, database: str) -> None:
    """Ends an orphan, in an event loop of its own."""

    async def until_it_is_ended() -> None:
        async with Converse(uri, database=database, create_indexes=False) as converse:
            recovered = False
            while not recovered:
                recovered = bool(await converse.recover_stale())

    asyncio.run(asyncio.wait_for(until_it_is_ended(), SOON))


async def test_write__says_what_is_lost_if_the_loop_blocks_for_too_long(
    facade: Facade, server_uri: str
) -> None:
    converse = await facade(lease=0.2)
    message = await start(converse)
    taken = ""
    with pytest.raises(WriterFencedError) as fenced:
        async with message.writer(flush_interval=3600) as writer:
            await writer.write("stored ")
            await writer.flush()
            await writer.write("lost ")
            time.sleep(0.3)  # noqa: ASYNC251
            elsewhere = threading.Thread(target=recover, args=(server_uri, converse.database_name))
            elsewhere.start()
            elsewhere.join(SOON)
            for _ in range(100):  # a busy server may take a while to say so
                await writer.write("too late ")
                taken += "too late "
                time.sleep(0.06)  # noqa: ASYNC251
            pytest.fail("the writer goes on")
    assert fenced.value.text == "lost " + taken
    assert (await stored(converse, message)).content == "stored "


# Use


async def test_writer__refuses_what_makes_no_sense(converse: Converse) -> None:
    message = await start(converse)
    for options in (
        {"flush_interval": 0},
        {"flush_interval": "soon"},
        {"max_buffered": 0},
        {"max_buffered": 1.5},
        {"granularity": "word"},
    ):
        with pytest.raises(InvalidInputError, match="must be"):
            message.writer(**options)
    writer = message.writer()
    with pytest.raises(WriterError, match="async with"):
        await writer.write("too early")
    async with writer:
        for token in (None, b"bytes", "x" * (1024 * 1024 + 1)):
            with pytest.raises(InvalidContentError):
                await writer.write(token)  # type: ignore[arg-type]
        await writer.write("fine")
    with pytest.raises(WriterError, match="closed"):
        await writer.write("too late")
    with pytest.raises(WriterError, match="once"):
        await writer.__aenter__()
    assert (await stored(converse, message)).content == "fine"
    with pytest.raises(MessageNotStreamingError):
        await message.writer().__aenter__()


async def test_writer__is_the_only_one(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await start(converse)
    copies = [await stored(one, message) for one in (converse, other) for _ in range(5)]

    async def enter(copy: Message) -> MessageWriter | None:
        try:
            return await copy.writer().__aenter__()
        except WriterExistsError:
            return None

    entered = [writer for writer in await asyncio.gather(*map(enter, copies)) if writer]
    assert len(entered) == 1
    with pytest.raises(WriterExistsError, match="resume_writer"):
        await copies[0].writer().__aenter__()
    await entered[0].write("one")
    await entered[0].__aexit__(None, None, None)
    assert (await stored(converse, message)).content == "one"


async def test_aclose__lets_writers_store_what_they_took(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await start(converse)
    with pytest.raises(ConverseClosedError):
        async with message.writer(flush_interval=60) as writer:
            await writer.write("first ")
            await writer.flush()
            await writer.write("second")
            await converse.aclose()
            with pytest.raises(ConverseClosedError):
                await writer.write("third")
    read = await stored(other, message)
    assert (read.status, read.content) == (MessageStatus.STREAMING, "first second")


async def test_detach__leaves_the_message_to_another(facade: Facade) -> None:
    converse = await facade(lease=0.5)
    other = await facade(converse.database_name)
    message = await start(converse)
    async with message.writer() as writer:
        await writer.write("one ")
        await writer.detach()
        with pytest.raises(WriterError, match="detached"):
            await writer.write("x")
    assert message.is_streaming
    read = await stored(other, message)
    assert read.lease is not None
    assert read.lease.duration == 600
    async with read.resume_writer() as resumed:
        assert read.content == "one "
        await resumed.write("two")
    assert (await stored(converse, message)).content == "one two"


async def test_options__of_the_facade_are_checked() -> None:
    for options in ({"lease": 0}, {"idle_timeout": -1}, {"retention": "for ever"}):
        with pytest.raises(ConfigurationError):
            Converse("mongodb://localhost", database="x", **options)
