"""Child processes of a benchmark, which tell what they found in lines of JSON."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import BenchmarkError
from converse_mongo.tools.demo.processes import Process, Processes

__all__ = ["SERVER_VARIABLE", "Child", "Children", "tell", "wait_for_parent"]

SERVER_VARIABLE = "CONVERSE_BENCHMARK_URI"
"""Children get the URI in their environment: it may hold a password, and all see command lines."""

_ROOT = Path(__file__).parents[1]


def tell(report: str, **fields: Any) -> None:
    """Tells the parent something, from within a child."""
    sys.stdout.write(json.dumps({"report": report, **fields}) + "\n")
    sys.stdout.flush()


async def wait_for_parent() -> None:
    """Waits, within a child, until the parent says that it may go on."""
    if not await asyncio.to_thread(sys.stdin.readline):
        raise EOFError("The parent is gone.")


class Child(Process):
    """A process that :func:`tells <tell>` what it found."""

    error = BenchmarkError

    async def go(self) -> None:
        """Lets it go on where it :func:`waits <wait_for_parent>`."""
        await self.send(b"\n")

    async def reports(self) -> AsyncIterator[Mapping[str, Any]]:
        """Yields its reports, up to and with the one that says ``finished``.

        Raises:
            BenchmarkError: It ended before, or was silent for too long.
        """
        while True:
            report = await self._next()
            yield report
            if report["report"] == "finished":
                return

    async def expect(self, kind: str) -> Mapping[str, Any]:
        """Its next report, which has to be a ``kind``.

        Raises:
            BenchmarkError: It was not.
        """
        report = await self._next()
        if report["report"] != kind:
            raise self.failure(f"said {report!r} instead of {kind!r}")
        return report

    async def _next(self) -> Mapping[str, Any]:
        line = await self.read_line()
        if not line.endswith(b"\n"):
            raise self.unexpected_end()
        report: dict[str, Any] = json.loads(line)
        return report


class Children(Processes[Child]):
    """All child processes of a benchmark: leaving it ends those that still run.

    Args:
        uri: The server that they are to use.
        patience: For how many seconds one may be silent.
    """

    def __init__(self, uri: str, patience: float = 120.0) -> None:
        super().__init__(Child, {SERVER_VARIABLE: uri}, patience, _ROOT)
