"""Bodies of requests: bounded in bytes and in time, read as they come, and parsed in slices."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from pydantic import AliasChoices, BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive

from converse_mongo.web.deadlines import paused
from converse_mongo.web.errors import (
    BusyError,
    MediaTypeError,
    SlowBodyError,
    TooLargeError,
)
from converse_mongo.web.open_streams import LOOK_SECONDS, server_stops

logger = logging.getLogger("converse_mongo")

LINGER_SECONDS = 1.0
"""Seconds for which the rest of a body is received that is not read."""
_READ = "converse_mongo.body_was_read"
SLICE_BYTES = 4 * 1024
"""The bytes that are parsed before other requests have their turn: some milliseconds at worst."""


class Pending:
    """Counts what is kept of the bodies that are being received.

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
            Takes the number of bytes that are kept of it now, and raises :class:`BusyError` if
            these are too many.
        """
        size = 0

        def keep(total: int) -> None:
            nonlocal size
            if total > size and self.held + total - size > self._limit:
                logger.warning("A body was refused: %d bytes of others are kept", self.held - size)
                raise BusyError
            self.held += total - size
            size = total

        try:
            yield keep
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
        BusyError: The server is stopping.
    """
    too_large = TooLargeError(detail=f"The body is larger than {limit} bytes.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise too_large
    received = 0
    until = asyncio.get_running_loop().time() + seconds
    while _READ not in request.scope:
        part = await _next_part(request, until)
        received += len(part)
        if received > limit:
            raise too_large
        for at in range(0, len(part), SLICE_BYTES):
            yield part[at : at + SLICE_BYTES]


async def _next_part(request: Request, until: float) -> bytes:
    time = asyncio.get_running_loop().time
    message: Message | None = None
    with paused(request):
        while message is None:
            try:
                async with asyncio.timeout_at(min(until, time() + LOOK_SECONDS)):
                    message = await request.receive()
            except TimeoutError as error:
                if server_stops():
                    raise BusyError from error
                if time() >= until:
                    raise SlowBodyError from error
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    if not message.get("more_body", False):
        request.scope[_READ] = True
    part: bytes = message.get("body", b"")
    return part


async def close_unread(request: Request, response: Response) -> None:
    """Has the server close the connection behind an error, if the body is still being sent.

    Otherwise a client could hold it for as long as it likes. What arrives within a moment is
    dropped first: a client that is cut off while it sends may never see the error.
    """
    headers = request.headers
    sent = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    if not sent or _READ in request.scope:
        return
    # A client that waits for a sign to go on would take the reading of it for one.
    if "expect" in headers or not await discard(request.receive):
        response.headers["connection"] = "close"


async def discard(receive: Receive) -> bool:
    """Drops what is left of a body, and returns whether all of it came within a moment."""
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while (message := await receive())["type"] == "http.request":
                if not message.get("more_body", False):
                    return True
    except TimeoutError:
        pass
    return False


def kept_keys(model: type[BaseModel]) -> set[str]:
    """The keys of a body that a model reads."""
    keys: set[str] = set()
    for name, declared in model.model_fields.items():
        alias = declared.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias or name]
        keys.update(each for each in [name, *choices] if isinstance(each, str))
    return keys
