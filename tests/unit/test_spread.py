"""The spread of claims, in simulated time: how many workers claim a message before news come."""

import random
from collections import Counter

import pytest
from bson import ObjectId

from converse_mongo.working.spread import (
    FEWEST_CLAIMS,
    LONGEST_LAG,
    LONGEST_UNKNOWN_LAG,
    MOST_CLAIMS,
    REMEMBERED_SECONDS,
    SHORTEST_LAG,
    UNKNOWN,
    Spread,
)

QUEUE = "default"
COMMANDS_BESIDE = 2
"""What a worker reads behind a claim: the message and the conversation."""
MOST_COMMANDS = 5


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converse_mongo.working.spread.random", random.Random(7))


class Fleet:
    """Workers of one queue: each hears of each message and of each claim, some seconds later.

    Args:
        lags: The number of workers, or how much later each of them hears.
        lag: How much later all hear.

    Attributes:
        now: The time, in seconds.
        won: The number of messages of each worker.
    """

    def __init__(self, lags: int | list[float], lag: float = SHORTEST_LAG) -> None:
        self.lags = [lag] * lags if isinstance(lags, int) else lags
        self.now = 0.0
        self.workers = [Spread(lambda: self.now) for _ in self.lags]
        self.won: Counter[int] = Counter()

    def run(self, messages: int) -> tuple[float, float]:
        """Returns means of messages: their claims, and the seconds until the first one."""
        claims, waits = 0, 0.0
        for _ in range(messages):
            for each, lag in zip(self.workers, self.lags, strict=False):
                each.note_lateness(lag)
            tries = [
                (lag + each.wait(QUEUE), at)
                for at, (each, lag) in enumerate(zip(self.workers, self.lags, strict=False))
            ]
            first, winner = min(tries)
            self.won[winner] += 1
            holder = self.workers[winner].new_holder()
            for tried, at in tries:
                claims += tried <= first + self.lags[at]
                self.workers[at].note_claim(QUEUE, holder)
            waits += first - self.lags[winner]
        return claims / messages, waits / messages


@pytest.mark.parametrize("lag", [SHORTEST_LAG, 0.5])
@pytest.mark.parametrize("count", [1, 10, 200])
def test_claims__of_a_message_are_few_however_many_workers_hear_of_it(
    count: int, lag: float
) -> None:
    fleet = Fleet(count, lag)
    fleet.run(4 * count + FEWEST_CLAIMS)
    claims, wait = fleet.run(400)
    assert claims < 2.5
    assert COMMANDS_BESIDE + claims <= MOST_COMMANDS
    assert wait < (1.5 * lag if count > 1 else SHORTEST_LAG)


def test_claims__of_workers_that_do_not_know_each_other_yet() -> None:
    claims, _ = Fleet(100).run(100)
    assert COMMANDS_BESIDE + claims <= MOST_COMMANDS


@pytest.mark.parametrize("count", [2, 10, 100])
def test_peers__are_estimated_by_the_claims_that_were_heard_of(count: int) -> None:
    fleet = Fleet(count)
    fleet.run(count)
    assert count / 2 <= fleet.workers[0].peers(QUEUE) < 3 * count
    fleet.run(4 * max(count, FEWEST_CLAIMS))
    assert count * 0.9 < fleet.workers[0].peers(QUEUE) < count * 1.2


@pytest.mark.parametrize("count", [2, 3, 10])
def test_workers__get_the_same_share(count: int) -> None:
    fleet = Fleet(count)
    fleet.run(400 * count)
    assert all(300 < fleet.won[worker] < 500 for worker in range(count))


def test_wait__is_short_again_once_the_others_are_gone() -> None:
    fleet = Fleet(100)
    fleet.run(400)
    del fleet.workers[1:]
    fleet.run(400)
    assert fleet.workers[0].longest(QUEUE) == SHORTEST_LAG


def test_wait__is_short_again_soon_once_the_others_are_gone() -> None:
    fleet = Fleet(200, 0.1)
    fleet.run(900)
    del fleet.workers[2:]
    fleet.now = REMEMBERED_SECONDS + 1
    fleet.run(FEWEST_CLAIMS)
    _, wait = fleet.run(100)
    assert wait < 0.15


