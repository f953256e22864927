"""The spread of claims, in simulated time: how many workers claim a message before news come."""

import random
from collections import Counter

import pytest
from bson import ObjectId

from converse_mongo.working.spread import LONGEST_UNKNOWN_LAG, SHORTEST_LAG, UNKNOWN, Spread

COMMANDS_BESIDE = 2
"""What a worker reads behind a claim: the message and the conversation."""
MOST_COMMANDS = 5


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converse_mongo.working.spread.random", random.Random(7))


class Fleet:
    """Workers of one queue: each hears of each message, and of each claim ``lag`` seconds later.

    Attributes:
        won: The number of messages of each worker.
    """

    def __init__(self, count: int, lag: float = SHORTEST_LAG) -> None:
        self.workers = [Spread() for _ in range(count)]
        self.lag = lag
        self.won: Counter[int] = Counter()

    def run(self, messages: int) -> tuple[float, float]:
        """Returns means of messages: their claims, and the seconds until the first one."""
        claims, waits = 0, 0.0
        for _ in range(messages):
            for each in self.workers:
                each.note_lateness(self.lag)
            tries = [(each.wait(), at) for at, each in enumerate(self.workers)]
            first, winner = min(tries)
            self.won[winner] += 1
            holder = self.workers[winner].new_holder()
            for wait, at in tries:
                claims += wait <= first + self.lag
                self.workers[at].note_claim(holder)
            waits += first
        return claims / messages, waits / messages


@pytest.mark.parametrize("lag", [SHORTEST_LAG, 0.5])
@pytest.mark.parametrize("count", [1, 10, 200])
def test_claims__of_a_message_are_few_however_many_workers_hear_of_it(
    count: int, lag: float
) -> None:
    fleet = Fleet(count, lag)
    fleet.run(4 * count + UNKNOWN)
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
    assert count / 2 <= fleet.workers[0].peers < 3 * count
    fleet.run(4 * max(count, UNKNOWN))
    assert count * 0.9 < fleet.workers[0].peers < count * 1.2


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
    assert fleet.workers[0].longest == SHORTEST_LAG


def test_wait__is_a_random_part_of_the_longest_one() -> None:
    spread = Spread()
    waits = [spread.wait() for _ in range(200)]
    assert 0 <= min(waits) < 0.1 * spread.longest < 0.9 * spread.longest < max(waits)
    assert max(waits) <= spread.longest == pytest.approx((UNKNOWN + 1) * SHORTEST_LAG)


def test_wait__grows_with_slow_news_and_forgets_them() -> None:
    spread, other = Spread(), Spread()
    for _ in range(UNKNOWN):
        for each in (spread, other):
            spread.note_claim(each.new_holder())
    assert spread.longest == 2 * SHORTEST_LAG
    spread.note_lateness(8.0)
    assert spread.longest == 2 * 8.0
    spread.note_lateness(0.0)
    assert spread.longest == 2 * 4.0
    for _ in range(12):
        spread.note_lateness(0.001)
    assert spread.longest == 2 * SHORTEST_LAG


def test_wait__of_one_that_is_alone_is_short_however_slow_news_are() -> None:
    spread = Spread()
    spread.note_lateness(8.0)
    assert spread.longest == pytest.approx(SHORTEST_LAG + UNKNOWN * LONGEST_UNKNOWN_LAG)
    for _ in range(UNKNOWN):
        spread.note_claim(spread.new_holder())
    assert spread.longest == SHORTEST_LAG


def test_holders__are_new_ids_that_tell_whose_they_are() -> None:
    first, second = Spread(), Spread()
    holders = [spread.new_holder() for spread in (first, second) for _ in range(3)]
    assert len(set(holders)) == 6
    made = ObjectId().generation_time
    assert all(abs((each.generation_time - made).total_seconds()) < 60 for each in holders)
    for _ in range(UNKNOWN):
        for holder in holders:
            first.note_claim(holder)
    assert first.longest == 2 * SHORTEST_LAG
