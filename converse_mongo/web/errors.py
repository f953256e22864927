"""Errors of requests: a status code, a word for programs, and a sentence for people."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import ClassVar, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from converse_mongo.domain.errors import (
    ConverseClosedError,
    ConverseError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from converse_mongo.web.presenter import Json

__all__ = [
    "BusyError",
    "ConflictError",
    "MediaTypeError",
    "RequestError",
    "TooLargeError",
    "UnknownError",
    "answer_errors",
    "error_response",
]

E = TypeVar("E")
Endpoint = Callable[[E, Request], Awaitable[Response]]


class RequestError(ConverseError):
    """The request cannot be understood."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "invalid_request"


class UnknownError(RequestError):
    """Not found."""

    status = 404
    code = "not_found"


class ConflictError(RequestError):
    """The message is not in a state for that."""

    status = 409
    code = "conflict"


class TooLargeError(RequestError):
    """The request is too large."""

    status = 413
    code = "too_large"


class MediaTypeError(RequestError):
    """Send JSON, with the content type application/json."""

    status = 415
    code = "unsupported_media_type"


class BusyError(RequestError):
    """The service cannot do this now; try again in some seconds."""

    status = 503
    code = "unavailable"


def error_response(error: ConverseError) -> Response:
    """What a client is told of an error."""
    if isinstance(error, NotFoundError):
        error = UnknownError()
    elif isinstance(error, InvalidInputError):
        error = RequestError(str(error))
    elif isinstance(error, StoreUnavailableError | ConverseClosedError):
        error = BusyError()
    elif not isinstance(error, RequestError):
        raise error
    response = Json({"error": {"code": error.code, "message": str(error)}}, error.status)
    if isinstance(error, BusyError):
        response.headers["retry-after"] = "2"
    return response


def answer_errors(endpoint: "Endpoint[E]") -> "Endpoint[E]":
    """Makes an endpoint answer with the errors that it raises."""

    @wraps(endpoint)
    async def answered(self: E, request: Request) -> Response:
        try:
            return await endpoint(self, request)
        except ConverseError as error:
            return error_response(error)

    return answered
