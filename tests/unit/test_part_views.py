"""What clients see of parts: the same of the chunks as of the records, whatever is hidden."""

import json
import zlib
from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
from bson import Binary, Code
from hypothesis import given, settings
from hypothesis import strategies as st

from converse_mongo import StepPart, ToolCallPart
from converse_mongo.documents.part_views import shown_chunk, shown_records
from converse_mongo.documents.presentation import Presentation, Shown
from converse_mongo.domain.chunks import MessageChunk, PartChunk
from converse_mongo.domain.part_identity import HIDDEN, PartIdentity, start_of
from converse_mongo.domain.part_log import IDENTITY, PartLog, part_number
from converse_mongo.domain.validation import now
from tests.model.part_logs import VECTORS, as_json, logs, stored


class Open(Presentation):
    """Shows the same of each part."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown

    def part(self, identity: PartIdentity) -> Shown:
        return self._shown


class Choosy(Presentation):
    """Hides some parts, and some fields of others, each in the same way every time."""

    def __init__(self, seed: int, log: list[Any]) -> None:
        self._seed = seed
        # What was redacted keeps its name only if that tells what it is.
        self._by_name = not any(each.get("event") == "redact" for each in log)

    def part(self, identity: PartIdentity) -> Shown:
        names: list[Any] = []
        each: PartIdentity | None = identity
        while each is not None:
            named = self._by_name or each.kind in IDENTITY
            names.append((each.kind, each.name if named else None))
            each = each.parent
        return CHOICES[zlib.crc32(repr((self._seed, names)).encode()) % len(CHOICES)]


CHOICES: list[Shown] = [
    *(True, False, frozenset[str](), frozenset({"text", "value"})),
    *(frozenset({"output"}), frozenset({"error", "approval"})),
]


def identity_in(log: list[Mapping[str, Any]], number: int | None) -> PartIdentity | None:
    """The identity of a part, from the chunks that begin it and what is above it."""
    if number is None or number >= len(log):
        return None
    start = start_of(MessageChunk.from_stored(log[number]))
    if start.kind is None or (start.parent is not None and start.parent >= number):
        return None
    if log[number].get("parent") is not None and log[number].get("event") == "start":
        above = identity_in(log, start.parent)
        return None if above is None else PartIdentity(start.kind, start.name, above)
    return PartIdentity(start.kind, start.name)


def on_the_wire(log: list[Any], presentation: Presentation) -> list[dict[str, Any]]:
    """The chunks as clients get them."""
    found: list[dict[str, Any]] = []
    for each in log:
        chunk = MessageChunk.from_stored(each)
        if not isinstance(chunk, PartChunk):
            found.append({"sequence": chunk.sequence, "content": chunk.content})
            continue
        number = chunk.sequence if chunk.event == "start" else part_number(chunk.part)
        if number is not None and number > chunk.sequence:
            number = None
        shown = shown_chunk(chunk, identity_in(log, number), presentation)
        found.append(json.loads(json.dumps(shown)))
    return found


def seen(log: PartLog) -> str:
    """The parts that a client shows."""
    return as_json([each for each in log.records() if each["kind"] != HIDDEN])


@settings(max_examples=60, deadline=None, database=None)
@given(log=logs([]), seed=st.integers(0, 99), draw=st.randoms(use_true_random=True))
def test_chunks__make_what_the_records_say_at_every_cut(
    log: list[dict[str, Any]], seed: int, draw: Any
) -> None:
    log = [{"created_at": now(), **each} for each in log]
    presentation = Choosy(seed, log)
    sent = on_the_wire(log, presentation)
    assert [each["sequence"] for each in sent] == list(range(len(log)))
    here, live, late = PartLog(), PartLog(), PartLog()
    reloads = draw.randrange(len(log))
    for chunk, each in zip(log, sent, strict=True):
        here.add(chunk)
        live.add(each)
        late.add(each)
        records = json.loads(json.dumps(shown_records(here.records(), presentation)))
        assert seen(live) == as_json([each for each in records if each["kind"] != HIDDEN])
        assert live.text() == here.text()
        if chunk["sequence"] == reloads:
            snapshot = {"next_sequence": here.next_sequence, "parts": records}
            late = PartLog.from_snapshot({**snapshot, "open": here.open})
        assert seen(late) == seen(live)


def test_reference__beside_a_field_of_its_name_is_shown_to_nobody() -> None:
    fields = {"kind": "data", "name": "score", "id": 5, "value": 1}
    reference = {"size": 9, "hash": "", "id": ""}
    start = {"sequence": 0, "content": "", "event": "start", "fields": fields}
    log = [{"created_at": now(), **start, "values": {"id": reference}}]
    sent = on_the_wire(log, Open(True))
    records = shown_records(PartLog.of(log).records(), Open(True))
    assert "values" not in sent[0]
    assert seen(PartLog.of(sent)) == as_json(records)


def test_chunks__of_the_vectors_make_what_the_records_say() -> None:
    for seed, vector in product(range(4), VECTORS):
        log = [{"created_at": now(), **each} for each in stored(vector["chunks"])]
        presentation = Choosy(seed, log)
        live = PartLog.of(on_the_wire(log, presentation))
        shown = shown_records(PartLog.of(log).records(), presentation)
        assert seen(live) == as_json(shown), vector["name"]


def test_hidden_step__still_ends_the_text_before_its_end() -> None:
    class NoSteps(Presentation):
        def part(self, identity: PartIdentity) -> Shown:
            return identity.kind != "step"

    begun = {"event": "start", "fields": {"kind": "step"}}
    ended = {"event": "end", "part": 0, "fields": {"model": "m"}}
    log = [{"created_at": now(), **each} for each in stored([begun, "a", ended, "b", ended, "c"])]
    shown = shown_records(PartLog.of(log).records(), NoSteps())
    assert [each.get("text") for each in shown] == [None, "a", "bc"]
    assert shown[0]["fields"] == {}
    assert seen(PartLog.of(on_the_wire(log, NoSteps()))) == as_json(shown)


PRIVATE = "the provider's own"
OWN = {"name": "x", "data": PRIVATE}


@pytest.mark.parametrize("choice", [True, frozenset({"provider", "result_provider", "output"})])
def test_provider_data__are_never_shown(choice: Shown) -> None:
    fields = {"provider": OWN, "result_provider": OWN, "output": 1}
    values = {name: {"id": PRIVATE, "size": 9, "hash": PRIVATE} for name in fields}
    call = {"kind": "tool_call", "name": "f", "call_id": "c"}
    events: list[Any] = [
        {"event": "start", "fields": {**call, **fields}},
        {"event": "set", "part": 0, "fields": fields},
        {"event": "end", "part": 0, "fields": fields},
    ]
    log: list[Any] = [{"created_at": now(), **each} for each in stored(events)]
    records = shown_records(PartLog.of(log).records(), Open(choice))
    told = [*on_the_wire(log, Open(choice)), *records]
    assert PRIVATE not in as_json(told)
    assert records[0]["fields"] == {**{n: v for n, v in call.items() if n != "kind"}, "output": 1}
    record = {**PartLog.of(log).records()[0], "values": values}
    [shown] = shown_records([record], Open(choice))
    assert (shown["values"], PRIVATE in as_json(shown)) == ({"output": {"size": 9}}, False)


def test_hidden_outcome__still_ends_the_call() -> None:
    class Names(Presentation):
        def part(self, identity: PartIdentity) -> Shown:
            return frozenset()

    outcomes: list[dict[str, Any]] = [{"output": None}, {"error": ""}]
    for shown in outcomes:
        outcome: dict[str, Any] = dict.fromkeys(shown, PRIVATE)
        call = ToolCallPart("f", "c", input=PRIVATE, **outcome)
        [found] = shown_records([{**call.to_record(), "part": 0}], Names())
        assert found["fields"] == {"name": "f", "call_id": "c", **shown}
        assert ToolCallPart.from_record(found, ended=True).is_finished


def test_values__of_all_types_are_json() -> None:
    step = {**StepPart().to_record(), "part": 0}
    fields = {"bytes": Binary(b"x"), "code": Code("x"), "nan": float("nan"), "half": "\ud800"}
    [found] = shown_records([{**step, "fields": fields}], Presentation())
    json.dumps(found).encode()
    assert found["fields"].keys() == fields.keys()


def test_error__of_an_orphan_is_shown_without_its_attempt() -> None:
    shown = Presentation().error
    assert shown("interrupted in attempt 2 of 2") == shown("interrupted") == "interrupted"
    assert shown("interrupted: key=secret") == shown("secret") != "secret"
