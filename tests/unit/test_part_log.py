"""The reducer: logs in JSON, which the client in JavaScript reduces as well, and logs in BSON."""

import copy
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from uuid import UUID

import bson
import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.binary import UuidRepresentation
from hypothesis import given
from hypothesis import strategies as st

from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.metadata import restored, storable
from converse_mongo.domain.part_log import PartLog
from tests.model.part_logs import VECTORS, as_json, logs, said, stored


def resumed(log: PartLog, chunks: list[dict[str, Any]]) -> PartLog:
    """The state behind a snapshot in JSON and the rest of the chunks."""
    again = PartLog.from_snapshot(json.loads(json.dumps(log.snapshot())))
    for chunk in chunks:
        again.add(chunk)
    return again


@pytest.mark.parametrize("vector", [pytest.param(each, id=each["name"]) for each in VECTORS])
def test_add__as_in_the_vector(vector: dict[str, Any]) -> None:
    chunks = stored(vector["chunks"])
    untouched = copy.deepcopy(chunks)
    log = PartLog()
    states = [resumed(log, chunks)]
    numbers = []
    for chunk in chunks:
        numbers.append(log.add(chunk))
        states.append(resumed(log, chunks[len(numbers) :]))
    assert numbers == vector["numbers"]
    for state in (log, *states):
        # In JSON, where true is not 1.
        assert as_json(state.records()) == as_json(vector["records"])
        assert state.text() == vector["text"]
        assert state.open == vector.get("open")
        assert state.metadata == vector.get("metadata", {})
        assert state.next_sequence == len(chunks)
    assert as_json(chunks) == as_json(untouched)


def decoded(chunk: Mapping[str, Any]) -> dict[str, Any]:
    """The chunk as MongoDB returns it."""
    found: dict[str, Any] = bson.decode(bson.encode(chunk))
    return found


def test_add__values_of_bson() -> None:
    values = {
        "amount": Decimal("1.50"),
        "uuid": UUID(int=1),
        "at": datetime(2026, 1, 2, tzinfo=UTC),
        "bytes": b"\0",
        "id": ObjectId("0123456789abcdef01234567"),
        "many": [Decimal("NaN"), {"uuid": UUID(int=2)}],
        "nothing": None,
    }
    start = {"event": "start", "fields": storable({"kind": "custom", **values})}
    change = {"event": "set", "part": Int64(0), "fields": storable({"more": values})}
    metadata = {"event": "metadata", "fields": storable(values)}
    log = PartLog.of(decoded(each) for each in stored([start, change, metadata]))
    (record,) = log.records()
    assert repr(record["fields"]) == repr({**values, "more": values})
    assert repr(log.metadata) == repr(values)
    snapshot = log.snapshot()
    again = PartLog.from_snapshot(restored(decoded(storable(snapshot)))).snapshot()
    assert repr(again) == repr(snapshot)


def test_add__fields_that_bson_reads_as_a_reference() -> None:
    reference = {"$ref": "things", "$id": 1, "kind": "custom"}
    start = {"event": "start", "fields": reference}
    metadata = {"event": "metadata", "fields": {**reference, "approval": reference}}
    log = PartLog.of(decoded(each) for each in stored([start, metadata]))
    assert log.records() == [{"part": 0, "kind": "custom", "fields": {"$ref": "things", "$id": 1}}]
    assert log.metadata == metadata["fields"]


def test_add__keeps_the_chunk_and_its_fields() -> None:
    fields = MappingProxyType({"kind": "data", "name": "w", "id": "w1", "value": 1})
    chunks = stored([{"event": "start", "fields": fields}, {"event": "metadata", "fields": fields}])
    log = PartLog.of(chunks)
    chunks[0]["fields"] = dict(fields)
    again = PartLog.of(chunks)
    again.add({"sequence": 2, "event": "set", "part": 0, "fields": {"value": 2}})
    assert chunks[0]["fields"] == fields
    assert PartLog.of(chunks).snapshot() == log.snapshot() != again.snapshot()


def test_add__values_that_cannot_be_compared() -> None:
    code, nan = Code("w"), Decimal128("sNaN")
    approval = {"approval": {"id": nan, "approved": True}}
    events = [
        {"event": "start", "fields": {"kind": Code("data")}},
        *[{"event": "start", "fields": {"kind": "data", "name": code, "id": code}}] * 2,
        {"event": "start", "fields": {"kind": "tool_call", **approval}},
        {"event": "set", "part": 3, "fields": approval},
        {"part": 3, "delta": code},
        {"event": Code("end"), "part": 3},
    ]
    log = PartLog()
    numbers = [log.add(decoded(chunk)) for chunk in stored(events)]
    assert numbers == [None, 1, 2, 3, 3, 3, None]
    assert log.records()[-1].keys() == {"part", "kind", "fields", "text"}
    assert log.records()[-1]["text"] == ""


ODD = [
    *(Code("text"), Code("start"), Code("w", {}), Regex("x"), MinKey(), MaxKey(), Timestamp(1, 1)),
    *(ObjectId("0123456789abcdef01234567"), b"w", Binary(b"x", 9), Int64(0), Int64(1), 2**62),
    *(Decimal128("1"), Decimal128("sNaN"), float("nan"), float("inf"), {"id": Decimal128("sNaN")}),
    *(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)),
    Binary.from_uuid(UUID(int=1), UuidRepresentation.STANDARD),
    {"$ref": "x", "$id": 1, "id": "w", "approved": True},
    {"kind": Code("data"), "name": Code("w"), "id": Code("w")},
    {"kind": "data", "name": Code("w"), "id": Code("w")},
]


@given(logs(ODD), st.integers(0, 14))
def test_add__is_total(chunks: list[dict[str, Any]], middle: int) -> None:
    chunks = [decoded(each) for each in chunks]
    log = PartLog.of(chunks[:middle])
    again = PartLog.from_snapshot(log.snapshot())
    for chunk in chunks[middle:]:
        number = log.add(chunk)
        assert again.add(chunk) == number
        assert number is None or log.kind_of(number) is not None
    assert said(again.snapshot()) == said(log.snapshot())
    bson.encode(storable(log.snapshot()))
    assert isinstance(log.text(), str)


def test_chunk__of_a_part_has_no_content_for_readers_of_text() -> None:
    now = datetime.now(UTC)
    odd = {"sequence": 0, "content": "z", "created_at": now, "event": "set", "part": 0}
    assert MessageChunk.from_stored(odd).content == ""
    text = {"sequence": 0, "content": "z", "created_at": now, "event": None, "part": None}
    assert MessageChunk.from_stored(text) == MessageChunk(0, "z", now)
