"""The server that benchmarks run on, always a process of its own, and the time that it computes."""

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pymongo import MongoClient

from converse_mongo.embedded import EmbeddedServer

__all__ = ["URI_VARIABLE", "Server", "open_server"]

URI_VARIABLE = "CONVERSE_TEST_URI"

EMBEDDED_OPTIONS = "?retryWrites=false"
"""SecantusDB 0.7 goes through its records of retryable writes, up to 10,000 of them, at each write:
one would measure how long the server has been running, and nothing else."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server with change streams.

    Attributes:
        uri: Where it is. It may hold a password: it goes into no output.
        kind: ``"embedded"`` or ``"given"``.
        version: What it says that it is.
        cpu_seconds: Seconds of processor time that its process has used so far, all threads and
            all clients together; ``None`` where that is not known.
    """

    uri: str
    kind: str
    version: str
    cpu_seconds: Callable[[], float | None]


@contextmanager
def open_server(uri: str | None) -> Iterator[Server]:
    """The server at ``uri``, else the one in ``CONVERSE_TEST_URI``, else a new embedded one.

    The embedded one keeps its data in memory, and is ended in every case.
    """
    given = uri or os.environ.get(URI_VARIABLE)
    if given:
        with MongoClient[dict[str, Any]](given, tz_aware=True) as client:
            yield Server(given, "given", _version(client), lambda: _reported_seconds(client))
        return
    with EmbeddedServer() as embedded:
        with MongoClient[dict[str, Any]](embedded.uri) as client:
            version = _version(client)
        clock = _process_clock(embedded.pid)
        yield Server(
            embedded.uri + EMBEDDED_OPTIONS,
            "embedded",
            version,
            lambda: None if clock is None else time.clock_gettime(clock),
        )


def _version(client: MongoClient[dict[str, Any]]) -> str:
    status = client.admin.command("serverStatus")
    if "secantus" in status:
        return f"SecantusDB {status['secantus']['version']}"
    return f"MongoDB {status['version']}"


def _reported_seconds(client: MongoClient[dict[str, Any]]) -> float | None:
    """What mongod itself says: https://www.mongodb.com/docs/manual/reference/command/serverStatus/.

    On a replica set it is that of the primary, on a sharded cluster that of a router.
    """
    extra = client.admin.command({"serverStatus": 1, "metrics": 0}).get("extra_info", {})
    if "user_time_us" not in extra:
        return None
    return float(extra["user_time_us"] + extra.get("system_time_us", 0)) / 1e6


def _process_clock(pid: int | None) -> int | None:
    """The clock of another process's processor time, in nanoseconds: clock_getcpuclockid(3)."""
    look_up = getattr(ctypes.CDLL(None), "clock_getcpuclockid", None)
    if look_up is None or pid is None:
        return None
    clock = ctypes.c_int()
    return clock.value if look_up(pid, ctypes.byref(clock)) == 0 else None
