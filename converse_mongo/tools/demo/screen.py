"""The screen of a demonstration: a live picture in a terminal, plain lines elsewhere; a table."""

import re
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.parts import (
    Part,
    ReasoningPart,
    SourceUrlPart,
    ToolCallPart,
    ToolCallState,
    parts_of,
)
from converse_mongo.tools.demo.recording import Recording
from converse_mongo.tools.terminal import printable

_FENCE = re.compile(r"^(?:```|~~~)", re.MULTILINE)


class Screen:
    """Shows a demonstration while it plays, between ``__enter__`` and ``__exit__``."""

    def __init__(self, console: Console, recording: Recording) -> None:
        self._console = console
        self._recording = recording
        self._line = ""
        self._log = PartLog()
        self._told: dict[int, str] = {}
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=12)

    def note(self, line: str) -> None:
        """Shows what just happened."""
        wraps = not self._console.is_terminal  # a file has no width
        self._console.print(f"* {line}", style="dim", markup=False, soft_wrap=wraps)

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Shows another chunk; plain text is shown line by line, and other parts folded."""
        changed = self._log.add(chunk)
        if not self._live:
            if "event" in chunk and changed is not None:
                self._tell_folded()
            self._write(chunk["content"])

    def _write(self, content: str) -> None:
        *lines, self._line = (self._line + content).split("\n")
        for line in lines:  # not through rich, which would expand tabs and wrap
            self._console.file.write(f"| {line}\n")
            self._console.file.flush()

    def _tell_folded(self) -> None:
        for number, line in self._folded().items():
            if self._told.get(number) != line:
                self._told[number] = line
                self.note(line)

    def _folded(self) -> dict[int, str]:
        """Returns a line for each part that is no text of the answer, by its number."""
        parts = parts_of(self._log.records(), ended=self._recording.finished)
        lines = {part.number: folded(part) for part in parts if part.number is not None}
        return {number: printable(line) for number, line in lines.items() if line}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        elif self._line:
            self._write("\n")

    def _picture(self) -> RenderableType:
        height = max(3, min(16, self._console.height - 14))  # beside notes and progress
        width = max(10, self._console.width - 4)
        above = [
            Text(f"▸ {line}", "dim", no_wrap=True, overflow="ellipsis")
            for line in list(self._folded().values())[-_MOST_FOLDED:]
        ]
        room = max(1, height - len(above))
        recent = _last_blocks(printable(self._log.text()), height * width)
        # Links as text: a terminal would open what a text names.
        page = Markdown(recent, hyperlinks=False)
        lines = self._console.render_lines(page, self._console.options.update(width=width))
        shown = [
            # Again: Markdown has escapes for characters.
            Segment(printable(segment.text), segment.style)
            for line in lines[-room:]
            for segment in (*line, Segment.line())
        ]
        body = Group(*above, Segments(shown))
        panel = Panel(body, title="as viewer 1 sees it", height=height + 2)
        recording = self._recording
        processes = [(each.name, recording.written(each), each.state) for each in recording.workers]
        processes += [(each.name, len(each.seen), each.state) for each in recording.viewers]
        rows = Table.grid(padding=(0, 2))
        for name, count, state in processes:
            bar = ProgressBar(recording.total, count, width=max(8, width // 3))
            style = {"done": "green", "killed": "red"}.get(state, "yellow")
            rows.add_row(name, bar, f"{count} / {recording.total}", Text(state, style))
        return Group(panel, rows)


_STATES: dict[ToolCallState, str] = {
    "input-streaming": "preparing…",
    "input-available": "waiting…",
    "running": "working…",
    "output-available": "done",
    "output-error": "failed",
    "interrupted": "stopped",
}
_MOST_FOLDED = 4


def folded(part: Part) -> str | None:
    """Returns a line in place of a part; ``None`` for what is not shown so."""
    match part:
        case ReasoningPart():
            return "Thought for a while" if part.closed else "Thinking…"
        case ToolCallPart():
            return f"{part.title or part.name}: {_STATES.get(part.state, part.state)}"
        case SourceUrlPart():
            return f"Source: {part.title or part.url}"
    return None


def _last_blocks(text: str, length: int) -> str:
    """Returns the end of a Markdown text, from the begin of a block on, in about this length.

    What cannot be visible need not be rendered twelve times a second.
    """
    if len(text) <= length:
        return text
    begin = text.rfind("\n\n", max(len(text) - 2 * length, 0), len(text) - length)
    if begin < 0:  # one long block
        return text[-length:]
    opened = len(_FENCE.findall(text, 0, begin)) % 2
    return ("```" if opened else "") + text[begin:]


def print_verdict(console: Console, recording: Recording) -> None:
    """Prints a table of what each viewer received, and the differences, if there are any."""
    table = Table("", "how", title="What each viewer received", title_justify="left")
    for heading in ("chunks", "equal", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    verdict = recording.verdict()
    equal = {name: Text("NO" if wrong else "yes") for name, wrong in verdict.items()}
    for viewer in recording.viewers:
        times = [f"{time:.1f}" for time in recording.latencies(viewer)]
        count = str(len(viewer.seen))
        table.add_row(viewer.name, viewer.manner, count, equal[viewer.name], *times)
    table.add_section()
    stored = recording.stored
    table.add_row("stored", stored.status, str(len(stored.chunks)), equal["stored"])
    console.print(table)
    if recording.workers:
        console.print(_workers(recording))
    console.print("Equal: each viewer received what is stored, and that is the input.")
    console.print("Times: from the worker to the viewer, for chunks written while it watched.")
    console.print("Pause: until viewer 1 saw the next chunk, of another worker.")
    for name, wrong in verdict.items():
        for problem in wrong:
            console.print(Text(f"NOT EQUAL: {name}: {problem}", style="bold red"))
    if not any(verdict.values()):
        console.print(Text("Everything is equal.", style="bold green"))


def _workers(recording: Recording) -> Table:
    table = Table("", "how", title="What each worker wrote", title_justify="left")
    for heading in ("chunks", "pause ms"):
        table.add_column(heading, justify="right")
    for worker in recording.workers:
        pause = recording.pause(worker)
        shown = "" if pause is None else f"{pause:.1f}"
        table.add_row(worker.name, worker.manner, str(recording.written(worker)), shown)
    return table
