"""Workers in trouble: errors of others, what comes late, and workers that are faster."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bson
import pytest
from bson import ObjectId

from converse_mongo import (
    ChunkReceived,
    Conversation,
    Converse,
    Message,
    MessageStatus,
    Retry,
    RetryPolicy,
    StoreUnavailableError,
    WriterFencedError,
)
from converse_mongo.domain import open_calls
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.validation import MAX_ERROR_LENGTH
from converse_mongo.domain.work import WorkState
from tests.conftest import Facade
from tests.integration.helpers import DEAD, Between, Meanwhile, expired, raw, soon
from tests.integration.test_work import (
    CALL,
    answer,
    claim,
    enqueue,
    places,
    state_of,
    store_of,
    suspended,
    work_of,
    write,
)
from tests.integration.test_workers import ended, say_hello, working
from tests.streams import SOON, until

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024


@pytest.mark.parametrize("step", ["hand_over", "suspend", "retry"])
async def test_step__is_not_done_by_who_took_the_worker_for_dead(facade: Facade, step: str) -> None:
    converse = await facade(**DEAD)
    message = await enqueue(converse)
    claimed = await claim(converse, message)
    await write(converse, claimed, CALL)
    store = store_of(converse)

    async def recover(update: Any, match: Any, change: Any) -> Any:
        store.messages = real
        await expired(converse, message)
        assert await converse.recover_stale() == []
        return await update(match, change)

    real = store.messages
    Between(store, update_one=recover)
    given: dict[str, Any] = {"checkpoint": {"steps": 1}}
    if step == "hand_over":
        given["queue"] = "q"
    with pytest.raises(WriterFencedError):
        await getattr(store.jobs, step)(claimed.key, claimed.lease, **given)
    stored = await raw(converse, message)
    assert (stored["work"]["state"], stored["work"]["crashes"]) == ("queued", 1)
    assert "checkpoint" not in stored


@pytest.mark.parametrize("step", ["hand_over", "suspend", "retry"])
async def test_step__is_done_though_the_next_worker_has_the_message_already(
    converse: Converse, step: str
) -> None:
    message = await enqueue(converse, key="k", limit=2)
    claimed = await claim(converse, message)
    await write(converse, claimed, "so far", CALL)
    store = store_of(converse)

    async def go_on() -> None:
        if step == "suspend":
            await answer(converse, message, open_calls.output("c1", 1))
        await claim(converse, message)

    Between(store, update_one=Meanwhile(go_on))
    jobs, mine = store.jobs, (claimed.key, claimed.lease)
    if step == "hand_over":
        await jobs.hand_over(*mine, "q", {"steps": 1})
    elif step == "suspend":
        await jobs.suspend(*mine, checkpoint={"steps": 1})
    else:
        await jobs.retry(*mine, checkpoint={"steps": 1})
    state = await state_of(converse, message)
    assert state.lease.epoch == 2
    assert (await work_of(converse, message)).state is WorkState.RUNNING
    assert (await converse.get_message(message.id)).checkpoint == {"steps": 1}
    assert await places(converse) == [message.id]  # once


async def test_look__goes_on_behind_messages_whose_calls_cannot_expire(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("converse_mongo.working.worker.SPARE", 0)
    converse = await facade(change_streams=False)
    full = await suspended(converse, CALL, expires=0.001)
    size = MAX_DOCUMENT_BYTES - len(bson.encode(await raw(converse, full))) - 40
    grow = {"$set": {"metadata.blob": "x" * size}}  # there is no room for an answer
    await store_of(converse).messages.update_one({"_id": full.id}, grow)
    message = await enqueue(converse)
    late = await suspended(converse, CALL, expires=0.001)
    # It looks at one at a time.
    options: dict[str, Any] = {"queues": ["q"], "poll_interval": 0.05, "concurrency": 1}
    async with working(converse, say_hello, **options):
        for each in (message, late):
            assert (await ended(converse, each)).status is MessageStatus.COMPLETED
    assert f"Message {full.id} cannot go on" in caplog.text
    left = await work_of(converse, full)
    assert left.state is WorkState.WAITING
    assert left.due is not None
    assert left.available_at is not None
    assert left.due > left.available_at


async def test_expiry__tells_handlers_the_role(converse: Converse) -> None:
    told: list[ChunkReceived] = []

    done = asyncio.Event()

    async def finish(_: Conversation, message: Message) -> None:
        await say_hello(_, message)
        done.set()

    await suspended(converse, CALL, expires=0.001)
    converse.on(ChunkReceived, told.append)
    async with working(converse, finish, queues=["q"], poll_interval=0.05):
        await soon(done.wait())
    assert [event.role for event in told] == ["assistant", "assistant"]


async def test_retry_on__that_fails_is_no_death_of_the_worker(
    converse: Converse, caplog: pytest.LogCaptureFixture
) -> None:
    def has_status(error: Exception) -> bool:
        return error.status == 503  # type: ignore[attr-defined,no-any-return]

    async def fail(_: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            await writer.write("half")
            raise ValueError("no such model")

    message = await enqueue(converse)
    retry = RetryPolicy(retry_on=has_status)
    async with working(converse, fail, queues=["q"], retry=retry):
        read = await ended(converse, message)
    assert (read.status, read.error) == (MessageStatus.FAILED, "no such model")
    assert read.work is not None
    assert (read.work.crashes, read.work.retries) == (0, 0)
    assert "retry_on failed" in caplog.text


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (ConnectionError("busy"), "busy"),
        ("\ud800", "?"),
        ("x" * MAX_DOCUMENT_BYTES, "x" * MAX_ERROR_LENGTH),
    ],
    ids=["an error", "half a character", "a long text"],
)
async def test_retry__with_a_reason_that_cannot_be_stored_fails_the_message(
    converse: Converse, monkeypatch: pytest.MonkeyPatch, reason: Any, error: str
) -> None:
    # It logs the reason, and pytest-xdist cannot report half a character.
    monkeypatch.setattr(logging.getLogger("converse_mongo"), "disabled", True)

    async def fail(*_: Any) -> None:
        raise Retry(reason)

    message = await enqueue(converse, max_attempts=1)
    async with working(converse, fail, queues=["q"]):
        read = await ended(converse, message)
    assert (read.status, read.error) == (MessageStatus.FAILED, error)


async def test_message__without_its_conversation_is_cancelled(facade: Facade) -> None:
    converse = await facade(lease=3600.0)  # nobody takes it for the message of a dead worker
    message = await enqueue(converse)
    # As whoever deletes it does before dying.
    await store_of(converse).conversations.delete_one({"_id": message.conversation_id})
    async with working(converse, say_hello, queues=["q"]):
        read = await ended(converse, message)
    assert (read.status, read.stop_reason) == (
        *(MessageStatus.CANCELLED, "The conversation was deleted."),
    )


async def test_stop__of_a_message_that_cannot_be_loaded_wins(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = await enqueue(converse)

    async def load(*_: Any) -> Any:
        await converse.request_stop(message.id, "by the user")
        raise ValueError("a validator of the application")

    monkeypatch.setattr("converse_mongo.converse.load_attempt", load)
    async with working(converse, say_hello, queues=["q"]):
        read = await ended(converse, message)
    assert (read.status, read.stop_reason) == (MessageStatus.CANCELLED, "by the user")


async def test_hint__that_comes_during_a_claim_which_is_lost(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade()
    jobs = store_of(converse).jobs
    real, claiming, heard = jobs.claim, asyncio.Event(), asyncio.Event()

    async def lose(state: MessageHeader, holder: ObjectId) -> MessageHeader | None:
        monkeypatch.setattr(jobs, "claim", real)
        claiming.set()
        await soon(heard.wait())
        assert await real(state, holder)  # another worker is faster
        return None

    options: dict[str, Any] = {"queues": ["q"], "concurrency": 1, "poll_interval": 3600.0}
    async with working(converse, say_hello, **options) as worker:
        # It has looked since its change stream is open.
        await until(lambda: worker.statistics().looks >= 2)
        monkeypatch.setattr(jobs, "claim", lose)
        await enqueue(converse)
        await soon(claiming.wait())
        message = await enqueue(converse)
        await until(lambda: worker._missed)
        heard.set()
        assert (await ended(converse, message)).status is MessageStatus.COMPLETED


async def test_close__that_is_cancelled_hands_over_at_once(converse: Converse) -> None:
    thinking = asyncio.Event()

    async def think(*_: Any) -> None:
        thinking.set()
        await asyncio.Event().wait()

    message = await enqueue(converse)
    worker = converse.worker(think, queues=["q"], grace=3600.0)
    running = asyncio.create_task(worker.run())
    await soon(thinking.wait())
    closing = asyncio.create_task(worker.aclose())
    await soon(running)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(closing)
    work = await work_of(converse, message)
    assert (work.state, work.crashes) == (WorkState.QUEUED, 0)
    assert worker.statistics().handed_over == 1


async def test_claim__that_outlasts_its_worker_is_handed_over(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = store_of(converse).jobs
    real, claiming, closed = jobs.claim, asyncio.Event(), asyncio.Event()

    async def slow(state: MessageHeader, holder: ObjectId) -> MessageHeader | None:
        claiming.set()
        await closed.wait()
        return await real(state, holder)

    async def think(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(jobs, "claim", slow)
    monkeypatch.setattr("converse_mongo.working.worker.CLOSE_SECONDS", 0.01)
    message = await enqueue(converse)
    worker = converse.worker(think, queues=["q"])
    running = asyncio.create_task(worker.run())
    await soon(claiming.wait())
    running.cancel()
    await soon(worker.aclose())
    closed.set()
    await until(lambda: worker.statistics().handed_over == 1)
    assert (await work_of(converse, message)).state is WorkState.QUEUED


class Failing:
    """Does what a method does, but for the first time."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.failed = asyncio.Event()
        self.went_on = asyncio.Event()

    async def __call__(self, *arguments: Any, **options: Any) -> Any:
        if not self.failed.is_set():
            self.failed.set()
            raise RuntimeError("can't start new thread")  # as of Motor on a busy host
        self.went_on.set()
        return await self._real(*arguments, **options)


