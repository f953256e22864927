"""Swept logs: they say the same, behind any cursor, and nothing of what was redacted."""

from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import given, settings
from hypothesis import strategies as st

from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.part_redaction import redaction, reduced, swept
from tests.model.part_logs import logs, said
from tests.unit.test_part_log import ODD, decoded

AT = datetime(2026, 1, 1, tzinfo=UTC)

Chunk = dict[str, Any]


def told(log: PartLog) -> str:
    return said([log.snapshot(), log.text()])


def behind(seen: list[Chunk], log: list[Chunk]) -> PartLog:
    """The state of a viewer who has seen some chunks, and gets the rest of a log."""
    state = PartLog.of(seen)
    for chunk in log[len(seen) :]:
        state.add(chunk)
    return state


@settings(deadline=None)
@given(logs(ODD), st.sets(st.integers(0, 20), max_size=5), st.integers(0, 40))
def test_sweep__says_the_same_behind_any_cursor(
    chunks: list[Chunk], redacted: set[int], seen: int
) -> None:
    chunks = [decoded(each) for each in chunks]
    redactions = [redaction(part, "r") for part in sorted(redacted)]
    ended, clean = reduced(chunks, redactions), swept(chunks, redacted)
    for cursor in {0, min(seen, len(chunks))}:
        assert told(reduced(chunks[:cursor] + clean[cursor:], redactions)) == told(ended)
    for part in redacted:
        event = {"event": "redact", "part": part, "fields": {"reason": "r"}}
        chunks.append({"sequence": len(chunks), "content": "", **event})
    clean = swept(chunks, redacted)
    for cursor in {0, min(seen, len(chunks))}:
        assert told(behind(chunks[:cursor], clean)) == told(PartLog.of(chunks))
    check_content(chunks, clean, redacted)


def check_content(chunks: list[Chunk], clean: list[Chunk], redacted: set[int]) -> None:
    """Checks that only chunks of these parts changed, and that nothing of them is left."""
    log = PartLog()
    for before, after in zip(chunks, clean, strict=True):
        number, event = log.add(before), before.get("event")
        if event == "redact" or number not in redacted:
            assert after is before or (number is None and before["part"] in [*redacted])
            continue
        assert after.keys().isdisjoint({"delta", "metadata", "values"})
        assert after["content"] == ""
        assert after.get("fields", {}).keys() <= {"kind", "name", "id"}


def start(kind: str, **fields: Any) -> Chunk:
    return {"content": "", "event": "start", "fields": {"kind": kind, **fields}}


def test_sweep__keeps_the_place_of_each_chunk() -> None:
    chunks: list[Chunk] = [
        {"content": "a", "metadata": {"n": 1}, "append_id": ObjectId()},
        {"content": "", "part": 0, "delta": "void"},
        start("step") | {"parent": 9},
        {"content": "b"},
        start("tool_call", name="t"),
        {"content": "", "part": 4, "delta": "c"},
        {"content": "", "part": 4, "event": "set", "fields": {"input": 1}},
        start("text") | {"parent": 4},
        start("data", name="w", id="1", data=2),
    ]
    chunks = [{"sequence": at, "created_at": AT, **each} for at, each in enumerate(chunks)]
    clean = swept(chunks, [0, 4, 8])
    assert [each["sequence"] for each in clean] == list(range(9))
    assert all(each.pop("created_at") == AT for each in clean)
    assert clean[0] == {"sequence": 0, **start("text"), "append_id": chunks[0]["append_id"]}
    assert clean[1] == {"sequence": 1, "content": "", "part": 0}
    assert clean[3] == {"sequence": 3, "content": ""}
    assert clean[4] == {"sequence": 4, **start("tool_call", name="t")}
    assert clean[5] == {"sequence": 5, "content": "", "part": 4}
    assert clean[6] == {"sequence": 6, "content": "", "part": 4, "event": "set"}
    assert clean[7] is chunks[7]
    assert clean[8] == {"sequence": 8, **start("data", name="w", id="1")}
    assert swept(clean, [0, 4, 8]) == clean


@pytest.mark.parametrize("event", ["start", "reset", "metadata"])
def test_sweep__leaves_events_that_name_a_part_and_are_none_of_it(event: str) -> None:
    fields = {"kind": "step", "from": 0, "model": "m"}
    chunks = [
        {"sequence": 0, "content": "a"},
        {"sequence": 1, "content": "", "event": event, "part": 0, "fields": fields},
    ]
    assert swept(chunks, [0])[1] is chunks[1]
