"""Views of parts: what clients see of the records of a message, and of its chunks.

Both follow one rule, so that who reduces the chunks has what who reads the records has. The text of
the answer is always shown, as ``content`` is, and so is that a step began or ended.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from converse_mongo.documents.presentation import Presentation, Shown, as_json
from converse_mongo.domain.chunks import MessageChunk, PartChunk
from converse_mongo.domain.part_identity import HIDDEN, MAX_NESTING, PartIdentity, start_of
from converse_mongo.domain.part_log import DATA, STEP, TEXT, Record, part_number

_PROVIDERS = frozenset({"provider", "result_provider"})
_NAMES = frozenset({"kind", "name", "id", "call_id"})
_STATES = frozenset({"started", "preliminary", "transient", "dynamic"})
"""Fields without which a part would seem to be something else."""
_OUTCOMES: dict[str, Any] = {"output": None, "error": ""}
"""Shown in place of a hidden outcome, without which a call would never end."""

_COUNT = {"type": "integer", "minimum": 0}
_STRING, _OBJECT = {"type": "string"}, {"type": "object"}
_VALUES = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "properties": {"size": _COUNT},
        "required": ["size"],
    },
}

PART_SCHEMA: dict[str, Any] = {
    "title": "Part",
    "description": "A part; its number is the sequence of the chunk that began it.",
    "type": "object",
    "properties": {
        "part": _COUNT,
        "kind": _STRING,
        "fields": _OBJECT,
        "text": _STRING,
        "parent": _COUNT,
        "closed": {"const": True},
        "redacted": {"anyOf": [{"const": True}, _STRING]},
        "values": _VALUES,
    },
    "required": ["part", "kind", "fields"],
    "additionalProperties": False,
}
"""The JSON schema of a part."""

CHUNK_SCHEMA: dict[str, Any] = {
    "title": "PartChunk",
    "description": "An event of a part, or a delta of its text.",
    "type": "object",
    "properties": {
        "sequence": _COUNT,
        "content": _STRING,
        "created_at": {"type": "string", "format": "date-time"},
        "metadata": _OBJECT,
        "part": _COUNT,
        "event": _STRING,
        "fields": _OBJECT,
        "delta": _STRING,
        "parent": _COUNT,
        "values": _VALUES,
    },
    "required": ["sequence", "content", "created_at", "metadata"],
    "additionalProperties": False,
}
"""The JSON schema of a chunk that is no text of the answer."""


def shown_records(records: Iterable[Record], presentation: Presentation) -> list[dict[str, Any]]:
    """Returns what clients see of the records of a message."""
    identities: dict[int, PartIdentity] = {}
    found = []
    for record in records:
        name, parent = record["fields"].get("name"), record.get("parent")
        if parent is not None and parent not in identities:
            continue  # below a part that is hidden
        identity = PartIdentity(
            record["kind"],
            name if isinstance(name, str) else None,
            None if parent is None else identities[parent],
        )
        shown = _shown(identity, presentation)
        if shown is not False:
            identities[record["part"]] = identity
            found.append(_shown_record(record, shown))
    return found


def _shown_record(record: Record, shown: Shown) -> dict[str, Any]:
    found: dict[str, Any] = {"part": record["part"], "kind": record["kind"], "fields": {}}
    found |= _shown_fields(record, shown, is_data=record["kind"] == DATA)
    if "text" in record:
        found["text"] = as_json(record["text"]) if _shows("text", shown) else ""
    if "parent" in record:
        found["parent"] = record["parent"]
    if "closed" in record:
        found["closed"] = True
    if (redacted := record.get("redacted")) is not None:
        found["redacted"] = as_json(redacted)
    return found


def shown_chunk(
    chunk: PartChunk, identity: PartIdentity | None, presentation: Presentation
) -> dict[str, Any]:
    """Returns what clients see of a chunk.

    Of one that is void, or whose part is hidden, they see that it is there, and that a part begins,
    which closes the text before it.

    Args:
        chunk: The chunk.
        identity: That of its part; ``None`` if there is none.
        presentation: Picks what clients see.
    """
    stored = chunk.to_dict()
    event, number = chunk.event, part_number(chunk.part)
    found: dict[str, Any] = {
        "sequence": chunk.sequence,
        "content": "",
        "created_at": stored["created_at"],
        "metadata": presentation.metadata(chunk.metadata) if chunk.metadata else {},
    }
    if event == "reset":
        first = part_number(chunk.fields.get("from"))
        return found if first is None else found | {"event": event, "fields": {"from": first}}
    if event == "metadata":
        return found | {"event": event, "fields": presentation.metadata(chunk.fields)}
    shown = False if identity is None else _shown(identity, presentation)
    if event == "start":
        return found | _shown_start(chunk, stored, shown)
    if number is None or shown is False or event not in (None, "set", "end", "redact"):
        return found
    found["part"] = number
    if event is None:
        return found | ({"delta": as_json(chunk.delta)} if _shows("text", shown) else {})
    found["event"] = event
    if event == "redact":
        reason = chunk.fields.get("reason")
        return found | ({"fields": {"reason": as_json(reason)}} if isinstance(reason, str) else {})
    return found | _shown_fields(stored, shown)


def shown_chunks(
    chunks: Iterable[MessageChunk], presentation: Presentation
) -> Iterator[dict[str, Any]]:
    """Returns what clients see of the chunks of a message, from its first one on."""
    identities: dict[int, PartIdentity] = {}
    for chunk in chunks:
        start = start_of(chunk)
        above = None if start.parent is None else identities.get(start.parent)
        is_below = isinstance(chunk, PartChunk) and chunk.parent is not None
        if start.kind is not None and (above is not None or not is_below):
            identities[chunk.sequence] = PartIdentity(start.kind, start.name, above)
        if isinstance(chunk, PartChunk):
            number = chunk.sequence if chunk.event == "start" else part_number(chunk.part)
            identity = None if number is None else identities.get(number)
            yield shown_chunk(chunk, identity, presentation)
        else:
            yield {"sequence": chunk.sequence, "content": as_json(chunk.content)}


def _shown_start(chunk: PartChunk, stored: Mapping[str, Any], shown: Shown) -> dict[str, Any]:
    if shown is not False:
        parent, is_data = part_number(chunk.parent), chunk.fields.get("kind") == DATA
        found: dict[str, Any] = {"event": "start", **_shown_fields(stored, shown, is_data=is_data)}
        return found if parent is None else found | {"parent": parent}
    is_void = chunk.fields.get("transient") is True or not isinstance(chunk.fields.get("kind"), str)
    if is_void or chunk.parent is not None:
        return {}
    return {"event": "start", "fields": {"kind": HIDDEN}}


def is_shown(identity: PartIdentity, presentation: Presentation) -> bool:
    """Returns whether clients see that there is a part."""
    return _shown(identity, presentation) is not False


def _shown(identity: PartIdentity, presentation: Presentation) -> Shown:
    if identity.kind == TEXT and identity.parent is None:
        return True
    above, depth = identity.parent, 0
    while above is not None:
        depth += 1
        if depth > MAX_NESTING or presentation.part(above) is False:
            return False
        above = above.parent
    shown = presentation.part(identity)
    if shown is False and identity.kind == STEP and identity.parent is None:
        return frozenset()  # its start and its end close the text of the answer
    return shown


def _shows(name: str, shown: Shown) -> bool:
    return shown if isinstance(shown, bool) else name in shown | _NAMES | _STATES


def _shown_fields(
    stored: Mapping[str, Any], shown: Shown, *, is_data: bool = False
) -> dict[str, Any]:
    """Returns ``fields`` and ``values``, each only if there are any."""
    fields: dict[str, Any] = {}
    values: dict[str, Any] = {}
    given = stored.get("fields") or {}
    for name, value in given.items():
        if name in _PROVIDERS or (is_data and name in _NAMES and not isinstance(value, str)):
            continue  # in JSON, an id of another type would seem to be a string
        if _shows(name, shown):
            fields[name] = value
        elif name in _OUTCOMES:
            fields[name] = _OUTCOMES[name]
    for name, reference in (stored.get("values") or {}).items():
        if name in _PROVIDERS or (is_data and name in _NAMES and name in given):
            continue  # the field counts, which may be one that is left out above
        if _shows(name, shown):
            values[name] = {"size": reference["size"]}
        elif name in _OUTCOMES:
            fields[name] = _OUTCOMES[name]
    found = {"fields": as_json(fields)} if fields else {}
    return found | ({"values": values} if values else {})
