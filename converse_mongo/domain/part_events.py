"""Events of parts: what an application writes, and the pieces that they become.

A piece names a part that the same writer began by a :class:`PartRef`, since nobody knows its number
before it is stored: of two who append at once, the second is renumbered.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, NamedTuple, TypeAlias
from weakref import WeakSet

import bson
from bson import ObjectId

from converse_mongo.domain.chunks import (
    NO_METADATA,
    PART_OVERHEAD,
    MessageChunk,
    PartChunk,
    Piece,
    stored_size,
)
from converse_mongo.domain.errors import InvalidContentError, InvalidInputError
from converse_mongo.domain.metadata import made_plain, storable
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
from converse_mongo.domain.stored_values import (
    NO_VALUES,
    NOTHING_LARGE,
    LargeValue,
    StoredValue,
    reference_size,
    set_apart,
)
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
        void: True once a reset of its writer has voided it.
    """

    __slots__ = ("__weakref__", "closed", "has_input", "kind", "number", "void")

    def __init__(self, kind: str | None, number: int | None = None) -> None:
        self.kind = kind
        self.number = number
        self.closed = self.has_input = self.void = False


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
        values: The fields that are to be stored apart.
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
    values: Mapping[str, LargeValue] = field(default_factory=lambda: NOTHING_LARGE)

    @property
    def stored_size(self) -> int:
        """A close upper bound of its size in a document, in bytes."""
        fields = len(bson.encode(storable(self.fields))) if self.fields else 0
        size = stored_size(0, NO_METADATA) + PART_OVERHEAD + utf8_size(self.delta) + fields
        return size + reference_size(self.values)

    @property
    def held_size(self) -> int:
        """The size of what it holds in memory until it is stored, in bytes."""
        return self.stored_size + sum([len(value.data) for value in self.values.values()])

    def stored_values(self, name: str) -> dict[str, StoredValue]:
        """Returns the references to its values; ``name`` is that of the piece.

        The ids are derived from the name and the values, so that storing them again stores nothing
        twice.
        """
        return {
            each: value.reference(f"{name}-{place}-{value.hash[:16]}")
            for place, (each, value) in enumerate(self.values.items())
        }

    def chunk(
        self,
        sequence: int,
        created_at: datetime,
        numbers: Numbers,
        values: Mapping[str, StoredValue] = NO_VALUES,
    ) -> PartChunk:
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
            values=values,
        )


AnyPiece: TypeAlias = Piece | PartPiece


def _number(ref: PartRef | None, numbers: Numbers) -> int | None:
    if ref is None:
        return None
    # A part whose start was given up, since its call was cancelled, has none: the event is void.
    return numbers.get(ref) if ref.number is None else ref.number


def numbered(
    pieces: Iterable[AnyPiece], first: int, created_at: datetime, append_id: ObjectId
) -> list[MessageChunk]:
    """Makes the chunks of an append that begins at the sequence ``first``."""
    numbers: Numbers = {}
    chunks: list[MessageChunk] = []
    for index, piece in enumerate(pieces):
        sequence = first + index
        if isinstance(piece, Piece):
            chunks.append(MessageChunk(sequence, piece.content, created_at, piece.metadata))
            continue
        if piece.marks is not None:
            numbers[piece.marks] = sequence
        values = piece.stored_values(f"{append_id}-{index}") if piece.values else NO_VALUES
        chunks.append(piece.chunk(sequence, created_at, numbers, values))
    return chunks


