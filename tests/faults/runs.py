"""What all runs of schedules share: their logs, their facades, and what is said of a failure."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar

from tests.faults.reports import Notes, ScheduleFailedError

__all__ = ["RUNNER_OPTIONS", "child_options", "reported"]

O_co = TypeVar("O_co", covariant=True)

RUNNER_OPTIONS = {
    "appname": "runner",
    "serverSelectionTimeoutMS": 2000,
    "socketTimeoutMS": 3000,
    "heartbeatFrequencyMS": 500,
}
"""The options of the client of the runner itself."""


def child_options(appname: str, socket_timeout: float, *, retry_writes: bool) -> dict[str, Any]:
    """Returns the options of the client of a child process."""
    return {
        "appname": appname,
        "serverSelectionTimeoutMS": 1000,
        "connectTimeoutMS": 1000,
        "socketTimeoutMS": int(socket_timeout * 1000),
        "heartbeatFrequencyMS": 500,
        "retryWrites": retry_writes,
    }


class AnyRun(Protocol[O_co]):
    """A run of a schedule."""

    notes: Notes

    async def run(self) -> O_co:
        """Runs it."""


async def reported(
    make: Callable[[Path], AnyRun[O_co]], what: str, again: str, details: str = ""
) -> O_co:
    """Runs a schedule.

    Args:
        make: Makes the run, with the folder of its logs.
        what: The schedule in short.
        again: The arguments that run it again.
        details: The schedule at length.

    Raises:
        ScheduleFailedError: A promise was broken; says which, and how to do it again.
    """
    with TemporaryDirectory(prefix="converse_faults_logs_") as logs:
        run = make(Path(logs))
        try:
            return await run.run()
        except Exception as error:
            text = run.notes.report(error, what, again, Path(logs), details)
            raise ScheduleFailedError(text) from error
