"""The embedded server: SecantusDB in a separate process, for demonstrations and tests.

SecantusDB implements MongoDB's wire protocol, change streams included. It is beta software under
the GPL-2.0, comes with the ``demo`` extra only, and is never imported here. In production use a
MongoDB replica set.
"""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from converse_mongo.domain.errors import ConfigurationError, ConverseError

__all__ = ["EmbeddedServer", "EmbeddedServerError"]

START_SECONDS = 30.0
STOP_SECONDS = 3.0, 7.0
_TRIES = 3
# To open a change stream at a time, it decodes its whole oplog, which takes seconds at 100,000.
_OPLOG_ENTRIES = 5_000

_DATA_FILE = "WiredTiger"
"""A file in each data directory."""

# Runs in the child before it becomes the server: on Linux, it ends with its parent.
_LAUNCH = """
import runpy, sys
if sys.platform == "linux":
    import ctypes, signal
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
runpy.run_module("secantus", run_name="__main__", alter_sys=True)
"""


class EmbeddedServerError(ConverseError):
    """The embedded server did not start."""


class EmbeddedServer:
    """A server process on the loopback interface, on a free port.

    Args:
        storage_path: A directory for the data; ``None`` for memory only. It is made for its user
            alone, with its parents.
        arguments: More arguments of ``python -m secantus``.

    Raises:
        ConfigurationError: SecantusDB is not installed.
    """

    def __init__(self, storage_path: Path | None = None, *, arguments: Sequence[str] = ()) -> None:
        if importlib.util.find_spec("secantus") is None:
            raise ConfigurationError(
                "The embedded server needs SecantusDB: "
                "python -m pip install 'converse-mongo[demo]'. "
                "Or give the URI of a MongoDB replica set."
            )
        self._storage_path = storage_path
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.port = free_port()

    @property
    def uri(self) -> str:
        """Its URI. It reports that it is a replica set, which drivers detect."""
        return f"mongodb://127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int | None:
        """The id of the process, while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> Self:
        """Starts it and waits until it answers; after :meth:`stop`, on the same port and data.

        Raises:
            EmbeddedServerError: It exited or did not answer in time; the message has its output. Or
                the data directory is not for its user alone, and cannot be made so.
        """
        if self._storage_path is not None:
            _make_private(self._storage_path)
        log = self._log = self._log or tempfile.TemporaryFile()  # noqa: SIM115 - read on failure
        for left in reversed(range(_TRIES)):
            self._process = subprocess.Popen(  # noqa: S603
                [
                    *(sys.executable, "-c", _LAUNCH, "--host", "127.0.0.1"),
                    *("--port", str(self.port), "--log-level", "WARNING"),
                    *("--storage-path", str(self._storage_path or ":memory:")),
                    *("--oplog-max-entries", str(_OPLOG_ENTRIES)),
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C in the terminal must not reach it
            )
            try:
                if self._wait_until_it_answers():
                    return self
            except BaseException:  # such as Ctrl-C: the process must not stay behind
                self.stop()
                raise
            self.stop()
            if left and self._storage_path is None:
                self.port = free_port()  # another process may have taken the port
        log.seek(0)
        raise EmbeddedServerError(
            f"SecantusDB did not start on port {self.port}:\n"
            + log.read()[-2000:].decode(errors="replace")
        )

    def _wait_until_it_answers(self) -> bool:
        deadline = time.monotonic() + START_SECONDS
        client: MongoClient[dict[str, object]] = MongoClient(
            self.uri, serverSelectionTimeoutMS=100, directConnection=True
        )
        with client:
            while time.monotonic() < deadline:
                if self._process is None or self._process.poll() is not None:
                    return False
                try:
                    client.admin.command("ping")
                except PyMongoError:
                    time.sleep(0.02)
                else:
                    return True
        return False

    def stop(self) -> None:
        """Ends the process, by force if it does not exit in time."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            for seconds in STOP_SECONDS:
                process.terminate()  # a signal during its start may get lost
                if self._ends_within(seconds, process):
                    return
        finally:
            process.kill()
            process.wait()

    def _ends_within(self, seconds: float, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                # It stops only after one more connection.
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", self.port), timeout=0.1).close()
            else:
                return True
        return False

    def kill(self) -> None:
        """Ends the process with SIGKILL, like a crash."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()
        if self._log is not None:
            self._log.close()
            self._log = None


def _make_private(path: Path) -> None:
    """Makes a directory for its user alone; closes one that others can read, if it is for data.

    Whoever reads the data of the server reads all conversations.

    Raises:
        EmbeddedServerError: It belongs to another user, others can read it and it has other files,
            or it is not a directory.
    """
    try:
        for each in reversed([each for each in (path, *path.parents) if not each.exists()]):
            each.mkdir(mode=0o700, exist_ok=True)
        names = {each.name for each in path.iterdir()}
        found = path.stat()
        if os.name != "posix":
            return
        if found.st_uid != os.geteuid():
            raise EmbeddedServerError(f"The data directory {path} belongs to another user.")
        if not found.st_mode & 0o077:
            return
        if names and _DATA_FILE not in names:
            raise EmbeddedServerError(
                f"Others can read the data directory {path}, and it has other files: pass an empty "
                f"one, or run 'chmod 700 {path}'."
            )
        path.chmod(0o700)
    except OSError as error:
        raise EmbeddedServerError(
            f"The data directory {path} cannot be used: {error.strerror}."
        ) from error


def free_port() -> int:
    """Returns a port of the loopback interface that was just free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
