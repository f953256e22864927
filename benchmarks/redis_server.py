"""A Redis of the benchmark's own, where ``redis-server`` is installed."""

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Self

from benchmarks.figures import BenchmarkError
from converse_mongo.embedded import free_port

__all__ = ["RedisServer", "redis_program"]

START_SECONDS = 10.0
STOP_SECONDS = 3.0

# Run in the child before it becomes the server: on Linux, be ended when the parent is gone.
_LAUNCH = """
import os, sys
if sys.platform == "linux":
    import ctypes, signal
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
os.execv(sys.argv[1], sys.argv[1:])
"""


def redis_program() -> str | None:
    """Where ``redis-server`` is; ``None`` where there is none."""
    return shutil.which("redis-server")


class RedisServer:
    """A process that listens on the loopback interface, with its files in a directory of its own.

    Args:
        program: ``redis-server``.
        durable: Whether it has a command on the disk before it answers: ``appendonly yes`` and
            ``appendfsync always``. Else it is as Redis is by default: in memory, with a snapshot on
            disk after a minute at the soonest.
    """

    def __init__(self, program: str, *, durable: bool) -> None:
        self._program = program
        self._durability = (
            ["--appendonly", "yes", "--appendfsync", "always"]
            if durable
            else ["--appendonly", "no"]
        )
        self._directory = tempfile.TemporaryDirectory(prefix="benchmark-redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self._port = free_port()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Starts it, and returns once it answers; after :meth:`kill` with the data that it has.

        Raises:
            BenchmarkError: It did not answer in time.
        """
        self._process = subprocess.Popen(  # noqa: S603
            [
                *(sys.executable, "-c", _LAUNCH, self._program),
                *("--bind", "127.0.0.1", "--port", str(self._port)),
                *("--dir", self._directory.name, "--daemonize", "no", "--loglevel", "warning"),
                *self._durability,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C in the terminal is for us, who end it when we are done
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._answers():
                return
            time.sleep(0.02)
        raise BenchmarkError(f"{self._program} did not start on port {self._port}.")

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")  # not while it is loading
        except OSError:
            return False

    def kill(self) -> None:
        """Ends it by SIGKILL, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # Ctrl-C, say: without this the process would stay behind
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self.kill()
        self._directory.cleanup()
