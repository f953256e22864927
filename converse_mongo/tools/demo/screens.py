"""What the demonstration shows: a live picture in a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from converse_mongo.tools.demo.recording import Recording

__all__ = ["Screen", "open_screen"]

FRAMES_PER_SECOND = 12
MAX_TEXT_LINES = 16
_OTHER_LINES = 12
"""Lines of the terminal that are not for the text: notes, borders and progress."""

_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
"""Control characters as pictures of themselves: a text must not steer the terminal."""


class Screen(Protocol):
    """Shows a demonstration while it plays, between ``__enter__`` and ``__exit__``."""

    def note(self, line: str) -> None:
        """Shows what just happened."""

    def grow(self, content: str) -> None:
        """Shows the next chunk that the first viewer received."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def open_screen(console: Console, recording: Recording) -> Screen:
    """The screen that fits ``console``."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveScreen(console, recording)
    return PlainScreen(console)


class PlainScreen:
    """Plain lines without control codes; the text comes line by line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._line = ""

    def note(self, line: str) -> None:
        """Shows what just happened."""
        self._print(f"* {line}")

    def grow(self, content: str) -> None:
        """Shows the lines that ``content`` ends."""
        *lines, self._line = (self._line + content).split("\n")
        for line in lines:
            self._print(f"| {line}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._line:
            self._print(f"| {self._line}")

    def _print(self, line: str) -> None:
        # Not through rich, which would expand tabs and wrap.
        self._console.file.write(f"{line}\n")
        self._console.file.flush()


class LiveScreen:
    """The text as it grows, and how far each process is."""

    def __init__(self, console: Console, recording: Recording) -> None:
        self._console = console
        self._recording = recording
        self._text = ""
        self._live = Live(
            console=console, get_renderable=self._picture, refresh_per_second=FRAMES_PER_SECOND
        )

    def note(self, line: str) -> None:
        """Shows what just happened, above the picture."""
        self._console.print(Text(f"• {line}", style="dim"))

    def grow(self, content: str) -> None:
        """Adds to the text."""
        self._text += content.translate(_VISIBLE)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def _picture(self) -> RenderableType:
        return Group(self._text_panel(), self._progress())

    def _text_panel(self) -> Panel:
        height = max(3, min(MAX_TEXT_LINES, self._console.height - _OTHER_LINES))
        width = max(10, self._console.width - 4)
        recent = Text(self._text[-height * width :])  # what cannot be visible need not be wrapped
        lines = recent.wrap(self._console, width)[-height:]
        return Panel(
            Text("\n").join(lines),
            title="the answer, as viewer 1 sees it",
            title_align="left",
            height=height + 2,
            border_style="cyan",
        )

    def _progress(self) -> Table:
        recording = self._recording
        rows = Table.grid(padding=(0, 2))
        stored = len(recording.sent_at)
        self._add_row(rows, "writer", stored, "done" if recording.finished else "streaming")
        for viewer in recording.viewers:
            self._add_row(rows, viewer.name, viewer.count, viewer.state)
        return rows

    def _add_row(self, rows: Table, name: str, count: int, state: str) -> None:
        total = self._recording.total
        style = {"done": "green", "killed": "red"}.get(state, "yellow")
        rows.add_row(
            Text(name, style="bold"),
            ProgressBar(total=total, completed=count, width=max(10, self._console.width // 3)),
            Text(f"{count:>{len(str(total))}} / {total}"),
            Text(state, style=style),
        )
