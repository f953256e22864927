"""The verdict notices each promise that is broken."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from converse_mongo import MessageChunk
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.parts import parts_of
from tests.faults.schedules import Schedule, draw
from tests.faults.verdict import Evidence, StoredText, ViewerRecord, WriterRecord, judge

NOW = datetime.now(UTC)
MESSAGE = "6b034504d1a68ceda3a79b75"


def schedule() -> Schedule:
    """A writer that writes six tokens and is silenced by nothing; the message is in two pages."""
    return replace(
        draw(0), writing="writer", writers=1, tokens=6, lease=3.0, crash=None, faults=(), viewers=()
    )


def chunk(sequence: int, content: str) -> dict[str, Any]:
    return {"sequence": sequence, "content": content, "created_at": NOW, "metadata": {}}


def evidence() -> Evidence:
    """That of a run in which all went well."""
    contents = [f"<0.{number}>" for number in range(6)]
    chunks = [chunk(sequence, content) for sequence, content in enumerate(contents)]
    events: list[dict[str, Any]] = [
        {
            "type": "chunk.received",
            "message_id": MESSAGE,
            "cursor": None,
            **one,
        }
        for one in chunks
    ]
    events.append(
        {
            "type": "message.completed",
            "message_id": MESSAGE,
            "cursor": None,
            "chunk_count": 6,
        }
    )
    return Evidence(
        schedule=schedule(),
        message={
            "_id": MESSAGE,
            "status": "completed",
            "next_sequence": 6,
            "page_start": 4,
            "chunks": chunks[4:],
            "chunk_bytes": sum(MessageChunk.from_stored(one).stored_size for one in chunks[4:]),
            "content_bytes": 30,
            "content": "".join(contents),
            "metadata": {"writer": 0, "chunks": 6},
        },
        pages=[
            {"first_sequence": first, "next_sequence": first + 2, "chunks": chunks[first:][:2]}
            for first in (0, 2)
        ],
        texts=[StoredText.of("get_message", chunks)],
        content="".join(contents),
        parts=None,
        writers=[
            WriterRecord(
                number=0,
                writing=5,
                stored=6,
                taken_at=0,
                epoch=1,
                left={
                    "error": None,
                    "cause": None,
                    "detached": False,
                    "accepted": 6,
                    "lost": "",
                    "lost_is_known": True,
                },
            )
        ],
        viewers=[ViewerRecord(name="viewer 0", watches="message", events=events, done=True)],
        stop=None,
        stop_was_requested=False,
        was_saved=False,
        message_ids=[MESSAGE],
    )


def test_verdict__nothing_is_wrong() -> None:
    assert judge(evidence()) == []


Harm = Callable[[Evidence], Any]


def lose_a_token(found: Evidence) -> None:
    """The last one, everywhere but in what the writer was told."""
    for text in found.texts:
        text.contents.pop()
        text.sequences.pop()


def store_twice(found: Evidence) -> None:
    found.texts[0].contents[3] = found.texts[0].contents[2]


def swap(found: Evidence) -> None:
    contents = found.texts[0].contents
    contents[2], contents[3] = contents[3], contents[2]


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lose_a_token, "was told that 6 tokens are stored, 5 are"),
        (store_twice, r"has stored \[0, 1, 2, 2, 4, 5\]"),
        (swap, r"has stored \[0, 1, 3, 2, 4, 5\]"),
        (lambda e: e.texts[0].contents.__setitem__(2, "<0.2><0"), "no token begins"),
        (lambda e: e.texts[0].sequences.__setitem__(2, 3), "have the sequences"),
        (lambda e: e.texts.append(StoredText.of("b", [])), "other chunks"),
        (lambda e: e.message.update(content="<0.0>"), "the stored content is not"),
        (lambda e: e.message.update(content_bytes=1), "content_bytes is 1"),
        (lambda e: e.message.update(chunk_bytes=1), "chunk_bytes is 1"),
        (lambda e: e.message.update(next_sequence=7), "next_sequence is 7"),
        (lambda e: e.message["metadata"].update(chunks=5), "chunks is 5 of 6"),
        (lambda e: e.pages.pop(), "pages hold"),
        (lambda e: e.message["chunks"].pop(), "the message embeds"),
        (lambda e: e.message.update(compacted=True), "are left"),
        (lambda e: e.message.update(status="streaming"), "never ended"),
        (lambda e: e.message.update(status="failed", error="x"), "failed with the error x"),
        (lambda e: e.message.update(status="failed", error="interrupted"), "had silenced"),
        (lambda e: e.message.update(status="cancelled"), "nobody had asked"),
        (lambda e: e.message["metadata"].update(writer=1), "completed by 1"),
        (lambda e: e.writers[0].left.update(lost="<0.5>"), "its error gives back"),
        (lambda e: e.writers[0].left.update(error="KeyError"), "left with"),
        (lambda e: setattr(e.writers[0], "refused", "WriterExistsError"), "left with"),
        (lambda e: setattr(e.writers[0], "taken_at", 5), "was shown 5 characters"),
        (lambda e: setattr(e.writers[0], "writing", 3), "more than it wrote"),
        (lambda e: e.writers[0].places.append(("<0.1>", 2)), "other places"),
        (lambda e: e.viewers[0].events.pop(2), "5 of 6 chunks"),
        (lambda e: e.viewers[0].events.insert(2, e.viewers[0].events[2]), "7 of 6 chunks"),
        (lambda e: e.viewers[0].events[2].update(content="x"), "other text"),
        (lambda e: e.viewers[0].events.pop(), "saw the ends"),
        (lambda e: e.viewers[0].events.append(e.viewers[0].events[-1]), "saw the ends"),
        (lambda e: e.viewers[0].events.insert(0, e.viewers[0].events.pop()), "behind the end"),
        (lambda e: e.viewers[0].events[-1].update(chunk_count=5), "was told of 5"),
        (lambda e: setattr(e.viewers[0], "done", False), "never came to an end"),
        (lambda e: setattr(e.viewers[0], "watches", "conversation"), "was shown the messages"),
    ],
)
def test_verdict__notices(harm: Harm, says: str) -> None:
    found = evidence()
    harm(found)
    with pytest.raises(AssertionError, match=says):
        raise AssertionError("\n".join(judge(found)))


def test_verdict__nobody_stores_behind_who_took_over() -> None:
    found = evidence()
    found.writers.append(WriterRecord(number=1, writing=5, stored=1, taken_at=5, epoch=2))
    found.texts[0].contents[1] = "<1.0>"
    assert any("after another had taken over" in wrong for wrong in judge(found))


def test_verdict__what_a_stop_was_answered_is_true() -> None:
    found = replace(evidence(), stop="cancelled", stop_was_requested=True, was_saved=True)
    assert len(judge(found)) == 2


def evidence_of_parts() -> Evidence:
    """That of a run in which all went well, with a call whose output is stored."""
    found = evidence()
    said: list[dict[str, Any]] = [
        {"content": "<0.0>"},
        {"event": "start", "fields": {"kind": "tool_call", "call_id": "c"}},
        *({"part": 1, "delta": f"<0.{number}>"} for number in (1, 2)),
        {"event": "set", "part": 1, "fields": {"input": 1, "output": 2}},
        *({"content": f"<0.{number}>"} for number in (3, 4, 5)),
    ]
    chunks = [{**chunk(at, ""), **each} for at, each in enumerate(said)]
    records = PartLog.of(chunks).records()
    parts = [part.to_dict() for part in parts_of(records, ended=True)]
    size = sum(MessageChunk.from_stored(each).stored_size for each in chunks)
    text = "<0.0><0.3><0.4><0.5>"
    found.message.update(chunks=chunks, page_start=0, chunk_bytes=size, next_sequence=8)
    found.message.update(content=text, content_bytes=len(text), format=2, parts=records)
    found.message["metadata"]["chunks"] = 8
    events = [{**found.viewers[0].events[0], **each} for each in chunks]
    end = {**found.viewers[0].events[-1], "chunk_count": 8}
    found.viewers[0].events[:] = [*events, end]
    writer = found.writers[0]
    writer.outputs["c"] = 2
    assert writer.left is not None
    writer.left.update(texts=[0, 3, 4, 5], parts=parts)
    writers = [writer, WriterRecord(number=1, taken_at=len(text), epoch=2, parts=(8, parts))]
    texts = [StoredText.of(how, list(chunks)) for how in ("get_message", "iter_chunks")]
    return replace(found, texts=texts, pages=[], content=text, parts=parts, writers=writers)


def test_verdict__nothing_is_wrong_with_parts() -> None:
    assert judge(evidence_of_parts()) == []


def spoil(records: list[Any] | None) -> None:
    assert records is not None
    records[1] = {**records[1], "text": "<0.1>"}


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda e: e.message.pop("format"), "the format is None"),
        (lambda e: spoil(e.message["parts"]), "the stored parts are not"),
        (lambda e: spoil(e.parts), "the parts are not those"),
        (lambda e: e.texts[1].chunks.__delitem__(4), "iter_chunks gives other parts"),
        (lambda e: e.viewers[0].events[4].update(fields={}), "viewer 0 saw other parts"),
        (lambda e: e.viewers[0].events[2].update(delta=""), "viewer 0 saw other text"),
        (lambda e: e.writers[0].outputs.update(c=3), "was told that the output of c"),
        (lambda e: e.writers[0].outputs.update(d=3), "was told that the output of d"),
        (lambda e: e.writers[0].left.update(parts=[]), "has other parts than it has completed"),
        (lambda e: setattr(e.writers[1], "parts", (4, [])), "was shown other parts"),
        (lambda e: e.writers[0].left.update(accepted=7, texts=[6]), "its error gives back"),
    ],
)
def test_verdict__notices_with_parts(harm: Harm, says: str) -> None:
    found = evidence_of_parts()
    harm(found)
    with pytest.raises(AssertionError, match=says):
        raise AssertionError("\n".join(judge(found)))
