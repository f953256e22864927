"""Tries a call to MongoDB again while the trouble may pass."""

import logging
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, TypeVar

from bson import ObjectId
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from converse_mongo.domain.errors import StoreUnavailableError
from converse_mongo.driver.deadlines import bounded, remaining
from converse_mongo.driver.failures import is_transient

__all__ = ["call", "wait_before_retry"]

logger = logging.getLogger("converse_mongo")

T = TypeVar("T")

MIN_TRY_SECONDS = 1.0
TRY_SECONDS = 10.0
"""How long the first try may take; each further one may take twice as long as the one before."""

wait_before_retry = wait_random_exponential(multiplier=0.05, max=2.0)
"""Seconds before the next try: at random, up to a bound that doubles from 0.05 to 2."""


async def call(
    function: Callable[..., Awaitable[T]],
    *arguments: Any,
    what: str,
    timeout: float,  # noqa: ASYNC109 - it bounds the tries, not one of them
    append_id: ObjectId | None = None,
    on_retry: Callable[[], None] | None = None,
    on_trouble: Callable[[], None] = lambda: None,
    repeat: bool = True,
) -> T:
    """Awaits ``function(*arguments)``, again and again for ``timeout`` seconds if need be.

    Each try ends after a while: a server that is frozen, or a connection that went silent, would
    keep it for ever. A later try may take longer than the one before, for a server that is merely
    slow. A deadline of the caller's, set by ``pymongo.timeout()``, ends them all.

    Args:
        function: What to call.
        arguments: What to call it with.
        what: What it does, for errors.
        timeout: Seconds until no further try is made.
        append_id: For an error, the id of the append that it is.
        on_retry: Called before each further try.
        on_trouble: Called after each try that failed.
        repeat: Whether the call may be made again: it is safe to repeat.

    Raises:
        StoreUnavailableError: It still failed at the end; ``what`` says what could not be done.
    """
    shortest = min(max(timeout, MIN_TRY_SECONDS), TRY_SECONDS)
    began, tries = time.monotonic(), count(1)
    try:
        return await bounded(shortest, function, *arguments)
    except Exception as error:
        if not is_transient(error):
            raise
        on_trouble()
        if not repeat:
            raise StoreUnavailableError(
                f"Could not {what}: MongoDB did not answer ({error}). It is not known whether "
                "it was done. It was not tried again, since it might be done twice: read what is "
                "stored."
            ) from error
        logger.warning("Could not %s (%s); trying again", what, error)

    async def attempt() -> T:
        if on_retry is not None:
            on_retry()
        longer = min(TRY_SECONDS * 2.0 ** next(tries), began + timeout - time.monotonic())
        try:
            return await bounded(max(shortest, longer), function, *arguments)
        except Exception:
            on_trouble()
            raise

    def is_over(state: RetryCallState) -> bool:
        left = remaining()
        return time.monotonic() >= began + timeout or (
            left is not None and left <= state.upcoming_sleep
        )

    retrying = AsyncRetrying(
        retry=retry_if_exception(is_transient),
        wait=wait_before_retry,
        stop=is_over,
        retry_error_callback=_reraise,
    )
    try:
        # Not the function itself: tenacity awaits only what it knows for a coroutine function, and
        # Motor's methods are plain ones that return futures.
        return await retrying(attempt)
    except Exception as error:
        if not is_transient(error):
            raise
        limit = (
            f"for {timeout:g} seconds"
            if remaining() is None or time.monotonic() >= began + timeout
            else "before the deadline that the caller set"
        )
        raise StoreUnavailableError(
            f"Could not {what}: MongoDB did not answer {limit} ({error}). "
            "What was acknowledged before is stored; of this call it is not known."
            + (
                f" Try it again with append_id=ObjectId('{append_id}') to have it stored once."
                if append_id
                else ""
            ),
            append_id,
        ) from error


def _reraise(state: RetryCallState) -> Any:
    return state.outcome.result() if state.outcome else None
