"""Room: how many attempts may run at once, where workers and others share that. No I/O here."""

from collections.abc import Callable
from typing import Protocol


class Sharer(Protocol):
    """A worker, as those see it with which it shares room."""

    @property
    def taken(self) -> int:
        """What it takes."""

    @property
    def closed(self) -> bool:
        """True once it takes nothing more."""

    def note_room(self) -> None:
        """Hears that there may be room for what it had none for."""


class Room:
    """The room for attempts: that of one worker, or of several and others that share it.

    Args:
        size: The most that it has room for. More may be taken: ``Worker.take_on`` does not ask.
        others: Returns what others than the workers take of it.

    Attributes:
        workers: The workers that share it.
    """

    def __init__(self, size: int, others: Callable[[], int] = int) -> None:
        self._size = size
        self._others = others
        self.workers: list[Sharer] = []

    @property
    def taken(self) -> int:
        """What is taken of it."""
        return self._others() + sum(worker.taken for worker in self.workers)

    @property
    def free(self) -> int:
        """What is free of it."""
        return max(self._size - self.taken, 0)

    def add(self, worker: Sharer) -> None:
        """Has a worker share it, until it is closed and takes nothing."""
        self.workers = [each for each in self.workers if each.taken or not each.closed]
        self.workers.append(worker)

    def note(self, _task: object = None) -> None:
        """Has workers look for what they had no room for, now that some may be free."""
        for worker in self.workers:
            worker.note_room()
