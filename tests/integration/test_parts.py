"""Parts: written with an answer, stored in its log, and the same for every reader."""

import asyncio
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo.errors import AutoReconnect

from converse_mongo import (
    ChunkReceived,
    Converse,
    CustomPart,
    DataPart,
    FilePart,
    InvalidInputError,
    Message,
    MessageRole,
    MessageWriter,
    Part,
    PartDelta,
    PartEnd,
    PartEvent,
    PartSet,
    PartStart,
    ProviderError,
    ReasoningPart,
    SourceDocumentPart,
    SourceUrlPart,
    StepPart,
    StoreUnavailableError,
    TextPart,
    ToolCallPart,
    WriterFailedError,
    WriterFencedError,
)
from converse_mongo.documents import own_writes
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.part_pieces import PartPiece, PartRef
from converse_mongo.domain.part_redaction import reduced
from converse_mongo.domain.parts import parts_of
from converse_mongo.domain.validation import MAX_APPEND_CHUNKS, PAGE_CHUNKS
from tests.conftest import Facade
from tests.integration.helpers import Gate, fill, pages_of, raw, start
from tests.streams import SOON, collect, until

QUESTION = {"q": "mongo"}


async def write_all(writer: MessageWriter) -> None:
    """Writes parts of each kind, as an agent does."""
    await writer.write("Let me look. ")
    await writer.write_reasoning("The user ")
    await writer.write_reasoning("wants …")
    async with writer.step() as step:
        call = await writer.start_tool_call("search", call_id="call_1", title="Search")
        await call.input_delta('{"q": "mon')
        await call.input_delta('go"}')
        await call.set_input(QUESTION)
        async with call.execution():
            agent = call.nested()
            await agent.write("I am ")
            await agent.write("another.")
            await agent.write_reasoning("Hm.")
            await agent.write(SourceUrlPart("https://example.com/inner"))
            await call.set_output({"hits": 1}, preliminary=True)
            await call.set_output({"hits": 3})
        step.usage, step.model, step.finish_reason = {"input": 7}, "a-model", "stop"
    await writer.write("There ")
    await writer.write("are three.")
    await writer.write(SourceUrlPart("https://example.com", title="Example"))
    await writer.write(SourceDocumentPart("A paper", "application/pdf", filename="a.pdf"))
    await writer.write(FilePart("gridfs://1", "image/png", name="a.png", size=9))
    await writer.write(DataPart("weather", {"c": 21}, id="w1"))
    await writer.write(DataPart("weather", {"c": 22}, id="w1"))
    await writer.write(DataPart("progress", 0.5, transient=True))
    await writer.write(CustomPart("novel", shape="round"))


def bulky(number: int) -> CustomPart:
    """A part of a megabyte, of which no value is large enough to be stored apart."""
    return CustomPart("bulk", id=str(number), **{f"f{place}": "x" * 250_000 for place in range(4)})


def check_all(parts: list[Part]) -> None:
    """Checks the parts that :func:`write_all` wrote."""
    text, reasoning, step, call, inner, thought, link, answer, *rest = parts
    source, document, file, data, custom = rest
    assert isinstance(text, TextPart)
    assert text.text == "Let me look. "
    assert isinstance(reasoning, ReasoningPart)
    assert (reasoning.text, reasoning.closed) == ("The user wants …", True)
    assert isinstance(step, StepPart)
    assert (step.usage, step.model, step.finish_reason) == ({"input": 7}, "a-model", "stop")
    assert isinstance(call, ToolCallPart)
    assert (call.name, call.call_id, call.title) == ("search", "call_1", "Search")
    assert (call.text, call.input, call.output) == ('{"q": "mongo"}', QUESTION, {"hits": 3})
    assert (call.state, call.started, call.is_preliminary) == ("output-available", True, False)
    assert [(each.parent, each.text) for each in (inner, thought, link)] == [
        (call.number, "I am another."),
        (call.number, "Hm."),
        (call.number, ""),
    ]
    assert [type(each) for each in (inner, thought)] == [TextPart, ReasoningPart]
    assert isinstance(link, SourceUrlPart)
    assert link.url == "https://example.com/inner"
    assert isinstance(answer, TextPart)
    assert answer.text == "There are three."
    assert isinstance(source, SourceUrlPart)
    assert (source.url, source.title) == ("https://example.com", "Example")
    assert isinstance(document, SourceDocumentPart)
    assert (document.title, document.media_type) == ("A paper", "application/pdf")
    assert isinstance(file, FilePart)
    assert (file.url, file.media_type, file.name, file.size) == (
        *("gridfs://1", "image/png", "a.png", 9),
    )
    assert isinstance(data, DataPart)
    assert (data.name, data.id, data.data) == ("weather", "w1", {"c": 22})
    assert isinstance(custom, CustomPart)
    assert (custom.kind, custom.fields["shape"]) == ("novel", "round")