def test_wait__of_one_that_stays_while_others_make_a_claim_each() -> None:
    spread, now = Spread(lambda: now), 0.0
    for _ in range(3 * MOST_CLAIMS):
        spread.note_claim(QUEUE, Spread().new_holder())
    assert len(spread._claims[QUEUE]) == MOST_CLAIMS
    now = REMEMBERED_SECONDS + 1
    assert spread.longest(QUEUE) <= (FEWEST_CLAIMS + 1) ** 2 * SHORTEST_LAG
    for _ in range(FEWEST_CLAIMS):
        spread.note_claim(QUEUE, spread.new_holder())
    assert spread.longest(QUEUE) == SHORTEST_LAG


def test_claims__are_few_if_news_are_fast_for_one_and_slow_for_others() -> None:
    fleet = Fleet([SHORTEST_LAG, *[0.5] * 99])
    fleet.run(200)
    claims, wait = fleet.run(200)
    assert claims < 2.5
    assert wait < 0.02


def test_claims__are_few_if_most_messages_of_a_worker_are_of_another_queue() -> None:
    fleet = Fleet(100, 0.1)
    fleet.run(400)
    for each in fleet.workers:
        for _ in range(400):
            each.note_claim("its own", each.new_holder())
    claims, _ = fleet.run(1)
    assert claims < 10
    assert {each.longest("its own") for each in fleet.workers} == {SHORTEST_LAG}


def test_wait__is_a_random_part_of_the_longest_one() -> None:
    spread = Spread()
    waits = [spread.wait(QUEUE) for _ in range(200)]
    assert 0 <= min(waits) < 0.1 * spread.longest(QUEUE) < 0.9 * spread.longest(QUEUE) < max(waits)
    assert max(waits) <= spread.longest(QUEUE) == pytest.approx((UNKNOWN + 1) * SHORTEST_LAG)


def test_wait__grows_with_slow_news_and_forgets_them() -> None:
    spread, other = Spread(), Spread()
    for _ in range(FEWEST_CLAIMS):
        for each in (spread, other):
            spread.note_claim(QUEUE, each.new_holder())
    assert spread.longest(QUEUE) == 2 * SHORTEST_LAG
    spread.note_lateness(3600.0)  # the change stream went on behind an outage
    assert spread.longest(QUEUE) == 2 * LONGEST_LAG
    for _ in range(3):
        spread.note_lateness(0.0)
    assert spread.longest(QUEUE) == 2 * LONGEST_LAG / 8
    spread.note_lateness(8.0)
    assert spread.longest(QUEUE) == 2 * 8.0
    spread.note_lateness(0.0)
    assert spread.longest(QUEUE) == 2 * 4.0
    for _ in range(12):
        spread.note_lateness(0.001)
    assert spread.longest(QUEUE) == 2 * SHORTEST_LAG


def test_wait__of_one_that_is_alone_is_short_however_slow_news_are() -> None:
    spread = Spread()
    spread.note_lateness(8.0)
    assert spread.longest(QUEUE) == pytest.approx(SHORTEST_LAG + UNKNOWN * LONGEST_UNKNOWN_LAG)
    for _ in range(FEWEST_CLAIMS):
        spread.note_claim(QUEUE, spread.new_holder())
    assert spread.longest(QUEUE) == SHORTEST_LAG


def test_holders__are_new_ids_that_tell_whose_they_are() -> None:
    first, second = Spread(), Spread()
    holders = [spread.new_holder() for spread in (first, second) for _ in range(3)]
    assert len(set(holders)) == 6
    made = ObjectId().generation_time
    assert all(abs((each.generation_time - made).total_seconds()) < 60 for each in holders)
    for _ in range(FEWEST_CLAIMS):
        for holder in holders:
            first.note_claim(QUEUE, holder)
    assert first.longest(QUEUE) == 2 * SHORTEST_LAG
