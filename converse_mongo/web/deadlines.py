"""Deadlines: the time in which a request is answered, whatever MongoDB does."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from starlette.requests import HTTPConnection

from converse_mongo.driver import deadlines
from converse_mongo.web.errors import BusyError

logger = logging.getLogger("converse_mongo")

_KEY = "converse_mongo.deadline"


class Deadline:
    """Ends the work of a request after some seconds, with the calls of the driver in it.

    Without the latter, each request would leave one of Motor's threads waiting behind.

    Args:
        seconds: The time limit.
        request: The request.
    """

    def __init__(self, seconds: float, request: HTTPConnection) -> None:
        self._seconds = seconds
        self._request = request
        self._timeout = asyncio.timeout(seconds)
        self._driver = ExitStack()

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._driver.enter_context(deadlines.fresh(self._seconds))
        self._request.scope[_KEY] = self
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._request.scope.pop(_KEY, None)
        self._driver.close()
        try:
            await self._timeout.__aexit__(exc_type, exc, traceback)
        except TimeoutError as error:
            logger.warning(
                "%s was not answered within %g seconds",
                self._request.url.path,
                self._seconds,
            )
            raise BusyError from error

    @contextmanager
    def _paused(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        began, ends = loop.time(), self._timeout.when()
        if ends is None or self._timeout.expired():
            yield
            return
        self._timeout.reschedule(None)
        try:
            yield
        finally:
            waited = loop.time() - began
            self._timeout.reschedule(ends + waited)
            deadlines.extend(waited)


@contextmanager
def paused(request: HTTPConnection) -> Iterator[None]:
    """Stops the time of a request, while it waits for the client."""
    deadline: Deadline | None = request.scope.get(_KEY)
    if deadline is None:
        yield
        return
    with deadline._paused():  # noqa: SLF001 - of this module
        yield
