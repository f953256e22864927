"""OpenTelemetry: metrics and spans of a facade.

It needs the extra ``otel``; no other part of the library imports it.
"""

import asyncio
import contextlib
import logging
import random
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextvars import Context as Variables
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import version
from time import monotonic
from typing import TypeVar

from opentelemetry.context import Context
from opentelemetry.metrics import (
    CallbackOptions,
    MeterProvider,
    Observation,
    get_meter_provider,
)
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    Span,
    SpanKind,
    StatusCode,
    TracerProvider,
    get_current_span,
    get_tracer_provider,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pymongo.errors import PyMongoError

from converse_mongo.domain.errors import ConverseError
from converse_mongo.domain.events import FinalEvent
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.telemetry import Sources
from converse_mongo.domain.work import WorkState
from converse_mongo.store.queues import QueueStatistics
from converse_mongo.working.attempt import Outcome

__all__ = ["OpenTelemetry"]

logger = logging.getLogger("converse_mongo")

T = TypeVar("T")

SYSTEM = "converse_mongo"
"""The value of ``messaging.system``: the library itself is the queue."""

SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 300.0, 900.0),
)
"""The bounds of the buckets of histograms, unless a view of the SDK has others."""

_W3C, _TRACEPARENT = TraceContextTextMapPropagator(), "traceparent"

QUERY_SECONDS = 1.0
"""The least time between two queries for the gauges of queues, whatever asks for them."""

ALL_A_SECOND, LARGEST_STRIDE = 512, 64
"""Values in a second of which all are recorded, and the most of which then only one is."""


class OpenTelemetry:
    """Gives the metrics and spans of facades to OpenTelemetry.

    Pass it to ``Converse(..., telemetry=OpenTelemetry())``; several facades may share one. Set up
    the SDK and its exporters yourself: without them it does nothing.

    Args:
        meter_provider: Where metrics go; by default the global provider.
        tracer_provider: Where spans go; by default the global provider.
        queues: ``False`` to query no queues. Their gauges have the same values in all processes: it
            is enough if some report them.
    """

    def __init__(
        self,
        *,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
        queues: bool = True,
    ) -> None:
        release = version("converse-mongo")
        meter = (meter_provider or get_meter_provider()).get_meter(SYSTEM, release)
        self.tracer = (tracer_provider or get_tracer_provider()).get_tracer(SYSTEM, release)
        self._queues = queues
        self._probes: tuple[FacadeProbe, ...] = ()

        def histogram(name: str, description: str) -> Callable[..., None]:
            return meter.create_histogram(
                name, "s", description, explicit_bucket_boundaries_advisory=SECONDS
            ).record

        self.store_duration = histogram(
            "converse_mongo.token.store_duration",
            "From handing the first token of a chunk to a writer until its append was acknowledged",
        )
        self.delivery_duration = histogram(
            "converse_mongo.chunk.delivery_duration",
            "From making a chunk in the writer's process until a watcher yielded it",
        )
        self.process_duration = histogram(
            "messaging.process.duration", "Duration of attempts of workers"
        )
        self.leases_lost = meter.create_counter(
            "converse_mongo.lease.lost", "{lease}", "Writers and attempts that another one replaced"
        ).add
        self.messages_ended = meter.create_counter(
            "converse_mongo.message.ended", "{message}", "Messages that calls of this process ended"
        ).add
        self.messages_claimed = meter.create_counter(
            "converse_mongo.message.claimed", "{message}", "Messages that workers claimed"
        ).add
        self.attempts_ended = meter.create_counter(
            "converse_mongo.attempt.ended", "{attempt}", "Attempts of workers, by their outcome"
        ).add
        self.attempts_active = meter.create_up_down_counter(
            "converse_mongo.attempt.active", "{attempt}", "Attempts that run"
        ).add
        meter.create_observable_gauge(
            "converse_mongo.watcher.active",
            [lambda _: self._watching("watchers")],
            *("{watcher}", "Attached watchers"),
        )
        meter.create_observable_gauge(
            "converse_mongo.topic.active",
            [lambda _: self._watching("topics")],
            *("{topic}", "Messages, conversations and owners that are watched"),
        )
        meter.create_observable_counter(
            "converse_mongo.change_stream.opened",
            [lambda _: self._watching("streams_opened")],
            *("{stream}", "Change streams opened, one at a time"),
        )
        if queues:
            meter.create_observable_gauge(
                "converse_mongo.queue.depth",
                [self._depths],
                *("{message}", "Messages of a queue, by what they wait for"),
            )
            meter.create_observable_gauge(
                "converse_mongo.queue.age",
                [self._ages],
                *("s", "Time for which the first message that is due has waited for a worker"),
            )

    def attach(self, sources: Sources) -> "FacadeProbe":
        """Called by a facade that is being opened."""
        probe = FacadeProbe(self, sources)
        self._probes = (*self._probes, probe)
        if self._queues:
            probe.refresh()
        return probe

    def detach(self, probe: "FacadeProbe") -> None:
        """Called by a facade that is being closed."""
        self._probes = tuple(each for each in self._probes if each is not probe)

    # The callbacks run in whatever thread collects.

    def _watching(self, name: str) -> Iterable[Observation]:
        for probe in self._probes:
            yield Observation(getattr(probe.sources.watching(), name), probe.attributes)

    def _depths(self, _: CallbackOptions) -> Iterable[Observation]:
        for probe in self._probes:
            probe.ask()
            for queue, found in probe.queues.items():
                for state in WorkState:
                    yield Observation(
                        found.counts.get(state, 0),
                        {**probe.of_queue(queue), "converse_mongo.work.state": state.value},
                    )

    def _ages(self, _: CallbackOptions) -> Iterable[Observation]:
        for probe in self._probes:
            probe.ask()
            for queue, found in probe.queues.items():
                yield Observation(found.oldest or 0.0, probe.of_queue(queue))


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    """Logs an error of the block: the SDK raises those of the application's processors."""
    try:
        yield
    except Exception:
        logger.exception("A span of an attempt could not be recorded")


