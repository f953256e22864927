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
    Part,
    StreamStoppedError,
    ToolCallPart,
    WatchMode,
)
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.parts import parts_of

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


async def ask_agent(
    message: Message, *, stops: bool = False, error: Exception | None = None
) -> None:
    """Streams the answer of an agent with a tool; it may be cut off in the middle of a part."""
    async with message.writer(granularity="token") as writer:
        await writer.write("Let me look. ")
        await writer.write_reasoning("A file")
        await writer.write_reasoning(" is meant.")
        async with writer.step() as step:
            call = await writer.start_tool_call("search", call_id="call_1")
            await call.input_delta('{"q":')
            if stops:
                await writer.flush()
                await message.request_stop("Enough.")
            await call.set_input({"q": "file"})
            async with call.execution():
                await call.nested().write("I am another.")
                if error is not None:
                    raise error
                await call.set_output({"hits": 1})
            step.usage = {"tokens": 7}
        await writer.write(DataPart("progress", 50, id="p"))
        await writer.write(DataPart("progress", 100, id="p"))
        await writer.write("Use open().")


async def parts_live(converse: Converse, message: Message) -> list[Part]:
    """Follows the parts of an answer to its end, with a connection that is lost at each chunk."""
    log, seen, ended = PartLog(), -1, False
    while not ended:
        async with converse.watch_message(message.id, None if seen < 0 else seen) as events:
            event = await anext(events)
            if isinstance(event, ChunkReceived):
                seen = event.chunk.sequence
                log = PartLog.from_snapshot(log.snapshot())
                log.add(event.chunk.to_stored())
            else:
                ended = True
    return parts_of(log.records(), ended=True)


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


async def test_agent__is_followed_part_by_part(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    live = asyncio.create_task(parts_live(converse, message))
    await ask_agent(message)
    parts = (await converse.get_message(message.id)).parts
    assert [(part.kind, part.text) for part in parts] == [
        ("text", "Let me look. "),
        ("reasoning", "A file is meant."),
        ("step", ""),
        ("tool_call", '{"q":'),
        ("text", "I am another."),
        ("data", ""),
        ("text", "Use open()."),
    ]
    call, nested, data = parts[3], parts[4], parts[5]
    assert isinstance(call, ToolCallPart)
    assert (call.state, call.output, nested.parent) == (
        "output-available",
        {"hits": 1},
        call.number,
    )
    assert isinstance(data, DataPart)
    assert data.data == 100
    assert await live == await parts_live(converse, message) == parts == message.parts
    (listed,) = await conversation.messages()
    assert (listed.parts, listed.content) == (parts, "Let me look. Use open().")


async def test_agent__that_is_stopped_or_fails_leaves_what_it_has(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    stopped = await conversation.start_streaming_assistant()
    failed = await conversation.start_streaming_assistant()
    live = [asyncio.create_task(parts_live(converse, each)) for each in (stopped, failed)]
    with pytest.raises(StreamStoppedError):
        await ask_agent(stopped, stops=True)
    with pytest.raises(ZeroDivisionError):
        await ask_agent(failed, error=ZeroDivisionError("no such page"))
    states = ("interrupted", "output-error")
    for message, seen, state in zip((stopped, failed), live, states, strict=True):
        read = await converse.get_message(message.id)
        call = read.parts[3]
        assert isinstance(call, ToolCallPart)
        assert (call.state, call.closed) == (state, True)
        assert await seen == read.parts == message.parts
    assert (await converse.get_message(stopped.id)).is_cancelled
    assert (await converse.get_message(failed.id)).is_failed


async def test_agent__that_died_is_gone_on_with(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    live = asyncio.create_task(parts_live(converse, message))
    async with message.writer() as writer:
        call = await writer.start_tool_call("search")
        await call.set_input({})
        async with call.execution():
            await call.nested().write_reasoning("Hm")
            await writer.flush()
            await writer.detach()
    next_copy = await converse.get_message(message.id)
    async with next_copy.resume_writer() as writer:
        (unfinished,) = next_copy.unfinished_calls
        assert unfinished.state == "running"
        await writer.continue_tool_call(unfinished).set_error("It was interrupted.")
        await writer.write("Sorry.")
    read = await converse.get_message(message.id)
    assert [part.kind for part in read.parts] == ["tool_call", "reasoning", "text"]
    assert read.unfinished_calls == []
    assert await live == read.parts == next_copy.parts
