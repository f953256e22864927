"""Responses: JSON documents, errors, and the frames of server-sent events."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from converse_mongo.domain.errors import (
    ConverseClosedError,
    InvalidCursorError,
    InvalidIdError,
    NotFoundError,
    StoreUnavailableError,
    UnknownFormatError,
)
from converse_mongo.domain.surrogates import mend_all
from converse_mongo.web.errors import (
    OUTDATED,
    BusyError,
    InternalError,
    RequestError,
    UnknownError,
)
from converse_mongo.web.models import ErrorBody, ErrorView

logger = logging.getLogger("converse_mongo")

NO_STORE = {"cache-control": "no-store", "vary": "authorization, cookie"}
"""The headers of what only some users may see. Caches that store it all the same learn by what."""

SLICE_BYTES = 64 * 1024
DRAIN_SECONDS = 0.05
SMALL = 1024
"""The length up to which a text is made at once with its neighbors."""

_LINE_ENDS = [(each.encode(), f"\\u{ord(each):04x}".encode()) for each in "\x85\u2028\u2029"]


def one_line(value: Any, *, omit_none: bool = False) -> bytes:
    """``value`` as JSON, in one line for every kind of reader.

    Infinity and NaN, which JSON does not have, become null; halves of characters are replaced.

    Args:
        value: Models, or what JSON has.
        omit_none: Whether to leave out fields of models that are ``None``.
    """
    try:
        text = to_json(value, by_alias=True, exclude_none=omit_none, inf_nan_mode="null")
    except PydanticSerializationError:
        text = to_json(mend_all(_plain(value, omit_none=omit_none)), inf_nan_mode="null")
    if not text.isascii():
        for end, escaped in _LINE_ENDS:
            text = text.replace(end, escaped)
    return text


def frame(
    value: Any, *, event: str | None = None, cursor: str | None = None, omit_none: bool = False
) -> bytes:
    """A server-sent event with ``value`` as its data, and the cursor behind it as its id."""
    return sse_frame(one_line(value, omit_none=omit_none), event=event, cursor=cursor)


def sse_frame(data: bytes, *, event: str | None = None, cursor: str | None = None) -> bytes:
    """A server-sent event with one line of data."""
    head = f"id: {cursor}\n" if cursor is not None else ""
    if event is not None:
        head += f"event: {event}\n"
    return b"%bdata: %b\n\n" % (head.encode(), data)


T = TypeVar("T")


class Json(Response):
    """A JSON response that must not be stored by caches.

    It is made and sent in slices, so that a large one delays nobody, and a client that does not
    read it is let go of.

    Attributes:
        send_timeout: Seconds that a client may leave data unread.
    """

    media_type = "application/json"
    send_timeout: float = 60.0

    def __init__(self, value: Any, status: int = 200, *, omit_none: bool = False) -> None:
        self._slices = json_slices(value, omit_none=omit_none)
        first, self._second = next(self._slices, b""), next(self._slices, None)
        super().__init__(first, status, NO_STORE)
        if self._second is not None:
            del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        try:
            async for message in self._messages():
                if scope["type"] == "websocket":  # it refuses a socket
                    message["type"] = f"websocket.{message['type']}"
                async with asyncio.timeout(self.send_timeout):
                    await send(message)
        except TimeoutError:
            logger.info("A client that did not read its response was dropped")
            abort(receive)
            await asyncio.sleep(0)  # the server takes note of it
        else:
            await drain(receive, self.send_timeout)
        if self.background is not None:  # of a dependency of FastAPI
            await self.background()

    async def _messages(self) -> AsyncIterator[Message]:
        head = {"status": self.status_code, "headers": self.raw_headers}
        yield {"type": "http.response.start", **head}
        part, then = bytes(self.body), self._second
        while then is not None:
            yield {"type": "http.response.body", "body": part, "more_body": True}
            await asyncio.sleep(0)
            part, then = then, next(self._slices, None)
        yield {"type": "http.response.body", "body": part, "more_body": False}


async def in_turns(values: Iterable[T]) -> AsyncIterator[T]:
    """Yields each value after other tasks had their turn."""
    for value in values:
        await asyncio.sleep(0)
        yield value


async def drain(receive: Receive, seconds: float) -> None:
    """Waits until a client has taken all that was sent, and drops it if it does not in time.

    The server takes the last bytes without waiting for the client, and would keep its connection
    for as long as the client likes.
    """
    time = asyncio.get_running_loop().time
    until, size = time() + seconds, getattr(_transport(receive), "get_write_buffer_size", int)
    while size():
        if time() >= until:
            logger.info("A client that did not read its response was dropped")
            abort(receive)
            return
        await asyncio.sleep(DRAIN_SECONDS)


def _transport(receive: Receive) -> Any:
    return getattr(getattr(receive, "__self__", None), "transport", None)


def abort(receive: Receive) -> None:
    """Closes the connection of a request without sending what its client does not read.

    ASGI has nothing for this: a server would hold the connection, and wait for it when it stops,
    until the client reads or leaves. The ``receive`` of uvicorn is a method of an object that has
    the transport. With another server, or if middleware has replaced it, nothing happens.
    """
    if callable(close := getattr(_transport(receive), "abort", None)):
        close()


def json_slices(value: Any, *, omit_none: bool = False) -> Iterator[bytes]:
    """``value`` as JSON in slices, each of about :data:`SLICE_BYTES`; as :func:`one_line`.

    What is not a long text is made at once with its neighbors; models in a list or a dictionary
    are made one by one.
    """
    gathered = bytearray()
    for each in _pieces(value, omit_none=omit_none):
        gathered += each
        if len(gathered) >= SLICE_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _plain(value: Any, *, omit_none: bool) -> Any:
    return to_jsonable_python(value, by_alias=True, exclude_none=omit_none, inf_nan_mode="null")


def _pieces(value: Any, *, omit_none: bool) -> Iterator[bytes]:
    if isinstance(value, BaseModel):
        value = _plain(value, omit_none=omit_none)
    if isinstance(value, str) and len(value) > SLICE_BYTES:
        yield b'"'
        for at in range(0, len(value), SLICE_BYTES):
            yield one_line(value[at : at + SLICE_BYTES])[1:-1]
        yield b'"'
    elif isinstance(value, dict) and not all(map(_is_small, value.values())):
        begin = b"{"
        for key, item in value.items():
            yield begin + one_line(key) + b":"
            yield from _pieces(item, omit_none=omit_none)
            begin = b","
        yield b"}"
    elif isinstance(value, list) and not all(map(_is_small, value)):
        begin = b"["
        for item in value:
            yield begin
            yield from _pieces(item, omit_none=omit_none)
            begin = b","
        yield b"]"
    else:
        yield one_line(value)


def _is_small(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) < SMALL
    return not isinstance(value, dict | list | BaseModel) or not value


def error_response(error: Exception) -> Response:
    """The response that reports an error.

    Errors of the request are explained. All others are logged, and the client learns only whether
    to try again later.
    """
    known = _of_request(error)
    view = ErrorView(code=known.code, message=str(known), detail=known.detail)
    response = Json(ErrorBody(error=view), known.status, omit_none=True)
    if known.retry_after is not None:
        response.headers["retry-after"] = str(known.retry_after)
    return response


def _of_request(error: Exception) -> RequestError:
    match error:
        case RequestError():
            return error
        case NotFoundError() | InvalidIdError():
            return UnknownError()
        case InvalidCursorError():
            return RequestError(
                OUTDATED, detail="after: The stream cannot continue from there. Start without it."
            )
        case StoreUnavailableError() | UnknownFormatError():
            logger.warning("A request was not answered: %s", error)
            return BusyError()
        case ConverseClosedError(was_opened=True):
            return BusyError()
        case ConverseClosedError():
            logger.error(
                "A request came before Converse was opened: use `async with converse` in the "
                "lifespan of the application, or await converse.open(), and see that the lifespan "
                "runs (that of a mounted application does not)"
            )
        case _:
            logger.error("A request failed", exc_info=error)
    return InternalError()