def _links_to(trace: str | None) -> list[Link]:
    """Returns a link to the span that a ``traceparent`` names, if it names one."""
    if trace is None:
        return []
    asked = get_current_span(_W3C.extract({_TRACEPARENT: trace}, Context())).get_span_context()
    return [Link(asked)] if asked.is_valid else []


class Sampler:
    """Chooses the values to record: all of few, and some of many, at random.

    The SDK takes some microseconds for a value, ten times what a watcher takes for a chunk.
    """

    def __init__(self) -> None:
        self._second = self._taken = self._left = 0
        self._stride = 1

    def take(self) -> bool:
        """Returns whether to record the next value."""
        if self._left:
            self._left -= 1
            return False
        second = int(monotonic())
        if second != self._second:
            self._stride = max(self._stride >> min(second - self._second, 8), 1)
            self._second, self._taken = second, 0
        self._taken += 1
        if self._taken > ALL_A_SECOND and self._stride < LARGEST_STRIDE:
            self._stride, self._taken = self._stride * 2, 0
        # At random: in a fixed stride it might always be the same watcher's turn.
        self._left = int(random.random() * (2 * self._stride - 1))
        return True


class FacadeProbe:
    """Is told what happens in one open facade; see :class:`converse_mongo.domain.telemetry.Probe`.

    A collection of metrics runs in a thread of its own, or in the loop, and must not wait for
    either: it takes the numbers of the queues that were read behind the collection before it, and
    has them read again. So there is one query for each collection, and none without one.

    Attributes:
        sources: The numbers of the facade.
        attributes: The attributes of its metrics.
        queues: The queues as they were last read; empty if that failed.
    """

    def __init__(self, telemetry: OpenTelemetry, sources: Sources) -> None:
        self.sources = sources
        self.attributes: Mapping[str, str] = {"db.namespace": sources.database}
        self.queues: Mapping[str, QueueStatistics] = {}
        self._telemetry = telemetry
        self._loop = weakref.ref(asyncio.get_running_loop())
        self._reading: asyncio.Task[None] | None = None
        self._read_at = -QUERY_SECONDS
        self._closed = False
        self._chunks, self._deliveries = Sampler(), Sampler()

    def of_queue(self, queue: str) -> dict[str, str]:
        """The attributes of metrics of a queue."""
        return {**self.attributes, "messaging.destination.name": queue}

    # What happens

    def stored(self, since: Iterable[float]) -> None:
        """Chunks of a writer were acknowledged."""
        now, take = monotonic(), self._chunks.take
        for each in since:
            if take():
                self._telemetry.store_duration(now - each, self.attributes)

    def delivered(self, created_at: datetime) -> None:
        """A watcher yielded a chunk."""
        if self._deliveries.take():
            seconds = (datetime.now(UTC) - created_at).total_seconds()
            self._telemetry.delivery_duration(max(seconds, 0.0), self.attributes)

    def lease_lost(self) -> None:
        """A writer or an attempt found that its message has another one."""
        self._telemetry.leases_lost(1, self.attributes)

    def ended(self, event: FinalEvent) -> None:
        """A message ended."""
        status = {"converse_mongo.message.status": event.type.removeprefix("message.")}
        self._telemetry.messages_ended(1, {**self.attributes, **status})

    def trace(self) -> str | None:
        """Returns the ``traceparent`` of the caller's span; ``None`` outside of one."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get(_TRACEPARENT)

    async def attempt(
        self,
        state: MessageHeader,
        run: Callable[[], Awaitable[T]],
        trouble: Callable[[], BaseException | None],
    ) -> T:
        """Runs an attempt in a span of its own, which begins a trace.

        A worker runs for long: whatever span it was started in is no parent of what it does. The
        span in which the message was queued is linked, as the conventions for messaging have it.
        """
        assert state.work is not None  # noqa: S101 - it was claimed
        telemetry, queue = self._telemetry, state.work.queue
        of_queue = self.of_queue(queue)
        operation = {
            "messaging.system": SYSTEM,
            "messaging.operation.name": "process",
            **of_queue,
        }
        telemetry.messages_claimed(1, of_queue)
        telemetry.attempts_active(1, of_queue)
        span: Span = INVALID_SPAN
        with _harmless():
            span = telemetry.tracer.start_span(
                f"process {queue}",
                Context(),
                SpanKind.CONSUMER,
                {
                    **operation,
                    "messaging.operation.type": "process",
                    "messaging.message.id": str(state.message_id),
                    "gen_ai.conversation.id": str(state.conversation_id),
                    "converse_mongo.attempt.number": state.work.attempt,
                },
                _links_to(state.work.trace),
            )
        begun, outcome = monotonic(), "crashed"
        failure: dict[str, str] = {}
        try:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                found = await run()
            outcome = found.value if isinstance(found, Enum) else str(found)
            return found
        except asyncio.CancelledError:
            outcome = str(Outcome.HANDED_OVER.value)
            raise
        finally:
            error = trouble()
            if error is not None:
                failure["error.type"] = type(error).__qualname__
            with _harmless():
                if error is not None:
                    span.record_exception(error)
                    span.set_status(StatusCode.ERROR, str(error))
                span.set_attributes({**failure, "converse_mongo.attempt.outcome": outcome})
                span.end()
            telemetry.attempts_active(-1, of_queue)
            telemetry.attempts_ended(1, {**of_queue, "converse_mongo.attempt.outcome": outcome})
            telemetry.process_duration(monotonic() - begun, {**operation, **failure})

    # Queues

    def ask(self) -> None:
        """Has the queues read for the next collection; in any thread."""
        loop = self._loop()
        if loop is None or self._closed:
            return
        try:
            loop.call_soon_threadsafe(self.refresh)
        except RuntimeError:  # it was closed meanwhile
            self.queues = {}

    def refresh(self) -> None:
        """Begins to read the queues, unless that happens just now; in the loop."""
        busy = self._reading is not None and not self._reading.done()
        if not (busy or self._closed) and monotonic() - self._read_at >= QUERY_SECONDS:
            self._read_at = monotonic()
            self._reading = asyncio.create_task(
                self._read(), name="converse_mongo-telemetry", context=Variables()
            )

    async def _read(self) -> None:
        try:
            self.queues = await self.sources.queues()
        except (ConverseError, PyMongoError) as error:
            self.queues = {}  # a gap in the metrics says more than an old number
            logger.debug("The queues could not be read for telemetry (%s)", error)

    def close(self) -> None:
        """The facade is being closed."""
        self._closed = True
        self._telemetry.detach(self)
        if self._reading is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._reading.cancel()
