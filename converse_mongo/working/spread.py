"""The spread of claims: how long a worker waits before it claims what it hears of. No I/O here.

Each worker of a queue hears of each message. Without a wait all of them would try to claim it. So
each waits for a random part of the time that news take, times the workers that there seem to be.
About one of the others then claims it as well, before the news of the first claim come. All workers
have the same chance, so that they get the same share. One that is alone waits for next to nothing,
however slow the news are.
"""

import os
import random
import time
from collections import Counter, deque
from itertools import count

from bson import ObjectId

SHORTEST_LAG = 0.004
"""Seconds that news take, at least."""

UNKNOWN, LONGEST_UNKNOWN_LAG = 16, 0.05
"""The workers that one expects that has just begun, and the longest time to wait for each."""

CLAIMS_PER_PEER = 4
"""The claims that are remembered, for each worker that made some of them."""

_RANDOM = slice(4, 9)
"""The bytes of an ObjectId that say who made it: https://www.mongodb.com/docs/manual/reference/bson-types/#objectid"""


class Spread:
    """Spreads the claims of a worker.

    It estimates the number of workers by those whose claims it has heard of. The holder of a lease
    says whose it is: all that a worker makes are equal in the bytes of an ObjectId that are random
    for each process.
    """

    def __init__(self) -> None:
        self._own = os.urandom(5)
        self._counter = count(int.from_bytes(os.urandom(3)))
        self._claims: deque[bytes] = deque()
        self._made: Counter[bytes] = Counter()
        self._made_one = 0
        self._lag = SHORTEST_LAG

    def new_holder(self) -> ObjectId:
        """Returns a new id for the holder of a lease."""
        seconds, number = int(time.time()) % 2**32, next(self._counter) % 2**24
        return ObjectId(seconds.to_bytes(4) + self._own + number.to_bytes(3))

    @property
    def peers(self) -> float:
        """The workers that there seem to be, with this one.

        The share of claims by workers that made no other one estimates the share of claims that
        those make who were not heard of at all: I. J. Good, "The population frequencies of species
        and the estimation of population parameters", 1953.
        """
        claims = len(self._claims)
        return max(len(self._made), 1) * (claims + 1) / (claims - self._made_one + 1)

    @property
    def longest(self) -> float:
        """The most seconds to wait before a message is claimed."""
        is_alone = len(self._made) <= 1
        unknown = max(UNKNOWN - len(self._claims), 0) * min(self._lag, LONGEST_UNKNOWN_LAG)
        return (SHORTEST_LAG if is_alone else self.peers * self._lag) + unknown

    def note_lateness(self, seconds: float) -> None:
        """Notes how late the news of a message came."""
        # News of a claim may come later than these, and what was slow once is so again.
        self._lag = max(seconds, (self._lag + seconds) / 2, SHORTEST_LAG)

    def note_claim(self, holder: ObjectId) -> None:
        """Notes that a worker has claimed a message that this one has heard of."""
        worker = holder.binary[_RANDOM]
        self._claims.append(worker)
        self._count(worker, 1)
        while len(self._claims) > CLAIMS_PER_PEER * max(len(self._made), UNKNOWN):
            self._count(self._claims.popleft(), -1)

    def _count(self, worker: bytes, change: int) -> None:
        before, made = self._made[worker], self._made[worker] + change
        self._made_one += (made == 1) - (before == 1)
        self._made[worker] = made
        if not made:
            del self._made[worker]

    def wait(self) -> float:
        """Returns seconds to wait before a message is claimed."""
        return random.uniform(0, self.longest)
