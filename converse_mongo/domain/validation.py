"""Checks of what callers pass in, made before anything is written."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from bson import ObjectId
from bson.codec_options import CodecOptions

from converse_mongo.domain.errors import (
    InvalidContentError,
    InvalidCursorError,
    InvalidIdError,
    InvalidInputError,
)
from converse_mongo.domain.metadata import (
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    check_metadata,
)
from converse_mongo.domain.types import MessageStatus

__all__ = [
    "BSON_OPTIONS",
    "CHUNK_OVERHEAD",
    "EPOCH",
    "MAX_APPEND_BYTES",
    "MAX_APPEND_CHUNKS",
    "MAX_CHUNK_BYTES",
    "MAX_CONTENT_BYTES",
    "MAX_LIVE_BYTES",
    "MAX_METADATA_BYTES",
    "MAX_METADATA_DEPTH",
    "MAX_REASON_BYTES",
    "MAX_SECONDS",
    "PAGE_BYTES",
    "PAGE_CHUNKS",
    "check_chunk_contents",
    "check_content",
    "check_count",
    "check_error",
    "check_metadata",
    "check_reason",
    "check_retention",
    "check_seconds",
    "check_sequence",
    "check_status",
    "check_token",
    "now",
    "object_id",
]

BSON_OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True, tzinfo=UTC)
"""How the library reads BSON: dates come with their time zone."""

MAX_CHUNK_BYTES = 1024 * 1024
"""The largest content of one chunk, in bytes of UTF-8: 1 MiB."""

CHUNK_OVERHEAD = 112
"""What a chunk takes in a document beside its text and metadata, in bytes, at the most."""

MAX_APPEND_BYTES = 4 * 1024 * 1024
"""The most that one atomic append takes, in bytes of UTF-8 and 112 more for each chunk: 4 MiB.
It travels in one command and comes back in one change event, both limited to 16 MiB by MongoDB."""

PAGE_CHUNKS = 256
"""How many chunks a message embeds before they are moved to a page."""

PAGE_BYTES = 256 * 1024
"""How many bytes of BSON the embedded chunks take before they are moved to a page: 256 KiB."""

MAX_APPEND_CHUNKS = PAGE_CHUNKS
"""The most chunks that one atomic append takes: as many as make a page, 256."""

MAX_LIVE_BYTES = 6 * 1024 * 1024
"""The most that the embedded chunks ever take: 6 MiB. MongoDB's limit for a document is 16 MiB; the
rest is room for metadata, and for the joined text at the end."""

MAX_CONTENT_BYTES = 8 * 1024 * 1024
"""The largest content of a message that is added whole, in bytes of UTF-8: 8 MiB."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MAX_SECONDS = 100 * 366 * 24 * 3600
"""The longest duration: about a hundred years, so that dates do not end before it does."""

MAX_REASON_BYTES = 16 * 1024
"""The longest reason for a stop, in bytes of UTF-8: 16 KiB."""


def now() -> datetime:
    """The time in UTC, aware, in whole milliseconds: what BSON gives back."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def object_id(value: object, what: str) -> ObjectId:
    """The id that ``value`` means.

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
    """The size of a text in bytes of UTF-8; a lone surrogate raises UnicodeEncodeError."""
    return len(text) if text.isascii() else len(text.encode())


def check_content(content: object, limit: int = MAX_CONTENT_BYTES) -> int:
    """The size of ``content`` in bytes of UTF-8.

    Raises:
        InvalidContentError: It is not text, not text that UTF-8 holds, or larger than ``limit``.
    """
    if not isinstance(content, str):
        raise InvalidContentError(
            f"Content must be str, not {type(content).__name__}; decode bytes and render "
            "objects before storing them. Nothing was written."
        )
    try:
        size = utf8_size(content)
    except UnicodeEncodeError as error:
        raise InvalidContentError(
            f"Content holds a lone surrogate at index {error.start}, which UTF-8 cannot hold; "
            "clean it, for example with content.encode('utf-8', 'replace').decode(). "
            "Nothing was written."
        ) from error
    return _check_size(size, limit)


def _check_size(size: int, limit: int) -> int:
    if size > limit:
        raise InvalidContentError(
            f"Content of {size} bytes is over the limit of {limit} bytes: split it. "
            "Nothing was written."
        )
    return size


def check_token(token: object) -> int:
    """The size of a token in bytes of UTF-8; -1 if it holds halves of characters.

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


def check_chunk_contents(contents: object) -> list[str]:
    """The contents of chunks to append, each checked, as a list.

    Raises:
        InvalidContentError: One of them cannot be stored, or ``contents`` is a plain string.
    """
    if isinstance(contents, str) or not isinstance(contents, Iterable):
        raise InvalidContentError(
            f"append_chunks takes several strings, not one {type(contents).__name__}; "
            "use append_chunk for one. Nothing was written."
        )
    listed = list(contents)
    for content in listed:
        check_content(content, MAX_CHUNK_BYTES)
    return listed


def check_sequence(after: object, what: str = "sequence") -> int:
    """The first number behind ``after``; ``None`` is before the first.

    Raises:
        InvalidCursorError: ``after`` is no such number.
    """
    if after is None:
        return 0
    if isinstance(after, bool) or not isinstance(after, int) or after < -1:
        raise InvalidCursorError(
            f"after={after!r} is no {what}: pass that of the last one you have, or None for all."
        )
    return after + 1


def check_count(count: object, what: str) -> int | None:
    """``count``, which may be ``None`` for no bound.

    Raises:
        InvalidInputError: It is neither a whole number from 0 on nor ``None``.
    """
    if count is None:
        return None
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise InvalidInputError(f"{what}={count!r}: pass a whole number, or None for all.")
    return count


def check_status(status: object) -> MessageStatus:
    """The state of messages that ``status`` means.

    Raises:
        InvalidInputError: It is none.
    """
    try:
        return MessageStatus(status)  # type: ignore[arg-type]
    except ValueError as error:
        known = ", ".join(MessageStatus)
        raise InvalidInputError(f"status={status!r}: pass one of {known}.") from error


def check_reason(reason: object) -> str | None:
    """The reason for a stop, which may be ``None``.

    Raises:
        InvalidInputError: It is not text, or cannot be stored.
    """
    if reason is None:
        return None
    check_content(reason, MAX_REASON_BYTES)
    return str(reason)


def check_seconds(seconds: object, what: str) -> float:
    """``seconds`` as a number above 0, and of at most a hundred years.

    Raises:
        InvalidInputError: It is none.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise InvalidInputError(f"{what}={seconds!r}: pass a number of seconds above 0.")
    if seconds > MAX_SECONDS:
        raise InvalidInputError(f"{what}={seconds!r}: pass at most {MAX_SECONDS} seconds.")
    return float(seconds)


def check_retention(retention: object) -> float | None:
    """The seconds after the end at which chunks are merged away; ``None`` for never.

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
        f"retention={retention!r}: pass 'keep', 'compact' or a timedelta of up to a hundred years. "
        "Nothing was written."
    )


def check_error(error: object) -> str:
    """The text of an error that a message failed with.

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
