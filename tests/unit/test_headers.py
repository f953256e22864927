"""Headers and summaries: what is read of a document, and the events that follow from it."""

from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo import (
    ConversationCreated,
    ConversationUpdated,
    Event,
    MessageCancelled,
    MessageChunk,
    MessageCompleted,
    MessageCreated,
    MessageFailed,
    MessageRole,
)
from converse_mongo.domain.headers import HEADER, MessageHeader, MessageRow, pages_of
from converse_mongo.domain.lengths import encode_lengths, expand
from converse_mongo.domain.owners import owner_key
from converse_mongo.domain.summaries import (
    MARKERS,
    NEVER,
    SUMMARY,
    ChangeMarkers,
    ConversationSummary,
)
from converse_mongo.driver.retry import backoff, random_pause

AT = datetime(2026, 1, 1, tzinfo=UTC)
LATER = datetime(2026, 1, 2, tzinfo=UTC)
LEAST: dict[str, Any] = {
    "_id": ObjectId(),
    "conversation_id": ObjectId(),
    "position": 4,
    "role": "assistant",
    "status": "completed",
    "created_at": AT.replace(tzinfo=None),
}
ENDED: dict[str, Any] = {
    **LEAST,
    "log_id": ObjectId(),
    "end_id": ObjectId(),
    "next_sequence": 3,
    "page_start": 2,
    "content_bytes": 9,
    "metadata": {"a": 1},
    "error": "lost",
    "lease": {"epoch": 2},
    "stop_requested_at": AT,
    "stop_reason": "enough",
    "retention": 0.0,
    "completed_at": LATER.replace(tzinfo=None),
    "compacted": True,
    "format": 2,
    "part_bytes": 300,
    "redactions": [{"part": 1}],
    "sweeps": 2,
    "work": {"queue": "q", "crashes": 1},
    "content": "abc",
}
IDS: dict[str, Any] = {
    "conversation_id": LEAST["conversation_id"],
    "message_id": LEAST["_id"],
    "role": MessageRole.ASSISTANT,
}


def test_header__is_read_with_its_projection() -> None:
    header = MessageHeader.from_stored(ENDED)
    projected = {name: ENDED[name] for name in ("_id", *HEADER)}
    assert projected == {name: value for name, value in ENDED.items() if name != "content"}
    assert MessageHeader.from_stored(projected) == header
    assert (header.next_sequence, header.page_start, header.content_bytes) == (3, 2, 9)
    assert (header.stop_requested, header.stop_reason, header.error) == (True, "enough", "lost")
    assert (header.format, header.part_bytes, header.has_parts) == (2, 300, True)
    assert header.work is not None
    assert (header.work.queue, header.work.attempt, header.work.state) == ("q", 2, None)
    assert (header.retention, header.compacted, header.end_id) == (0.0, True, ENDED["end_id"])
    assert (header.created_at, header.completed_at, header.lease.epoch) == (AT, LATER, 2)


@pytest.mark.parametrize(
    ("found", "has_parts"),
    [
        ({}, False),
        ({"format": 2}, True),
        ({"format": 3}, False),
        ({"format": 3, "part_bytes": 1}, True),
        ({"format": 3, "redactions": [{"part": 0}]}, True),
        ({"format": 4}, True),
    ],
)
def test_header__of_a_queued_message_has_parts_if_there_are_some(
    found: dict[str, Any], has_parts: bool
) -> None:
    assert MessageHeader.from_stored({**LEAST, **found}).has_parts is has_parts


def test_header__of_a_document_with_the_least() -> None:
    header = MessageHeader.from_stored(LEAST)
    assert (header.next_sequence, header.page_start, header.content_bytes) == (0, 0, 0)
    assert (header.metadata, header.compacted, header.stop_requested) == ({}, False, False)
    assert (header.log_id, header.completed_at, header.retention) == (None, None, None)
    assert pages_of(header.key) == {
        "conversation_id": LEAST["conversation_id"],
        "message_id": LEAST["_id"],
        "log_id": None,
    }


ENDS: dict[str, Any] = {**IDS, "chunk_count": 3, "metadata": {"a": 1, "chunks": 3}}


