"""Bodies of requests: bounded in bytes and in time, read as they come, and parsed in slices."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import cast

from pydantic import AliasChoices, BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive

from converse_mongo.web.deadlines import paused
from converse_mongo.web.errors import (
    BusyError,
    LimitError,
    MediaTypeError,
    SlowBodyError,
    TooLargeError,
)
from converse_mongo.web.json_reader import ObjectReader
from converse_mongo.web.open_streams import LOOK_SECONDS, server_stops

logger = logging.getLogger("converse_mongo")

LINGER_SECONDS = 1.0
"""Seconds for which the rest of a body is received that is not read."""
_READ = "converse_mongo.body_was_read"
SLICE_BYTES = 4 * 1024
"""The bytes that are parsed before other requests have their turn: some milliseconds at worst."""
PARSE_SECONDS = 5.0
"""The processor time for which a body may be parsed."""
PAUSE_SECONDS = 0.005
"""The time of parsing after which as long a pause follows. Loops do not measure shorter ones."""


class Pending:
    """Counts what is kept of the bodies that are being received.

    Args:
        limit: The most bytes.
        share: The most bytes of one key; ``None`` for any number.
    """

    def __init__(self, limit: int, share: int | None = None) -> None:
        self._limit = limit
        self._share = limit if share is None else share
        self._by_key: Counter[Hashable] = Counter()
        self.held = 0

    @contextmanager
    def body(self) -> Iterator[Callable[[int, Hashable], None]]:
        """Counts one body, until it was read or the client has left.

        Yields:
            Takes the number of bytes that are kept of it now, and whose it is, which stays the
            same. ``None`` has no share. Raises :class:`BusyError` if all are too many, and
            :class:`LimitError` if those of the key are.
        """
        size, whose = 0, cast(Hashable, None)

        def keep(total: int, key: Hashable) -> None:
            nonlocal size, whose
            more, whose = total - size, key
            if more > 0 and self.held + more > self._limit:
                logger.warning("A body was refused: %d bytes of others are kept", self.held - size)
                raise BusyError
            if more > 0 and key is not None and self._by_key[key] + more > self._share:
                raise LimitError
            size = total
            self._count(key, more)

        try:
            yield keep
        finally:
            self._count(whose, -size)

    def _count(self, key: Hashable, more: int) -> None:
        self.held += more
        if key is not None:
            self._by_key[key] += more
            if not self._by_key[key]:
                del self._by_key[key]


class Parsing:
    """The parsing of all bodies: a slice of one of them at a time, and half of the time at most."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._owed = 0.0

    async def feed(self, request: Request, reader: ObjectReader, part: bytes) -> None:
        """Has a slice of a body parsed. Other tasks have their turn after it.

        Raises:
            TooLargeError: Parsing takes too long.
        """
        async with self._lock:
            began = time.thread_time()
            reader.feed(part)
            spent = time.thread_time() - began
            reader.seconds += spent
            if reader.seconds > PARSE_SECONDS:
                raise TooLargeError(detail="The body takes too long to parse.")
            self._owed += spent
            if self._owed < PAUSE_SECONDS:
                await asyncio.sleep(0)
                return
            pause, self._owed = self._owed, 0.0
            with paused(request):
                await asyncio.sleep(pause)


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
    received, now = 0, asyncio.get_running_loop().time
    until = now() + seconds
    while _READ not in request.scope:
        part = await _next_part(request, until)
        received += len(part)
        if received > limit:
            raise too_large
        arrived = now()
        for at in range(0, len(part), SLICE_BYTES):
            yield part[at : at + SLICE_BYTES]
        until += now() - arrived  # what the caller does with it takes its own time


async def _next_part(request: Request, until: float) -> bytes:
    now = asyncio.get_running_loop().time
    message: Message | None = None
    with paused(request):
        while message is None:
            try:
                async with asyncio.timeout_at(min(until, now() + LOOK_SECONDS)):
                    message = await request.receive()
            except TimeoutError as error:
                if server_stops():
                    raise BusyError from error
                if now() >= until:
                    raise SlowBodyError from error
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    if not message.get("more_body", False):
        request.scope[_READ] = True
    part: bytes = message.get("body", b"")
    return part


async def drop_unread(request: Request) -> None:
    """Drops what arrives of a body within a moment.

    A client that is cut off while it sends may never see why it was refused.
    """
    # A client that waits for a sign to go on would take the reading of it for one.
    if _is_unread(request) and "expect" not in request.headers and await discard(request.receive):
        request.scope[_READ] = True


def close_unread(request: Request, response: Response) -> None:
    """Has the server close the connection behind a response, if the body is still being sent.

    Otherwise a client could hold it for as long as it likes.
    """
    if _is_unread(request):
        response.headers["connection"] = "close"


def _is_unread(request: Request) -> bool:
    headers = request.headers
    sent = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    return sent and _READ not in request.scope


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
