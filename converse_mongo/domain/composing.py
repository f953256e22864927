"""Composing: checked pieces of the parts and events that an application writes."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from weakref import WeakSet

import bson
from bson import ObjectId

from converse_mongo.domain.chunks import NO_METADATA, Piece
from converse_mongo.domain.errors import InvalidContentError, InvalidInputError
from converse_mongo.domain.metadata import made_plain
from converse_mongo.domain.part_events import (
    PARTS,
    PartDelta,
    PartEnd,
    PartEvent,
    PartSet,
    PartStart,
)
from converse_mongo.domain.part_identity import HIDDEN
from converse_mongo.domain.part_log import (
    KINDS_WITH_TEXT,
    REASONING,
    TEXT,
    TOOL_CALL,
    PartLog,
    Record,
    storable_records,
)
from converse_mongo.domain.part_pieces import AnyPiece, PartPiece, PartRef, large_values, numbered
from converse_mongo.domain.parts import Part
from converse_mongo.domain.stored_values import NO_VALUES, NOTHING_LARGE, LargeValue, set_apart
from converse_mongo.domain.validation import (
    MAX_CHUNK_BYTES,
    MAX_CONTENT_BYTES,
    check_content,
    now,
    utf8_size,
)


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
        if part.kind == HIDDEN:
            raise InvalidInputError(
                f"The kind {HIDDEN!r} is that of parts that clients may not see: use another. "
                "Nothing was written."
            )
        self._refuse_closed(self._parent)
        ref = PartRef(part.kind)
        self.begun.add(ref)
        ref.has_input = "input" in part.fields
        ref.is_clients = part.fields.get("executor") == "client"
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
