"""Queued messages: claimed, handed over, suspended, answered, stopped, recovered. Contract 12."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import AutoReconnect

from converse_mongo import (
    CallNotPendingError,
    Conversation,
    Converse,
    InvalidInputError,
    Message,
    MessageNotFoundError,
    MessageNotStreamingError,
    MessageQueuedError,
    MessageStatus,
    PartSet,
    PartStart,
    StreamStoppedError,
    ToolCallPart,
    WriterFencedError,
)
from converse_mongo.domain import open_calls
from converse_mongo.domain.composing import pieces_of
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.part_pieces import PartPiece
from converse_mongo.domain.work import Job, Work, WorkState
from converse_mongo.store import Store, leases
from converse_mongo.store.appends import WriterClaim
from converse_mongo.store.queues import QueueStatistics
from converse_mongo.store.updates import End
from tests.conftest import Facade
from tests.integration.helpers import DEAD, Between, Meanwhile, expired, raw
from tests.streams import SOON, collect, until

CALL = ToolCallPart("ask", "c1", executor="client", input={"q": 1})
REQUEST = ToolCallPart("do", "c2", input={}, approval={"id": "a"})


def store_of(converse: Converse) -> Store:
    return converse.message_model.store()


async def enqueue(where: Converse | Conversation, **job: Any) -> Message:
    """Starts a message in a queue, as the documents do."""
    conversation = await where.start_conversation() if isinstance(where, Converse) else where
    generation_id = job.pop("generation_id", None)
    wanted = Job(**{"queue": "q", **job})
    return await conversation._start("assistant", None, generation_id, None, {}, wanted)


async def work_of(converse: Converse, message: Message) -> Work:
    state = await state_of(converse, message)
    assert state.work is not None
    return state.work


async def state_of(converse: Converse, message: Message) -> MessageHeader:
    state = await store_of(converse).reader.state(message.id, message.conversation_id)
    assert state is not None
    return state


async def due(converse: Converse, *queues: str) -> list[ObjectId]:
    found = await store_of(converse).jobs.due(queues or ["q"], 100)
    return [each.message_id for each in found]


async def claim(converse: Converse, message: Message) -> MessageHeader:
    claimed = await store_of(converse).jobs.claim(await state_of(converse, message))
    assert claimed is not None
    return claimed


async def write(converse: Converse, claimed: MessageHeader, *contents: Any) -> None:
    """Appends as the worker that has claimed a message does."""
    store = store_of(converse)
    message = await converse.get_message(claimed.message_id)
    pieces = [piece for some in pieces_of(contents) for piece in some]
    has_parts = any(isinstance(piece, PartPiece) for piece in pieces)
    queue, key = message._own_queue(store), message._own_key()
    writer = WriterClaim(claimed.lease, True, lambda: None)
    await store.appends.append(queue, key, pieces, None, writer, has_parts=has_parts)


async def suspended(converse: Converse, *calls: ToolCallPart, **options: Any) -> Message:
    """A message that waits for answers to calls."""
    expires = options.pop("expires", None)
    message = await enqueue(converse, **options)
    claimed = await claim(converse, message)
    await write(converse, claimed, "so far", *calls)
    state = await store_of(converse).jobs.suspend(claimed.key, claimed.lease, expires)
    assert state.work is not None
    assert state.work.state is WorkState.WAITING
    return message


async def answer(converse: Converse, message: Message, *answers: Any) -> Any:
    store = store_of(converse)
    queue, key = message._own_queue(store), message._own_key()
    return await store.calls.answer(queue, key, answers)


async def places(converse: Converse) -> list[ObjectId]:
    """The messages that have a place, by their ids."""
    found = store_of(converse).places.find({"_id": {"$ne": "sweep"}})
    return [each["message_id"] async for stored in found for each in stored["running"]]


# Into the queue


async def test_start__puts_a_message_into_its_queue(converse: Converse) -> None:
    message = await enqueue(converse, priority=3)
    stored = await raw(converse, message)
    assert stored["format"] == 3
    assert stored["lease"] == {"epoch": 0, "holder": None, "renewed_at": None, "duration": None}
    assert stored["work"].pop("due")
    assert stored["work"] == {
        "queue": "q",
        "priority": 3,
        "state": "queued",
        "crashes": 0,
        "retries": 0,
        "max_attempts": 3,
    }
    assert await due(converse) == [message.id]
    assert await due(converse, "another") == []


async def test_start__with_a_key_has_one_of_it_run(converse: Converse) -> None:
    first, second = [await enqueue(converse, key="k") for _ in range(2)]
    assert await due(converse) == [first.id]
    assert (await work_of(converse, second)).state is WorkState.BLOCKED
    assert await places(converse) == [first.id]
    other = await enqueue(converse, key=("k",))
    assert (await work_of(converse, other)).state is WorkState.QUEUED


async def test_place__is_for_what_is_blocked_longest_whatever_the_clocks_of_hosts(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    first, real = await enqueue(converse, key="k"), time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    ahead = await enqueue(other, key="k")
    monkeypatch.undo()
    await asyncio.sleep(1.1)  # tickets differ by seconds
    await enqueue(converse, key="k")
    await first.cancel_streaming()
    assert await places(converse) == [ahead.id]


async def test_start__in_a_transaction_asks_for_a_place_after_the_commit(
    converse: Converse,
) -> None:
    conversation = await converse.start_conversation()
    with pytest.raises(ZeroDivisionError):
        async with converse.transaction():
            await enqueue(conversation, key="k")
            raise ZeroDivisionError
    assert await places(converse) == []
    async with converse.transaction():
        message = await enqueue(conversation, key="k")
        assert await places(converse) == []
    assert await due(converse) == [message.id]
    assert await places(converse) == [message.id]


async def test_start__of_the_same_generation_asks_again(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    with dying_at_once(converse):
        message = await enqueue(conversation, key="k", generation_id="g")
    assert (await work_of(converse, message)).state is WorkState.BLOCKED
    again = await enqueue(conversation, key="k", generation_id="g")
    assert again.id == message.id
    assert await due(converse) == [message.id]


@contextmanager
def dying_at_once(converse: Converse) -> Iterator[None]:
    """Has the process die before it looks for a place for what it starts."""
    jobs: Any = store_of(converse).jobs

    async def lost(_key: Any) -> None:
        pass

    jobs.enqueued = lost
    yield
    del jobs.enqueued


async def no_news() -> None:
    pass


async def test_due__is_what_has_the_highest_priority_then_waits_longest(
    converse: Converse,
) -> None:
    conversation = await converse.start_conversation()
    low, high, also_high = [
        await enqueue(conversation, priority=priority) for priority in (-5, 7, 7)
    ]
    other = await enqueue(conversation, queue="r", priority=6)
    assert await due(converse) == [high.id, also_high.id, low.id]
    assert await due(converse, "r", "q") == [high.id, also_high.id, other.id, low.id]


async def test_due__without_those_on_their_last_life(converse: Converse) -> None:
    store = store_of(converse)
    makes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"max_attempts": 1}, {}),
        ({}, {"work.retries": 2}),
        ({}, {"work.crashes": 1}),
        ({"max_attempts": 2}, {"work.crashes": 1}),
        ({}, {"work.crashes": 1, "work.retries": 1}),
    ]
    for job, counted in makes:
        message = await enqueue(converse, **job)
        if counted:
            await store.messages.update_one({"_id": message.id}, {"$set": counted})
    waits = await suspended(converse, CALL, expires=0.001, max_attempts=1)
    last = {"$set": {"work.crashes": 1}}
    await store.messages.update_one({"_id": waits.id}, last)
    found = {each.message_id: each.work for each in await store.jobs.due(["q"], 100)}
    assert len(found) == 6
    left = {each.message_id for each in await store.jobs.due(["q"], 100, last_lives=False)}
    assert left == {
        message_id for message_id, work in found.items() if work and not work.is_last_life
    } | {waits.id}
    assert len(left) == 4


async def test_delay__is_over_by_the_clock_of_the_server(converse: Converse) -> None:
    store = store_of(converse)
    plain, keyed = [await enqueue(converse, delay=3600, **key) for key in ({}, {"key": "k"})]
    later = await enqueue(converse, delay=7200)
    assert (await work_of(converse, keyed)).state is WorkState.DELAYED
    for message in (plain, later):
        assert await store.jobs.claim(await state_of(converse, message)) is None
    assert not await store.jobs.undelay(await state_of(converse, keyed))
    assert await places(converse) == []
    for message in (plain, keyed, later):  # an hour passes
        work = (await raw(converse, message))["work"]
        at = {f"work.{name}": work[name] - timedelta(hours=1) for name in ("due", "available_at")}
        await store.messages.update_one({"_id": message.id}, {"$set": at})
    assert await store.jobs.claim(await state_of(converse, later)) is None
    assert await store.jobs.undelay(await state_of(converse, keyed))
    assert await places(converse) == [keyed.id]
    for message in (plain, keyed):
        assert (await claim(converse, message)).lease.epoch == 1


# To a worker


async def test_claim__makes_one_worker_the_writer(facade: Facade) -> None:
    converse = await facade(lease=7.0)
    other = await facade(converse.database_name)
    message = await enqueue(converse)
    seen = await state_of(converse, message)
    won = [
        each
        for each in await asyncio.gather(
            *(store_of(each).jobs.claim(seen) for each in (converse, other) * 5)
        )
        if each is not None
    ]
    [state] = won
    assert state.work is not None
    assert (state.lease.epoch, state.work.state, state.work.due) == (1, WorkState.RUNNING, None)
    assert state.lease.duration is not None
    await write(converse, state, "text")
    assert await due(converse) == []


async def test_enlist__is_for_one_caller_and_for_what_nobody_has_written_to(
    converse: Converse,
) -> None:
    store = converse.message_model.store()
    conversation = await converse.start_conversation()
    job = Job(queue="q", max_attempts=2)
    fresh = await conversation.start_streaming_assistant()
    claimed = await store.jobs.enlist(fresh._own_key(), job)
    assert claimed is not None
    assert claimed.work is not None
    assert (claimed.work.queue, claimed.work.state, claimed.lease.epoch) == ("q", "running", 1)
    assert claimed.format == 3
    written = await conversation.start_streaming_assistant()
    await written.append_chunk("by hand")
    held = await conversation.start_streaming_assistant()
    queued = await conversation.start_streaming_assistant(queue="other")
    gone = await conversation.start_streaming_assistant()
    await gone.delete()
    async with held.writer() as writer:
        assert await store.jobs.enlist(gone._own_key(), job) is None
        for each in (fresh, written, held, queued):
            before = await raw(converse, each)
            assert await store.jobs.enlist(each._own_key(), job) is None
            assert await raw(converse, each) == before
        await writer.write("still mine")


async def test_claim__without_an_answer_is_recognized(converse: Converse) -> None:
    message = await enqueue(converse)
    store = store_of(converse)
    Between(store, update_one=Meanwhile(no_news, lost=True))
    assert (await claim(converse, message)).lease.epoch == 1


@pytest.mark.parametrize("way", ["claim", "enlist"])
async def test_claim__that_is_answered_once_its_lease_has_run_out(facade: Facade, way: str) -> None:
    # Its process stood still meanwhile, and others have ended the message as lost.
    converse, other = (c := await facade(lease=0.2)), await facade(c.database_name)
    job = Job(queue="q", max_attempts=1)
    if way == "claim":
        message = await enqueue(converse, max_attempts=1)
    else:
        message = await (await converse.start_conversation()).start_streaming_assistant()
    seen = await state_of(converse, message)

    async def stand_still() -> None:
        await expired(other, message)
        assert len(await other.recover_stale()) == 1

    store = store_of(converse)
    Between(store, update_one=Meanwhile(stand_still, lost=True))
    jobs = store.jobs
    found = await (jobs.claim(seen) if way == "claim" else jobs.enlist(seen.key, job))
    assert found is None
    assert (await other.get_message(message.id)).status is MessageStatus.FAILED


async def test_claim__of_what_was_stopped_or_deleted(converse: Converse) -> None:
    first, second = [await enqueue(converse) for _ in range(2)]
    seen = [await state_of(converse, each) for each in (first, second)]
    await first.request_stop()
    await second.delete()
    assert [await store_of(converse).jobs.claim(each) for each in seen] == [None, None]


@pytest.mark.parametrize("state", ["queued", "delayed", "blocked", "waiting"])
async def test_writer__of_a_message_that_is_queued(converse: Converse, state: str) -> None:
    if state == "waiting":
        message = await suspended(converse, CALL)
    elif state == "blocked":
        await enqueue(converse, key="k")
        message = await enqueue(converse, key="k")
    else:
        message = await enqueue(
            converse, **({"key": "k", "delay": 9} if state == "delayed" else {})
        )
    before = await raw(converse, message)
    for writer in (message.writer, message.resume_writer):
        with pytest.raises(MessageQueuedError, match=f"is {state}") as refused:
            async with writer():
                pass
        assert refused.value.state == state
    assert await raw(converse, message) == before


async def test_take_over__of_a_message_that_runs_fences_its_worker(converse: Converse) -> None:
    message = await enqueue(converse)
    claimed = await claim(converse, message)
    async with (await converse.get_message(message.id)).resume_writer() as writer:
        await writer.write("by hand")
    with pytest.raises(WriterFencedError):
        await store_of(converse).jobs.hand_over(claimed.key, claimed.lease, "q")
    assert (await converse.get_message(message.id)).content == "by hand"


# Back to the queue


async def test_hand_over__gives_the_message_to_the_next_worker(converse: Converse) -> None:
    message, blocked = [await enqueue(converse, key="k") for _ in range(2)]
    claimed = await claim(converse, message)
    await write(converse, claimed, "one ")
    left = await store_of(converse).jobs.hand_over(claimed.key, claimed.lease, "q", {"at": 1})
    assert left.work is not None
    assert (left.work.state, left.work.attempt) == (WorkState.QUEUED, 1)
    assert await places(converse) == [message.id]
    with pytest.raises(WriterFencedError):
        await write(converse, claimed, "never stored")
    # Not by its epoch, which is still the last one.
    again = await claim(converse, message)
    assert (again.lease.epoch, (await converse.get_message(message.id)).checkpoint) == (
        2,
        {"at": 1},
    )
    await write(converse, again, "two")
    assert (await converse.get_message(message.id)).content == "one two"
    assert (await work_of(converse, blocked)).state is WorkState.BLOCKED


async def test_detach__of_a_writer_hands_over(converse: Converse) -> None:
    message = await enqueue(converse)
    claimed = await claim(converse, message)
    await store_of(converse).leases.release(claimed.key, claimed.lease)
    work = await work_of(converse, message)
    assert (work.state, work.crashes) == (WorkState.QUEUED, 0)


async def test_retry__counts_and_gives_the_place_to_others_meanwhile(converse: Converse) -> None:
    message, blocked = [await enqueue(converse, key="k", max_attempts=3) for _ in range(2)]
    claimed = await claim(converse, message)
    jobs = store_of(converse).jobs
    left = await jobs.retry(claimed.key, claimed.lease)
    assert left.work is not None
    assert (left.work.state, left.work.retries) == (WorkState.QUEUED, 1)
    claimed = await claim(converse, message)
    left = await jobs.retry(claimed.key, claimed.lease, 60)
    assert left.work is not None
    assert (left.work.state, left.work.attempt) == (WorkState.DELAYED, 3)
    assert await places(converse) == [blocked.id]
    assert await due(converse) == [blocked.id]


async def test_retry__of_the_last_attempt(converse: Converse) -> None:
    message = await enqueue(converse, max_attempts=1)
    claimed = await claim(converse, message)
    with pytest.raises(InvalidInputError, match=r"Attempt 1 .* was the last one"):
        await store_of(converse).jobs.retry(claimed.key, claimed.lease)
    assert (await work_of(converse, message)).state is WorkState.RUNNING


STEPS = {
    "hand over": lambda jobs, claimed: jobs.hand_over(claimed.key, claimed.lease, "q"),
    "retry": lambda jobs, claimed: jobs.retry(claimed.key, claimed.lease),
    "suspend": lambda jobs, claimed: jobs.suspend(claimed.key, claimed.lease),
}


@pytest.mark.parametrize("step", STEPS)
async def test_step__of_a_worker_that_may_not(converse: Converse, step: str) -> None:
    jobs = store_of(converse).jobs
    stopped, ended, gone = [await enqueue(converse) for _ in range(3)]
    claimed = {each.id: await claim(converse, each) for each in (stopped, ended, gone)}
    for each in claimed.values():
        await write(converse, each, CALL)
    assert await stopped.request_stop("enough") is MessageStatus.STREAMING
    await (await converse.get_message(ended.id)).complete_streaming()
    await gone.delete()
    for message, error in (
        (stopped, StreamStoppedError),
        (ended, MessageNotStreamingError),
        (gone, MessageNotFoundError),
    ):
        with pytest.raises(error):
            await STEPS[step](jobs, claimed[message.id])


async def test_step__of_a_message_without_a_queue(converse: Converse) -> None:
    message = await (await converse.start_conversation()).start_streaming_assistant()
    held = await store_of(converse).leases.acquire(message._own_key())
    for step in ("retry", "suspend"):
        with pytest.raises(InvalidInputError, match="was not started with a queue"):
            await STEPS[step](store_of(converse).jobs, held)


async def test_step__without_an_answer_is_recognized(converse: Converse) -> None:
    store = store_of(converse)
    message = await enqueue(converse)
    for step, state in (("hand over", "queued"), ("retry", "queued"), ("suspend", "waiting")):
        claimed = await claim(converse, message)
        if step == "suspend":
            await write(converse, claimed, CALL)
        real = store.messages
        Between(store, update_one=Meanwhile(no_news, lost=True))
        left = await STEPS[step](store.jobs, claimed)
        store.messages = real
        assert left.work is not None
        assert left.work.state == state
    assert (await work_of(converse, message)).attempt == 2


# Waiting for people


async def test_suspend__waits_without_a_worker_a_place_or_a_lease(facade: Facade) -> None:
    converse = await facade(**DEAD)
    message, blocked = [await enqueue(converse, key="k") for _ in range(2)]
    claimed = await claim(converse, message)
    await write(converse, claimed, CALL, REQUEST)
    assert [each.call_id for each in (await work_of(converse, message)).pending] == ["c1", "c2"]
    await store_of(converse).jobs.suspend(claimed.key, claimed.lease)
    stored = await raw(converse, message)
    assert stored["work"]["state"] == "waiting"
    assert not {"due", "ticket", "available_at"} & stored["work"].keys()
    assert (stored["lease"]["holder"], stored["lease"]["duration"]) == (None, None)
    assert await places(converse) == [blocked.id]
    await asyncio.sleep(0.4)  # longer than a lease
    assert await converse.recover_stale() == []
    assert (await converse.get_message(message.id)).is_streaming
    with pytest.raises(WriterFencedError):
        await write(converse, claimed, "never stored")


async def test_answer__to_the_last_call_has_the_message_go_on(converse: Converse) -> None:
    message = await suspended(converse, CALL, REQUEST, key="k", expires=60)
    watching = asyncio.create_task(collect(converse, message))
    await until(lambda: converse.statistics().watchers == 1)
    first = await answer(converse, message, open_calls.approval("c2", approved=True, reason="ok"))
    assert [each.call_id for each in first.pending] == ["c1"]
    assert first.state.work.state is WorkState.WAITING
    with pytest.raises(CallNotPendingError, match=r"c1 \(its output\)") as late:
        await answer(converse, message, open_calls.approval("c2", approved=False))
    assert late.value.pending == {"c1": "output"}
    last = await answer(converse, message, open_calls.output("c1", {"r": 2}))
    assert (last.state.work.state, last.pending) == (WorkState.QUEUED, ())
    assert await places(converse) == [message.id]
    claimed = await claim(converse, message)
    read = await converse.get_message(message.id)
    _, asked, request = read.parts
    assert isinstance(asked, ToolCallPart)
    assert isinstance(request, ToolCallPart)
    assert (asked.output, asked.state) == ({"r": 2}, "output-available")
    assert request.approval is not None
    assert (request.approval.approved, request.approval.reason) == (True, "ok")
    await write(converse, claimed, ", and more")
    await (await converse.get_message(message.id)).complete_streaming()
    assert [event.type for event in await watching][-1] == "message.completed"


async def test_answer__of_several_is_one_write_or_none(converse: Converse) -> None:
    message = await suspended(converse, CALL, REQUEST)
    before = await raw(converse, message)
    yes = open_calls.approval("c2", approved=True)
    for answers in (
        (yes, open_calls.output("c3", 1)),
        (yes, open_calls.approval("c1", approved=True)),
    ):
        with pytest.raises(CallNotPendingError):
            await answer(converse, message, *answers)
    for wrong in [(), (yes, yes)]:
        with pytest.raises(InvalidInputError):
            await answer(converse, message, *wrong)
    assert await raw(converse, message) == before
    sent: list[Any] = []

    async def between(update: Any, *arguments: Any) -> Any:
        sent.append(arguments)
        return await update(*arguments)

    store = store_of(converse)
    Between(store, update_one=between)
    done = await answer(converse, message, yes, open_calls.failure("c1", "no"))
    assert done.state.work.state is WorkState.QUEUED
    assert len(sent) == 1


async def test_answer__before_the_suspend_is_not_waited_for(converse: Converse) -> None:
    message = await enqueue(converse)
    claimed = await claim(converse, message)
    await write(converse, claimed, CALL)
    done = await answer(converse, message, open_calls.output("c1", 1))
    assert done.state.work.state is WorkState.RUNNING
    left = await store_of(converse).jobs.suspend(claimed.key, claimed.lease)
    assert left.work is not None
    assert left.work.state is WorkState.QUEUED


async def test_answer__while_the_worker_suspends(converse: Converse) -> None:
    message = await enqueue(converse)
    claimed = await claim(converse, message)
    await write(converse, claimed, CALL)
    other = converse.message_model.store()

    async def between(update: Any, match: Any, change: Any) -> Any:
        if change["$set"].get("work.state") == "waiting":
            other.messages = real
            await answer(converse, message, open_calls.output("c1", 1))
        return await update(match, change)

    real = other.messages
    Between(other, update_one=between)
    left = await other.jobs.suspend(claimed.key, claimed.lease)
    assert left.work is not None
    assert (left.work.state, left.work.pending) == (WorkState.QUEUED, ())


async def test_answer__without_an_answer_is_recognized(converse: Converse) -> None:
    message = await suspended(converse, CALL, key="k")
    store = store_of(converse)
    Between(store, update_one=Meanwhile(no_news, lost=True))
    done = await answer(converse, message, open_calls.output("c1", 1))
    assert done.state.work.state is WorkState.QUEUED
    assert done.state.next_sequence == 3


async def test_answer__of_two_people_is_that_of_the_first(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await suspended(converse, REQUEST)
    both = await asyncio.gather(
        answer(converse, message, open_calls.approval("c2", approved=True)),
        answer(
            other, await other.get_message(message.id), open_calls.approval("c2", approved=False)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(each, CallNotPendingError) for each in both) == 1


@pytest.mark.parametrize("how", ["redaction", "output", "reset"])
async def test_append__that_leaves_no_call_has_a_waiting_message_go_on(
    facade: Facade, how: str
) -> None:
    converse = await facade()
    message = await suspended(converse, CALL, REQUEST, key="k", expires=60)
    other = await enqueue(converse, key="k")
    read = await converse.get_message(message.id)

    async def close(part: int) -> None:
        store, key = store_of(converse), message._own_key()
        if how == "redaction":
            await read.redact_part(part)
            return
        pieces = next(iter(pieces_of([PartSet(part, {"output": 1})])))
        if how == "reset":
            pieces = [PartPiece("reset", fields={"from": part})]
        await store.appends.append(read._own_queue(store), key, pieces, has_parts=True)

    await close(2)
    work = await work_of(converse, message)
    assert (work.state, [each.part for each in work.pending]) == (WorkState.WAITING, [1])
    await close(1)
    work = await work_of(converse, message)
    assert (work.state, work.pending, work.due) == (WorkState.BLOCKED, (), None)
    await other.cancel_streaming()
    await store_of(converse).key_places.sweep()
    assert await due(converse) == [message.id]


async def test_append__that_leaves_no_call_while_the_worker_suspends(converse: Converse) -> None:
    message = await enqueue(converse)
    claimed = await claim(converse, message)
    await write(converse, claimed, "so far", CALL)
    store, read = store_of(converse), await converse.get_message(message.id)

    async def between(update: Any, match: Any, change: Any) -> Any:
        if "$push" in change and store.messages is not real:
            store.messages = real
            await store.jobs.suspend(claimed.key, claimed.lease)
        return await update(match, change)

    real = store.messages
    Between(store, update_one=between)
    await read.redact_part(1)
    work = await work_of(converse, message)
    assert (work.state, work.pending) == (WorkState.QUEUED, ())


async def test_answer__with_a_large_output(converse: Converse) -> None:
    message = await suspended(converse, CALL)
    await answer(converse, message, open_calls.output("c1", "x" * 300_000))
    read = await converse.get_message(message.id)
    value = read.parts[1].fields["output"]
    assert await read.load_value(value) == "x" * 300_000


async def test_expiry__denies_what_nobody_answered(converse: Converse) -> None:
    store = store_of(converse)
    message = await suspended(converse, CALL, REQUEST, expires=0.3)
    seen = await state_of(converse, message)
    queue = message._own_queue(store)
    assert await store.calls.expire(queue, seen) is None
    async with asyncio.timeout(SOON):
        while (done := await store.calls.expire(queue, seen)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert done.state.work is not None
    assert (done.state.work.state, done.pending) == (WorkState.QUEUED, ())
    _, asked, request = (await converse.get_message(message.id)).parts
    assert isinstance(asked, ToolCallPart)
    assert isinstance(request, ToolCallPart)
    assert (asked.error, request.state) == ("expired", "output-denied")
    assert await store.calls.expire(queue, seen) is None


async def test_append__keeps_what_waits(converse: Converse) -> None:
    message = await enqueue(converse)
    claimed = await claim(converse, message)

    async def pending() -> list[str]:
        return [str(each) for each in (await work_of(converse, message)).pending]

    plain = await raw(converse, message)
    await write(converse, claimed, "text", ToolCallPart("t", "s", input=1))
    assert "pending" not in (await raw(converse, message))["work"]
    assert (await raw(converse, message))["format"] == plain["format"] == 3
    started = PartStart(ToolCallPart("ask", "c", executor="client"), "key")
    await write(converse, claimed, started)
    assert await pending() == []
    await write(converse, claimed, PartSet(2, {"input": 1}), REQUEST)
    assert await pending() == ["c (its output)", "c2 (its approval)"]
    await write(converse, claimed, PartSet(2, {"output": 1}))
    assert await pending() == ["c2 (its approval)"]
    await (await converse.get_message(message.id)).redact_part(4)
    assert await pending() == []
    await write(converse, claimed, REQUEST)
    assert await pending() == ["c2 (its approval)"]
    store = store_of(converse)
    queue = (await converse.get_message(message.id))._own_queue(store)
    reset = [PartPiece("reset", fields={"from": 5})]
    await store.appends.append(queue, claimed.key, reset, has_parts=True)
    assert await pending() == []


# Stops, ends and deletions


@pytest.mark.parametrize("state", ["queued", "delayed", "blocked", "waiting"])
async def test_stop__of_a_message_without_a_worker_is_one_write(
    converse: Converse, state: str
) -> None:
    if state == "waiting":
        message = await suspended(converse, CALL)
    else:
        if state == "blocked":
            await enqueue(converse, key="k")
        key = {} if state == "queued" else {"key": "k"}
        message = await enqueue(converse, **key, delay=60 if state == "delayed" else None)
    assert (await work_of(converse, message)).state == state
    store, sent = store_of(converse), list[Any]()

    async def between(update: Any, match: Any, change: Any) -> Any:
        result = await update(match, change)
        if result.modified_count and "content" not in change["$set"]:  # which follows the end
            sent.append(change)
        return result

    real = store.messages
    Between(store, update_one=between)
    assert await message.request_stop("enough") is MessageStatus.CANCELLED
    store.messages = real
    [end] = sent
    assert (end["$set"]["status"], end["$set"]["stop_reason"]) == ("cancelled", "enough")
    stored = await raw(converse, message)
    assert not {"state", "due", "pending"} & stored["work"].keys()
    assert await due(converse) == [each for each in await places(converse) if each != message.id]


async def test_stop__of_a_message_with_a_worker_is_a_flag_that_it_obeys(
    converse: Converse,
) -> None:
    message, blocked = [await enqueue(converse, key="k") for _ in range(2)]
    claimed = await claim(converse, message)
    assert await message.request_stop("enough") is MessageStatus.STREAMING
    with pytest.raises(StreamStoppedError):
        await write(converse, claimed, "never stored")
    store = store_of(converse)
    queue = message._own_queue(store)
    for status in (MessageStatus.COMPLETED, MessageStatus.FAILED):
        with pytest.raises(StreamStoppedError):
            await store.ends.end(queue, claimed.key, End(status, {}), lease=claimed.lease)
    cancel = End(MessageStatus.CANCELLED, {})
    ended = await store.ends.end(queue, claimed.key, cancel, lease=claimed.lease)
    assert ended.state.stop_reason == "enough"
    assert await due(converse) == await places(converse) == [blocked.id]


async def test_stop__in_the_last_moment_of_a_writer_wins(converse: Converse) -> None:
    message = await enqueue(converse)
    claimed = await claim(converse, message)
    store = store_of(converse)
    real = store.messages

    async def between(update: Any, match: Any, change: Any) -> Any:
        if change.get("$set", {}).get("status") == "completed":
            store.messages = real
            now = {"$currentDate": {"stop_requested_at": True}, "$set": {"stop_reason": "late"}}
            await real.update_one({"_id": message.id}, now)
        return await update(match, change)

    with pytest.raises(StreamStoppedError, match="late"):
        async with (await converse.get_message(message.id)).resume_writer() as writer:
            await writer.write("text")
            await writer.flush()
            Between(store, update_one=between)
    assert claimed.lease.epoch == 1
    read = await converse.get_message(message.id)
    assert (read.status, read.content) == (MessageStatus.CANCELLED, "text")


async def test_stop__beside_a_claim_has_one_order(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    for _ in range(10):
        message = await enqueue(converse)
        seen = await state_of(converse, message)
        claimed, status = await asyncio.gather(
            store_of(other).jobs.claim(seen), message.request_stop()
        )
        state = await state_of(converse, message)
        if claimed is None:
            assert status is state.status is MessageStatus.CANCELLED
        else:
            assert (state.status, state.stop_requested) == (MessageStatus.STREAMING, True)


async def test_end__gives_its_place_to_the_best_that_is_blocked(converse: Converse) -> None:
    message, low, high = [
        await enqueue(converse, key="k", priority=priority) for priority in (0, 1, 2)
    ]
    claimed = await claim(converse, message)
    await write(converse, claimed, "text")
    await (await converse.get_message(message.id)).complete_streaming({"a": 1})
    assert await due(converse) == await places(converse) == [high.id]
    await high.cancel_streaming()
    assert await places(converse) == [low.id]


async def test_end__in_a_transaction_gives_its_place_back_after_the_commit(
    converse: Converse,
) -> None:
    message, blocked = [await enqueue(converse, key="k") for _ in range(2)]
    with pytest.raises(ZeroDivisionError):
        async with converse.transaction():
            await (await converse.get_message(message.id)).complete_streaming()
            raise ZeroDivisionError
    assert await places(converse) == [message.id]
    async with converse.transaction():
        await (await converse.get_message(message.id)).complete_streaming()
        assert (await state_of(converse, blocked)).work is not None
    assert await places(converse) == [blocked.id]


async def test_end__with_keys_that_no_path_names(converse: Converse) -> None:
    message = await enqueue(converse)
    await message.complete_streaming({"a.b": 1})
    assert "state" not in (await raw(converse, message))["work"]


async def test_delete__gives_its_place_back(converse: Converse) -> None:
    message, blocked = [await enqueue(converse, key="k") for _ in range(2)]
    await claim(converse, message)
    await message.delete()
    assert await places(converse) == [blocked.id]


async def test_ended__is_a_message_of_text_like_any_other(facade: Facade) -> None:
    converse = await facade(retention="compact")
    message = await enqueue(converse)
    claimed = await claim(converse, message)
    await write(converse, claimed, "one ", "two")
    read = await converse.get_message(message.id)
    assert (read.content, read.parts[0].text) == ("one two", "one two")
    await read.complete_streaming()
    stored = await raw(converse, message)
    assert (stored["compacted"], stored["content"]) == (True, "one two")
    assert "parts" not in stored
    read = await converse.get_message(message.id)
    assert [chunk.content for chunk in read.chunks] == ["one ", "two"]
    assert [part.text for part in read.parts] == ["one two"]
    await read.redact_part(read.parts[0])
    assert (await converse.get_message(message.id)).content == ""
    assert (await raw(converse, message))["format"] == 3


async def test_save__beside_a_worker(converse: Converse) -> None:
    message = await enqueue(converse)
    await claim(converse, message)
    message.metadata["a"] = 1
    await message.save()
    assert (await work_of(converse, message)).state is WorkState.RUNNING
    listed = await (await converse.get_conversation(message.conversation_id)).messages()
    assert [each.metadata for each in listed] == [{"a": 1}]


# Recovery


async def test_recovery__gives_a_message_back_while_it_has_attempts(facade: Facade) -> None:
    converse = await facade(**DEAD)
    message = await enqueue(converse, key="k", max_attempts=2)
    for attempt in (1, 2):
        claimed = await claim(converse, message)
        assert claimed.work is not None
        assert (claimed.work.attempt, claimed.work.is_last_attempt) == (attempt, attempt == 2)
        await write(converse, claimed, f"{attempt} ")
        await expired(converse, message)
        events = await converse.recover_stale()
        if attempt == 1:
            assert events == []
            work = await work_of(converse, message)
            assert (work.state, work.crashes) == (WorkState.QUEUED, 1)
            assert await places(converse) == [message.id]
            with pytest.raises(WriterFencedError):
                await write(converse, claimed, "never stored")
    [event] = events
    assert event.message_id == message.id
    read = await converse.get_message(message.id)
    assert (read.status, read.content) == (MessageStatus.FAILED, "1 2 ")
    assert read.error == f"{leases.INTERRUPTED} in attempt 2 of 2"
    assert read.work is not None
    assert read.work.crashes == 2
    assert await places(converse) == []


async def test_recovery__of_a_message_that_was_to_stop_cancels_it(facade: Facade) -> None:
    converse = await facade(**DEAD)
    message = await enqueue(converse)
    await claim(converse, message)
    assert await message.request_stop("enough") is MessageStatus.STREAMING
    await expired(converse, message)
    [event] = await converse.recover_stale()
    assert event.type == "message.cancelled"


async def test_recovery__that_a_stop_overtakes_leaves_the_message(facade: Facade) -> None:
    converse = await facade(**DEAD)
    message = await enqueue(converse)
    await claim(converse, message)
    await expired(converse, message)
    store = store_of(converse)
    real = store.messages

    async def between(update: Any, match: Any, change: Any) -> Any:
        if "$inc" in change:
            store.messages = real
            await real.update_one({"_id": message.id}, {"$set": {"stop_requested_at": 1}})
        return await update(match, change)

    Between(store, update_one=between)
    assert await converse.recover_stale() == []
    assert (await work_of(converse, message)).state is WorkState.RUNNING
    [event] = await converse.recover_stale()
    assert event.type == "message.cancelled"


async def test_recovery__does_not_read_what_waits(facade: Facade) -> None:
    converse = await facade(**DEAD)
    await suspended(converse, CALL)
    await enqueue(converse)
    running = await enqueue(converse)
    await claim(converse, running)
    found = await store_of(converse).reader.leased_anywhere(None)
    assert [each.message_id for each in found.states] == [running.id]


# Places


async def test_places__are_at_most_the_limit_whoever_asks(facade: Facade) -> None:
    converse = await facade()
    others = [await facade(converse.database_name) for _ in range(3)]
    conversation = await converse.start_conversation()
    messages = [await enqueue(conversation, key="k", limit=2) for _ in range(6)]
    done = 0
    while done < len(messages):
        ready = await store_of(converse).jobs.due(["q"], 10)
        assert 0 < len(ready) <= 2
        claimed = [
            await store_of(others[place % 3]).jobs.claim(state) for place, state in enumerate(ready)
        ]
        await asyncio.gather(
            *[
                (await others[place % 3].get_message(each.message_id)).complete_streaming()
                for place, each in enumerate(claimed)
                if each is not None
            ]
        )
        done += len(claimed)
    assert await places(converse) == []


async def test_sweep__finds_what_dead_processes_left(converse: Converse) -> None:
    store = store_of(converse)
    with dying_at_once(converse):
        stuck = await enqueue(converse, key="a")
    assert await due(converse) == []
    placed = await enqueue(converse, key="b")
    gone, waits = [await enqueue(converse, key="c") for _ in range(2)]
    await store.messages.delete_one({"_id": gone.id})
    promote = {"$set": {"work.state": "blocked"}, "$unset": {"work.due": ""}}
    await store.messages.update_one({"_id": placed.id}, promote)
    assert await store.key_places.begin_sweep(60)
    await store.key_places.sweep()
    assert set(await due(converse)) == {stuck.id, placed.id, waits.id}
    assert sorted(await places(converse)) == sorted([stuck.id, placed.id, waits.id])
    assert not await store.key_places.begin_sweep(60)
    assert await store.key_places.begin_sweep(-60)


async def test_sweep__is_due_if_the_clock_went_back_since_the_last(converse: Converse) -> None:
    store = store_of(converse)
    assert await store.key_places.begin_sweep(60)
    ahead = await store.reader.server_time() + timedelta(hours=1)  # of the last primary
    await store.places.update_one({"_id": "sweep"}, {"$set": {"swept_at": ahead}})
    assert await store.key_places.begin_sweep(60)
    assert not await store.key_places.begin_sweep(60)


async def test_sweep__leaves_places_of_messages_that_a_later_version_wrote(
    converse: Converse,
) -> None:
    message = await enqueue(converse, key="k")
    store = store_of(converse)
    change = {"$set": {"format": 99, "work": {"queue": "q", "novel": 1}}}
    await store.messages.update_one({"_id": message.id}, change)
    await store.key_places.sweep()
    assert await places(converse) == [message.id]


async def test_ask__that_fails_is_left_to_a_sweep(converse: Converse) -> None:
    store = store_of(converse)

    class Broken:
        name, database = store.places.name, store.places.database

        async def update_one(self, *_: Any, **__: Any) -> Any:
            raise AutoReconnect("no places")

    real, store.places = store.places, Broken()
    object.__setattr__(store.options, "retry_timeout", 0.1)
    message = await enqueue(converse, key="k")
    assert (await work_of(converse, message)).state is WorkState.BLOCKED
    store.places = real
    await store.key_places.sweep()
    assert await due(converse) == [message.id]


async def test_statistics__count_by_state(converse: Converse) -> None:
    jobs = store_of(converse).jobs
    assert await jobs.statistics() == {}
    await enqueue(converse)
    await enqueue(converse, delay=60)
    await enqueue(converse, key="k", delay=60)
    await claim(converse, await enqueue(converse, key="l"))
    await enqueue(converse, key="l")
    await suspended(converse, CALL, queue="r")
    await (await enqueue(converse)).cancel_streaming()
    found = await jobs.statistics()
    assert found["r"] == QueueStatistics({WorkState.WAITING: 1}, None)
    assert found["q"].counts == {
        WorkState.QUEUED: 1,
        WorkState.DELAYED: 2,
        WorkState.RUNNING: 1,
        WorkState.BLOCKED: 1,
    }
    assert found["q"].oldest is not None
    assert found["q"].oldest >= 0
    assert set(await jobs.statistics(["r"])) == {"r"}
