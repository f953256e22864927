"""Errors of requests: a status code, a code for programs, and a sentence for people."""

from typing import ClassVar

from converse_mongo.domain.errors import ConverseError


class RequestError(ConverseError):
    """The request is invalid."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "invalid_request"


class UnknownError(RequestError):
    """Not found."""

    status = 404
    code = "not_found"


class ConflictError(RequestError):
    """The state of the message does not allow this."""

    status = 409
    code = "conflict"


class TooLargeError(RequestError):
    """The request is too large."""

    status = 413
    code = "too_large"


class MediaTypeError(RequestError):
    """Send JSON with the content type application/json."""

    status = 415
    code = "unsupported_media_type"


class BusyError(RequestError):
    """The service is busy. Try again in a few seconds."""

    status = 503
    code = "unavailable"
