"""The short form of schedules of workers; ``python -m tests.faults --work`` runs the long one."""

import os
from collections.abc import Iterator

import pytest

from tests.faults.servers import Server
from tests.faults.work_runner import run_work
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
