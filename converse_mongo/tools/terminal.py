"""The terminal: texts that cannot steer it, and lines that fit into it."""

import logging
import os
import re
import shutil
import textwrap
from typing import TextIO

_STEERING = re.compile(
    # C0 but tab and line feed, DEL and C1, and what reorders the text around it.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)
_MIN_WIDTH = 20
_COLORS = {"ok": "32", "warn": "33", "fail": "31"}


def printable(text: str) -> str:
    """Returns a text in which control characters and bidirectional overrides are visible.

    Raw ones would steer the terminal: move its cursor, change its title, fill its clipboard, or
    show a text in another order. Tabs and line feeds stay; "\\r\\n" becomes a line feed.
    """
    return _STEERING.sub(_picture, text.replace("\r\n", "\n"))


def printable_json(line: str) -> str:
    """Returns a line of JSON with the same value that is safe for a terminal."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def one_line(text: str) -> str:
    """Returns a text as one line that is safe for a terminal."""
    return printable(" ".join(text.split()))


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def is_terminal(stream: TextIO) -> bool:
    """Returns whether a stream is a terminal that can move its cursor and show colors."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def colored(word: str, stream: TextIO) -> str:
    """Returns ``ok``, ``warn`` or ``fail`` in its color, where the terminal has colors."""
    # https://no-color.org/
    if os.environ.get("NO_COLOR") or not is_terminal(stream) or word not in _COLORS:
        return word
    return f"\x1b[{_COLORS[word]}m{word}\x1b[0m"


def wrapped(text: str, indent: str, stream: TextIO) -> str:
    """Returns a text in lines that fit into the terminal; as one line for anything else.

    Args:
        text: The text.
        indent: Put before each line but the first, which has a prefix of the same length.
        stream: The stream that it is written to.
    """
    if not stream.isatty():
        return text
    width = max(shutil.get_terminal_size().columns - len(indent), _MIN_WIDTH)
    # URLs and options stay whole, so that they can be copied.
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return f"\n{indent}".join(lines)


def age(seconds: float | None) -> str:
    """Returns a number of seconds for people."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log() -> None:
    """Writes warnings and errors to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s:     %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
