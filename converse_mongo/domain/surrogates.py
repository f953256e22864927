"""Halves of characters: a text of Python may hold the two surrogates of UTF-16 apart.

Model endpoints that escape JSON as ASCII may cut a character between two tokens, and each token is
then decoded to half of it. UTF-8, and so MongoDB, holds whole characters only.
"""

__all__ = ["REPLACEMENT", "begins_with_second_half", "mend", "split_first_half"]

REPLACEMENT = "\ufffd"
"""What stands for half of a character that has no other half."""


def split_first_half(text: str) -> tuple[str, str]:
    """``text`` without the first half of a character at its end, and that half."""
    return (text[:-1], text[-1:]) if "\ud800" <= text[-1:] <= "\udbff" else (text, "")


def begins_with_second_half(text: str) -> bool:
    """Whether ``text`` goes on with a character that another text began."""
    return "\udc00" <= text[:1] <= "\udfff"


def mend(text: str) -> tuple[str, int]:
    """``text`` with its halves joined, and how many stayed alone and were replaced."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole, whole.count(REPLACEMENT) - text.count(REPLACEMENT)
