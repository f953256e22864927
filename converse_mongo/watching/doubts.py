"""Doubts: a read that contradicts what is known is believed only once it has stood for a while.

A new primary serves an older majority snapshot until its first own entry commits, so a majority
read may go backwards across a failover
(https://www.mongodb.com/docs/manual/core/read-isolation-consistency-recency/). What is missing, has
a hole, or is behind what was seen is read again for some seconds. No MongoDB here.
"""

import time
from collections.abc import Hashable

__all__ = ["DOUBT_SECONDS", "Doubts", "OutdatedReadError"]

DOUBT_SECONDS = 5.0
"""How long a contradiction must stand. A new primary commits its first entry within a second or so
of its election; until then it may answer from the older snapshot."""
MET_SECONDS = 2.0
"""How soon it must be met again to count as standing: a longer pause may hide that it ended."""
MAX_DOUBTS = 256


class OutdatedReadError(Exception):
    """What was read is older than what is known: read it again."""


class Doubts:
    """Since when each contradiction has stood.

    Args:
        seconds: How long one must stand until it is believed; 0 believes at once, for a server
            whose reads never go backwards.
    """

    def __init__(self, seconds: float = DOUBT_SECONDS) -> None:
        self._seconds = seconds
        self._seen: dict[Hashable, tuple[float, float]] = {}

    def stands(self, contradiction: Hashable) -> bool:
        """Whether a contradiction, which was met just now, is to be believed.

        It must have been met again and again: after a pause it begins anew.
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
        """Forgets a contradiction: a later read did not show it."""
        self._seen.pop(contradiction, None)
