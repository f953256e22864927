"""Redaction: what a log becomes when the content of some of its parts is removed.

While a message streams, its log has a ``redact`` event, and the reducer does the rest. A message
that has ended has a field ``redactions``. In both cases the chunks are swept: the content goes, and
what a chunk does to others stays, so that a swept log reduces to the same parts, from the beginning
and behind any cursor.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

from converse_mongo.domain.chunks import StoredChunk
from converse_mongo.domain.metadata import restored, storable
from converse_mongo.domain.part_log import TEXT, PartLog, identity_of

Redaction: TypeAlias = dict[str, Any]
"""An entry of ``redactions``: ``part``, the number, and ``reason`` if one was given."""

_OF_NO_PART = ("start", "reset", "metadata", "redact")
"""Events that do not belong to the part that they name."""


def redaction(part: int, reason: str | None) -> Redaction:
    """Returns the redaction of a part."""
    return {"part": part, "reason": reason} if reason else {"part": part}


def reduced(
    chunks: Iterable[Mapping[str, Any]], redactions: Iterable[Redaction] | None = None
) -> PartLog:
    """Returns the state behind all chunks of a message, with what was redacted since its end."""
    log = PartLog.of(chunks)
    for each in redactions or ():
        log.redact(each["part"], each.get("reason"))
    return log


class Sweep:
    """Removes the content of parts from the chunks of a log, which come in order.

    Args:
        redacted: The numbers of the parts.
    """

    def __init__(self, redacted: Collection[int]) -> None:
        self._redacted = tuple(redacted)
        self._log = PartLog()

    def sweep(self, chunk: StoredChunk) -> StoredChunk:
        """Returns what the next chunk becomes: itself, if it has nothing of these parts.

        A chunk that names one of them and is void has nothing to say either, and is swept as well.
        """
        number, event = self._log.add(chunk), chunk.get("event")
        named = None if event in _OF_NO_PART else chunk.get("part")
        if event == "redact" or not (number in self._redacted or named in self._redacted):
            return chunk
        swept: StoredChunk = {
            "sequence": chunk["sequence"],
            "content": "",
            **{name: chunk[name] for name in _KEPT if name in chunk},
        }
        if event == "start":
            swept["fields"] = _of_start(chunk)
        elif event is None and named is None and number == chunk["sequence"]:
            # The part still begins here, and what came between its texts still belongs behind it.
            swept |= {"event": "start", "fields": {"kind": TEXT}}
        return swept


_KEPT = ("created_at", "append_id", "event", "part", "parent")


def _of_start(chunk: StoredChunk) -> dict[str, Any]:
    fields = restored(chunk["fields"])
    kind = fields["kind"]
    return {"kind": storable(kind), **storable(identity_of(kind, fields))}


def swept(chunks: Iterable[StoredChunk], redacted: Collection[int]) -> list[StoredChunk]:
    """Returns the chunks of a log, from its first one on, without the content of some parts."""
    sweep = Sweep(redacted)
    return [sweep.sweep(chunk) for chunk in chunks]