@pytest.mark.parametrize(
    ("stored", "event"),
    [
        (ENDED, MessageCompleted(**ENDS, completed_at=LATER)),
        ({**ENDED, "status": "failed"}, MessageFailed(**ENDS, completed_at=LATER, error="lost")),
        (
            {**ENDED, "status": "cancelled"},
            MessageCancelled(**ENDS, completed_at=LATER, reason="enough"),
        ),
        (LEAST, MessageCompleted(**IDS, chunk_count=0, metadata={}, completed_at=AT)),
    ],
)
def test_header__makes_the_final_event(stored: dict[str, Any], event: Event) -> None:
    assert MessageHeader.from_stored(stored).ended() == event


def test_header__makes_the_event_of_a_chunk() -> None:
    chunk = MessageChunk(0, "a", AT)
    event = MessageHeader.from_stored(LEAST).chunk_received(chunk, "c")
    assert (event.chunk, event.cursor, event.role) == (chunk, "c", MessageRole.ASSISTANT)
    assert (event.message_id, event.conversation_id) == (LEAST["_id"], LEAST["conversation_id"])


@pytest.mark.parametrize(
    ("stored", "streaming", "content"),
    [
        ({**LEAST, "content": "whole"}, False, "whole"),
        ({**LEAST, "status": "streaming", "content": ""}, True, ""),
        (ENDED, True, ""),
    ],
)
def test_row__makes_the_event_of_a_creation(
    stored: dict[str, Any], streaming: bool, content: str
) -> None:
    assert MessageRow.from_stored(stored).created("c") == MessageCreated(
        **IDS,
        position=4,
        streaming=streaming,
        content=content,
        metadata=stored.get("metadata", {}),
        created_at=AT,
        cursor="c",
    )


CONVERSATION: dict[str, Any] = {
    "_id": ObjectId(),
    "title": "Files",
    "owner": {"type": "user", "id": "1"},
    "metadata": {"a": 1},
    "created_at": AT,
    "updated_at": LATER,
    "next_position": 3,
    "revision": 2,
}


def test_summary__is_read_with_its_projection() -> None:
    assert SUMMARY.keys() == CONVERSATION.keys() - {"_id"}
    assert MARKERS.keys() == {"owner", "next_position", "revision", "created_at", "updated_at"}
    assert ChangeMarkers.from_stored(CONVERSATION) == ChangeMarkers(3, 2, AT, LATER)
    assert ChangeMarkers.from_stored({"updated_at": "no date"}) == ChangeMarkers(0, 0, NEVER, NEVER)


def test_summary__makes_its_events() -> None:
    summary = ConversationSummary.from_stored(CONVERSATION)
    known: dict[str, Any] = {
        "conversation_id": CONVERSATION["_id"],
        "title": "Files",
        "owner": ("user", "1"),
        "metadata": {"a": 1},
    }
    assert summary.created() == ConversationCreated(**known, created_at=AT)
    assert summary.updated() == ConversationUpdated(**known, revision=2)


@pytest.mark.parametrize("owner", [None, "user", {}, {"type": "user"}, {"type": "user", "id": 1}])
def test_owner__of_another_application_is_none(owner: object) -> None:
    assert owner_key({"owner": owner}) is None


def test_lengths__give_back_the_chunks() -> None:
    contents = ["a", "", "ü" * 127, "x" * 128, "y" * 20_000, "🙂"]
    stored = {
        "content": "".join(contents),
        "chunk_lengths": encode_lengths(contents),
        "completed_at": AT,
    }
    assert [(each["sequence"], each["content"]) for each in expand(stored)] == list(
        enumerate(contents)
    )
    assert [each["content"] for each in expand(stored, 2, 2)] == contents[2:4]
    assert expand(stored, 5)[0] == {"sequence": 5, "content": "🙂", "created_at": AT}
    assert expand(stored, 6) == []


def test_backoff__doubles_to_its_bound() -> None:
    assert [backoff(attempt, 0.5, 3.0) for attempt in range(4)] == [0.5, 1.0, 2.0, 3.0]
    assert backoff(10_000, 0.5, 3.0) == 3.0
    assert all(0 <= random_pause(1, 0.5, 3.0) <= 1.0 for _ in range(100))
