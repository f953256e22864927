"""Checks of arguments, made before anything is written."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TypeGuard, TypeVar

from bson import ObjectId

from converse_mongo.domain.errors import (
    InvalidContentError,
    InvalidCursorError,
    InvalidIdError,
    InvalidInputError,
)

E = TypeVar("E", bound=StrEnum)

MAX_CHUNK_BYTES = 1024 * 1024
"""The largest content of one chunk, in bytes of UTF-8: 1 MiB."""

CHUNK_OVERHEAD = 112
"""An upper bound of the size of a chunk in a document beside its text and metadata, in bytes."""

MAX_APPEND_BYTES = 4 * 1024 * 1024
"""The largest atomic append, in bytes of UTF-8 and 112 more for each chunk: 4 MiB.
It travels in one command and comes back in one change event, both limited to 16 MiB by MongoDB."""

PAGE_CHUNKS = 256
"""The number of chunks that a message embeds before they are moved to a page."""

PAGE_BYTES = 256 * 1024
"""The BSON size of the embedded chunks at which they are moved to a page: 256 KiB."""

MAX_APPEND_CHUNKS = PAGE_CHUNKS
"""The most chunks of one atomic append: as many as make a page, 256."""

MAX_LIVE_BYTES = 6 * 1024 * 1024
"""The largest size of the embedded chunks: 6 MiB. MongoDB limits a document to 16 MiB; the rest is
room for metadata, and for the joined text at the end."""

MAX_CONTENT_BYTES = 8 * 1024 * 1024
"""The largest content of a message that is added whole, in bytes of UTF-8: 8 MiB."""

MAX_INLINE_VALUE_BYTES = 256 * 1024
"""The largest value of a field of a part that its chunk has in it, in bytes of BSON: 256 KiB.
Larger ones are stored apart."""

MAX_VALUE_BYTES = 64 * 1024 * 1024
"""The largest value of a field of a part, in bytes of BSON: 64 MiB."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MAX_SECONDS = 100 * 366 * 24 * 3600
"""The longest duration: about a hundred years, which dates can represent."""

MAX_ERROR_LENGTH = 10_000
"""The longest error that is taken from an exception, in characters."""

MAX_REASON_BYTES = 16 * 1024
"""The longest reason for a stop, in bytes of UTF-8: 16 KiB."""


