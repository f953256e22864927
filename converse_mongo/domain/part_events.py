"""Events of parts: what an application writes of a part that grows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from converse_mongo.domain.parts import Part


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
