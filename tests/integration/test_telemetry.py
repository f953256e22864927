"""Telemetry: what the metrics and spans of OpenTelemetry say about what has happened."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from bson import ObjectId
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from converse_mongo import (
    ChunkReceived,
    ConfigurationError,
    Conversation,
    Converse,
    Message,
    Retry,
    RetryPolicy,
    StoreUnavailableError,
    WriterFencedError,
)
from converse_mongo import telemetry as module
from converse_mongo.domain.telemetry import Sources
from converse_mongo.telemetry import ALL_A_SECOND, LARGEST_STRIDE, OpenTelemetry, Sampler
from converse_mongo.web import Generations
from converse_mongo.writing.buffer import TokenBuffer
from tests.conftest import Commands, Facade
from tests.integration.helpers import DEAD, soon, start
from tests.integration.test_workers import QUEUE, Held, ended, enqueue, say_hello, working
from tests.streams import until

STORE = "converse_mongo.token.store_duration"
DELIVERY = "converse_mongo.chunk.delivery_duration"
DEPTH, AGE = "converse_mongo.queue.depth", "converse_mongo.queue.age"
COMMANDS = 3
"""What ``Converse.queue_statistics`` sends, beside the question for the time."""
OUTCOME = "converse_mongo.attempt.outcome"


class Measured:
    """An SDK that keeps everything in memory."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._exporter = InMemorySpanExporter()
        self.meters = MeterProvider([self._reader])
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.tracers.get_tracer("application")
        self.telemetry = OpenTelemetry(meter_provider=self.meters, tracer_provider=self.tracers)

    def collect(self) -> dict[str, Any]:
        data = self._reader.get_metrics_data()
        return {
            metric.name: metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str) -> list[Any]:
        metric = self.collect().get(name)
        return [] if metric is None else list(metric.data.data_points)

    def count(self, name: str) -> int:
        return sum(point.count for point in self.points(name))

    def values(self, name: str, attribute: str) -> dict[Any, Any]:
        return {point.attributes[attribute]: point.value for point in self.points(name)}

    def total(self, name: str) -> Any:
        return sum(point.value for point in self.points(name))

    def spans(self, start: str = "") -> list[ReadableSpan]:
        found = self._exporter.get_finished_spans()
        return [span for span in found if span.name.startswith(start)]


@pytest.fixture
def measured() -> Iterator[Measured]:
    measured = Measured()
    yield measured
    measured.meters.shutdown()
    measured.tracers.shutdown()


