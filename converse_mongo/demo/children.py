"""Child processes: started, listened to, and ended in every case."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self, TypeVar

from converse_mongo.demo.programs import URI_VARIABLE
from converse_mongo.demo.reports import Broken, Report, parse_report
from converse_mongo.errors import ConverseError

__all__ = ["Child", "Children", "DemoError"]

R = TypeVar("R", bound=Report)

END_SECONDS = 3.0


class DemoError(ConverseError):
    """The demonstration broke off."""


class Child:
    """A process that tells what it does in :mod:`reports <converse_mongo.demo.reports>`."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        errors: "tempfile._TemporaryFileWrapper[bytes]",
        patience: float,
    ) -> None:
        self.name = name
        self._process = process
        self._errors = errors
        self._patience = patience

    async def send(self, data: bytes) -> None:
        """Writes ``data`` to its standard input, and closes that."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        with contextlib.suppress(ConnectionError):  # its own reports tell why it is gone
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        self._process.stdin.close()

    async def reports(self) -> AsyncIterator[Report]:
        """Yields what it reports until it has no more to say.

        Raises:
            DemoError: It reported an error, wrote something else, or was silent for too long.
        """
        while (report := await self._next()) is not None:
            yield report

    async def first(self, kind: type[R]) -> R:
        """Its next report, which has to be of ``kind``.

        Raises:
            DemoError: It was not.
        """
        report = await self._next()
        if isinstance(report, kind):
            return report
        raise self._error(f"said {report} instead of {kind.__name__}")

    async def _next(self) -> Report | None:
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        try:
            async with asyncio.timeout(self._patience):
                report = parse_report(await self._process.stdout.readline())
        except TimeoutError as error:
            raise self._error(f"was silent for {self._patience:.0f} s") from error
        except ValueError as error:
            raise self._error(str(error)) from error
        if isinstance(report, Broken):
            raise self._error(f"gave up: {report.error}")
        return report

    def unexpected_end(self) -> DemoError:
        """The error to raise when it ended before it had said all."""
        return self._error("ended too early")

    def _error(self, what: str) -> DemoError:
        self._errors.seek(0)
        output = self._errors.read()[-2000:].decode(errors="replace").strip()
        return DemoError(f"The {self.name} {what}." + (f"\n{output}" if output else ""))

    def kill(self) -> None:
        """Ends it with SIGKILL, as a crash would."""
        self._signal(signal.SIGKILL)

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
            self.kill()
            await self._process.wait()
            self._errors.close()

    def _signal(self, number: signal.Signals) -> None:
        # Not by Popen.send_signal, which would take the exit status that asyncio waits for.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


class Children:
    """All child processes of one demonstration: leaving it ends those that still run.

    Args:
        uri: The server they are to use.
        patience: For how many seconds one may be silent.
    """

    def __init__(self, uri: str, patience: float) -> None:
        self._environment = {**os.environ, URI_VARIABLE: uri}
        self._patience = patience
        self._children: list[Child] = []

    async def start(self, name: str, module: str, *arguments: str) -> Child:
        """Starts ``python -m module arguments``.

        Raises:
            DemoError: The system refused.
        """
        errors = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed when the child ends
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=self._environment,
                process_group=0,  # Ctrl-C in the terminal is for the parent, which ends us all
            )
        except OSError as error:
            errors.close()
            raise DemoError(f"The {name} could not be started: {error}") from error
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
