"""What telemetry costs: a facade that gives metrics to OpenTelemetry, and the same one without.

Storing: two thousand tokens through a writer, merged in flushes, and a chunk for each. Delivering:
chunks that are appended at once, to watchers of one message in the same process. The cost is the
processor time of the process, all threads, with the SDK's own work; nothing is exported.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from benchmarks.figures import BenchmarkError, Figure, compare
from benchmarks.raw import check_equal
from benchmarks.settings import Setting
from converse_mongo import ChunkReceived, Converse, Message
from converse_mongo.domain.types import Granularity
from converse_mongo.telemetry import OpenTelemetry

__all__ = ["run"]

TEXT = " token."
TOKENS = 2_000
WATCHERS, CHUNKS = 500, 100
ON, OFF = "with telemetry", "without"
STORING: Mapping[str, Granularity] = {
    "storing tokens": "flush",
    "storing tokens, a chunk for each": "token",
}
DELIVERING = f"delivering to {WATCHERS} watchers"
TARGETS = {"storing tokens": 1.02, "storing tokens, a chunk for each": 1.3, DELIVERING: 3.0}


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    costs: dict[str, dict[str, list[float]]] = {
        name: {ON: [], OFF: []} for name in (*STORING, DELIVERING)
    }
    for number in range(setting.rounds + 1):
        setting.note(f"round {number} of {setting.rounds}" if number else "warming up")
        for side in (ON, OFF) if number % 2 else (OFF, ON):
            for name, cost in (await _measure(setting, on=side == ON)).items():
                if number:
                    costs[name][side].append(cost)
    return [
        compare(f"{name}: processor time", "s", sides, of=ON, against=OFF, target=TARGETS[name])
        for name, sides in costs.items()
    ]


async def _measure(setting: Setting, *, on: bool) -> dict[str, float]:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    telemetry = OpenTelemetry(meter_provider=meters) if on else None
    try:
        async with (
            setting.database() as database,
            Converse(setting.server.uri, database=database, telemetry=telemetry) as converse,
        ):
            conversation = await converse.start_conversation()
            costs = {}
            for name, granularity in STORING.items():
                message = await conversation.start_streaming_assistant()
                costs[name] = await _store(message, granularity)
            message = await conversation.start_streaming_assistant()
            costs[DELIVERING] = await _deliver(converse, message)
            return costs
    finally:
        meters.shutdown()


async def _store(message: Message, granularity: Granularity) -> float:
    begun = time.process_time()
    async with message.writer(granularity=granularity) as writer:
        for _ in range(TOKENS):
            await writer.write(TEXT)
            await asyncio.sleep(0)  # as what reads from a model lets others run
    cost = time.process_time() - begun
    await check_equal(message, granularity, TEXT * TOKENS)
    return cost


async def _deliver(converse: Converse, message: Message) -> float:
    texts = [f"{number} " for number in range(CHUNKS)]
    attached = [converse.watch_message(message.id) for _ in range(WATCHERS)]
    for events in attached:
        await events.__aenter__()

    async def watch(number: int) -> Sequence[str]:
        return [
            event.chunk.content
            async for event in attached[number]
            if isinstance(event, ChunkReceived)
        ]

    watching = [asyncio.create_task(watch(number)) for number in range(WATCHERS)]
    await asyncio.sleep(0.01)
    begun = time.process_time()
    await message.append_chunks(texts)
    await message.complete_streaming()
    for received in await asyncio.gather(*watching):
        if received != texts:
            raise BenchmarkError("A watcher did not receive what was appended.")
    return time.process_time() - begun
