"""The screen of a demonstration: a live picture in a terminal, plain lines elsewhere; a table."""

from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from converse_mongo.tools.demo.recording import Recording

_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
"""Control characters as pictures of themselves: a text must not steer the terminal."""


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
        self._console.print(f"* {line}", style="dim", markup=False, soft_wrap=True)

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
        recent = self._text[-height * width :]  # what cannot be visible need not be wrapped
        lines = Text(recent.translate(_VISIBLE)).wrap(self._console, width)[-height:]
        panel = Panel(Text("\n").join(lines), title="as viewer 1 sees it", height=height + 2)
        recording = self._recording
        state = "done" if recording.finished else "streaming"
        processes = [("writer", len(recording.sent_at), state)]
        processes += [(each.name, len(each.seen), each.state) for each in recording.viewers]
        rows = Table.grid(padding=(0, 2))
        for name, count, state in processes:
            bar = ProgressBar(recording.total, count, width=max(10, width // 3))
            style = {"done": "green", "killed": "red"}.get(state, "yellow")
            rows.add_row(name, bar, f"{count} / {recording.total}", Text(state, style))
        return Group(panel, rows)


def print_verdict(console: Console, recording: Recording) -> None:
    """Prints a table of what each viewer received, and the differences, if there are any."""
    table = Table("", "how", title="What each viewer received", title_justify="left")
    for heading in ("chunks", "text equal", "p50 ms", "p99 ms"):
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
