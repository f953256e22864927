"""Folding: an answer on a terminal, with a line for each of its other parts."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from converse_mongo.domain.chunks import MessageChunk, PartChunk
from converse_mongo.domain.jsonable import jsonable
from converse_mongo.domain.part_log import DATA, REASONING, TEXT, TOOL_CALL, PartLog, part_number
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
        parts: False for the text alone, and where it is begun again.
        whole: True for whole parts, not a line of each.
        safe: True for texts that cannot steer a terminal.
    """

    def __init__(
        self, write: Callable[[str], object], *, parts: bool = True, whole: bool, safe: bool
    ) -> None:
        self._write = write
        self._parts = parts
        self._whole = whole
        self._printable = printable if safe else str
        self._log = PartLog()
        self._growing: set[int] = set()
        self._last = -1
        """The number of the last part of those that are written here."""
        self._at_start = True

    def add(self, chunk: MessageChunk) -> None:
        """Writes what a chunk adds."""
        number = self._log.add(chunk)
        if number is not None and (self._parts or not isinstance(chunk, PartChunk)):
            self._last = max(self._last, number)
        if not isinstance(chunk, PartChunk):
            self._put(chunk.content)
        elif chunk.event == "reset":
            self._growing = {n for n in self._growing if self._log.kind_of(n) is not None}
            first = part_number(chunk.fields.get("from"))
            if first is not None and first <= self._last:
                self._last = first - 1
                self._line("[starting again]")
        elif number is None or not self._parts:
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
        if not self._parts:
            return
        self._end(self._growing)
        if not self._at_start:
            self._put("\n")

    def _end(self, numbers: Iterable[int]) -> None:
        for number in sorted(numbers):
            self._growing.remove(number)
            self._show(self._part(number, ended=True))

    def _look(self, number: int, *, has_ended: bool = False) -> None:
        """Writes a part that grew, if it is complete now."""
        if number not in self._growing:
            return
        part = self._part(number)
        if part.is_finished if isinstance(part, ToolCallPart) else has_ended:
            self._growing.remove(number)
            self._end([each for each in self._growing if number in self._above(each)])
            self._show(part)

    def _part(self, number: int, *, ended: bool = False) -> Part:
        record = self._log.record(number)
        return parts_of([record] if record else [], ended=ended)[0]

    def _show(self, part: Part) -> None:
        if part.kind == TEXT and part.parent is None:
            return  # it was written as it came
        told = self._told(part)
        if told:
            self._line(f"{'  ' * len(self._above(part.number))}{told}")

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

    def _above(self, number: int | None) -> list[int]:
        """The calls of the sub-agents that wrote a part, from the innermost on."""
        above: list[int] = []
        while number is not None and (record := self._log.record(number)) is not None:
            number = record.get("parent")
            above += [] if number is None else [number]
        return above

    def _line(self, text: str) -> None:
        self._put(f"{text}\n" if self._at_start else f"\n{text}\n")

    def _put(self, text: str) -> None:
        if text:
            self._write(self._printable(text))
            self._at_start = text.endswith("\n")


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(jsonable(value), ensure_ascii=False)
