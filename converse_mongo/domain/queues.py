"""Queues, as applications name them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

from converse_mongo.domain.errors import InvalidInputError
from converse_mongo.domain.validation import check_int
from converse_mongo.domain.work import MAX_ATTEMPTS, Job, Key, check_queue


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of messages that wait for workers.

    It needs no set-up: a queue is there once a message is in it.

    Attributes:
        name: Its name.
        per_key: Of the messages that are started with the same ``key``, so many have a worker at
            a time; the others wait, and take no worker. It is stored with each message. ``None``
            for no limit.
        priority: The priority of messages that are started without one.
        max_attempts: The attempts of messages that are started without a number of them.

    Raises:
        InvalidInputError: One of these cannot be stored.
    """

    name: str
    per_key: int | None = None
    priority: int = 0
    max_attempts: int = MAX_ATTEMPTS

    def __post_init__(self) -> None:
        check_queue(self.name)
        if self.per_key is not None:
            check_int(self.per_key, "per_key", 1)
        Job(queue=self.name, priority=self.priority, max_attempts=self.max_attempts)


AnyQueue: TypeAlias = str | Queue
"""A queue, or its name."""


def job(
    queue: AnyQueue | None,
    *,
    key: Key | None = None,
    priority: int | None = None,
    delay: float | timedelta | None = None,
    max_attempts: int | None = None,
) -> Job | None:
    """Returns how a message is to be queued; ``None`` if it is not.

    Raises:
        InvalidInputError: One of the arguments cannot be stored, or makes no sense here.
    """
    if queue is None:
        given = {"key": key, "priority": priority, "delay": delay, "max_attempts": max_attempts}
        if named := [name for name, value in given.items() if value is not None]:
            raise InvalidInputError(
                f"{named[0]} is for a queued message: pass a queue as well. Nothing was written."
            )
        return None
    of = as_queue(queue)
    if of.per_key is not None and key is None:
        raise InvalidInputError(
            f"Queue {of.name!r} has a limit per key: pass a key. Nothing was written."
        )
    return Job(
        queue=of.name,
        key=key if of.per_key is not None else None,
        limit=of.per_key,
        priority=of.priority if priority is None else priority,
        delay=delay.total_seconds() if isinstance(delay, timedelta) else delay,
        max_attempts=of.max_attempts if max_attempts is None else max_attempts,
    )


def as_queue(queue: object) -> Queue:
    """Returns a queue, given by its name or as it is.

    Raises:
        InvalidInputError: It is neither.
    """
    return queue if isinstance(queue, Queue) else Queue(check_queue(queue))


def names_of(queues: object) -> list[str]:
    """Returns the names of some queues, each once.

    Raises:
        InvalidInputError: There are none, or one has no valid name.
    """
    if isinstance(queues, str | Queue) or not isinstance(queues, Iterable):
        raise InvalidInputError(f"queues must be a list of queues, got {queues!r}.")
    names = list(dict.fromkeys(as_queue(each).name for each in queues))
    if not names:
        raise InvalidInputError("queues must have at least one queue, got none.")
    return names
