"""The child processes of a demonstration.

All are forks of one process that has imported what they need, which takes a second. They get lines
of JSON on standard input, whose end means that the parent is gone, and report in lines of JSON on
standard output, whose end means that they are gone.
"""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO, Any, Self

from converse_mongo.domain.errors import ConfigurationError

END_SECONDS = 3.0
_NAME_BYTES = 4


class _Child:
    def __init__(self, stdin: IO[bytes], reader: threading.Thread) -> None:
        self.stdin = stdin
        self.reader = reader
        self.pid: int | None = None

    def signal(self, number: int) -> None:
        if self.pid is not None and self.reader.is_alive():  # else the id may be another's
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Children:
    """Starts programs, sends to them, and collects their reports.

    Leaving it ends all of them.

    Attributes:
        reports: The reports, each with the name of the child; ``["gone"]`` is the last of each.
    """

    def __init__(self) -> None:
        self.reports: queue.SimpleQueue[tuple[str, list[Any]]] = queue.SimpleQueue()
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> Self:
        if not hasattr(os, "fork"):
            raise ConfigurationError("The demonstration needs a POSIX system, such as Linux.")
        self._control, theirs = socket.socketpair()
        with theirs:
            self._origin = subprocess.Popen(  # noqa: S603
                [
                    *(sys.executable, "-m", "converse_mongo.tools.demo.programs"),
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C in the terminal is for the parent, which ends them
            )
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.signal(signal.SIGTERM)
            with contextlib.suppress(OSError):
                child.stdin.close()
        self._control.close()
        until = time.monotonic() + END_SECONDS
        for child in self._children.values():
            child.reader.join(max(until - time.monotonic(), 0))
            child.signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._origin.wait(END_SECONDS)
        self._origin.kill()
        self._origin.wait()

    def start(self, name: str, program: str) -> None:
        """Starts a program; what is sent before it runs waits for it."""
        (its_input, our_output), (our_input, its_output) = os.pipe(), os.pipe()
        socket.send_fds(self._control, [program.encode()], [its_input, its_output])
        os.close(its_input)
        os.close(its_output)
        reports = os.fdopen(our_input, "rb")
        reader = threading.Thread(target=self._read, args=(name, reports), daemon=True)
        self._children[name] = _Child(os.fdopen(our_output, "wb"), reader)
        reader.start()

    def _read(self, name: str, reports: IO[bytes]) -> None:
        child = self._children[name]
        with reports:
            for line in reports:
                if not line.endswith(b"\n"):
                    break  # it was killed in the middle of it
                report = json.loads(line)
                if report[0] == "born":
                    child.pid = report[1]
                else:
                    self.reports.put((name, report))
        self.reports.put((name, ["gone"]))

    def send(self, name: str, value: Any) -> None:
        """Sends a line, in a thread: a program that is still starting does not read."""
        line = json.dumps(value).encode() + b"\n"
        threading.Thread(target=self._write, args=(name, line), daemon=True).start()

    def _write(self, name: str, line: bytes) -> None:
        pipe = self._children[name].stdin
        with contextlib.suppress(OSError, ValueError):  # the end of its reports tells of its end
            pipe.write(line)
            pipe.flush()

    def signal(self, name: str, number: int) -> None:
        """Sends a signal to a child that has reported something, and is not gone."""
        self._children[name].signal(number)


def fork(control: int) -> str | None:
    """Forks for each program that the parent wants to start.

    Returns:
        In a child, its program; ``None`` once the parent is gone, and all children are.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with socket.socket(fileno=control) as wanted:
        while True:
            program, files, _, _ = socket.recv_fds(wanted, _NAME_BYTES, 2)
            if not program:
                break
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number, file in enumerate(files):
                    os.dup2(file, number)
                    os.close(file)
                sys.stdout.write(json.dumps(["born", os.getpid()]) + "\n")
                sys.stdout.flush()
                return program.decode()
            for file in files:
                os.close(file)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, 0)  # until the last one has ended
    return None
