"""The long form: ``python -m tests.faults --schedules 500``. It also replays a seed."""

import argparse
import asyncio
import logging
import random
import sys
import time
from collections import Counter

from converse_mongo.domain.errors import ConverseError
from converse_mongo.driver.installed import driver_name
from converse_mongo.embedded import EmbeddedServer
from tests.faults.failover import run_failovers
from tests.faults.runner import Outcome, ScheduleFailedError, run_schedule
from tests.faults.servers import Server

SCHEDULES = 500
SCHEDULES_PER_SERVER = 50
"""After so many a new server is started, since an old one takes longer to start again."""


def main() -> int:
    """Runs schedules; 1 means that one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--schedules", type=int, default=SCHEDULES, help="how many to run")
    parser.add_argument(
        "--seed", type=int, help="that of the first one, each has the next; drawn by default"
    )
    parser.add_argument("--jobs", type=int, default=2, help="how many to run at once")
    parser.add_argument("--keep-going", action="store_true", help="go on behind a failure")
    parser.add_argument(
        "--failovers", type=int, metavar="COUNT", help="run so many schedules of failovers instead"
    )
    arguments = parser.parse_args()
    logging.getLogger("converse_mongo").addHandler(logging.NullHandler())
    first = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    if arguments.failovers:
        say(f"{arguments.failovers} schedules of failovers from seed {first} on")
        return asyncio.run(fail_over(first, arguments.failovers))
    say(f"{arguments.schedules} schedules from seed {first} on, with {driver_name()}")
    series = Series(first, arguments.schedules, keep_going=arguments.keep_going)
    asyncio.run(series.run(arguments.jobs))
    say(series.summary())
    return 1 if series.failed else 0


async def fail_over(first: int, count: int) -> int:
    """Runs schedules of failovers; 1 means that one of them failed."""
    with EmbeddedServer() as server:
        for seed in range(first, first + count):
            started = time.monotonic()
            try:
                events = await run_failovers(seed, f"{server.uri}?retryWrites=false")
            except (AssertionError, TimeoutError, ConverseError) as error:
                say(f"seed {seed} failed: {error!r}")
                return 1
            say(f"seed {seed}  {time.monotonic() - started:5.1f} s  {events} events")
    return 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Series:
    """Schedules with one seed after the other."""

    def __init__(self, first: int, count: int, *, keep_going: bool) -> None:
        self._count = count
        self._seeds = iter(range(first, first + count))
        self._keep_going = keep_going
        self._started = time.monotonic()
        self._outcomes: list[Outcome] = []
        self.failed: list[int] = []

    async def run(self, jobs: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(jobs, self._count)):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        while not self.failed or self._keep_going:
            with Server() as server:
                for _ in range(SCHEDULES_PER_SERVER):
                    seed = next(self._seeds, None)
                    if seed is None or (self.failed and not self._keep_going):
                        return
                    await self._run(seed, server)

    async def _run(self, seed: int, server: Server) -> None:
        try:
            outcome = await run_schedule(seed, server)
        except ScheduleFailedError as error:
            self.failed.append(seed)
            say(f"\n{error}\n")
            return
        self._outcomes.append(outcome)
        say(
            f"{len(self._outcomes):4} of {self._count}  seed {seed}  {outcome.seconds:5.1f} s  "
            f"{outcome.status:9} {outcome.tokens:4} tokens  {outcome.schedule.describe()}"
        )

    def summary(self) -> str:
        outcomes = self._outcomes
        done = sum((outcome.done for outcome in outcomes), Counter[str]())
        return "\n".join(
            [
                f"{len(outcomes)} schedules passed, {len(self.failed)} failed {self.failed}, "
                f"in {time.monotonic() - self._started:.0f} s",
                "faults: " + _counts(done),
                "ends: " + _counts(Counter(outcome.status for outcome in outcomes)),
                f"{sum(outcome.tokens for outcome in outcomes)} tokens, "
                f"{sum(outcome.chunks for outcome in outcomes)} chunks, "
                f"{sum(outcome.pages for outcome in outcomes)} pages, "
                f"{sum(len(outcome.schedule.viewers) for outcome in outcomes)} viewers",
            ]
        )


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items()))


if __name__ == "__main__":
    sys.exit(main())
