"""The screen of a demonstration: a live picture in a terminal, plain lines elsewhere; a table."""

import re
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from converse_mongo.tools.demo.recording import Recording
from converse_mongo.tools.terminal import printable

_FENCE = re.compile(r"^(?:```|~~~)", re.MULTILINE)


class Screen:
    """Shows a demonstration while it plays, between ``__enter__`` and ``__exit__``."""

    def __init__(self, console: Console, recording: Recording) -> None:
        self._console = console
        self._recording = recording
        self._text = ""
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=12)

    def note(self, line: str) -> None:
        """Shows what just happened."""
        wraps = not self._console.is_terminal  # a file has no width
        self._console.print(f"* {line}", style="dim", markup=False, soft_wrap=wraps)

    def grow(self, content: str) -> None:
        """Shows more text; plain text is shown line by line."""
        self._text += content
        if not self._live:
            *lines, self._text = self._text.split("\n")
            for line in lines:  # not through rich, which would expand tabs and wrap
                self._console.file.write(f"| {line}\n")
                self._console.file.flush()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        elif self._text:
            self.grow("\n")

    def _picture(self) -> RenderableType:
        height = max(3, min(16, self._console.height - 12))  # beside notes and progress
        width = max(10, self._console.width - 4)
        recent = _last_blocks(printable(self._text), height * width)
        # Links as text: a terminal would open what a text names.
        page = Markdown(recent, hyperlinks=False)
        lines = self._console.render_lines(page, self._console.options.update(width=width))
        shown = [
            # Again: Markdown has escapes for characters.
            Segment(printable(segment.text), segment.style)
            for line in lines[-height:]
            for segment in (*line, Segment.line())
        ]
        panel = Panel(Segments(shown), title="as viewer 1 sees it", height=height + 2)
        recording = self._recording
        state = "done" if recording.finished else "streaming"
        processes = [("writer", len(recording.sent_at), state)]
        processes += [(each.name, len(each.seen), each.state) for each in recording.viewers]
        rows = Table.grid(padding=(0, 2))
        for name, count, state in processes:
            bar = ProgressBar(recording.total, count, width=max(8, width // 3))
            style = {"done": "green", "killed": "red"}.get(state, "yellow")
            rows.add_row(name, bar, f"{count} / {recording.total}", Text(state, style))
        return Group(panel, rows)


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
    console.print("Equal: each viewer received what is stored, and that is the input.")
    console.print("Times: from the writer to the viewer, for chunks written while it watched.")
    for name, wrong in verdict.items():
        for problem in wrong:
            console.print(Text(f"NOT EQUAL: {name}: {problem}", style="bold red"))
    if not any(verdict.values()):
        console.print(Text("Everything is equal.", style="bold green"))
