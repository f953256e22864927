"""The recording of a demonstration, and the verdict on it; pure, without I/O."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any, NamedTuple


class Seen(NamedTuple):
    """A chunk that a viewer received, and when that viewer's process began to watch."""

    chunk: dict[str, Any]
    received_at: float
    since: float

    @property
    def sequence(self) -> int:
        """The sequence of the chunk."""
        sequence: int = self.chunk["sequence"]
        return sequence


class StoredMessage(NamedTuple):
    """The message as it is read back, with each chunk."""

    status: str = "missing"
    content: str = ""
    chunks: Sequence[dict[str, Any]] = ()


@dataclass
class Viewer:
    """A viewer, which may be several processes; ``manner`` and ``state`` are for people."""

    name: str
    manner: str = "from the start"
    state: str = "waiting"
    since: float = math.inf
    seen: list[Seen] = field(default_factory=list)
    end: str | None = None


@dataclass
class Worker:
    """A worker; ``manner`` and ``state`` are for people."""

    name: str
    manner: str
    state: str = "waiting"
    gone: bool = False


@dataclass
class Recording:
    """Everything that happened; ``total`` is the number of chunks of the answer with ``text``.

    ``sent_at`` and ``sent_by`` are of the last try: a worker that is killed loses what it had not
    stored yet, and its successor writes that again.
    """

    text: str
    total: int
    viewers: list[Viewer]
    workers: list[Worker] = field(default_factory=list)
    sent_at: dict[int, float] = field(default_factory=dict)
    sent_by: dict[int, str] = field(default_factory=dict)
    finished: bool = False
    stored: StoredMessage = field(default_factory=StoredMessage)

    def verdict(self) -> dict[str, list[str]]:
        """Lists what is wrong with the stored message and with each viewer, by name."""
        status, content, chunks = self.stored
        checks = {
            "stored": {
                f"its status is {status}": status == "completed",
                f"it has {len(chunks)} chunks of {self.total}, or not in order": (
                    [chunk["sequence"] for chunk in chunks] == list(range(self.total))
                ),
                "its content differs from the input": content == self.text,
                "its joined chunks differ from the input": (
                    "".join(chunk["content"] for chunk in chunks) == self.text
                ),
            }
        }
        for viewer in self.viewers:
            seen = [each.chunk for each in viewer.seen]
            received = f"it received {len(seen)} chunks of {self.total}"
            checks[viewer.name] = {
                f"{received}, or not each once, in order and as stored": seen == chunks,
                f"its final event is {viewer.end}": viewer.end == "message.completed",
            }
        return {
            name: [problem for problem, passed in each.items() if not passed]
            for name, each in checks.items()
        }

    def latencies(self, viewer: Viewer) -> list[float]:
        """Returns p50 and p99 in milliseconds, of the chunks written while the viewer watched."""
        times = [
            (seen.received_at - self.sent_at[seen.sequence]) * 1000
            for seen in viewer.seen
            if self.sent_at.get(seen.sequence, -math.inf) >= seen.since
        ]
        percentiles = quantiles(times, n=100, method="inclusive") if len(times) > 1 else []
        return percentiles[49::49]

    def written(self, worker: Worker) -> int:
        """Counts the chunks of a worker."""
        return sum(name == worker.name for name in self.sent_by.values())

    def pause(self, worker: Worker) -> float | None:
        """Returns the time for which the first viewer saw nothing when another worker went on.

        It is from the last chunk of the worker to the next one, in milliseconds; ``None`` if there
        is none of either.
        """
        own = [sequence for sequence, name in self.sent_by.items() if name == worker.name]
        seen = {each.sequence: each.received_at for each in self.viewers[0].seen}
        last = max(own, default=-1)
        if last not in seen or last + 1 not in seen:
            return None
        return (seen[last + 1] - seen[last]) * 1000
