"""The ends of a writer's life: cancelled, closed or cut off, it stores what it took, and once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pymongo.errors import AutoReconnect, OperationFailure

from converse_mongo import (
    Converse,
    ConverseClosedError,
    InvalidContentError,
    Message,
    MessageNotStreamingError,
    MessageStatus,
    StoreUnavailableError,
    StreamStoppedError,
    WriterError,
    WriterFailedError,
    WriterFencedError,
)
from converse_mongo.embedded import EmbeddedServer
from tests.conftest import Facade
from tests.integration.helpers import Between, Call, Gate, soon, start, stored, text_of, tokens
from tests.streams import SOON, until


class Late:
    """For a :class:`Between`: holds an update, which is answered already, once it is ``armed``.

    Args:
        armed: Whether it is armed from the beginning.
        sets: Hold only updates that set this field.
    """

    def __init__(self, *, armed: bool = True, sets: str | None = None) -> None:
        self.armed, self._sets = armed, sets
        self.held, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, call: Call, match: Any, update: Any) -> Any:
        answer = await call(match, update)
        if self.armed and (self._sets is None or self._sets in update.get("$set", {})):
            self.held.set()
            await self.go.wait()
        return answer


async def refuse(call: Call, match: Any, update: Any) -> Any:
    """Refuses an append as a server does."""
    raise OperationFailure("not authorized", 13)


# The end of a loop, which cancels all tasks there are: those of the writer, too


async def run_in_own_loop(generate: Callable[[], Coroutine[Any, Any, None]]) -> None:
    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(generate())

    await soon(asyncio.to_thread(run))


def cancel_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()


@asynccontextmanager
async def copy_of(message: Message, uri: str, database: str) -> AsyncIterator[Message]:
    """A copy of ``message`` that belongs to the loop that runs this."""
    async with Converse(uri, database=database, create_indexes=False) as converse:
        yield await converse.get_message(message.id)


@pytest.mark.parametrize("begun", [False, True], ids=["not begun", "begun"])
async def test_cancel_all__stores_what_is_buffered(
    converse: Converse, server_uri: str, begun: bool
) -> None:
    message = await start(converse)

    name = converse.database_name

    async def generate() -> None:
        async with (
            copy_of(message, server_uri, name) as copy,
            copy.writer(flush_interval=60) as writer,
        ):
            if begun:
                await writer.write("some ")
                await writer.flush()
            await writer.write("text")
            cancel_all()
            await asyncio.sleep(3600)

    await run_in_own_loop(generate)
    read = await stored(converse, message)
    assert read.is_cancelled
    assert read.content == ("some text" if begun else "text")


@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
async def test_cancel_all__stores_what_is_in_flight_once(
    converse: Converse, server_uri: str, applied: bool
) -> None:
    message = await start(converse)
    held = False

    async def hold(call: Call, *arguments: Any) -> Any:
        nonlocal held
        if held:
            return await call(*arguments)
        held = True
        if applied:
            await call(*arguments)
        cancel_all()
        return await asyncio.sleep(3600)

    name = converse.database_name

    async def generate() -> None:
        async with copy_of(message, server_uri, name) as copy:
            Between(copy.store(), append=hold)
            async with copy.writer() as writer:
                await writer.write("text")
                await asyncio.sleep(3600)

    await run_in_own_loop(generate)
    read = await stored(converse, message)
    assert (read.status, read.content) == (MessageStatus.CANCELLED, "text")


# Leaving the block


async def test_write__while_the_block_is_left_is_refused(converse: Converse) -> None:
    message = await start(converse)
    late = Late(armed=False, sets="status")
    Between(message.store(), update_one=late)
    writer = await message.writer().__aenter__()
    await writer.write("text")
    late.armed = True  # for the end
    leaving = asyncio.create_task(writer.__aexit__(None, None, None))
    try:
        await soon(late.held.wait())
        with pytest.raises(WriterError, match="closed"):
            await writer.write(" and more")
        await soon(writer.flush())
    finally:
        late.go.set()
    await leaving
    read = await stored(converse, message)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, "text")


@pytest.mark.parametrize("what", ["text", "end"])
async def test_aclose__while_a_block_is_left_lets_it_complete(facade: Facade, what: str) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await start(converse)
    store, late = message.store(), Late(armed=False, sets=None if what == "text" else "status")
    Between(store, update_one=late)

    async def generate() -> None:
        async with message.writer() as writer:
            late.armed = True
            await writer.write("text")

    generating = asyncio.create_task(generate())
    await soon(late.held.wait())
    closing = asyncio.create_task(converse.aclose())
    await until(lambda: store.closing)
    late.go.set()
    await soon(closing)
    await soon(generating)
    read = await stored(other, message)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, "text")


@pytest.mark.parametrize("take_over", [False, True], ids=["first", "resumed"])
async def test_open__that_is_cancelled_leaves_no_message_streaming(
    converse: Converse, take_over: bool
) -> None:
    message = await start(converse)
    late = Late()
    Between(message.store(), update_one=late)
    writer = message.resume_writer() if take_over else message.writer()
    entering = asyncio.create_task(writer.__aenter__())
    await soon(late.held.wait())
    entering.cancel()
    late.go.set()
    with pytest.raises(asyncio.CancelledError):
        await soon(entering)
    assert (await stored(converse, message)).status is MessageStatus.CANCELLED


# Errors


async def test_failure__of_a_pipe_keeps_its_cause(converse: Converse) -> None:
    message = await start(converse)
    Between(message.store(), append=refuse)

    async def silent() -> AsyncIterator[str]:
        yield "text"
        await asyncio.sleep(3600)

    with pytest.raises(WriterFailedError) as failed:
        await soon(message.pipe(silent()))
    assert isinstance(failed.value.__cause__, OperationFailure)
    read = await stored(converse, message)  # the server answers: nothing has to wait for the lease
    assert (read.status, read.error) == (MessageStatus.FAILED, "The database refused a request.")
    assert read.metadata["error_type"] == "OperationFailure"


REFUSAL = OperationFailure("Plan executor: bad $regex", 2, {"errmsg": "bad $regex", "ok": 0.0})
LOST = AutoReconnect("db7.internal:27017: connection refused")


def wrapped(words: str, cause: Exception) -> Exception:
    error = RuntimeError(words)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("ended_by", ["writer", "fail_streaming"])
@pytest.mark.parametrize(
    ("error", "words", "error_type"),
    [
        (REFUSAL, "The database refused a request.", "OperationFailure"),
        (LOST, "The database could not be reached.", "AutoReconnect"),
        (
            StoreUnavailableError(f"MongoDB did not answer ({LOST})."),
            *("The database could not be reached.", "StoreUnavailableError"),
        ),
        (
            InvalidContentError("Text must be str. Nothing was written."),
            *("The answer could not be stored.", "InvalidContentError"),
        ),
        (
            wrapped(f"Lookup: {REFUSAL.details}", REFUSAL),
            *("The database refused a request.", "RuntimeError"),
        ),
        (
            wrapped(f"Lookup: {LOST}", ExceptionGroup("two", [ValueError(), LOST])),
            *("The database could not be reached.", "RuntimeError"),
        ),
        (wrapped("The model was asked too much.", REFUSAL), "The model was asked too much.", None),
    ],
)
async def test_failure__is_stored_in_words_for_people_and_logged(
    converse: Converse,
    caplog: pytest.LogCaptureFixture,
    ended_by: str,
    error: Exception,
    words: str,
    error_type: str | None,
) -> None:
    message = await start(converse)
    if ended_by == "fail_streaming":
        await message.fail_streaming(error)
    else:
        with pytest.raises(type(error)):
            async with message.writer():
                raise error
    read = await stored(converse, message)
    assert (read.status, read.error) == (MessageStatus.FAILED, words)
    assert read.metadata.get("error_type") == error_type
    logged = [record for record in caplog.records if record.name == "converse_mongo"]
    assert [record.exc_info[1] for record in logged if record.exc_info] == (
        [error] if error_type else []
    )


@pytest.mark.parametrize("raised", [ValueError, asyncio.CancelledError])
async def test_failure__is_told_beside_another_error(
    converse: Converse, raised: type[BaseException]
) -> None:
    message = await start(converse)
    Between(message.store(), append=refuse)
    with pytest.raises(raised) as told:
        async with message.writer() as writer:
            await writer.write("precious text")
            await soon(writer.wait_stopping())
            raise raised("the model broke")
    assert "not authorized" in told.value.__notes__[0]
    failure = told.value.__context__
    assert isinstance(failure, WriterFailedError)
    assert failure.text == "precious text"
    assert (await stored(converse, message)).is_failed


async def test_failure__gives_text_back_that_can_be_stored_once(facade: Facade) -> None:
    converse = await facade(retry_timeout=0.2)
    other = await facade(converse.database_name)
    message = await start(converse)
    appended, written = asyncio.Event(), asyncio.Event()

    async def lose(call: Call, *arguments: Any) -> Any:
        if not appended.is_set():
            await call(*arguments)
        appended.set()
        await written.wait()
        raise AutoReconnect("the answer is lost")

    Between(message.store(), append=lose)
    with pytest.raises(WriterFailedError) as failed:
        async with message.writer() as writer:
            await writer.write("one ")
            await soon(appended.wait())
            await writer.write("two")
            written.set()
            await soon(writer.wait_stopping())
    lost = failed.value
    assert (lost.unconfirmed, lost.unsent, lost.text) == (["one "], "two", "one two")
    read = await stored(other, message)
    for _ in range(2):
        await read.append_chunks(lost.unconfirmed, append_id=lost.append_id)
    await read.append_chunk(lost.unsent)
    assert (await stored(other, message)).content == "one two"


@pytest.mark.parametrize("interrupt", [False, True], ids=["waiting", "silent"])
async def test_aclose__wakes_the_generation_loop(facade: Facade, interrupt: bool) -> None:
    converse = await facade()
    message = await start(converse)
    written = asyncio.Event()

    async def generate() -> None:
        async with message.writer(interrupt=interrupt) as writer:
            await writer.write("text")
            written.set()
            if interrupt:
                await asyncio.sleep(3600)
            assert await writer.wait_stopping() is None

    generating = asyncio.create_task(generate())
    await written.wait()
    await soon(converse.aclose())
    with pytest.raises(ConverseClosedError):
        await soon(generating)


# Stops of a pipe


async def test_pipe__says_that_it_was_stopped_though_the_tokens_hide_it(
    converse: Converse,
) -> None:
    message = await start(converse)
    silence = asyncio.Event()

    async def tidy() -> AsyncIterator[str]:
        yield "text"
        silence.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)

    piping = asyncio.create_task(message.pipe(tidy()))
    await soon(silence.wait())
    await message.request_stop("enough")
    with pytest.raises(StreamStoppedError, match="enough"):
        await soon(piping)
    assert (message.status, message.content) == (MessageStatus.CANCELLED, "text")


async def test_pipe__says_that_it_was_stopped_behind_the_last_token(converse: Converse) -> None:
    message = await start(converse)

    async def stop(call: Call, *arguments: Any) -> Any:
        await message.request_stop("enough")
        return await call(*arguments)

    Between(message.store(), append=stop)
    with pytest.raises(StreamStoppedError, match="enough"):
        await soon(message.pipe(tokens(1)))
    assert (message.status, message.content) == (MessageStatus.CANCELLED, text_of(1))


# What is said of a completion


@pytest.mark.parametrize("how", ["raises", "is cancelled", "is stopped", "is fenced"])
async def test_pipe__that_does_not_complete_stores_nothing_of_its_metadata(
    converse: Converse, how: str
) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant({"model": "small"})
    silence = asyncio.Event()

    async def generate() -> AsyncIterator[str]:
        yield "text"
        silence.set()
        if how == "raises":
            raise ValueError("no more")
        await asyncio.sleep(3600)

    piping = asyncio.create_task(message.pipe(generate(), {"finish_reason": "stop", "model": "x"}))
    await soon(silence.wait())
    if how == "is cancelled":
        piping.cancel()
    elif how == "is stopped":
        await message.request_stop()
    elif how == "is fenced":
        other = await stored(converse, message)
        async with other.resume_writer(metadata={"by": "another"}) as writer:
            await writer.write(" and more")
    with pytest.raises((ValueError, asyncio.CancelledError, StreamStoppedError, WriterFencedError)):
        await soon(piping)
    read = await stored(converse, message)
    by = {"by": "another"} if how == "is fenced" else {}
    assert read.metadata == {"model": "small", "chunks": len(read.chunks)} | by


async def test_pipe__cancelled_before_its_first_token_stores_nothing_of_its_metadata(
    converse: Converse,
) -> None:
    message = await start(converse)
    late = Late()
    Between(message.store(), update_one=late)
    piping = asyncio.create_task(message.pipe(tokens(1), {"finish_reason": "stop"}))
    await soon(late.held.wait())
    piping.cancel()
    late.go.set()
    with pytest.raises(asyncio.CancelledError):
        await soon(piping)
    read = await stored(converse, message)
    assert (read.status, read.metadata) == (MessageStatus.CANCELLED, {"chunks": 0})


@pytest.mark.parametrize("raised", [ValueError, asyncio.CancelledError, None])
async def test_writer__stores_its_metadata_however_it_ends(
    converse: Converse, raised: type[BaseException] | None
) -> None:
    message = await start(converse)
    with contextlib.suppress(ValueError, asyncio.CancelledError):
        async with message.writer(metadata={"model": "small"}) as writer:
            writer.metadata["usage"] = 3
            if raised is not None:
                raise raised
    read = await stored(converse, message)
    assert read.metadata == {"model": "small", "usage": 3, "chunks": 0}


async def test_complete__that_loses_a_race_stores_nothing_of_its_metadata(
    converse: Converse,
) -> None:
    message = await start(converse)
    with pytest.raises(MessageNotStreamingError):
        async with message.writer() as writer:
            await writer.write("text")
            await writer.flush()
            await (await stored(converse, message)).cancel_streaming("enough")
            await message.complete_streaming({"finish_reason": "stop"})
    read = await stored(converse, message)
    assert (read.status, read.metadata) == (MessageStatus.CANCELLED, {"chunks": 1})


# The buffer and the wire


async def test_buffer__a_large_token_has_its_turn(converse: Converse) -> None:
    message = await start(converse)
    gate = Gate(converse)
    async with message.writer(max_buffered=10) as writer:
        await writer.write("1234")
        await until(lambda: gate.arrived == 1)
        large = asyncio.create_task(writer.write("B" * 10))
        await until(lambda: writer.statistics().waits == 1)
        small = asyncio.create_task(writer.write("s"))  # there is room for this one
        await until(lambda: writer.statistics().waits == 2 or small.done())
        gate.open.set()
        await soon(asyncio.gather(large, small))
    assert (await stored(converse, message)).content == "1234BBBBBBBBBBs"


@asynccontextmanager
async def losing_one(port: int) -> AsyncIterator[int]:
    """A way to a server on which the connection of the first append goes silent, and no other."""
    links: list[asyncio.StreamWriter] = []
    silenced = asyncio.Event()

    async def serve(client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        server, requests = await asyncio.open_connection("127.0.0.1", port)
        links.extend((answers, requests))
        silent = asyncio.Event()

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    if b"$push" in data and not silenced.is_set():
                        silenced.set()
                        silent.set()
                    if not silent.is_set():
                        sink.write(data)
            sink.close()

        await asyncio.gather(pass_on(client, requests), pass_on(server, answers))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
        assert silenced.is_set()
    finally:
        listener.close()
        for link in links:
            link.transport.abort()


async def test_connection__that_goes_silent_is_given_up_for_another(
    start_server: Callable[..., EmbeddedServer],
) -> None:
    async with losing_one(start_server().port) as port:
        uri = f"mongodb://127.0.0.1:{port}/?directConnection=true"
        async with Converse(uri, database="silent", retry_timeout=1) as converse:
            message = await start(converse)
            await soon(message.pipe(tokens(5)))
            read = await stored(converse, message)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, text_of(5))


# A server that does not answer


class Hanging:
    """For a :class:`Between`: answers no more once it is ``armed``.

    Args:
        swallows: How many cancellations to swallow, as a driver may on Python 3.11.
        sets: Hang only in updates that set this field.
    """

    def __init__(self, *, swallows: int = 0, sets: str | None = None) -> None:
        self._swallows, self._sets = swallows, sets
        self.armed = False
        self.held = asyncio.Event()

    async def __call__(self, call: Call, match: Any, update: Any) -> Any:
        if not self.armed or not (self._sets is None or self._sets in update.get("$set", {})):
            return await call(match, update)
        self.held.set()
        while True:
            try:
                await asyncio.sleep(3 * SOON)
            except asyncio.CancelledError:
                if not self._swallows:
                    raise
                self._swallows -= 1
            else:
                pytest.fail("nobody gave up")


@pytest.mark.parametrize("swallows", [0, 1], ids=["", "a cancellation is swallowed"])
@pytest.mark.parametrize("leaves", [False, True], ids=["writing", "leaving"])
async def test_aclose__gives_text_back_that_cannot_be_stored(
    facade: Facade, leaves: bool, swallows: int
) -> None:
    converse = await facade()
    message = await start(converse)
    hanging = Hanging(swallows=swallows)
    Between(message.store(), append=hanging)
    before = asyncio.all_tasks()

    async def generate() -> None:
        async with message.writer() as writer:
            await writer.write("stored ")
            await writer.flush()
            hanging.armed = True
            await writer.write("sent ")
            await soon(hanging.held.wait())
            await writer.write("kept")
            if not leaves:
                await writer.wait_stopping()

    generating = asyncio.create_task(generate())
    await soon(hanging.held.wait())
    await soon(asyncio.gather(converse.aclose(0.05), converse.aclose(0.05)))
    with pytest.raises(WriterFailedError) as failed:
        await soon(generating)
    assert failed.value.text == "sent kept"
    assert (failed.value.unconfirmed, failed.value.unsent) == (["sent "], "kept")
    await until(lambda: not any("writer" in repr(each) for each in asyncio.all_tasks() - before))


@pytest.mark.parametrize("sets", ["status", "lease.duration"], ids=["an end", "letting go"])
async def test_aclose__does_not_wait_for_what_follows_the_text(facade: Facade, sets: str) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await start(converse)
    hanging = Hanging(sets=sets)
    Between(message.store(), update_one=hanging)
    entered = asyncio.Event()

    async def generate() -> None:
        async with message.writer() as writer:
            await writer.write("text")
            await writer.flush()
            hanging.armed = True
            entered.set()
            if sets != "status":
                await writer.wait_stopping()

    generating = asyncio.create_task(generate())
    await soon(entered.wait())
    await soon(converse.aclose(0.05))
    with pytest.raises(ConverseClosedError):
        await soon(generating)
    assert (await stored(other, message)).content == "text"


# Hints and text


class SlowRenewals:
    """For a :class:`Between`: each renewal brings the next hint, as slow ones do."""

    def __init__(self, message: Message) -> None:
        self._message = message
        self.renewals = 0

    async def __call__(self, call: Call, match: Any, update: Any) -> Any:
        answer = await call(match, update)
        if "$set" not in update and "$push" not in update:
            self.renewals += 1
            if self.renewals > 200:
                pytest.fail("nothing but renewals")
            self._message.store().notices.tell(self._message.id)
        return answer


async def test_hints__that_come_faster_than_they_are_answered_do_not_hold_text_up(
    converse: Converse,
) -> None:
    message = await start(converse)
    slow = SlowRenewals(message)
    Between(message.store(), update_one=slow)
    async with message.writer(flush_interval=0.001) as writer:
        message.store().notices.tell(message.id)
        await until(lambda: slow.renewals > 2)
        for number in range(3):
            await writer.write(f"{number} ")
            await soon(writer.flush())
    assert (message.status, message.content) == (MessageStatus.COMPLETED, text_of(3))


async def test_stop__is_carried_out_while_hints_go_on(facade: Facade) -> None:
    converse = await facade(change_streams=False, poll_interval=3600, check_interval=3600)
    message = await start(converse)
    slow = SlowRenewals(message)
    Between(message.store(), update_one=slow)
    async with message.writer(flush_interval=3600) as writer:
        await writer.write("one ")
        await writer.flush()
        await writer.write("two")
        await message.request_stop("enough")
        message.store().notices.tell(message.id)
        await soon(writer.wait_stopping())
    read = await stored(converse, message)
    assert (read.status, read.content) == (MessageStatus.CANCELLED, "one two")
    assert slow.renewals <= 1


async def test_stop__is_told_to_a_writer_once(facade: Facade) -> None:
    converse = await facade(change_streams=False, poll_interval=0.01, check_interval=0.01)
    message = await start(converse)
    store = message.store()
    await store.leases.acquire(message._own_key())
    told: list[Any] = []
    unlisten = store.notices.listen(message.id, message.conversation_id, told.append)
    await message.request_stop("enough")
    await until(lambda: bool(told))
    checks = converse.statistics().checks
    await until(lambda: converse.statistics().checks > checks + 3)
    unlisten()
    assert told == [None]
