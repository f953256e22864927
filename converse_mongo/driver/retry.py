"""Retries: a call to MongoDB is repeated after transient errors."""

import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from converse_mongo.domain.errors import StoreUnavailableError
from converse_mongo.driver.deadlines import bounded, remaining
from converse_mongo.driver.failures import is_transient, reason

logger = logging.getLogger("converse_mongo")

T = TypeVar("T")

MIN_TRY_SECONDS = 1.0
TRY_SECONDS = 10.0
"""The time limit of the first try; that of each further try doubles."""
PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.05, 2.0


def backoff(attempt: int, first: float, longest: float) -> float:
    """Returns the pause in seconds after a failed attempt, from 0 on: doubled each time."""
    return min(first * 2.0 ** min(attempt, 20), longest)


def random_pause(attempt: int, first: float, longest: float) -> float:
    """Returns a random pause of at most :func:`backoff`, so that clients do not retry together."""
    return random.uniform(0, backoff(attempt, first, longest))


async def call(
    function: Callable[..., Awaitable[T]],
    *arguments: Any,
    what: str,
    timeout: float,  # noqa: ASYNC109 - it bounds the tries, not one of them
    on_retry: Callable[[], None] | None = None,
    on_trouble: Callable[[], None] = lambda: None,
    repeat: bool = True,
) -> T:
    """Awaits ``function(*arguments)``, and retries it for ``timeout`` seconds.

    Each try has a time limit: a frozen server, or a silent connection, would block it forever. A
    later try may take longer than the one before, for a server that is merely slow. A deadline of
    the caller, set by ``pymongo.timeout()``, ends them all.

    Args:
        function: The function to call.
        arguments: Its arguments.
        what: A description of the call, for errors.
        timeout: Seconds after which no further try is made.
        on_retry: Called before each further try.
        on_trouble: Called after each try that failed for a transient reason.
        repeat: ``False`` if the call is not safe to repeat.

    Raises:
        StoreUnavailableError: The last try, or the only one, failed for a transient reason.
    """
    began = time.monotonic()
    shortest = min(max(timeout, MIN_TRY_SECONDS), TRY_SECONDS)

    async def attempt(number: int) -> T:
        longer = backoff(number, TRY_SECONDS, began + timeout - time.monotonic())
        try:
            return await bounded(max(shortest, longer), function, *arguments)
        except Exception as error:
            if is_transient(error):
                on_trouble()
            raise

    def is_over(state: RetryCallState) -> bool:
        left = remaining()
        out_of_time = left is not None and left <= state.upcoming_sleep
        return out_of_time or time.monotonic() >= began + timeout

    try:
        try:
            return await attempt(0)  # without tenacity, which takes longer than all else here
        except Exception as error:
            if not (repeat and is_transient(error)):
                raise
            logger.warning("Could not %s (%s); retrying", what, reason(error))
        async for retried in AsyncRetrying(
            retry=retry_if_exception(is_transient), wait=_pause, stop=is_over, reraise=True
        ):
            with retried:
                if on_retry is not None:
                    on_retry()
                return await attempt(retried.retry_state.attempt_number)
    except Exception as error:
        if not is_transient(error):
            raise
        if not repeat:
            raise StoreUnavailableError(
                f"Could not {what}: MongoDB did not answer ({reason(error)}). It may or may not "
                "have been done, and was not retried, since it might be done twice: read what is "
                "stored."
            ) from error
        timed_out = remaining() is None or time.monotonic() >= began + timeout
        limit = f"for {timeout:g} seconds" if timed_out else "before the caller's deadline"
        raise StoreUnavailableError(
            f"Could not {what}: MongoDB did not answer {limit} ({reason(error)}). Acknowledged "
            "writes are stored; this call may or may not have been done."
        ) from error
    raise AssertionError("unreachable")


def _pause(state: RetryCallState) -> float:
    return random_pause(state.attempt_number - 1, PAUSE_SECONDS, MAX_PAUSE_SECONDS)
