"""The protocol against the contract: no run breaks it, and each rule that is broken is noticed."""

import logging
import os
from collections.abc import Collection

import pytest

pytest.importorskip("mongomock")

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model import THOROUGH
from tests.model.bugs import Bug
from tests.model.machine import HASTY, PARTS, Protocol
from tests.model.numbering_bugs import BUGS
from tests.model.world import simulate

EXAMPLES = 600 if THOROUGH in os.environ else 40
STEPS = 30
EXAMPLES_FOR_A_BUG = 3000
"""At the most: most bugs show in fewer than a hundred."""

RARE = frozenset(
    {
        "finish_the_merge_of_another_log",
        "page_of_what_a_failover_takes_back",
        "reader_of_pieces_that_looks_once",
        "renew_another_log",
        "start_what_has_started",
        "take_over_another_log",
    }
)
"""Bugs that take minutes of a slow machine to show."""

FOUND = {
    "append_id_not_looked_for_after_a_merge": 11,
    "append_id_not_looked_for_in_pages": 5,
    "trim_twice": 16,
    "trim_all": 3,
    "page_of_each_writer_its_own": 3,
    "page_of_another_not_looked_at": 3,
    "settle_what_lives_again": 17,
    "trim_another_log": 8,
    "end_another_log_of_the_same_epoch": 8,
    "merge_that_forgets_appends": 11,
    "reader_of_all_that_looks_once": 7,
}
"""Seeds with which bugs that take many runs show at once; with others they show as well."""


pytestmark = pytest.mark.timeout(1800)  # it computes all the time: a busy machine takes long


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("converse_mongo"), "disabled", True)
    simulate(monkeypatch)


def machine_for(monkeypatch: pytest.MonkeyPatch, topics: Collection[str]) -> type[Protocol]:
    """The machine in which these things happen, in the world that they happen in."""
    if HASTY in topics or PARTS in topics:
        simulate(monkeypatch, hasty=HASTY in topics, parts=PARTS in topics)
    return type("Tested", (Protocol,), {"topics": tuple(topics)})


def explore(machine: type[Protocol], examples: int) -> None:
    """Runs a machine in the same way each time: what it finds once it finds always."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
            report_multiple_bugs=False,
            print_blob=False,
        ),
    )


@pytest.mark.parametrize("failover", [False, True], ids=["steady", "failing-over"])
def test_protocol__keeps_the_contract(failover: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    topics = [topic for topic in Protocol.topics if failover or topic != "failover"]
    explore(machine_for(monkeypatch, topics), EXAMPLES)


def test_protocol__keeps_the_contract_with_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    explore(machine_for(monkeypatch, [*Protocol.topics, PARTS]), EXAMPLES // 4)


def test_protocol__keeps_the_contract_with_a_majority_that_is_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topics = ("append", "write", "end", "crash", "trouble", HASTY)
    explore(machine_for(monkeypatch, topics), EXAMPLES // 5)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug__is_noticed(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    if bug.name in RARE and THOROUGH not in os.environ:
        pytest.skip(f"it takes many runs to show: set {THOROUGH}=1 to look for it")
    machine = machine_for(monkeypatch, bug.topics)
    if bug.name in FOUND:
        machine = seed(FOUND[bug.name])(machine)
    bug.plant(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017, PT011 - a bug may break anything
        explore(machine, EXAMPLES_FOR_A_BUG)
