"""The short form of the fault suite; ``python -m nox -s faults`` runs the long one."""

import os
import random
import sys
from collections.abc import Iterator

import pytest

from tests.faults.runner import run_schedule
from tests.faults.schedules import draw
from tests.faults.servers import Server

# Between them: two that write at once, one that resumes, lets go, vanishes, is fenced off, crashes
# between two writes and is stopped; viewers that come back; a server that is killed; lost answers.
FIXED = (18, 36, 79, 110, 132, 285)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if os.environ.get("CONVERSE_TEST_URI"):
        pytest.skip("schedules kill their server, so they need the embedded one")
    with Server() as started:
        yield started


@pytest.mark.parametrize("seed", FIXED)
async def test_schedule__fixed(server: Server, seed: int) -> None:
    await run_schedule(seed, server)


async def test_schedule__drawn(server: Server) -> None:
    seed = random.SystemRandom().randrange(10**6)
    sys.stdout.write(f"Seed {seed}: {draw(seed).describe()}\n")
    await run_schedule(seed, server)


def test_schedule__is_the_same_for_the_same_seed() -> None:
    assert [draw(seed) for seed in range(50)] == [draw(seed) for seed in range(50)]
