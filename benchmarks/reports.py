"""What the runner shows and writes."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.figures import Figure
from benchmarks.plots import can_draw, draw_figures
from benchmarks.settings import Setting
from converse_mongo.driver.installed import driver_name, driver_versions

__all__ = ["environment", "print_figures", "write_figures"]

HEADINGS = "value", "against", "ratio", "spread", "target", "met"


def environment(setting: Setting) -> dict[str, Any]:
    """What the figures depend on, in types that JSON has; nothing in it is secret."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "server": {"kind": setting.server.kind, "version": setting.server.version},
        "driver": driver_name(),
        "packages": driver_versions(),
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "processors": os.cpu_count()},
        "rounds": setting.rounds,
        "chunks": setting.chunks,
        "load": asdict(setting.load),
    }


def print_figures(console: Console, name: str, figures: Sequence[Figure], seconds: float) -> None:
    """Prints a table of the figures, with the ratios and their spread."""
    table = Table(title=f"{name} ({seconds:.0f} s)", title_justify="left")
    table.add_column("")
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=heading != "against")
    for figure in figures:
        table.add_row(*_row(figure))
    console.print(table)


def write_figures(
    directory: Path, name: str, setting: Setting, figures: Sequence[Figure], seconds: float
) -> None:
    """Writes ``name.json`` with the figures and what they depend on, and draws ``name.svg``.

    Besides, ``figures.md`` has a table for each benchmark whose JSON file is in the directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = {
        "benchmark": name,
        "seconds": round(seconds, 1),
        **environment(setting),
        "figures": [figure.to_dict() for figure in figures],
    }
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    (directory / f"{name}.json").write_text(text, "utf-8")
    if can_draw():
        draw_figures(directory / f"{name}.svg", name, figures, _circumstances(found))
    _write_tables(directory)


def _write_tables(directory: Path) -> None:
    """Writes ``figures.md`` from all the JSON files there are."""
    parts = []
    for path in sorted(directory.glob("*.json")):
        found = json.loads(path.read_text("utf-8"))
        if "benchmark" not in found:
            continue
        parts += [f"## {found['benchmark']}", "", f"{_circumstances(found)}.", ""]
        parts += [
            "| " + " | ".join(["figure", *HEADINGS]) + " |",
            "|---|---:|---|---:|---:|---:|---|",
        ]
        for figure in found["figures"]:
            fields = {name: value for name, value in figure.items() if name != "met"}
            cells = [str(cell).strip().replace("|", r"\|") for cell in _row(Figure(**fields))]
            parts.append("| " + " | ".join(cells) + " |")
        parts.append("")
    (directory / "figures.md").write_text("\n".join(parts), "utf-8")


def _circumstances(found: Mapping[str, Any]) -> str:
    """What figures depend on, in a line."""
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    machine = found["machine"]
    return (
        f"{found['server']['version']}, {packages}, Python {found['python']}, "
        f"{machine['system']} with {machine['processors']} processors, {found['measured_at'][:10]}"
    )


def _row(figure: Figure) -> list[str | Text]:
    against = ""
    if figure.against is not None and figure.against_value is not None:
        against = f"{_number(figure.against_value)} {figure.against}"
    return [
        figure.name,
        f"{_number(figure.value)} {figure.unit}",
        against,
        "" if figure.ratio is None else f"{figure.ratio:.2f}",
        "" if figure.spread is None else f"{figure.spread[0]:.2f} … {figure.spread[1]:.2f}",
        "" if figure.target is None else f"≤ {_number(figure.target)}",
        _verdict(figure),
    ]


def _verdict(figure: Figure) -> Text:
    if figure.met is None:
        return Text("")
    return Text("yes", style="green") if figure.met else Text("NO", style="bold red")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
