"""Watching parts: snapshots in place of chunks, and filters of kinds."""

from typing import Any

import pytest

from converse_mongo import (
    ChunkReceived,
    Converse,
    InvalidInputError,
    Message,
    MessageSnapshot,
    PartLog,
    Watcher,
)
from converse_mongo.domain.part_log import Record
from tests.integration.helpers import start
from tests.integration.test_parts import write_all
from tests.model.part_logs import as_json

KINDS = [{"text"}, {"tool"}, {"reasoning", "data"}, {"source", "text"}, {"step"}, set[str]()]


async def answer(converse: Converse, *, ended: bool = True) -> Message:
    """A message with parts of each kind, one that a reset voids, and a chunk for each piece."""
    message = await start(converse)
    async with message.writer(granularity="token", flush_interval=0.001) as writer:
        await write_all(writer)
        if not ended:
            await writer.detach()
    return message


async def records(watcher: Watcher[Any]) -> list[Record]:
    """The parts that a watcher tells of, up to the end."""
    log = PartLog()
    async for event in watcher:
        match event:
            case MessageSnapshot():
                log = event.log()
            case ChunkReceived():
                log.add(event.chunk)
    return log.records()


async def chunks_of(message: Message) -> list[Any]:
    return [chunk.to_stored() async for chunk in message.iter_chunks()]


async def test_snapshot__has_the_parts_so_far_and_the_rest_follows(converse: Converse) -> None:
    whole = await chunks_of(await answer(converse))
    message = await start(converse)
    for count, chunk in enumerate(whole):
        expected = PartLog.of(whole[:count])
        async with converse.watch_message(message.id, snapshot=True) as events:
            event = await anext(events)
            assert isinstance(event, MessageSnapshot)
            assert as_json(event.log().snapshot()) == as_json(expected.snapshot())
            assert (event.chunk_count, event.content) == (count, expected.text())
            await push(message, chunk)
            following = await anext(events)
            assert isinstance(following, ChunkReceived)
            assert following.chunk.sequence == count
    await message.complete_streaming()
    last, end = [each async for each in converse.watch_message(message.id, snapshot=True)]
    assert isinstance(last, MessageSnapshot)
    assert last.parts == message.parts == (await converse.get_message(message.id)).parts
    assert end.type == "message.completed"
    assert last.to_dict()["parts"] == [part.to_dict() for part in message.parts]


async def push(message: Message, chunk: dict[str, Any]) -> None:
    """Appends one chunk as another message has it."""
    store, key = message.store(), message._own_key()
    await store.messages.update_one(
        key,
        {
            "$push": {"chunks": chunk},
            "$inc": {"next_sequence": 1, "content_bytes": len(chunk["content"].encode())},
            "$set": {"format": 2},
        },
    )
    await message.refresh()


async def test_kinds__reduce_to_the_same_parts(converse: Converse) -> None:
    message = await answer(converse)
    chunks = await chunks_of(message)
    for kinds in KINDS:
        await check_kinds(converse, message, chunks, kinds)


async def check_kinds(
    converse: Converse, message: Message, chunks: list[Any], kinds: set[str]
) -> None:
    wanted = {"tool": {"tool_call"}, "source": {"source_url", "source_document"}}
    names = {name for kind in kinds for name in wanted.get(kind, {kind})}
    expected = [each for each in PartLog.of(chunks).records() if each["kind"] in names]
    found = await records(converse.watch_message(message.id, kinds=kinds))
    assert as_json([each for each in found if each["kind"] in names]) == as_json(expected)
    others = [each for each in found if each["kind"] not in names]
    assert not any(each["fields"] or each.get("text") for each in others)
    for count in range(0, len(chunks), 3):
        behind = PartLog.of(chunks[:count])
        async for event in converse.watch_message(message.id, count - 1, kinds=kinds):
            if isinstance(event, ChunkReceived):
                behind.add(event.chunk)
        found = [each for each in behind.records() if each["kind"] in names]
        assert as_json(found) == as_json(expected)


async def test_kinds__of_a_snapshot(converse: Converse) -> None:
    message = await answer(converse)
    found = await records(converse.watch_message(message.id, kinds={"text"}, snapshot=True))
    expected = [part.to_record() for part in message.parts if part.kind == "text"]
    assert as_json([each for each in found if each["kind"] == "text"]) == as_json(
        [{**each, "closed": True} for each in expected]
    )
    assert not any(each["fields"] for each in found if each["kind"] != "text")


async def test_kinds__of_a_snapshot_without_text(converse: Converse) -> None:
    message = await answer(converse)
    for kinds, content in (({"data"}, ""), ({"data", "text"}, message.content)):
        events = converse.watch_message(message.id, kinds=kinds, snapshot=True)
        first = await anext(events)
        assert isinstance(first, MessageSnapshot)
        assert first.content == content
        await events.aclose()


async def test_kinds__cancelled_while_it_looks_one_up__yield_the_chunk_later(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = await answer(converse)
    chunks = await chunks_of(message)
    at = next(each["sequence"] for each in chunks if each.get("delta") == "wants …")
    watcher = converse.watch_message(message.id, at - 1, kinds={"reasoning"})
    topic = type((await watcher.__aenter__())._topic)

    async def broken(*_: object) -> None:
        raise RuntimeError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(topic, "identity", broken)
        with pytest.raises(RuntimeError, match="not now"):
            await anext(watcher)
    event = await anext(watcher)
    assert isinstance(event, ChunkReceived)
    assert event.chunk.sequence == at
    await watcher.aclose()


@pytest.mark.parametrize("kinds", ["text", 5, {5}, [None]], ids=repr)
async def test_kinds__that_are_none__are_refused(converse: Converse, kinds: Any) -> None:
    message = await start(converse)
    with pytest.raises(InvalidInputError, match="kinds must be"):
        converse.watch_message(message.id, kinds=kinds)


async def test_snapshot__behind_a_sequence__is_refused(converse: Converse) -> None:
    message = await start(converse)
    with pytest.raises(InvalidInputError, match="snapshot=True"):
        converse.watch_message(message.id, 3, snapshot=True)  # type: ignore[call-overload]
