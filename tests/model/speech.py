"""What is said in the simulation: text, and parts, each with a name that nothing else has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from converse_mongo.domain.chunks import Piece
from converse_mongo.domain.part_log import KINDS_WITH_TEXT
from converse_mongo.domain.part_pieces import AnyPiece, PartPiece, PartRef

__all__ = ["Meaning", "Part", "Utterance", "has_parts", "is_text", "said", "text", "utter"]

WAYS = ("text", "text", "start", "start", "delta", "delta", "set", "end")
KINDS = ("reasoning", "tool_call", "data")


class Meaning(NamedTuple):
    """The parts that a chunk is meant to name, each by what was said when it began."""

    part: str | None = None
    parent: str | None = None


class Part(NamedTuple):
    """A part that may be gone on with."""

    said: str
    kind: str
    ref: PartRef


@dataclass(frozen=True)
class Utterance:
    """What an append says.

    Attributes:
        pieces: The pieces.
        meant: What those that name a part mean.
        begun: The parts that it begins.
    """

    pieces: list[AnyPiece]
    meant: dict[str, Meaning]
    begun: list[Part]


def has_parts(pieces: Sequence[AnyPiece]) -> bool:
    """Whether they are not all text of the answer."""
    return any(isinstance(piece, PartPiece) for piece in pieces)


def text(names: Sequence[str]) -> Utterance:
    """Says names as text of the answer."""
    return Utterance([Piece(name, {}, len(name.encode())) for name in names], {}, [])


def utter(names: Sequence[str], known: Sequence[Part]) -> Utterance:
    """Says names in parts, or as text; the same names always in the same way.

    Args:
        known: The parts to go on with.
    """
    made = Utterance([], {}, [])
    for name in names:
        made.pieces.append(_piece(name, made, [*known, *made.begun]))
    return made


def _piece(name: str, made: Utterance, known: Sequence[Part]) -> AnyPiece:
    chance = Random(name)
    way = chance.choice(WAYS)
    if way == "start":
        calls = [None, *(part for part in known if part.kind == "tool_call")]
        above, ref = chance.choice(calls[-2:]), PartRef(chance.choice(KINDS))
        kind = str(ref.kind)
        named = {"name": "w", "id": "1"} if kind == "data" else {}
        made.begun.append(Part(name, kind, ref))
        made.meant[name] = Meaning(parent=above and above.said)
        fields = {"kind": kind, "said": name, **named}
        return PartPiece("start", fields=fields, parent=above and above.ref, marks=ref)
    fitting = [part for part in known if way != "delta" or part.kind in KINDS_WITH_TEXT]
    if way == "text" or not fitting:
        return text([name]).pieces[0]
    part = chance.choice(fitting[-3:])
    made.meant[name] = Meaning(part.said)
    if way == "delta":
        return PartPiece(None, part.ref, delta=name)
    return PartPiece(way, part.ref, {"said": name})


def is_text(chunk: Mapping[str, Any]) -> bool:
    """Whether a stored chunk is text of the answer."""
    return "part" not in chunk and "event" not in chunk


def said(chunk: Mapping[str, Any]) -> str:
    """What a stored chunk says; nothing, if a merge has taken it out."""
    found = chunk["content"] or chunk.get("delta") or chunk.get("fields", {}).get("said", "")
    return str(found)
