"""What the processes of the load test share: samples of themselves, and latencies that they count.

Both take the same room after ten minutes as after one: the test is about growth.
"""

import asyncio
import hashlib
import threading
import time
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.children import tell
from benchmarks.meters import memory
from converse_mongo import Converse

__all__ = [
    "PARTS",
    "SAMPLES",
    "TOKENS_PER_SECOND",
    "VIEWERS_PER_MESSAGE",
    "Latencies",
    "digest",
    "every_sample",
    "percentile",
    "sample_parts",
]

TOKENS_PER_SECOND = 50
VIEWERS_PER_MESSAGE = 5

PARTS = 10
SAMPLES = 12
"""Of each part, at equal distances."""

_LEAST, _STEP, _BOUNDS = 1e-4, 1.02, 760
_LIMITS = [_LEAST * _STEP**number for number in range(_BOUNDS)]
"""From 0.1 ms to five minutes in steps of 2 %."""


def digest(text: str) -> str:
    """What stands for a text where the text itself is too much."""
    return hashlib.sha256(text.encode()).hexdigest()


class Latencies:
    """Counts latencies by size."""

    def __init__(self) -> None:
        self._counts = [0] * (_BOUNDS + 1)

    def add(self, seconds: float) -> None:
        """Counts one."""
        self._counts[bisect(_LIMITS, seconds)] += 1

    def take(self) -> list[int]:
        """The counts so far; begins again at none."""
        counts, self._counts = self._counts, [0] * (_BOUNDS + 1)
        return counts


def percentile(counts: Sequence[int], share: float) -> float:
    """The latency in seconds that ``share`` of those counted do not pass, rounded up by 2 %."""
    rank = share * sum(counts)
    for number, reached in enumerate(accumulate(counts)):
        if reached and reached >= rank:
            return _LIMITS[min(number, _BOUNDS - 1)]
    return 0.0


async def every_sample(seconds: float, take: Callable[[int], None]) -> None:
    """Calls ``take`` with the number of each sample when its time has come."""
    start = time.monotonic()
    for number in range(PARTS * SAMPLES):
        due = start + (number + 1) * seconds / (PARTS * SAMPLES)
        await asyncio.sleep(due - time.monotonic())
        take(number)


async def sample_parts(
    converse: Converse,
    seconds: float,
    more: Callable[[], Mapping[str, float]],
    counted: Callable[[], Mapping[str, Any]],
) -> None:
    """Samples this process for ``seconds``, and tells the parent at the end of each part.

    Args:
        converse: The facade, for its change streams.
        seconds: For how long.
        more: What else belongs to a sample.
        counted: What was counted since it was called last, or in all.
    """
    samples: list[Mapping[str, float]] = []

    def take(number: int) -> None:
        samples.append(
            {
                "resident": memory().resident,
                "tasks": len(asyncio.all_tasks()),
                "threads": threading.active_count(),
                "files": len(list(Path("/proc/self/fd").iterdir())),
                **more(),
            }
        )
        if len(samples) == SAMPLES:
            tell(
                "part",
                part=number // SAMPLES,
                at=time.monotonic(),
                processor=time.process_time(),
                streams=converse.statistics().streams_opened,
                samples={name: [sample[name] for sample in samples] for name in samples[0]},
                **counted(),
            )
            samples.clear()

    await every_sample(seconds, take)
