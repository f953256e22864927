"""The server's clock: read, and estimated in between."""

import time
from datetime import datetime, timedelta

from converse_mongo.store.collections import Collections

ESTIMATED_SECONDS = 30.0
"""The time for which the clock is estimated instead of read."""

MARGIN_SECONDS = 1.0
"""An estimate for those who must not be too early is so much later."""


class ServerClock:
    """The clock of the server, which decides on leases and delays."""

    def __init__(self, collections: Collections) -> None:
        self._collections = collections
        self._read: tuple[datetime, float] | None = None

    def estimate(self) -> datetime | None:
        """Estimates the time, if it was read recently."""
        if self._read is None:
            return None
        seen, when = self._read
        elapsed = time.monotonic() - when
        return seen + timedelta(seconds=elapsed) if elapsed <= ESTIMATED_SECONDS else None

    def latest(self) -> datetime | None:
        """Estimates the latest time that it may be, if it was read recently."""
        estimate = self.estimate()
        return None if estimate is None else estimate + timedelta(seconds=MARGIN_SECONDS)

    def seconds_until(self, moment: datetime) -> float | None:
        """Estimates the seconds until a moment, which are negative if it has passed.

        It is for those who may be wrong, and so is an estimate however long ago the clock was read.

        Returns:
            The seconds; ``None`` if the clock was never read.
        """
        if self._read is None:
            return None
        seen, when = self._read
        return (moment - seen).total_seconds() - (time.monotonic() - when)

    async def read(self) -> datetime:
        """Returns the time.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        seen = await self._collections.call(
            self._collections.reader.server_time, what="read the server's clock"
        )
        self._read = seen, time.monotonic()
        return seen

    async def now(self) -> datetime:
        """Returns the time, estimated if it was read recently, in whole milliseconds.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        moment = self.estimate() or await self.read()
        return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
