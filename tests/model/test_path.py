"""Parts on their whole path: whoever writes and reads has the same."""

import asyncio
import json
import logging
import os
import shutil
import subprocess
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path as Folder
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from converse_mongo.documents import own_writes
from converse_mongo.domain import part_merging, part_redaction
from converse_mongo.driver import retry
from converse_mongo.store import pages
from tests.conftest import USES_MOTOR
from tests.model import THOROUGH, numbering_bugs, part_bugs
from tests.model.bugs import Plant
from tests.model.part_logs import as_json
from tests.model.parts import Chunk, logs
from tests.model.path import Path, Plan, World, world
from tests.model.rare_logs import CALL, LOGS, data, delta, event, log, start

RUNS, EXAMPLES = (8, 1_250) if THOROUGH in os.environ else (1, 15)
EXAMPLES_FOR_A_BUG = 100
"""At the most: a few show most bugs."""
PAGE_CHUNKS = 4

pytestmark = [
    pytest.mark.timeout(1800),  # it computes all the time: a busy machine takes long
    pytest.mark.skipif(not USES_MOTOR, reason="mongomock-motor poses as Motor"),
]


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are small, and nobody waits."""
    monkeypatch.setattr(logging.getLogger("converse_mongo"), "disabled", True)
    for module in (pages, own_writes):
        monkeypatch.setattr(module, "PAGE_CHUNKS", PAGE_CHUNKS)
    monkeypatch.setattr(retry, "random_pause", lambda *_: 0.0)


@pytest.fixture
def opened() -> Iterator[Callable[[Callable[[World], Awaitable[None]]], None]]:
    """Runs what is to be done in a world."""
    with asyncio.Runner() as runner:
        processes = world()
        found = runner.run(processes.__aenter__())
        try:
            yield lambda work: runner.run(work(found))  # type: ignore[arg-type]
        finally:
            runner.run(processes.__aexit__(None, None, None))


Opened = Callable[[Callable[[World], Awaitable[None]]], None]


def explore(opened: Opened, examples: int, first: int = 0) -> None:
    """Sends logs on their way, the same ones each time."""
    options = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        report_multiple_bugs=False,
        print_blob=False,
    )

    def go(log: list[Chunk], number: int) -> None:
        opened(lambda world: Path(world, log, Random(number)).go())

    seed(first)(options(given(logs, st.integers(0, 2**32))(go)))()


@pytest.mark.parametrize("run", range(RUNS))
def test_path__leads_to_the_same_parts_everywhere(opened: Opened, run: int) -> None:
    explore(opened, EXAMPLES, run)
    opened(check_in_browsers)


async def check_in_browsers(world: World) -> None:
    """Checks that the reducer in JavaScript makes the same of what browsers get."""
    assert world.wire
    if (node := shutil.which("node")) is None:
        return
    reduce = Folder(__file__).parents[1] / "web" / "client" / "reduce.mjs"
    done = subprocess.run(  # noqa: ASYNC221 - nobody else does anything
        [node, str(reduce)],
        input=json.dumps([chunks for chunks, _ in world.wire]).encode(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    for (_, records), found in zip(world.wire, json.loads(done.stdout), strict=True):
        assert as_json(found["snapshot"]["parts"]) == as_json(records)


REASONING = start("reasoning")

NEXT: Plan = [(0, "by hand", 1), (1, "by hand", 1)] * 10
"""Two processes append in turn, and neither knows of the other."""
WRITTEN: Plan = [(0, "writer", 1), (0, "writer", 2)] * 10
TAKEN_OVER: Plan = [(at % 2, "take-over", 1) for at in range(20)]

NAMED: dict[str, tuple[list[Chunk], Plan]] = {
    "an emptied transient chunk is no text": (LOGS["transient data in a text"], WRITTEN),
    "an emptied void chunk is no text": (LOGS["void data in a text"], WRITTEN),
    "data again have no new number": (LOGS["data twice with text between"], NEXT),
    "data again and again have none": (LOGS["data three times with text between"], TAKEN_OVER),
    "deltas keep their places": (LOGS["deltas in a row"], NEXT),
    "a snapshot has the open part": (LOGS["text goes on"], TAKEN_OVER),
    "an append at a stale number": (
        log(REASONING, "a", CALL, delta(2, "{"), delta(0, "b"), event("end", 0), delta(2, "}")),
        [(0, "by hand", 2), (1, "by hand", 4), (1, "by hand", 1)],
    ),
    "one approves and another denies": (LOGS["approved and denied"], NEXT),
    "an append between two flushes": (
        log("a", REASONING, delta(1, "b"), CALL, "c", delta(1, "d"), delta(3, "{"), "e"),
        [(0, "writer", 3), (1, "by hand", 2), (0, "writer", 3)],
    ),
    "plain text redacted to nothing": (LOGS["text redacted to nothing"], WRITTEN),
    "text that a reset takes back": (
        log("a", REASONING, "b", {"event": "reset", "fields": {"from": 2}}, "c"),
        [(0, "writer", 2), (0, "writer", 3)],
    ),
    "fields: true": (LOGS["fields that are none"], TAKEN_OVER),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_log__leads_to_the_same_parts_everywhere(opened: Opened, name: str) -> None:
    chunks, plan = NAMED[name]
    opened(lambda world: Path(world, chunks, Random(0), plan).go())


def test_parts__of_a_long_log_that_is_taken_over_in_the_middle_of_each(opened: Opened) -> None:
    chunks = log(
        *("Look: ", CALL, delta(1, '{"q"'), delta(1, ": 1}"), event("end", 1, input={"q": 1})),
        *(start("text", 1), delta(5, "I am "), delta(5, "another."), REASONING, delta(8, "Hm")),
        *("a", start("step"), event("set", 1, output=1, preliminary=True), data(1), "b"),
        *(data(2), delta(8, "."), event("set", 1, output=2), event("end", 11, usage={"t": 1})),
    )
    opened(lambda world: Path(world, chunks, Random(0), TAKEN_OVER).go())


# Planted bugs


def merge_bug(name: str) -> Plant:
    (found,) = [bug for bug in part_bugs.BUGS if bug.name == name]
    return found.plant


def copy_keeps_what_was_taken_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(own_writes.OwnWrites, "_take_out_text", lambda *_: None)


def copy_takes_no_parts_of_appends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(own_writes.OwnWrites, "_add_parts", lambda *_: None)


def merged_events_are_read_from_the_next_one_on(patch: pytest.MonkeyPatch) -> None:
    def spoiled(runs: Any, start: int, *, key: Any) -> int:
        return bisect_right(runs, start, key=key) + 1

    patch.setattr(part_merging, "bisect_right", spoiled)


def swept_text_has_no_start(patch: pytest.MonkeyPatch) -> None:
    sweep = part_redaction.Sweep.sweep

    def spoiled(self: part_redaction.Sweep, chunk: dict[str, Any]) -> dict[str, Any]:
        swept = sweep(self, chunk)
        if chunk.get("event") is None and swept.get("event") == "start":
            del swept["event"], swept["fields"]
        return swept

    patch.setattr(part_redaction.Sweep, "sweep", spoiled)


BUGS: dict[Plant, str | None] = {
    numbering_bugs.references_keep_their_first_numbers: "an append at a stale number",
    numbering_bugs.numbers_are_learned_at_the_first_try: "an append at a stale number",
    numbering_bugs.numbers_are_not_learned_without_an_answer: None,
    numbering_bugs.end_with_the_parts_of_a_copy_that_is_behind: "an append at a stale number",
    copy_keeps_what_was_taken_out: "text that a reset takes back",
    copy_takes_no_parts_of_appends: "deltas keep their places",
    merged_events_are_read_from_the_next_one_on: "deltas keep their places",
    merge_bug("deltas_merged_into_the_first"): "deltas keep their places",
    swept_text_has_no_start: "plain text redacted to nothing",
    merge_bug("names_of_superseded_data_go"): "data again and again have none",
    merge_bug("snapshot_without_the_open_part"): "a snapshot has the open part",
}
"""Bugs on the path, with the log that shows each; ``None`` if logs that are drawn do."""


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_bug__is_noticed(opened: Opened, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    name = BUGS[plant]
    with pytest.raises(Exception):  # noqa: B017, PT011 - a bug may break anything
        if name is None:
            explore(opened, EXAMPLES_FOR_A_BUG)
        else:
            chunks, plan = NAMED[name]
            opened(lambda world: Path(world, chunks, Random(0), plan).go())
