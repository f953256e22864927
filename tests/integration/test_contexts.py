"""What tasks of the library take over from whoever made them happen: nothing that ends."""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pymongo
import pytest

from converse_mongo import (
    Conversation,
    Converse,
    Message,
    MessageNotFoundError,
    StoreUnavailableError,
)
from converse_mongo.driver import change_streams, clients
from converse_mongo.driver.deadlines import remaining
from converse_mongo.embedded import EmbeddedServer
from converse_mongo.store import Store
from converse_mongo.store import transaction as transactions
from converse_mongo.store.appends import Appends
from converse_mongo.store.ends import Ends
from converse_mongo.store.recovery import Recovery
from converse_mongo.watching import reconciler
from converse_mongo.web import BusyError, Generations
from tests.conftest import Facade
from tests.integration.helpers import failing
from tests.streams import SOON, assert_exact, collect, until

TRACE: ContextVar[str | None] = ContextVar("trace", default=None)
LONG = 1000.0


class Witness:
    """Notes in what context functions of the library are called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.seen: dict[str, list[bool]] = {}

    def watch(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def note(*args: Any, **kwargs: Any) -> Any:
            left = remaining()
            inherited = (
                TRACE.get() is not None
                or transactions._current.get() is not None
                # Their own deadlines are far shorter.
                or (left is not None and left > LONG / 2)
            )
            self.seen.setdefault(name, []).append(inherited)
            return real(*args, **kwargs)

        self._monkeypatch.setattr(owner, name, note)

    def assert_clean(self, *names: str) -> None:
        assert {name: any(self.seen[name]) for name in names} == dict.fromkeys(names, False)


async def test_tasks__inherit_nothing(
    server_uri: str, facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = (await facade()).database_name
    witness = Witness(monkeypatch)
    witness.watch(reconciler.Reconciler, "run")  # the hub
    witness.watch(change_streams, "open_change_stream")
    witness.watch(Recovery, "compact_due")  # the sweeper
    witness.watch(Appends, "append")  # the flusher
    witness.watch(Ends, "end")  # the closer of a writer
    witness.watch(Store, "aclose")
    witness.watch(clients, "close_client")
    TRACE.set("a request")
    with pymongo.timeout(LONG):
        converse = Converse(server_uri, database=name, sweep_interval=0.02, check_interval=0.02)
        await converse.open()
        message = await (await converse.start_conversation()).start_streaming_assistant()
        async with converse.watch_message(message.id):
            await until(lambda: "run" in witness.seen)
            await until(lambda: "open_change_stream" in witness.seen)
        async with message.writer() as writer:
            await writer.write("text")
        await until(lambda: "compact_due" in witness.seen)
        await converse.aclose()
    witness.assert_clean(
        *("run", "open_change_stream", "compact_due", "append", "end", "aclose", "close_client")
    )


async def test_hub__goes_on_when_the_deadline_of_its_first_watcher_is_over(facade: Facade) -> None:
    converse = await facade(change_streams=False, poll_interval=0.02)
    message = await (await converse.start_conversation()).start_streaming_assistant()
    with pymongo.timeout(0.5):
        async with converse.watch_message(message.id):
            pass
        await until(lambda: (remaining() or 0) <= 0)
    watching = asyncio.create_task(collect(converse, message))
    await until(lambda: converse.statistics().watchers > 0)
    await message.append_chunk("a")
    await message.complete_streaming()
    async with asyncio.timeout(SOON):
        assert_exact(await watching, await converse.get_message(message.id))


async def test_watcher__is_not_ended_by_a_deadline_of_calls(facade: Facade) -> None:
    converse = await facade(change_streams=False, poll_interval=0.02)
    message = await (await converse.start_conversation()).start_streaming_assistant()

    async def watch() -> list[Any]:
        with pymongo.timeout(0.05):
            return await collect(converse, message)

    watching = asyncio.create_task(watch())
    await until(lambda: converse.statistics().watchers > 0)
    await asyncio.sleep(0.06)
    await message.append_chunk("a")
    await message.complete_streaming()
    async with asyncio.timeout(SOON):
        assert_exact(await watching, await converse.get_message(message.id))


async def test_writer__is_not_ended_by_a_deadline_of_calls(facade: Facade) -> None:
    converse = await facade()
    message = await (await converse.start_conversation()).start_streaming_assistant()
    with pymongo.timeout(5):
        async with message.writer() as writer:
            await writer.write("a")
            await writer.flush()
            # The deadline is over before the answer is.
            with pymongo.timeout(0.001):
                await asyncio.sleep(0.002)
                await writer.write("b")
                await writer.flush()
    assert (await converse.get_message(message.id)).content == "ab"


async def test_call__ends_with_the_deadline_of_its_caller(
    failing_server: EmbeddedServer, facade: Facade
) -> None:
    converse = await facade(uri=failing_server.uri, retry_timeout=300)
    message = await (await converse.start_conversation()).start_streaming_assistant()
    calls: list[Callable[[], Any]] = [
        lambda: converse.get_message(message.id),
        lambda: message.append_chunk("a"),
        lambda: converse.start_conversation(),
        lambda: message.complete_streaming(),
        lambda: converse.request_stop(message.id),
    ]
    with failing(failing_server, ["find", "insert", "update", "findAndModify"], errorCode=365):
        for call in calls:
            async with asyncio.timeout(SOON):
                with pymongo.timeout(0.3), pytest.raises(StoreUnavailableError, match="deadline"):
                    await call()
    with pymongo.timeout(SOON):
        await message.append_chunk("a")
    assert (await converse.get_message(message.id)).content == "a"


# Generations


class Answer:
    """Writes an answer, and notes in what context."""

    def __init__(self) -> None:
        self.asked = 0
        self.trace: str | None = None
        self.left: float | None = None

    async def respond(self, conversation: Conversation, message: Message) -> None:
        self.asked += 1
        self.trace, self.left = TRACE.get(), remaining()
        async with message.writer() as writer:
            await writer.write("answer")


async def ended(converse: Converse, message: Message) -> Message:
    async with asyncio.timeout(SOON):
        await collect(converse, message)
    return await converse.get_message(message.id)


@pytest.mark.parametrize("how", ["begin", "start"])
async def test_generation__keeps_its_context_but_no_deadline(converse: Converse, how: str) -> None:
    answer = Answer()
    TRACE.set("a request")
    conversation = await converse.start_conversation()
    async with Generations(answer.respond) as generations:
        with pymongo.timeout(LONG):
            if how == "begin":
                message = await generations.begin(
                    conversation, conversation.start_streaming_assistant
                )
            else:
                message = await conversation.start_streaming_assistant()
                generations.start(conversation, message)
        assert (await ended(converse, message)).content == "answer"
    assert (answer.trace, answer.left) == ("a request", None)


async def test_generation__of_another_process_has_no_context_of_a_request(
    converse: Converse,
) -> None:
    traces: dict[Any, str | None] = {}

    async def respond(conversation: Conversation, message: Message) -> None:
        traces[message.id] = TRACE.get()
        async with message.writer() as writer:
            await writer.write("answer")

    conversation = await converse.start_conversation()
    queued = await conversation.start_streaming_assistant(queue="generations")
    async with Generations(respond) as generations:
        TRACE.set("a request")
        message = await generations.begin(conversation, conversation.start_streaming_assistant)
        await ended(converse, message)
        await ended(converse, queued)
    assert traces == {message.id: "a request", queued.id: None}


async def test_generation__looks_for_ended_ones_without_a_deadline(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def respond(conversation: Conversation, message: Message) -> None:
        begun.set()
        await asyncio.Event().wait()

    witness = Witness(monkeypatch)
    conversation = await converse.start_conversation()
    async with Generations(respond, limit=1, grace=0) as generations:
        await generations.begin(conversation, conversation.start_streaming_assistant)
        await begun.wait()
        witness.watch(converse.message_model.store().reader, "counters")
        TRACE.set("a request")
        with pymongo.timeout(LONG), pytest.raises(BusyError):
            await generations.begin(conversation, conversation.start_streaming_assistant)
    witness.assert_clean("counters")


@pytest.mark.parametrize("how", ["begin", "start"])
async def test_generation__of_a_transaction_runs_once_that_is_committed(
    converse: Converse, how: str
) -> None:
    answer = Answer()
    conversation = await converse.start_conversation()
    async with Generations(answer.respond) as generations:
        async with converse.transaction():
            await conversation.add_user_message("question")
            if how == "begin":
                message = await generations.begin(
                    conversation, conversation.start_streaming_assistant
                )
            else:
                message = await conversation.start_streaming_assistant()
                generations.start(conversation, message)
            # What comes last in the block is stored before the answer begins.
            conversation.metadata["asked"] = True
            await conversation.save()
            assert answer.asked == 0
        found = await ended(converse, message)
    assert (found.content, found.is_completed) == ("answer", True)
    assert [one.content for one in await conversation.messages()] == ["question", "answer"]


async def test_generation__of_a_transaction_that_is_aborted_never_runs(
    converse: Converse, caplog: pytest.LogCaptureFixture
) -> None:
    answer = Answer()
    conversation = await converse.start_conversation()
    async with Generations(answer.respond) as generations:
        with pytest.raises(ZeroDivisionError):
            async with converse.transaction():
                message = await generations.begin(
                    conversation, conversation.start_streaming_assistant
                )
                raise ZeroDivisionError
        await until(lambda: generations.running == 0)
    assert answer.asked == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    with pytest.raises(MessageNotFoundError):
        await converse.get_message(message.id)


async def test_generation__is_not_held_by_a_transaction_of_another_facade(facade: Facade) -> None:
    answer = Answer()
    converse, other = await facade(), await facade()
    conversation = await converse.start_conversation()
    async with Generations(answer.respond) as generations, other.transaction():
        message = await generations.begin(conversation, conversation.start_streaming_assistant)
        assert (await ended(converse, message)).content == "answer"
