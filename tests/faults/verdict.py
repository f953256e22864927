"""The verdict on a run: what its processes were told, against what is stored. No I/O here."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.parts import parts_of
from tests.faults.schedules import Schedule
from tests.faults.speech import said

__all__ = [
    "FAREWELL",
    "Evidence",
    "StoredText",
    "ViewerRecord",
    "WriterRecord",
    "goal_of",
    "judge",
]

INTERRUPTED = "interrupted"
REASON = "enough"
"""The reason of every stop that is requested."""

FAREWELL = "Goodbye"
"""The last message of a conversation. It may be seen before the end of the one that streamed."""

_NOT_STREAMING = "MessageNotStreamingError"
_TOKEN = re.compile(r"<(\d+)\.(\d+)·*>")


@dataclass(kw_only=True)
class WriterRecord:
    """What a writer reported.

    Attributes:
        number: Its number; where one follows another, in that order.
        writing: The number of the token that it was about to write last; -1 for none.
        stored: How many of its tokens it was told are stored.
        places: Where it was told that they are: contents of chunks with their sequences.
        taken_at: The length of the text when it was let in; ``None`` if it never was.
        epoch: Its place in the order of those who were.
        parts: The parts that it was shown then, and up to which sequence; ``None`` for text alone.
        outputs: The outputs of tool calls that it was told are stored, by the ids of the calls.
        refused: The error with which it was not let in.
        left: Its last report, if it lived to make it.
    """

    number: int
    writing: int = -1
    stored: int = 0
    places: list[tuple[str, int]] = field(default_factory=list)
    taken_at: int | None = None
    epoch: int | None = None
    parts: tuple[int, list[Any]] | None = None
    outputs: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    left: dict[str, Any] | None = None

    def take(self, report: dict[str, Any]) -> None:
        match report["kind"]:
            case "entered":
                self.taken_at, self.epoch = report["length"], report["epoch"]
                if report.get("parts") is not None:
                    self.parts = report["count"], report["parts"]
            case "output":
                self.outputs[report["call"]] = report["value"]
            case "writes":
                self.writing = report["number"]
            case "stored":
                self.stored = report["count"]
                self.places += [(content, place) for content, place in report.get("places", ())]
            case "refused":
                self.refused = report["error"]
            case "left":
                self.left = report


@dataclass(kw_only=True)
class ViewerRecord:
    """What a viewer was shown in all its lives.

    Attributes:
        name: Its name.
        watches: The message, or its conversation.
        events: Its events, as it reported them.
        done: Whether its watcher came to an end by itself.
    """

    name: str
    watches: str
    events: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False

    @property
    def cursor(self) -> int | str | None:
        """What to go on from in the next life."""
        if self.watches == "conversation":
            return self.events[-1]["cursor"] if self.events else None
        sequences = [event["sequence"] for event in self.events if "sequence" in event]
        return sequences[-1] if sequences else None

    @property
    def waits_for(self) -> set[str]:
        """The kinds of events that it has to see before it may go; see :func:`goal_of`."""
        goals = {"end"} if self.watches == "message" else {"end", FAREWELL}
        return goals - {goal_of(event) for event in self.events}


def goal_of(event: dict[str, Any]) -> str | None:
    """What a viewer waits for that ``event`` is: the end of the message, the last word; or not."""
    if event.get("content") == FAREWELL:
        return FAREWELL
    return "end" if "chunk_count" in event else None


@dataclass(frozen=True, kw_only=True)
class StoredText:
    """A way to read a message, and what it gave.

    Attributes:
        how: Which.
        contents: The tokens of its chunks.
        sequences: And their sequences.
        chunks: The chunks.
    """

    how: str
    contents: list[str]
    sequences: list[int]
    chunks: list[dict[str, Any]]

    @classmethod
    def of(cls, how: str, chunks: list[dict[str, Any]]) -> Self:
        """The text of chunks in the form of JSON."""
        sequences = [chunk["sequence"] for chunk in chunks]
        return cls(how=how, contents=list(map(said, chunks)), sequences=sequences, chunks=chunks)

    @property
    def answer(self) -> list[str]:
        """The texts of the answer."""
        pairs = zip(self.contents, self.chunks, strict=False)
        return [content for content, chunk in pairs if chunk["content"]]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that is known in the end.

    Attributes:
        schedule: What was to happen.
        message: The document of the message.
        pages: Those of its pages.
        texts: The chunks, read in several ways.
        content: The text that a reader gets.
        parts: And the parts, in the form of JSON; ``None`` for text alone.
        writers: By number.
        viewers: All.
        stop: The state that the request of a stop returned; ``None`` for no request, or no answer.
        stop_was_requested: Whether there was one.
        was_saved: Whether a copy of the message was saved.
        message_ids: Those of the conversation's messages, in order.
    """

    schedule: Schedule
    message: dict[str, Any]
    pages: list[dict[str, Any]]
    texts: list[StoredText]
    content: str
    parts: list[Any] | None
    writers: list[WriterRecord]
    viewers: list[ViewerRecord]
    stop: str | None
    stop_was_requested: bool
    was_saved: bool
    message_ids: list[str]


