"""Events of parts: what an application writes, and the pieces that they become.

A piece names a part that the same writer began by a :class:`PartRef`, since nobody knows its number
before it is stored: of two who append at once, the second is renumbered.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, TypeAlias

import bson

from converse_mongo.domain.chunks import (
    NO_METADATA,
    PART_OVERHEAD,
    MessageChunk,
    PartChunk,
    Piece,
    stored_size,
)
from converse_mongo.domain.errors import InvalidContentError, InvalidInputError
from converse_mongo.domain.metadata import check_metadata, storable
from converse_mongo.domain.part_log import (
    KINDS_WITH_TEXT,
    REASONING,
    TEXT,
    TOOL_CALL,
    PartLog,
    Record,
    storable_records,
)
from converse_mongo.domain.parts import Part
from converse_mongo.domain.validation import (
    MAX_CHUNK_BYTES,
    MAX_CONTENT_BYTES,
    check_content,
    now,
    utf8_size,
)


class PartRef:
    """A part, by the number that it has once it is stored.

    Attributes:
        kind: Its kind; ``None`` for a part of somebody else.
        number: Its number; ``None`` until it is stored.
        closed: True once its writer has ended it.
        has_input: For a tool call, true once its input is complete.
    """

    __slots__ = ("closed", "has_input", "kind", "number")

    def __init__(self, kind: str | None, number: int | None = None) -> None:
        self.kind = kind
        self.number = number
        self.closed = self.has_input = False


Numbers: TypeAlias = dict[PartRef, int]
"""The numbers that the parts of an append have if it is stored."""


@dataclass(slots=True)
class PartPiece:
    """An event of a part, or a delta of its text, that becomes a chunk.

    Attributes:
        event: The event; ``None`` for a delta.
        part: The part; ``None`` for a ``start``, and for an event of the message.
        fields: The fields of the event.
        delta: The text of a delta.
        parent: The tool call of a ``start`` in a sub-agent.
        marks: What learns the sequence of the chunk: the part that a ``start`` begins.
    """

    content: ClassVar[str] = ""
    text_size: ClassVar[int] = 0
    metadata: ClassVar[Mapping[str, Any]] = NO_METADATA

    event: str | None
    part: PartRef | None = None
    fields: Mapping[str, Any] = field(default_factory=lambda: NO_METADATA)
    delta: str = ""
    parent: PartRef | None = None
    marks: PartRef | None = None

    @property
    def stored_size(self) -> int:
        """A close upper bound of its size in a document, in bytes."""
        fields = len(bson.encode(storable(self.fields))) if self.fields else 0
        return stored_size(0, NO_METADATA) + PART_OVERHEAD + utf8_size(self.delta) + fields

    def chunk(self, sequence: int, created_at: datetime, numbers: Numbers) -> PartChunk:
        """Returns the chunk, in an append that gives its parts these numbers."""
        return PartChunk(
            sequence,
            "",
            created_at,
            part=_number(self.part, numbers),
            event=self.event,
            fields=self.fields,
            delta=self.delta,
            parent=_number(self.parent, numbers),
        )


AnyPiece: TypeAlias = Piece | PartPiece


def _number(ref: PartRef | None, numbers: Numbers) -> int | None:
    if ref is None:
        return None
    # A part whose start was given up, since its call was cancelled, has none: the event is void.
    return numbers.get(ref) if ref.number is None else ref.number


def numbered(pieces: Iterable[AnyPiece], first: int, created_at: datetime) -> list[MessageChunk]:
    """Makes the chunks of an append that begins at the sequence ``first``."""
    numbers: Numbers = {}
    chunks: list[MessageChunk] = []
    for sequence, piece in enumerate(pieces, first):
        if isinstance(piece, Piece):
            chunks.append(MessageChunk(sequence, piece.content, created_at, piece.metadata))
            continue
        if piece.marks is not None:
            numbers[piece.marks] = sequence
        chunks.append(piece.chunk(sequence, created_at, numbers))
    return chunks


def is_chunk(piece: AnyPiece, chunk: MessageChunk) -> bool:
    """Returns whether a stored chunk is that of a piece, as far as can be told.

    A redaction may have emptied it, or made a start of a text.
    """
    if isinstance(piece, Piece):
        if isinstance(chunk, PartChunk):
            return chunk.event == "start" and chunk.fields == {"kind": TEXT}
        return chunk.content in (piece.content, "")
    if not isinstance(chunk, PartChunk):
        return False
    return chunk.event == piece.event and chunk.delta in (piece.delta, "")


def settle(pieces: Iterable[AnyPiece], chunks: Iterable[MessageChunk]) -> None:
    """Gives the parts that an append began the numbers under which they are stored."""
    for piece, chunk in zip(pieces, chunks, strict=True):
        if isinstance(piece, PartPiece) and piece.marks is not None:
            piece.marks.number = chunk.sequence


def part_size(pieces: Iterable[AnyPiece]) -> int:
    """Returns a close upper bound of the size of the chunks that are no text of the answer."""
    return sum([piece.stored_size for piece in pieces if isinstance(piece, PartPiece)])


# What an application writes


@dataclass(frozen=True, slots=True)
class PartStart:
    """Begins a part that grows.

    Attributes:
        part: The part, with the fields that are known.
        key: A name for the events that follow, until another part gets it.
    """

    part: Part
    key: str


@dataclass(frozen=True, slots=True)
class PartDelta:
    """Adds text to a part: to reasoning, to the input of a tool call, or to a text.

    Attributes:
        part: The key of its :class:`PartStart`, or the number of a stored part.
        text: The text.
    """

    part: str | int
    text: str


@dataclass(frozen=True, slots=True)
class PartSet:
    """Replaces fields of a part.

    Attributes:
        part: The key of its :class:`PartStart`, or the number of a stored part.
        fields: The fields, by name, with values that BSON can hold.
    """

    part: str | int
    fields: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class PartEnd:
    """Ends a part; for a tool call, its input.

    Attributes:
        part: The key of its :class:`PartStart`, or the number of a stored part.
        fields: Fields to set with it.
    """

    part: str | int
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)


PartEvent: TypeAlias = PartStart | PartDelta | PartSet | PartEnd

PARTS = (Part, PartStart, PartDelta, PartSet, PartEnd)
"""The types of what a message takes beside text."""


class Composer:
    """Makes checked pieces of what an application writes, and knows the parts that it began.

    Every method raises:
        InvalidInputError: Something cannot be stored, or names a part that was not begun here.

    Args:
        parent: The tool call whose sub-agent writes; ``None`` for the answer itself.
    """

    def __init__(self, parent: PartRef | None = None) -> None:
        self._parent = parent
        self._refs: dict[str, PartRef] = {}

    def pieces(self, written: "Part | PartEvent") -> list[AnyPiece]:
        """Returns the pieces of a whole part, or of an event of one."""
        match written:
            case Part():
                return self.whole(written)
            case PartStart(part, key):
                ref, pieces = self.start(part)
                self._refs[key] = ref
                return pieces
            case PartDelta(part, text):
                return self.delta(self._find(part), text)
            case PartSet(part, fields):
                return [self.change(self._find(part), "set", fields)]
            case PartEnd(part, fields):
                return [self.change(self._find(part), "end", fields)]
        raise InvalidInputError(
            f"A message takes str, parts and part events, not {type(written).__name__}. "
            "Nothing was written."
        )

    def whole(self, part: Part) -> list[AnyPiece]:
        """Returns the pieces of a part that does not grow."""
        ref, pieces = self.start(part)
        if part.kind in _ENDED_WITH_TEXT:
            pieces.append(self.change(ref, "end", {}))
        return pieces

    def start(self, part: Part) -> tuple[PartRef, list[AnyPiece]]:
        """Returns a new part, and the pieces that begin it."""
        if part.number is not None:
            raise InvalidInputError(
                f"The part {part.number} of a message cannot be written again: make a new one. "
                "Nothing was written."
            )
        ref = PartRef(part.kind)
        ref.has_input = "input" in part.fields
        fields = _checked({**part.fields, "kind": part.kind})
        pieces: list[AnyPiece] = [PartPiece("start", fields=fields, parent=self._parent, marks=ref)]
        if part.text:
            pieces += self.delta(ref, part.text)
        return ref, pieces

    def delta(self, ref: PartRef, text: str) -> list[AnyPiece]:
        """Returns the piece of a text that a part gets, if there is text."""
        size = check_content(text, MAX_CHUNK_BYTES)
        if ref.kind is not None and ref.kind not in KINDS_WITH_TEXT:
            raise InvalidInputError(
                f"A part of the kind {ref.kind!r} has no text that grows: set its fields. "
                "Nothing was written."
            )
        self._refuse_closed(ref)
        if not size:
            return []
        if ref.kind == TEXT and self._parent is None:
            return [Piece(text, NO_METADATA, size)]
        return [PartPiece(None, ref, delta=text)]

    def change(self, ref: PartRef, event: str, fields: Mapping[str, Any]) -> PartPiece:
        """Returns the piece that sets fields of a part, or ends it."""
        checked = _checked(fields)
        if fixed := checked.keys() & _AT_THE_START:
            raise InvalidInputError(
                f"{min(fixed)} of a part comes with its start: give it there. Nothing was written."
            )
        self._refuse_closed(ref)
        if ref.kind == TOOL_CALL:
            if {"output", "error"} & checked.keys() and not (ref.has_input or "input" in checked):
                raise InvalidInputError(
                    "A tool call needs its input before its output or error: set input first. "
                    "Nothing was written."
                )
            ref.has_input = ref.has_input or "input" in checked
        elif event == "end":
            ref.closed = True
        return PartPiece(event, ref, checked)

    def _refuse_closed(self, ref: PartRef) -> None:
        if ref.closed:
            raise InvalidInputError(
                f"This part of the kind {ref.kind!r} has ended: begin another. Nothing was written."
            )

    def _find(self, part: object) -> PartRef:
        if isinstance(part, int) and not isinstance(part, bool) and part >= 0:
            # A part of somebody else: only a read would tell what it is.
            return PartRef(None, part)
        if isinstance(part, str) and part in self._refs:
            return self._refs[part]
        raise InvalidInputError(
            f"No part was begun with the key {part!r}: write a PartStart first, or give the number "
            "of a stored part. Nothing was written."
        )


_ENDED_WITH_TEXT = frozenset({TEXT, REASONING})


_NAMES = ("kind", "id", "name", "call_id")
"""Fields that tell one part from another."""


_AT_THE_START = frozenset({"kind", "name"})


def _checked(fields: object) -> Mapping[str, Any]:
    checked = check_metadata(fields, "the fields of a part")
    named = [(name, checked[name]) for name in _NAMES if name in checked]
    if "approval" in checked:
        approval = checked["approval"]
        named.append(("approval.id", approval.get("id") if isinstance(approval, dict) else None))
    for name, value in named:
        if not isinstance(value, str):
            raise InvalidInputError(
                f"{name} of a part must be str, not {type(value).__name__}. Nothing was written."
            )
    return checked or NO_METADATA


def pieces_of(contents: object) -> list[AnyPiece]:
    """Returns the pieces of what is to be appended, all of them checked.

    Raises:
        InvalidInputError: One of them cannot be stored, or ``contents`` is a plain string.
    """
    if isinstance(contents, str) or not isinstance(contents, Iterable):
        raise InvalidContentError(
            f"append_chunks requires an iterable of strings, parts and events, not "
            f"{type(contents).__name__}; use append_chunk for one string. Nothing was written."
        )
    composer = Composer()
    pieces: list[AnyPiece] = []
    for content in contents:
        if isinstance(content, PartPiece):  # given back by a writer
            pieces.append(content)
        elif not isinstance(content, str) and isinstance(content, PARTS):
            pieces += composer.pieces(content)
        else:
            pieces.append(Piece(content, NO_METADATA, check_content(content, MAX_CHUNK_BYTES)))
    return pieces


def whole(content: str, parts: Iterable[Part]) -> tuple[str, list[Record]]:
    """Returns the text and the records, for BSON, of a message that is added whole.

    The parts are numbered in order.

    Raises:
        InvalidInputError: One of the parts cannot be stored, or they are too large together.
    """
    pieces = [Piece(content, NO_METADATA, utf8_size(content)), *pieces_of(parts)]
    chunks = numbered(pieces, 0, now())
    log = PartLog.of([chunk.to_stored() for chunk in chunks])
    records = [{**record, "part": place} for place, record in enumerate(log.records())]
    stored = storable_records(records)
    size = len(bson.encode({"parts": stored})) + utf8_size(log.text())
    if size > MAX_CONTENT_BYTES:
        raise InvalidInputError(
            f"The parts of a message of {size} bytes are over the limit of {MAX_CONTENT_BYTES} "
            "bytes: refer to large files instead. Nothing was written."
        )
    return log.text(), stored
