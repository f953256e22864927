"""Child processes: forked in milliseconds, listened to, and ended in every case."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Child", "Children", "Report"]

Report = dict[str, Any]

_CONTEXT = multiprocessing.get_context("forkserver")
# Forked from a process that has imported all and opened nothing, a child is there at once.
_CONTEXT.set_forkserver_preload(["tests.faults.programs", "tests.faults.work_programs"])

_END_SECONDS = 10.0
_LONGEST_REPORT = 64 * 1024 * 1024


class Child:
    """A process that runs a program, and reports in lines of JSON.

    One that ``obeys`` is given a pipe with orders as well.
    """

    def __init__(
        self, name: str, program: Callable[..., None], log: Path, *, obeys: bool = False
    ) -> None:
        self.name = name
        self.log = log
        self._reading, writing = _CONTEXT.Pipe(duplex=False)
        ends, self._orders = [writing], None
        if obeys:
            orders, self._orders = _CONTEXT.Pipe(duplex=False)
            ends.append(orders)
        self._process = _CONTEXT.Process(target=program, args=ends, name=name, daemon=True)
        self._process.start()
        for end in ends:
            end.close()

    def order(self, **order: Any) -> None:
        """Sends it an order, if it still runs."""
        assert self._orders is not None
        with contextlib.suppress(BrokenPipeError):
            os.write(self._orders.fileno(), json.dumps(order).encode() + b"\n")

    async def reports(self) -> AsyncIterator[Report]:
        """Yields what it reports, until it ends or is killed."""
        reader = asyncio.StreamReader(limit=_LONGEST_REPORT)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._reading
        )
        try:
            while (line := await reader.readline()).endswith(b"\n"):  # else it died in mid-word
                yield json.loads(line)
        finally:
            transport.close()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it still runs."""
        if self._process.pid is not None and self._process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def end(self) -> None:
        """Ends it by SIGKILL, which also ends one that is stopped."""
        self.kill()
        self._process.join(_END_SECONDS)
        self._process.close()
        for pipe in (self._reading, self._orders):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Children:
    """The child processes of one run; leaving it ends all."""

    def __init__(self) -> None:
        self.all: list[Child] = []

    def start(
        self, name: str, program: Callable[..., None], log: Path, *, obeys: bool = False
    ) -> Child:
        child = Child(name, program, log, obeys=obeys)
        self.all.append(child)
        return child

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for child in self.all:
            child.end()
