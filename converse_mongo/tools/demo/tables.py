"""The table at the end of a demonstration."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from converse_mongo.tools.demo.verdict import Verdict, ViewerVerdict, percentile

__all__ = ["print_verdict"]


def print_verdict(console: Console, verdict: Verdict) -> None:
    """Prints the table, and below it what is wrong, if anything is."""
    table = Table(title="What each one saw", title_justify="left")
    for heading in ("", "how", "chunks", "text equal", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="left" if heading in {"", "how"} else "right")
    for viewer in verdict.viewers:
        table.add_row(*_viewer_row(viewer))
    table.add_section()
    stored = verdict.stored
    equal = _yes_or_no(fine=not verdict.stored_problems)
    table.add_row("stored", stored.status, str(len(stored.sequences)), equal, "", "")
    console.print(table)
    console.print(
        "Equal: what a viewer saw to the stored message, and that to the input.\n"
        "Times: from calling append_chunk to the viewer having the chunk, of those\n"
        "appended while it watched.",
        highlight=False,
        style="dim",
    )
    for problem in verdict.problems:
        console.print(Text(f"NOT EQUAL: {problem}", style="bold red"))
    if verdict.equal:
        console.print(Text("Everything is equal.", style="bold green"))


def _viewer_row(verdict: ViewerVerdict) -> list[str | Text]:
    return [
        verdict.viewer.name,
        verdict.viewer.manner,
        str(verdict.viewer.count),
        _yes_or_no(fine=not verdict.problems),
        _milliseconds(percentile(verdict.latencies, 50)),
        _milliseconds(percentile(verdict.latencies, 99)),
    ]


def _yes_or_no(*, fine: bool) -> Text:
    return Text("yes", style="green") if fine else Text("NO", style="bold red")


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"
