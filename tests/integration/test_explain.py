"""The plan of each query that the library sends, on a populated collection of a real MongoDB."""

import asyncio
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId, Timestamp

from converse_mongo import (
    Conversation,
    Converse,
    DataPart,
    MessageNotStreamingError,
    StreamStoppedError,
    ToolCallPart,
)
from converse_mongo.domain import open_calls
from converse_mongo.domain.work import Job
from converse_mongo.driver.collections import collection_of
from tests.conftest import Commands, Facade
from tests.plans import faults, to_explain
from tests.queries import INDEXES
from tests.streams import collect, until

OWNER = ("user", "1")
NO_LEASE = {"epoch": 0, "renewed_at": None, "duration": None}

only_on_mongodb = pytest.mark.skipif(
    not os.environ.get("CONVERSE_TEST_URI"),
    reason="SecantusDB explains a fetch where an index covers, and scans where MongoDB does not",
)


async def populate(converse: Converse) -> None:
    """Stores so much that a plan means something: 300 conversations with 20 messages each."""
    now = datetime.now(UTC)
    conversations = [
        {
            "_id": ObjectId(),
            "owner": {"type": "user", "id": str(number % 2)},
            "next_position": 20,
            "created_at": now,
            "updated_at": now - timedelta(seconds=number),
        }
        for number in range(300)
    ]
    messages: list[dict[str, Any]] = []
    for conversation in conversations:
        for position in range(20):
            message = {
                "_id": ObjectId(),
                "conversation_id": conversation["_id"],
                "position": position,
                "role": "user",
                "status": "completed",
                "content": "x" * 200,
                "next_sequence": 0,
                "revision": 0,
                "created_at": now,
            }
            if position % 2:
                message |= {"revision": 1, "save_mark": Timestamp(1, position)}
            if position == 19:
                lease = {"epoch": 0, "renewed_at": now, "duration": None}
                message |= {"status": "streaming", "lease": lease}
            if position == 17:
                state, due = ("blocked", None) if len(messages) % 2 else ("queued", now)
                key = f'"{len(messages) % 7}"'
                work = {"queue": "q", "state": state, "key": key, "priority": 0, "due": due}
                message |= {"status": "streaming", "format": 3, "work": work, "lease": NO_LEASE}
            if position == 18:
                message |= {"end_id": ObjectId(), "compact_at": now + timedelta(days=1)}
            messages.append(message)
    await collection_of(converse.conversation_model).insert_many(conversations)
    await collection_of(converse.message_model).insert_many(messages)


async def do_everything(converse: Converse, polling: Converse) -> None:
    """Has the library send each kind of query that it knows."""
    conversation = await converse.start_conversation(owner=OWNER)
    await asyncio.gather(*[conversation.add_user_message(str(n)) for n in range(5)])
    watching = [asyncio.create_task(watch(each, conversation)) for each in (converse, polling)]
    await write(converse, conversation)
    await asyncio.gather(*watching)
    await read(converse, conversation)
    await work(converse, conversation)
    await recover(converse, conversation)


async def work(converse: Converse, conversation: Conversation) -> None:
    """Has workers look for messages, and people answer them."""
    store = converse.message_model.store()
    call = ToolCallPart("ask", "c", input={}, executor="client")
    for place in range(4):
        job = Job(queue=f"q{place % 2}", key=("user", str(place % 2)))
        await conversation._start("assistant", None, None, None, {}, job)
    for queues in (["q0"], ["q0", "q1"]):
        [best, *_] = await store.jobs.due(queues, 10)
        claimed = await store.jobs.claim(best)
        assert claimed is not None
        message = await converse.get_message(claimed.message_id)
        await message.append_chunks([call])
        await store.jobs.suspend(claimed.key, claimed.lease, 60)
        queue = store.queue((claimed.message_id, claimed.log_id))
        await store.calls.answer(queue, claimed.key, [open_calls.output("c", 1)])
    assert await store.key_places.begin_sweep(0)
    await store.key_places.sweep()
    await store.jobs.statistics()


async def watch(converse: Converse, conversation: Conversation) -> None:
    async with (
        converse.watch_owner(OWNER) as owned,
        converse.watch_conversation(conversation.id) as events,
    ):
        checks = converse.statistics().checks
        async for event in events:
            if event.type == "message.cancelled":
                break
        await anext(owned)
        await until(lambda: converse.statistics().checks > checks + 1)


