"""Files that messages have themselves: how they are read of data URLs, and given to browsers."""

import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

FILES = frozenset({"file", "reasoning_file"})
"""The kinds of parts that have files."""

DATA_URL = re.compile(r"data:[^,]{0,300};base64,", re.IGNORECASE)
MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,60}(/[A-Za-z0-9!#$&^_.+*-]{1,100})?")

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
