"""Deadlines of calls to MongoDB: those of the library, and those of ``pymongo.timeout()``.

``pymongo.timeout()`` keeps its deadline in context variables, which every task that is created
inside inherits. See https://pymongo.readthedocs.io/en/stable/examples/timeouts.html. The threads of
Motor see it as well.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pymongo
from pymongo import _csot
from pymongo.errors import NetworkTimeout

T = TypeVar("T")

GRACE_SECONDS = 2.0
"""The time after its deadline at which a call is given up."""


def remaining() -> float | None:
    """Returns the seconds until the deadline of the caller; ``None`` if there is none."""
    return _csot.remaining()


def forget() -> None:
    """Removes the deadline from the current context."""
    _csot.TIMEOUT.set(None)
    _csot.DEADLINE.set(float("inf"))
    _csot.RTT.set(0.0)


@contextmanager
def fresh(seconds: float) -> Iterator[None]:
    """Sets a deadline that is independent of the caller's.

    ``pymongo.timeout()`` itself keeps the earlier of two nested deadlines.
    """
    tokens = (
        (_csot.TIMEOUT, _csot.TIMEOUT.set(seconds)),
        (_csot.DEADLINE, _csot.DEADLINE.set(time.monotonic() + seconds)),
        (_csot.RTT, _csot.RTT.set(0.0)),
    )
    try:
        yield
    finally:
        for variable, token in tokens:
            variable.reset(token)  # type: ignore[arg-type]


def extend(seconds: float) -> None:
    """Moves the deadline of the current context, if there is one."""
    _csot.DEADLINE.set(_csot.DEADLINE.get() + seconds)


async def bounded(
    seconds: float,
    function: Callable[..., Awaitable[T]],
    *arguments: object,
    own: bool = False,
) -> T:
    """Awaits ``function(*arguments)`` for ``seconds`` at most.

    The driver ends the call in time. If the call does not even begin, since all of Motor's threads
    wait for a silent server, it is given up a little later, and never made.

    Args:
        seconds: The time limit.
        function: The function to call.
        arguments: Its arguments.
        own: True to ignore the deadline of the caller. Else the earlier one counts.

    Raises:
        PyMongoError: The time limit was reached, or the call failed.
    """
    deadline = fresh(seconds) if own else pymongo.timeout(seconds)
    with deadline:
        left = remaining()
        limit = asyncio.timeout(GRACE_SECONDS + max(0.0, seconds if left is None else left))
        try:
            async with limit:
                return await function(*arguments)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise NetworkTimeout(
                f"no answer within {seconds:g} s, and the driver did not end the call: with Motor, "
                "all of its threads may be waiting for a server (MOTOR_MAX_WORKERS)"
            ) from error
