"""Halves of characters: a Python string may hold the two surrogates of UTF-16 separately.

Model endpoints that escape JSON as ASCII may cut a character between two tokens, and each token is
then decoded to half of it. UTF-8, and so MongoDB, holds whole characters only.
"""

from typing import Any

REPLACEMENT = "\ufffd"
"""Replaces half of a character whose other half is missing."""


def split_first_half(text: str) -> tuple[str, str]:
    """Splits the first half of a character off the end of ``text``."""
    return (text[:-1], text[-1:]) if "\ud800" <= text[-1:] <= "\udbff" else (text, "")


def begins_with_second_half(text: str) -> bool:
    """Returns whether ``text`` begins with the second half of a character."""
    return "\udc00" <= text[:1] <= "\udfff"


def mend(text: str) -> tuple[str, int]:
    """Joins the halves in ``text``; also returns how many were unpaired, and replaced."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole, whole.count(REPLACEMENT) - text.count(REPLACEMENT)


def mend_all(value: Any) -> Any:
    """Returns a value in JSON types with all of its texts mended."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return mend(value)[0]
        return value
    if isinstance(value, dict):
        return {mend_all(key): mend_all(item) for key, item in value.items()}
    return [mend_all(item) for item in value] if isinstance(value, list) else value
