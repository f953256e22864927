"""The spread of claims: how long a worker waits before it claims what it hears of. No I/O here.

Each worker of a queue hears of each message. Without a wait all of them would try to claim it. So
each waits for a random part of the time that news take, times the workers that there seem to be.
About one of the others then claims it as well, before the news of the first claim come. All workers
have the same chance, so that they get the same share.
"""

import os
import random
import time
from itertools import count

from bson import ObjectId

SHORTEST_LAG = 0.004
"""Seconds that news take, at least."""

FIRST_PEERS = 16
"""The workers that there seem to be to one that has just begun."""

CLAIMS_PER_PEER = 4
"""A worker that got none of so many claims, times the workers, counts no more."""

_RANDOM = slice(4, 9)
"""The bytes of an ObjectId that say who made it: https://www.mongodb.com/docs/manual/reference/bson-types/#objectid"""


class Spread:
    """Spreads the claims of a worker.

    It counts the workers whose claims it has heard of. The holder of a lease says whose it is: all
    that a worker makes are equal in the bytes of an ObjectId that are random for each process.
    """

    def __init__(self) -> None:
        self._own = os.urandom(5)
        self._counter = count(int.from_bytes(os.urandom(3)))
        self._claims = 0
        self._seen: dict[bytes, int] = {}
        self._lag = SHORTEST_LAG

    def new_holder(self) -> ObjectId:
        """Returns a new id for the holder of a lease."""
        seconds, number = int(time.time()) % 2**32, next(self._counter) % 2**24
        return ObjectId(seconds.to_bytes(4) + self._own + number.to_bytes(3))

    @property
    def peers(self) -> int:
        """The workers that there seem to be, with this one."""
        return max(len(self._seen), 1) + max(FIRST_PEERS - self._claims, 0)

    def note_lateness(self, seconds: float) -> None:
        """Notes how late the news of a message came."""
        # News of a claim may come later than these, and what was slow once is so again.
        self._lag = max(seconds, (self._lag + seconds) / 2, SHORTEST_LAG)

    def note_claim(self, holder: ObjectId) -> None:
        """Notes that a worker has claimed a message that this one has heard of."""
        worker = holder.binary[_RANDOM]
        self._claims += 1
        self._seen.pop(worker, None)  # the newest are at the end
        self._seen[worker] = self._claims
        longest = CLAIMS_PER_PEER * max(len(self._seen), FIRST_PEERS)
        oldest = next(iter(self._seen))
        if self._claims - self._seen[oldest] > longest:
            del self._seen[oldest]

    def wait(self) -> float:
        """Returns seconds to wait before a message is claimed."""
        return random.uniform(0, self._lag * self.peers)
