"""The reducer of parts against its model."""

from copy import deepcopy
from typing import Any

from bson import DBRef, Decimal128

from converse_mongo.domain.part_log import PartLog

Chunk = dict[str, Any]


def chunk(sequence: int, content: str = "", **rest: Any) -> Chunk:
    return {"sequence": sequence, "content": content, **rest}


def test_log__is_left_as_it_was() -> None:
    chunks = [chunk(0, event="start", fields={"kind": "reasoning"}), chunk(1, part=0, delta="a")]
    before = deepcopy(chunks)
    first = PartLog.of(chunks).records()
    assert chunks == before
    assert PartLog.of(chunks).records() == first != []


def test_data__get_name_and_id_with_their_start_alone() -> None:
    chunks = [
        chunk(0, event="start", fields={"kind": "data"}),
        chunk(1, event="set", part=0, fields={"name": "w", "id": "1", "value": 1}),
        chunk(2, event="start", fields={"kind": "data", "name": "w", "id": "1"}),
        chunk(3, event="reset", fields={"from": 2}),
    ]
    assert PartLog.of(chunks).records() == [{"part": 0, "kind": "data", "fields": {"value": 1}}]


def test_approval__is_known_by_text_alone() -> None:
    # A signaling NaN cannot be compared; other languages compare mappings otherwise.
    for request in (Decimal128("sNaN"), {"a": 1}, 1, None):
        answers = [{"id": request, "approved": approved} for approved in (True, False)]
        chunks = [
            chunk(0, event="start", fields={"kind": "tool_call", "approval": answers[0]}),
            chunk(1, event="set", part=0, fields={"approval": answers[1]}),
        ]
        (record,) = PartLog.of(chunks).records()
        assert record["fields"]["approval"]["approved"] is True


def test_metadata__may_look_like_a_reference() -> None:
    log = PartLog.of([chunk(0, event="metadata", fields=DBRef("a", 1))])
    assert log.metadata == {"$ref": "a", "$id": 1}
