"""What parts cost: an agent's answer of 5,000 events, its reducing, and data that are replaced.

An answer: 200 times some thoughts, a tool call whose input comes in pieces, its output, and text.
Through a writer, against the same events pushed by hand with the driver: one awaited ``$push`` for
each, and as many at a time as the writer stored on average. The rounds compare the first calls of
it, since each call takes the same. By hand, a new document begins before the array gets long,
nothing is numbered, and nothing can be tried again.

Reducing: 10,000 chunks of such answers, against decoding them from BSON, in JavaScript from JSON.

Data: one part, replaced 1,000 times. What of it is stored before and after the chunks were merged,
and what reading the parts takes, against the driver's read of the document.

With ``--before CHECKOUT``: what an append of text takes of the library's own code, against a
version without parts. Each runs in a process of its own, in turns, and the answers of the server
are made up.
"""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson
from bson import ObjectId

from benchmarks import parts_programs
from benchmarks.children import Children
from benchmarks.figures import BenchmarkError, Figure, compare, single
from benchmarks.meters import TIMES, Cost, Meter, Traffic, compare_costs
from benchmarks.raw import open_raw_client
from benchmarks.settings import Setting
from converse_mongo import Converse, DataPart, Message, MessageWriter
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.validation import PAGE_CHUNKS
from converse_mongo.driver.clients import Client
from converse_mongo.driver.collections import Collection
from converse_mongo.store import Store

__all__ = ["run"]

CALLS = 200
THOUGHTS, INPUTS, TEXTS = 7, 8, 6
EVENTS = CALLS * (THOUGHTS + INPUTS + TEXTS + 4)
"""With the start of each call, its input as a whole, its execution and its output: 5,000."""
CALLS_OF_ROUND = 20
EVENTS_OF_ROUND = EVENTS // CALLS * CALLS_OF_ROUND
THOUGHT, INPUT, TEXT = "some thought ", '"key": "v', "of the answer "
OUTPUT = {"hits": [{"id": number, "title": "A page of the handbook"} for number in range(5)]}
WRITER, EACH, BATCHED = "through a writer", "a push for each by hand", "pushes of many by hand"
CHUNKS = 10_000
REPLACED = 1_000
READS = 20
OWN_CODE_TARGET = 1.02

REDUCE_IN_JAVASCRIPT = """
import { readFileSync } from "node:fs";
const { PartLog } = await import(process.argv[1]);
const text = readFileSync(0, "utf8");
const found = [];
for (let round = 0; round < Number(process.argv[2]) + 3; round++) {
  const start = performance.now();
  const chunks = JSON.parse(text);
  const middle = performance.now();
  const log = new PartLog();
  for (const chunk of chunks) log.add(chunk);
  found.push([performance.now() - middle, middle - start]);
}
console.log(JSON.stringify(found.slice(3)));
"""


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    found = [] if setting.before is None else await _own_code(setting, setting.before)
    async with setting.database() as database, open_raw_client(setting.server) as client:
        found += await _agent(setting, client, database)
        found += await _reducing(setting)
        return found + await _data(setting, client, database)


# Text alone


async def _own_code(setting: Setting, before: Path) -> list[Figure]:
    program = Path(parts_programs.__file__)
    rounds: dict[str, dict[str, list[float]]] = {}
    async with Children(setting.server.uri) as children:
        now, earlier = (
            await children.start("library", program),
            await children.start("earlier library", program, of=before),
        )
        sides = {"library": now, "before": earlier}
        ready = {side: await child.expect("ready") for side, child in sides.items()}
        for number in range(2 * setting.rounds):
            setting.note(f"text alone, round {number + 1} of {2 * setting.rounds}")
            for side in reversed(sides) if number % 2 else sides:
                await sides[side].go()
                report = await sides[side].expect("measured")
                for way in parts_programs.WAYS:
                    of = rounds.setdefault(way, {})
                    of.setdefault(side, []).append(report[way])
    figures = [
        compare(
            f"own code of {way}, text alone: processor time",
            "µs",
            series,
            of="library",
            against="before",
            target=OWN_CODE_TARGET,
        )
        for way, series in rounds.items()
    ]
    figures += [
        compare(
            f"{way}, text alone: calls of functions",
            "calls",
            {side: [float(report["calls"][way])] for side, report in ready.items()},
            of="library",
            against="before",
            target=OWN_CODE_TARGET,
        )
        for way in parts_programs.WAYS
    ]
    sent = {side: [float(report["bytes"])] for side, report in ready.items()}
    return [*figures, compare("bytes of its update", "bytes", sent, of="library", against="before")]


