"""The embedded server: SecantusDB in a separate process, for demonstrations and tests.

SecantusDB implements MongoDB's wire protocol, change streams included. It is beta software under
the GPL-2.0, comes with the ``embedded`` extra only, and is never imported here. In production use a
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
from converse_mongo.driver.installed import install_command

__all__ = ["EmbeddedServer", "EmbeddedServerError"]

START_SECONDS = 30.0
STOP_SECONDS = 3.0, 7.0
_TRIES = 3
# To open a change stream at a time, it decodes its whole oplog, which takes seconds at 100,000.
_OPLOG_ENTRIES = 5_000

_DATA_FILE = "WiredTiger"
"""A file in each data directory."""
_DATA_ERROR = "WiredTigerError"
"""In its output if it cannot use the data directory."""

REPLICA_SET = "rs0"
"""The name of the replica set that it reports to be, as in the URIs of the documentation."""

# Runs in the child before it becomes the server: on Linux, it ends with its parent. SecantusDB has
# no option for the name of its replica set.
_LAUNCH = f"""
import runpy, sys
if sys.platform == "linux":
    import ctypes, signal
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
import secantus.cli
class Server(secantus.cli.SecantusDBServer):
    def __init__(self, **options):
        name = options.pop("replica_set_name", None) and "{REPLICA_SET}"
        super().__init__(replica_set_name=name, **options)
secantus.cli.SecantusDBServer = Server
runpy.run_module("secantus", run_name="__main__", alter_sys=True)
"""


class EmbeddedServerError(ConverseError):
    """The embedded server did not start."""


class EmbeddedServer:
    """A server process on the loopback interface, on a free port, as the replica set ``rs0``.

    Args:
        storage_path: A directory for the data; ``None`` for memory only. It is made for its user
            alone, with its parents.
        arguments: More arguments of ``python -m secantus``.
        port: The port to listen on; ``None`` for any that is free.

    Raises:
        ConfigurationError: SecantusDB is not installed.
    """

    def __init__(
        self,
        storage_path: Path | None = None,
        *,
        arguments: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        if importlib.util.find_spec("secantus") is None:
            raise ConfigurationError(
                f"The embedded server needs SecantusDB: {install_command('embedded')}. "
                "Or pass the URI of a MongoDB replica set."
            )
        self._storage_path = storage_path
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._has_any_port = port is None
        self.port = free_port() if port is None else port

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
            EmbeddedServerError: It exited or did not answer in time; a note has its output. Or the
                port is not free, or the data directory is in use, or not for its user alone.
        """
        if not self._has_any_port:
            _check_port(self.port)
        if self._storage_path is not None:
            make_private(self._storage_path)
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
            if self._refused_data():
                break
            if left and self._storage_path is None and self._has_any_port:
                self.port = free_port()  # another process may have taken the port
        raise self._failure()

    def _output(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read()[-4000:].decode(errors="replace")

    def _refused_data(self) -> bool:
        return self._storage_path is not None and _DATA_ERROR in self._output()

    def _failure(self) -> EmbeddedServerError:
        output = self._output()
        last = (output.strip().splitlines() or ["it did not answer in time"])[-1]
        if not self._refused_data():
            why = f"SecantusDB did not start on port {self.port}: {last}"
        elif "already being managed" in output:
            why = f"The data directory {self._storage_path} is in use by another server."
        else:
            why = (
                f"The data directory {self._storage_path} cannot be used "
                f"({last.rpartition(': ')[2]}): pass an empty one."
            )
        error = EmbeddedServerError(why)
        error.add_note(output)
        return error

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

    def wait(self) -> None:
        """Waits until the process has ended."""
        if self._process is not None:
            self._process.wait()

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


def make_private(path: Path) -> None:
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


def _check_port(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise EmbeddedServerError(
            f"The port {port} of 127.0.0.1 cannot be used: {os.strerror(error.errno or 0)}."
        ) from error


def free_port() -> int:
    """Returns a port of the loopback interface that was just free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
