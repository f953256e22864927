"""The reducer: what the chunks of a message say, as parts.

A chunk without ``part`` and ``event`` is text of the answer. All others are events of parts, or
deltas of them. A part's number is the sequence of the chunk that begins it, so that log order is
part order. The reducer is total: no log makes it raise. What names a part that is not there is
void, and so is what has the wrong type.

The same rules are in ``web/client/parts.js``; ``tests/model/part_logs.json`` has logs for both.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self, TypeAlias, TypeGuard

from bson import Code

from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.metadata import restored, storable
from converse_mongo.domain.stored_values import parted, references

Record: TypeAlias = dict[str, Any]
"""A part: ``part`` (its number), ``kind`` and ``fields``; ``text`` of a text, of reasoning and of a
tool's input; ``parent``, ``closed`` and ``redacted`` where they apply. Its values are in the plain
form (see :mod:`converse_mongo.domain.metadata`); ``values`` has the references to those that are
stored apart."""

TEXT, REASONING, TOOL_CALL, DATA, STEP = "text", "reasoning", "tool_call", "data", "step"
KINDS_WITH_TEXT = frozenset({TEXT, REASONING, TOOL_CALL})

IDENTITY: Mapping[str, tuple[str, ...]] = {TOOL_CALL: ("name",), DATA: ("name", "id")}
"""The fields, by kind, that tell what a part is. A redaction keeps them: by the name an application
decides who sees a part, and what replaces data has to find their place."""

_FIXED = {"kind", "name"}


class _Place(NamedTuple):
    """The place of data: those in the same place replace each other."""

    parent: int | None
    name: str
    id: str


class _Part:
    """A part that grows. Its text stays in pieces, since joining each time would be quadratic."""

    __slots__ = ("closed", "ended_at", "fields", "kind", "number", "parent", "pieces", "redacted")

    def __init__(self, number: int, kind: str, parent: int | None, fields: dict[str, Any]) -> None:
        self.number = number
        self.kind = kind
        self.parent = parent
        self.fields = fields
        self.pieces: list[str] = []
        self.closed = False
        self.ended_at: int | None = None
        self.redacted: str | bool = False

    def record(self) -> Record:
        fields, values = parted(self.fields)
        record: Record = {"part": self.number, "kind": self.kind, "fields": fields}
        if values:
            record["values"] = values
        if self.parent is not None:
            record["parent"] = self.parent
        if self.kind in KINDS_WITH_TEXT:
            record["text"] = "".join(self.pieces)
        if self.closed:
            record["closed"] = True
        if self.redacted:
            record["redacted"] = self.redacted
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        part = cls(record["part"], record["kind"], record.get("parent"), dict(fields_of(record)))
        if record.get("text"):
            part.pieces.append(record["text"])
        part.closed = record.get("closed", False)
        part.redacted = record.get("redacted", False)
        return part

    @property
    def place(self) -> _Place | None:
        name, own_id = self.fields.get("name"), self.fields.get("id")
        if self.kind != DATA or not _is_string(name) or not _is_string(own_id):
            return None
        return _Place(self.parent, name, own_id)

    @property
    def is_settled(self) -> bool:
        """True if nothing more can become of it, other than its redaction."""
        return bool(self.redacted) or (self.closed and self.kind != TOOL_CALL)

    def set(self, new: Mapping[str, Any], *, starts: bool = False) -> dict[str, Any]:
        """Replaces the named fields; returns those that count.

        The name, and the id of data, come with the start alone: they tell one part from another.
        """
        fixed = {"kind"} if starts else {"kind", "name", "id"} if self.kind == DATA else _FIXED
        fields = {name: value for name, value in new.items() if name not in fixed}
        if self.kind == TOOL_CALL:
            self._keep_outcome(fields)
            self._keep_answer(fields)
        self.fields |= fields
        return fields

    def redact(self, reason: object) -> None:
        """Drops the content; see :data:`IDENTITY`."""
        self.redacted = reason if _is_string(reason) and reason else True
        self.fields, self.pieces = identity_of(self.kind, self.fields), []

    def _keep_outcome(self, fields: dict[str, Any]) -> None:
        """A call has one outcome; a preliminary one comes before it, and each replaces the last."""
        if "output" not in fields and "error" not in fields:
            fields.pop("preliminary", None)
            return
        if fields.get("preliminary") is not True:
            fields.pop("preliminary", None)
        elif has_outcome(self.fields):
            for name in ("output", "error", "preliminary"):
                fields.pop(name, None)
            return
        for name in ("output", "error", "preliminary"):
            self.fields.pop(name, None)
        if "error" in fields:
            fields.pop("output", None)

    def _keep_answer(self, fields: dict[str, Any]) -> None:
        """Of two answers to one request the first counts."""
        before, after = self.fields.get("approval"), fields.get("approval")
        if not isinstance(after, Mapping):
            fields.pop("approval", None)
        elif (
            isinstance(before, Mapping)
            and isinstance(before.get("approved"), bool)
            and _string_or_none(before.get("id")) == _string_or_none(after.get("id"))
        ):
            fields.pop("approval")


def identity_of(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those fields of a part, or of its start, that a redaction keeps."""
    named = ((name, fields.get(name)) for name in IDENTITY.get(kind, ()))
    return {name: value for name, value in named if _is_string(value)}


