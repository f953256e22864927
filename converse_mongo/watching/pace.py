"""When what is watched is compared with the database: as seldom as the change stream allows."""

import random

__all__ = ["Pace"]

MAX_GROWTH = 4.0
JITTER = 0.2
EXPIRY_SECONDS = 1.0
"""How long after a lease ran out, as far as the clock is known, a comparison finds that."""
TIMELY_LOOKS = 20
"""How many looks in a row have to find nothing new, while messages stream, for a change stream to
count as one that is in time."""


class Pace:
    """Says how long to wait for the next comparison.

    While the change stream tells of all news the interval grows, to ``MAX_GROWTH`` times what was
    given. A comparison that finds what the stream did not tell sets it back. Behind a ``mongos`` it
    does not grow: the stream waits there for shards that have nothing to tell.

    Args:
        poll_interval: Seconds between two comparisons without a change stream.
        check_interval: The same beside one.
        sharded: Whether the server is a ``mongos``.

    Attributes:
        late: Whether the change stream is taken to tell of news too late.
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
        """The same beside a change stream.

        Args:
            lease_left: Seconds until the first lease of a watched message runs out, if known. No
                orphan has to wait for its end because the interval has grown.
        """
        seconds = _jittered(self._check_interval * self._growth)
        if lease_left is None:
            return seconds
        return min(seconds, max(lease_left + EXPIRY_SECONDS, self._check_interval))

    @property
    def grace(self) -> float:
        """Seconds after a comparison within which the stream may tell what the comparison found."""
        return min(0.25, self._poll_interval, self._check_interval)

    def reset(self) -> None:
        """Compares at ``check_interval`` again."""
        self._growth = 1.0

    def judge(self, *, untold: bool) -> None:
        """Takes what a comparison found: whether the stream had not told of something."""
        if untold:
            self._growth, self._timely = 1.0, 0
            self.late = self._sharded
        elif not self._sharded:
            self._growth = min(self._growth * 1.5, MAX_GROWTH)

    def note_timely(self) -> None:
        """Takes that messages went on, and that the stream had told of all of it."""
        self._timely += 1
        if self._timely >= TIMELY_LOOKS:
            self.late = False


def _jittered(seconds: float) -> float:
    """Not all processes at once, and never later than asked for."""
    return seconds * random.uniform(1 - JITTER, 1)