def now() -> datetime:
    """Returns the time in UTC, aware, in whole milliseconds, as BSON holds it."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def object_id(value: object, what: str) -> ObjectId:
    """Returns ``value`` as an id.

    Raises:
        InvalidIdError: ``value`` is not an id. ``what`` names it in the message.
    """
    if isinstance(value, ObjectId):
        return value
    if isinstance(value, str) and ObjectId.is_valid(value):
        return ObjectId(value)
    raise InvalidIdError(
        f"{value!r} is not the id of a {what}: pass an ObjectId or its 24 hexadecimal digits."
    )


def utf8_size(text: str) -> int:
    """Returns the size of a text in bytes of UTF-8; a lone surrogate raises UnicodeEncodeError."""
    return len(text) if text.isascii() else len(text.encode())


def check_content(content: object, limit: int = MAX_CONTENT_BYTES) -> int:
    """Returns the size of ``content`` in bytes of UTF-8.

    Raises:
        InvalidContentError: It is not text, not valid in UTF-8, or larger than ``limit``.
    """
    if not isinstance(content, str):
        raise InvalidContentError(
            f"Content must be str, not {type(content).__name__}: decode bytes and render "
            "objects before storing them. Nothing was written."
        )
    try:
        return _check_size(utf8_size(content), limit)
    except UnicodeEncodeError as error:
        raise InvalidContentError(
            f"Content contains a lone surrogate at index {error.start}, which UTF-8 cannot "
            "represent: clean it, for example with content.encode('utf-8', 'replace').decode(). "
            "Nothing was written."
        ) from error


def check_token(token: object) -> int:
    """Returns the size of a token in bytes of UTF-8; -1 if it contains halves of characters.

    Raises:
        InvalidContentError: It is not text, or larger than ``MAX_CHUNK_BYTES``.
    """
    if isinstance(token, str) and not token.isascii():
        try:
            return _check_size(len(token.encode()), MAX_CHUNK_BYTES)
        except UnicodeEncodeError:
            _check_size(len(token.encode("utf-8", "surrogatepass")), MAX_CHUNK_BYTES)
            return -1
    return check_content(token, MAX_CHUNK_BYTES)


def _check_size(size: int, limit: int) -> int:
    if size > limit:
        raise InvalidContentError(
            f"Content of {size} bytes is over the limit of {limit} bytes: split it. "
            "Nothing was written."
        )
    return size


def _is_int(value: object, least: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_sequence(after: object, what: str = "sequence") -> int:
    """Returns the first number behind ``after``; ``None`` is before the first.

    Raises:
        InvalidCursorError: ``after`` is not such a number.
    """
    if after is None:
        return 0
    if not _is_int(after, -1):
        raise InvalidCursorError(
            f"after={after!r} is not a valid {what}: pass the {what} of the last one you have, or "
            "None for all."
        )
    return after + 1


def check_int(value: object, what: str, least: int) -> int:
    """Returns an integer of at least ``least``.

    Raises:
        InvalidInputError: It is not such an integer.
    """
    if not _is_int(value, least):
        raise InvalidInputError(f"{what} must be an integer of at least {least}, got {value!r}.")
    return value


def check_count(count: object, what: str) -> int | None:
    """Returns ``count``, which may be ``None`` for no bound.

    Raises:
        InvalidInputError: It is neither an integer of at least 0 nor ``None``.
    """
    return None if count is None else check_int(count, what, 0)


def check_choice(value: object, choices: type[E], what: str) -> E:
    """Returns the member of ``choices`` for a value.

    Raises:
        InvalidInputError: There is none.
    """
    try:
        return choices(value)  # type: ignore[arg-type]
    except ValueError as error:
        raise InvalidInputError(
            f"{what} must be one of {', '.join(choices)}, got {value!r}."
        ) from error


def check_reason(reason: object) -> str | None:
    """Returns the reason for a stop, which may be ``None``.

    Raises:
        InvalidInputError: It is not text, or cannot be stored.
    """
    if reason is None:
        return None
    check_content(reason, MAX_REASON_BYTES)
    return str(reason)


def check_seconds(seconds: object, what: str) -> float:
    """Returns a duration above 0 and of at most a hundred years.

    Raises:
        InvalidInputError: It is not such a number.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise InvalidInputError(f"{what} must be a number of seconds above 0, got {seconds!r}.")
    if seconds > MAX_SECONDS:
        raise InvalidInputError(f"{what} must be at most {MAX_SECONDS} seconds, got {seconds!r}.")
    return float(seconds)


def check_retention(retention: object) -> float | None:
    """Returns the seconds from the end to the merge of the chunks; ``None`` for never.

    Raises:
        InvalidInputError: It is neither "keep" nor "compact" nor a duration.
    """
    if retention == "keep":
        return None
    if retention == "compact":
        return 0.0
    if isinstance(retention, timedelta) and 0 <= retention.total_seconds() <= MAX_SECONDS:
        return retention.total_seconds()
    raise InvalidInputError(
        "retention must be 'keep', 'compact' or a timedelta of up to a hundred years, got "
        f"{retention!r}. Nothing was written."
    )


def storable_error(text: str) -> str:
    """Returns the text of an error, cut and mended to what can be stored and shown."""
    return text[:MAX_ERROR_LENGTH].encode("utf-8", "replace").decode()


def check_error(error: object) -> str:
    """Returns the text of an error that a message failed with.

    Raises:
        InvalidInputError: It is neither text nor an exception, or cannot be stored.
    """
    if isinstance(error, BaseException):
        error = str(error) or type(error).__name__
    if not isinstance(error, str):
        raise InvalidInputError(
            f"An error must be text or an exception, not {type(error).__name__}. "
            "Nothing was written."
        )
    check_content(error, MAX_CHUNK_BYTES)
    return error
