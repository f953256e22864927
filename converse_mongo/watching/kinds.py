"""A filter of the kinds of parts that a watcher asked for."""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Protocol

from converse_mongo.domain.chunks import NO_METADATA, MessageChunk, PartChunk
from converse_mongo.domain.errors import InvalidInputError
from converse_mongo.domain.events import MessageSnapshot
from converse_mongo.domain.part_identity import PartIdentity, start_of
from converse_mongo.domain.part_log import TEXT, part_number
from converse_mongo.domain.parts import Part, parts_of
from converse_mongo.domain.stored_values import NO_VALUES

ALIASES: dict[str, tuple[str, ...]] = {
    "tool": ("tool_call",),
    "source": ("source_url", "source_document"),
}
"""Short names of kinds."""
MAX_KNOWN = 1024
"""The most parts whose kinds a filter remembers."""

_STAYS = frozenset({"kind", "transient"})
_ABOUT_ALL = "reset", "metadata", "redact"


class Identities(Protocol):
    """Looks up what a part is."""

    async def __call__(self, part: int) -> PartIdentity | None:
        """Returns ``None`` if the chunk with this number begins no part."""


class KindFilter:
    """Leaves out chunks of other kinds, so that the rest reduces to the same parts of its kinds.

    Starts, ends, redactions and resets pass, whatever they belong to, since they decide about other
    parts: a start closes the open text, and a call may be the parent of a part. Those of other
    kinds come without their values.

    Args:
        kinds: The kinds, as ``watch_message`` takes them.

    Raises:
        InvalidInputError: ``kinds`` is not a collection of names.
    """

    def __init__(self, kinds: object) -> None:
        self._kinds = frozenset(_checked(kinds))
        self._known: OrderedDict[int, str | None] = OrderedDict()

    async def __call__(self, chunk: MessageChunk, identify: Identities) -> MessageChunk | None:
        """Returns what passes of a chunk; ``None`` if nothing does."""
        if not isinstance(chunk, PartChunk):
            return chunk if TEXT in self._kinds else None
        if chunk.event in _ABOUT_ALL:
            return chunk
        if chunk.event == "start":
            kind = start_of(chunk).kind
            self._note(chunk.sequence, kind)
            if kind is None:
                return None  # it is void
            if kind in self._kinds:
                return chunk
            kept = {name: value for name, value in chunk.fields.items() if name in _STAYS}
            return replace(chunk, fields=kept, values=NO_VALUES)
        kind = await self._kind(chunk, identify)
        if kind in self._kinds:
            return chunk
        if chunk.event == "end":
            return replace(chunk, fields=NO_METADATA, values=NO_VALUES)
        return None

    def snapshot(self, snapshot: MessageSnapshot) -> MessageSnapshot:
        """Returns a snapshot without the text and the values of parts of other kinds."""
        parts = [part if part.kind in self._kinds else _shell(part) for part in snapshot.parts]
        content = snapshot.content if TEXT in self._kinds else ""
        return replace(snapshot, parts=parts, content=content)

    async def _kind(self, chunk: PartChunk, identify: Identities) -> str | None:
        part = part_number(chunk.part)
        if part is None or part >= chunk.sequence:
            return None  # it names no part, and is void
        if part not in self._known:
            found = await identify(part)
            self._note(part, found.kind if found else None)
        return self._known[part]

    def _note(self, part: int, kind: str | None) -> None:
        self._known[part] = kind
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)


def _shell(part: Part) -> Part:
    record = {**part.to_record(), "fields": {}}
    for name in ("text", "values"):
        record.pop(name, None)
    return parts_of([record], ended=False)[0]


def _checked(kinds: object) -> Iterable[str]:
    if isinstance(kinds, str) or not isinstance(kinds, Collection):
        raise InvalidInputError(
            f"kinds must be a set of names of kinds, such as {{'text', 'tool'}}, got {kinds!r}."
        )
    for kind in kinds:
        if not isinstance(kind, str):
            raise InvalidInputError(f"kinds must be names of kinds, got {kind!r}.")
        yield from ALIASES.get(kind, (kind,))