def judge(evidence: Evidence) -> list[str]:
    """Everything that is wrong; nothing, where all promises were kept."""
    wrong = [*_counters(evidence), *_places(evidence), *_writers(evidence), *_parts(evidence)]
    try:
        tokens = [token for text in evidence.texts[0].contents for token in tokens_of(text)]
        wrong += [*_tokens(evidence, tokens), *_end(evidence, tokens)]
    except ValueError as error:
        wrong.append(str(error))
    for viewer in evidence.viewers:
        wrong += _viewer(evidence, viewer)
    return wrong


def tokens_of(content: str) -> list[tuple[int, int]]:
    """The writers and numbers of the tokens that a text consists of; nothing may be between."""
    found, end = [], 0
    for match in _TOKEN.finditer(content):
        if match.start() != end:
            break
        found.append((int(match[1]), int(match[2])))
        end = match.end()
    if end != len(content):
        raise ValueError(f"no token begins with {content[end : end + 20]!r}")
    return found


# What is stored


def _counters(evidence: Evidence) -> Iterator[str]:
    message, truth = evidence.message, evidence.texts[0]
    count, content = len(truth.contents), "".join(truth.answer)
    for text in evidence.texts:
        if text.sequences != list(range(count)):
            yield f"{text.how}: {count} chunks have the sequences {text.sequences}"
        if text.contents != truth.contents:
            yield f"{text.how} gives other chunks than {truth.how}"
    if message["next_sequence"] != count:
        yield f"next_sequence is {message['next_sequence']} with {count} chunks"
    if message.get("content_bytes", 0) != len(content.encode()):
        yield f"content_bytes is {message.get('content_bytes')}, not {len(content.encode())}"
    if evidence.content != content:
        yield "the content is not the join of the chunks"
    if message.get("content") not in (content, "", None):
        yield "the stored content is not the join of the chunks"


def _places(evidence: Evidence) -> Iterator[str]:
    """Chunks are in pages up to ``page_start`` and in the message from there; one page may wait."""
    message = evidence.message
    start, embedded = message.get("page_start", 0), message.get("chunks") or []
    if message.get("compacted"):
        if embedded or evidence.pages:
            yield f"merged, but {len(embedded)} chunks and {len(evidence.pages)} pages are left"
        return
    moved = [
        chunk["sequence"]
        for page in evidence.pages
        if page["first_sequence"] < start
        for chunk in page["chunks"]
    ]
    if moved != list(range(start)):
        yield f"pages hold {moved}, but the message begins at {start}"
    sequences = [chunk["sequence"] for chunk in embedded]
    if sequences != list(range(start, message["next_sequence"])):
        yield f"the message embeds {sequences}, not those from {start} on"
    for page in evidence.pages:
        if page["first_sequence"] > start:
            yield f"a page begins at {page['first_sequence']}, behind {start}"
        elif page["first_sequence"] == start and page["chunks"] != embedded[: len(page["chunks"])]:
            yield "a page that is not trimmed yet holds other chunks than the message"
    size = sum(MessageChunk.from_stored(chunk).stored_size for chunk in embedded)
    if message.get("chunk_bytes", 0) != size:
        yield f"chunk_bytes is {message.get('chunk_bytes')}, not {size}"


