"""Merged chunks of a message with parts: its text and lengths as ever, and its events.

What can no longer be read is taken out. The rest reduces to the same parts, from the beginning and
behind any cursor: a viewer that has seen the first chunks as they were written goes on with what is
left of the others. So what a chunk does to later ones stays, and its values go once later chunks
replace them.

- Each event stays in its place, with its part, its parent and the kind of a start: a start closes
  the open text, even one that a reset voids. A transient one does not, so it stays transient.
- A reset stays. It voids what a viewer has of the parts that are emptied here.
- Each start of data keeps name and id, without which it would begin a part of its own, and that of
  a call its name, also if it was redacted.
- The value of a field stays with the chunk that it came from; the values before it go. So do
  preliminary outputs, for each outcome replaces the one before it.
- Requests for approval and answers stay if they counted: whether an answer counts depends on the
  request before it.
- Text, deltas and fields of void and of redacted parts go. The reason of a redaction stays.
- Text of the answer that goes leaves an empty chunk, which is nothing. So a void part does not
  begin, which changes nothing else. A redacted part has to, so its first text becomes a start.
- Metadata of the message stay with the chunk that each value came from.

Deltas of one part in a row become one event, with their lengths. Equal events in a row become one,
with their count. No event holds text of the answer.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby, pairwise, repeat
from typing import Any, NamedTuple, TypeAlias

import bson

from converse_mongo.domain.chunks import StoredChunk, text_of
from converse_mongo.domain.lengths import decode_lengths, encode_lengths, expand
from converse_mongo.domain.metadata import restored, storable
from converse_mongo.domain.part_log import TEXT, PartLog, fields_of, identity_of
from converse_mongo.domain.stored_values import parted

Event: TypeAlias = dict[str, Any]

_PLAIN = (int, str)
"""Types of values that are the same in each form; those of nearly all numbers and events."""


class Merged(NamedTuple):
    """The stored form of merged chunks.

    Attributes:
        content: The text of the answer.
        lengths: The length of the text of each chunk, encoded.
        events: The chunks that are not text of the answer, in BSON types and in order. Each has the
            ``sequence`` of the first chunk that it stands for; if it stands for several, ``count``
            or, for deltas, ``lengths``.
    """

    content: str
    lengths: bytes
    events: list[Event]


def merge(chunks: Sequence[StoredChunk]) -> Merged:
    """Merges the chunks of an ended message; :func:`expand_events` reverses it.

    Args:
        chunks: All chunks as stored, from sequence 0 on without a gap.
    """
    if all(map(_is_text, chunks)):
        return Merged(text_of(chunks), encode_lengths([chunk["content"] for chunk in chunks]), [])
    remains = _Remains(chunks)
    texts: list[str] = []
    events: list[Event] = []
    for chunk, number in zip(chunks, remains.numbers, strict=True):
        text = remains.text(chunk, number) if _is_text(chunk) else ""
        texts.append(text)
        if not text and (event := remains.event(chunk, number)):
            events.append({"sequence": chunk["sequence"], **event})
    return Merged("".join(texts), encode_lengths(texts), list(_in_runs(events)))


def expand_events(
    stored: Mapping[str, Any], start: int = 0, limit: int | None = None
) -> list[StoredChunk]:
    """Returns the chunks of a merged message from sequence ``start`` on.

    They reduce to the same parts as those that were merged, also behind the first of these.

    Args:
        stored: A document with what :func:`lengths.expand` needs, and ``chunk_events`` if any.
        start: The sequence of the first chunk.
        limit: The most chunks.
    """
    chunks = expand(stored, start, limit)
    runs: Sequence[Event] = stored.get("chunk_events") or ()
    first = bisect_right(runs, start, key=lambda run: run["sequence"]) - 1
    for run in runs[max(first, 0) :]:
        if run["sequence"] >= start + len(chunks):
            break
        for index, event in enumerate(_one_by_one(run), run["sequence"] - start):
            if 0 <= index < len(chunks):
                chunks[index] |= event
    return chunks


class _Remains:
    """The content that can be read at the end, and the chunks that it comes from.

    Attributes:
        numbers: The part of each chunk; ``None`` if it belongs to none, or changed nothing.
    """

    def __init__(self, chunks: Sequence[StoredChunk]) -> None:
        self.numbers: list[int | None] = []
        self._log = PartLog()
        self._source: dict[tuple[int | None, str], int] = {}
        self._approvals: set[int] = set()
        for chunk in chunks:
            sequence: int = chunk["sequence"]
            number = self._log.add(chunk)
            self.numbers.append(number)
            for name in self._log.counted:
                self._source[number, name] = sequence
            if number is not None and "approval" in self._log.counted:
                self._approvals.add(sequence)
        # Metadata are those of no part.
        self._legible: dict[int | None, Mapping[str, Any]] = {None: self._log.metadata}
        for record in self._log.records():
            if not record.get("redacted"):
                self._legible[record["part"]] = fields_of(record)

    def text(self, chunk: StoredChunk, number: int | None) -> str:
        """Returns what is left of a text of the answer."""
        text: str = chunk["content"]
        return text if number in self._legible else ""

    def event(self, chunk: StoredChunk, number: int | None) -> Event:
        """Returns what is left of a chunk without text, apart from its place."""
        if _is_text(chunk):
            began = number == chunk["sequence"] and self._is_there(number)
            return {"event": "start", "fields": {"kind": TEXT}} if began else {}
        event = {}
        for name in ("event", "part", "parent"):
            if (value := chunk.get(name)) is not None:
                event[name] = value if type(value) in _PLAIN else storable(restored(value))
        if "event" not in event:
            delta = chunk.get("delta") if number is not None and number in self._legible else ""
            return {**event, "delta": delta if isinstance(delta, str) else ""}
        fields, values = parted(self._fields(chunk, number))
        if fields:
            event["fields"] = storable(fields)
        if values:
            event["values"] = values
        return event

    def _fields(self, chunk: StoredChunk, number: int | None) -> dict[str, Any]:
        fields = fields_of(chunk)
        kept = _effective(chunk["event"], fields)
        if chunk["event"] == "redact" and self._is_there(number):
            kept.add("reason")
        if chunk["event"] == "start" and self._is_there(number):
            kept |= identity_of(fields["kind"], fields).keys()
        if number in self._legible:
            sequence, now = chunk["sequence"], self._legible[number]
            kept |= {
                name
                for name in fields
                if name in now and self._source.get((number, name)) == sequence
            }
            if sequence in self._approvals:
                kept.add("approval")
        return {name: value for name, value in fields.items() if name in kept}

    def _is_there(self, number: int | None) -> bool:
        return number is not None and self._log.kind_of(number) is not None


def _is_text(chunk: StoredChunk) -> bool:
    return chunk.get("event") is None and chunk.get("part") is None


def _effective(event: object, fields: Mapping[str, Any]) -> set[str]:
    """Returns the names of fields that have an effect on other chunks."""
    if event == "reset":
        return {"from"}
    if event != "start" or not isinstance(fields.get("kind"), str):
        return set()
    return {"kind", "transient"} if fields.get("transient") is True else {"kind"}


def _in_runs(events: Sequence[Event]) -> Iterator[Event]:
    """Joins the deltas of one part in a row, and equal events in a row."""

    def same(indexed: tuple[int, Event]) -> tuple[int, int | bytes]:
        index, event = indexed
        if len(event) == 3 and "delta" in event and type(part := event.get("part")) is int:
            return event["sequence"] - index, part
        rest = {name: event[name] for name in event if name not in ("sequence", "delta")}
        return event["sequence"] - index, bson.encode(rest)  # bytes tell true from 1

    for _, indexed in groupby(enumerate(events), key=same):
        run = [event for _, event in indexed]
        joined = run[0]
        if "delta" in joined:
            deltas = [event["delta"] for event in run]
            joined = {**joined, "delta": "".join(deltas)}
            if len(run) > 1:
                joined["lengths"] = encode_lengths(deltas)
        elif len(run) > 1:
            joined = {**joined, "count": len(run)}
        yield joined


def _one_by_one(run: Event) -> Iterator[Event]:
    """Reverses :func:`_in_runs` for one run; the events have no sequence."""
    event = {name: run[name] for name in run if name not in ("sequence", "lengths", "count")}
    if "lengths" in run:
        ends = accumulate(decode_lengths(run["lengths"]), initial=0)
        for begin, end in pairwise(ends):
            yield {**event, "delta": run["delta"][begin:end]}
    else:
        yield from repeat(event, run.get("count", 1))
