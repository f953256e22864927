"""Responses: JSON documents, errors, and the frames of server-sent events."""

from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from converse_mongo.domain.errors import (
    ConverseClosedError,
    ConverseError,
    InvalidIdError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from converse_mongo.web.errors import BusyError, RequestError, UnknownError
from converse_mongo.web.models import ErrorBody, ErrorView

NO_STORE = {"cache-control": "no-store"}

_LINE_ENDS = [(each.encode(), f"\\u{ord(each):04x}".encode()) for each in "\x85\u2028\u2029"]


def one_line(value: Any, *, omit_none: bool = False) -> bytes:
    """``value`` as JSON, in one line for every kind of reader.

    Infinity and NaN, which JSON does not have, become null.

    Args:
        value: Models, or what JSON has.
        omit_none: Whether to leave out fields of models that are ``None``.
    """
    text = to_json(value, by_alias=True, exclude_none=omit_none, inf_nan_mode="null")
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


class Json(Response):
    """A JSON response that must not be stored by caches."""

    media_type = "application/json"

    def __init__(self, value: Any, status: int = 200, *, omit_none: bool = False) -> None:
        super().__init__(one_line(value, omit_none=omit_none), status, NO_STORE)


def error_response(error: ConverseError) -> Response:
    """The response that reports an error; raises errors that are not the client's concern."""
    if isinstance(error, NotFoundError | InvalidIdError):
        error = UnknownError()
    elif isinstance(error, InvalidInputError):
        error = RequestError(str(error))
    elif isinstance(error, StoreUnavailableError | ConverseClosedError):
        error = BusyError()
    elif not isinstance(error, RequestError):
        raise error
    found = ErrorView(code=error.code, message=str(error))
    response = Json(ErrorBody(error=found), error.status)
    if error.retry_after is not None:
        response.headers["retry-after"] = str(error.retry_after)
    return response
