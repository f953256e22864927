"""Chunks and events: frozen, typed, and ready for JSON."""

import copy
import dataclasses
import json
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo import (
    ChunkLog,
    ChunkReceived,
    ChunksNotLoadedError,
    ConversationCreated,
    Event,
    MessageChunk,
    MessageCompleted,
    MessageCreated,
    MessageFailed,
    MessageRole,
    MessageUpdated,
)
from converse_mongo.store.handlers import Handlers

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
CHUNK = MessageChunk.from_stored(
    {"sequence": 3, "content": "ü", "created_at": NOW.replace(tzinfo=None), "metadata": {"a": 1}}
)
IDS: dict[str, Any] = {
    "conversation_id": ObjectId(),
    "message_id": ObjectId(),
    "role": MessageRole.USER,
}
ENDED: dict[str, Any] = {"chunk_count": 4, "metadata": {"at": NOW}, "completed_at": NOW}
EVENTS: list[Event] = [
    ConversationCreated(
        conversation_id=ObjectId(), title=None, owner=("user", "1"), metadata={}, created_at=NOW
    ),
    MessageCreated(
        **IDS,
        position=1,
        streaming=False,
        content="x",
        metadata={"id": ObjectId(), "raw": b"\x00"},
        created_at=NOW,
    ),
    ChunkReceived(**IDS, chunk=CHUNK, cursor="c"),
    MessageUpdated(**IDS, revision=2),
    MessageCompleted(**IDS, **ENDED),
    MessageFailed(**IDS, **ENDED, error="lost"),
]


def test_chunk__is_immutable() -> None:
    assert CHUNK.created_at == NOW
    assert CHUNK.created_at.tzinfo is UTC
    with pytest.raises(dataclasses.FrozenInstanceError):
        CHUNK.content = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        CHUNK.metadata["a"] = 2  # type: ignore[index]
    assert hash(CHUNK) == hash(copy.deepcopy(CHUNK))


def test_chunk__is_copied_and_pickled() -> None:
    for other in (copy.copy(CHUNK), copy.deepcopy(CHUNK), pickle.loads(pickle.dumps(CHUNK))):  # noqa: S301
        assert other == CHUNK
        assert dict(other.metadata) == {"a": 1}


def test_chunk__takes_no_more_than_is_counted() -> None:
    import bson

    for sequence, content in ((0, ""), (2**31, "x" * 1000), (99_999, "漢" * 10)):
        chunk = MessageChunk(sequence, content, NOW, {"k": [1, 2]})
        stored = {**chunk.to_stored(), "append_id": ObjectId()}
        in_array = len(bson.encode({"9999999": stored})) - len(bson.encode({}))
        assert in_array <= chunk.stored_size <= in_array + 60


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_event__is_frozen_and_fits_json(event: Event) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.cursor = "other"  # type: ignore[misc]
    as_dict = json.loads(json.dumps(event.to_dict()))
    assert as_dict == event.to_dict()
    assert as_dict["type"] == event.type
    assert as_dict["conversation_id"] == str(event.conversation_id)
    assert {field.name for field in dataclasses.fields(event)} == as_dict.keys() - {"type"}
    assert hash(event) == hash(copy.deepcopy(event))


def test_log__is_lazy_and_reads_like_a_list() -> None:
    log = ChunkLog([CHUNK.to_stored(), {**CHUNK.to_stored(), "sequence": 4}])
    assert len(log) == 2
    assert log[0] == CHUNK
    assert [chunk.sequence for chunk in log[0:]] == [3, 4]
    assert log == [log[0], log[1]]
    assert log != [log[1]]
    assert log.text() == "üü"
    assert CHUNK in log


def test_log__that_was_not_loaded_does_not_pretend_to_be_empty() -> None:
    log = ChunkLog.not_loaded()
    for look in (len, list, bool, ChunkLog.text):
        with pytest.raises(ChunksNotLoadedError, match="iter_chunks"):
            look(log)
    assert log == ChunkLog.not_loaded()
    assert log != ChunkLog()


async def test_handlers__that_raise_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    handlers = Handlers()
    heard: list[Event] = []

    def bad(event: Event) -> None:
        raise RuntimeError("broken handler")

    async def good(event: Event) -> None:
        heard.append(event)

    handlers.on(ChunkReceived, bad)
    off = handlers.on(Event, good)
    assert handlers.wants(ChunkReceived)
    for event in EVENTS:
        await handlers.publish(event)
    assert heard == EVENTS
    assert "broken handler" in caplog.text
    off()
    off()
    assert not handlers.wants(MessageUpdated)
