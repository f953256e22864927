"""Decides when the watched topics are compared with the database. No MongoDB here."""

import random

MAX_GROWTH = 4.0
JITTER = 0.2
EXPIRY_SECONDS = 1.0
"""A comparison is made this long after the first lease expires."""
TIMELY_LOOKS = 20
"""After this many looks in a row that find nothing new while messages stream, a change stream
counts as timely."""


class Pace:
    """Computes the wait before the next comparison.

    While the change stream reports all changes, the interval grows up to ``MAX_GROWTH`` times. A
    comparison that finds an unreported change resets it. Behind a ``mongos`` the interval does not
    grow, because the stream waits there for shards that have nothing to report.

    Args:
        poll_interval: Seconds between two comparisons without a change stream.
        check_interval: The same beside one.
        sharded: Whether the server is a ``mongos``.

    Attributes:
        late: Whether the change stream is assumed to report changes late.
    """

    def __init__(self, poll_interval: float, check_interval: float, *, sharded: bool) -> None:
        self._poll_interval = poll_interval
        self._check_interval = check_interval
        self._sharded = sharded
        self._growth = 1.0
        self._timely = 0
        self.late = sharded

    def polling(self) -> float:
        """Seconds until the next comparison without a change stream, or with one that is late."""
        return _jittered(self._poll_interval)

    def checking(self, lease_left: float | None) -> float:
        """Seconds until the next comparison while a change stream is open.

        Args:
            lease_left: Seconds until the first lease of a watched message expires, if known. It
                bounds the wait, so that an orphan is ended in time.
        """
        seconds = _jittered(self._check_interval * self._growth)
        if lease_left is None:
            return seconds
        return min(seconds, max(lease_left + EXPIRY_SECONDS, self._check_interval))

    @property
    def grace(self) -> float:
        """Seconds that the stream has to report what a comparison found."""
        return min(0.25, self._poll_interval, self._check_interval)

    def reset(self) -> None:
        """Goes back to ``check_interval``."""
        self._growth = 1.0

    def judge(self, *, untold: bool) -> None:
        """Adjusts the interval to a comparison, which may have found an unreported change."""
        if untold:
            self._growth, self._timely = 1.0, 0
            self.late = self._sharded
        elif not self._sharded:
            self._growth = min(self._growth * 1.5, MAX_GROWTH)

    def note_timely(self) -> None:
        """Counts a look at streaming messages that found no unreported change."""
        self._timely += 1
        if self._timely >= TIMELY_LOOKS:
            self.late = False


def _jittered(seconds: float) -> float:
    """Shortens a wait at random, so that processes do not act at the same time."""
    return seconds * random.uniform(1 - JITTER, 1)
