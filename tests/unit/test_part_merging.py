"""Merged events of parts: what they store, and that they expand to chunks that say the same."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import bson
import pytest
from bson import ObjectId

from converse_mongo.domain.lengths import encode_lengths, encode_metadata, expand
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.part_merging import Merged, expand_events, merge
from converse_mongo.domain.part_redaction import swept

AT = datetime(2026, 1, 1, tzinfo=UTC)

Chunk = dict[str, Any]


def log(*said: str | dict[str, Any]) -> list[Chunk]:
    chunks = (
        {"content": each} if isinstance(each, str) else {"content": "", **each} for each in said
    )
    return [
        {"sequence": at, "created_at": AT, "append_id": ObjectId(), **each}
        for at, each in enumerate(chunks)
    ]


def start(kind: str, **fields: Any) -> dict[str, Any]:
    return {"event": "start", "fields": {"kind": kind, **fields}}


def event(name: str, part: int, **fields: Any) -> dict[str, Any]:
    return {"event": name, "part": part, "fields": fields}


def delta(part: int, text: str) -> dict[str, Any]:
    return {"part": part, "delta": text}


def stored(merged: Merged, chunks: list[Chunk]) -> dict[str, Any]:
    """The document of the merge, as a driver reads it."""
    document = {
        "content": merged.content,
        "chunk_lengths": merged.lengths,
        "chunk_metadata": encode_metadata(chunks),
        "chunk_events": merged.events,
        "completed_at": AT,
    }
    return bson.decode(bson.encode(document))


def records(chunks: list[Chunk]) -> list[dict[str, Any]]:
    return PartLog.of(chunks).records()


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "", "é𝄞", "b"]], ids=len)
def test_text__is_merged_as_ever(texts: list[str]) -> None:
    chunks = log(*texts)
    merged = merge(chunks)
    assert tuple(merged) == ("".join(texts), encode_lengths(texts), [])
    document = stored(merged, chunks)
    assert expand_events(document, 1, 2) == expand(document, 1, 2)


def test_text__of_an_event_is_not_the_answer() -> None:
    merged = merge(log("a", {"content": "x", **start("step")}, {"content": "y", **delta(1, "z")}))
    assert (merged.content, merged.lengths) == ("a", b"\1\0\0")


def test_deltas__of_a_part_in_a_row_are_one_event() -> None:
    call = start("tool_call")
    chunks = log(
        call, call, delta(0, "é"), delta(0, ""), delta(0, "bc"), delta(1, "d"), delta(0, "e")
    )
    merged = merge(chunks)
    assert merged.events == [
        {"sequence": 0, **call, "count": 2},
        {"sequence": 2, "part": 0, "delta": "ébc", "lengths": b"\1\0\2"},
        {"sequence": 5, "part": 1, "delta": "d"},
        {"sequence": 6, "part": 0, "delta": "e"},
    ]
    expanded = expand_events(stored(merged, chunks))
    assert [each.get("delta") for each in expanded] == [None, None, "é", "", "bc", "d", "e"]


def test_expand__begins_and_ends_anywhere() -> None:
    chunks = log(
        "a", start("reasoning"), *(delta(1, each) for each in "bcd"), "e", start("step"), "f"
    )
    document = stored(merge(chunks), chunks)
    kept = ("sequence", "content", "event", "part", "fields", "delta")
    wanted = [{name: each[name] for name in kept if name in each} for each in chunks]
    for first in range(len(chunks) + 2):
        for limit in (None, 0, 1, 3):
            found = expand_events(document, first, limit)
            assert all(each.pop("created_at") for each in found)
            assert found == wanted[first : None if limit is None else first + limit]


def test_metadata__of_chunks_stay() -> None:
    chunks = log(
        {**start("step"), "metadata": {"a": 1}}, "a", {**event("end", 0), "metadata": {"a": 1}}
    )
    expanded = expand_events(stored(merge(chunks), chunks))
    assert [each.get("metadata") for each in expanded] == [{"a": 1}, None, {"a": 1}]


def test_values__that_were_replaced_go() -> None:
    data = [start("data", name="w", id="1", value=each) for each in range(1000)]
    merged = merge(log(*data))
    assert merged.events == [
        {"sequence": 0, **start("data", name="w", id="1"), "count": 999},
        {"sequence": 999, **data[-1]},
    ]


def test_outcomes__leave_the_last_one() -> None:
    chunks = log(
        start("tool_call", output=0, preliminary=True),
        *(event("set", 0, output=each, preliminary=True) for each in (1, 2)),
        event("set", 0, output=3, title="t"),
        event("set", 0, output=4, preliminary=True),
    )
    assert [each.get("fields") for each in merge(chunks).events] == [
        *({"kind": "tool_call"}, None, {"output": 3, "title": "t"}, None)
    ]


def test_void_part__leaves_no_content() -> None:
    chunks = log(
        *("a", start("tool_call", name="secret"), delta(1, "secret"), "secret"),
        *(event("set", 1, output="secret"), event("redact", 1, reason="secret")),
        *({"event": "reset", "fields": {"from": 1}}, delta(1, "secret"), "b"),
    )
    merged = merge(chunks)
    assert (merged.content, merged.lengths) == ("ab", b"\1\0\0\0\0\0\0\0\1")
    assert "secret" not in repr(merged)
    assert [each.get("event") for each in merged.events] == [
        *("start", None, "set", "redact", "reset", None)
    ]


@pytest.mark.parametrize("in_log", [True, False], ids=["in-the-log", "after-the-end"])
def test_redacted_parts__leave_no_content(in_log: bool) -> None:
    ends = [event("redact", part, reason="r") for part in (0, 2, 4)] if in_log else []
    chunks = log(
        *("secret", "secret", start("reasoning"), delta(2, "secret")),
        *(start("data", name="w", id="1", value="secret"), "b"),
        *(start("data", name="w", id="1", value="secret"), *ends),
    )
    merged = merge(chunks if in_log else swept(chunks, (0, 2, 4)))
    assert merged.content == "b"
    assert "secret" not in repr(merged)
    assert merged.events[0] == {"sequence": 0, **start("text")}
    found = records(expand_events(stored(merged, chunks)))
    assert [record["part"] for record in found] == [0, 2, 4, 5]
    if in_log:
        assert found == records(chunks)


def test_values__are_stored_whatever_the_client_makes_of_them() -> None:
    chunks = log(
        start("data", value=UUID(int=7)), {"event": "metadata", "fields": {"a": UUID(int=8)}}
    )
    expanded = PartLog.of(expand_events(stored(merge(chunks), chunks)))
    assert expanded.records() == records(chunks)
    assert expanded.metadata == {"a": UUID(int=8)}
