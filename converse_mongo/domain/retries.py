"""Retries: which errors of an attempt lead to another one, and when."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from converse_mongo.domain.errors import InvalidInputError
from converse_mongo.domain.validation import check_int, check_seconds

RetryOn: TypeAlias = tuple[type[Exception], ...] | Callable[[Exception], bool]
"""Classes of errors, or a function that says of an error whether another attempt may help."""


class Retry(Exception):  # noqa: N818 - a request, not an error
    """Raise it in ``respond`` to have a worker make another attempt.

    If no attempt is left, the message fails with ``reason`` as its error.

    Args:
        reason: Why, for people; it is logged.
        after: Seconds until the next attempt; ``None`` for those of the :class:`RetryPolicy`.
    """

    reason: str = ""
    after: float | None = None

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        if after is not None and after != 0:
            check_seconds(after, "after")
        super().__init__(reason)
        self.reason = reason
        self.after = after


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What a worker does when ``respond`` raises.

    The pause before retry ``n`` (1, 2, 3, …) is ``backoff * 2 ** (n - 1)`` seconds, at most
    ``longest``, less a random part of up to ``jitter`` of it.

    Attributes:
        max: The most retries of a message for errors. Its ``max_attempts`` limits them as well, and
            counts crashes, too.
        backoff: Seconds before the first retry; 0 for none.
        jitter: The part of a pause that is random, from 0 to 1.
        retry_on: The errors that another attempt may help with; none by default. Others fail the
            message. Attempts that took too long, or that MongoDB did not answer, are made again in
            any case.
        longest: The most seconds before a retry.

    Raises:
        InvalidInputError: One of these is out of range.
    """

    max: int = 2
    backoff: float = 1.0
    jitter: float = 0.5
    retry_on: RetryOn = ()
    longest: float = 60.0

    def __post_init__(self) -> None:
        check_int(self.max, "max", 0)
        for name in ("backoff", "longest"):
            value = getattr(self, name)
            if value != 0 or isinstance(value, bool):
                check_seconds(value, name)
        if isinstance(self.jitter, bool) or not isinstance(self.jitter, int | float):
            raise InvalidInputError(f"jitter must be a number, got {self.jitter!r}.")
        if not 0 <= self.jitter <= 1:
            raise InvalidInputError(f"jitter must be from 0 to 1, got {self.jitter!r}.")
        classes = isinstance(self.retry_on, tuple) and all(
            isinstance(each, type) and issubclass(each, Exception) for each in self.retry_on
        )
        if not classes and not callable(self.retry_on):
            raise InvalidInputError(
                "retry_on must be a tuple of classes of exceptions, or a function, got "
                f"{self.retry_on!r}."
            )

    def wants(self, error: BaseException) -> bool:
        """Returns whether another attempt may help with an error."""
        if isinstance(error, Retry):
            return True
        if not isinstance(error, Exception):
            return False
        if isinstance(self.retry_on, tuple):
            return isinstance(error, self.retry_on)
        return bool(self.retry_on(error))

    def allows(self, retries: int) -> bool:
        """Returns whether one more retry may be made, after some."""
        return retries < self.max

    def pause(self, retries: int, error: BaseException | None = None) -> float:
        """Returns the seconds until the next attempt, after some retries."""
        if isinstance(error, Retry) and error.after is not None:
            return error.after
        longest: float = min(self.backoff * 2 ** min(retries, 30), self.longest)
        return longest * (1 - self.jitter * random.random())
