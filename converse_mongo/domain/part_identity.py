"""The identity of a part: what decides who sees it. It comes with the start and never changes."""

from typing import Any, NamedTuple

from converse_mongo.domain.chunks import MessageChunk, PartChunk
from converse_mongo.domain.part_log import TEXT, part_number

HIDDEN = "hidden"
"""The kind that clients see of a part that is not shown to them. No part is written with it."""
MAX_NESTING = 64
"""The most tool calls, one in the other, below which a part is shown."""
MAX_NAME = 256
"""The most characters of a kind and a name together that are remembered."""


class PartIdentity(NamedTuple):
    """What a part is.

    Attributes:
        kind: Its kind, such as ``tool_call``.
        name: Its name, such as that of the tool, or ``None``.
        parent: The tool call whose sub-agent made it, or ``None``.
    """

    kind: str
    name: str | None = None
    parent: "PartIdentity | None" = None

    @property
    def is_short(self) -> bool:
        """True if it may be remembered: an application's names have no limit."""
        return len(self.kind) + len(self.name or "") <= MAX_NAME


class Start(NamedTuple):
    """The start of a part.

    Attributes:
        kind: The kind of the part; ``None`` if the chunk begins none.
        name: Its name, or ``None``.
        parent: The number of its tool call, or ``None``.
    """

    kind: str | None
    name: str | None = None
    parent: int | None = None


def start_of(chunk: MessageChunk) -> Start:
    """Returns the start that a chunk is, whether it is void or not.

    Text of the answer begins a part of its own unless it continues one: that cannot be told here.
    """
    if not isinstance(chunk, PartChunk):
        return Start(TEXT if chunk.content else None)
    fields: Any = chunk.fields if chunk.event == "start" else {}
    kind, name = fields.get("kind"), fields.get("name")
    return Start(
        kind if isinstance(kind, str) else None,
        name if isinstance(name, str) else None,
        part_number(chunk.parent),
    )