async def test_look__that_fails_unexpectedly_is_made_again(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = store_of(converse).jobs
    monkeypatch.setattr(jobs, "due", Failing(jobs.due))
    message = await enqueue(converse)
    async with working(converse, say_hello, queues=["q"]):
        assert (await ended(converse, message)).status is MessageStatus.COMPLETED


async def test_run__ends_though_a_driver_swallows_its_cancellation(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = asyncio.Event()

    async def swallow(*_: Any, **__: Any) -> list[MessageHeader]:
        looking.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return []

    monkeypatch.setattr(store_of(converse).jobs, "due", swallow)
    worker = converse.worker(say_hello, queues=["q"])
    running = asyncio.create_task(worker.run())
    await soon(looking.wait())
    running.cancel()
    await asyncio.wait({running}, timeout=SOON)
    assert running.cancelled()
    await worker.aclose()


async def test_heartbeat__that_fails_unexpectedly_is_followed_by_others(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(lease=3.0)
    leases = store_of(converse).leases
    renew = Failing(leases.renew)
    monkeypatch.setattr(leases, "renew", renew)

    async def think(_: Conversation, message: Message) -> None:
        if message.attempt == 1:
            await soon(renew.failed.wait())
            await soon(renew.went_on.wait())
        await say_hello(_, message)

    message = await enqueue(converse)
    async with working(converse, think, queues=["q"]):
        assert (await ended(converse, message)).status is MessageStatus.COMPLETED
    assert renew.went_on.is_set()


async def test_tending__that_fails_unexpectedly_is_no_end_of_it(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(**DEAD)
    message = await enqueue(converse)
    await claim(converse, message)  # by a process that dies
    done = asyncio.Event()

    async def note(_: Conversation, message: Message) -> None:
        await say_hello(_, message)
        done.set()

    places = store_of(converse).key_places
    monkeypatch.setattr(places, "begin_sweep", Failing(places.begin_sweep))
    async with working(converse, note, queues=["q"]):
        await soon(done.wait())


@pytest.mark.parametrize("error", [StoreUnavailableError("no answer"), KeyError("running")])
async def test_sweep__that_fails_is_no_end_of_the_recovery(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    converse = await facade(**DEAD)
    message = await enqueue(converse)
    await claim(converse, message)  # by a process that dies
    done = asyncio.Event()

    async def note(_: Conversation, message: Message) -> None:
        await say_hello(_, message)
        done.set()

    async def fail() -> None:
        raise error

    monkeypatch.setattr(store_of(converse).key_places, "sweep", fail)
    async with working(converse, note, queues=["q"]):
        await soon(done.wait())  # nobody reads it meanwhile, which would end its lease as well


async def test_last_lives__are_in_no_way_of_others_however_many(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converse_mongo.working.worker.MOST_LOOKED_AT", 4)
    suspects = [await enqueue(converse, max_attempts=2) for _ in range(6)]
    crashed = {"$set": {"work.crashes": 1}}
    ids = [each.id for each in suspects]
    await store_of(converse).messages.update_many({"_id": {"$in": ids}}, crashed)
    message = await enqueue(converse)
    let_go, begun = asyncio.Event(), list[Message]()

    async def suspect(_: Conversation, own: Message) -> None:
        begun.append(own)
        if own.id != message.id:
            await let_go.wait()
        await say_hello(_, own)

    async with working(converse, suspect, queues=["q"]):
        assert (await ended(converse, message)).status is MessageStatus.COMPLETED
        assert len(begun) == 2
        let_go.set()
        for each in suspects:
            await ended(converse, each)


async def test_plain_functions__that_raise_stop_iteration_fail(converse: Converse) -> None:
    def respond(_: Conversation, _message: Message) -> Iterator[str]:
        return next(iter([]))  # as of a response that is empty

    message = await enqueue(converse)
    async with working(converse, respond, queues=["q"]) as worker:
        await until(lambda: worker.statistics().ended == 1)
    assert (await converse.get_message(message.id)).metadata["error_type"] == "RuntimeError"


async def test_plain_functions__run_at_once_and_do_not_take_the_threads_of_others(
    converse: Converse,
) -> None:
    few = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(few)
    count, let_go = 8, threading.Event()
    running = threading.Barrier(count)
    threads: set[int] = set()

    def block(_: Conversation, message: Message) -> Iterator[str]:
        threads.add(threading.get_ident())
        running.wait(SOON)
        yield "at once"
        threads.add(threading.get_ident())
        if message.metadata.get("hangs"):
            let_go.wait()

    for _ in range(count - 1):
        await enqueue(converse)
    conversation = await converse.start_conversation()
    hung = await conversation.start_streaming_assistant({"hangs": True}, queue="q")
    try:
        async with working(converse, block, queues=["q"]) as worker:
            await until(lambda: worker.statistics().ended == count - 1)
            assert await soon(asyncio.to_thread(lambda: 1)) == 1
        assert worker.statistics().handed_over == 1
        assert (await work_of(converse, hung)).state is WorkState.QUEUED
        assert len(threads) == count  # one each, from its beginning to its end
    finally:
        let_go.set()
