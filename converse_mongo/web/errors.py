"""Errors of requests: a status code, a code for programs, a sentence for users, and a detail.

The sentence is shown to the user of a chat. The detail is for the developer whose program sent the
request: it names fields, bytes and headers.
"""

from typing import ClassVar

from converse_mongo.domain.errors import ConverseError

EMPTY = "The message is empty."
TOO_LONG = "The message is too long."
ENDED = "This answer has ended."
OUTDATED = "This page is not up to date. Reload it."


class RequestError(ConverseError):
    """The request is invalid."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "invalid_request"
    retry_after: ClassVar[int | None] = None
    """Seconds after which the client may try again."""
    detail: str | None = None
    """What is wrong, for a developer."""

    def __init__(self, message: str | None = None, *, detail: str | None = None) -> None:
        super().__init__(message)
        if detail is not None:
            self.detail = detail


class UnknownError(RequestError):
    """This does not exist, or it is not yours."""

    status = 404
    code = "not_found"


class UndecidedError(UnknownError):
    """This does not exist, or it is not yours."""


class SlowBodyError(RequestError):
    """The request was not received in time."""

    status = 408
    code = "timeout"


class ConflictError(RequestError):
    """The state of the message does not allow this."""

    status = 409
    code = "conflict"


class NotPendingError(RequestError):
    """This was answered before, or is no longer asked."""

    status = 409
    code = "not_pending"


class TooLargeError(RequestError):
    """The request is too large."""

    status = 413
    code = "too_large"


class MediaTypeError(RequestError):
    """The request is invalid."""

    status = 415
    code = "unsupported_media_type"
    detail = "Send JSON with the content type application/json."


class LimitError(RequestError):
    """Too much is in progress. Try again in a few seconds."""

    status = 429
    code = "too_many_requests"
    retry_after = 2


class InternalError(RequestError):
    """Something went wrong. Try again later."""

    status = 500
    code = "internal"


class NotAnsweredError(RequestError):
    """Answers are not available here."""

    status = 501
    code = "not_answered"


class BusyError(RequestError):
    """The service is busy. Try again in a few seconds."""

    status = 503
    code = "unavailable"
    retry_after = 2
