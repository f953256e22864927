"""The server's clock: read, and estimated in between."""

import time
from datetime import datetime, timedelta
from typing import NamedTuple

from bson import ObjectId

from converse_mongo.store.collections import Collections

ESTIMATED_SECONDS = 30.0
"""The time for which the clock is estimated instead of read."""

MARGIN_SECONDS = 1.0
"""An estimate for those who must not be too early is so much later."""


class _Read(NamedTuple):
    """What the server said, and when it was asked and had answered, by the monotonic clock.

    It may have said so at any moment between the two, and the answer of a server, or the loop that
    receives it, may be slow.
    """

    said: datetime
    asked: float
    answered: float


class ServerClock:
    """The clock of the server, which decides on leases and delays."""

    def __init__(self, collections: Collections) -> None:
        self._collections = collections
        self._read: _Read | None = None

    def estimate(self) -> datetime | None:
        """Estimates the time, if it was read recently. It may be later, and is not earlier."""
        if self._read is None:
            return None
        elapsed = time.monotonic() - self._read.answered
        if elapsed > ESTIMATED_SECONDS:
            return None
        return self._read.said + timedelta(seconds=elapsed)

    def latest(self) -> datetime | None:
        """Estimates the latest time that it may be, if it was read recently."""
        estimate, read = self.estimate(), self._read
        if estimate is None or read is None:
            return None
        return estimate + timedelta(seconds=read.answered - read.asked + MARGIN_SECONDS)

    def seconds_until(self, moment: datetime) -> float | None:
        """Estimates the seconds until a moment, which are negative if it has passed.

        They may be fewer, and are not more, unless the clock was read long ago: it is for those who
        may be wrong.

        Returns:
            The seconds; ``None`` if the clock was never read.
        """
        if self._read is None:
            return None
        return (moment - self._read.said).total_seconds() - (time.monotonic() - self._read.answered)

    def new_id(self) -> ObjectId:
        """Returns a new id with the time of the server, or of this process if it was never read.

        Such ids rise with time, also those of processes whose clocks differ.
        """
        made, read = ObjectId(), self._read
        if read is None:
            return made
        seconds = read.said.timestamp() + time.monotonic() - read.answered
        return ObjectId(int(seconds).to_bytes(4) + made.binary[4:])

    async def read(self) -> datetime:
        """Returns the time.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        asked = time.monotonic()
        said = await self._collections.call(
            self._collections.reader.server_time, what="read the server's clock"
        )
        self._read = _Read(said, asked, time.monotonic())
        return said

    async def now(self) -> datetime:
        """Returns the time, estimated if it was read recently, in whole milliseconds.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        moment = self.estimate() or await self.read()
        return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