def storable_records(records: Iterable[Record]) -> list[Record]:
    """Returns records in the form for BSON; see :mod:`converse_mongo.domain.metadata`."""
    return [{**record, "fields": storable(record["fields"])} for record in records]


def restored_records(stored: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Reverses :func:`storable_records`."""
    return [{**record, "fields": restored(record["fields"])} for record in stored]


def fields_of(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the fields of a chunk or a record, with references to those that are stored apart.

    Of events only those that set fields of a part can have some apart.
    """
    stored = restored(found.get("fields"))
    fields: Mapping[str, Any] = stored if isinstance(stored, Mapping) else {}
    if "values" not in found or found.get("event") not in (None, "start", "set", "end"):
        return fields
    return {**references(found["values"]), **fields}


def has_outcome(fields: Mapping[str, Any]) -> bool:
    """Returns whether a tool call has its final output or its error."""
    return ("output" in fields or "error" in fields) and fields.get("preliminary") is not True


class PartLog:
    """The state that the chunks of a message lead to.

    Attributes:
        next_sequence: The sequence of the next chunk.
        open: The number of the text part that the next text of the answer continues, or ``None``.
        metadata: What the log adds to the metadata of the message.
        counted: The fields of the last chunk, without those that changed nothing.
    """

    __slots__ = ("_at", "_parts", "counted", "metadata", "next_sequence", "open")

    def __init__(self) -> None:
        self.counted: Mapping[str, Any] = {}
        self.next_sequence = 0
        self.open: int | None = None
        self.metadata: dict[str, Any] = {}
        self._parts: dict[int, _Part] = {}
        self._at: dict[_Place, int] = {}

    @classmethod
    def of(cls, chunks: Iterable[Mapping[str, Any]]) -> Self:
        """Returns the state behind stored chunks."""
        log = cls()
        for chunk in chunks:
            log.add(chunk)
        return log

    @classmethod
    def from_snapshot(cls, snapshot: Mapping[str, Any]) -> Self:
        """Returns the state of a :meth:`snapshot`."""
        log = cls()
        log.next_sequence, log.open = snapshot["next_sequence"], snapshot.get("open")
        log.metadata = dict(snapshot.get("metadata", {}))
        for record in snapshot["parts"]:
            part = log._parts[record["part"]] = _Part.from_record(record)
            if part.place is not None:
                log._at[part.place] = part.number
        return log

    def snapshot(self) -> dict[str, Any]:
        """Returns the state, to go on from with the rest of the chunks.

        Its values are in the plain form: make them storable for BSON, and restore them from it.
        """
        snapshot: dict[str, Any] = {"next_sequence": self.next_sequence, "parts": self.records()}
        if self.open is not None:
            snapshot["open"] = self.open
        if self.metadata:
            snapshot["metadata"] = dict(self.metadata)
        return snapshot

    def records(self) -> list[Record]:
        """Returns the parts, in order."""
        return [part.record() for part in self._parts.values()]

    def text(self) -> str:
        """Returns the text of the answer."""
        texts = (each for each in self._parts.values() if each.kind == TEXT and each.parent is None)
        return "".join([piece for part in texts for piece in part.pieces])

    def kind_of(self, number: int) -> str | None:
        """Returns the kind of a part; ``None`` if there is none with this number."""
        part = self._parts.get(number)
        return None if part is None else part.kind

    def behind_steps(self) -> int:
        """Returns the number from which a reset voids what no finished step has.

        It is behind the start of the step that is open, if there is one, and else behind the end of
        the last one. A log of a snapshot does not know where steps ended.
        """
        steps = [each for each in self._parts.values() if each.kind == STEP and each.parent is None]
        last = [step.number if step.ended_at is None else step.ended_at for step in steps]
        return max(last, default=-1) + 1

    def record(self, number: int) -> Record | None:
        """Returns a part; ``None`` if there is none with this number."""
        part = self._parts.get(number)
        return None if part is None else part.record()

    def redact(self, number: int, reason: object) -> None:
        """Redacts a part after the last chunk, as a redaction of an ended message does."""
        self._change(number, "redact", {"reason": reason})

    def add(self, chunk: Mapping[str, Any] | MessageChunk) -> int | None:
        """Adds the next chunk, as it is stored or as a watcher has it; the chunk is not changed.

        Returns:
            The number of the part that it belongs to; ``None`` if it belongs to none, or is void.
        """
        if isinstance(chunk, MessageChunk):
            chunk = chunk.to_stored()
        sequence: int = chunk["sequence"]
        self.next_sequence, self.counted = sequence + 1, {}
        event = chunk.get("event")
        if event is None:
            part = chunk.get("part")
            return self._add_text(sequence, chunk) if part is None else self._add_delta(part, chunk)
        fields = fields_of(chunk)
        if event == "start":
            return self._start(sequence, chunk.get("parent"), fields)
        if event == "reset":
            self._reset(fields.get("from"))
        elif event == "metadata":
            self.metadata |= fields
            self.counted = fields
        elif event in ("set", "end", "redact"):
            return self._change(chunk.get("part"), event, fields)
        return None

    def _add_text(self, sequence: int, chunk: Mapping[str, Any]) -> int | None:
        text = chunk.get("content")
        if not _is_string(text) or not text:
            return None
        if self.open is None:
            self._parts[sequence] = _Part(sequence, TEXT, None, {})
            self.open = sequence
        self._parts[self.open].pieces.append(text)
        return self.open

    def _add_delta(self, number: object, chunk: Mapping[str, Any]) -> int | None:
        part, delta = self._find(number), chunk.get("delta")
        if part is None or part.is_settled or part.kind not in KINDS_WITH_TEXT:
            return None
        if part.kind == TEXT and part.parent is None:
            return None  # text of the answer is content, so that older readers have it
        if _is_string(delta) and delta:
            part.pieces.append(delta)
        return part.number

    def _start(self, sequence: int, parent: object, fields: Mapping[str, Any]) -> int | None:
        kind = fields.get("kind")
        if not _is_string(kind) or fields.get("transient") is True:
            return None
        above: int | None = None
        if parent is not None:
            call = self._find(parent)
            if call is None or call.kind != TOOL_CALL:
                return None
            above = call.number
        else:
            self._close_text()
        part = _Part(sequence, kind, above, {})
        self.counted = part.set(fields, starts=True)
        place = part.place
        if place is not None and place in self._at:
            replaced = self._parts[self._at[place]]
            if not replaced.redacted:
                replaced.fields = part.fields
            return replaced.number
        self._parts[sequence] = part
        if place is not None:
            self._at[place] = sequence
        if kind == TEXT and above is None:
            self.open = sequence
        return sequence

    def _change(self, number: object, event: str, fields: Mapping[str, Any]) -> int | None:
        part = self._find(number)
        if part is None or part.redacted:
            return None
        if event == "redact":
            part.redact(fields.get("reason"))
        elif part.is_settled:
            return None
        else:
            self.counted = part.set(fields)
        if event != "set":
            part.closed, part.ended_at = True, self.next_sequence - 1
            if self.open == part.number:
                self.open = None
        if event == "end" and part.kind == STEP and part.parent is None:
            self._close_text()  # what follows is not the step's, which a reset may spare
        return part.number

    def _reset(self, first: object) -> None:
        """Voids the parts that are numbered from ``first`` on; those before keep what they got."""
        start = part_number(first)
        if start is None:
            return
        self._close_text()
        for number in [each for each in self._parts if each >= start]:
            place = self._parts.pop(number).place
            if place is not None:
                del self._at[place]

    def _close_text(self) -> None:
        if self.open is not None:
            self._parts[self.open].closed = True
            self.open = None

    def _find(self, value: object) -> _Part | None:
        number = part_number(value)
        return None if number is None else self._parts.get(number)


def part_number(value: object) -> int | None:
    """Returns the number of a part, if it is one.

    A whole float is one, since JavaScript has no other numbers.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return None


def _is_string(value: object) -> TypeGuard[str]:
    """Returns whether it is a string of JSON. Code of BSON is a ``str``, but has no hash."""
    return isinstance(value, str) and not isinstance(value, Code)


def _string_or_none(value: object) -> str | None:
    return value if _is_string(value) else None
