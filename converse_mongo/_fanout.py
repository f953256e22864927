"""One window of recent events, shared by all who follow it. No MongoDB here."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

__all__ = ["Window"]

E = TypeVar("E")


class Window(Generic[E]):
    """The last events of a stream, by index, and who waits for the next.

    However many follow, an event is held once; a follower is an index. The window is bounded in
    events and in weight: who falls out of it has to read from the source. Nothing is queued for
    anybody, so a slow follower costs nothing.
    """

    __slots__ = ("_events", "_max_events", "_max_weight", "_waiters", "_weight", "first")

    def __init__(self, max_events: int, max_weight: int, first: int = 0) -> None:
        self._max_events = max_events
        self._max_weight = max_weight
        self._events: deque[tuple[E, int]] = deque()
        self._weight = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self.first = first
        """The index of the oldest event that is still here."""

    @property
    def head(self) -> int:
        """The index that the next event will get."""
        return self.first + len(self._events)

    def get(self, index: int) -> E | None:
        """The event at ``index``; ``None`` if it is not there yet, or not any more."""
        offset = index - self.first
        if 0 <= offset < len(self._events):
            return self._events[offset][0]
        return None

    def put(self, event: E, weight: int) -> None:
        """Adds an event, forgets the oldest where there is no room, and wakes who waits."""
        self._events.append((event, weight))
        self._weight += weight
        while len(self._events) > self._max_events or (
            self._weight > self._max_weight and len(self._events) > 1
        ):
            self._weight -= self._events.popleft()[1]
            self.first += 1
        self.wake()

    def jump(self, head: int) -> None:
        """Forgets all events, and goes on at ``head``."""
        self._events.clear()
        self._weight = 0
        self.first = head
        self.wake()

    def wake(self) -> None:
        """Wakes everybody who waits."""
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        """Waits until something was put, or somebody called :meth:`wake`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    @property
    def waiting(self) -> int:
        """How many wait right now."""
        return len(self._waiters)
