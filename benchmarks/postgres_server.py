"""A PostgreSQL of the benchmark's own, where ``initdb`` and ``postgres`` are on the path."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from benchmarks.figures import BenchmarkError

__all__ = ["PostgresServer", "can_have_postgres"]

START_SECONDS = 30.0
STOP_SECONDS = 10.0
MAX_OUTPUT = 2000
UNPRIVILEGED = "nobody"
"""Who runs it where we are root: PostgreSQL refuses to be."""

# Run in the child before it becomes the program: be somebody else, where we are root; and, on
# Linux, be ended when the parent is gone, which a change of the user would undo. SIGINT is a fast
# shutdown. What is imported later may be where only root reads.
_LAUNCH = """
import ctypes, os, signal, sys
user, group = map(int, sys.argv[1:3])
library = ctypes.CDLL(None)
if user != os.getuid():
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    library.prctl(PR_SET_PDEATHSIG, signal.SIGINT)
os.execv(sys.argv[3], sys.argv[3:])
"""


def can_have_postgres() -> bool:
    """Whether there is a PostgreSQL, and a client of it."""
    programs = shutil.which("initdb"), shutil.which("postgres")
    return all(programs) and find_spec("psycopg") is not None


class PostgresServer:
    """A process with a new database, which listens on a Unix socket in a directory of its own.

    It is as PostgreSQL is by default: what was committed is on the disk. It counts statements.
    """

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="bench-pg-")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getuid(), os.getgid()
        if os.getuid() == 0:
            entry = pwd.getpwnam(UNPRIVILEGED)
            self._owner = entry.pw_uid, entry.pw_gid
            os.chown(self._directory.name, *self._owner)

    @property
    def url(self) -> str:
        """Where it is, as libpq takes it."""
        return f"host={self._directory.name} dbname=postgres user=postgres"

    def _launch(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        path, owner = shutil.which(program) or program, map(str, self._owner)
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", _LAUNCH, *owner, path, *arguments],
            cwd=self._directory.name,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            process_group=0,  # Ctrl-C in the terminal is for us, who end it when we are done
        )

    def start(self) -> None:
        """Makes it and starts it, and returns once it answers.

        Raises:
            BenchmarkError: It could not be made, or did not answer in time.
        """
        data = f"{self._directory.name}/data"
        making = ["-D", data, "-U", "postgres", "--auth=trust", "--locale=C", "--encoding=UTF8"]
        if self._launch("initdb", *making).wait() != 0:
            raise self._failure("initdb could not make a PostgreSQL.")
        options = {
            "listen_addresses": "",
            "unix_socket_directories": self._directory.name,
            "max_connections": "300",
            "shared_preload_libraries": "pg_stat_statements",
        }
        settings = [text for each in options.items() for text in ("-c", "=".join(each))]
        self._process = self._launch("postgres", "-D", data, *settings)
        psycopg = import_module("psycopg")
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url).close()
                return
            time.sleep(0.05)
        raise self._failure("PostgreSQL did not start.")

    def _failure(self, what: str) -> BenchmarkError:
        """Makes the error that says what happened, with what the program said last."""
        self._log.seek(0)
        output = self._log.read()[-MAX_OUTPUT:].decode(errors="replace")
        return BenchmarkError(f"{what}\n{output}".strip())

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
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()
            process.wait()
        self._log.close()
        self._directory.cleanup()
