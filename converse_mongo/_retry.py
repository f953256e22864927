"""Tries a call to MongoDB again while the trouble may pass."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import pymongo
from bson import ObjectId
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from converse_mongo._driver import is_transient
from converse_mongo.errors import StoreUnavailableError

__all__ = ["call", "wait_before_retry"]

logger = logging.getLogger("converse_mongo")

T = TypeVar("T")

TRY_SECONDS = 10.0

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
    bounded: bool = False,
) -> T:
    """Awaits ``function(*arguments)``, again and again for ``timeout`` seconds if need be.

    Only for calls that are safe to repeat. The first try costs nothing extra.

    Args:
        function: What to call.
        arguments: What to call it with.
        what: What it does, for errors.
        timeout: Seconds until no further try is made.
        append_id: For an error, the id of the append that it is.
        on_retry: Called before each further try.
        on_trouble: Called after each try that failed.
        bounded: Whether each try, too, ends after a while: a connection that went silent, while the
            server is well, answers for ever. It costs some time of each call.

    Raises:
        StoreUnavailableError: It still failed at the end; ``what`` says what could not be done.
    """
    if bounded:
        function = partial(_bounded, min(timeout, TRY_SECONDS), function)
    try:
        return await function(*arguments)
    except Exception as error:
        if not is_transient(error):
            raise
        on_trouble()
        logger.warning("Could not %s (%s); trying again", what, error)
    retrying = AsyncRetrying(
        retry=retry_if_exception(is_transient),
        wait=wait_before_retry,
        stop=stop_after_delay(timeout),
        retry_error_callback=_reraise,
    )

    async def attempt() -> T:
        if on_retry is not None:
            on_retry()
        try:
            return await function(*arguments)
        except Exception:
            on_trouble()
            raise

    try:
        # Not the function itself: tenacity awaits only what it knows for a coroutine function, and
        # Motor's methods are plain ones that return futures.
        return await retrying(attempt)
    except Exception as error:
        if not is_transient(error):
            raise
        raise StoreUnavailableError(
            f"Could not {what}: MongoDB gave no answer for {timeout:g} seconds ({error}). "
            "What was acknowledged before is stored; of this call it is not known."
            + (
                f" Try it again with append_id=ObjectId('{append_id}') to have it stored once."
                if append_id
                else ""
            ),
            append_id,
        ) from error


async def _bounded(seconds: float, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    # https://pymongo.readthedocs.io/en/stable/examples/timeouts.html; Motor's threads see it, too.
    with pymongo.timeout(seconds):
        return await function(*arguments)


def _reraise(state: RetryCallState) -> Any:
    return state.outcome.result() if state.outcome else None
