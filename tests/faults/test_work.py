"""The short form of schedules of workers; ``python -m tests.faults --work`` runs the long one."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.servers import Server
from tests.faults.work_records import LifeRecord, WorkViewerRecord
from tests.faults.work_runner import WorkRun, run_work
from tests.faults.work_schedules import draw_work

# Between them: workers that are killed, also just before a write, that stand still for longer than
# their leases, are closed, deaf and cut off; web processes that generate, also answers that start
# over, and are killed; a server that is frozen; stops, deletions, answers of two at once, messages
# that wait for ever, and questions in one transaction with their answers, which may be aborted.
FIXED = (305, 403)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if os.environ.get("CONVERSE_TEST_URI"):
        pytest.skip("schedules kill their server, so they need the embedded one")
    with Server() as started:
        yield started


@pytest.mark.timeout(400)  # a busy machine takes long
@pytest.mark.parametrize("seed", FIXED)
async def test_work__fixed(server: Server, seed: int) -> None:
    await run_work(seed, server)


def test_work__is_the_same_for_the_same_seed() -> None:
    assert [draw_work(seed) for seed in range(50)] == [draw_work(seed) for seed in range(50)]


def test_work__watches_the_last_life_once_the_viewer_of_the_first_has_left() -> None:
    server: Any = None
    run: Any = WorkRun(draw_work(0), server, Path())
    queued = run._messages[0]
    web, orders = run._webs[queued.plan.web], list[dict[str, Any]]()
    web.order = lambda **order: orders.append(order)
    web.is_ready.set()
    for number in range(3):
        viewer = WorkViewerRecord(name=f"0.{number}")
        life = LifeRecord(plan=queued.plan, life=number, message_id="m", viewer=viewer)
        queued.lives.append(life)
        run._watch(queued)
    first, second, third = (life.viewer for life in queued.lives)
    assert [order["viewer"] for order in orders] == ["0.0"]
    run._take(web, {"kind": "gone", "viewer": "0.0"})
    assert [order["viewer"] for order in orders] == ["0.0", "0.2"]
    assert (first.gone, second.gone, third.gone) == (True, True, False)
