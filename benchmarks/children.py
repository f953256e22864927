"""Child processes of a benchmark, which report what they found in lines of JSON."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

from benchmarks.figures import BenchmarkError

__all__ = ["SERVER_VARIABLE", "Child", "Children", "tell", "wait_for_parent"]

SERVER_VARIABLE = "CONVERSE_BENCHMARK_URI"
"""Children get the URI in their environment: it may hold a password, and all see command lines."""

END_SECONDS = 3.0
MAX_OUTPUT = 4000

_ROOT = Path(__file__).parents[1]


def tell(report: str, **fields: Any) -> None:
    """Reports to the parent, from within a child."""
    sys.stdout.write(json.dumps({"report": report, **fields}) + "\n")
    sys.stdout.flush()


async def wait_for_parent() -> None:
    """Waits, within a child, until the parent says that it may go on."""
    if not await asyncio.to_thread(sys.stdin.readline):
        raise EOFError("The parent is gone.")


class Child:
    """A process that :func:`tells <tell>` what it found; :class:`Children` starts it."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, errors: IO[bytes], patience: float
    ) -> None:
        self.name = name
        self._process = process
        self._errors = errors
        self._patience = patience

    async def go(self) -> None:
        """Lets it go on where it :func:`waits <wait_for_parent>`."""
        await self.send(b"\n")

    async def send(self, data: bytes) -> None:
        """Writes ``data`` to its standard input."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        with contextlib.suppress(ConnectionError):  # the end of its reports tells that it is gone
            self._process.stdin.write(data)
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
        """Returns its next report, which has to be a ``kind``.

        Raises:
            BenchmarkError: It is not.
        """
        report = await self._next()
        if report["report"] != kind:
            raise self._failure(f"reported {report!r} instead of {kind!r}")
        return report

    async def _next(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        try:
            async with asyncio.timeout(self._patience):
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            raise self._failure(f"was silent for {self._patience:.0f} s") from error
        if not line.endswith(b"\n"):
            raise self._failure("ended too early")
        report: dict[str, Any] = json.loads(line)
        return report

    def _failure(self, what: str) -> BenchmarkError:
        """Makes the error that says what it did, with the end of its standard error."""
        self._errors.seek(0)
        output = self._errors.read()[-MAX_OUTPUT:].decode(errors="replace").strip()
        return BenchmarkError(f"The {self.name} {what}.\n{output}".strip())

    async def end(self) -> None:
        """Ends it if it still runs: by SIGTERM, and by SIGKILL if that takes too long."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await self._process.wait()
        finally:
            self.signal(signal.SIGKILL)
            await self._process.wait()
            self._errors.close()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it still runs."""
        # Not by Popen.send_signal, which would take the exit status that asyncio waits for.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


class Children:
    """All child processes of a benchmark: leaving it ends those that still run.

    Args:
        uri: The server for them.
        patience: The seconds that one may be silent.
    """

    def __init__(self, uri: str, patience: float = 120.0) -> None:
        self._environment = {**os.environ, SERVER_VARIABLE: uri}
        self._patience = patience
        self._all: list[Child] = []

    async def start(
        self, name: str, module: str | Path, *arguments: str, of: Path | None = None
    ) -> Child:
        """Starts ``python -m module arguments``.

        Args:
            name: What to call it in errors.
            module: A module, or the path of a program that runs with the library of any checkout.
            arguments: Its arguments.
            of: The checkout whose module and library it is; by default this one.
        """
        program = (str(module),) if isinstance(module, Path) else ("-m", module)
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process ends
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *program, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**self._environment, "PYTHONPATH": str(of or _ROOT)},
            cwd=of or _ROOT,
            process_group=0,  # Ctrl-C in the terminal is for the parent, which ends them
        )
        child = Child(name, process, errors, self._patience)
        self._all.append(child)
        return child

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(child.end() for child in self._all))
