"""Pieces: the events and deltas of parts that become chunks once they are stored.

A piece names a part that the same writer began by a :class:`PartRef`, since nobody knows its number
before it is stored: of two who append at once, the second is renumbered.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, TypeAlias

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
from converse_mongo.domain.metadata import storable
from converse_mongo.domain.part_log import TEXT
from converse_mongo.domain.stored_values import (
    NO_VALUES,
    NOTHING_LARGE,
    LargeValue,
    StoredValue,
    reference_size,
)
from converse_mongo.domain.validation import utf8_size


class PartRef:
    """A part, by the number that it has once it is stored.

    Attributes:
        kind: Its kind; ``None`` for a part of somebody else.
        number: Its number; ``None`` until it is stored.
        closed: True once its writer has ended it.
        has_input: For a tool call, true once its input is complete.
        is_clients: For a tool call, whether the browser runs the tool; ``None`` if that is unknown.
        void: True once a reset of its writer has voided it.
    """

    __slots__ = ("__weakref__", "closed", "has_input", "is_clients", "kind", "number", "void")

    def __init__(self, kind: str | None, number: int | None = None) -> None:
        self.kind = kind
        self.number = number
        self.closed = self.has_input = self.void = False
        self.is_clients: bool | None = None


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