async def parts_seen(converse: Converse, message: Message) -> list[Part]:
    """Returns the parts that a watcher sees, which starts now, up to the end."""
    events = await collect(converse, message)
    chunks = [event.chunk.to_stored() for event in events if isinstance(event, ChunkReceived)]
    return parts_of(PartLog.of(chunks).records(), ended=True)


@pytest.mark.parametrize("granularity", ["flush", "token"])
async def test_writer__and_all_readers_have_the_same_parts(
    facade: Facade, granularity: Any
) -> None:
    converse = await facade()
    viewer = await facade(converse.database_name)
    message = await start(converse)
    live = asyncio.create_task(parts_seen(viewer, message))
    async with message.writer(granularity=granularity) as writer:
        await write_all(writer)
        await writer.flush()
        check_all(message.parts)
        check_all((await viewer.get_message(message.id)).parts)
    text = "Let me look. There are three."
    async with asyncio.timeout(SOON):
        check_all(await live)
    check_all(await parts_seen(viewer, message))
    check_all(message.parts)
    read = await viewer.get_message(message.id)
    listed = (await (await viewer.get_conversation(message.conversation_id)).messages())[0]
    for each in (message, read, listed):
        check_all(each.parts)
        assert (each.content, each.format) == (text, 2)
        assert each.content_bytes == len(text)
    assert not listed.chunks.is_loaded


