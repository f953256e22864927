"""Merged chunks: they expand to what was merged, from any sequence on."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import bson
import pytest
from bson import ObjectId

from converse_mongo.domain.chunks import MessageChunk, text_of
from converse_mongo.domain.lengths import encode_lengths, encode_metadata, expand

AT = datetime(2026, 1, 1, tzinfo=UTC)
THINKS, SPEAKS = {"kind": "reasoning", "of": [1, {"$ref": "a", "$id": 1}]}, {"kind": "text"}
METADATA: list[dict[str, Any]] = [
    *({}, {}, THINKS, THINKS, SPEAKS, {}, {"a": True}, {"a": 1}, {"a": 1.0}),
    *({"a": Decimal("1.5"), "b": UUID(int=7)}, {"a": Decimal("1.5"), "b": UUID(int=7)}, THINKS),
]
CHUNKS = [
    MessageChunk(sequence, f"é{sequence}" * (sequence % 3), AT, metadata)
    for sequence, metadata in enumerate(METADATA)
]


@pytest.mark.parametrize("chunks", [[], CHUNKS, CHUNKS[:2], CHUNKS[:3]], ids=len)
@pytest.mark.parametrize("limit", [None, 0, 1, 3])
def test_expand__gives_back_text_places_and_metadata(
    chunks: list[MessageChunk], limit: int | None
) -> None:
    # As the driver reads them, with their own ids.
    read = [bson.decode(bson.encode(chunk.to_stored())) for chunk in chunks]
    merged = {
        "content": text_of(read),
        "chunk_lengths": encode_lengths([chunk["content"] for chunk in read]),
        "chunk_metadata": encode_metadata([{**chunk, "append_id": ObjectId()} for chunk in read]),
        "completed_at": AT,
    }
    merged = bson.decode(bson.encode(merged))
    for start in range(len(chunks) + 2):
        found = [MessageChunk.from_stored(each) for each in expand(merged, start, limit)]
        wanted = chunks[start:] if limit is None else chunks[start : start + limit]
        assert found == wanted
        assert [repr(dict(chunk.metadata)) for chunk in found] == [
            repr(dict(chunk.metadata)) for chunk in wanted
        ]


def test_metadata__is_stored_once_for_chunks_in_a_row() -> None:
    runs = encode_metadata([chunk.to_stored() for chunk in CHUNKS[:6]])
    assert [run["sequence"] for run in runs] == [2, 4, 5]
    assert [run.get("metadata") for run in runs] == [THINKS, SPEAKS, None]
    assert encode_metadata([chunk.to_stored() for chunk in CHUNKS[:2]]) == []
