"""Meters: commands, bytes and times of a piece of work, and the memory of a process."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Self

import bson
from pymongo import monitoring

from benchmarks.figures import Figure, compare
from benchmarks.servers import Server

__all__ = [
    *("TIMES", "TRAFFIC", "Cost", "Memory", "Meter", "Traffic"),
    *("compare_costs", "forget_peak", "memory"),
]

TRAFFIC = {
    "commands": ("", "commands", 1.0),
    "bytes sent": ("bytes", "sent", 1.0),
    "bytes received": ("bytes", "received", 1.0),
}
TIMES = {
    "server time": ("µs", "server_seconds", 1e6),
    "client time": ("µs", "client_seconds", 1e6),
    "time": ("µs", "seconds", 1e6),
}


class Traffic(monitoring.CommandListener):
    """Keeps the commands of a client, and the replies, while it is told to.

    Their size is reckoned later, so that no measured time has it in. It is that of the BSON; on the
    wire each command has some 17 bytes more, counted at the socket.
    """

    def __init__(self) -> None:
        self.listening = False
        self._sent: list[Any] = []
        self._received: list[Any] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Keeps the command."""
        if self.listening:
            self._sent.append(event.command)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Keeps the reply."""
        if self.listening:
            self._received.append(event.reply)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Keeps the reply."""
        if self.listening:
            self._received.append(event.failure)

    def take(self) -> tuple[int, int, int]:
        """How many commands were kept, and the bytes sent and received; forgets them."""
        sent, self._sent = self._sent, []
        received, self._received = self._received, []
        return (
            len(sent),
            sum(len(bson.encode(command)) for command in sent),
            sum(len(bson.encode(reply)) for reply in received),
        )


@dataclass(slots=True)
class Cost:
    """What some work took, in all; ``server_seconds`` is ``None`` where it is not known.

    Attributes:
        commands: Commands that the client sent.
        sent: Bytes of them.
        received: Bytes of the replies.
        seconds: Time that passed.
        server_seconds: Processor time of the server's process.
        client_seconds: Processor time of this process.
    """

    commands: float = 0
    sent: float = 0
    received: float = 0
    seconds: float = 0.0
    server_seconds: float | None = 0.0
    client_seconds: float = 0.0

    def __iadd__(self, other: Self) -> Self:
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            unknown = mine is None or theirs is None
            setattr(self, field.name, None if unknown else mine + theirs)
        return self


class Meter:
    """Measures work that a client does, ``traffic`` being one of its listeners."""

    def __init__(self, server: Server, traffic: Traffic) -> None:
        self._server = server
        self._traffic = traffic
        self._asking = self._cost_of_asking()

    def _cost_of_asking(self) -> float:
        """Seconds that the server takes to say how long it has computed."""
        answers = [self._server.cpu_seconds() or 0.0 for _ in range(6)]
        return median(until - since for since, until in pairwise(answers))

    @contextmanager
    def measure(self, cost: Cost) -> Iterator[None]:
        """Adds what the block takes to ``cost``."""
        self._traffic.listening = True
        server = self._server.cpu_seconds()
        client, start = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            seconds, client = time.perf_counter() - start, time.process_time() - client
            until = self._server.cpu_seconds()
            self._traffic.listening = False
        used = None if server is None or until is None else until - server - self._asking
        cost += Cost(
            *self._traffic.take(),
            seconds=seconds,
            server_seconds=used,
            client_seconds=client,
        )


def compare_costs(
    rounds: Sequence[Mapping[str, Cost]],
    counts: Mapping[str, int],
    *,
    of: str,
    against: str,
    quantities: Mapping[str, tuple[str, str, float]] = TIMES,
    targets: Mapping[str, float] | None = None,
) -> list[Figure]:
    """The figures of two ways to do something, in each quantity that is known.

    Args:
        rounds: The costs of each round, by way.
        counts: How often a way did it in a round.
        of: Whose figures they are.
        against: What it is compared with.
        quantities: Unit, attribute of the cost and factor, by name.
        targets: The most that the ratio is meant to be, by name of the quantity.
    """
    found = []
    for name, (unit, attribute, factor) in quantities.items():
        if any(getattr(costs[way], attribute) is None for costs in rounds for way in (of, against)):
            continue  # the server does not tell
        series = {
            way: [getattr(costs[way], attribute) * factor / counts[way] for costs in rounds]
            for way in (of, against)
        }
        target = (targets or {}).get(name)
        found.append(compare(name, unit, series, of=of, against=against, target=target))
    return found


@dataclass(frozen=True, slots=True)
class Memory:
    """The resident memory of this process in bytes, now and at the most."""

    resident: int
    peak: int


def memory() -> Memory:
    """The memory of this process, which Linux tells in ``/proc/self/status``: proc(5)."""
    lines = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines()
    )
    resident, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return Memory(resident, peak)


def forget_peak() -> None:
    """Lets the peak begin again at what is resident now, where the system allows that: proc(5)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")
