"""Queues seen from outside: what waits in them, what is stuck, and the end of a delay."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo import Converse, Message, Queue
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.work import WorkState
from converse_mongo.store.stuck import StuckWork
from tests.integration.helpers import raw

ONE = Queue("one", per_key=1)
KEY = ("user", "42")
LATER = 3600.0
LONG_AGO = timedelta(hours=2)


async def enqueue(converse: Converse, queue: Any = "default", **options: Any) -> Message:
    conversation = await converse.start_conversation()
    return await conversation.start_streaming_assistant(queue=queue, **options)


async def header(converse: Converse, message: Message) -> MessageHeader:
    return MessageHeader.from_stored(await raw(converse, message))


async def state(converse: Converse, message: Message) -> WorkState | None:
    work = (await header(converse, message)).work
    assert work is not None
    return work.state


async def claim(converse: Converse, queue: str = "default") -> MessageHeader:
    jobs = converse.message_model.store().jobs
    for each in await jobs.due([queue], 10):
        if claimed := await jobs.claim(each):
            return claimed
    raise AssertionError("there was nothing to claim")


async def change(converse: Converse, message: Message, fields: Mapping[str, Any]) -> None:
    await converse.message_model.store().messages.update_one(
        {"_id": message.id}, {"$set": dict(fields)}
    )


# A message at once


async def test_hasten__lets_a_worker_take_a_delayed_message(converse: Converse) -> None:
    message = await enqueue(converse, delay=LATER)
    jobs = converse.message_model.store().jobs
    assert await jobs.claim(await header(converse, message)) is None
    await jobs.hasten(await header(converse, message))
    assert (await claim(converse)).message_id == message.id


async def test_hasten__of_a_message_with_a_key_asks_for_a_place(converse: Converse) -> None:
    first = await enqueue(converse, ONE, key=KEY)
    delayed = await enqueue(converse, ONE, key=KEY, delay=LATER)
    jobs = converse.message_model.store().jobs
    await jobs.hasten(await header(converse, delayed))
    assert await state(converse, delayed) is WorkState.BLOCKED
    await first.cancel_streaming()
    assert await state(converse, delayed) is WorkState.QUEUED


async def test_hasten__leaves_others_as_they_are(converse: Converse) -> None:
    jobs = converse.message_model.store().jobs
    older, newer = await enqueue(converse), await enqueue(converse)
    before = await header(converse, older)
    assert await jobs.hasten(before) == before, "it would lose its place behind the newer one"
    running = await claim(converse)
    assert running.message_id == older.id
    assert (await jobs.hasten(running)).lease == running.lease
    await jobs.hasten(await header(converse, newer))
    assert (await claim(converse)).message_id == newer.id


async def test_hasten__of_one_that_was_taken_meanwhile_changes_nothing(converse: Converse) -> None:
    message = await enqueue(converse, delay=LATER)
    jobs = converse.message_model.store().jobs
    seen = await header(converse, message)
    await jobs.hasten(seen)
    running = await claim(converse)
    after = await jobs.hasten(seen)
    assert after.lease.holder == running.lease.holder
    assert await state(converse, message) is WorkState.RUNNING


# What is there


async def test_statistics__count_by_state_and_know_the_oldest(converse: Converse) -> None:
    waits = await enqueue(converse)
    await enqueue(converse, delay=LATER)
    await enqueue(converse, "other", priority=1)
    await enqueue(converse, ONE, key=KEY)
    await enqueue(converse, ONE, key=KEY)
    await claim(converse, "other")
    ended = await enqueue(converse, "ended")
    await ended.cancel_streaming()
    due = (await raw(converse, waits))["work"]["due"]
    await change(converse, waits, {"work.due": due - timedelta(seconds=60)})
    found = await converse.queue_statistics()
    counts = {
        name: {key: value for key, value in each.counts.items() if value}
        for name, each in found.items()
    }
    assert counts == {
        "default": {WorkState.QUEUED: 1, WorkState.DELAYED: 1},
        "other": {WorkState.RUNNING: 1},
        "one": {WorkState.QUEUED: 1, WorkState.BLOCKED: 1},
    }
    oldest = found["default"].oldest
    assert oldest is not None
    assert 60 <= oldest < 600
    assert found["other"].oldest is None
    assert list(await converse.queue_statistics(["one", "nowhere"])) == ["one"]


async def test_waiting__lists_by_queue_the_oldest_first(converse: Converse) -> None:
    b = [await enqueue(converse, "b") for _ in range(2)]
    a = await enqueue(converse, "a", delay=LATER)
    await (await enqueue(converse, "a")).cancel_streaming()
    jobs = converse.message_model.store().jobs
    assert [each.message_id for each in await jobs.waiting()] == [a.id, b[0].id, b[1].id]
    assert [each.message_id for each in await jobs.waiting(["b"], 1)] == [b[0].id]


# What is stuck


@pytest.fixture
def stuck(converse: Converse) -> StuckWork:
    return StuckWork(converse.message_model.store(), 60.0)


async def long_due(converse: Converse, message: Message) -> None:
    due = (await raw(converse, message))["work"]["due"]
    await change(converse, message, {"work.due": due - LONG_AGO})


async def test_overdue__is_what_no_worker_took(converse: Converse, stuck: StuckWork) -> None:
    await enqueue(converse)
    await enqueue(converse, "later", delay=LATER)
    assert await stuck.overdue() == []
    messages = [await enqueue(converse, "old") for _ in range(2)]
    for message in messages:
        await long_due(converse, message)
    (found,) = await stuck.overdue()
    assert (found.queue, found.running) == ("old", 0)
    assert set(found.messages) == {message.id for message in messages}
    assert 7200 <= found.seconds < 9000
    await claim(converse, "old")
    (found,) = await stuck.overdue()
    assert (len(found.messages), found.running) == (1, 1)


async def test_overdue__is_what_workers_try_in_vain(converse: Converse, stuck: StuckWork) -> None:
    message = await enqueue(converse, ONE, key=KEY, delay=LATER)
    at = (await raw(converse, message))["work"]["due"] - 2 * LONG_AGO
    await change(converse, message, {"work.due": at, "work.available_at": at})
    jobs = converse.message_model.store().jobs
    (before,) = await jobs.due(["one"], 1)
    await jobs.postpone(before)
    assert await jobs.due(["one"], 1) == []
    (found,) = await stuck.overdue()
    assert found.messages == [message.id]
    (postponed,) = await jobs.waiting(["one"])
    hastened = await jobs.hasten(postponed)
    assert hastened.work is not None
    assert hastened.work.state is WorkState.QUEUED


async def test_blocked__though_there_is_a_place(converse: Converse, stuck: StuckWork) -> None:
    first, second = [await enqueue(converse, ONE, key=KEY) for _ in range(2)]
    moment = (await raw(converse, second))["created_at"] - LONG_AGO
    await change(converse, second, {"work.ticket": ObjectId.from_datetime(moment)})
    assert await stuck.blocked() == []
    # The first one dies between its end and the release of its place.
    await converse.message_model.store().messages.update_one(
        {"_id": first.id}, {"$unset": {"work.state": "", "work.ticket": "", "work.due": ""}}
    )
    (found,) = await stuck.blocked()
    assert (found.queue, list(found.messages)) == ("one", [second.id])
    await converse.message_model.store().places.delete_many({"queue": "one"})
    assert len(await stuck.blocked()) == 1


async def test_blocked__a_moment_ago_is_not_stuck(converse: Converse, stuck: StuckWork) -> None:
    for _ in range(2):
        await enqueue(converse, ONE, key=KEY)
    await converse.message_model.store().places.delete_many({"queue": "one"})
    assert await stuck.blocked() == []


async def test_abandoned__is_what_nobody_took_back(converse: Converse, stuck: StuckWork) -> None:
    message = await enqueue(converse)
    await claim(converse)
    assert await stuck.abandoned() == []
    renewed_at = (await raw(converse, message))["lease"]["renewed_at"]
    await change(converse, message, {"lease.renewed_at": renewed_at - LONG_AGO})
    (found,) = await stuck.abandoned()
    assert (found.queue, list(found.messages)) == ("default", [message.id])
    await change(converse, message, {"lease.duration": 8000.0})
    assert await stuck.abandoned() == []