def large_values(pieces: Iterable[AnyPiece], append_id: ObjectId) -> dict[str, LargeValue]:
    """Returns the values of an append that are to be stored apart, by their ids."""
    return {
        stored.id: piece.values[name]
        for index, piece in enumerate(pieces)
        if isinstance(piece, PartPiece) and piece.values
        for name, stored in piece.stored_values(f"{append_id}-{index}").items()
    }


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
        begun: All parts that the writer and those of its sub-agents began.
    """

    def __init__(
        self, parent: PartRef | None = None, begun: "WeakSet[PartRef] | None" = None
    ) -> None:
        self.begun: WeakSet[PartRef] = WeakSet() if begun is None else begun
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
        self._refuse_closed(self._parent)
        ref = PartRef(part.kind)
        self.begun.add(ref)
        ref.has_input = "input" in part.fields
        fields, values = _checked({**part.fields, "kind": part.kind})
        begin = PartPiece("start", fields=fields, parent=self._parent, marks=ref, values=values)
        pieces: list[AnyPiece] = [begin]
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
        checked, values = _checked(fields)
        if fixed := checked.keys() & _AT_THE_START:
            raise InvalidInputError(
                f"{min(fixed)} of a part comes with its start: give it there. Nothing was written."
            )
        self._refuse_closed(ref)
        if ref.kind == TOOL_CALL:
            names = checked.keys() | values.keys()
            if {"output", "error"} & names and not (ref.has_input or "input" in names):
                raise InvalidInputError(
                    "A tool call needs its input before its output or error: set input first. "
                    "Nothing was written."
                )
            ref.has_input = ref.has_input or "input" in names
        elif event == "end":
            ref.closed = True
        return PartPiece(event, ref, checked, values=values)

    def void(self, first: int, reset: int) -> None:
        """Notes that a reset with this sequence has voided the parts from a number on."""
        for ref in self.begun:
            ref.void = ref.void or (ref.number is not None and first <= ref.number < reset)

    def continued(self, number: int) -> PartRef:
        """Returns the tool call with a number, of another writer."""
        ref = PartRef(TOOL_CALL, number)
        self.begun.add(ref)
        return ref

    def _refuse_closed(self, ref: PartRef | None) -> None:
        if ref is None:
            return
        if ref.void:
            raise InvalidInputError(
                f"This part of the kind {ref.kind!r} was voided by a reset: begin another. "
                "Nothing was written."
            )
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


def _checked(fields: object) -> tuple[Mapping[str, Any], Mapping[str, LargeValue]]:
    checked = made_plain(fields, "the fields of a part")
    named = [(name, checked[name]) for name in _NAMES if name in checked]
    if "approval" in checked:
        approval = checked["approval"]
        named.append(("approval.id", approval.get("id") if isinstance(approval, dict) else None))
    for name, value in named:
        if not isinstance(value, str):
            raise InvalidInputError(
                f"{name} of a part must be str, not {type(value).__name__}. Nothing was written."
            )
    if not checked:
        return NO_METADATA, NOTHING_LARGE
    return set_apart(checked, "the fields of a part")


def pieces_of(contents: object) -> list[list[AnyPiece]]:
    """Returns the pieces of each of the contents that are to be appended, all of them checked.

    Raises:
        InvalidInputError: One of them cannot be stored, or ``contents`` is a plain string.
    """
    if isinstance(contents, str) or not isinstance(contents, Iterable):
        raise InvalidContentError(
            f"append_chunks requires an iterable of strings, parts and events, not "
            f"{type(contents).__name__}; use append_chunk for one string. Nothing was written."
        )
    composer: Composer | None = None
    pieces: list[list[AnyPiece]] = []
    for content in contents:
        if isinstance(content, PartPiece):  # given back by a writer
            pieces.append([content])
        elif not isinstance(content, str) and isinstance(content, PARTS):
            composer = composer or Composer()
            pieces.append(composer.pieces(content))
        else:
            pieces.append([Piece(content, NO_METADATA, check_content(content, MAX_CHUNK_BYTES))])
    return pieces


class Whole(NamedTuple):
    """A message that is added whole.

    Attributes:
        text: The text.
        records: The records of the parts, for BSON.
        values: The values that are to be stored apart, by their ids.
    """

    text: str
    records: list[Record]
    values: dict[str, LargeValue]


def whole(content: str, parts: Iterable[Part]) -> Whole:
    """Makes a message of a text and parts, which are numbered in order.

    Raises:
        InvalidInputError: One of the parts cannot be stored, or they are too large together.
    """
    pieces: list[AnyPiece] = [Piece(content, NO_METADATA, utf8_size(content))]
    for each in pieces_of(parts):
        pieces += each
    append_id = ObjectId()
    chunks = numbered(pieces, 0, now(), append_id)
    log = PartLog.of([chunk.to_stored() for chunk in chunks])
    records = [{**record, "part": place} for place, record in enumerate(log.records())]
    stored = storable_records(records)
    size = len(bson.encode({"parts": stored})) + utf8_size(log.text())
    if size > MAX_CONTENT_BYTES:
        raise InvalidInputError(
            f"The parts of a message of {size} bytes are over the limit of {MAX_CONTENT_BYTES} "
            "bytes: refer to large files instead. Nothing was written."
        )
    used = {each["id"] for record in stored for each in record.get("values", NO_VALUES).values()}
    values = large_values(pieces, append_id)
    return Whole(log.text(), stored, {name: values[name] for name in values if name in used})
