"""The protocol against the contract: no run breaks it, and each rule that is broken is noticed."""

import logging
import os

import pytest

pytest.importorskip("mongomock")

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.bugs import BUGS, Bug
from tests.model.conftest import simulate
from tests.model.machine import Protocol

EXAMPLES = 150
EXAMPLES_FOR_A_BUG = 60
STEPS = 30

SLOW = frozenset(
    {
        "append_gives_no_sign_of_life",
        "append_id_not_looked_for_after_a_merge",
        "append_without_a_bound",
        "end_when_replaced",
        "lease_what_has_ended",
        "merge_that_forgets_appends",
        "page_of_what_a_failover_takes_back",
        "reader_of_all_that_looks_once",
        "reader_of_pieces_that_looks_once",
        "settle_what_lives_again",
        "start_what_has_started",
        "stop_a_writer_that_just_came",
    }
)
"""Bugs that take many runs to show: looked for where CONVERSE_THOROUGH says how many."""


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
    examples = EXAMPLES_FOR_A_BUG
    if bug.name in SLOW:
        examples = int(os.environ.get("CONVERSE_THOROUGH", "0"))
        if not examples:
            pytest.skip("it takes many runs to show: set CONVERSE_THOROUGH to a number of them")
    bug.plant(monkeypatch)
    tested = type("Tested", (Protocol,), {"topics": bug.topics})
    with pytest.raises(Exception):  # noqa: B017, PT011 - a bug may break anything
        explore(tested, examples)
