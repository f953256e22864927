"""Redaction: the content of a part is in no copy any more, and all readers agree on the rest."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import bson
import pytest

from converse_mongo import (
    ChunkReceived,
    Converse,
    DataPart,
    FilePart,
    InvalidInputError,
    Message,
    MessageNotFoundError,
    MessageUpdated,
    Part,
    PartChunk,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    UnknownFormatError,
)
from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.part_redaction import reduced
from converse_mongo.domain.parts import parts_of
from converse_mongo.domain.validation import MAX_CONTENT_BYTES, PAGE_CHUNKS
from converse_mongo.driver.installed import driver_name
from converse_mongo.store import pages
from tests.conftest import Facade
from tests.integration.helpers import Between, Meanwhile, fill, pages_of, raw, soon, start
from tests.streams import SOON, collect, sequences

PRIVATE = "confidential"
REASON = "private"


async def found(converse: Converse) -> list[str]:
    """The collections that have the secret in a document."""
    database = converse.message_model.store().messages.database
    return [
        name
        for name in await database.list_collection_names()
        async for document in database[name].find()
        if PRIVATE.encode() in bson.encode(document)
    ]


async def write_secrets(message: Message) -> None:
    """Writes a secret in each kind of part, and something else around it."""
    async with message.writer(granularity="token") as writer:
        await writer.write(f"{PRIVATE} ")
        await writer.write(PRIVATE)
        await writer.write_reasoning(PRIVATE)
        call = await writer.start_tool_call("search", call_id=PRIVATE)
        await call.input_delta(f'"{PRIVATE}"')
        await call.set_input(PRIVATE)
        async with call.execution():
            agent = call.nested()
            await agent.write("inner")
            await call.set_output({"a": PRIVATE}, preliminary=True)
            await writer.write(" Kept")
            await call.set_output({"a": PRIVATE})
        await writer.write(DataPart("w", PRIVATE, id="1"))
        await writer.write(" too.")
        await writer.write(DataPart("w", PRIVATE + PRIVATE, id="1"))
        await writer.write(FilePart(f"gridfs://{PRIVATE}", "image/png"))
        await writer.flush()
        await writer.detach()


async def write_few(message: Message) -> None:
    await message.append_chunks([PRIVATE, PRIVATE, ReasoningPart(PRIVATE), "Kept"])


async def paged(message: Message) -> None:
    await fill(message, PAGE_CHUNKS - 2)
    await write_few(message)
    await fill(message, PAGE_CHUNKS)


async def whole(converse: Converse) -> Message:
    conversation = await converse.start_conversation()
    parts = [ReasoningPart(PRIVATE), TextPart("Kept"), DataPart("w", PRIVATE, id="1")]
    return await conversation.create_assistant_message(PRIVATE, parts=parts)


async def streamed(converse: Converse, write: Any, *, end: bool = True) -> Message:
    message = await start(converse)
    await write(message)
    if end:
        await message.complete_streaming()
    return await converse.get_message(message.id)


async def text_alone(message: Message) -> None:
    await message.append_chunk("")
    await message.append_chunk(PRIVATE, {"n": PRIVATE})
    await message.append_chunks([PRIVATE])


async def too_large(message: Message) -> None:
    await write_secrets(message)
    await message.append_chunks(["x" * 1_000_000] * (MAX_CONTENT_BYTES // 1_000_000 + 1))


KINDS: dict[str, Callable[[Converse], Any]] = {
    "streaming": lambda converse: streamed(converse, write_secrets, end=False),
    "streaming-with-pages": lambda converse: streamed(converse, paged, end=False),
    "streaming-text": lambda converse: streamed(converse, text_alone, end=False),
    "ended": lambda converse: streamed(converse, write_secrets),
    "ended-with-pages": lambda converse: streamed(converse, paged),
    "ended-text": lambda converse: streamed(converse, text_alone),
    "too-large": lambda converse: streamed(converse, too_large),
    "whole": whole,
}
MERGED = {name: KINDS[name] for name in ("ended", "ended-with-pages", "ended-text")}


def is_secret(part: Part) -> bool:
    return PRIVATE in repr(part)


async def check_readers(converse: Converse, message: Message, before: list[Any]) -> None:
    """All readers have the same parts, a viewer too who has seen chunks as they were."""
    viewed = await converse.get_message(message.id)
    assert viewed.parts == message.parts
    assert viewed.content == message.content
    (listed,) = await (await converse.get_conversation(message.conversation_id)).messages()
    if message.content_bytes <= MAX_CONTENT_BYTES:
        assert listed.parts == message.parts
        assert listed.content == message.content
    after = [chunk.to_stored() async for chunk in viewed.iter_chunks()]
    if not after:
        return
    assert [chunk["sequence"] for chunk in after] == list(range(viewed.next_sequence))
    redactions = None if viewed.is_streaming else viewed.redactions
    cursors = range(len(before) + 1) if len(before) < 100 else (0, 200, 240, 256, len(before))
    for n in cursors:
        log = reduced(before[:n] + after[n:], redactions)
        assert parts_of(log.records(), ended=not viewed.is_streaming) == message.parts
        assert n or log.text() == message.content or not message.content


@pytest.mark.parametrize(
    "kind", [*KINDS, *(f"merged-{name}" for name in MERGED)], ids=lambda kind: kind
)
async def test_redact__leaves_nothing_in_any_collection(facade: Facade, kind: str) -> None:
    make = KINDS[kind.removeprefix("merged-")]
    converse = await facade(retention="compact" if kind.startswith("merged") else "keep")
    viewer = await facade(converse.database_name)
    message = await make(converse)
    assert kind.startswith("merged") == bool((await raw(converse, message)).get("compacted"))
    assert await found(converse)
    before = [chunk.to_stored() async for chunk in message.iter_chunks()]
    kept = [part for part in message.parts if not is_secret(part)]
    secrets = [part for part in message.parts if is_secret(part)]
    numbers = [part.number for part in secrets]
    assert secrets
    for part in secrets:
        number = part.number
        await message.redact_part(part if number is None else number, REASON)
        number = message.parts[0].number if number is None else number
        (redacted,) = [each for each in message.parts if each.number == number]
        assert (redacted.kind, redacted.text, redacted.redacted) == (part.kind, "", REASON)
        await check_readers(viewer, message, before)
    if "text" not in kind:
        assert [part.number for part in message.parts if part.redacted] == numbers
        assert [part for part in message.parts if not part.redacted] == kept
    assert await found(converse) == []
    if message.is_streaming:
        await message.append_chunk(" More.")
        await message.complete_streaming()
        assert message.content.endswith(" More.")
        await check_readers(viewer, message, before)
        assert await found(converse) == []
    stored = await raw(converse, message)
    assert stored["format"] == 2
    if "too-large" not in kind and "whole" not in kind:
        assert stored["parts"]
        later = await facade(converse.database_name)
        await later.message_model.store().messages.update_one(
            {"_id": message.id}, {"$set": {"compact_at": stored["created_at"], "retention": 0.0}}
        )
        await later.compact_due()
        assert (await raw(converse, message))["compacted"]
        await check_readers(viewer, message, before)


async def test_redact__tells_the_viewers(facade: Facade) -> None:
    converse = await facade()
    viewer = await facade(converse.database_name)
    handled: list[MessageUpdated] = []
    converse.on(MessageUpdated, handled.append)
    message = await start(converse)
    watching = asyncio.create_task(collect(viewer, message))
    await message.append_chunks(["a", ReasoningPart(PRIVATE), "b"])
    await message.redact_part(1, REASON)
    await message.redact_part(0)
    await message.append_chunks(["c", "d"])
    await message.complete_streaming()
    events = await soon(watching)
    chunks = [event.chunk for event in events if isinstance(event, ChunkReceived)]
    assert sequences(events) == list(range(message.next_sequence))
    redactions = [each for each in chunks if isinstance(each, PartChunk) and each.event == "redact"]
    assert [(each.part, dict(each.fields)) for each in redactions] == [
        (1, {"reason": REASON}),
        (0, {}),
    ]
    log = PartLog.of([chunk.to_stored() for chunk in chunks])
    assert parts_of(log.records(), ended=True) == message.parts
    assert message.content == "bcd"
    assert handled == []
    async with viewer.watch_conversation(message.conversation_id, "now") as watcher:
        first = asyncio.ensure_future(anext(watcher))
        while not first.done():
            await asyncio.wait([first], timeout=0.05)
            if not first.done():
                await message.redact_part(message.parts[2])
        event = await first
        assert isinstance(event, MessageUpdated)
        assert event.message_id == message.id
    assert [each.revision for each in handled] == [1]
    assert message.revision == 1


async def test_redact__again_keeps_the_first_reason(converse: Converse) -> None:
    for ended in (False, True):
        message = await streamed(converse, text_alone, end=ended)
        await message.redact_part(message.parts[0], REASON)
        stored = await raw(converse, message)
        other = await converse.get_message(message.id)
        await other.redact_part(1, "another")
        again = await raw(converse, message)
        assert again["redactions"] == stored["redactions"] == [{"part": 1, "reason": REASON}]
        assert again["next_sequence"] == stored["next_sequence"]
        assert other.parts[0].redacted == REASON


async def test_redact__a_call_leaves_the_parts_of_its_agent(converse: Converse) -> None:
    message = await streamed(converse, write_secrets)
    (call,) = [part for part in message.parts if isinstance(part, ToolCallPart)]
    await message.redact_part(call)
    (inner,) = [part for part in message.parts if part.parent == call.number]
    assert inner.text == "inner"
    (call,) = [part for part in message.parts if isinstance(part, ToolCallPart)]
    assert (call.redacted, call.name, call.state) == (True, "search", "interrupted")
    assert (call.call_id, call.input, call.text) == ("", None, "")


async def test_redact__refuses_what_is_no_part(converse: Converse) -> None:
    streaming = await streamed(converse, text_alone, end=False)
    ended = await streamed(converse, text_alone)
    added = await whole(converse)
    for message in (streaming, ended, added):
        before = await raw(converse, message)
        for bad in (99, -1, True, "1", None, TextPart("other")):
            with pytest.raises(InvalidInputError, match="part"):
                await message.redact_part(bad)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="bytes"):
            await message.redact_part(1, "x" * 100_000)
        assert await raw(converse, message) == before
    store = converse.message_model.store()
    await store.messages.update_one({"_id": ended.id}, {"$set": {"format": 99}})
    with pytest.raises(UnknownFormatError):
        await ended.redact_part(1)
    await streaming.delete()
    with pytest.raises(MessageNotFoundError):
        await streaming.redact_part(1)


class CrashError(Exception):
    """The process dies here."""


def crash(converse: Converse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the process die before its sweep."""

    async def sweep(*_: Any) -> None:
        raise CrashError

    monkeypatch.setattr(converse.message_model.store().sweeps, "_sweep", sweep)


