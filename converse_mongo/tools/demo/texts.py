"""The text to stream: where it comes from, and how it is cut into tokens."""

import re
import select
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from converse_mongo.domain.errors import ConfigurationError

__all__ = ["Answer", "read_answer", "tokenise"]

STANDARD_INPUT = "-"
STDIN_SECONDS = 5.0
"""How long a standard input that is neither a terminal nor closed may stay silent."""

# Every character is a space, part of a word, or neither: no text is lost between two tokens.
_TOKEN = re.compile(r"\w{1,8}\s{0,4}|[^\w\s]{1,4}\s{0,4}|\s{1,8}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model of the demonstration says.

    Attributes:
        text: The whole of it.
        question: What the user asked.
        source: Where it came from, for people.
    """

    text: str
    question: str
    source: str


def read_answer(path: str | None) -> Answer:
    """The text in the file ``path``, else the one on standard input, else the shipped sample.

    Standard input counts when it is redirected and not empty. One that stays open and silent, as
    some services have it, is left alone after a few seconds, unless ``path`` is ``"-"``.

    Raises:
        ConfigurationError: The file cannot be read, is empty, or is not in UTF-8.
    """
    if path is not None and path != STANDARD_INPUT:
        return _given(_read_file(path), path)
    if data := _read_standard_input(patient=path == STANDARD_INPUT):
        return _given(data, "standard input")
    if path == STANDARD_INPUT:
        raise ConfigurationError("Standard input is empty: there is nothing to stream.")
    sample = files("converse_mongo.tools.demo").joinpath("sample.md").read_text(encoding="utf-8")
    return Answer(sample, "How do I read a file in Python?", "the sample")


def tokenise(text: str) -> list[str]:
    """``text`` in pieces such as language models make: joined, they are ``text`` again."""
    return _TOKEN.findall(text)


def _given(data: bytes, source: str) -> Answer:
    if not data:
        raise ConfigurationError(f"{source} is empty: there is nothing to stream.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{source} is not in UTF-8: byte {error.start} is 0x{data[error.start]:02x}. "
            "Convert it first, for example with iconv -t utf-8."
        ) from error
    return Answer(text, "Please read this text to me.", source)


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}.") from error


def _read_standard_input(*, patient: bool) -> bytes:
    if sys.stdin is None or sys.stdin.closed or (sys.stdin.isatty() and not patient):
        return b""
    if not patient and not _has_news(STDIN_SECONDS):
        sys.stderr.write(
            f"converse-mongo: nothing came from standard input for {STDIN_SECONDS:.0f} s, so this "
            "is the sample; --text - waits for it.\n"
        )
        return b""
    try:
        return sys.stdin.buffer.read()
    except OSError:  # a descriptor that a service manager left closed or write-only
        return b""


def _has_news(seconds: float) -> bool:
    try:
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
    except (OSError, ValueError):  # Windows selects sockets only
        return True
    return bool(readable)
