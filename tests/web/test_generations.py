"""Generations: supervised, bounded, and ended with the application."""

import asyncio
import contextlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo import (
    ConfigurationError,
    Conversation,
    Converse,
    InvalidInputError,
    Message,
    MessageStatus,
    Queue,
    StoreUnavailableError,
)
from converse_mongo.driver.clients import close_client, open_client
from converse_mongo.embedded import EmbeddedServer
from converse_mongo.web import BusyError, Generations
from converse_mongo.web.limits import Slots
from converse_mongo.working.worker import Worker
from tests.integration.test_frozen import frozen
from tests.streams import SOON, until


async def talk(converse: Converse) -> tuple[Conversation, Message]:
    conversation = await converse.start_conversation()
    return conversation, await conversation.start_streaming_assistant()


async def ended(converse: Converse, message: Message) -> Message:
    async with asyncio.timeout(20):
        async for _ in converse.watch_message(message.id):
            pass
    return await converse.get_message(message.id)


async def test_end__of_what_respond_left_streaming(converse: Converse) -> None:
    async def forgetful(conversation: Conversation, message: Message) -> None:
        await message.append_chunk("some")

    conversation, message = await talk(converse)
    async with Generations(forgetful) as generations:
        generations.start(conversation, message)
        found = await ended(converse, message)
    assert (found.status, found.content) == (MessageStatus.FAILED, "some")
    assert found.error == "The answer could not be generated."


