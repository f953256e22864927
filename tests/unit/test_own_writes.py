"""Own writes: a copy of a message follows what is written through it, and nothing else."""

from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo.documents import own_writes
from converse_mongo.documents.own_writes import OwnWrites
from converse_mongo.documents.tracking import ChangeTracker
from converse_mongo.domain.chunks import ChunkLog, MessageChunk
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.types import MessageStatus
from converse_mongo.store import EndedMessage

AT = datetime(2026, 1, 1, tzinfo=UTC)


def chunks(first: int, *contents: str) -> list[MessageChunk]:
    return [MessageChunk(first + place, text, AT) for place, text in enumerate(contents)]


class Copy:
    """The fields of a message that streams, with what follows them."""

    def __init__(self, *contents: str) -> None:
        self.writes = OwnWrites()
        self.tracker = ChangeTracker()
        self.fields: dict[str, Any] = {
            "status": MessageStatus.STREAMING,
            "content": "".join(contents),
            "chunks": ChunkLog([chunk.to_stored() for chunk in chunks(0, *contents)]),
            "next_sequence": len(contents),
            "chunk_bytes": 0,
            "part_bytes": 0,
            "format": None,
            "redactions": None,
            "content_bytes": len("".join(contents)),
        }
        self.tracker.remember({name: self.fields[name] for name in self.fields if name != "chunks"})

    def append(self, first: int, *contents: str) -> None:
        self.writes.append(self.fields, self.tracker, chunks(first, *contents))

    def write(self, first: int, *contents: str) -> None:
        self.writes.write(self.fields, self.tracker, chunks(first, *contents))

    def end(self, content: str | None, count: int, stored: list[Any] | None = None) -> None:
        header = MessageHeader.from_stored(
            {
                "_id": ObjectId(),
                "conversation_id": ObjectId(),
                "position": 0,
                "role": "assistant",
                "status": "failed",
                "next_sequence": count,
                "content_bytes": 7,
                "metadata": {"a": 1},
                "error": "late",
                "created_at": AT,
                "completed_at": AT,
            }
        )
        self.writes.end(self.fields, EndedMessage(header, content, stored))

    @property
    def known(self) -> tuple[int, str] | None:
        found = self.writes.known(self.fields)
        return None if found is None else (found.chunk_count, found.text)

    @property
    def unsaved(self) -> list[str]:
        fields = {name: value for name, value in self.fields.items() if name != "chunks"}
        return self.tracker.changed(fields)


def test_append__grows_the_copy_and_leaves_nothing_to_save() -> None:
    copied = Copy("a")
    copied.append(1, "b", "ü")
    assert copied.known == (3, "abü")
    assert [chunk.content for chunk in copied.fields["chunks"]] == ["a", "b", "ü"]
    assert copied.fields["content_bytes"] == 4
    assert copied.fields["chunk_bytes"] > 0
    assert copied.unsaved == []


def test_append__behind_chunks_of_others_is_not_followed() -> None:
    copied = Copy("a")
    copied.append(2, "c")
    assert copied.known == (1, "a")


@pytest.mark.parametrize(
    "change", [{"status": MessageStatus.COMPLETED}, {"chunks": ChunkLog.not_loaded()}]
)
def test_append__to_a_copy_that_has_ended_or_has_no_chunks_is_not_followed(
    change: dict[str, Any],
) -> None:
    copied = Copy("a")
    copied.fields |= change
    copied.append(1, "b")
    assert (copied.fields["next_sequence"], copied.fields["content"]) == (1, "a")


def test_append__in_a_transaction_is_not_known_to_be_stored() -> None:
    copied = Copy("a")
    copied.writes.unconfirmed = True
    copied.append(1, "b")
    assert copied.fields["content"] == "ab"
    assert copied.known is None


def test_write__keeps_a_page_of_chunks_and_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_writes, "PAGE_CHUNKS", 2)
    copied = Copy("a")
    copied.write(1, "b")
    assert [chunk.content for chunk in copied.fields["chunks"]] == ["a", "b"]
    copied.write(2, "c")
    assert not copied.fields["chunks"].is_loaded
    copied.write(3, "d")
    assert copied.known == (4, "abcd")
    assert copied.unsaved == []


def test_write__keeps_no_text_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_writes, "MAX_CONTENT_BYTES", 2)
    copied = Copy("a")
    copied.write(1, "b")
    assert copied.fields["content"] == "ab"
    copied.write(2, "c")
    assert copied.fields["content"] == ""
    assert copied.fields["content_bytes"] == 3


def test_write__behind_chunks_of_others_is_not_followed() -> None:
    copied = Copy("a")
    copied.write(2, "c")
    assert copied.known == (1, "a")


def test_write__to_a_copy_without_chunks_is_not_followed() -> None:
    copied = Copy()
    copied.fields["chunks"] = ChunkLog.not_loaded()
    copied.write(0, "a")
    assert copied.known is None
    assert copied.fields["next_sequence"] == 0


def test_end__takes_the_state_and_keeps_the_chunks_that_are_all() -> None:
    copied = Copy("a", "b")
    copied.end("ab", 2)
    assert copied.fields["status"] is MessageStatus.FAILED
    assert (copied.fields["error"], copied.fields["metadata"]) == ("late", {"a": 1})
    assert copied.fields["completed_at"] == AT
    assert copied.known == (2, "ab")


def test_end__takes_the_chunks_that_were_read() -> None:
    copied = Copy("a")
    copied.end("abc", 2, [chunk.to_stored() for chunk in chunks(0, "a", "bc")])
    assert [chunk.content for chunk in copied.fields["chunks"]] == ["a", "bc"]
    assert copied.known == (2, "abc")


@pytest.mark.parametrize(("content", "left"), [("abc", "abc"), (None, "")])
def test_end__drops_chunks_that_are_not_all(content: str | None, left: str) -> None:
    copied = Copy("a")
    copied.end(content, 2)
    assert not copied.fields["chunks"].is_loaded
    assert copied.fields["content"] == left
