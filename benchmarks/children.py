"""Child processes of a benchmark, which tell what they found in lines of JSON."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.figures import BenchmarkError

__all__ = ["SERVER_VARIABLE", "Child", "Children", "tell", "wait_for_parent"]

SERVER_VARIABLE = "CONVERSE_BENCHMARK_URI"
"""Children get the URI in their environment: it may hold a password, and all see command lines."""

END_SECONDS = 3.0
_OUTPUT = 2000
_ROOT = Path(__file__).parents[1]


def tell(report: str, **fields: Any) -> None:
    """Tells the parent something, from within a child."""
    sys.stdout.write(json.dumps({"report": report, **fields}) + "\n")
    sys.stdout.flush()


async def wait_for_parent() -> None:
    """Waits, within a child, until the parent says that it may go on."""
    if not await asyncio.to_thread(sys.stdin.readline):
        raise EOFError("The parent is gone.")


class Child:
    """A process that :func:`tells <tell>` what it found."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, errors: Any, patience: float
    ) -> None:
        self.name = name
        self._process = process
        self._errors = errors
        self._patience = patience

    async def go(self) -> None:
        """Lets it go on where it :func:`waits <wait_for_parent>`."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        with contextlib.suppress(ConnectionError):  # its own reports tell that it is gone
            self._process.stdin.write(b"\n")
            await self._process.stdin.drain()

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
            raise self._error(f"said {report!r} instead of {kind!r}")
        return report

    async def _next(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        try:
            async with asyncio.timeout(self._patience):
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            raise self._error(f"was silent for {self._patience:.0f} s") from error
        if not line.endswith(b"\n"):
            raise self._error("ended too early")
        report: dict[str, Any] = json.loads(line)
        return report

    async def end(self) -> None:
        """Ends it if it still runs: by SIGTERM, and by SIGKILL if that takes too long."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await self._process.wait()
        finally:
            self._signal(signal.SIGKILL)
            await self._process.wait()
            self._errors.close()

    def _signal(self, number: signal.Signals) -> None:
        # Not by Popen.send_signal, which would take the exit status that asyncio waits for.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def _error(self, what: str) -> BenchmarkError:
        self._errors.seek(0)
        output = self._errors.read().decode(errors="replace").strip()
        if len(output) > 2 * _OUTPUT:  # the first trouble often explains the rest
            output = f"{output[:_OUTPUT]}\n…\n{output[-_OUTPUT:]}"
        return BenchmarkError(f"The {self.name} {what}." + (f"\n{output}" if output else ""))


class Children:
    """All child processes of a benchmark: leaving it ends those that still run.

    Args:
        uri: The server that they are to use.
        patience: For how many seconds one may be silent.
    """

    def __init__(self, uri: str, patience: float = 120.0) -> None:
        self._environment = {**os.environ, SERVER_VARIABLE: uri}
        self._patience = patience
        self._children: list[Child] = []

    async def start(self, name: str, module: str, *arguments: str) -> Child:
        """Starts ``python -m module arguments``."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the child ends
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=self._environment,
                cwd=_ROOT,
                process_group=0,  # Ctrl-C in the terminal is for the parent, which ends us all
            )
        except OSError:
            errors.close()
            raise
        child = Child(name, process, errors, self._patience)
        self._children.append(child)
        return child

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.gather(*(child.end() for child in self._children))
