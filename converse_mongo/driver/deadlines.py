"""Deadlines of calls to MongoDB: those of the library, and those of ``pymongo.timeout()``.

``pymongo.timeout()`` keeps its deadline in context variables, which every task inherits that is
made inside. See https://pymongo.readthedocs.io/en/stable/examples/timeouts.html; the threads of
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

__all__ = ["bounded", "forget", "fresh", "remaining"]

T = TypeVar("T")

GRACE_SECONDS = 2.0
"""How much later than its deadline a call may end before it is given up."""


def remaining() -> float | None:
    """Seconds until the deadline that the caller set; ``None`` if there is none."""
    return _csot.remaining()


def forget() -> None:
    """Takes the deadline out of the current context, for good."""
    _csot.TIMEOUT.set(None)
    _csot.DEADLINE.set(float("inf"))
    _csot.RTT.set(0.0)


@contextmanager
def fresh(seconds: float) -> Iterator[None]:
    """Sets a deadline that has nothing to do with that of the caller.

    ``pymongo.timeout()`` itself keeps the earlier one of two that are nested.
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


async def bounded(
    seconds: float,
    function: Callable[..., Awaitable[T]],
    *arguments: object,
    own: bool = False,
) -> T:
    """Awaits ``function(*arguments)`` for ``seconds`` at most.

    The driver ends the call in time. If it does not even begin, since all of Motor's threads wait
    for a server that is silent, the call is given up a little later, and never made.

    Args:
        seconds: How long.
        function: What to call.
        arguments: What to call it with.
        own: Whether the deadline of the caller does not count. Else the earlier one does.

    Raises:
        PyMongoError: Time was up, or the call failed.
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