async def test_text__alone_is_stored_as_ever(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer() as writer:
        await writer.write("text")
    stored = await raw(converse, message)
    assert not {"format", "parts", "part_bytes"} & stored.keys()
    assert stored["chunks"][0].keys() == {"sequence", "content", "created_at", "append_id"}
    assert message.parts == [TextPart("text")]
    conversation = await converse.get_conversation(message.conversation_id)
    whole = await conversation.create_user_message("Hello")
    assert not {"format", "parts", "part_bytes"} & (await raw(converse, whole)).keys()
    assert (await conversation.create_system_message("")).parts == []


async def test_call__is_stored_at_each_step_that_says_so(converse: Converse) -> None:
    message = await start(converse)

    async def state() -> Any:
        (call,) = (await converse.get_message(message.id)).unfinished_calls
        return call.state

    async with message.writer(flush_interval=3600) as writer:
        call = await writer.start_tool_call("search")
        await writer.flush()
        assert await state() == "input-streaming"
        await call.set_input(None)
        assert await state() == "input-available"
        async with call.execution():
            assert await state() == "running"
            await call.set_output(1, preliminary=True)
            await call.set_output(None)
            read = await converse.get_message(message.id)
            assert read.unfinished_calls == []
            assert isinstance(read.parts[0], ToolCallPart)
            assert (read.parts[0].state, read.parts[0].output) == ("output-available", None)
            assert read.parts[0].number == call.number


async def test_execution__stores_the_error_of_the_tool(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer() as writer:
        call = await writer.start_tool_call("search")
        await call.set_input({})
        with pytest.raises(ValueError, match="no such page"):
            async with call.execution():
                raise ValueError("no such page")
    (part,) = message.parts
    assert isinstance(part, ToolCallPart)
    assert (part.state, part.error) == ("output-error", "no such page")


async def test_provider_error__is_told_in_the_words_of_the_provider(converse: Converse) -> None:
    message = await start(converse)
    with pytest.raises(ProviderError):
        async with message.writer() as writer:
            call = await writer.start_tool_call("ask_another_model")
            await call.set_input({})
            async with call.execution():
                raise ProviderError("The model is overloaded.", provider="openai")
    read = await converse.get_message(message.id)
    (part,) = read.parts
    assert isinstance(part, ToolCallPart)
    assert (part.error, read.error) == ("The model is overloaded.",) * 2


async def test_execution__that_cannot_store_an_output_may_store_an_error(
    converse: Converse,
) -> None:
    message = await start(converse)
    async with message.writer() as writer:
        call = await writer.start_tool_call("search")
        await call.set_input({})
        with pytest.raises(ValueError, match="no output"):
            async with call.execution():
                with pytest.raises(InvalidInputError):
                    await call.set_output(object())
                raise ValueError("no output")
    (part,) = message.parts
    assert isinstance(part, ToolCallPart)
    assert (part.state, part.error) == ("output-error", "no output")


async def test_call__without_an_outcome_is_interrupted_by_the_end(converse: Converse) -> None:
    message = await start(converse)
    with pytest.raises(ZeroDivisionError):
        async with message.writer() as writer:
            call = await writer.start_tool_call("search")
            await call.set_input({})
            raise ZeroDivisionError
    read = await converse.get_message(message.id)
    assert [call.state for call in read.unfinished_calls] == ["interrupted"]
    assert message.parts == read.parts


async def test_take_over__knows_the_parts_and_goes_on_with_them(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await start(converse)
    with pytest.raises(WriterFencedError):
        async with message.writer() as old:
            await old.write("One ")
            running = await old.start_tool_call("first", call_id="a")
            await running.set_input(1)
            waiting = await old.start_tool_call("second", call_id="b")
            await waiting.set_input(2)
            async with running.execution():
                theirs = await other.get_message(message.id)
                async with theirs.resume_writer() as new:
                    await go_on(theirs, new)
                async with waiting.execution():
                    pytest.fail("another writer has it")
    read = await converse.get_message(message.id)
    assert theirs.parts == read.parts
    assert (read.content, read.unfinished_calls) == ("One two", [])
    assert [part.kind for part in read.parts] == ["text", "tool_call", "tool_call", "text"]
    assert [part.kind for part in message.parts] == ["text", "tool_call", "tool_call"]


async def go_on(message: Message, writer: MessageWriter) -> None:
    """Does as the next writer what the one before left undone."""
    calls = message.unfinished_calls
    assert [(call.call_id, call.state) for call in calls] == [
        ("a", "running"),
        ("b", "input-available"),
    ]
    first, second = map(writer.continue_tool_call, calls)
    await first.set_error("It is not known whether it ran.")
    async with second.execution():
        await second.set_output(4)
    await writer.write("two")


async def test_long_log__is_moved_to_pages_and_read_from_everywhere(facade: Facade) -> None:
    converse = await facade()
    viewer = await facade(converse.database_name)
    polling = await facade(converse.database_name, change_streams=False, poll_interval=0.02)
    message = await start(converse)
    await fill(message, 3)
    live = [asyncio.create_task(parts_seen(each, message)) for each in (viewer, polling)]
    async with message.resume_writer(granularity="token") as writer:
        call = await writer.start_tool_call("search")  # open across the ends of pages
        for number in range(2 * PAGE_CHUNKS):
            if number % 50 == 0:
                await call.input_delta(f"{number},")
            if number % 40 == 0:
                await writer.write(DataPart("n", number, id="n"))
            if number % 20 == 10:
                await writer.write_reasoning("…")
            await writer.write(f"{number} ")
        await call.set_input([])
        assert message.parts == (await viewer.get_message(message.id)).parts
        assert [part.state for part in message.unfinished_calls] == ["input-available"]
        await call.set_output(None)
    assert len(await pages_of(converse, message)) == 2
    read = await viewer.get_message(message.id)
    assert read.parts == message.parts == await parts_seen(viewer, message)
    async with asyncio.timeout(SOON):
        assert [await each for each in live] == [read.parts, read.parts]
    assert isinstance(read.parts[1], ToolCallPart)
    assert read.parts[1].text == "".join(f"{each}," for each in range(0, 2 * PAGE_CHUNKS, 50))
    chunks = [chunk.to_stored() async for chunk in read.iter_chunks()]
    middle = PartLog.of(chunks[:300])
    async for event in viewer.watch_message(message.id, after=299):
        if isinstance(event, ChunkReceived):
            middle.add(event.chunk.to_stored())
    assert parts_of(middle.records(), ended=True) == read.parts


async def test_appends_by_hand__take_parts_and_events(converse: Converse) -> None:
    message = await start(converse)
    chunks = await message.append_chunks(
        [
            "Look: ",
            PartStart(ToolCallPart("search", "c"), "call"),
            PartDelta("call", "{"),
            PartDelta("call", "}"),
            PartEnd("call"),
            PartSet("call", {"input": {}}),
            ReasoningPart("Hm."),
            "done",
        ]
    )
    assert [chunk.sequence for chunk in chunks] == list(range(10))
    await message.append_chunks([PartSet(1, {"output": 3}), PartDelta(1, " ")])
    await message.append_chunks([PartSet(77, {"output": 3})])  # nobody knows of it: it is void
    call = (await converse.get_message(message.id)).parts[1]
    assert isinstance(call, ToolCallPart)
    assert (call.text, call.input, call.output, call.state) == ("{} ", {}, 3, "output-available")
    assert (await converse.get_message(message.id)).parts == message.parts
    assert message.content == "Look: done"


async def test_appends__of_two_at_once_name_their_own_parts(converse: Converse) -> None:
    message = await start(converse)
    copies = [await converse.get_message(message.id) for _ in range(4)]

    async def write(number: int) -> None:
        for turn in range(5):
            name = f"{number}.{turn}"
            await copies[number].append_chunks(
                ["text", PartStart(ToolCallPart(name, name), "x"), PartDelta("x", name)]
            )

    await asyncio.gather(*map(write, range(4)))
    calls = [p for p in (await converse.get_message(message.id)).parts if p.kind == "tool_call"]
    assert len(calls) == 20
    assert all(isinstance(call, ToolCallPart) and call.text == call.name for call in calls)


REFUSED: dict[str, tuple[list[Any], str]] = {
    "unknown key": ([PartDelta("call", "x")], "No part was begun with the key 'call'"),
    "no number": ([PartDelta(-1, "x")], "No part was begun"),
    "no text": ([PartStart(DataPart("n", 1), "d"), PartDelta("d", "x")], "has no text"),
    "ended": (
        [PartStart(ReasoningPart("a"), "r"), PartEnd("r"), PartDelta("r", "b")],
        "has ended",
    ),
    "output first": (
        [PartStart(ToolCallPart("t", "c"), "c"), PartSet("c", {"output": 1})],
        "needs its input before its output",
    ),
    "name later": (
        [PartStart(ToolCallPart("t", "c"), "c"), PartSet("c", {"name": "u"})],
        "name of a part comes with its start",
    ),
    "no value": ([DataPart("n", {1, 2})], "the fields of a part"),
    "too large": ([DataPart("n" * 2**20, 1)], "over the limit"),
    "no part": ([object()], "Content must be str"),
    "id": ([DataPart("n", 1, id=5)], "id of a part must be str, not int"),  # type: ignore[arg-type]
    "name": ([ToolCallPart(5, "c")], "name of a part must be str"),  # type: ignore[arg-type]
    "approval": (
        [ToolCallPart("t", "c", approval={"id": 5})],
        "approval.id of a part must be str, not int",
    ),
    "reserved kind": ([CustomPart("hidden")], "The kind 'hidden' is that of parts"),
    "no approval": ([ToolCallPart("t", "c", approval=True)], "approval.id of a part must be str"),
}


@pytest.mark.parametrize(("contents", "words"), REFUSED.values(), ids=REFUSED)
async def test_bad_input__is_refused_before_anything_is_written(
    converse: Converse, contents: list[Any], words: str
) -> None:
    message = await start(converse)
    with pytest.raises(InvalidInputError, match=words):
        await message.append_chunks(["text", *contents])
    assert (await raw(converse, message))["next_sequence"] == 0

    async def stream() -> AsyncIterator[str | Part | PartEvent]:
        for content in contents:
            yield content

    with pytest.raises(InvalidInputError, match=words):
        await message.pipe(stream())
    read = await converse.get_message(message.id)
    assert read.is_failed
    assert message.parts == read.parts


async def test_part__that_is_stored_cannot_be_written_again(converse: Converse) -> None:
    message = await start(converse)
    await message.append_chunks([DataPart("n", 1)])
    with pytest.raises(InvalidInputError, match="make a new one"):
        await message.append_chunks(message.parts)


async def test_writer__stores_no_halves_of_characters(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer() as writer:
        await writer.write_reasoning("a\ud83d")
        call = await writer.start_tool_call("t")
        await call.input_delta("\ude80b")
        with pytest.raises(InvalidInputError, match="not stored"):
            writer.continue_tool_call(ToolCallPart("t", "c"))
    assert [part.text for part in message.parts] == ["a\ufffd", "\ufffdb"]
    assert all(part.closed for part in message.parts)
    assert message.parts == (await converse.get_message(message.id)).parts


async def test_values__come_back_as_they_were(converse: Converse) -> None:
    value = {
        "$ref": "a",
        "$id": 1,
        "n": Decimal("1.5"),
        "u": uuid4(),
        "b": b"x",
        "e": MessageRole.USER,
    }
    message = await start(converse)
    await message.append_chunks([DataPart("n", value)])
    await message.complete_streaming()
    conversation = await converse.get_conversation(message.conversation_id)
    whole = await conversation.create_user_message("", parts=[DataPart("n", value)])
    plain = {**value, "e": "user"}
    for each in (message, whole):
        read = await converse.get_message(each.id)
        assert each.parts[0].fields["data"] == read.parts[0].fields["data"] == plain


async def test_pipe__takes_text_parts_and_events(converse: Converse) -> None:
    message = await start(converse)

    async def stream() -> AsyncIterator[str | Part | PartEvent]:
        yield "One "
        yield PartStart(ToolCallPart("t", "c"), "call")
        yield PartDelta("call", "{}")
        yield PartSet("call", {"input": {}, "output": 1})
        yield "two"

    await message.pipe(stream())
    assert [part.kind for part in message.parts] == ["text", "tool_call", "text"]
    assert message.parts == (await converse.get_message(message.id)).parts


class Deaf(Gate):
    """A collection whose appends are stored, and whose answers get lost.

    Attributes:
        deaf_from: The append from which on they do; 0 for none.
    """

    def __init__(self, converse: Converse, deaf_from: int) -> None:
        super().__init__(converse)
        self.open.set()
        self.deaf_from = deaf_from

    async def update_one(self, match: Any, update: Any) -> Any:
        done = await super().update_one(match, update)
        if "$push" in update and 0 < self.deaf_from <= self.arrived:
            raise AutoReconnect("the answer is lost")
        return done


async def test_append__of_parts_whose_answer_was_lost_is_stored_once(facade: Facade) -> None:
    converse = await facade(retry_timeout=0.1)
    message = await start(converse)
    gate = Deaf(converse, 1)
    contents: list[Any] = [
        PartStart(ToolCallPart("t", "c"), "call"),
        PartDelta("call", "{}"),
        "text",
    ]
    with pytest.raises(StoreUnavailableError) as caught:
        await message.append_chunks(contents)
    gate.deaf_from = 0
    for _ in range(2):
        chunks = await message.append_chunks(contents, append_id=caught.value.append_id)
        assert [chunk.sequence for chunk in chunks] == [0, 1, 2]
    kinds = [part.kind for part in (await converse.get_message(message.id)).parts]
    assert kinds == ["tool_call", "text"]
    with pytest.raises(InvalidInputError, match="another append"):
        await message.append_chunks(["a", "b", "c"], append_id=caught.value.append_id)


async def test_append__whose_answer_was_lost_is_known_when_a_merge_has_emptied_it(
    facade: Facade,
) -> None:
    converse = await facade(retry_timeout=0.1, retention="compact")
    message = await start(converse)
    contents: list[Any] = ["redacted", ReasoningPart("Hm."), "void"]
    gate = Deaf(converse, 1)
    with pytest.raises(StoreUnavailableError) as caught:
        await message.append_chunks(contents)
    gate.deaf_from = 0
    other = await converse.get_message(message.id)
    redact: Any = PartPiece("redact", PartRef(None, 0))
    reset: Any = PartPiece("reset", fields={"from": 1})
    await other.append_chunks([redact, reset])
    await other.complete_streaming()
    assert (await raw(converse, message))["compacted"]
    chunks = await message.append_chunks(contents, append_id=caught.value.append_id)
    assert [chunk.sequence for chunk in chunks] == list(range(5))
    with pytest.raises(InvalidInputError, match="another append"):
        await message.append_chunks([*contents, "x"], append_id=caught.value.append_id)


async def test_append__of_parts_in_several_writes_is_gone_on_with(facade: Facade) -> None:
    converse = await facade(retry_timeout=0.1)
    message = await start(converse)
    gate = Deaf(converse, 2)
    contents: list[Any] = [ReasoningPart(f"{number}") for number in range(100)]
    with pytest.raises(StoreUnavailableError) as caught:
        await message.append_chunks(contents)
    gate.deaf_from = 0
    error = caught.value
    assert error.appended == MAX_APPEND_CHUNKS // 3
    await message.append_chunks(contents[error.appended :], append_id=error.append_id)
    parts = (await converse.get_message(message.id)).parts
    assert [part.text for part in parts] == [part.text for part in contents]


async def test_writer__that_gives_up_gives_its_parts_back(facade: Facade) -> None:
    converse = await facade(retry_timeout=0.1)
    message = await start(converse)
    gate = Gate(converse)
    gate.open.set()
    with pytest.raises(WriterFailedError) as caught:
        async with message.writer() as writer:
            gate.failing = True
            call = await writer.start_tool_call("search")
            await until(lambda: gate.arrived > 0)
            await call.input_delta("{}")
            await writer.write("text")
            await writer.write(DataPart("n", 1))
            await writer.flush()
    gate.failing = False
    error = caught.value
    assert (error.text, error.unsent) == ("text", "text")
    assert "4 characters and 3 events of parts" in str(error)
    await message.append_chunks(error.unconfirmed, append_id=error.append_id)
    await message.append_chunks(error.unsent_contents)
    found, *rest = (await converse.get_message(message.id)).parts
    assert (found.kind, found.text) == ("tool_call", "{}")
    assert [(part.kind, part.text) for part in rest] == [("text", "text"), ("data", "")]


async def test_whole_message__with_parts(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    image = FilePart("gridfs://1", "image/png")
    asked = await conversation.create_user_message("Look at this", parts=[image])
    answer = await conversation.create_assistant_message(
        "", parts=[ReasoningPart("Hm."), TextPart("A cat."), DataPart("n", {"$a.b": 1})]
    )
    await asked.save()
    for number, message in enumerate((asked, answer)):
        read = await converse.get_message(message.id)
        listed = (await conversation.messages())[number]
        assert read.parts == listed.parts == message.parts
        assert [part.number for part in read.parts] == list(range(len(read.parts)))
        assert read.content == message.content
    assert (asked.content, answer.content) == ("Look at this", "A cat.")
    assert [part.kind for part in asked.parts] == ["text", "file"]
    assert [part.kind for part in answer.parts] == ["reasoning", "text", "data"]
    assert answer.parts[2].fields["data"] == {"$a.b": 1}
    for bad, words in ((object(), "Content must be str"), (DataPart("n", {1}), "the fields of")):
        with pytest.raises(InvalidInputError, match=words):
            await conversation.create_user_message("Look", parts=[bad])
    with pytest.raises(InvalidInputError, match="refer to large files"):
        large = [bulky(number) for number in range(9)]
        await conversation.create_user_message("Look", parts=large)
    assert len(await conversation.messages()) == 2


async def test_watchers__hold_few_large_parts(facade: Facade) -> None:
    converse = await facade()
    viewer = await facade(converse.database_name)
    message = await start(converse)
    async with viewer.watch_message(message.id) as watcher:
        await message.append_chunk("x")
        await anext(watcher)
        for number in range(12):
            await message.append_chunks([bulky(number)])
        await message.complete_streaming()
        async with asyncio.timeout(SOON):
            events = [event async for event in watcher]
    chunks = [event.chunk for event in events if isinstance(event, ChunkReceived)]
    assert [chunk.sequence for chunk in chunks] == list(range(1, 13))
    assert (await viewer.get_message(message.id)).parts == message.parts


async def test_merged__are_the_same_parts_from_everywhere(facade: Facade) -> None:
    converse = await facade(retention="compact")
    viewer = await facade(converse.database_name)
    message = await start(converse)
    seen: list[dict[str, Any]] = []
    async with message.writer(granularity="token") as writer:
        await write_all(writer)
        await writer.flush()
        seen = [chunk.to_stored() async for chunk in message.iter_chunks()]
    document = await raw(converse, message)
    assert document["compacted"]
    assert not document["chunks"]
    read = await viewer.get_message(message.id)
    check_all(read.parts)
    check_all(await parts_seen(viewer, message))
    check_all((await (await viewer.get_conversation(message.conversation_id)).messages())[0].parts)
    for after in range(0, len(seen), 7):
        log = PartLog.of(seen[: after + 1])
        async for event in viewer.watch_message(message.id, after=after):
            if isinstance(event, ChunkReceived):
                log.add(event.chunk.to_stored())
        check_all(parts_of(log.records(), ended=True))
    # Without the reduced parts, readers have them of the merged chunks.
    store = converse.message_model.store()
    await store.messages.update_one({"_id": message.id}, {"$unset": {"parts": ""}})
    check_all((await viewer.get_message(message.id)).parts)


async def test_merged__values_that_were_replaced_are_gone(facade: Facade) -> None:
    converse = await facade(retention="compact")
    message = await start(converse)
    for number in range(3):
        await message.append_chunks([DataPart("n", f"secret {number}", id="n")])
    await message.complete_streaming()
    document = str(await raw(converse, message))
    assert "secret 2" in document
    assert "secret 1" not in document


async def test_large_parts__are_reduced_on_read(facade: Facade) -> None:
    converse = await facade(retention="compact")
    message = await start(converse)
    for number in range(10):
        await message.append_chunks([bulky(number)])
    await message.complete_streaming()
    document = await raw(converse, message)
    assert "parts" not in document
    assert not document.get("compacted")
    read = await converse.get_message(message.id)
    assert [part.number for part in read.parts] == list(range(10))
    listed = (await (await converse.get_conversation(message.conversation_id)).messages())[0]
    assert listed.parts == read.parts


VERSION_BEFORE_PARTS = "a8a96e5"
"""The last commit that knows the format of messages, and no parts."""
OLD_PROGRAM = """
import asyncio, sys
from converse_mongo import Converse, UnknownFormatError

async def enter(make):
    async with make():
        pass

async def main(uri, database, message_id):
    async with Converse(uri, database=database, idle_timeout=0.1) as converse:
        message = await converse.get_message(message_id)
        assert message.content == "Let me look. There are three.", message.content
        calls = {
            "append": lambda: message.append_chunk("x"),
            "writer": lambda: enter(message.writer),
            "take-over": lambda: enter(message.resume_writer),
            "complete": message.complete_streaming,
            "fail": lambda: message.fail_streaming("broken"),
            "stop": message.request_stop,
            "delete": message.delete,
        }
        for name, call in calls.items():
            try:
                await call()
            except UnknownFormatError:
                continue
            sys.exit(f"{name} was not refused")
        for _ in range(3):
            assert await converse.recover_stale() == []
        assert await converse.compact_due() == 0

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def version_before_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it was before it knew parts."""
    folder = tmp_path_factory.mktemp("before_parts")
    git = ["git", "-C", str(Path(__file__).parents[2])]
    if (
        not shutil.which("git")
        or subprocess.run(
            [*git, "cat-file", "-e", VERSION_BEFORE_PARTS], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("the history of the project is not here")
    archive = [*git, "archive", "--format=tar", VERSION_BEFORE_PARTS, "converse_mongo"]
    done = subprocess.run(archive, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


async def test_version_before_parts__refuses_and_damages_nothing(
    facade: Facade, server_uri: str, version_before_parts: Path
) -> None:
    converse = await facade(retention=timedelta(days=1), idle_timeout=0.1)
    message = await start(converse)
    async with message.writer() as writer:
        await write_all(writer)
        await writer.detach()
    before = await raw(converse, message)
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OLD_PROGRAM),
        *(server_uri, converse.database_name, str(message.id)),
        cwd=version_before_parts,
        env={**os.environ, "PYTHONPATH": str(version_before_parts)},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(120):
            _, errors = await program.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            program.kill()
    assert program.returncode == 0, errors.decode()
    assert await raw(converse, message) == before
    check_all(parts_of(PartLog.of(before["chunks"]).records(), ended=False))


async def test_reset__voids_what_no_finished_step_has(converse: Converse) -> None:
    message = await start(converse, retention="compact")
    live = asyncio.create_task(collect(converse, message))
    async with message.writer() as writer:
        await writer.write("I ")
        async with writer.step() as step:
            call = await writer.start_tool_call("search")
            await call.set_input(QUESTION)
            step.usage = {"input": 1}
        lost = await writer.start_tool_call("erase")
        await lost.set_input({})
        agent = lost.nested()
        await agent.write("Hm.")
        await writer.write("guess")
        await call.set_output("found")
        await writer.reset()
        assert message.content == "I "
        assert [part.kind for part in message.parts] == ["text", "step", "tool_call"]
        assert message.parts[2].fields["output"] == "found"
        for written in (lost.set_output(1), agent.write("more"), agent.write_reasoning("more")):
            with pytest.raises(InvalidInputError, match="voided by a reset"):
                await written
        async with writer.step() as step:
            await writer.write("wrong")
            await writer.write_reasoning("wrong")
            await writer.reset()
            await writer.write("know.")
            step.usage = {"input": 2}
    assert message.content == "I know."
    usages = [part.usage for part in message.parts if isinstance(part, StepPart)]
    assert usages == [{"input": 1}, {"input": 2}]
    read = await converse.get_message(message.id)
    assert (read.content, read.parts) == (message.content, message.parts)
    assert read.content_bytes == len("I know.")
    assert [each async for each in read.iter_content()] == ["I ", "know."]
    events = await live
    log = PartLog.of(
        event.chunk.to_stored() for event in events if isinstance(event, ChunkReceived)
    )
    assert parts_of(log.records(), ended=True) == message.parts
    assert [chunk.sequence async for chunk in read.iter_chunks()] == list(range(log.next_sequence))


async def test_reset__after_a_take_over__keeps_finished_steps(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer() as writer:
        await writer.write("Old. ")
        with contextlib.suppress(RuntimeError):
            async with writer.step():
                await writer.write("lost")
                raise RuntimeError  # nobody ends this step
        async with writer.step():
            await writer.write("kept ")
        await writer.write("wrong")
        await writer.detach()
    again = await converse.get_message(message.id)
    async with again.resume_writer() as writer:
        await again.append_chunk(" by hand")  # the copy of the writer does not have it
        await writer.write(" more")
        await writer.reset()
        await writer.write("right")
    read = await converse.get_message(message.id)
    assert read.content == again.content == "Old. lostkept right"
    assert read.parts == again.parts


async def test_reset__of_text_alone__begins_the_answer_anew(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer() as writer:
        await writer.write("one two three")
        await writer.reset()
        assert (message.content, message.parts) == ("", [])
        await writer.write("four")
        await writer.reset(99)  # nothing has such a number
        with pytest.raises(InvalidInputError, match="first must be an integer of at least 0"):
            await writer.reset(-1)
    read = await converse.get_message(message.id)
    assert (read.content, read.parts) == ("four", message.parts)
    assert "".join([each async for each in read.iter_content()]) == "four"
    assert "".join([each async for each in read.iter_content(0)]) == "four"
    last = read.next_sequence - 1
    assert "".join([each async for each in read.iter_content(last)]) == ""


async def test_reset__inside_a_step_leaves_an_agent_that_can_write(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer() as writer:
        call = await writer.start_tool_call("ask")
        await call.set_input({})
        async with writer.step() as step:
            agent = call.nested()
            await agent.write_reasoning("hm")
            await agent.write("in vain")
            await writer.write_reasoning("in vain")
            await writer.reset(1)
            await agent.write("kept")
            await writer.write_reasoning("kept")
            step.usage = {"input": 1}
        await writer.write("Done.")
    read = await converse.get_message(message.id)
    assert [(part.kind, part.text) for part in read.parts] == [
        *(("tool_call", ""), ("text", "kept"), ("reasoning", "kept"), ("text", "Done.")),
    ]
    assert read.parts == message.parts


async def test_take_over__of_a_long_answer_keeps_its_parts(converse: Converse) -> None:
    message = await start(converse)
    await message.append_chunks([ReasoningPart("Hm."), "a"])
    again = await converse.get_message(message.id)
    async with again.resume_writer(granularity="token") as writer:
        for _ in range(PAGE_CHUNKS + 1):
            await writer.write("b")
        await writer.flush()
        parts = again.parts
        assert parts == (await converse.get_message(message.id)).parts
        assert [part.kind for part in parts] == ["reasoning", "text"]


async def test_reset__at_the_start_of_the_open_step(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer() as writer:
        async with writer.step():
            await writer.write("in vain")
            await writer.reset(0)
            await writer.write("kept")
        await writer.write(", all of it")
    assert message.content == "kept, all of it"
    assert [part.kind for part in message.parts] == ["text"]


async def test_appends_by_hand__reduce_no_log_again(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = await start(converse)
    await message.append_chunks([ReasoningPart("Hm.")])
    monkeypatch.setattr(own_writes, "MAX_CONTENT_BYTES", 0)
    reductions: list[int] = []

    def counted(*arguments: Any) -> PartLog:
        reductions.append(1)
        return reduced(*arguments)

    monkeypatch.setattr(own_writes, "reduced", counted)
    for _ in range(5):
        await message.append_chunks([ReasoningPart("Hm.")])
    assert reductions == []
    assert len(message.parts) == 6


async def test_reset__of_nothing__stores_nothing(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer() as writer:
        await writer.reset()
        await writer.write("one")
        await writer.flush()
        assert message.next_sequence == 1
        await writer.reset()
        await writer.write("two")
    assert (await converse.get_message(message.id)).content == "two"
    assert message.next_sequence == 3


async def test_reset__of_what_another_has_appended(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await start(converse)
    async with message.writer() as writer:
        await (await other.get_message(message.id)).append_chunk("by hand")
        await writer.reset()
        await writer.write("two")
    assert (await other.get_message(message.id)).content == "two"