def _tokens(evidence: Evidence, tokens: Sequence[tuple[int, int]]) -> Iterator[str]:
    for writer in evidence.writers:
        numbers = [number for by, number in tokens if by == writer.number]
        if numbers != list(range(len(numbers))):
            yield f"writer {writer.number} has stored {numbers}"
        if len(numbers) < writer.stored:
            yield (
                f"writer {writer.number} was told that {writer.stored} tokens are stored, "
                f"{len(numbers)} are"
            )
        if len(numbers) > writer.writing + evidence.schedule.most_at_once:
            yield f"writer {writer.number} has stored {len(numbers)}, more than it wrote"
        contents = dict(enumerate(evidence.texts[0].contents))
        if any(contents.get(place) != content for content, place in writer.places):
            yield f"writer {writer.number} was told other places than those of its chunks"
        yield from _lost(writer, len(numbers))
    if evidence.schedule.writing == "writer":
        yield from _successions(evidence, tokens)


def _lost(writer: WriterRecord, stored: int) -> Iterator[str]:
    left = writer.left
    if left is None or not left["lost_is_known"]:
        return
    lost = tokens_of(left["lost"])
    accepted = range(stored, left["accepted"])
    texts = left.get("texts", accepted)
    if lost != [(writer.number, number) for number in accepted if number in texts]:
        yield (
            f"writer {writer.number} took {left['accepted']} tokens, {stored} are stored, and "
            f"its error gives back {lost}"
        )


