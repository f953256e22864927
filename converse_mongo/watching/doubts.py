"""Doubts: a read that contradicts an earlier one is believed only if it stays so for a while.

A new primary serves an older majority snapshot until its first own entry commits, so a majority
read may go back in time across a failover
(https://www.mongodb.com/docs/manual/core/read-isolation-consistency-recency/). A document
that is missing, has a hole, or is older than before is read again for some seconds. Pure, no I/O.
"""

import time
from collections.abc import Hashable

DOUBT_SECONDS = 5.0
"""Seconds that a contradiction must last. A new primary commits its first entry about a second
after its election; until then it may answer from the older snapshot."""
MET_SECONDS = 2.0
"""Seconds within which a contradiction must be met again. A longer pause starts it anew."""
MAX_DOUBTS = 256


class OutdatedReadError(Exception):
    """The read is older than what is known, and has to be repeated."""


class Doubts:
    """Remembers how long each contradiction has lasted.

    Args:
        seconds: Seconds that one must last until it is believed; 0 for a server whose reads never
            go back in time.
    """

    def __init__(self, seconds: float = DOUBT_SECONDS) -> None:
        self._seconds = seconds
        self._seen: dict[Hashable, tuple[float, float]] = {}

    def stands(self, contradiction: Hashable) -> bool:
        """Returns whether a contradiction, which was met just now, has lasted long enough.

        It must be met again and again: a pause starts it anew.
        """
        now = time.monotonic()
        first, last = self._seen.pop(contradiction, (now, now))
        if now - last > MET_SECONDS:
            first = now
        self._seen[contradiction] = first, now
        if len(self._seen) > MAX_DOUBTS:
            del self._seen[next(iter(self._seen))]
        return now - first >= self._seconds

    def dispel(self, contradiction: Hashable) -> None:
        """Forgets a contradiction that a later read did not show."""
        self._seen.pop(contradiction, None)
