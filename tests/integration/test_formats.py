"""Formats: a message that a later version wrote to is read, and never written to."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from pymongo import MongoClient

from converse_mongo import (
    ChunkReceived,
    Converse,
    Message,
    MessageCompleted,
    MessageStatus,
    UnknownFormatError,
    WriterFailedError,
)
from converse_mongo.domain.headers import FORMATS
from converse_mongo.domain.validation import PAGE_CHUNKS
from tests.conftest import Facade
from tests.integration.helpers import fill, pages_of, raw, start, tokens
from tests.streams import SOON

LATER = 1 + max(each or 1 for each in FORMATS)


async def upgrade(converse: Converse, message: Message, **fields: Any) -> dict[str, Any]:
    """Has a later version write to a message, and returns what is stored then."""
    messages = converse.message_model.store().messages
    await messages.update_one({"_id": message.id}, {"$set": {"format": LATER, **fields}})
    return await raw(converse, message)


async def enter(message: Message) -> None:
    async with message.writer():
        pass


async def enter_again(message: Message) -> None:
    async with message.resume_writer():
        pass


WRITES: dict[str, Callable[[Message], Awaitable[Any]]] = {
    "append": lambda message: message.append_chunk("x"),
    "appends": lambda message: message.append_chunks(["x", "y"]),
    "writer": enter,
    "pipe": lambda message: message.pipe(tokens(3)),
    "take-over": enter_again,
    "complete": lambda message: message.complete_streaming(),
    "fail": lambda message: message.fail_streaming("broken"),
    "cancel": lambda message: message.cancel_streaming("enough"),
    "stop": lambda message: message.request_stop("enough"),
    "delete": lambda message: message.delete(),
}


@pytest.mark.parametrize("later", [LATER, "2.1"])
@pytest.mark.parametrize("way", WRITES)
async def test_write__to_what_a_later_version_wrote(
    converse: Converse, way: str, later: object
) -> None:
    message = await start(converse)
    await message.append_chunk("answer")
    before = await upgrade(converse, message, format=later)
    with pytest.raises(UnknownFormatError, match=f"the format {later!r}.*upgrade it here"):
        async with asyncio.timeout(SOON):
            await WRITES[way](message)
    assert await raw(converse, message) == before


async def test_writer__of_a_message_that_a_later_version_writes_to(converse: Converse) -> None:
    message = await start(converse)
    with pytest.raises(WriterFailedError, match="upgrade it here") as caught:
        async with asyncio.timeout(SOON), message.writer() as writer:
            await writer.write("stored")
            await writer.flush()
            before = await upgrade(converse, message)
            await writer.write("lost")
            await writer.flush()
    assert caught.value.text == "lost"
    assert await raw(converse, message) == before


async def test_ended__is_neither_merged_nor_deleted(facade: Facade) -> None:
    converse = await facade(retention=timedelta(hours=1))
    message = await start(converse)
    await fill(message, PAGE_CHUNKS + 10)
    await message.complete_streaming()
    past = (await raw(converse, message))["completed_at"] - timedelta(hours=1)
    before = await upgrade(converse, message, compact_at=past)
    pages = await pages_of(converse, message)
    assert pages
    assert await converse.compact_due() == 0
    with pytest.raises(UnknownFormatError):
        await message.delete()
    assert await raw(converse, message) == before
    assert await pages_of(converse, message) == pages


async def test_page__is_not_made_of_what_a_later_version_wrote(converse: Converse) -> None:
    message = await start(converse)
    await fill(message, PAGE_CHUNKS - 1)
    before = await upgrade(converse, message)
    store, key = converse.message_model.store(), message._own_key()
    await store.messages.update_one(key, {"$push": {"chunks": before["chunks"][0]}})
    assert not await store.paging.seal(store.queue("a queue of its own"), key)
    assert not await pages_of(converse, message)


async def test_orphan__is_left_to_the_later_version(facade: Facade) -> None:
    converse = await facade(idle_timeout=0.1)
    message = await start(converse)
    await message.append_chunk("answer")
    other = await start(converse)
    await other.append_chunk("answer")
    before = await upgrade(converse, message)
    recovered: list[Any] = []
    async with asyncio.timeout(SOON):
        while not recovered:
            recovered = await converse.recover_stale()
    assert [event.message_id for event in recovered] == [other.id]
    read = await converse.get_message(message.id)
    assert (read.status, read.content) == (MessageStatus.STREAMING, "answer")
    assert await raw(converse, message) == before


async def test_watcher__shows_what_a_later_version_writes(
    converse: Converse, server_uri: str
) -> None:
    message = await start(converse)
    await message.append_chunk("one")
    await upgrade(converse, message)
    name = converse.message_model.store().messages.name
    with MongoClient[dict[str, Any]](server_uri) as client:
        messages = client[converse.message_model.store().messages.database.name][name]
        watcher = converse.watch_message(message.id)
        events = []
        async with asyncio.timeout(SOON), watcher:
            async for event in watcher:
                events.append(event)
                if isinstance(event, ChunkReceived) and event.chunk.sequence == 0:
                    stored = await raw(converse, message)
                    chunk = {**stored["chunks"][0], "sequence": 1, "content": "two", "novel": 1}
                    messages.update_one(
                        {"_id": message.id},
                        {"$push": {"chunks": chunk}, "$inc": {"next_sequence": 1}},
                    )
                elif isinstance(event, ChunkReceived):
                    messages.update_one(
                        {"_id": message.id},
                        {"$set": {"status": "completed", "completed_at": chunk["created_at"]}},
                    )
    assert [e.chunk.content for e in events if isinstance(e, ChunkReceived)] == ["one", "two"]
    assert isinstance(events[-1], MessageCompleted)


async def test_conversation__is_deleted_though_an_answer_cannot_be_stopped(
    converse: Converse, caplog: pytest.LogCaptureFixture
) -> None:
    conversation = await converse.start_conversation()
    first = await conversation.start_streaming_assistant()
    second = await conversation.start_streaming_assistant()
    await upgrade(converse, first)
    with caplog.at_level(logging.WARNING, "converse_mongo"):
        await conversation.delete()
    assert str(first.id) in caplog.text
    await second.refresh()
    assert second.is_cancelled