def _successions(evidence: Evidence, tokens: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Nobody stores behind who took over, who was shown all that was stored before."""
    epochs = {w.number: w.epoch for w in evidence.writers if w.epoch is not None}
    if any(by not in epochs for by, _ in tokens):
        yield "a writer stored tokens that never said it was the writer"
        return
    order = [epochs[by] for by, _ in tokens]
    if order != sorted(order):
        yield "a writer has stored tokens after another had taken over"
    matches = _TOKEN.finditer("".join(evidence.texts[0].answer))
    lengths = [(epochs[int(match[1])], len(match[0])) for match in matches]
    for writer in evidence.writers:
        if writer.epoch is None:
            continue
        before = sum(length for epoch, length in lengths if epoch < writer.epoch)
        if writer.taken_at != before:
            yield (
                f"writer {writer.number} was shown {writer.taken_at} characters as it took over, "
                f"{before} were stored"
            )


# Parts


def _parts(evidence: Evidence) -> Iterator[str]:
    """All readers have the parts that the chunks make, and so had each writer that took over."""
    chunks, message = evidence.texts[0].chunks, evidence.message
    has_parts = any("part" in chunk or "event" in chunk for chunk in chunks)
    if message.get("format") != (2 if has_parts else None):
        yield f"the format is {message.get('format')}, with parts: {has_parts}"
    records = PartLog.of(chunks).records()
    for text in evidence.texts:
        if PartLog.of(text.chunks).records() != records:
            yield f"{text.how} gives other parts than {evidence.texts[0].how}"
    if message.get("parts") not in (None, records):
        yield "the stored parts are not those of the chunks"
    closed = [part.to_dict() for part in parts_of(records, ended=True)]
    if has_parts and evidence.parts != closed:
        yield "the parts are not those of the chunks"
    if message.get("part_bytes", 0) and not has_parts:
        yield f"part_bytes is {message['part_bytes']} without parts"
    for writer in evidence.writers:
        left = writer.left or {}
        if has_parts and left.get("parts") not in (None, closed):
            yield f"writer {writer.number} has other parts than it has completed"
        count, shown = writer.parts or (0, [])
        before = PartLog.of(chunks[:count]).records()
        if list(map(_identity, shown)) != list(map(_identity, before)):
            yield f"writer {writer.number} was shown other parts as it took over than were stored"
        calls = {record["fields"].get("call_id"): record["fields"] for record in records}
        for call, output in writer.outputs.items():
            if calls.get(call, {}).get("output") != output or "preliminary" in calls[call]:
                yield f"writer {writer.number} was told that the output of {call} is stored"


def _identity(record: dict[str, Any]) -> tuple[Any, ...]:
    """What a merge leaves of the parts at any sequence."""
    return record["part"], record["kind"], record.get("parent"), record.get("text", "")


# What was said


def _writers(evidence: Evidence) -> Iterator[str]:
    status = evidence.message["status"]
    last = max((writer.epoch or 0 for writer in evidence.writers), default=0)
    for writer in evidence.writers:
        left = writer.left or {}
        error = writer.refused or left.get("error")
        followed = last > (writer.epoch or 0)
        match error:
            case None:  # a stop that comes as the block is left is no error
                ends = ("completed", "cancelled" if evidence.stop_was_requested else "")
                is_wrong = (
                    bool(left)
                    and evidence.schedule.writing == "writer"
                    and not left["detached"]
                    and status not in ends
                )
            case "StreamStoppedError":
                is_wrong = not evidence.stop_was_requested
            case "WriterFencedError":  # or it was ended as an orphan
                is_wrong = not followed and status == "completed"
            case "MessageNotStreamingError":
                is_wrong = status == "completed" and not followed and writer.refused is None
            case "WriterExistsError":
                is_wrong = not followed
            case "WriterFailedError":
                is_wrong = left["cause"] not in ("StoreUnavailableError", _NOT_STREAMING)
            case "StoreUnavailableError":
                is_wrong = writer.refused is not None
            case _:
                is_wrong = True
        if is_wrong:
            yield f"writer {writer.number} left with {left}, {error}; the message is {status}"


def _end(evidence: Evidence, tokens: Sequence[tuple[int, int]]) -> Iterator[str]:
    message, schedule = evidence.message, evidence.schedule
    status, error = message["status"], message.get("error")
    if status == "completed":
        by = message["metadata"].get("writer")
        finished = [w.number for w in evidence.writers if w.writing >= 0]
        if schedule.writers == 1 and by not in finished:
            yield f"completed by {by}, who is none of {finished}"
        elif schedule.writers == 1:
            stored = [number for writer, number in tokens if writer == by]
            if len(stored) != schedule.tokens:
                yield f"completed by {by}, with {len(stored)} of {schedule.tokens} tokens"
        if error is not None:
            yield f"completed with the error {error}"
    elif status == "failed":
        if error != INTERRUPTED:
            yield f"failed with the error {error}"
        if not schedule.may_be_silenced:
            yield "interrupted, though nothing had silenced its writer"
    elif status == "cancelled":
        if not evidence.stop_was_requested:
            yield "cancelled, and nobody had asked for a stop"
        elif message.get("stop_reason") != REASON:
            yield f"cancelled for the reason {message.get('stop_reason')}"
    else:
        yield f"the message never ended: it is {status}"
    if evidence.stop == "cancelled" and status != "cancelled":
        yield f"whoever stopped it was told that it is cancelled; it is {status}"
    if evidence.was_saved and message["metadata"].get("saved") is not True:
        yield "what was saved is lost"
    if evidence.message["metadata"].get("chunks") not in (None, message["next_sequence"]):
        yield f"metadata.chunks is {message['metadata']['chunks']} of {message['next_sequence']}"


def _viewer(evidence: Evidence, viewer: ViewerRecord) -> Iterator[str]:
    events, contents = viewer.events, evidence.texts[0].contents
    message_id = str(evidence.message["_id"])
    if not viewer.done:
        yield f"{viewer.name} never came to an end"
    if viewer.watches == "conversation":
        created = [e["message_id"] for e in events if e["type"] == "message.created"]
        if created != evidence.message_ids:
            yield f"{viewer.name} was shown the messages {created}"
        if events and events[0]["type"] != "message.created":
            yield f"{viewer.name} was shown {events[0]['type']} first"
    elif any(event["type"] == "message.created" for event in events):
        yield f"{viewer.name} was shown messages"
    own = [
        event
        for event in events
        if event["message_id"] == message_id
        and event["type"] not in ("message.created", "message.updated")
    ]
    chunks = [event for event in own if event["type"] == "chunk.received"]
    sequences = [event["sequence"] for event in chunks]
    if sequences != list(range(len(contents))):
        odd = [pair for pair in pairwise([-1, *sequences]) if pair[1] != pair[0] + 1]
        yield f"{viewer.name} saw {len(sequences)} of {len(contents)} chunks; not in order: {odd}"
    elif list(map(said, chunks)) != contents:
        yield f"{viewer.name} saw other text than is stored"
    elif PartLog.of(chunks).snapshot() != PartLog.of(evidence.texts[0].chunks).snapshot():
        yield f"{viewer.name} saw other parts than are stored"
    ends = [event for event in own if "chunk_count" in event]
    if [event["type"] for event in ends] != [f"message.{evidence.message['status']}"]:
        yield f"{viewer.name} saw the ends {ends}"
    elif own[-1] is not ends[0]:
        yield f"{viewer.name} saw more behind the end"
    elif ends[0]["chunk_count"] != len(contents):
        yield f"{viewer.name} was told of {ends[0]['chunk_count']} chunks"
