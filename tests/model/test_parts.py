"""The reducer of parts against its model, and merges against the reducer."""

import json
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import bson
import pytest
from bson import DBRef, Decimal128
from hypothesis import HealthCheck, Phase, given, seed, settings

from converse_mongo.domain import part_merging
from converse_mongo.domain.metadata import restored
from converse_mongo.domain.part_log import PartLog
from tests.model import THOROUGH
from tests.model.part_bugs import BUGS, Bug
from tests.model.parts import Chunk, Reading, logs
from tests.model.rare_logs import LOGS, chunk

RUNS, EXAMPLES = (8, 2_500) if THOROUGH in os.environ else (1, 150)
EXAMPLES_FOR_A_BUG = 400
"""At the most: most bugs show in ten."""

pytestmark = pytest.mark.timeout(1800)  # it computes all the time: a busy machine takes long


def explore(check: Callable[[list[Chunk]], None], examples: int, first: int = 0) -> None:
    """Checks logs, the same ones each time: what it finds once it finds always."""
    options = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        report_multiple_bugs=False,
        print_blob=False,
    )
    seed(first)(options(given(logs)(check)))()


def exact(value: Any) -> str:
    """A form in which true is not 1, no whole number is 1.0, and a NaN is itself."""
    return json.dumps(value, sort_keys=True, default=repr)


def seen(log: PartLog) -> Any:
    return exact([log.records(), log.metadata, log.open, log.next_sequence, log.text()])


def stored(document: dict[str, Any]) -> dict[str, Any]:
    return bson.decode(bson.encode(document))


def check_log(chunks: list[Chunk]) -> None:
    """The reducer says at each sequence what the model says, also from a snapshot on."""
    before = deepcopy(chunks)
    reading, log = Reading(chunks), PartLog()
    snapshots = []
    for n in range(len(chunks) + 1):
        state = [reading.records(n), reading.metadata(n), reading.open_text(n), n]
        assert seen(log) == exact([*state, reading.answer(n)])
        snapshots.append(deepcopy(log.snapshot()))
        if n < len(chunks):
            assert log.add(chunks[n]) == reading.belongs(n)
    for n, snapshot in enumerate(snapshots):
        rest = PartLog.from_snapshot(snapshot)
        for each in chunks[n:]:
            rest.add(each)
        assert seen(rest) == seen(log)
    assert exact(chunks) == exact(before)


def check_merge(chunks: list[Chunk]) -> None:
    """A merge says the same as the log, from the beginning and behind each cursor."""
    whole = PartLog.of(chunks)
    before, said = deepcopy(chunks), seen(whole)
    merged = part_merging.merge(chunks)
    assert merged.content == whole.text()
    document = stored(
        {
            "content": merged.content,
            "chunk_lengths": merged.lengths,
            "chunk_events": merged.events,
            "completed_at": None,
        }
    )
    expanded = part_merging.expand_events(document)
    assert exact(chunks) == exact(before)
    assert [each["sequence"] for each in expanded] == list(range(len(chunks)))
    for n in range(len(chunks) + 1):
        assert part_merging.expand_events(document, n, 3) == expanded[n : n + 3]
        live, back = PartLog.of(chunks[:n]), PartLog.of(expanded[:n])
        if n % 2:
            live = PartLog.from_snapshot(live.snapshot())
        # What was merged is there again where a failover takes the merge back.
        for log, rest in ((live, expanded), (back, chunks)):
            for each in rest[n:]:
                log.add(each)
            assert seen(log) == said
    check_remains(chunks, expanded)
    assert exact(part_merging.merge(expanded)._asdict()) == exact(merged._asdict())


KEPT = {"kind", "transient", "name", "id", "from", "approval"}
"""The fields that may stay where nothing is read of them."""


def check_remains(chunks: Sequence[Chunk], expanded: Sequence[Chunk]) -> None:
    """All events stay, and of the rest only what can be read."""
    names = ("event", "part", "parent")
    whole = seen(PartLog.of(expanded))
    for before, after in zip(chunks, expanded, strict=True):
        is_text = before.get("event") is None and before.get("part") is None
        if not is_text:
            assert [exact(after.get(name)) for name in names] == [
                exact(stored({"_": before.get(name)})["_"]) for name in names
            ]
        spoiled = [{**after, "delta": ""}] if after.get("delta") else []
        said = restored(after.get("fields", {}))  # a mapping may look like a reference
        for name, value in said.items():
            if name in KEPT or (name == "reason" and value in ("", 1)):
                continue
            fields = {key: said[key] for key in said if key != name}
            spoiled.append({**after, "fields": fields})
        for name in after.get("values", {}):
            values = {key: each for key, each in after["values"].items() if key != name}
            spoiled.append({**after, "values": values})
        for each in spoiled:
            log = [*expanded[: each["sequence"]], each, *expanded[each["sequence"] + 1 :]]
            assert seen(PartLog.of(log)) != whole, f"{each} says too much"


def check_all(chunks: list[Chunk]) -> None:
    check_log(chunks)
    check_merge(chunks)


@pytest.mark.parametrize("run", range(RUNS))
def test_log__says_what_the_model_says_and_its_merge_does(run: int) -> None:
    explore(check_all, EXAMPLES, run)


@pytest.mark.parametrize("name", LOGS)
def test_rare_log__says_what_the_model_says_and_its_merge_does(name: str) -> None:
    check_all(LOGS[name])


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug__is_noticed(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017, PT011 - a bug may break anything
        if bug.log is None:
            explore(check_all, EXAMPLES_FOR_A_BUG)
        else:
            check_all(LOGS[bug.log])


def test_log__is_left_as_it_was() -> None:
    chunks = [chunk(0, event="start", fields={"kind": "reasoning"}), chunk(1, part=0, delta="a")]
    before = deepcopy(chunks)
    first = PartLog.of(chunks).records()
    assert chunks == before
    assert PartLog.of(chunks).records() == first != []


def test_data__get_name_and_id_with_their_start_alone() -> None:
    chunks = [
        chunk(0, event="start", fields={"kind": "data"}),
        chunk(1, event="set", part=0, fields={"name": "w", "id": "1", "value": 1}),
        chunk(2, event="start", fields={"kind": "data", "name": "w", "id": "1"}),
        chunk(3, event="reset", fields={"from": 2}),
    ]
    assert PartLog.of(chunks).records() == [{"part": 0, "kind": "data", "fields": {"value": 1}}]


def test_approval__is_known_by_text_alone() -> None:
    # A signaling NaN cannot be compared; other languages compare mappings otherwise.
    for request in (Decimal128("sNaN"), {"a": 1}, 1, None):
        answers = [{"id": request, "approved": approved} for approved in (True, False)]
        chunks = [
            chunk(0, event="start", fields={"kind": "tool_call", "approval": answers[0]}),
            chunk(1, event="set", part=0, fields={"approval": answers[1]}),
        ]
        (record,) = PartLog.of(chunks).records()
        assert record["fields"]["approval"]["approved"] is True


def test_metadata__may_look_like_a_reference() -> None:
    log = PartLog.of([chunk(0, event="metadata", fields=DBRef("a", 1))])
    assert log.metadata == {"$ref": "a", "$id": 1}
