"""Own writes: a copy of a message is updated with the writes made through it."""

from collections.abc import Iterable, Sequence
from typing import Any

from converse_mongo.documents.tracking import ChangeTracker
from converse_mongo.domain.chunks import ChunkLog, MessageChunk, PartChunk, StoredChunk
from converse_mongo.domain.headers import PARTS_FORMAT, shows_parts
from converse_mongo.domain.part_log import PartLog, storable_records
from converse_mongo.domain.part_redaction import reduced
from converse_mongo.domain.types import MessageStatus
from converse_mongo.domain.validation import MAX_CONTENT_BYTES, PAGE_CHUNKS, utf8_size
from converse_mongo.store import EndedMessage, Known, WriteQueue

Fields = dict[str, Any]

_TAKE_OUT = "reset", "redact"
"""Events that take text out of the answer."""

_WRITTEN = (
    *("status", "error", "stop_reason", "completed_at", "updated_at", "revision"),
    *("content", "chunks", "next_sequence", "page_start", "chunk_bytes", "content_bytes"),
    *("format", "part_bytes", "part_records", "redactions", "work"),
)
"""The fields that appends, an end and redactions change."""


class OwnWrites:
    """Keeps the fields of a copy up to date with its own appends and its own end.

    The fields are the ``__dict__`` of the message: getting and setting attributes costs a call or
    two in Beanie's classes, at each append.

    Attributes:
        queue: The queue of the message, once it is known.
        has_text: True if ``content`` has the whole text, though the chunks are not loaded.
        unconfirmed: True after appends of a transaction, which may not have been committed.
        log: The parts, once the copy has written some; ``None`` for a message without parts, and
            if they are too large to be kept.
        text_from: The sequence of the first chunk with text, where the chunks are not loaded.
    """

    __slots__ = ("has_text", "log", "queue", "text_from", "unconfirmed")

    def __init__(self) -> None:
        self.queue: WriteQueue | None = None
        self.has_text = self.unconfirmed = False
        self.log: PartLog | None = None
        self.text_from: int | None = None

    def known(self, fields: Fields) -> Known | None:
        """Returns the text and the parts, if the copy has all of them."""
        if self.unconfirmed or not (self.has_text or fields["chunks"].is_loaded):
            return None
        return Known(fields["next_sequence"], fields["content"], self.log_of(fields))

    def log_of(self, fields: Fields) -> PartLog | None:
        """Returns the parts of the copy, if it has all of them."""
        log: ChunkLog = fields["chunks"]
        if self.log is None and has_parts(fields) and log.is_loaded:
            self.log = reduced(log.stored, fields["redactions"])
        return self.log

    def open_part(self, fields: Fields) -> int | None:
        """Returns the number of the part that the next text of the answer continues."""
        if has_parts(fields):
            parts = self.log_of(fields)
            return None if parts is None else parts.open
        log: ChunkLog = fields["chunks"]
        return first_with_text(log.stored) if log.is_loaded else self.text_from

    def append(
        self, fields: Fields, tracker: ChangeTracker, chunks: Sequence[MessageChunk]
    ) -> None:
        """Adds the chunks of an append to a copy that has all chunks before them."""
        log: ChunkLog = fields["chunks"]
        if not (log.is_loaded and fields["status"] is MessageStatus.STREAMING):
            return
        if chunks[0].sequence == fields["next_sequence"]:  # else others appended in between
            self._add_parts(fields, tracker, chunks)
            log.stored.extend([chunk.to_stored() for chunk in chunks])
            _add_text(fields, tracker, chunks, None)
            self._take_out_text(fields, tracker, chunks)

    def write(self, fields: Fields, tracker: ChangeTracker, chunks: Sequence[MessageChunk]) -> None:
        """Adds the chunks of a writer, but keeps at most a page of them and the text that fits."""
        log: ChunkLog = fields["chunks"]
        if fields["status"] is not MessageStatus.STREAMING or not (self.has_text or log.is_loaded):
            return
        self.has_text = True
        if chunks[0].sequence != fields["next_sequence"]:
            return
        fits = fields["next_sequence"] + len(chunks) <= PAGE_CHUNKS
        if log.is_loaded and not fits:
            self.log_of(fields)  # while its chunks are there
        self._add_parts(fields, tracker, chunks)
        if log.is_loaded and fits:
            log.stored.extend([chunk.to_stored() for chunk in chunks])
        elif log.is_loaded:
            self.text_from = first_with_text(log.stored)
            fields["chunks"] = ChunkLog.not_loaded()
        _add_text(fields, tracker, chunks, MAX_CONTENT_BYTES)
        self._take_out_text(fields, tracker, chunks)

    def _add_parts(
        self, fields: Fields, tracker: ChangeTracker, chunks: Sequence[MessageChunk]
    ) -> None:
        """Adds chunks to the parts, if there are any or these are the first."""
        had_parts = has_parts(fields)
        if not had_parts and {*map(type, chunks)} == {MessageChunk}:
            return
        if not had_parts:
            if fields["format"] is None:
                fields["format"] = tracker.remembered["format"] = PARTS_FORMAT
            self.log = self._log_of_text(fields)
        of_parts = [each for each in chunks if isinstance(each, PartChunk)]
        fields["part_bytes"] += sum([each.stored_size for each in of_parts])
        tracker.remembered["part_bytes"] = fields["part_bytes"]
        if fields["part_bytes"] + fields["content_bytes"] > MAX_CONTENT_BYTES:
            self.log = None  # if the chunks are loaded, it can be made again
        elif self.log is not None:  # else it is made once somebody asks for the parts
            for chunk in chunks:
                self.log.add(chunk)

    def _take_out_text(
        self, fields: Fields, tracker: ChangeTracker, chunks: Sequence[MessageChunk]
    ) -> None:
        """Takes text that chunks made void, or redacted, out of the content."""
        if not any(isinstance(each, PartChunk) and each.event in _TAKE_OUT for each in chunks):
            return
        log = self.log_of(fields)
        self.has_text = self.has_text and log is not None  # without it, it is too large to be known
        fields["content"] = tracker.remembered["content"] = "" if log is None else log.text()

    def _log_of_text(self, fields: Fields) -> PartLog:
        """Returns the log of chunks that are all text of the answer."""
        log: ChunkLog = fields["chunks"]
        if log.is_loaded:
            return PartLog.of(log.stored)
        text, first = fields["content"], self.text_from or 0
        made = PartLog.of([{"sequence": first, "content": text}])
        made.next_sequence = fields["next_sequence"]
        return made

    def read(self, fields: Fields, tracker: ChangeTracker, message: Any) -> None:
        """Sets the fields that appends, an end and redactions change to those of another copy."""
        for name in _WRITTEN:
            fields[name] = message.__dict__[name]
            if name in tracker.remembered:
                tracker.remembered[name] = message.__dict__[name]

    def end(self, fields: Fields, ended: EndedMessage) -> None:
        """Sets the fields that the end of the message changed."""
        state = ended.state
        for name in (
            *("status", "error", "stop_reason", "metadata"),
            *("next_sequence", "content_bytes", "completed_at"),
        ):
            fields[name] = getattr(state, name)
        if ended.content is not None:
            fields["content"] = ended.content
        fields["format"], fields["part_bytes"] = state.format, state.part_bytes
        fields["work"] = state.work
        records = ended.records
        fields["part_records"] = None if records is None else storable_records(records)
        if records is not None:
            fields["content_bytes"] = utf8_size(ended.content or "")
        fields["redactions"] = state.redactions
        if ended.chunks is not None:
            fields["chunks"] = ChunkLog(ended.chunks)
        elif fields["chunks"].is_loaded and len(fields["chunks"]) != state.next_sequence:
            fields["chunks"], fields["content"] = ChunkLog.not_loaded(), ended.content or ""


def has_parts(fields: Fields) -> bool:
    """Returns whether a copy has more than the text of the answer."""
    return shows_parts(fields["format"], fields["part_bytes"], fields["redactions"])


def first_with_text(chunks: Iterable[StoredChunk]) -> int | None:
    """Returns the sequence of the first chunk with text."""
    return next((chunk["sequence"] for chunk in chunks if chunk["content"]), None)


def _add_text(
    fields: Fields, tracker: ChangeTracker, chunks: Sequence[MessageChunk], limit: int | None
) -> None:
    remembered = tracker.remembered
    # CPython grows a string in place if nothing else refers to it; a copy for each chunk would cost
    # the square of the length.
    remembered.pop("content", None)
    text: str = fields.pop("content")
    for chunk in chunks:
        fields["next_sequence"] += 1
        fields["chunk_bytes"] += chunk.stored_size
        fields["content_bytes"] += chunk.content_size
        if limit is None or fields["content_bytes"] <= limit:
            text += chunk.content
        else:
            text = ""
    fields["content"] = text
    for name in ("content", "next_sequence", "chunk_bytes", "content_bytes"):
        remembered[name] = fields[name]
