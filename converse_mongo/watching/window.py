"""A window of recent events that all watchers of a topic share. No MongoDB here."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

E = TypeVar("E")


class Window(Generic[E]):
    """The last events of a stream by index, and the waiters for the next one.

    Each event is held once, however many watchers there are. The window is bounded in events and
    in weight. A watcher that falls out of it has to read from the database. Nothing is queued for
    a watcher, so a slow one costs nothing.

    Attributes:
        first: The index of the oldest event that the window holds.
        head: The index that the next event will get.
    """

    __slots__ = ("_events", "_max_events", "_max_weight", "_waiters", "_weight", "first", "head")

    def __init__(self, max_events: int, max_weight: int, first: int = 0) -> None:
        self._max_events = max_events
        self._max_weight = max_weight
        self._events: deque[tuple[E, int]] = deque()
        self._weight = 0
        self._waiters: dict[asyncio.Future[None], None] = {}  # a set that keeps the order
        self.first = self.head = first

    def get(self, index: int) -> E | None:
        """The event at ``index``; ``None`` if it is not there yet or was dropped."""
        if self.first <= index < self.head:
            return self._events[index - self.first][0]
        return None

    def put(self, event: E, weight: int) -> None:
        """Adds an event, drops the oldest ones if there is no room, and wakes all waiters."""
        self._events.append((event, weight))
        self.head += 1
        self._weight += weight
        while len(self._events) > self._max_events or (
            self._weight > self._max_weight and len(self._events) > 1
        ):
            self._weight -= self._events.popleft()[1]
            self.first += 1
        self.wake()

    def jump(self, head: int) -> None:
        """Drops all events, and continues at ``head``."""
        self._events.clear()
        self._weight = 0
        self.first = self.head = head
        self.wake()

    def wake(self) -> None:
        """Wakes all waiters."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def waiter(self) -> "asyncio.Future[None]":
        """A future that is done when an event is put or :meth:`wake` is called.

        Call :meth:`forget` if you stop waiting for it.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        return waiter

    def forget(self, waiter: "asyncio.Future[None]") -> None:
        """Removes a :meth:`waiter`."""
        self._waiters.pop(waiter, None)

    @property
    def waiting(self) -> int:
        """The number of waiters."""
        return len(self._waiters)