async def write(converse: Converse, conversation: Conversation) -> None:
    long = await conversation.start_streaming_assistant(generation_id="one")
    await conversation.start_streaming_assistant(generation_id="one")
    watching = asyncio.create_task(collect(converse, long))
    append_id = ObjectId()
    await long.append_chunk("first", append_id=append_id)
    await long.append_chunks(["x"] * 600)
    await (await converse.get_message(long.id)).append_chunk("first", append_id=append_id)
    async with long.writer() as writer:
        await writer.write("text")
        await writer.flush()
        await writer.detach()
    async with long.resume_writer() as writer:
        await writer.write("more")
    await watching
    with suppress(MessageNotStreamingError):
        await long.complete_streaming()
    long.metadata["x"] = 1
    await long.save()
    conversation.metadata["x"] = 1
    await conversation.save()
    async with converse.transaction():
        await conversation.add_user_message("in a transaction")
    stopped = await conversation.start_streaming_assistant()
    with suppress(StreamStoppedError):
        async with stopped.writer() as writer:
            await converse.request_stop(stopped.id)
            await writer.wait_stopping()


async def read(converse: Converse, conversation: Conversation) -> None:
    await conversation.refresh()
    [*_, last] = await conversation.messages()
    await last.refresh()
    await conversation.messages(newest_first=True, limit=3)
    await conversation.messages(status="streaming")
    page = await conversation.history(limit=3)
    await conversation.history(limit=3, before=page.before)
    await converse.get_conversation(conversation.id)
    for message in await conversation.messages(status="completed"):
        found = await conversation.get_message(message.id)
        assert len([chunk async for chunk in found.iter_chunks()]) == found.next_sequence
    assert len([each async for each in converse.conversations(OWNER)]) > 100  # two pages


async def recover(converse: Converse, conversation: Conversation) -> None:
    soon = await conversation.start_streaming_assistant(retention=timedelta(milliseconds=1))
    await soon.append_chunks(["x"] * 300)
    await soon.complete_streaming()
    merged = await conversation.start_streaming_assistant(retention="compact")
    await merged.append_chunks(["x", DataPart("n", "x" * 300_000)])
    await merged.load_value(merged.parts[1].fields["data"])
    await merged.complete_streaming()
    await asyncio.sleep(0.01)
    assert await converse.compact_due() == 1
    await converse.recover_stale()
    for message in (soon, merged):
        await message.delete()
    await conversation.delete()


@only_on_mongodb
async def test_explain__every_query_has_an_index_that_serves_it(
    facade: Facade, commands: Commands
) -> None:
    converse = await facade(check_interval=0.2, client_options={"event_listeners": [commands]})
    polling = await facade(
        converse.database_name,
        change_streams=False,
        poll_interval=0.1,
        client_options={"event_listeners": [commands]},
    )
    await populate(converse)
    commands.sent.clear()
    await do_everything(converse, polling)
    queries = unlike(commands)
    database = collection_of(converse.message_model).database
    wrong = []
    for query in queries:
        explained = await database.command({"explain": query, "verbosity": "executionStats"})
        wrong += [(fault, query) for fault in faults(query, explained)]
    assert len(queries) > 40
    assert not wrong, "\n".join(map(str, wrong))


def unlike(commands: Commands) -> list[dict[str, Any]]:
    """The queries that were sent: of those that differ in values only, the first three."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, command in commands.sent:
        target = command.get(name)
        if target not in INDEXES:
            continue
        for query in to_explain(name, command):
            some = found.setdefault(shape(query), [])
            if len(some) < 3:
                some.append(query)
    return [query for some in found.values() for query in some]


def shape(query: Any) -> str:
    """What queries have in common that differ in values only."""
    if isinstance(query, dict):
        names = sorted(query.items(), key=lambda item: item[0])
        return "{" + ",".join(f"{name}:{shape(value)}" for name, value in names) + "}"
    if isinstance(query, list):
        return "[" + ",".join(sorted({shape(value) for value in query})) + "]"
    return query if query in INDEXES else "?"
