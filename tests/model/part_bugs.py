"""Planted bugs in the reducer of parts and in merges: each breaks one rule."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from converse_mongo.domain import part_log, part_merging
from converse_mongo.domain.part_log import PartLog

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """A bug.

    Attributes:
        name: What is wrong.
        plant: Makes it so.
        log: The rare log that shows it; ``None`` if random ones do.
    """

    name: str
    plant: Plant
    log: str | None = None


BUGS: list[Bug] = []


def bug(log: str | None = None) -> Callable[[Plant], Plant]:
    """Adds a bug that is named as its function is."""

    def add(plant: Plant) -> Plant:
        BUGS.append(Bug(plant.__name__, plant, log))
        return plant

    return add


def around(owner: Any, name: str, spoil: Callable[..., Any]) -> Plant:
    """Replaces a function by one that gets it as its first argument."""
    whole = getattr(owner, name)

    def spoiled(*arguments: Any, **options: Any) -> Any:
        return spoil(whole, *arguments, **options)

    return lambda patch: patch.setattr(owner, name, spoiled)


def named(name: str, plant: Plant, log: str | None = None) -> None:
    BUGS.append(Bug(name, plant, log))


# The reducer


def _renumbered(add: Any, self: PartLog, sequence: int, chunk: Any) -> Any:
    taken = sequence if self.open is not None else len(self._parts)
    return add(self, taken, chunk)


named("text_is_numbered_by_counting", around(PartLog, "_add_text", _renumbered))


def _again(start: Any, self: PartLog, sequence: int, parent: Any, fields: Any) -> Any:
    number = start(self, sequence, parent, fields)
    if number is not None and number != sequence:
        self._parts[sequence] = self._parts.pop(number)
        self._parts[sequence].number = sequence
        self._at = {self._parts[n].place: n for n in self._parts if self._parts[n].place}  # type: ignore[misc]
    return number


named("data_gets_a_new_number", around(PartLog, "_start", _again))


@bug("data of a call and of the answer")
def data_in_another_place(patch: pytest.MonkeyPatch) -> None:
    place = part_log._Part.place.fget  # type: ignore[attr-defined]

    def spoiled(self: Any) -> Any:
        found = place(self)
        return found and found._replace(parent=None)

    patch.setattr(part_log._Part, "place", property(spoiled))


@bug("data with other fields")
def data_merge_their_fields(patch: pytest.MonkeyPatch) -> None:
    start = PartLog._start

    def spoiled(self: PartLog, sequence: int, parent: Any, fields: Any) -> Any:
        before = {n: part.fields for n, part in self._parts.items()}
        number = start(self, sequence, parent, fields)
        if number in before:
            self._parts[number].fields = {**before[number], **self._parts[number].fields}
        return number

    patch.setattr(PartLog, "_start", spoiled)


def _closing(start: Any, self: PartLog, sequence: int, parent: Any, fields: Any) -> Any:
    self._close_text()
    return start(self, sequence, parent, fields)


named("each_start_closes_the_text", around(PartLog, "_start", _closing))


def _open_if_replaced(start: Any, self: PartLog, sequence: int, parent: Any, fields: Any) -> Any:
    before = self.open
    number = start(self, sequence, parent, fields)
    if number is not None and number != sequence and before is not None:
        self.open, self._parts[before].closed = before, False
    return number


named(
    "data_replaced_leave_the_text_open",
    around(PartLog, "_start", _open_if_replaced),
    "data twice with text between",
)


def _open_after(reset: Any, self: PartLog, first: Any) -> None:
    before = self.open
    reset(self, first)
    if before in self._parts:
        self.open, self._parts[before].closed = before, False


named(
    "reset_leaves_the_text_open",
    around(PartLog, "_reset", _open_after),
    "a reset that voids nothing",
)


def _later(reset: Any, self: PartLog, first: Any) -> None:
    reset(self, first + 1 if isinstance(first, int) else first)


named(
    "reset_spares_the_first_part", around(PartLog, "_reset", _later), "data voided and given again"
)


def _only_open(reset: Any, self: PartLog, first: Any) -> None:
    kept = {n: part for n, part in self._parts.items() if part.closed and part.kind != "text"}
    reset(self, first)
    self._parts = dict(sorted({**self._parts, **kept}.items()))


named("reset_spares_closed_parts", around(PartLog, "_reset", _only_open), "a closed part voided")


def _places_stay(reset: Any, self: PartLog, first: Any) -> None:
    before = dict(self._at)
    reset(self, first)
    self._at = before


named(
    "reset_spares_the_places_of_data",
    around(PartLog, "_reset", _places_stay),
    "data voided and given again",
)


def _any_parent(start: Any, self: PartLog, sequence: int, parent: Any, fields: Any) -> Any:
    known = self._find(parent)
    return start(self, sequence, None if known is None else parent, fields)


named("parts_of_a_void_call_are_the_answers", around(PartLog, "_start", _any_parent))


def _any_kind(start: Any, self: PartLog, sequence: int, parent: Any, fields: Any) -> Any:
    above = self._find(parent)
    if above is None or above.kind == "tool_call":
        return start(self, sequence, parent, fields)
    above.kind, kind = "tool_call", above.kind
    try:
        return start(self, sequence, parent, fields)
    finally:
        above.kind = kind


named("parents_of_any_kind", around(PartLog, "_start", _any_kind))


def _lasting(start: Any, self: PartLog, sequence: int, parent: Any, fields: Any) -> Any:
    return start(self, sequence, parent, {n: fields[n] for n in fields if n != "transient"})


named("transient_data_last", around(PartLog, "_start", _lasting))


@bug("outcomes")
def outcome_replaced_by_a_preliminary_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(part_log, "has_outcome", lambda fields: False)


@bug()
def outcomes_side_by_side(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(part_log._Part, "_keep_outcome", lambda self, fields: None)


@bug("approved and denied")
def last_answer_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(part_log._Part, "_keep_answer", lambda self, fields: None)


@bug("asked again, and the first again")
def first_answer_counts_for_each_request(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(part_log, "_string_or_none", lambda value: None)


@bug("written to when redacted")
def redacted_parts_go_on(patch: pytest.MonkeyPatch) -> None:
    settled = property(lambda self: self.closed and self.kind != "tool_call")
    patch.setattr(part_log._Part, "is_settled", settled)


def _all_gone(redact: Any, self: Any, reason: Any) -> None:
    redact(self, reason)
    self.fields = {}


named(
    "redacted_data_can_be_given_again",
    around(part_log._Part, "redact", _all_gone),
    "data redacted and given again",
)


@bug()
def ended_calls_take_nothing(patch: pytest.MonkeyPatch) -> None:
    settled = property(lambda self: bool(self.redacted) or self.closed)
    patch.setattr(part_log._Part, "is_settled", settled)


def _with_answers(add: Any, self: PartLog, number: Any, chunk: Any) -> Any:
    part = self._find(number)
    if part is None or part.kind != "text" or part.parent is not None:
        return add(self, number, chunk)
    part.pieces.append(str(chunk.get("delta")))
    return part.number


named("deltas_are_text_of_the_answer", around(PartLog, "_add_delta", _with_answers))


def snapshot_without(name: str) -> Plant:
    def spoil(snapshot: Any, self: PartLog) -> Any:
        return {key: value for key, value in snapshot(self).items() if key != name}

    return around(PartLog, "snapshot", spoil)


named("snapshot_without_the_open_part", snapshot_without("open"))
named("snapshot_without_metadata", snapshot_without("metadata"))


def records_without(name: str) -> Plant:
    def spoil(snapshot: Any, self: PartLog) -> Any:
        found = snapshot(self)
        parts = [{key: part[key] for key in part if key != name} for part in found["parts"]]
        return {**found, "parts": parts}

    return around(PartLog, "snapshot", spoil)


named("snapshot_without_redactions", records_without("redacted"))
named("snapshot_without_ends", records_without("closed"))
named("snapshot_without_parents", records_without("parent"))
named("snapshot_without_values", records_without("values"), "values that are stored apart")


@bug("values that are stored apart")
def values_of_any_event(patch: pytest.MonkeyPatch) -> None:
    fields_of = part_log.fields_of
    patch.setattr(part_log, "fields_of", lambda found: fields_of({**found, "event": None}))


@bug("values that are stored apart")
def references_are_values(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(part_log, "parted", lambda fields: (dict(fields), {}))


def _moved(start: Any, self: PartLog, sequence: int, parent: Any, fields: Any) -> Any:
    if isinstance(fields, dict):
        fields.setdefault("title", None)
    return start(self, sequence, parent, fields)


named("reducing_changes_the_chunks", around(PartLog, "_start", _moved))


# Merges

Remains = part_merging._Remains


def _joined(one_by_one: Any, run: Any) -> Any:
    events = list(one_by_one(run))
    for index, event in enumerate(events):
        yield {**event, "delta": "" if index else run["delta"]} if "delta" in run else event


named("deltas_merged_into_the_first", around(part_merging, "_one_by_one", _joined))


def _far(runs: Any, events: Any) -> Any:
    order = {index: event["sequence"] for index, event in enumerate(events)}
    events = [{**event, "sequence": index} for index, event in enumerate(events)]
    for run in runs(events):
        yield {**run, "sequence": order[run["sequence"]]}


named(
    "events_joined_across_text",
    around(part_merging, "_in_runs", _far),
    "data three times with text between",
)


def _no_start(event: Any, self: Any, chunk: Any, number: Any) -> Any:
    return {} if part_merging._is_text(chunk) else event(self, chunk, number)


named(
    "emptied_text_without_its_start",
    around(Remains, "event", _no_start),
    "text redacted to nothing",
)


def _always_start(event: Any, self: Any, chunk: Any, number: Any) -> Any:
    is_text = part_merging._is_text(chunk) and chunk["content"]
    begun = {"event": "start", "fields": {"kind": "text"}}
    return begun if is_text else event(self, chunk, number)


named(
    "each_emptied_text_with_a_start",
    around(Remains, "event", _always_start),
    "text redacted to nothing",
)


@bug()
def void_text_is_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Remains, "text", lambda self, chunk, number: chunk["content"])


def after(spoil: Callable[[Any], None]) -> Plant:
    """Spoils what is known of the chunks."""

    def spoiled(init: Any, self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        spoil(self)

    return around(Remains, "__init__", spoiled)


class _Everywhere(dict[Any, int]):
    """A field comes from each chunk that has it."""

    class _Any(int):
        __eq__ = lambda self, other: True  # noqa: E731
        __hash__ = int.__hash__

    def get(self, key: Any, default: Any = None) -> Any:
        return self._Any()


def _superseded(self: Any) -> None:
    self._source = _Everywhere()


named("superseded_values_are_kept", after(_superseded))


def _first(source: Any, self: Any, chunks: Any) -> None:
    source(self, chunks)
    log, self._source = PartLog(), {}
    for chunk in chunks:
        number = log.add(chunk)
        for name in log.counted:
            self._source.setdefault((number, name), chunk["sequence"])


named("superseded_values_are_kept_instead", around(Remains, "__init__", _first))
named(
    "superseded_requests_go",
    after(lambda self: self._approvals.clear()),
    "asked again, and the first again",
)


def _void_kept(self: Any) -> None:
    numbers = {number for number in self.numbers if number is not None}
    self._legible = {number: {} for number in numbers} | self._legible


named("void_deltas_are_kept", after(_void_kept))


def dropping(*names: str) -> Plant:
    def spoil(effective: Any, event: Any, fields: Any) -> set[str]:
        kept: set[str] = effective(event, fields)
        return kept - set(names)

    return around(part_merging, "_effective", spoil)


named("kinds_of_void_starts_go", dropping("kind"))
named("transient_starts_become_void", dropping("transient"))
named(
    "names_of_superseded_data_go",
    around(part_merging, "identity_of", lambda *_: {}),
    "data three times with text between",
)
named("resets_say_nothing", dropping("from"))


def _all_values(event: Any, self: Any, chunk: Any, number: Any) -> Any:
    found = event(self, chunk, number)
    return {**found, "values": chunk["values"]} if "values" in chunk else found


named(
    "superseded_references_are_kept",
    around(Remains, "event", _all_values),
    "values that are stored apart",
)


@bug("values that are stored apart")
def references_go(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(part_merging, "fields_of", lambda found: found.get("fields") or {})


def _no_reason(fields: Any, self: Any, chunk: Any, number: Any) -> Any:
    kept = fields(self, chunk, number)
    return {} if chunk["event"] == "redact" else kept


named("reasons_go", around(Remains, "_fields", _no_reason), "written to when redacted")


def _no_event(event: Any, self: Any, chunk: Any, number: Any) -> Any:
    found = event(self, chunk, number)
    return found if number is not None or found.get("event") != "start" else {}


named("void_starts_go", around(Remains, "event", _no_event))


def _no_parent(event: Any, self: Any, chunk: Any, number: Any) -> Any:
    found = event(self, chunk, number)
    return {name: found[name] for name in found if name != "parent"}


named("parents_go", around(Remains, "event", _no_parent))


def _by_value(runs: Any, events: Any) -> Any:
    before: Any = None
    for run in runs(events):
        key = {name: run[name] for name in run if name not in ("sequence", "delta", "lengths")}
        if before is not None and key == before[1] and "delta" in run and "delta" in before[0]:
            run = {**run, "part": before[0]["part"]}
        before = run, key
        yield run


named("true_is_one", around(part_merging, "_in_runs", _by_value), "true is not one")
