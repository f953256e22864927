"""The text of a demonstration, and its tokens."""

import re
import select
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

from converse_mongo.domain.errors import ConfigurationError
from converse_mongo.domain.part_events import PartDelta, PartEnd, PartEvent, PartSet, PartStart
from converse_mongo.domain.parts import Part, ReasoningPart, SourceUrlPart, ToolCallPart

# Every character is a space, part of a word, or neither: no text is lost between two tokens.
_TOKEN = re.compile(r"\w{1,8}\s{0,4}|[^\w\s]{1,4}\s{0,4}|\s{1,8}")


def tokenise(text: str) -> list[str]:
    """Cuts ``text`` into pieces such as language models make; joined, they are ``text`` again."""
    return _TOKEN.findall(text)


Written: TypeAlias = str | Part | PartEvent

THOUGHT = "The user wants to read a file. The documentation should say which way is best today."


def answer_of(text: str) -> list[Written]:
    """Returns an answer: a thought, a tool call, a source, and the tokens of ``text``.

    Each of them becomes one chunk.
    """
    source = SourceUrlPart("https://docs.python.org/3/library/functions.html#open", title="open")
    search = ToolCallPart("search", "call_1", title="Search the documentation")
    return [
        PartStart(ReasoningPart(""), "thought"),
        *(PartDelta("thought", token) for token in tokenise(THOUGHT)),
        PartEnd("thought"),
        PartStart(search, "search"),
        *(PartDelta("search", piece) for piece in ('{"query": ', '"open a ', 'file"}')),
        PartSet("search", {"input": {"query": "open a file"}}),
        PartSet("search", {"started": True}),
        PartSet("search", {"output": {"hits": 1}}),
        source,
        *tokenise(text),
    ]


def rest_of(answer: Sequence[Written], begin: int) -> list[Written]:
    """Returns what is missing of an answer behind its first ``begin`` chunks.

    A writer that goes on behind another one names the parts that are stored by their numbers, which
    are those of their first chunks.
    """
    numbers = {
        each.key: number
        for number, each in enumerate(answer[:begin])
        if isinstance(each, PartStart)
    }
    return [
        replace(each, part=numbers[str(each.part)])
        if isinstance(each, PartDelta | PartSet | PartEnd) and each.part in numbers
        else each
        for each in answer[begin:]
    ]


def read_text(path: str | None) -> tuple[str, str]:
    """Returns a text and its source: the file ``path``, or ``-`` for standard input.

    Without ``path`` it is standard input if that is redirected, and neither empty nor silent for
    five seconds, else the sample.

    Raises:
        ConfigurationError: The text cannot be read, is empty, or is not in UTF-8.
    """
    source = path if path not in {None, "-"} else "standard input"
    try:
        if source == path:
            data = Path(path).read_bytes()
        else:
            data = sys.stdin.buffer.read() if path or _stdin_has_text() else b""
        text = data.decode()
    except OSError as error:
        raise ConfigurationError(f"{source} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{source} is not in UTF-8: try iconv -t utf-8.") from error
    if path and not text:
        raise ConfigurationError(f"{source} is empty: there is nothing to stream.")
    if not text:
        sample = files("converse_mongo.tools.demo") / "sample.md"
        return sample.read_text(encoding="utf-8"), "the sample"
    return text, source


def _stdin_has_text() -> bool:
    if sys.stdin is None or sys.stdin.isatty():
        return False
    return bool(select.select([sys.stdin], [], [], 5.0)[0])
