"""The spread of claims: how long a worker waits before it claims what it hears of. No I/O here.

Each worker of a queue hears of each message. Without a wait all of them would try to claim it. So
each waits for a random part of the time that news take, times the workers that the queue seems to
have. About one of the others then claims it as well, before the news of the first claim come.
Workers for which news take the same time have the same chance, so that they get the same share. One
that is alone waits for next to nothing, however slow the news are.
"""

import os
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from itertools import count

from bson import ObjectId

SHORTEST_LAG, LONGEST_LAG = 0.004, 10.0
"""Seconds that news take, at least and at most; what is later was queued during an outage."""

UNKNOWN, LONGEST_UNKNOWN_LAG = 4, 0.05
"""The workers that one expects that has just begun, and the longest time to wait for each."""

CLAIMS_PER_PEER, MOST_CLAIMS = 4, 1000
"""The most claims of a queue that are remembered, for each worker that made some, and in all."""

REMEMBERED_SECONDS, FEWEST_CLAIMS = 60.0, 16
"""The time for which these are remembered, and how many of the last are so for longer."""

_RANDOM = slice(4, 9)
"""The bytes of an ObjectId that say who made it: https://www.mongodb.com/docs/manual/reference/bson-types/#objectid"""


class Spread:
    """Spreads the claims of a worker.

    It estimates the number of workers of a queue by those whose claims it has heard of. The holder
    of a lease says whose it is: all that a worker makes are equal in the bytes of an ObjectId that
    are random for each process.

    Args:
        clock: Returns seconds that go on evenly.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._own = os.urandom(5)
        self._counter = count(int.from_bytes(os.urandom(3)))
        self._claims: defaultdict[str, Claims] = defaultdict(lambda: Claims(self._own, clock))
        self._lag = SHORTEST_LAG

    def new_holder(self) -> ObjectId:
        """Returns a new id for the holder of a lease."""
        seconds, number = int(time.time()) % 2**32, next(self._counter) % 2**24
        return ObjectId(seconds.to_bytes(4) + self._own + number.to_bytes(3))

    def peers(self, queue: str) -> float:
        """Returns how many workers a queue seems to have, with this one."""
        return self._claims[queue].peers

    def longest(self, queue: str) -> float:
        """Returns the most seconds to wait before a message of a queue is claimed."""
        claims = self._claims[queue]
        claims.forget()
        unknown = max(UNKNOWN - len(claims), 0) * min(self._lag, LONGEST_UNKNOWN_LAG)
        return (SHORTEST_LAG if claims.is_alone else claims.peers * self._lag) + unknown

    def note_lateness(self, seconds: float) -> None:
        """Notes how late the news of a message came."""
        # News of a claim may come later than these, and what was slow once is so again.
        seconds = min(seconds, LONGEST_LAG)
        self._lag = max(seconds, (self._lag + seconds) / 2, SHORTEST_LAG)

    def note_claim(self, queue: str, holder: ObjectId) -> None:
        """Notes that a worker has claimed a message of a queue that this one has heard of."""
        self._claims[queue].add(holder.binary[_RANDOM])

    def wait(self, queue: str) -> float:
        """Returns seconds to wait before a message of a queue is claimed."""
        return random.uniform(0, self.longest(queue))


class Claims:
    """The last claims of the messages of a queue.

    Args:
        own: Stands for the worker that remembers them.
        clock: Returns seconds that go on evenly.
    """

    def __init__(self, own: bytes, clock: Callable[[], float]) -> None:
        self._own = own
        self._clock = clock
        self._claims: deque[tuple[float, bytes]] = deque()
        self._made: Counter[bytes] = Counter()
        self._made_one = 0

    def __len__(self) -> int:
        return len(self._claims)

    @property
    def _known(self) -> int:
        return len(self._made) + (self._own not in self._made)

    @property
    def is_alone(self) -> bool:
        """True if no other worker has claimed a message."""
        return self._known == 1

    @property
    def peers(self) -> float:
        """The workers that there seem to be, with this one.

        The share of claims by workers that made no other one estimates the share of claims that
        those make who were not heard of at all: I. J. Good, "The population frequencies of species
        and the estimation of population parameters", 1953.
        """
        claims = len(self._claims)
        return self._known * (claims + 1) / (claims - self._made_one + 1)

    def add(self, worker: bytes) -> None:
        """Adds the claim of a worker."""
        self._claims.append((self._clock(), worker))
        self._count(worker, 1)
        self.forget()

    def forget(self) -> None:
        """Forgets claims that say too little of who is there now."""
        since = self._clock() - REMEMBERED_SECONDS
        while len(self._claims) > FEWEST_CLAIMS and (
            self._claims[0][0] < since
            or len(self._claims)
            > min(CLAIMS_PER_PEER * max(len(self._made), FEWEST_CLAIMS), MOST_CLAIMS)
        ):
            self._count(self._claims.popleft()[1], -1)

    def _count(self, worker: bytes, change: int) -> None:
        before, made = self._made[worker], self._made[worker] + change
        self._made_one += (made == 1) - (before == 1)
        self._made[worker] = made
        if not made:
            del self._made[worker]
