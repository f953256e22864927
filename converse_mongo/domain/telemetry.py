"""Telemetry: what the library tells somebody who measures it, without knowing who that is.

:mod:`converse_mongo.telemetry` tells OpenTelemetry. Without a probe, each place that would tell
something checks one attribute.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar, runtime_checkable

from converse_mongo.domain.events import FinalEvent
from converse_mongo.domain.headers import MessageHeader

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sources:
    """The numbers of an open facade.

    Attributes:
        database: The name of its database.
        queues: Reads what ``Converse.queue_statistics`` returns; only in the loop of the facade.
        watching: Returns what ``Converse.statistics`` returns; in any thread.
    """

    database: str
    queues: Callable[[], Awaitable[Mapping[str, Any]]]
    watching: Callable[[], Any]


class Probe(Protocol):
    """Is told what happens in an open facade. None of its methods blocks or raises."""

    def stored(self, since: Iterable[float]) -> None:
        """Chunks of a writer were acknowledged.

        Args:
            since: When their first tokens were handed to the writer, by the monotonic clock.
        """

    def delivered(self, created_at: datetime) -> None:
        """A watcher yielded a chunk that was made at this date."""

    def lease_lost(self) -> None:
        """A writer or an attempt found that its message has another one."""

    def ended(self, event: FinalEvent) -> None:
        """A call of this process ended a message."""

    def trace(self) -> str | None:
        """Returns what names the caller's trace, for the work of a message that it queues.

        Returns:
            A ``traceparent`` of W3C Trace Context; ``None`` outside of a trace.
        """

    async def attempt(
        self,
        state: MessageHeader,
        run: Callable[[], Awaitable[T]],
        trouble: Callable[[], BaseException | None],
    ) -> T:
        """Runs an attempt of a worker, which has just claimed the message.

        Args:
            state: The message as it was claimed.
            run: Runs it, and returns an outcome: an enumeration's member.
            trouble: Returns the error with which the application ended, behind ``run``.
        """

    def close(self) -> None:
        """The facade is being closed."""


@runtime_checkable
class Telemetry(Protocol):
    """Makes a probe for each open facade."""

    def attach(self, sources: Sources) -> Probe:
        """Returns the probe of a facade that is being opened; called in its loop."""