@pytest.mark.parametrize("finish", ["again", "sweeper", "end", "merge"])
@pytest.mark.parametrize("ended", [False, True], ids=["streaming", "ended"])
async def test_crash__before_the_sweep(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, ended: bool, finish: str
) -> None:
    converse = await facade(retention=timedelta(milliseconds=1) if finish == "merge" else "keep")
    other = await facade(converse.database_name)
    message = await streamed(converse, paged, end=ended)
    parts = [part for part in message.parts if is_secret(part)]
    crash(converse, monkeypatch)
    for part in parts:
        with pytest.raises(CrashError):
            await message.redact_part(part)
    assert await found(converse)
    read = await other.get_message(message.id)
    assert not any(map(is_secret, read.parts))
    assert PRIVATE not in read.content
    if finish == "again":
        await read.redact_part(parts[0])
    elif finish == "end" and not ended:
        await read.complete_streaming()
    else:
        if finish == "merge" and not ended:
            await read.complete_streaming()
        await asyncio.sleep(0.002)
        await other.compact_due()
    assert await found(other) == []
    stored = await raw(other, message)
    assert bool(stored.get("compacted")) == (finish == "merge")
    assert "compact_at" not in stored
    assert (await other.get_message(message.id)).parts == read.parts


async def test_writer__that_does_not_know_goes_on(facade: Facade) -> None:
    converse = await facade(retention="keep")
    other = await facade(converse.database_name)
    message = await start(converse)
    async with message.writer() as writer:
        await writer.write(PRIVATE)
        await writer.write_reasoning(PRIVATE)
        await writer.flush()
        copy = await other.get_message(message.id)
        for part in copy.parts:
            await copy.redact_part(part, REASON)
        assert await found(other) == []
        await writer.write_reasoning(PRIVATE)
        await writer.flush()
        await writer.write("Kept")
    assert await found(other) == []
    read = await other.get_message(message.id)
    assert (message.content, message.parts) == ("Kept", read.parts)
    assert [(part.kind, part.text, part.redacted) for part in read.parts] == [
        ("text", "", REASON),
        ("reasoning", "", REASON),
        ("text", "Kept", False),
    ]


