"""Figures: what a benchmark found, as medians and ratios over interleaved rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, TypeAlias

__all__ = ["BenchmarkError", "Figure", "Series", "compare", "single"]

Series: TypeAlias = Sequence[float]
"""One value for each round, in the order of the rounds."""


class BenchmarkError(Exception):
    """A benchmark broke off, or what it streamed did not come back equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing that was measured. All figures are costs: less is better.

    Attributes:
        name: What it is.
        unit: Of ``value`` and ``against_value``.
        value: The median over the rounds, or the only value there is.
        against: What it is compared with; ``None`` for nothing.
        against_value: The median of that.
        ratio: The median over the rounds of the ratio within a round: what the machine does beside
            the benchmark slows both alike.
        spread: The least and the greatest of those ratios.
        target: The most that the ratio, or without one the value, is meant to be.
        values: The values of the rounds.
        against_values: Those of what it is compared with.
    """

    name: str
    unit: str
    value: float
    against: str | None = None
    against_value: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    target: float | None = None
    values: Series = ()
    against_values: Series = ()

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` where there is none."""
        if self.target is None:
            return None
        return (self.value if self.ratio is None else self.ratio) <= self.target

    def to_dict(self) -> dict[str, Any]:
        """The figure in types that JSON has."""
        return {**asdict(self), "met": self.met}


def compare(
    name: str,
    unit: str,
    series: Mapping[str, Series],
    *,
    of: str,
    against: str,
    target: float | None = None,
) -> Figure:
    """A figure of two series that were measured in the same rounds.

    Args:
        name: What was measured.
        unit: In which unit.
        series: What was measured, by what it was measured of.
        of: Whose figure it is.
        against: What it is compared with.
        target: The most that the ratio is meant to be.

    Raises:
        BenchmarkError: They have no values, or not equally many.
    """
    values, others = series[of], series[against]
    if not values or len(values) != len(others):
        raise BenchmarkError(f"{name}: {len(values)} values against {len(others)}")
    # What took nothing in either is equal; what took nothing in one only has no ratio.
    ratios = [
        value / other if other else (1.0 if not value else float("inf"))
        for value, other in zip(values, others, strict=True)
    ]
    return Figure(
        name=f"{name}, {of}",
        unit=unit,
        value=median(values),
        against=against,
        against_value=median(others),
        ratio=median(ratios),
        spread=(min(ratios), max(ratios)),
        target=target,
        values=values,
        against_values=others,
    )


def single(name: str, unit: str, value: float, *, target: float | None = None) -> Figure:
    """A figure that stands alone, such as a growth in bytes."""
    return Figure(name=name, unit=unit, value=value, target=target)
