"""The spread of claims, in simulated time: how many workers claim a message before news come."""

import random
from collections import Counter

import pytest
from bson import ObjectId

from converse_mongo.working.spread import FIRST_PEERS, SHORTEST_LAG, Spread

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
                is_late = wait > first + self.lag
                claims += not is_late
                if is_late or at == winner:  # who has tried hears of it as of any other message
                    self.workers[at].note_claim(holder)
            waits += first
        return claims / messages, waits / messages


@pytest.mark.parametrize("lag", [SHORTEST_LAG, 0.5])
@pytest.mark.parametrize("count", [1, 10, 100, 400])
def test_claims__of_a_message_are_few_however_many_workers_hear_of_it(
    count: int, lag: float
) -> None:
    fleet = Fleet(count, lag)
    fleet.run(4 * count + FIRST_PEERS)
    claims, wait = fleet.run(400)
    assert claims < 2.5
    assert COMMANDS_BESIDE + claims <= MOST_COMMANDS
    assert wait < 1.5 * lag


def test_claims__of_workers_that_do_not_know_each_other_yet() -> None:
    claims, _ = Fleet(100).run(100)
    assert claims < 5


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
    assert fleet.workers[0].peers == 1
    _, wait = fleet.run(100)
    assert wait < SHORTEST_LAG


def test_wait__grows_with_slow_news_and_forgets_them() -> None:
    spread = Spread()

    def longest() -> float:
        return max(spread.wait() for _ in range(200)) / spread.peers

    assert longest() <= SHORTEST_LAG
    spread.note_lateness(8.0)
    assert 4 < longest() <= 8
    spread.note_lateness(0.001)
    assert 2 < longest() <= 4.1
    for _ in range(12):
        spread.note_lateness(0.001)
    assert longest() <= SHORTEST_LAG


def test_holders__are_new_ids_that_tell_whose_they_are() -> None:
    first, second = Spread(), Spread()
    holders = [spread.new_holder() for spread in (first, second) for _ in range(3)]
    assert len(set(holders)) == 6
    made = ObjectId().generation_time
    assert all(abs((each.generation_time - made).total_seconds()) < 60 for each in holders)
    for _ in range(FIRST_PEERS):
        for holder in holders:
            first.note_claim(holder)
    assert first.peers == 2
