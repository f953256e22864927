"""Transactions: all of a group of writes, or none."""

import asyncio

import pytest

from converse_mongo import (
    ConversationNotFoundError,
    Converse,
    Event,
    InvalidInputError,
    PartDelta,
    PartSet,
    PartStart,
    ReasoningPart,
    ToolCallPart,
    TransactionAbortedError,
    TransactionsUnavailableError,
)
from converse_mongo.driver.collections import collection_of
from tests.conftest import USES_MOTOR, Facade
from tests.streams import assert_exact, collect


async def test_transaction__is_seen_as_one(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    heard: list[str] = []
    converse.on(Event, lambda event: heard.append(event.type))
    async with converse.transaction() as transaction:
        assert transaction.is_open
        conversation = await converse.start_conversation("Files")
        await conversation.add_user_message("How do I read a file?")
        message = await conversation.start_streaming_assistant(generation_id="job")
        await message.append_chunks([f"{number} " for number in range(600)])
        await message.append_chunk("end", {"kind": "text"})
        call = PartStart(ToolCallPart("search", "c"), "call")
        await message.append_chunks([call, PartDelta("call", "{}"), PartSet("call", {"input": {}})])
        await message.complete_streaming({"model": "small"})
        assert (await conversation.start_streaming_assistant(generation_id="job")).is_completed
        assert (await converse.get_message(message.id)).content == message.content
        assert len(await conversation.messages()) == 2
        with pytest.raises(ConversationNotFoundError):
            await other.get_conversation(conversation.id)
        assert heard == []
    assert heard[:3] == ["conversation.created", "message.created", "message.created"]
    assert heard[-1] == "message.completed"
    read = await other.get_message(message.id)
    assert read.content == message.content
    assert [chunk.sequence for chunk in read.chunks] == list(range(604))
    assert [part.kind for part in read.parts] == ["text", "tool_call"]
    assert read.parts == message.parts
    assert_exact(await collect(other, message), read)
    # The documents live on outside.
    await conversation.add_user_message("Thanks")
    assert [one.position for one in await conversation.messages()] == [0, 1, 2]


async def test_transaction__that_is_left_with_an_error_never_was(facade: Facade) -> None:
    converse = await facade()
    heard: list[Event] = []
    converse.on(Event, heard.append)
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    heard.clear()
    with pytest.raises(ZeroDivisionError):
        async with converse.transaction():
            await conversation.add_user_message("gone")
            await message.append_chunk("gone")
            await message.append_chunks([ReasoningPart("gone")])
            message.metadata["gone"] = True
            await message.save()
            await message.complete_streaming()
            raise ZeroDivisionError
    assert heard == []
    assert [one.position for one in await conversation.messages()] == [0]
    read = await converse.get_message(message.id)
    assert read.is_streaming
    assert (read.content, read.metadata, read.parts, read.format) == ("", {}, [], None)
    await read.append_chunk("here")
    assert (await converse.get_message(message.id)).content == "here"
    assert (await conversation.create_user_message("next")).position == 1


async def test_transaction__that_meets_another_is_run_again(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    conversation = await converse.start_conversation()
    theirs = await other.get_conversation(conversation.id)
    begun = asyncio.Event()
    aborted = 0

    async def add(copy: object, text: str, seconds: float) -> None:
        nonlocal aborted
        owner = converse if copy is conversation else other
        while True:
            try:
                async with owner.transaction():
                    await copy.add_user_message(text)  # type: ignore[attr-defined]
                    begun.set()
                    await asyncio.sleep(seconds)
            except TransactionAbortedError:
                aborted += 1
            else:
                return

    first = asyncio.create_task(add(conversation, "first", 0.3))
    await begun.wait()
    await asyncio.gather(first, add(theirs, "second", 0))
    messages = await conversation.messages()
    assert sorted(message.content for message in messages) == ["first", "second"]
    assert [message.position for message in messages] == [0, 1]


async def test_transaction__adds_behind_a_writer_that_died_before_it_counted_its_message(
    facade: Facade,
) -> None:
    converse = await facade()
    conversation = await converse.start_conversation()
    await conversation.add_user_message("its counter is not stored")
    await collection_of(converse.conversation_model).update_one(
        {"_id": conversation.id}, {"$set": {"next_position": 0}}
    )
    # A collision would end this transaction, and each further one.
    async with converse.transaction():
        message = await conversation.create_user_message("in a transaction")
    assert message.position == 1
    assert (await conversation.refresh()).next_position == 2


async def test_transaction__belongs_to_its_task_and_facade(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    conversation = await converse.start_conversation()
    with pytest.raises(ZeroDivisionError):
        async with converse.transaction():
            with pytest.raises(InvalidInputError, match="nest"):
                await converse.transaction().__aenter__()
            message = await conversation.start_streaming_assistant()
            with pytest.raises(InvalidInputError, match="outside"):
                message.writer()
            # Calls at once take turns: a session takes one at a time.
            await asyncio.gather(*[message.append_chunk("x") for _ in range(5)])
            kept = await other.start_conversation("kept")
            raise ZeroDivisionError
    assert (await converse.get_conversation(kept.id)).title == "kept"
    assert await conversation.messages() == []


async def test_transaction__is_over_for_tasks_that_outlive_it(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    over = asyncio.Event()

    async def late() -> None:
        await over.wait()
        await conversation.add_user_message("late")

    async with converse.transaction():
        task = asyncio.create_task(late())
        await conversation.add_user_message("early")
    over.set()
    await task
    assert [message.content for message in await conversation.messages()] == ["early", "late"]


@pytest.mark.parametrize("server", ["standalone", "mock"])
async def test_transaction__where_the_server_has_none(
    request: pytest.FixtureRequest, facade: Facade, server: str
) -> None:
    if server == "standalone":
        start_server = request.getfixturevalue("start_server")
        converse = await facade("alone", start_server("--standalone").uri)
    elif USES_MOTOR:
        from mongomock_motor import AsyncMongoMockClient

        converse = await Converse(AsyncMongoMockClient(), database="mock").open()
    else:
        pytest.skip("mongomock-motor poses as Motor, so it needs Beanie 1")
    with pytest.raises(TransactionsUnavailableError, match="replica set"):
        async with converse.transaction():
            pytest.fail("the block was entered")
    await converse.aclose()