async def test_writer__of_the_same_copy_goes_on(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer() as writer:
        for number in range(5):
            await writer.write(PRIVATE)
            await writer.flush()
            await message.redact_part(message.parts[-1])
            assert message.content == ""
            await writer.write(DataPart("n", number))
        await writer.write("Kept")
    read = await converse.get_message(message.id)
    assert message.content == read.content == "Kept"
    assert message.parts == read.parts
    assert [part.kind for part in read.parts] == [*["text", "data"] * 5, "text"]


def while_reading(converse: Converse, happens: Any) -> None:
    """Has something happen right after the next read of a whole document."""
    reader = converse.message_model.store().reader
    read = partial(Meanwhile(happens), reader.document)
    reader.document = read  # type: ignore[method-assign]


async def test_end__between_the_read_and_the_redaction(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await streamed(converse, write_few, end=False)
    copy = await other.get_message(message.id)
    while_reading(converse, copy.complete_streaming)
    for part in [each for each in message.parts if is_secret(each)]:
        await message.redact_part(part)
    assert await found(other) == []
    read = await other.get_message(message.id)
    assert message.parts == read.parts
    assert read.content == message.content == "Kept"


@pytest.mark.parametrize("lost", [False, True], ids=["in-between", "lost-answer"])
async def test_redact__beside_another_redaction(facade: Facade, lost: bool) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await streamed(converse, write_few)
    copy = await other.get_message(message.id)
    first, *rest = [each for each in message.parts if is_secret(each)]

    async def happens() -> None:
        for part in rest:
            await copy.redact_part(part, REASON)

    if lost:
        Between(converse.message_model.store(), update_one=Meanwhile(happens, lost=True))
    else:
        while_reading(converse, happens)
    await message.redact_part(first)
    assert await found(other) == []
    assert (await other.get_message(message.id)).parts == message.parts
    assert len((await raw(other, message))["redactions"]) == 1 + len(rest)


@pytest.mark.parametrize("call", ["update_one", "find_one"])
async def test_end__that_was_redacted_before_its_text_is_stored(facade: Facade, call: str) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await streamed(converse, write_few, end=False)
    copy = await other.get_message(message.id)

    async def happens() -> None:
        await copy.refresh()
        for part in [each for each in copy.parts if is_secret(each)]:
            await copy.redact_part(part)

    Between(converse.message_model.store(), **{call: Meanwhile(happens)})
    await message.complete_streaming()
    assert await found(other) == []
    assert (await raw(other, message))["content"] == "Kept"


# Redaction and sealing


async def full_page(converse: Converse) -> Message:
    """A message with secrets that has enough chunks for a page, which ``converse`` never seals."""

    async def nothing(*_: Any) -> bool:
        return False

    message = await start(converse)
    paging: Any = converse.message_model.store().paging
    paging.seal_if_possible = nothing
    await write_few(message)
    await fill(message, PAGE_CHUNKS)
    return await converse.get_message(message.id)


async def seal(converse: Converse, message: Message) -> bool:
    store = converse.message_model.store()
    return await store.paging.seal(store.queue((message.id, message.log_id)), message._own_key())


def during_seal(converse: Converse, monkeypatch: pytest.MonkeyPatch, **between: Any) -> None:
    """Puts a test between the sealing of pages and the messages."""
    monkeypatch.setattr(pages, "SEAL_SECONDS", SOON)
    paging = converse.message_model.store().paging
    durable = paging.durable

    async def hooked() -> Any:
        messages, moved = await durable()
        store: Any = SimpleNamespace(messages=messages)
        Between(store, **between)
        return store.messages, moved

    monkeypatch.setattr(paging, "durable", hooked)


async def redact_all(message: Message) -> None:
    for part in [each for each in message.parts if is_secret(each) or each.redacted]:
        await message.redact_part(part)


@pytest.mark.parametrize("crashed", [False, True], ids=["", "after-a-crash"])
async def test_seal__of_chunks_that_were_read_before_the_redaction(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, crashed: bool
) -> None:
    converse = await facade(client_options={"w": "majority"})
    other = await facade(converse.database_name, client_options={"w": "majority"})
    message = await full_page(converse)
    if crashed:  # the redaction is in the log, and its chunks are to be swept
        with monkeypatch.context() as patch:
            crash(converse, patch)
            for part in [each for each in message.parts if is_secret(each)]:
                with pytest.raises(CrashError):
                    await message.redact_part(part)
        await message.refresh()

    async def happens() -> None:
        await redact_all(message)

    during_seal(other, monkeypatch, find_one=Meanwhile(happens))
    assert not await seal(other, message)
    monkeypatch.undo()
    assert await found(other) == []
    assert await seal(other, message)
    assert await found(other) == []
    await check_sealed(other, message)


async def check_sealed(converse: Converse, message: Message) -> None:
    stored = await raw(converse, message)
    assert (stored["page_start"], len(stored["chunks"])) == (message.next_sequence, 0)
    read = await converse.get_message(message.id)
    assert read.parts == message.parts
    assert [chunk.sequence for chunk in read.chunks] == list(range(message.next_sequence))
    assert len(await pages_of(converse, message)) == 1


@pytest.mark.parametrize("then", ["sealed", "ended"])
async def test_seal__that_dies_with_a_page_of_before_the_redaction(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    converse = await facade(client_options={"w": "majority"})
    other = await facade(converse.database_name, client_options={"w": "majority"})
    message = await full_page(converse)

    async def dies(call: Any, *arguments: Any, **options: Any) -> Any:
        answer = await call(*arguments, **options)
        await redact_all(message)
        store = other.message_model.store()

        async def die(*_: Any) -> Any:
            raise CrashError

        Between(store, update_one=die)
        return answer

    during_seal(other, monkeypatch, find_one=dies)
    with pytest.raises(CrashError):
        await seal(other, message)
    monkeypatch.undo()
    assert await found(converse) == ["message_chunk_pages"]
    if then == "sealed":
        assert await seal(converse, message)
        await check_sealed(converse, message)
    else:
        await message.complete_streaming()
        assert await pages_of(converse, message) == []
    assert await found(converse) == []


async def test_sweep__of_chunks_that_are_sealed_meanwhile(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(client_options={"w": "majority"})
    other = await facade(converse.database_name, client_options={"w": "majority"})
    message = await full_page(converse)
    store = converse.message_model.store()
    sealed = []

    async def happens() -> None:
        sealed.append(await seal(other, message))

    real = store.sweeps._sweep

    async def sweep(key: Any) -> bool:
        if not sealed:
            Between(store, find_one=Meanwhile(happens))
        done: bool = await real(key)
        return done

    monkeypatch.setattr(store.sweeps, "_sweep", sweep)
    await redact_all(message)
    assert sealed == [True]
    assert await found(other) == []
    await check_sealed_then_more(other, message)


async def check_sealed_then_more(converse: Converse, message: Message) -> None:
    read = await converse.get_message(message.id)
    assert read.parts == message.parts
    assert [chunk.sequence for chunk in read.chunks] == list(range(message.next_sequence))


async def test_append__that_is_tried_again_after_a_redaction(facade: Facade) -> None:
    converse = await facade(retry_timeout=0.1)
    other = await facade(converse.database_name)
    message = await start(converse)
    contents: list[str | Part] = [PRIVATE, PRIVATE, ReasoningPart(PRIVATE)]
    appended = await message.append_chunks(contents)
    append_id = (await raw(converse, message))["chunks"][0]["append_id"]
    await redact_all(await other.get_message(message.id))
    again = await message.append_chunks(contents, append_id=append_id)
    assert [chunk.sequence for chunk in again] == [chunk.sequence for chunk in appended]
    assert await found(other) == []


@pytest.mark.skipif(driver_name() != "motor", reason="mongomock poses as Motor")
@pytest.mark.parametrize("kind", ["streaming-with-pages", "ended-with-pages", "whole"])
async def test_mock__redacts(kind: str) -> None:
    from mongomock_motor import AsyncMongoMockClient

    async with Converse(AsyncMongoMockClient(), database="mock") as converse:
        message = await KINDS[kind](converse)
        before = [chunk.to_stored() async for chunk in message.iter_chunks()]
        await redact_all(message)
        assert await found(converse) == []
        await check_readers(converse, message, before)


@pytest.mark.parametrize("state", ["streaming", "ended", "merged", "whole"])
async def test_large_values__go_with_their_part(converse: Converse, state: str) -> None:
    large, kept = [PRIVATE * 40_000], ["kept" * 80_000]
    written: list[Part] = [DataPart("w", large, id="1"), DataPart("w", [1, large], id="1")]
    written.append(DataPart("v", kept))
    if state == "whole":
        conversation = await converse.start_conversation()
        message = await conversation.create_assistant_message("Text", parts=written)
    else:
        message = await start(converse, retention="compact" if state == "merged" else "keep")
        await message.append_chunks(["Text", *written])
        if state != "streaming":
            await message.complete_streaming()
    first, last = message.parts[1:]
    await message.redact_part(first, REASON)
    assert await found(converse) == []
    assert message.parts[1].redacted == REASON
    assert await message.load_value(last.fields["data"]) == kept
    assert message.parts == (await converse.get_message(message.id)).parts
    assert "".join([text async for text in message.iter_content()]) == "Text"


async def test_large_value__of_an_append_that_is_tried_again_stays_away(facade: Facade) -> None:
    converse = await facade(retry_timeout=0.1)
    other = await facade(converse.database_name)
    message = await start(converse)
    written: list[str | Part] = [
        DataPart("w", [PRIVATE * 40_000]),
        DataPart("v", ["kept" * 80_000]),
    ]
    await message.append_chunks(written)
    append_id = (await raw(converse, message))["chunks"][0]["append_id"]
    await (await other.get_message(message.id)).redact_part(0)
    await message.append_chunks(written, append_id=append_id)
    assert await found(other) == []
    (part,) = [each for each in (await other.get_message(message.id)).parts if not each.redacted]
    assert await message.load_value(part.fields["data"]) == ["kept" * 80_000]


async def test_sweep__gives_back_the_room_of_what_is_gone(facade: Facade) -> None:
    converse = await facade()
    message = await start(converse)
    await message.append_chunks(["Kept", ReasoningPart(PRIVATE * 1000), "Kept"])
    await message.redact_part(1)
    stored = await raw(converse, message)
    sizes = [MessageChunk.from_stored(chunk).stored_size for chunk in stored["chunks"]]
    assert stored["chunk_bytes"] == sum(sizes)
    assert stored["chunk_bytes"] < len(PRIVATE) * 1000


async def test_redact__a_call_that_was_not_done_is_not_to_be_done(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer() as writer:
        call = await writer.start_tool_call("search")
        await call.set_input({})
        await writer.detach()
    await message.redact_part(0)
    assert message.unfinished_calls == []
    read = await converse.get_message(message.id)
    (part,) = read.parts
    assert isinstance(part, ToolCallPart)
    assert (read.unfinished_calls, part.state) == ([], "interrupted")
