"""Files of messages: how they are read of what clients send, and given to browsers."""

import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

from converse_mongo.domain.parts import FilePart
from converse_mongo.web.errors import RequestError, TooLargeError

FILES = frozenset({"file", "reasoning_file"})
"""The kinds of parts that have files."""

DATA_URL = re.compile(r"data:[^,]{0,300};base64,", re.IGNORECASE)
MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,60}(/[A-Za-z0-9!#$&^_.+*-]{1,100})?")

MAX_FILES = 32
MAX_ADDRESS = 4096
_MAX_NAME = 100
_ADDRESS = re.compile(r"(https?:/)?/[^\x00-\x20]*", re.IGNORECASE)
"""Addresses that may be shown to others: none that is a script."""

HEADERS: Mapping[str, str] = {
    # What somebody has sent must not run on the pages of the application.
    "content-disposition": "attachment",
    "content-security-policy": "default-src 'none'; sandbox",
    "x-content-type-options": "nosniff",
    "cache-control": "private, no-store",
    "vary": "authorization, cookie",
}

_ANY = "application/octet-stream"


def file_of(url: Any) -> bytes | None:
    """Returns what a data URL has.

    Returns:
        ``None`` if it is none in Base64.
    """
    found = DATA_URL.match(url) if isinstance(url, str) else None
    if found is None:
        return None
    try:
        return b64decode(url[found.end() :], validate=True)
    except ValueError:
        return None


def media_type_of(value: Any) -> str:
    """Returns the media type that a file is given with."""
    is_one = isinstance(value, str) and "/" in value and MEDIA_TYPE.fullmatch(value)
    return value if is_one and "*" not in value else _ANY


def files_of(
    sent: Sequence[Mapping[str, Any]],
    limit: int,
    *,
    media_type: str = "media_type",
    name: str = "name",
) -> list[FilePart]:
    """Returns the files that a client sends with a message.

    Args:
        sent: What it sends of each.
        limit: The most bytes of one that is sent with the message, and not only its address.
        media_type: The key of the media type.
        name: The key of the name.

    Raises:
        TooLargeError: One of them is larger, or they are too many.
        RequestError: One of them cannot be stored.
    """
    if len(sent) > MAX_FILES:
        detail = f"A message takes {MAX_FILES} files at most."
        raise TooLargeError("There are too many files.", detail=detail)
    return [_file_of(each, limit, media_type, name) for each in sent]


def _file_of(part: Mapping[str, Any], limit: int, of_type: str, of_name: str) -> FilePart:
    url, media_type, name = part.get("url"), part.get(of_type), part.get(of_name)
    name = name if isinstance(name, str) and name else None
    called = short(" ".join(str(each) for each in (name, media_type) if each) or "without a name")
    if not isinstance(media_type, str) or not MEDIA_TYPE.fullmatch(media_type):
        raise _refused(called, f"{of_type} must be a media type, such as image/png.")
    if not isinstance(url, str):
        raise _refused(called, "url must be a string.")
    if name is not None and len(name) > MAX_ADDRESS:
        raise TooLargeError(f"The name of this file is too long: {called}.")
    found = DATA_URL.match(url)
    if found is None:
        if len(url) > MAX_ADDRESS:
            raise TooLargeError(f"The address of this file is too long: {called}.")
        if not _ADDRESS.fullmatch(url):
            raise _refused(
                called, "url must begin with https://, http:// or /, or be a data URL in Base64."
            )
        return FilePart(url, media_type, name=name)
    encoded = url[found.end() :]
    if len(encoded) * 3 // 4 > limit + 2:
        raise _too_large(called, limit)
    data = file_of(url)
    if data is None:
        raise _refused(called, "url is a data URL that is not valid Base64.")
    if len(data) > limit:
        raise _too_large(called, limit)
    return FilePart(url, media_type, name=name, size=len(data))


def _refused(called: str, detail: str) -> RequestError:
    return RequestError(f"This file cannot be sent: {called}.", detail=detail)


def _too_large(called: str, limit: int) -> TooLargeError:
    detail = (
        f"A file in a message has {limit} bytes at most, by file_bytes of Limits. Upload it, and "
        "send its address."
    )
    return TooLargeError(f"This file is too large: {called}.", detail=detail)


def short(name: str) -> str:
    """Shortens a name that a client has sent, for an error."""
    return f"{name[:_MAX_NAME]}…" if len(name) > _MAX_NAME else name
