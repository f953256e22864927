"""What the child processes tell the parent: one JSON line each on standard output.

Moments are ``time.time()``: all processes run on one machine, so their clocks are one clock.
"""

import json
import sys
from dataclasses import asdict, dataclass
from typing import TypeAlias

__all__ = [
    "Appended",
    "Broken",
    "Ended",
    "Finished",
    "Report",
    "Seen",
    "Started",
    "Watching",
    "parse_report",
    "tell",
]


@dataclass(frozen=True, slots=True)
class Started:
    """The writer started the message, and waits for the text."""

    conversation_id: str
    message_id: str


@dataclass(frozen=True, slots=True)
class Appended:
    """The writer stored a chunk; ``sent_at`` is the moment before it called ``append_chunk``."""

    sequence: int
    sent_at: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The writer completed the message."""

    chunks: int


@dataclass(frozen=True, slots=True)
class Watching:
    """A viewer begins to watch; ``mode`` says how it learns of news."""

    since: float
    mode: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A viewer received a chunk."""

    sequence: int
    content: str
    received_at: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A viewer received the final event; ``error`` is set if the message failed."""

    chunks: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Broken:
    """A child gave up."""

    error: str


Report: TypeAlias = Started | Appended | Finished | Watching | Seen | Ended | Broken

_KINDS: dict[str, type[Report]] = {
    kind.__name__.lower(): kind
    for kind in (Started, Appended, Finished, Watching, Seen, Ended, Broken)
}


def tell(report: Report) -> None:
    """Writes ``report`` to standard output at once.

    Raises:
        BrokenPipeError: The parent is gone.
    """
    line = json.dumps({"report": type(report).__name__.lower(), **asdict(report)})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def parse_report(line: bytes) -> Report | None:
    """The report in ``line``; ``None`` for a line that its writer did not live to finish.

    Raises:
        ValueError: A whole line that is no report.
    """
    if not line.endswith(b"\n"):
        return None
    try:
        fields = json.loads(line)
        return _KINDS[fields.pop("report")](**fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{line!r} is no report") from error
