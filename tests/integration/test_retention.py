"""The default retention: chunks are merged a day after the end, by who starts messages."""

import asyncio
import logging
from datetime import timedelta
from typing import Any

import pytest
from pymongo.errors import OperationFailure

from converse_mongo import ChunkReceived, Converse, Message
from converse_mongo.domain.validation import PAGE_CHUNKS
from converse_mongo.store import pages
from tests.conftest import Commands, Facade
from tests.integration.helpers import fill, gone, raw, start, text_of
from tests.streams import assert_exact, collect, until

DAY = timedelta(days=1)


@pytest.fixture
def facade(facade: Facade) -> Facade:
    """Opens facades whose writes a majority has: only such chunks are merged."""

    async def open_one(*arguments: Any, **options: Any) -> Converse:
        options["client_options"] = {"w": "majority", **options.get("client_options", {})}
        opened: Converse = await facade(*arguments, **options)
        return opened

    return open_one


async def end_days_ago(message: Message, days: float) -> None:
    if (merging := message.store().recovery.tending) is not None:
        await merging  # else it may find the message, once that is due
    await message.complete_streaming()
    ended = message.completed_at
    assert ended is not None
    assert (await message.store().messages.find_one({"_id": message.id}))["compact_at"] == (
        ended + DAY
    )
    earlier = {"completed_at": ended - timedelta(days=days)}
    earlier["compact_at"] = earlier["completed_at"] + DAY
    await message.store().messages.update_one({"_id": message.id}, {"$set": earlier})


def merging(converse: Converse) -> asyncio.Task[None] | None:
    return converse.message_model.store().recovery.tending


def looks(commands: Commands) -> int:
    return sum("compact_at" in command["filter"] for command in commands.named("find"))


async def test_default__merges_after_a_day_while_messages_are_started(facade: Facade) -> None:
    past = await facade()
    old, recent = await start(past), await start(past)
    metadata = [{"kind": "reasoning"}, {"kind": "reasoning"}, {"kind": "text"}, None]
    for piece, each in zip(("a ", "b ", "c ", "d "), metadata, strict=True):
        await old.append_chunk(piece, each)
    await fill(old, PAGE_CHUNKS)
    await fill(recent, 3)
    for message, days in ((old, 1.1), (recent, 0.9)):
        await end_days_ago(message, days)
    before = await past.get_message(old.id)

    converse = await facade(past.database_name)
    await start(converse)
    task = merging(converse)
    assert task is not None
    await task
    assert [await gone(converse, message) for message in (old, recent)] == [True, False]
    assert "compact_at" not in await raw(converse, old)
    assert "recent_appends" not in await raw(converse, old)
    read = await converse.get_message(old.id)
    assert read.content == before.content == "a b c d " + text_of(PAGE_CHUNKS)
    assert [(c.content, c.metadata) for c in read.chunks] == [
        (c.content, c.metadata) for c in before.chunks
    ]
    for after in (None, 0, 2, PAGE_CHUNKS):
        events = await collect(converse, old, after)
        assert_exact(events, read, after)
        seen = [e.chunk for e in events if isinstance(e, ChunkReceived)]
        assert [c.metadata for c in seen] == [c.metadata for c in before.chunks][-len(seen) :]
    assert [c.metadata async for c in read.iter_chunks()] == [c.metadata for c in before.chunks]


async def test_default__is_kept_by_who_only_reads(facade: Facade, commands: Commands) -> None:
    past = await facade(retention=DAY)
    old = await start(past)
    await fill(old, 3)
    await end_days_ago(old, 2)
    reader = await facade(past.database_name, client_options={"event_listeners": [commands]})
    conversation = await reader.get_conversation(old.conversation_id)
    await conversation.messages()
    await conversation.add_user_message("Hello")
    await collect(reader, await reader.get_message(old.id))
    assert merging(reader) is None
    assert looks(commands) == 0
    assert not await gone(reader, old)


async def test_default__looks_once_in_ten_minutes(facade: Facade, commands: Commands) -> None:
    converse = await facade(client_options={"event_listeners": [commands]})
    conversation = await converse.start_conversation()
    for _ in range(3):
        await conversation.start_streaming_assistant()
        task = merging(converse)
        assert task is not None
        await task
    assert looks(commands) == 1
    await converse.compact_due()  # by a sweeper, or a job of the application
    await conversation.start_streaming_assistant()
    assert merging(converse) is task
    assert looks(commands) == 2
    converse.message_model.store().recovery._next_tending = 0.0  # ten minutes later
    await conversation.start_streaming_assistant()
    assert merging(converse) is not task


async def test_keep__merges_nothing(facade: Facade, commands: Commands) -> None:
    converse = await facade(retention="keep", client_options={"event_listeners": [commands]})
    message = await start(converse)
    await fill(message, 3)
    await message.complete_streaming()
    assert "compact_at" not in await raw(converse, message)
    assert merging(converse) is None
    assert looks(commands) == 0
    # One message with another retention suffices.
    await start(converse, retention=DAY)
    assert merging(converse) is not None


async def test_merging__does_not_belong_to_a_transaction(facade: Facade) -> None:
    converse = await facade()
    conversation = await converse.start_conversation()
    async with converse.transaction():
        await conversation.start_streaming_assistant()
        assert merging(converse) is None
    assert merging(converse) is None
    await conversation.start_streaming_assistant()
    assert merging(converse) is not None


async def test_merging__stops_when_it_is_closed(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade()
    old = await start(converse)
    await fill(old, 3)
    await end_days_ago(old, 2)
    other = await facade(converse.database_name)
    begun = asyncio.Event()

    async def compact(*_: object) -> bool:
        begun.set()
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(pages.Pages, "compact", compact)
    await start(other)
    task = merging(other)
    await asyncio.wait_for(begun.wait(), 20)
    await other.aclose()
    assert task is not None
    assert task.done()


async def test_merging__that_fails_disturbs_nobody(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    converse = await facade()

    async def refuse(*_: object) -> Any:
        raise OperationFailure("not authorized", 13)

    monkeypatch.setattr(converse.message_model.store().reader, "to_compact", refuse)
    with caplog.at_level(logging.WARNING):
        message = await start(converse)
        task = merging(converse)
        await until(lambda: task is not None and task.done())
    assert "Chunks that are due were not merged" in caplog.text
    await fill(message, 3)
    assert (await message.complete_streaming()).content == text_of(3)


async def test_metadata__that_is_too_large_keeps_the_chunks(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_CONTENT_BYTES", 1000)
    converse = await facade(retention="compact")
    message = await start(converse)
    for number in range(10):
        await message.append_chunk("x", {"number": number, "filler": "y" * 100})
    await message.complete_streaming()
    document = await raw(converse, message)
    assert "compacted" not in document
    assert "compact_at" not in document
    assert await converse.compact_due() == 0
    chunks = (await converse.get_message(message.id)).chunks
    assert [chunk.metadata["number"] for chunk in chunks] == list(range(10))
