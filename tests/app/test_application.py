"""The tests of a small application: they know Converse, and nothing of what is behind it."""

import asyncio

import pytest

from converse_mongo import (
    ChunkReceived,
    Conversation,
    Converse,
    DataPart,
    Message,
    MessageCompleted,
    MessageCreated,
    MessageFailed,
    MessageNotStreamingError,
    MessageRole,
    MessageStatus,
    MessageUpdated,
    StoredValue,
    ValueNotFoundError,
    WatchMode,
)

ANSWER = ["Open ", "it with ", "`open()`", ". Ümläuts ", "und 漢字 ", "🙂"]


# The application


async def answer(conversation: Conversation, tokens: list[str]) -> Message:
    """Streams an answer into a conversation."""
    message = await conversation.start_streaming_assistant({"model": "small"})
    for token in tokens:
        await message.append_chunk(token)
        await asyncio.sleep(0)
    return await message.complete_streaming({"finish_reason": "stop"})


async def read_live(converse: Converse, message: Message, after: int | None = None) -> str:
    """Follows an answer to its end."""
    text = ""
    async for event in converse.watch_message(message.id, after):
        if isinstance(event, ChunkReceived):
            text += event.chunk.content
    return text


# Its tests


async def test_answer__is_stored_as_it_was_streamed(converse: Converse) -> None:
    conversation = await converse.start_conversation(title="Files", owner=("user", "42"))
    await conversation.add_user_message("How do I read a file?")
    message = await answer(conversation, ANSWER)

    stored = await converse.get_message(str(message.id))
    assert stored.content == "".join(ANSWER)
    assert [chunk.content for chunk in stored.chunks] == ANSWER
    assert [chunk.sequence for chunk in stored.chunks] == list(range(len(ANSWER)))
    assert stored.is_completed
    assert not stored.is_streaming
    assert stored.metadata == {"model": "small", "finish_reason": "stop", "chunks": len(ANSWER)}
    assert stored.completed_at is not None
    listed = await conversation.messages()
    assert [(m.role, m.content) for m in listed] == [
        (MessageRole.USER, "How do I read a file?"),
        (MessageRole.ASSISTANT, "".join(ANSWER)),
    ]


async def test_viewers__before_during_and_after(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    before = asyncio.create_task(read_live(converse, message))
    during = before
    for number, token in enumerate(ANSWER):
        await message.append_chunk(token)
        if number == 2:
            during = asyncio.create_task(read_live(converse, message, after=0))
    await message.complete_streaming()

    assert await before == "".join(ANSWER)
    assert await during == "".join(ANSWER[1:])
    assert await read_live(converse, message) == "".join(ANSWER)


async def test_viewer__takes_chunks_while_they_come(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    async with converse.watch_message(message.id) as events:
        for token in ANSWER:
            await message.append_chunk(token)
            event = await anext(events)
            assert isinstance(event, ChunkReceived)
            assert event.chunk.content == token
        await message.complete_streaming({"total_tokens": 6})
        event = await anext(events)
        assert isinstance(event, MessageCompleted)
        assert event.chunk_count == len(ANSWER)
        assert event.metadata["total_tokens"] == 6
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    assert converse.statistics().watchers == 0


async def test_failure__keeps_the_text_so_far(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    await message.append_chunks(["half ", "an answer"])
    await message.fail_streaming("the model went away", {"status_code": 529})

    stored = await converse.get_message(message.id)
    assert stored.is_failed
    assert stored.status is MessageStatus.FAILED
    assert stored.content == "half an answer"
    assert stored.error == "the model went away"
    assert stored.metadata["status_code"] == 529
    events = [event async for event in converse.watch_message(message.id, after=0)]
    assert [type(event) for event in events] == [ChunkReceived, MessageFailed]
    with pytest.raises(MessageNotStreamingError, match=f"{message.id} is failed"):
        await message.append_chunk("more")


async def test_page__follows_a_conversation_and_resumes(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    await conversation.add_system_message("Be brief.")
    seen = []
    async with converse.watch_conversation(conversation.id) as events:
        await conversation.add_user_message("Hello?")
        streaming = asyncio.create_task(answer(conversation, ANSWER))
        async for event in events:
            seen.append(event)
            if isinstance(event, ChunkReceived) and event.chunk.sequence == 2:
                break
    await streaming
    cursor = seen[-1].cursor
    async with converse.watch_conversation(conversation.id, after=cursor) as events:
        async for event in events:
            seen.append(event)
            if isinstance(event, MessageCompleted):
                break

    created = [event for event in seen if isinstance(event, MessageCreated)]
    assert [event.content for event in created] == ["Be brief.", "Hello?", ""]
    assert [event.streaming for event in created] == [False, False, True]
    chunks = [event.chunk.content for event in seen if isinstance(event, ChunkReceived)]
    assert chunks == ANSWER
    assert isinstance(seen[-1], MessageCompleted)


async def test_page__hears_of_saved_fields(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.create_user_message("Helo?")
    async with converse.watch_conversation(conversation.id, after="now") as events:
        await conversation.add_user_message("Are you there?")
        assert isinstance(await anext(events), MessageCreated)
        message.content = "Hello?"
        await message.save()
        event = await anext(events)
    assert isinstance(event, MessageUpdated)
    assert (event.message_id, event.revision) == (message.id, 1)
    assert (await converse.get_message(message.id)).content == "Hello?"


async def test_handlers__run_in_the_writing_process(converse: Converse) -> None:
    heard: list[str] = []

    async def on_chunk(event: ChunkReceived) -> None:
        heard.append(event.chunk.content)

    converse.on(ChunkReceived, on_chunk)
    converse.on(MessageCompleted, lambda event: heard.append(event.type))
    await answer(await converse.start_conversation(), ANSWER)
    assert heard == [*ANSWER, "message.completed"]


async def test_history__of_an_owner(converse: Converse) -> None:
    first = await converse.start_conversation("first", owner=("user", 7))
    await converse.start_conversation("of another", owner=("user", 8))
    second = await converse.start_conversation("second", owner=("user", 7))
    await asyncio.sleep(0.002)  # updated_at has milliseconds
    await first.add_user_message("newest")
    titles = [found.title async for found in converse.conversations(("user", 7))]
    assert titles == [first.title, second.title]


async def test_mode__is_told(converse: Converse, request: pytest.FixtureRequest) -> None:
    mocked = "mongomock" in request.node.name
    assert converse.watch_mode is (WatchMode.POLLING if mocked else WatchMode.CHANGE_STREAM)


async def test_large_values__are_loaded_when_asked_for(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant(retention="compact")
    data = {"rows": ["x" * 1000] * 300}
    async with message.writer() as writer:
        for value in ([data], data):
            await writer.write(DataPart("table", value, id="t"))
            await writer.flush()
        before = message.parts[0].fields["data"]
    stored = await converse.get_message(message.id)
    (part,) = stored.parts
    assert isinstance(part, DataPart)
    assert isinstance(part.data, StoredValue)
    assert await stored.load_value(part.data) == data
    assert await converse.value_model.find().count() == 1  # the other one was replaced
    await stored.delete()
    assert await converse.value_model.find().count() == 0
    with pytest.raises(ValueNotFoundError):
        await stored.load_value(before)
