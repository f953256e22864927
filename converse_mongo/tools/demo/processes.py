"""Child processes: started, listened to line by line, and ended in every case."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Generic, Self, TypeVar

__all__ = ["Process", "Processes"]

END_SECONDS = 3.0
_OUTPUT = 2000

P = TypeVar("P", bound="Process")


class Process:
    """A process that tells what it does in lines on its standard output.

    Attributes:
        error: What is raised where it does not do what it has to.
        name: What it is called in errors.
    """

    error: ClassVar[type[Exception]]

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, errors: IO[bytes], patience: float
    ) -> None:
        self.name = name
        self._process = process
        self._errors = errors
        self._patience = patience

    async def send(self, data: bytes, *, close: bool = False) -> None:
        """Writes ``data`` to its standard input, and perhaps closes that."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        with contextlib.suppress(ConnectionError):  # its own reports tell why it is gone
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        if close:
            self._process.stdin.close()

    async def read_line(self) -> bytes:
        """The next line of its standard output; without a line break it is the last, or empty.

        Raises:
            error: It was silent for too long.
        """
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        try:
            async with asyncio.timeout(self._patience):
                return await self._process.stdout.readline()
        except TimeoutError as error:
            raise self.failure(f"was silent for {self._patience:.0f} s") from error

    def failure(self, what: str) -> Exception:
        """The error that says what it did, with what it wrote to its standard error."""
        self._errors.seek(0)
        output = self._errors.read().decode(errors="replace").strip()
        if len(output) > 2 * _OUTPUT:  # the first trouble often explains the rest
            output = f"{output[:_OUTPUT]}\n…\n{output[-_OUTPUT:]}"
        return self.error(f"The {self.name} {what}." + (f"\n{output}" if output else ""))

    def unexpected_end(self) -> Exception:
        """The error to raise when it ended before it had said all."""
        return self.failure("ended too early")

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


class Processes(Generic[P]):
    """Child processes that belong together: leaving it ends those that still run.

    Args:
        kind: What stands for each of them.
        environment: What they are told beside what this process is.
        patience: For how many seconds one may be silent.
        directory: Where they run; by default where this process does.
    """

    def __init__(
        self,
        kind: type[P],
        environment: Mapping[str, str],
        patience: float,
        directory: Path | None = None,
    ) -> None:
        self._kind = kind
        self._environment = {**os.environ, **environment}
        self._patience = patience
        self._directory = directory
        self._all: list[P] = []

    async def start(self, name: str, module: str, *arguments: str) -> P:
        """Starts ``python -m module arguments``.

        Raises:
            kind.error: The system refused.
        """
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process ends
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=self._environment,
                cwd=self._directory,
                process_group=0,  # Ctrl-C in the terminal is for the parent, which ends us all
            )
        except OSError as error:
            errors.close()
            raise self._kind.error(f"The {name} could not be started: {error}") from error
        child = self._kind(name, process, errors, self._patience)
        self._all.append(child)
        return child

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.gather(*(child.end() for child in self._all))
