"""Queued messages: no run breaks a rule, and each rule that is broken is noticed."""

import logging
import os

import pytest

pytest.importorskip("mongomock")

from tests.model import THOROUGH
from tests.model.work import World, in_the_world
from tests.model.work_bugs import BUGS, Bug
from tests.model.work_contract import MOVES

RUNS = 6000 if THOROUGH in os.environ else 200
RUNS_FOR_A_BUG = 3000

FOUND = {
    "answer_whatever_the_state": 209,
    "fenced_worker_that_gives_back_the_place": 55,
    "insert_again_with_the_same_ticket": 1310,
    "place_of_the_id_of_the_message": 370,
    "recover_despite_a_stop": 81,
}
"""Seeds with which bugs that take many runs show at once; with others they show as well."""

RARE = {"promote_with_another_ticket"}
"""Bugs that take thousands of runs to show."""

pytestmark = pytest.mark.timeout(1800)  # it computes all the time: a busy machine takes long


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("converse_mongo"), "disabled", True)
    in_the_world(monkeypatch)


def test_work__keeps_the_contract() -> None:
    happened: set[tuple[str | None, str | None]] = set()
    for seed in range(RUNS):
        world = World(seed)
        try:
            world.run()
        except BaseException as error:
            error.add_note(f"in the run {seed}")
            raise
        happened |= {(before, after) for before, after, _ in world.contract.moves}
    assert happened == {*MOVES, ("blocked", "queued")}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug__is_noticed(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    if bug.name in RARE and THOROUGH not in os.environ:
        pytest.skip(f"it takes many runs to show: set {THOROUGH}=1 to look for it")
    bug.plant(monkeypatch)
    first = FOUND.get(bug.name, 0)
    for seed in range(first, first + RUNS_FOR_A_BUG):
        try:
            World(seed, moves=bug.moves).run()
        except Exception:  # noqa: BLE001 - a bug may break anything
            return
    pytest.fail("nobody noticed")
