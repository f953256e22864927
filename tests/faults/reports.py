"""What is said of a run that failed."""

import sys
import time
import traceback
from pathlib import Path

from converse_mongo.driver.installed import driver_name

__all__ = ["RETRY_SECONDS", "Notes", "ScheduleFailedError"]

RETRY_SECONDS = 8.0
"""For how long a child tries a call again: longer than any one fault lasts."""
LOG_LINES = 25


class ScheduleFailedError(AssertionError):
    """A promise was broken."""


class Notes:
    """What happened in a run, with its times."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._lines: list[str] = []

    def note(self, what: str) -> None:
        """Keeps a line for the report of a failure."""
        self._lines.append(f"{time.monotonic() - self._started:7.3f} {what}")

    def report(self, error: Exception, what: str, again: str, logs: Path, details: str = "") -> str:
        """All that helps to find out what went wrong.

        Args:
            error: What went wrong.
            what: The schedule in short.
            again: The arguments that run it again.
            logs: The folder with the logs of its processes.
            details: The schedule at length.
        """
        lines = [
            f"The schedule failed with {driver_name()}: {what}",
            *_leaves(error),
            f"Again: {sys.executable} -m tests.faults {again}",
            *([details] if details else []),
            *self._lines,
        ]
        for log in sorted(logs.iterdir()):
            text = log.read_text(errors="replace")
            lines += [f"--- {log.stem}", *text.splitlines()[-LOG_LINES:]]
        return "\n".join(lines)


def _leaves(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [line for each in error.exceptions for line in _leaves(each)]
    if isinstance(error, AssertionError):
        return [str(error)]
    return traceback.format_exception(error)
