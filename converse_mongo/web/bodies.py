"""Bodies of requests: bounded in bytes and in time, read as they come, and parsed in slices."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from pydantic import AliasChoices, BaseModel
from starlette.requests import Request

from converse_mongo.web.deadlines import paused
from converse_mongo.web.errors import (
    BusyError,
    MediaTypeError,
    SlowBodyError,
    TooLargeError,
)

logger = logging.getLogger("converse_mongo")

SLICE_BYTES = 8 * 1024
"""The bytes that are parsed before other requests have their turn: some milliseconds at worst."""


class Pending:
    """Counts the bytes of the bodies that are being received.

    Args:
        limit: The most bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    @contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Counts one body, until it was read or the client has left.

        Yields:
            Counts more bytes of it, and raises :class:`BusyError` if these are too many.
        """
        size = 0

        def add(more: int) -> None:
            nonlocal size
            if self.held + more > self._limit:
                logger.warning("A body was refused: %d bytes are being received", self.held)
                raise BusyError
            self.held += more
            size += more

        try:
            yield add
        finally:
            self.held -= size


def check_media_type(request: Request) -> None:
    """Checks that a body is sent as JSON.

    A form on another site could send anything else with the cookies of the user, and without a
    preflight request.

    Raises:
        MediaTypeError: It is not.
    """
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != "application/json":
        raise MediaTypeError


async def read_slices(request: Request, *, limit: int, seconds: float) -> AsyncIterator[bytes]:
    """Yields a body as it comes, in slices. Other tasks have their turn before each.

    The deadline of the request does not run while it waits for the client.

    Args:
        request: The request.
        limit: The most bytes.
        seconds: The time limit of the whole body.

    Raises:
        TooLargeError: It is larger; no more than that was read.
        SlowBodyError: It was not received in time.
    """
    too_large = TooLargeError(f"The body is larger than {limit} bytes.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise too_large
    received = 0
    until = asyncio.get_running_loop().time() + seconds
    parts = request.stream()
    while True:
        part = await _next_part(request, parts, until)
        if part is None:
            return
        received += len(part)
        if received > limit:
            raise too_large
        for at in range(0, len(part), SLICE_BYTES):
            await asyncio.sleep(0)
            yield part[at : at + SLICE_BYTES]


async def _next_part(request: Request, parts: AsyncIterator[bytes], until: float) -> bytes | None:
    timeout = asyncio.timeout_at(until)
    try:
        with paused(request):
            async with timeout:
                return await anext(parts, None)
    except TimeoutError as error:
        raise SlowBodyError from error


def kept_keys(model: type[BaseModel]) -> set[str]:
    """The keys of a body that a model reads."""
    keys: set[str] = set()
    for name, declared in model.model_fields.items():
        alias = declared.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias or name]
        keys.update(each for each in [name, *choices] if isinstance(each, str))
    return keys
