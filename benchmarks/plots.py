"""Pictures of figures: one SVG for each benchmark, with its ratios and their targets.

A figure that has a target and no ratio is shown as a ratio to its target.
Matplotlib draws them; it is not needed for anything else, and may be missing.
"""

import importlib.util
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.figures import Figure

__all__ = ["can_draw", "draw_figures"]

# Of the palette of Okabe and Ito, which all kinds of colour vision tell apart; and shapes beside.
MET, MISSED, WITHOUT, TARGET = "#0072B2", "#D55E00", "#666666", "#009E73"
LABEL_WIDTH = 54
INCHES_WIDE, INCHES_A_LINE, INCHES_AROUND = 9.0, 0.17, 1.6
LINES_BETWEEN = 1.0
LOGARITHMIC_FROM = 4.0
"""How many times the least value on the axis the greatest is, for the axis to be logarithmic."""
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.hashsalt": "benchmarks",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


@dataclass(frozen=True, slots=True)
class Row:
    """A figure as it is drawn.

    Attributes:
        label: What it is, in lines.
        ratio: The median.
        low: The least of the rounds.
        high: The greatest.
        target: The most that the ratio is meant to be.
        met: Whether it is.
    """

    label: str
    ratio: float
    low: float
    high: float
    target: float | None
    met: bool | None

    @classmethod
    def of(cls, figure: Figure) -> Self | None:
        """The row of a figure; ``None`` where there is no ratio in it that could be drawn."""
        ratio, target, against = figure.ratio, figure.target, figure.against
        if ratio is None and target:
            ratio, target, against = figure.value / target, 1.0, "its target"
        if ratio is None or not 0 < ratio < math.inf:
            return None
        low, high = figure.spread or (ratio, ratio)
        lines = textwrap.wrap(figure.name, LABEL_WIDTH)
        if against is not None:
            lines += textwrap.wrap(f"/ {against}", LABEL_WIDTH)
        return cls(
            "\n".join(lines),
            ratio,
            low if low > 0 else ratio,
            high if math.isfinite(high) else ratio,
            target,
            figure.met,
        )

    @property
    def height(self) -> float:
        """In lines of text."""
        return 1 + self.label.count("\n") + LINES_BETWEEN

    @property
    def look(self) -> tuple[str, str]:
        """Its colour and its shape."""
        if self.met is None:
            return WITHOUT, "s"
        return (MET, "o") if self.met else (MISSED, "D")


def can_draw() -> bool:
    """Whether Matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_figures(
    path: Path, name: str, figures: Sequence[Figure], circumstances: str, *, form: str = "svg"
) -> bool:
    """Draws the ratios of a benchmark to ``path``; says whether it has any.

    Args:
        path: The file to write.
        name: The benchmark.
        figures: All its figures.
        circumstances: What they depend on.
        form: The format of the file.
    """
    rows = [row for row in map(Row.of, figures) if row is not None]
    if not rows:
        return False
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Picture

    tall = INCHES_AROUND + INCHES_A_LINE * sum(row.height for row in rows)
    with rc_context(STYLE):
        # Not by pyplot, which keeps a state of its own and looks for a screen.
        picture = Picture(figsize=(INCHES_WIDE, tall), layout="constrained")
        axes = picture.add_subplot()
        _draw_rows(axes, rows)
        _draw_axis(axes, rows)
        picture.suptitle(name, x=0.01, ha="left", fontweight="bold", fontsize=12)
        _draw_legend(picture, rows, circumstances)
        picture.savefig(
            path, format=form, dpi=110, metadata={"Date": None} if form == "svg" else None
        )
    return True


def _draw_rows(axes: Any, rows: Sequence[Row]) -> None:
    places: list[float] = []
    top = 0.0
    for row in rows:
        place = top + row.height / 2
        places.append(place)
        top += row.height
        colour, shape = row.look
        spread = {"lw": 5, "alpha": 0.35, "solid_capstyle": "round"}
        axes.plot([row.low, row.high], [place] * 2, color=colour, zorder=2, **spread)
        axes.plot([row.ratio], [place], shape, color=colour, ms=7, mec="white", mew=0.8, zorder=4)
        if row.target is not None:
            ends = place - 0.9, place + 0.9
            axes.plot([row.target] * 2, ends, color=TARGET, lw=2, zorder=3)
        axes.annotate(
            f"{row.ratio:.2f}" if 0.1 <= row.ratio < 10 else f"{row.ratio:.2g}",
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=colour,
            fontweight="bold",
        )
    axes.set_yticks(places, [row.label for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(top, 0)


def _draw_axis(axes: Any, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    shown = [1.0]
    for row in rows:
        shown += [row.low, row.high, row.ratio]
        shown += [row.target] if row.target else []
    least, most = min(shown), max(shown)
    if most / least >= LOGARITHMIC_FROM:
        axes.set_xscale("log")
        steps: tuple[float, ...] = (1,)
        if most / least < 500:
            steps = (1, 1.5, 2, 3, 5, 7) if most / least < 20 else (1, 2, 5)
        axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=20))
        axes.xaxis.set_minor_locator(NullLocator())
        room = (most / least) ** 0.05
        axes.set_xlim(least / room, most * room)
    else:
        room = 0.05 * max(most - least, 0.1)
        axes.set_xlim(least - room, most + room)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    axes.axvline(1.0, color="#333333", lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.grid(axis="x", color="#E4E4E4", lw=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.set_xlabel("cost, as a ratio to what it is compared with: less is better")


def _draw_legend(picture: Any, rows: Sequence[Row], circumstances: str) -> None:
    from matplotlib.lines import Line2D

    entries = []
    for met, text in ((True, "target met"), (False, "target missed"), (None, "without a target")):
        row = next((row for row in rows if row.met is met), None)
        if row is not None:
            colour, shape = row.look
            entries.append(
                Line2D([], [], color=colour, marker=shape, lw=0, ms=7, label=f"median, {text}")
            )
    entries.append(
        Line2D([], [], color=WITHOUT, lw=5, alpha=0.35, label="least to greatest of the rounds")
    )
    if any(row.target is not None for row in rows):
        entries.append(
            Line2D([], [], color=TARGET, marker="|", lw=0, ms=11, mew=2, label="target, at most")
        )
    legend = picture.legend(
        handles=entries,
        title="\n".join(textwrap.wrap(circumstances, 150)),
        loc="outside lower center",
        ncols=len(entries),
        frameon=False,
        fontsize=8,
        title_fontsize=7.5,
        handletextpad=0.6,
        columnspacing=1.6,
    )
    legend.get_title().set_color(WITHOUT)