# An agent


async def _agent(setting: Setting, client: Client, database: str) -> list[Figure]:
    meter, rounds = Meter(setting.server, Traffic()), []
    setting.note(f"an agent's answer of {EVENTS:,} events")
    found, writes = await _whole(client, database)
    ways = {WRITER: 0, EACH: 1, BATCHED: max(EVENTS // writes, 1)}
    for number in range(setting.rounds):
        setting.note(f"its first {EVENTS_OF_ROUND} events, round {number + 1} of {setting.rounds}")
        costs = {way: Cost() for way in ways}
        for way, size in reversed(ways.items()) if number % 2 else ways.items():
            if size:
                pushes = _Pushes(client[database].by_hand, size)
                with meter.measure(costs[way]):
                    await pushes.write()
                if not number and way == EACH:
                    stored = await pushes.stored()
                    found.append(single("stored by hand", "bytes per event", stored))
                continue
            async with Converse(client, database=database, sweep_interval=None) as converse:
                message = await _start(converse)
                async with message.writer() as writer:
                    with meter.measure(costs[way]):
                        await _write(writer, CALLS_OF_ROUND)
                        await writer.flush()
        rounds.append(costs)
    counts = dict.fromkeys(ways, EVENTS_OF_ROUND)
    for against in (EACH, BATCHED):
        found += compare_costs(rounds, counts, of=WRITER, against=against, quantities=TIMES)
    return [_renamed(figure, "an agent's event") for figure in found]


async def _start(converse: Converse) -> Message:
    return await (await converse.start_conversation()).start_streaming_assistant()


async def _whole(client: Client, database: str) -> tuple[list[Figure], int]:
    """The figures of the whole answer, and in how many writes it was stored."""
    async with Converse(client, database=database, sweep_interval=None) as converse:
        message = await _start(converse)
        async with message.writer() as writer:
            start = time.perf_counter()
            await _write(writer, CALLS)
            await writer.flush()
            seconds = time.perf_counter() - start
            writes = writer.statistics().writes
        store = message.store()
        kept = await _stored(store, message)
        await _merge(store, message)
        merged = await _stored(store, message)
    return [
        single("appends", "appends per event", writes / EVENTS),
        single("time of an append", "ms", seconds * 1e3 / writes),
        single("stored with its chunks", "bytes per event", kept / EVENTS),
        single("stored, merged", "bytes per event", merged / EVENTS),
    ], writes


def _renamed(figure: Figure, what: str) -> Figure:
    fields = figure.to_dict()
    del fields["met"]
    return Figure(**{**fields, "name": f"{what}: {figure.name}"})


async def _write(writer: MessageWriter, calls: int) -> None:
    """Writes as an agent does: what a tool does waits until its call is stored."""
    for number in range(calls):
        for _ in range(THOUGHTS):
            await writer.write_reasoning(THOUGHT)
            await asyncio.sleep(0)
        call = await writer.start_tool_call("search", call_id=f"call_{number}")
        for _ in range(INPUTS):
            await call.input_delta(INPUT)
            await asyncio.sleep(0)
        await call.set_input({"q": "mongo", "page": number})
        async with call.execution():
            await call.set_output(OUTPUT)
        for _ in range(TEXTS):
            await writer.write(TEXT)
            await asyncio.sleep(0)


async def _merge(store: Store, message: Message) -> None:
    state = await store.reader.state(message.id, message.conversation_id)
    if state is None or not await store.paging.compact(state):
        raise BenchmarkError("the chunks were not merged")


async def _stored(store: Store, message: Message) -> int:
    """The size of all documents of a message."""
    document = await store.messages.find_one({"_id": message.id})
    size = len(bson.encode(document or {}))
    pages = store.pages.find({"conversation_id": message.conversation_id, "message_id": message.id})
    return size + sum([len(bson.encode(page)) async for page in pages])


class _Pushes:
    """The same events, pushed by hand.

    Args:
        collection: Where to.
        size: How many events are pushed at a time, but for those that a tool waits for.
    """

    def __init__(self, collection: Collection, size: int) -> None:
        self._collection = collection
        self._size = size
        self._waiting: list[dict[str, Any]] = []
        self._in_document = PAGE_CHUNKS
        self._ids: list[ObjectId] = []

    async def write(self) -> None:
        """Writes the beginning of the answer."""
        for number in range(CALLS_OF_ROUND):
            for _ in range(THOUGHTS):
                await self._push(type="reasoning", delta=THOUGHT)
            of_call = {"call_id": f"call_{number}"}
            await self._push(type="call", name="search", **of_call)
            for _ in range(INPUTS):
                await self._push(type="input-delta", delta=INPUT, **of_call)
            await self._push(type="input", input={"q": "mongo", "page": number}, **of_call)
            await self._push(type="started", **of_call)
            await self._push(type="output", output=OUTPUT, **of_call)
            for _ in range(TEXTS):
                await self._push(type="text", delta=TEXT)
        await self._flush()

    async def _push(self, **event: Any) -> None:
        self._waiting.append({**event, "created_at": datetime.now(UTC)})
        if len(self._waiting) >= self._size:
            await self._flush()

    async def _flush(self) -> None:
        if not self._waiting:
            return
        if self._in_document >= PAGE_CHUNKS:
            self._ids.append(ObjectId())
            await self._collection.insert_one({"_id": self._ids[-1], "events": []})
            self._in_document = 0
        await self._collection.update_one(
            {"_id": self._ids[-1]}, {"$push": {"events": {"$each": self._waiting}}}
        )
        self._in_document += len(self._waiting)
        self._waiting = []

    async def stored(self) -> float:
        """The bytes that an event takes."""
        sizes = [
            len(bson.encode(document))
            async for document in self._collection.find({"_id": {"$in": self._ids}})
        ]
        return sum(sizes) / EVENTS_OF_ROUND


# Reducing


def _log() -> list[dict[str, Any]]:
    """Chunks of such answers, each event in one of its own."""
    chunks: list[dict[str, Any]] = []

    def add(content: str = "", **fields: Any) -> int:
        created = {"created_at": datetime.now(UTC)}
        chunks.append({"sequence": len(chunks), "content": content, **created, **fields})
        return len(chunks) - 1

    while len(chunks) < CHUNKS:
        part = add(event="start", fields={"kind": "reasoning"})
        for _ in range(THOUGHTS):
            add(part=part, delta=THOUGHT)
        add(event="end", part=part)
        call_id = f"call_{len(chunks)}"
        start = {"kind": "tool_call", "name": "search", "call_id": call_id}
        part = add(event="start", fields=start)
        for _ in range(INPUTS):
            add(part=part, delta=INPUT)
        for fields in ({"input": {"q": "mongo"}}, {"started": True}, {"output": OUTPUT}):
            add(event="set", part=part, fields=fields)
        for _ in range(TEXTS):
            add(TEXT)
    return chunks[:CHUNKS]


async def _reducing(setting: Setting) -> list[Figure]:
    setting.note(f"reducing {CHUNKS:,} chunks")
    chunks = _log()
    encoded = bson.encode({"chunks": chunks})
    series: dict[str, list[float]] = {"PartLog": [], "decoding BSON": []}
    for _ in range(setting.rounds):
        start = time.process_time()
        decoded = bson.decode(encoded)["chunks"]
        middle = time.process_time()
        PartLog.of(decoded)
        series["decoding BSON"].append((middle - start) * 1e3)
        series["PartLog"].append((time.process_time() - middle) * 1e3)
    what = f"reducing {CHUNKS:,} chunks"
    found = [compare(f"{what}, Python", "ms", series, of="PartLog", against="decoding BSON")]
    if node := shutil.which("node"):
        times = await _in_javascript(node, setting.rounds, chunks)
        series = {"PartLog": times[0], "JSON.parse": times[1]}
        name = f"{what}, JavaScript"
        found.append(compare(name, "ms", series, of="PartLog", against="JSON.parse"))
    else:
        setting.note("no node on the path: nothing is measured in JavaScript")
    return found


async def _in_javascript(
    node: str, rounds: int, chunks: list[dict[str, Any]]
) -> tuple[list[float], list[float]]:
    """Milliseconds of reducing and of parsing, of each round."""
    module = Path(__file__).parents[1] / "converse_mongo/web/client/parts.js"
    process = await asyncio.create_subprocess_exec(
        *(node, "--input-type=module", "-e", REDUCE_IN_JAVASCRIPT, module.as_uri(), str(rounds)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    plain = [{**chunk, "created_at": chunk["created_at"].isoformat()} for chunk in chunks]
    output, _ = await process.communicate(json.dumps(plain).encode())
    if process.returncode:
        raise BenchmarkError(f"node exited with {process.returncode}")
    pairs = json.loads(output)
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


# Data


@asynccontextmanager
async def _replaced(client: Client, database: str) -> AsyncIterator[tuple[Converse, Message, int]]:
    """A message with one part of data that was replaced; and in how many writes."""
    async with Converse(client, database=database, sweep_interval=None) as converse:
        message = await _start(converse)
        async with message.writer() as writer:
            for number in range(REPLACED):
                await writer.write(DataPart("progress", _value(number), id="p1"))
                await asyncio.sleep(0)
        yield converse, message, writer.statistics().writes


def _value(number: int) -> dict[str, Any]:
    return {"percent": number / 10, "file": "report.pdf"}


async def _data(setting: Setting, client: Client, database: str) -> list[Figure]:
    setting.note(f"data that are replaced {REPLACED:,} times")
    async with _replaced(client, database) as (converse, message, writes):
        store = message.store()
        kept = await _stored(store, message)
        with_chunks = await _reads(setting, converse, message, "with its chunks")
        await _merge(store, message)
        merged = await _stored(store, message)
        what = f"data replaced {REPLACED:,} times"
        return [
            single(f"{what}: appends", "appends", writes),
            single(f"{what}: stored with its chunks", "bytes each", kept / REPLACED),
            single(f"{what}: stored, merged", "bytes each", merged / REPLACED),
            with_chunks,
            await _reads(setting, converse, message, "merged"),
        ]


async def _reads(setting: Setting, converse: Converse, message: Message, state: str) -> Figure:
    """The time of reading the parts in a listing, against the driver's read of the document."""
    collection = message.store().messages

    async def listed() -> None:
        conversation = await converse.get_conversation(message.conversation_id)
        [read] = await conversation.messages()
        [part] = read.parts
        if not isinstance(part, DataPart) or part.data != _value(REPLACED - 1):
            raise BenchmarkError(f"read {part!r}")

    async def raw() -> None:
        await collection.find_one({"_id": message.conversation_id})
        await collection.find_one({"_id": message.id}, {"chunks": 0})

    ways: Mapping[str, Callable[[], Awaitable[None]]] = {"library": listed, "driver": raw}
    series: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(setting.rounds):
        for way, read in ways.items():
            start = time.process_time()
            for _ in range(READS):
                await read()
            series[way].append((time.process_time() - start) * 1e6 / READS)
    name = f"data replaced {REPLACED:,} times, {state}: reading the parts, processor time"
    return compare(name, "µs", series, of="library", against="driver")