async def test_end__of_what_failed_before_it_wrote(
    converse: Converse, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(conversation: Conversation, message: Message) -> None:
        raise LookupError("secret")

    conversation, message = await talk(converse)
    async with Generations(broken) as generations:
        generations.start(conversation, message)
        found = await ended(converse, message)
    assert found.error == "The answer could not be generated."
    assert found.metadata["error_type"] == "LookupError"
    assert "secret" not in str(found.model_dump())
    assert "secret" in caplog.text


async def test_close__waits_a_while_and_then_gives_back(converse: Converse) -> None:
    async def slow(conversation: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            await writer.write("begun")
            begun.set()
            await asyncio.Event().wait()

    async def quick(conversation: Conversation, message: Message) -> None:
        await begun.wait()
        async with message.writer() as writer:
            await writer.write("whole")

    begun = asyncio.Event()
    found = {}
    for respond, grace in ((slow, 0.0), (quick, 20.0)):
        conversation, message = await talk(converse)
        async with Generations(respond, grace=grace) as generations:
            generations.start(conversation, message)
            await begun.wait()
        assert generations.running == 0
        found[respond.__name__] = await converse.get_message(message.id)
    assert (found["slow"].is_streaming, found["slow"].content) == (True, "begun")
    assert found["slow"].work is not None
    assert (found["slow"].work.queue, found["slow"].work.state) == ("generations", "queued")
    assert (found["quick"].status, found["quick"].content) == (MessageStatus.COMPLETED, "whole")


async def test_close__of_one_that_writes_by_hand_gives_it_back(converse: Converse) -> None:
    begun = asyncio.Event()

    async def by_hand(conversation: Conversation, message: Message) -> None:
        await message.append_chunk("begun")
        begun.set()
        await asyncio.Event().wait()

    conversation, message = await talk(converse)
    async with Generations(by_hand, grace=0) as generations:
        generations.start(conversation, message)
        await begun.wait()
    found = await converse.get_message(message.id)
    assert (found.is_streaming, found.content) == (True, "begun")
    assert found.work is not None
    assert found.work.state == "queued"


async def test_crash__another_process_starts_over(facade: Any) -> None:
    first: Converse = await facade(lease=0.6)
    second: Converse = await facade(database=first.database_name, lease=0.6, poll_interval=0.05)
    begun = asyncio.Event()

    async def dies(conversation: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            await writer.write("half of")
            await writer.flush()
            begun.set()
            await asyncio.Event().wait()

    async def respond(conversation: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            await writer.write(f"whole, in attempt {message.attempt}")

    crashing = Generations(dies)
    conversation = await first.start_conversation()
    message = await crashing.begin(
        conversation, partial(crashing.add, conversation, "answer", None)
    )
    assert message.work is not None
    assert message.work.state == "running"  # no other process heard of it
    await begun.wait()
    store = first.message_model.store()

    async def nothing(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    frozen: list[tuple[Any, str]] = [(store.leases, "renew"), (store.appends, "append")]
    frozen += [(store.jobs, "due"), (store.jobs, "claim")]
    for part, call in frozen:
        setattr(part, call, nothing)
    generations = Generations(respond)
    generations.serve(second)
    async with generations:
        found = await ended(second, message)
    assert (found.status, found.content) == (MessageStatus.COMPLETED, "whole, in attempt 2")
    assert found.work is not None
    assert found.work.crashes == 1


async def test_deployment__the_next_process_starts_over(facade: Any) -> None:
    converse: Converse = await facade()
    begun, attempts = asyncio.Event(), list[int]()

    async def respond(conversation: Conversation, message: Message) -> None:
        attempts.append(message.attempt)
        async with message.writer() as writer:
            await writer.write("some")
            await writer.flush()
            if len(attempts) == 1:
                begun.set()
                await asyncio.Event().wait()

    conversation = await converse.start_conversation()
    async with Generations(respond, grace=0) as generations:
        message = await generations.begin(
            conversation, partial(generations.add, conversation, "answer", None)
        )
        await begun.wait()
    again = Generations(respond)
    again.serve(converse)
    async with again:
        found = await ended(converse, message)
    assert (found.status, found.content, attempts) == (MessageStatus.COMPLETED, "some", [1, 1])
    assert found.next_sequence == 3  # a reset between the two


async def test_crash__of_a_look_ends_no_answer(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, failed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def respond(conversation: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            begun.set()
            await go_on.wait()
            await writer.write("handed over" if writer.handing_over else "whole")

    jobs = converse.message_model.store().jobs
    due = jobs.due

    async def fail(*arguments: Any, **options: Any) -> Any:
        if begun.is_set() and not failed.is_set():
            failed.set()
            raise RuntimeError("can't start new thread")
        return await due(*arguments, **options)

    monkeypatch.setattr(jobs, "due", fail)
    generations = Generations(respond, grace=0)
    conversation = await converse.start_conversation()
    async with generations:
        message = await generations.begin(conversation, conversation.start_streaming_assistant)
        await begun.wait()
        [worker] = generations._workers.values()
        worker.look()
        await failed.wait()
        queued = await conversation.start_streaming_assistant(queue="generations")
        assert generations.writes(message)
        go_on.set()
        for each in (message, queued):
            assert (await ended(converse, each)).content == "whole"


async def test_close__frees_the_slot_of_an_answer_that_has_not_begun(converse: Converse) -> None:
    async def respond(conversation: Conversation, message: Message) -> None:
        raise AssertionError

    conversation, slots = await converse.start_conversation(), Slots(1)
    generations = Generations(respond, grace=0)
    begun = generations.begin(
        *(conversation, conversation.start_streaming_assistant), slots=slots, key="user"
    )
    beginning = asyncio.create_task(begun)
    await asyncio.sleep(0)
    assert generations._beginnings
    await generations.aclose()
    with pytest.raises(BusyError):
        await beginning
    slots.check("user")


async def test_stop__before_it_began_calls_nothing(converse: Converse) -> None:
    called: list[Message] = []

    async def respond(conversation: Conversation, message: Message) -> None:
        called.append(message)

    conversation = await converse.start_conversation()
    async with Generations(respond) as generations:

        async def create() -> Message:
            message = await generations.add(conversation, "answer", None)
            assert generations.holds(message)
            await message.cancel_streaming("too late")
            return message

        message = await generations.begin(conversation, create)
    assert (message.status, message.stop_reason) == (MessageStatus.CANCELLED, "too late")
    assert not called


async def test_suspend__is_refused_by_one_that_starts_over(
    converse: Converse, caplog: pytest.LogCaptureFixture
) -> None:
    refused: list[str] = []

    async def respond(conversation: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            await writer.write("Shall I?")
            with pytest.raises(InvalidInputError, match="start_over=False") as error:
                await writer.suspend()
            refused.append(str(error.value))

    conversation, message = await talk(converse)
    async with Generations(respond) as generations:
        generations.start(conversation, message)
        found = await ended(converse, message)
    assert found.status is MessageStatus.COMPLETED
    assert len(refused) == 1


async def test_start__of_a_message_that_has_chunks_is_refused(converse: Converse) -> None:
    async def respond(conversation: Conversation, message: Message) -> None:
        raise AssertionError

    conversation, message = await talk(converse)
    await message.append_chunk("begun")
    async with Generations(respond) as generations:
        with pytest.raises(InvalidInputError, match="queue='generations'"):
            generations.start(conversation, message)


async def test_queue__with_a_limit_per_key_is_refused() -> None:
    async def respond(conversation: Conversation, message: Message) -> None:
        raise AssertionError

    with pytest.raises(ConfigurationError, match="answers_per_key"):
        Generations(respond, queue=Queue("q", per_key=1))


async def test_limit__and_closed_ones_refuse(
    converse: Converse, caplog: pytest.LogCaptureFixture
) -> None:
    async def silent(conversation: Conversation, message: Message) -> None:
        await asyncio.Event().wait()

    async with Generations(silent, limit=1, grace=0) as generations:
        first = await talk(converse)
        generations.start(*first)
        generations.start(*first)  # it is being written already
        assert generations.running == 1
        with pytest.raises(BusyError, match="The service is busy"):
            generations.start(*await talk(converse))
        assert "limit=1" in caplog.text
    with pytest.raises(BusyError, match="The service is restarting"):
        generations.start(*await talk(converse))


async def test_limit__holds_for_what_is_queued_while_respond_goes_on_behind_an_end(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = 0
    heard: list[object] = []
    opened = Worker.opened

    def hear(worker: Worker, *news: Any) -> None:
        heard.append(news)
        opened(worker, *news)

    monkeypatch.setattr(Worker, "opened", hear)

    async def respond(conversation: Conversation, message: Message) -> None:
        nonlocal begun
        begun += 1
        if begun <= 2:
            async with message.writer() as writer:
                await writer.write("whole")
        await asyncio.Event().wait()

    generations = Generations(respond, limit=1, grace=0)
    generations.serve(converse)
    conversation = await converse.start_conversation()
    async with generations:
        for _ in range(2):
            await generations.begin(conversation, conversation.start_streaming_assistant)
            await until(lambda: generations.running == 0)
        for _ in range(4):
            await conversation.start_streaming_assistant(queue="generations")
        await until(lambda: len(heard) == 4)
        await asyncio.sleep(0.2)  # a claim would be made in that time
        assert (begun, generations.running) == (2, 0)


async def test_limit__holds_for_what_is_queued_while_another_answer_begins(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[object] = []
    opened = Worker.opened

    def hear(worker: Worker, *news: Any) -> None:
        heard.append(news)
        opened(worker, *news)

    monkeypatch.setattr(Worker, "opened", hear)
    begun: list[Message] = []

    async def respond(conversation: Conversation, message: Message) -> None:
        begun.append(message)
        async with message.writer() as writer:
            await writer.write("whole")

    created, go_on = asyncio.Event(), asyncio.Event()
    generations = Generations(respond, limit=1, grace=0, timeout=30)
    generations.serve(converse)
    conversation = await converse.start_conversation()
    found = await conversation.start_streaming_assistant()
    await found.complete_streaming()

    async def create() -> Message:
        created.set()
        await go_on.wait()
        return found

    async with generations:
        (worker,) = generations._workers.values()
        await until(lambda: worker.statistics().looks > 0)
        beginning = asyncio.create_task(generations.begin(conversation, create))
        await created.wait()
        queued = await conversation.start_streaming_assistant(queue="generations")
        await until(lambda: len(heard) == 1)
        await asyncio.sleep(0.2)  # a claim would be made in that time
        assert begun == []
        looks = worker.statistics().looks
        go_on.set()
        assert (await beginning).id == found.id
        await ended(converse, queued)
        assert [each.id for each in begun] == [queued.id]
        assert worker.statistics().looks > looks


async def test_limit__holds_for_the_answers_of_all_facades_together(
    facade: Any,
) -> None:
    first, second = await facade(poll_interval=0.05), await facade(poll_interval=0.05)
    running, most = 0, 0
    go_on = asyncio.Event()

    async def respond(conversation: Conversation, message: Message) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go_on.wait()
        async with message.writer() as writer:
            await writer.write("whole")
        running -= 1

    generations = Generations(respond, limit=2, grace=0)
    messages = []
    for converse in (first, second):
        generations.serve(converse)
        conversation = await converse.start_conversation()
        for _ in range(2):
            message = await conversation.start_streaming_assistant(queue="generations")
            messages.append((converse, message))
    async with generations:
        await until(lambda: running == 2)
        with pytest.raises(BusyError):
            await generations.begin(conversation, conversation.start_streaming_assistant)
        go_on.set()
        for converse, message in messages:
            await ended(converse, message)
    assert most == 2


@pytest.mark.parametrize("limit", [1, 2])
async def test_limit__of_several_facades_leaves_nothing_waiting_once_there_is_room(
    facade: Any, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    looked: Counter[Worker] = Counter()
    look = Worker._look

    async def count(worker: Worker) -> bool:
        more = await look(worker)
        looked[worker] += 1
        return more

    monkeypatch.setattr(Worker, "_look", count)
    first, second = await facade(), await facade()
    go_on: defaultdict[ObjectId, asyncio.Event] = defaultdict(asyncio.Event)
    begun: list[ObjectId] = []

    async def respond(_: Conversation, message: Message) -> None:
        begun.append(message.id)
        await go_on[message.id].wait()
        await message.complete_streaming()

    conversation = await second.start_conversation()
    queued = [
        await conversation.start_streaming_assistant(queue="generations")
        for _ in range(2 * limit - 1)
    ]
    generations = Generations(respond, limit=limit, grace=0)
    generations._options = replace(generations._options, poll_interval=3600.0)
    generations.serve(first)
    async with generations:
        conversation = await first.start_conversation()
        here = await generations.begin(conversation, conversation.start_streaming_assistant)
        await until(lambda: here.id in begun)
        generations.serve(second)
        generations.look_after()
        worker = list(generations._workers.values())[-1]
        await until(lambda: looked[worker] >= 2)  # it has looked since its change stream is open
        for message in queued[: limit - 1]:
            await until(lambda: len(begun) == limit)
            looked.clear()
            go_on[message.id].set()
            await until(lambda: len(begun) == limit + 1 and looked[worker] > 0)
        go_on[here.id].set()  # there was no room for the last one in the last look
        await until(lambda: len(begun) == 2 * limit)
        for message in queued:
            go_on[message.id].set()
            await ended(second, message)


async def test_close__at_once_is_no_crash(
    converse: Converse, caplog: pytest.LogCaptureFixture
) -> None:
    async def respond(conversation: Conversation, message: Message) -> None: ...

    generations = Generations(respond)
    generations.serve(converse)
    async with generations:
        pass
    await asyncio.sleep(0)
    assert not [each for each in caplog.records if each.levelname == "CRITICAL"]


async def test_close__has_an_answer_that_begins_meanwhile_claim_nothing_else(
    converse: Converse,
) -> None:
    begun: list[Message] = []

    async def respond(conversation: Conversation, message: Message) -> None:
        begun.append(message)
        async with message.writer() as writer:
            await writer.write("whole")

    conversation = await converse.start_conversation()
    created, go_on = asyncio.Event(), asyncio.Event()

    async def create() -> Message:
        created.set()
        await go_on.wait()
        return await conversation.start_streaming_assistant()

    other = await conversation.start_streaming_assistant(queue="generations")
    async with Generations(respond, grace=20) as generations:
        request = asyncio.create_task(generations.begin(conversation, create))
        await created.wait()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
    message = await request
    assert [each.id for each in begun] == [message.id]
    assert (await converse.get_message(other.id)).is_streaming


async def test_room__forgets_workers_that_are_closed(converse: Converse) -> None:
    async def respond(_: Conversation, message: Message) -> None:
        await message.complete_streaming()

    generations = Generations(respond)
    generations.serve(converse)
    for _ in range(5):
        async with generations:
            assert len(generations._workers) == 1
    assert len(generations._room.workers) == 1


async def test_close__is_for_the_last_that_has_entered_it(converse: Converse) -> None:
    generations = Generations(say_hello)
    async with generations:
        async with generations:
            pass
        generations.check_room()
    with pytest.raises(BusyError):
        generations.check_room()


async def test_begin__that_fails_behind_its_insert_gives_the_message_back(
    converse: Converse,
) -> None:
    conversation = await converse.start_conversation()
    async with Generations(say_hello) as generations:
        generations.serve(converse)
        generations.look_after()

        async def create() -> Message:
            await generations.add(conversation, "the answer", None)
            raise StoreUnavailableError("MongoDB did not answer.")

        with pytest.raises(StoreUnavailableError):
            await generations.begin(conversation, create)
        (message,) = await conversation.messages()
        read = await ended(converse, message)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, "Hello")
    assert read.work is not None
    assert read.work.crashes == 0


async def say_hello(_: Conversation, message: Message) -> None:
    async with message.writer() as writer:
        await writer.write("Hello")


async def test_begin__goes_on_when_its_request_is_cancelled(converse: Converse) -> None:
    async def respond(conversation: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            await writer.write("whole")

    conversation = await converse.start_conversation()
    created, go_on = asyncio.Event(), asyncio.Event()

    async def create() -> Message:
        message = await conversation.start_streaming_assistant()
        created.set()
        await go_on.wait()
        return message

    async with Generations(respond, limit=1, grace=20) as generations:
        request = asyncio.create_task(generations.begin(conversation, create))
        await created.wait()
        with pytest.raises(BusyError):
            await generations.begin(conversation, create)
        request.cancel()
        await asyncio.wait({request})
        asyncio.get_running_loop().call_later(0.05, go_on.set)
    (message,) = await conversation.messages()
    assert (message.status, message.content) == (MessageStatus.COMPLETED, "whole")


async def test_two_processes__write_one_answer_once(facade: Any) -> None:
    first: Converse = await facade()
    second: Converse = await facade(database=first.database_name)
    written = []

    async def respond(conversation: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            written.append(message)
            await writer.write("one")

    conversation = await first.start_conversation()
    message = await conversation.start_streaming_assistant(generation_id="job")
    async with Generations(respond) as here, Generations(respond) as there:
        here.start(conversation, message)
        there.start(conversation, await second.get_message(message.id))
        found = await ended(first, message)
    assert (found.status, found.content, len(written)) == (MessageStatus.COMPLETED, "one", 1)


@pytest.mark.parametrize(
    "options", [{"respond": None}, {"limit": 0}, {"limit": True}, {"grace": -1}, {"grace": "x"}]
)
def test_options__that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Generations(**{"respond": test_limit__and_closed_ones_refuse, **options})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"limit": 0}, "limit must be an integer of at least 1"),
        ({"grace": -1}, "grace must be from 0 to"),
        ({"silence": 0}, "silence must be a number"),
        ({"queue": ""}, "name of a queue"),
    ],
)
def test_options__that_are_refused_are_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as refused:
        Generations(test_limit__and_closed_ones_refuse, **options)
    assert {"limit", "grace", "silence", "queue"} & {*str(refused.value).split()} <= {*options}


async def test_respond__that_is_no_coroutine_function_is_named(
    converse: Converse, caplog: pytest.LogCaptureFixture
) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    respond: Any = lambda conversation, message: "Hi"  # noqa: E731
    async with Generations(respond) as generations:
        generations.start(conversation, message)
        found = await ended(converse, message)
    assert found.status is MessageStatus.FAILED
    assert "respond returned str: it must be a coroutine function" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="freezes a process by a signal")
@pytest.mark.parametrize("writes", ["by a writer", "by hand", "not yet"])
async def test_close__of_a_frozen_server_ends_in_time(
    start_server: Callable[..., EmbeddedServer], caplog: pytest.LogCaptureFixture, writes: str
) -> None:
    begun = asyncio.Event()

    async def respond(conversation: Conversation, message: Message) -> None:
        if writes == "by hand":
            await message.append_chunk("begun")
            begun.set()
            await asyncio.Event().wait()
        async with message.writer() as writer:
            while True:
                await writer.write("begun ")
                begun.set()
                await asyncio.sleep(0.01)

    server = start_server()
    client = open_client(server.uri, {})  # closed once the server answers again
    converse = await Converse(client, database="frozen").open()
    generations = Generations(respond, grace=0.1)
    conversation, message = await talk(converse)
    try:
        if writes != "not yet":
            generations.start(conversation, message)
            await begun.wait()
        with frozen(server):
            asking = asyncio.create_task(
                generations.begin(conversation, conversation.start_streaming_assistant)
            )
            await asyncio.sleep(0.1)
            began = time.monotonic()
            async with asyncio.timeout(SOON):
                await generations.aclose()
                (asked,) = await asyncio.gather(asking, return_exceptions=True)
                # The server may have answered a last time while it was being frozen.
                assert isinstance(asked, BusyError | Message)
            assert time.monotonic() - began < 8.0
            async with asyncio.timeout(SOON):
                await converse.aclose(timeout=0.5)
            await until(lambda: generations.running == 0)
    finally:
        await converse.aclose()
        await close_client(client)


async def test_close__leaves_what_does_not_let_itself_be_cancelled(
    converse: Converse, caplog: pytest.LogCaptureFixture
) -> None:
    let_go, begun = asyncio.Event(), asyncio.Event()

    async def stubborn(conversation: Conversation, message: Message) -> None:
        begun.set()
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()

    conversation, message = await talk(converse)
    generations = Generations(stubborn, grace=0)
    generations.start(conversation, message)
    await begun.wait()
    async with asyncio.timeout(SOON):
        await generations.aclose()
    (record,) = [each for each in caplog.records if "were left" in each.getMessage()]
    assert str(message.id) in record.getMessage()
    let_go.set()
    await until(lambda: generations.running == 0)
