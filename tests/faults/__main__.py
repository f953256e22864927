"""The long form: ``python -m tests.faults --schedules 500``. It also replays a seed.

With ``--work`` it is that of schedules of workers.
"""

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
from tests.faults.reports import ScheduleFailedError
from tests.faults.runner import Outcome, run_schedule
from tests.faults.servers import Server
from tests.faults.work_runner import WorkOutcome, run_work

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
    parser.add_argument("--work", action="store_true", help="run schedules of workers instead")
    arguments = parser.parse_args()
    logging.getLogger("converse_mongo").addHandler(logging.NullHandler())
    first = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    if arguments.failovers:
        say(f"{arguments.failovers} schedules of failovers from seed {first} on")
        return asyncio.run(fail_over(first, arguments.failovers))
    what = "schedules of workers" if arguments.work else "schedules"
    say(f"{arguments.schedules} {what} from seed {first} on, with {driver_name()}")
    kind = WorkSeries if arguments.work else Series
    series = kind(first, arguments.schedules, keep_going=arguments.keep_going)
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
        self._passed = 0
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
            said = await self._run_one(seed, server)
        except ScheduleFailedError as error:
            self.failed.append(seed)
            say(f"\n{error}\n")
            return
        self._passed += 1
        say(f"{self._passed:4} of {self._count}  seed {seed}  {said}")

    async def _run_one(self, seed: int, server: Server) -> str:
        outcome = await run_schedule(seed, server)
        self._outcomes.append(outcome)
        return (
            f"{outcome.seconds:5.1f} s  {outcome.status:9} {outcome.tokens:4} tokens  "
            f"{outcome.schedule.describe()}"
        )

    def summary(self) -> str:
        passed = (
            f"{self._passed} schedules passed, {len(self.failed)} failed {self.failed}, "
            f"in {time.monotonic() - self._started:.0f} s"
        )
        return "\n".join([passed, *self._sums()])

    def _sums(self) -> list[str]:
        outcomes = self._outcomes
        done = sum((outcome.done for outcome in outcomes), Counter[str]())
        return [
            "faults: " + _counts(done),
            "ends: " + _counts(Counter(outcome.status for outcome in outcomes)),
            f"{sum(outcome.tokens for outcome in outcomes)} tokens, "
            f"{sum(outcome.chunks for outcome in outcomes)} chunks, "
            f"{sum(outcome.pages for outcome in outcomes)} pages, "
            f"{sum(len(outcome.schedule.viewers) for outcome in outcomes)} viewers",
        ]


class WorkSeries(Series):
    """Schedules of workers."""

    def __init__(self, first: int, count: int, *, keep_going: bool) -> None:
        super().__init__(first, count, keep_going=keep_going)
        self._works: list[WorkOutcome] = []

    async def _run_one(self, seed: int, server: Server) -> str:
        outcome = await run_work(seed, server)
        self._works.append(outcome)
        counts = outcome.counts
        return (
            f"{outcome.seconds:5.1f} s  {counts['attempts']:3} attempts, "
            f"{counts['crashes']} crashes, {_counts(outcome.ends)}; {outcome.schedule.describe()}"
        )

    def _sums(self) -> list[str]:
        return [
            f"{name}: " + _counts(sum((getattr(each, of) for each in self._works), Counter[str]()))
            for name, of in (("faults", "done"), ("ends", "ends"), ("counts", "counts"))
        ]


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items()))


if __name__ == "__main__":
    sys.exit(main())