@pytest.fixture
def without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets queues be read as often as a test collects."""
    monkeypatch.setattr(module, "QUERY_SECONDS", 0.0)


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    assert span.attributes is not None
    return span.attributes


# Tokens and chunks


async def test_store_duration__is_recorded_for_each_chunk(
    facade: Facade, measured: Measured
) -> None:
    converse = await facade(telemetry=measured.telemetry)
    message = await start(converse)
    async with message.writer(granularity="token") as writer:
        for token in ("a", "b", "c"):
            await writer.write(token)
        await writer.write_reasoning("d")
    chunks = writer.statistics().chunks
    assert chunks > 3
    assert measured.count(STORE) == chunks
    (point,) = measured.points(STORE)
    assert point.attributes == {"db.namespace": converse.database_name}
    assert 0 < point.min <= point.max < 60
    assert measured.collect()[STORE].unit == "s"
    assert point.explicit_bounds[0] < 0.01


async def test_store_duration__counts_the_wait_for_room() -> None:
    buffer = TokenBuffer(10, lambda: None, merges=False)
    assert buffer.add("1234567890", 10)
    buffer.take()
    waiting = asyncio.create_task(buffer.put("next", 4, {}, b"", lambda: None))
    await until(lambda: buffer.waits == 1)
    await asyncio.sleep(0)
    (in_flight,) = buffer.in_flight
    freed = asyncio.get_running_loop().time()  # of the monotonic clock, too
    assert in_flight.since < freed
    buffer.confirm()
    await soon(waiting)
    buffer.take()
    (late,) = buffer.in_flight
    assert late.since <= freed


async def test_delivery_duration__counts_what_was_made_since_a_watcher_is_attached(
    facade: Facade, measured: Measured
) -> None:
    converse = await facade(telemetry=measured.telemetry)
    message = await start(converse)
    await message.append_chunk("before")
    await asyncio.sleep(0.002)  # dates have whole milliseconds
    async with converse.watch_message(message.id) as events:
        assert isinstance(await anext(events), ChunkReceived)
        assert not measured.points(DELIVERY)
        await asyncio.sleep(0.002)
        await message.append_chunk("live")
        assert isinstance(await anext(events), ChunkReceived)
        await message.complete_streaming()
        assert [event.type async for event in events] == ["message.completed"]
    (point,) = measured.points(DELIVERY)
    assert point.count == 1
    assert 0 <= point.sum < 60


def test_sampler__records_all_of_few_and_some_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    sampler = Sampler()
    for _ in range(3):
        assert all(sampler.take() for _ in range(ALL_A_SECOND))
        now += 1
    taken = [number for number in range(100_000) if sampler.take()]
    assert ALL_A_SECOND < len(taken) < 12 * ALL_A_SECOND
    assert taken[-1] > 99_000
    now += 60
    late = [sampler.take() for _ in range(3 * LARGEST_STRIDE)]
    assert all(late[2 * LARGEST_STRIDE :])


async def test_ended_messages__are_counted_by_status(facade: Facade, measured: Measured) -> None:
    converse = await facade(telemetry=measured.telemetry)
    await (await start(converse)).complete_streaming()
    await (await start(converse)).fail_streaming("no")
    await (await start(converse)).fail_streaming("no")
    await (await start(converse)).cancel_streaming()
    assert measured.values("converse_mongo.message.ended", "converse_mongo.message.status") == {
        "completed": 1,
        "failed": 2,
        "cancelled": 1,
    }


async def test_lost_leases__are_counted_in_writing_and_in_ending(
    facade: Facade, measured: Measured
) -> None:
    converse = await facade(telemetry=measured.telemetry)
    message = await start(converse)
    with pytest.raises(WriterFencedError):
        async with message.writer() as writer:
            await writer.write("one")
            await writer.flush()
            async with (await converse.get_message(message.id)).resume_writer() as other:
                await other.detach()
            await writer.write("two")
            await writer.flush()
    assert measured.total("converse_mongo.lease.lost") == 1

    message = await start(converse)
    first = message.writer()
    await first.__aenter__()
    await first._appender.drain()
    async with (await converse.get_message(message.id)).resume_writer() as other:
        await other.detach()
    with pytest.raises(WriterFencedError):
        await first.__aexit__(None, None, None)
    assert measured.total("converse_mongo.lease.lost") == 2


async def test_lost_lease__of_an_attempt_without_a_writer_is_counted(
    facade: Facade, measured: Measured
) -> None:
    converse = await facade(**{**DEAD, "telemetry": measured.telemetry})
    begun = asyncio.Event()

    async def respond(_: Conversation, message: Message) -> None:
        begun.set()
        await asyncio.Event().wait()

    message = await enqueue(converse)
    async with working(converse, respond) as worker:
        await soon(begun.wait())
        messages = converse.message_model.store().messages
        other = {"lease.epoch": 99, "lease.holder": ObjectId()}
        await messages.update_one({"_id": message.id}, {"$set": other})
        await until(lambda: worker.statistics().lost == 1)
    assert measured.total("converse_mongo.lease.lost") == 1
    (span,) = measured.spans("process ")
    assert attributes_of(span)[OUTCOME] == "lost"
    assert span.status.status_code is trace.StatusCode.UNSET


# Attempts


async def test_attempt__is_a_span_with_its_outcome_and_its_error(
    facade: Facade, measured: Measured
) -> None:
    async def respond(conversation: Conversation, message: Message) -> None:
        if message.attempt == 1:
            raise ConnectionError("The model is overloaded.")
        await say_hello(conversation, message)

    converse = await facade(telemetry=measured.telemetry)
    message = await enqueue(converse)
    retry = RetryPolicy(max=1, retry_on=(ConnectionError,), backoff=0)
    async with working(converse, respond, retry=retry) as worker:
        await ended(converse, message)
        await until(lambda: worker.statistics().running == 0)
    first, second = measured.spans("process ")
    assert {first.name, second.name} == {f"process {QUEUE}"}
    assert first.kind is trace.SpanKind.CONSUMER
    assert attributes_of(first) == {
        "messaging.system": "converse_mongo",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": QUEUE,
        "messaging.message.id": str(message.id),
        "gen_ai.conversation.id": str(message.conversation_id),
        "db.namespace": converse.database_name,
        "converse_mongo.attempt.number": 1,
        OUTCOME: "retried",
        "error.type": "ConnectionError",
    }
    assert first.status.status_code is trace.StatusCode.ERROR
    (event,) = first.events
    assert event.name == "exception"
    assert attributes_of(second)["converse_mongo.attempt.number"] == 2
    assert attributes_of(second)[OUTCOME] == "ended"
    assert second.status.status_code is trace.StatusCode.UNSET
    assert not second.events

    assert measured.total("converse_mongo.message.claimed") == 2
    assert measured.total("converse_mongo.attempt.active") == 0
    assert measured.values("converse_mongo.attempt.ended", OUTCOME) == {"retried": 1, "ended": 1}
    durations = measured.points("messaging.process.duration")
    assert sorted(str(each.attributes.get("error.type")) for each in durations) == [
        "ConnectionError",
        "None",
    ]


async def test_attempt__that_is_handed_over_has_no_error(
    facade: Facade, measured: Measured
) -> None:
    converse = await facade(telemetry=measured.telemetry)
    held = Held()
    await enqueue(converse)
    async with working(converse, held):
        await until(lambda: bool(held.begun))
        assert measured.total("converse_mongo.attempt.active") == 1
    (span,) = measured.spans("process ")
    assert attributes_of(span)[OUTCOME] == "handed over"
    assert span.status.status_code is trace.StatusCode.UNSET
    assert measured.values("converse_mongo.attempt.ended", OUTCOME) == {"handed over": 1}


async def test_attempt__that_takes_too_long_has_an_error(
    facade: Facade, measured: Measured
) -> None:
    converse = await facade(telemetry=measured.telemetry)
    message = await enqueue(converse)
    async with working(converse, Held(), timeout=0.1, retry=RetryPolicy(max=0)) as worker:
        await ended(converse, message)
        await until(lambda: worker.statistics().running == 0)
    (span,) = measured.spans("process ")
    assert attributes_of(span)["error.type"] == "TimeoutError"
    assert span.status.description == "it took too long"


@pytest.mark.parametrize("kind", ["coroutine", "generator", "thread"])
async def test_attempt__is_the_parent_of_spans_of_respond(
    facade: Facade, measured: Measured, kind: str
) -> None:
    def ask() -> str:
        with measured.tracer.start_as_current_span("chat example"):
            return "Hello."

    async def coroutine(_: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            await writer.write(ask())

    async def generator(_: Conversation, __: Message) -> AsyncIterator[str]:
        yield ask()

    def thread(_: Conversation, __: Message) -> Iterator[str]:
        yield ask()

    responds = {"coroutine": coroutine, "generator": generator, "thread": thread}
    converse = await facade(telemetry=measured.telemetry)
    message = await enqueue(converse)
    with measured.tracer.start_as_current_span("the start of the process"):
        async with working(converse, responds[kind]) as worker:
            await ended(converse, message)
            await until(lambda: worker.statistics().running == 0)
    (asked,), (attempt,) = measured.spans("chat"), measured.spans("process ")
    assert asked.parent is not None
    assert asked.parent.span_id == attempt.context.span_id
    assert attempt.parent is None, "a worker runs for long: its attempts are traces of their own"


@pytest.mark.parametrize("method", ["on_start", "on_end"])
async def test_attempt__is_made_though_a_processor_of_spans_raises(
    facade: Facade,
    measured: Measured,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise LookupError("no such baggage")

    processor = SpanProcessor()
    monkeypatch.setattr(processor, method, fail)
    measured.tracers.add_span_processor(processor)
    converse = await facade(telemetry=measured.telemetry)
    message = await enqueue(converse)
    async with working(converse, say_hello) as worker:
        assert (await ended(converse, message)).content == "Hello."
        await until(lambda: worker.statistics().ended == 1)
    assert measured.total("converse_mongo.attempt.active") == 0
    assert "no such baggage" in caplog.text


async def test_attempt__is_linked_to_the_span_that_queued_the_message(
    facade: Facade, measured: Measured
) -> None:
    async def respond(conversation: Conversation, message: Message) -> None:
        if message.attempt == 1:
            raise Retry
        await say_hello(conversation, message)

    converse = await facade(telemetry=measured.telemetry)
    with measured.tracer.start_as_current_span("POST"):
        message = await enqueue(converse)
    async with working(converse, respond, retry=RetryPolicy(backoff=0)) as worker:
        await ended(converse, message)
        await until(lambda: worker.statistics().running == 0)
    (asked,) = measured.spans("POST")
    attempts = measured.spans("process ")
    assert len(attempts) == 2
    for attempt in attempts:
        (link,) = attempt.links
        assert link.context.trace_id == asked.context.trace_id
        assert link.context.span_id == asked.context.span_id


@pytest.mark.parametrize("stored", [None, "", "00-nothing", "00-" + "0" * 32 + "-" + "0" * 16])
async def test_attempt__is_linked_to_nothing_if_nobody_traced(
    facade: Facade, measured: Measured, stored: str | None
) -> None:
    converse = await facade(telemetry=measured.telemetry)
    message = await enqueue(converse)
    assert message.work is not None
    assert message.work.trace is None
    if stored is not None:
        update = {"$set": {"work.trace": stored}}
        await converse.message_model.store().messages.update_one({"_id": message.id}, update)
    async with working(converse, say_hello) as worker:
        await ended(converse, message)
        await until(lambda: worker.statistics().running == 0)
    (attempt,) = measured.spans("process ")
    assert not attempt.links


@pytest.mark.parametrize("cut", [False, True])
async def test_attempt__in_the_process_that_asked_is_a_span_as_well(
    facade: Facade, measured: Measured, cut: bool
) -> None:
    converse = await facade(telemetry=measured.telemetry)
    conversation = await converse.start_conversation()

    async def respond(_: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            with measured.tracer.start_as_current_span("chat example"):
                await writer.write("Hello.")

    held = Held()
    async with Generations(held if cut else respond, grace=0) as generations:
        generations.serve(converse)
        with measured.tracer.start_as_current_span("POST"):
            message = await generations.begin(
                conversation, lambda: generations.add(conversation, "answer", None)
            )
        await (until(lambda: bool(held.begun)) if cut else ended(converse, message))
        await (until(lambda: not generations.running) if not cut else asyncio.sleep(0))
    (asked,), (attempt,) = measured.spans("POST"), measured.spans("process ")
    assert attempt.name == "process generations"
    assert attributes_of(attempt)["messaging.message.id"] == str(message.id)
    assert attributes_of(attempt)[OUTCOME] == ("handed over" if cut else "ended")
    assert [link.context.span_id for link in attempt.links] == [asked.context.span_id]
    assert attempt.parent is None
    for chat in measured.spans("chat"):
        assert chat.parent is not None
        assert chat.parent.span_id == attempt.context.span_id


# Queues


@pytest.mark.usefixtures("without_pause")
async def test_queues__are_read_once_for_each_collection(
    facade: Facade, measured: Measured, commands: Commands
) -> None:
    converse = await facade(
        telemetry=measured.telemetry, client_options={"event_listeners": [commands]}
    )
    (probe,) = measured.telemetry._probes
    await until(lambda: probe._reading is not None and probe._reading.done())
    await enqueue(converse)
    await enqueue(converse, delay=60)

    async def collect() -> dict[str, Any]:
        reading = probe._reading
        found = await asyncio.to_thread(measured.collect)
        await until(lambda: probe._reading is not reading)
        assert probe._reading is not None
        await soon(probe._reading)
        return found

    await collect()
    before = len(commands.named("aggregate"))
    found = await collect()
    assert len(commands.named("aggregate")) == before + COMMANDS
    depth, age = found[DEPTH], found[AGE]
    assert depth.unit == "{message}"
    assert {
        point.attributes["converse_mongo.work.state"]: point.value
        for point in depth.data.data_points
    } == {"queued": 1, "delayed": 1, "blocked": 0, "running": 0, "waiting": 0}
    (point,) = age.data.data_points
    assert point.attributes == {
        "db.namespace": converse.database_name,
        "messaging.destination.name": QUEUE,
    }
    assert 0 <= point.value < 60


@pytest.mark.usefixtures("without_pause")
async def test_queues__have_no_numbers_while_they_cannot_be_read(
    facade: Facade, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(telemetry=measured.telemetry)
    await enqueue(converse)
    (probe,) = measured.telemetry._probes
    await until(lambda: probe._reading is not None and probe._reading.done())
    probe.refresh()
    await until(lambda: bool(probe.queues))

    async def fail() -> Any:
        raise StoreUnavailableError("no")

    probe.sources = Sources("test", fail, probe.sources.watching)
    await until(lambda: probe._reading is not None and probe._reading.done())
    probe.refresh()
    await until(lambda: not probe.queues)
    assert not measured.points(DEPTH)


async def test_queues__are_not_read_unless_wanted(facade: Facade) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    telemetry = OpenTelemetry(meter_provider=meters, queues=False)
    await facade(telemetry=telemetry)
    (probe,) = telemetry._probes
    reader.collect()
    await asyncio.sleep(0)
    assert probe._reading is None
    meters.shutdown()


# Facades


async def test_watchers__are_counted_while_they_are_attached(
    facade: Facade, measured: Measured
) -> None:
    converse = await facade(telemetry=measured.telemetry)
    message = await start(converse)
    async with converse.watch_message(message.id), converse.watch_message(message.id):
        assert measured.total("converse_mongo.watcher.active") == 2
        assert measured.total("converse_mongo.topic.active") == 1
    assert measured.total("converse_mongo.watcher.active") == 0


async def test_closed_facade__is_measured_no_more(facade: Facade, measured: Measured) -> None:
    converse = await facade(telemetry=measured.telemetry)
    other = await facade(telemetry=measured.telemetry)
    assert len(measured.points("converse_mongo.watcher.active")) == 2
    await other.aclose()
    (point,) = measured.points("converse_mongo.watcher.active")
    assert point.attributes["db.namespace"] == converse.database_name
    await other.open()
    await (await start(other)).complete_streaming()
    assert measured.total("converse_mongo.message.ended") == 1


# A client whose loop is dead cannot be closed in order.
@pytest.mark.filterwarnings("ignore:Unclosed .*MongoClient:ResourceWarning")
def test_facade_of_a_closed_loop__stops_no_collection(server_uri: str, measured: Measured) -> None:
    async def leave_open() -> Converse:
        return await Converse(server_uri, "test_left", telemetry=measured.telemetry).open()

    converse = asyncio.run(leave_open())
    assert measured.total("converse_mongo.watcher.active") == 0
    asyncio.run(converse.aclose())
    assert not measured.points("converse_mongo.watcher.active")
    del converse
    gc.collect()  # while its warnings are ignored


def test_telemetry__has_to_be_one() -> None:
    with pytest.raises(ConfigurationError, match="OpenTelemetry"):
        Converse("mongodb://localhost", "test", telemetry=True)  # type: ignore[arg-type]


WITHOUT = """
import asyncio, sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())

from converse_mongo import *
import converse_mongo.web


async def main():
    async with Converse(sys.argv[1], database="test_without_telemetry") as converse:
        conversation = await converse.start_conversation()
        message = await conversation.start_streaming_assistant(queue="default")

        async def respond(conversation, message):
            async with message.writer() as writer:
                await writer.write("Hello.")

        async with converse.worker(respond) as worker:
            running = asyncio.create_task(worker.run())
            print([event.type async for event in converse.watch_message(message.id)][-1])
            worker.close()
            await running


asyncio.run(main())
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
try:
    import converse_mongo.telemetry
except ModuleNotFoundError as error:
    print(error)
"""


def test_library__works_without_the_extra(server_uri: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, server_uri],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ended, missing = done.stdout.splitlines()
    assert ended == "message.completed"
    assert "opentelemetry" in missing
