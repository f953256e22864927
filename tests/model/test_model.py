"""The protocol against the contract: no run breaks it, and each rule that is broken is noticed."""

import logging
import os

import pytest

pytest.importorskip("mongomock")

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model import THOROUGH
from tests.model.bugs import BUGS, Bug
from tests.model.machine import Protocol
from tests.model.world import simulate

EXAMPLES = 150
STEPS = 30
EXAMPLES_FOR_A_BUG = 3000
"""At the most: most bugs show in fewer than a hundred."""

RARE = frozenset(
    {
        "page_of_what_a_failover_takes_back",
        "reader_of_pieces_that_looks_once",
        "start_what_has_started",
    }
)
"""Bugs that take minutes of a slow machine to show."""


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("converse_mongo"), "disabled", True)
    simulate(monkeypatch)


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
def test_protocol__keeps_the_contract(failover: bool) -> None:
    topics = {*Protocol.topics} - {"failover"} | ({"failover"} if failover else set())
    explore(type("Tested", (Protocol,), {"topics": tuple(sorted(topics))}), EXAMPLES)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug__is_noticed(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    if bug.name in RARE and THOROUGH not in os.environ:
        pytest.skip(f"it takes many runs to show: set {THOROUGH}=1 to look for it")
    bug.plant(monkeypatch)
    tested = type("Tested", (Protocol,), {"topics": bug.topics})
    with pytest.raises(Exception):  # noqa: B017, PT011 - a bug may break anything
        explore(tested, EXAMPLES_FOR_A_BUG)
