"""The child processes of a demonstration, which tell what they do in reports."""

from collections.abc import AsyncIterator
from typing import TypeVar

from converse_mongo.domain.errors import ConverseError
from converse_mongo.tools.demo.processes import Process, Processes
from converse_mongo.tools.demo.programs import URI_VARIABLE
from converse_mongo.tools.demo.reports import Broken, Report, parse_report

__all__ = ["Child", "Children", "DemoError"]

R = TypeVar("R", bound=Report)


class DemoError(ConverseError):
    """The demonstration broke off."""


class Child(Process):
    """A process that tells what it does in :mod:`reports <converse_mongo.tools.demo.reports>`."""

    error = DemoError

    async def reports(self) -> AsyncIterator[Report]:
        """Yields what it reports until it has no more to say.

        Raises:
            DemoError: It reported an error, wrote something else, or was silent for too long.
        """
        while (report := await self._next()) is not None:
            yield report

    async def first(self, kind: type[R]) -> R:
        """Its next report, which has to be of ``kind``.

        Raises:
            DemoError: It was not.
        """
        report = await self._next()
        if isinstance(report, kind):
            return report
        raise self.failure(f"said {report} instead of {kind.__name__}")

    async def _next(self) -> Report | None:
        try:
            report = parse_report(await self.read_line())
        except ValueError as error:
            raise self.failure(str(error)) from error
        if isinstance(report, Broken):
            raise self.failure(f"gave up: {report.error}")
        return report


class Children(Processes[Child]):
    """All child processes of one demonstration: leaving it ends those that still run.

    Args:
        uri: The server they are to use.
        patience: For how many seconds one may be silent.
    """

    def __init__(self, uri: str, patience: float) -> None:
        super().__init__(Child, {URI_VARIABLE: uri}, patience)
