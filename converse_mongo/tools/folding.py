"""Folding: an answer on a terminal, with a line for each of its other parts."""

import json
from collections.abc import Callable
from typing import Any

from converse_mongo.domain.chunks import MessageChunk, PartChunk
from converse_mongo.domain.jsonable import jsonable
from converse_mongo.domain.part_log import DATA, REASONING, TEXT, TOOL_CALL, PartLog
from converse_mongo.domain.parts import (
    FilePart,
    Part,
    SourceDocumentPart,
    SourceUrlPart,
    StepPart,
    ToolCallPart,
    parts_of,
)
from converse_mongo.tools.terminal import one_line, printable

INPUT_LENGTH, TEXT_LENGTH = 40, 60
"""The most characters of a folded input, and of other folded texts."""

_GROWING = frozenset({TEXT, REASONING, TOOL_CALL, StepPart.KIND})


class Folding:
    """Writes the text of an answer as it comes, and its other parts when they are complete.

    Args:
        write: Writes a text.
        whole: True for whole parts, not a line of each.
        safe: True for texts that cannot steer a terminal.
    """

    def __init__(self, write: Callable[[str], object], *, whole: bool, safe: bool) -> None:
        self._write = write
        self._whole = whole
        self._printable = printable if safe else str
        self._log = PartLog()
        self._growing: set[int] = set()
        self._at_start = True

    def add(self, chunk: MessageChunk) -> None:
        """Writes what a chunk adds."""
        number = self._log.add(chunk)
        if not isinstance(chunk, PartChunk):
            self._put(chunk.content)
        elif chunk.event == "reset":
            self._growing = {n for n in self._growing if self._log.kind_of(n) is not None}
            self._line("[starting again]")
        elif number is None:
            return
        elif chunk.event == "redact":
            self._growing.discard(number)
            reason = chunk.fields.get("reason")
            self._line(
                f"[redacted: {one_line(reason)}]" if isinstance(reason, str) else "[redacted]"
            )
        elif chunk.event == "start" and self._log.kind_of(number) in _GROWING:
            self._growing.add(number)
            self._look(number)
        elif chunk.event == "start":
            self._show(self._part(number))
        elif chunk.event is not None:  # no delta completes a part
            self._look(number, has_ended=chunk.event == "end")

    def end(self) -> None:
        """Writes what has not come to its end."""
        for number in sorted(self._growing):
            self._show(self._part(number, ended=True))
        self._growing.clear()
        if not self._at_start:
            self._put("\n")

    def _look(self, number: int, *, has_ended: bool = False) -> None:
        """Writes a part that grew, if it is complete now."""
        if number not in self._growing:
            return
        part = self._part(number)
        if part.is_finished if isinstance(part, ToolCallPart) else has_ended:
            self._growing.remove(number)
            self._show(part)

    def _part(self, number: int, *, ended: bool = False) -> Part:
        record = self._log.record(number)
        return parts_of([record] if record else [], ended=ended)[0]

    def _show(self, part: Part) -> None:
        if part.kind == TEXT and part.parent is None:
            return  # it was written as it came
        told = self._told(part)
        if told:
            self._line(f"{'  ' * self._depth(part)}{told}")

    def _told(self, part: Part) -> str:
        if isinstance(part, ToolCallPart):
            given = _json(part.input) if "input" in part.fields else part.text
            name = f"{one_line(part.name)} {self._fold(given, INPUT_LENGTH)}".rstrip()
            return f"[{name}] → {self._outcome(part)}"
        if isinstance(part, SourceUrlPart):
            return f"[source] {one_line(f'{part.title or str()} {part.url}')}"
        if isinstance(part, SourceDocumentPart):
            return f"[source] {one_line(f'{part.title} {part.filename or part.media_type}')}"
        if isinstance(part, FilePart):
            return f"[file] {one_line(f'{part.name or str()} {part.media_type} {part.url}')}"
        if isinstance(part, StepPart):
            return f"[step] {self._fold(_json(dict(part.fields)))}" if self._whole else ""
        if part.kind in (TEXT, REASONING):
            return f"[{part.kind}] {self._fold(part.text, count=True)}"
        name = one_line(str(part.fields.get("name", ""))) if part.kind == DATA else ""
        values = part.fields.get("data") if part.kind == DATA else dict(part.fields)
        return f"[{one_line(f'{part.kind} {name}')}] {self._fold(_json(values))}"

    def _outcome(self, part: ToolCallPart) -> str:
        if part.state == "output-available":
            return self._fold(_json(part.output))
        if part.state == "output-error":
            return f"error: {self._fold(part.error or '')}"
        return "denied" if part.state == "output-denied" else "interrupted"

    def _fold(self, text: str, length: int = TEXT_LENGTH, *, count: bool = False) -> str:
        if self._whole:
            return text
        line = one_line(text[: 4 * length])
        if len(line) <= length and len(text) <= 4 * length:
            return line
        return f"{line[:length]}…{f' ({len(text):,} characters)' if count else ''}"

    def _depth(self, part: Part) -> int:
        depth, parent = 0, part.parent
        while parent is not None and (record := self._log.record(parent)) is not None:
            depth, parent = depth + 1, record.get("parent")
        return depth

    def _line(self, text: str) -> None:
        self._put(f"{text}\n" if self._at_start else f"\n{text}\n")

    def _put(self, text: str) -> None:
        if text:
            self._write(self._printable(text))
            self._at_start = text.endswith("\n")


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(jsonable(value), ensure_ascii=False)
