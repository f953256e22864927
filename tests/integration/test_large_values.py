"""Values that are too large for a chunk: stored apart, loaded when asked for, deleted in time."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from converse_mongo import (
    MAX_VALUE_BYTES,
    ChunkReceived,
    ConversationNotFoundError,
    Converse,
    CustomPart,
    DataPart,
    InvalidInputError,
    Message,
    MessageNotFoundError,
    MessageNotStreamingError,
    PartChunk,
    PartSet,
    PartStart,
    StoredValue,
    StoreUnavailableError,
    ToolCallPart,
    ValueNotFoundError,
)
from converse_mongo.domain.stored_values import LargeValue
from converse_mongo.domain.validation import MAX_INLINE_VALUE_BYTES, PAGE_CHUNKS
from converse_mongo.store.values import VALUE_PIECE_BYTES
from tests.conftest import Facade
from tests.integration.helpers import Call, Meanwhile, fill, raw, start
from tests.streams import SOON, collect

LARGE = {
    "text": "é" * 2_500_000,
    "n": Decimal("1.5"),
    "at": datetime(2026, 1, 2, tzinfo=UTC),
    "b": b"\0",
    "$ref": "a",
    "$id": 1,
}
"""About 5 MB."""
SMALL = "x" * MAX_INLINE_VALUE_BYTES
"""A little more than a part has in it."""


async def pieces(converse: Converse, message: Message) -> list[dict[str, Any]]:
    """The documents with the values of a message."""
    values = converse.message_model.store().values
    return [each async for each in values.find({"message_id": message.id}).sort([("_id", 1)])]


async def count(converse: Converse, message: Message) -> int:
    return len(await pieces(converse, message))


def output(message: Message) -> StoredValue:
    (call,) = [part for part in message.parts if isinstance(part, ToolCallPart)]
    assert call.state == "output-available"
    assert isinstance(call.output, StoredValue)
    return call.output


async def test_output__comes_back_as_it_was_to_any_process(facade: Facade) -> None:
    converse = await facade(retention="compact")
    viewer = await facade(converse.database_name)
    message = await start(converse)
    await fill(message, PAGE_CHUNKS - 3)  # what follows is moved to a page
    live = asyncio.create_task(collect(viewer, message, PAGE_CHUNKS - 4))
    async with message.resume_writer() as writer:
        call = await writer.start_tool_call("search")
        await call.set_input({"q": SMALL})
        await call.set_output(SMALL, preliminary=True)
        await call.set_output(LARGE)
        running = await viewer.get_message(message.id)
        value = output(running)
        assert output(message) == value
        assert value.size > 5_000_000
        assert await running.load_value(value) == LARGE
        assert await viewer.load_value(str(message.id), value) == LARGE
        found = await pieces(converse, message)
        assert len(found) == 4
        assert all(len(each["data"]) <= VALUE_PIECE_BYTES for each in found)
        await writer.write("x" * 1000)
    stored = await raw(converse, message)
    assert stored["compacted"]
    assert len(str(stored)) < 20_000
    async with asyncio.timeout(SOON):
        events = await live
    chunks = [event.chunk for event in events if isinstance(event, ChunkReceived)]
    of_output = [each for each in chunks if isinstance(each, PartChunk) and "output" in each.values]
    assert of_output[-1].values["output"] == value
    assert of_output[-1].to_dict()["values"]["output"] == {
        "id": value.id,
        "size": value.size,
        "hash": value.hash,
    }
    # What was replaced went with the merge; the rest is the same from everywhere.
    assert await count(converse, message) == 3
    read = await viewer.get_message(message.id)
    listed = (await (await viewer.get_conversation(message.conversation_id)).messages())[0]
    assert read.parts == listed.parts == message.parts
    assert not any(each.chunks.is_loaded for each in (listed, message))
    assert await listed.load_value(output(listed)) == LARGE
    again = [chunk async for chunk in read.iter_chunks() if isinstance(chunk, PartChunk)]
    assert [dict(each.values) for each in again if each.values][-1] == {"output": value}
    await read.delete()
    assert await count(converse, message) == 0
    with pytest.raises(ValueNotFoundError, match=r"cannot be loaded\. It was replaced"):
        await listed.load_value(value)
    with pytest.raises(MessageNotFoundError):
        await viewer.load_value(message.id, value)


async def everywhere(converse: Converse) -> AsyncIterator[Message]:
    """Messages whose first part of data is LARGE, each written in another way."""
    conversation = await converse.start_conversation()
    data = DataPart("n", LARGE)
    piped = await conversation.start_streaming_assistant()

    async def stream() -> AsyncIterator[Any]:
        yield PartStart(DataPart("n", 1), "n")
        yield PartSet("n", {"data": LARGE})

    yield await piped.pipe(stream())
    by_hand = await conversation.start_streaming_assistant()
    await by_hand.append_chunks(["text", data])
    yield await by_hand.complete_streaming()
    yield await conversation.create_user_message("Look", parts=[data])
    named = [
        await conversation.create_user_message("Look", parts=[data], generation_id="g")
        for _ in range(2)
    ]
    assert named[0].id == named[1].id
    yield named[1]


async def test_large_value__is_stored_however_it_is_written(converse: Converse) -> None:
    async for message in everywhere(converse):
        read = await converse.get_message(message.id)
        assert read.parts == message.parts
        (value,) = [part.fields["data"] for part in read.parts if isinstance(part, DataPart)]
        assert await message.load_value(value) == LARGE
        assert await count(converse, message) == 2
        assert len(str(await raw(converse, message))) < 5_000
        await message.delete()
        assert await count(converse, message) == 0


async def test_large_value__belongs_to_the_transaction(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()

    async def write() -> Message:
        await message.append_chunks([DataPart("n", SMALL)])
        return await conversation.create_user_message("", parts=[DataPart("n", SMALL)])

    with pytest.raises(ZeroDivisionError):
        async with converse.transaction():
            whole = await write()
            raise ZeroDivisionError
    assert not await count(converse, message)
    assert not await count(converse, whole)
    await message.refresh()
    async with converse.transaction():
        whole = await write()
        assert await message.load_value(message.parts[0].fields["data"]) == SMALL
    for each in (message, whole):
        assert await converse.load_value(each.id, each.parts[0].fields["data"]) == SMALL


class Values:
    """The values of a facade, with a test between it and their writes."""

    def __init__(self, converse: Converse, between: Call) -> None:
        store = converse.message_model.store()
        self._real, self._between = store.values, between
        store.values = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def update_one(self, *arguments: Any, **options: Any) -> Any:
        return await self._between(self._real.update_one, *arguments, **options)


async def nothing() -> None:
    pass


async def test_large_value__whose_answers_were_lost_is_stored_once(facade: Facade) -> None:
    converse = await facade()
    message = await start(converse)
    lost = Meanwhile(nothing, lost=True)
    Values(converse, lost)
    async with message.writer() as writer:
        await writer.write(DataPart("n", LARGE))
    assert lost.happened
    assert await count(converse, message) == 2
    assert await message.load_value(message.parts[0].fields["data"]) == LARGE


class Deaf:
    """Messages whose appends are stored, or are not, without an answer."""

    def __init__(self, converse: Converse, *, stores: bool) -> None:
        self._store = converse.message_model.store()
        self._real, self._stores = self._store.messages, stores
        self._store.messages = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def update_one(self, match: Any, update: Any) -> Any:
        if "$push" not in update:
            return await self._real.update_one(match, update)
        if self._stores:
            await self._real.update_one(match, update)
        raise AutoReconnect("the answer is lost")

    def hear(self) -> None:
        self._store.messages = self._real


@pytest.mark.parametrize("stores", [True, False])
async def test_append__that_is_tried_again_stores_its_value_once(
    facade: Facade, stores: bool
) -> None:
    converse = await facade(retry_timeout=0.1)
    message = await start(converse)
    deaf = Deaf(converse, stores=stores)
    with pytest.raises(StoreUnavailableError) as caught:
        await message.append_chunks(["a", DataPart("n", SMALL)])
    deaf.hear()
    for _ in range(2):
        await message.append_chunks(["a", DataPart("n", SMALL)], append_id=caught.value.append_id)
    assert await count(converse, message) == 1
    read = await converse.get_message(message.id)
    assert read.content == "a"
    assert await read.load_value(read.parts[1].fields["data"]) == SMALL


async def test_value__that_nothing_refers_to_goes_with_the_merge_or_the_message(
    facade: Facade,
) -> None:
    converse = await facade(retention="compact")
    message = await start(converse)
    other = await converse.get_message(message.id)
    left = {"left": LargeValue(b"by a process that died before the append", "")}
    await converse.message_model.store().large_values.store(message._own_key(), left)
    await message.append_chunks([DataPart("n", SMALL)])
    assert await count(converse, message) == 2
    await message.complete_streaming()
    assert await count(converse, message) == 1
    assert await message.load_value(message.parts[0].fields["data"]) == SMALL
    with pytest.raises(MessageNotStreamingError):
        await other.append_chunks([DataPart("n", SMALL)])
    await other.delete()
    assert await count(converse, message) == 0


async def test_values__that_come_after_their_message_are_deleted(facade: Facade) -> None:
    converse = await facade()
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant(generation_id="g")
    await message.append_chunks([DataPart("n", SMALL)])
    await (await converse.get_message(message.id)).delete()
    anew = await conversation.start_streaming_assistant(generation_id="g")
    await anew.append_chunks([DataPart("n", SMALL)])
    with pytest.raises(MessageNotFoundError):
        await message.append_chunks([DataPart("n", SMALL)])
    assert [each["log_id"] for each in await pieces(converse, message)] == [anew.log_id]
    await conversation.delete()
    values = converse.message_model.store().values
    with pytest.raises(ConversationNotFoundError):
        await conversation.create_user_message("", parts=[DataPart("n", SMALL)])
    assert await values.count_documents({}) == 1


async def test_value__that_was_changed_is_refused(converse: Converse) -> None:
    message = await start(converse)
    await message.append_chunks([DataPart("n", SMALL)])
    value = message.parts[0].fields["data"]
    (piece,) = await pieces(converse, message)
    damaged = {"$set": {"data": piece["data"][:-2] + b"y\0"}}
    await converse.message_model.store().values.update_one({"_id": piece["_id"]}, damaged)
    with pytest.raises(ValueNotFoundError, match="not what was written"):
        await message.load_value(value)
    with pytest.raises(InvalidInputError, match="not str: all that is smaller"):
        await message.load_value("x")  # type: ignore[arg-type]


async def test_writer__keeps_its_lease_while_it_stores_a_value(facade: Facade) -> None:
    converse = await facade()
    message = await start(converse)
    renewed: list[int] = []

    async with message.writer() as writer:
        renew, appender = converse.message_model.store().leases.renew, writer._appender

        async def note(*arguments: Any) -> Any:
            renewed.append(await count(converse, message))
            return await renew(*arguments)

        async def slowly(write: Call, *arguments: Any, **options: Any) -> Any:
            done = await write(*arguments, **options)
            appender._next_renewal = 0.0  # so long it took
            return done

        converse.message_model.store().leases.renew = note
        Values(converse, slowly)
        await writer.write(DataPart("n", LARGE))
        await writer.flush()
        assert renewed == [1]


async def test_fields__are_apart_as_far_as_they_have_to(converse: Converse) -> None:
    message = await start(converse)
    much = {f"f{place}": "x" * 200_000 for place in range(6)}
    name = "n" * 500_000  # what tells one part from another is in it
    await message.append_chunks([CustomPart("c", **much), DataPart(name, SMALL)])
    part, data = (await converse.get_message(message.id)).parts
    apart = {n: v for n, v in part.fields.items() if isinstance(v, StoredValue)}
    assert len(apart) == 1
    assert {n: await message.load_value(v) for n, v in apart.items()}.items() <= much.items()
    assert isinstance(data, DataPart)
    assert data.name == name
    assert isinstance(data.data, StoredValue)


async def test_value__over_the_limit_is_refused_before_anything_is_written(
    converse: Converse,
) -> None:
    message = await start(converse)
    huge = "x" * MAX_VALUE_BYTES
    with pytest.raises(InvalidInputError, match=r"\['data'\] of 67108881 bytes is over the limit"):
        await message.append_chunks(["text", DataPart("m", SMALL), DataPart("n", huge)])
    assert (await raw(converse, message))["next_sequence"] == 0
    assert not await count(converse, message)
