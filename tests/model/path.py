"""The whole path of a log: written by several processes in many ways, and read in all others.

All of it runs on a database in memory, whose watchers poll. Two processes write: of one each call
that gets no answer fails, and it appends again; the other one's library tries again by itself.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from random import Random
from typing import Any, TypeAlias

from pymongo.errors import AutoReconnect

from converse_mongo import (
    ChunkReceived,
    Converse,
    Message,
    MessageNotStreamingError,
    MessageSnapshot,
    MessageWriter,
    Part,
    StoreUnavailableError,
    StreamStoppedError,
    TextPart,
    Watcher,
    WriterFailedError,
    WriterFencedError,
)
from converse_mongo.domain.chunks import MessageChunk, PartChunk, StoredChunk
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.part_pieces import PartPiece, PartRef
from converse_mongo.domain.parts import parts_of
from tests.model.part_logs import as_in_javascript
from tests.model.parts import KINDS, Chunk, Reading
from tests.streams import SOON, collect

Content: TypeAlias = str | PartPiece
Ways: TypeAlias = Sequence[str]
Plan: TypeAlias = Sequence[tuple[int, str, int]]
"""Which process writes in which way how many chunks, one after the other."""

WAYS: Ways = ("by hand", "by hand", "by hand, twice", "writer", "writer", "take-over")
LOSSES: Ways = ("", "", "answer", "request")
ENDS: Ways = ("completion", "failure", "stop", "by hand")


def exact(value: Any) -> str:
    """A form in which true is not 1, no whole number is 1.0, and a NaN is itself."""
    return json.dumps(value, sort_keys=True, default=repr)


def seen(log: PartLog) -> str:
    """All that a reader may ask of a log."""
    return exact([log.records(), log.metadata, log.open, log.next_sequence, log.text()])


def records_of(parts: Sequence[Part]) -> str:
    return exact([part.to_record() for part in parts])


# What is written


@dataclass(frozen=True, slots=True)
class OddChunk(PartChunk):
    """A chunk with something that no version writes.

    Attributes:
        odd: It.
    """

    odd: dict[str, Any] = field(default_factory=dict)

    def to_stored(self) -> StoredChunk:
        return {**PartChunk.to_stored(self), **self.odd}


@dataclass(slots=True)
class OddPiece(PartPiece):
    odd: dict[str, Any] = field(default_factory=dict)

    def chunk(self, *arguments: Any) -> PartChunk:
        made = PartPiece.chunk(self, *arguments)
        known = {each.name: getattr(made, each.name) for each in dataclass_fields(made)}
        return OddChunk(**known, odd=self.odd)


def is_text(chunk: Chunk) -> bool:
    return chunk.get("event") is None and chunk.get("part") is None


def as_stored(chunk: Chunk) -> Chunk:
    """The chunk as an append stores it: text has nothing beside it."""
    if is_text(chunk):
        return {"sequence": chunk["sequence"], "content": chunk["content"]}
    return {name: value for name, value in chunk.items() if value is not None}


class Speech:
    """What one process makes of its chunks of a log: own parts are named by what it began."""

    def __init__(self) -> None:
        self._begun: dict[int, PartRef] = {}

    def contents(self, chunks: Sequence[Chunk]) -> list[Content]:
        return [self._content(chunk) for chunk in chunks]

    def _content(self, chunk: Chunk) -> Content:
        if is_text(chunk):
            text: str = chunk["content"]
            return text
        fields, delta = chunk.get("fields", {}), chunk.get("delta", "")
        odd = {} if not chunk["content"] else {"content": chunk["content"]}
        if not isinstance(fields, dict):
            fields, odd = {}, {**odd, "fields": fields}
        if not isinstance(delta, str):
            delta, odd = "", {**odd, "delta": delta}
        begun = PartRef(None) if chunk.get("event") == "start" else None
        make = OddPiece if odd else PartPiece
        options: Any = {"odd": odd} if odd else {}
        piece = make(
            *(chunk.get("event"), self._ref(chunk.get("part")), fields, delta),
            *(self._ref(chunk.get("parent")), begun),
            **options,
        )
        if begun is not None:
            self._begun[chunk["sequence"]] = begun
        return piece

    def _ref(self, number: Any) -> PartRef | None:
        if number is None:
            return None
        own = type(number) is int and self._begun.get(number)
        return own or PartRef(None, number)


class Losing:
    """The messages of a store, whose appends or their answers get lost when a test says so."""

    def __init__(self, converse: Converse) -> None:
        store = converse.message_model.store()
        self._collection, store.messages = store.messages, self
        self.loses = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collection, name)

    async def update_one(self, match: Any, update: Any) -> Any:
        loses = self.loses if "$push" in update else ""
        if loses:
            self.loses = ""
        if loses == "request":
            raise AutoReconnect("the request is lost")
        done = await self._collection.update_one(match, update)
        if loses:
            raise AutoReconnect("the answer is lost")
        return done


# Who writes


@dataclass
class Process:
    """A process that writes."""

    converse: Converse
    messages: Losing
    message: Message = field(init=False)
    speech: Speech = field(init=False)
    writer: MessageWriter | None = None
    written: int = 0
    """How many chunks its writer has stored."""

    def take_up(self, message: Message) -> None:
        self.message, self.speech, self.writer = message, Speech(), None

    async def append(self, contents: Sequence[Content], loses: str) -> None:
        """Appends by hand; again, if it had no answer."""
        self.messages.loses = loses
        given: list[Any] = list(contents)
        try:
            await self.message.append_chunks(given)
        except StoreUnavailableError as error:
            await self.message.append_chunks(given, append_id=error.append_id)

    async def write(self, contents: Sequence[Content], loses: str) -> None:
        """Writes as the writer, each content a chunk of its own."""
        writer = self.writer
        assert writer is not None
        self.messages.loses = loses
        left: list[Any] = list(contents)
        try:
            for content in contents:
                if isinstance(content, str):
                    await writer.write(content)
                else:
                    await writer.put([content])
            await writer.flush()
        except WriterFailedError:
            self.writer = None
            with suppress(WriterFailedError):
                await writer.__aexit__(None, None, None)
            # What it stored is known, and what is in doubt has an append id.
            failed = writer._appender.failure
            assert isinstance(failed, WriterFailedError)
            stored = writer.statistics().chunks - self.written
            unknown = len(failed.unconfirmed)
            await self.message.append_chunks(failed.unconfirmed, append_id=failed.append_id)
            if rest := left[stored + unknown :]:
                await self.append(rest, "")
        else:
            self.written = writer.statistics().chunks

    async def open_writer(self, *, first: bool) -> None:
        make = self.message.writer if first else self.message.resume_writer
        self.writer = await make(flush_interval=0.001, granularity="token").__aenter__()
        self.written = 0

    async def let_go(self) -> None:
        """Closes a writer that another one has replaced."""
        writer, self.writer = self.writer, None
        if writer is not None:
            with suppress(WriterFencedError):
                await writer.__aexit__(None, None, None)
                raise AssertionError("a writer that was replaced has ended the message")


@dataclass
class World:
    """The processes, and who only reads.

    Attributes:
        wire: Chunks as browsers get them, and the parts that they are to make of them.
    """

    processes: list[Process]
    viewer: Converse
    wire: list[tuple[list[dict[str, Any]], list[Any]]] = field(default_factory=list)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """Opens the processes, on one database in memory."""
    from mongomock_motor import AsyncMongoMockClient

    client: Any = AsyncMongoMockClient()
    async with AsyncExitStack() as stack:

        async def facade(**options: Any) -> Converse:
            converse = Converse(client, database="path", poll_interval=0.005, **options)
            return await stack.enter_async_context(converse)

        processes = []
        for seconds in (0.0001, SOON):
            converse = await facade(retry_timeout=seconds)
            processes.append(Process(converse, Losing(converse)))
        yield World(processes, await facade())


# The path


class Path:
    """One log on its way.

    Args:
        world: Who takes part.
        log: The chunks, legal or not.
        chance: Decides who does what.
        plan: Who does what, if that is not left to chance; then viewers come back everywhere.
    """

    def __init__(
        self, world: World, log: Sequence[Chunk], chance: Random, plan: Plan | None = None
    ) -> None:
        self._world = world
        self.log = [as_stored(chunk) for chunk in log]
        self._chance = chance
        self._plan = plan
        self._steps = iter(plan or ())
        self._writer: Process | None = None

    async def go(self) -> None:
        """Writes the log, ends the message, merges its chunks, and checks all readers."""
        world, chance = self._world, self._chance
        first = world.processes[0]
        conversation = await first.converse.start_conversation()
        message = await conversation.start_streaming_assistant()
        self._message = message
        first.take_up(message)
        for process in world.processes[1:]:
            process.take_up(await process.converse.get_message(message.id))
        live = asyncio.create_task(self._watch(None))
        others: list[asyncio.Task[None]] = []
        try:
            written = 0
            while written < len(self.log):
                process, way, count = self._step()
                group = self.log[written : written + count]
                process = await self._write(process, way, group)
                written += len(group)
                self._check_copy(process, written)
                if chance.random() < 0.2:
                    await self._check_reads(written)
                    others.append(asyncio.create_task(self._check_kinds(snapshot=True)))
            ended = await self._end()
            async with asyncio.timeout(SOON):
                self._check_same(PartLog.of(await live))
                await asyncio.gather(*others)
        finally:
            for watching in (live, *others):
                watching.cancel()
        await self._check_reads(written, ended)
        await self._check_resumed()
        await self._check_kinds(snapshot=False)
        await self._merge()
        await self._check_reads(written)
        await self._check_resumed()
        await self._check_kinds(snapshot=False)
        await self._check_kinds(snapshot=True)
        store = world.viewer.message_model.store()
        for collection in (store.messages, store.pages, store.conversations):
            await collection.delete_many({})  # the database in memory looks at all of them

    def _step(self) -> tuple[Process, str, int]:
        chance, processes = self._chance, self._world.processes
        if self._plan is not None:
            who, way, count = next(self._steps)
            return processes[who], way, count
        return chance.choice(processes), chance.choice(WAYS), chance.randint(1, 5)

    async def _write(self, process: Process, way: str, group: Sequence[Chunk]) -> Process:
        """Writes some chunks, and returns who has done so."""
        chance = self._chance
        loses = "" if self._plan is not None else chance.choice(LOSSES)
        if any(is_text(chunk) and not chunk["content"] for chunk in group):
            way = "by hand"  # a writer takes no empty text
        if way == "take-over" or (way == "writer" and self._writer is None):
            await self._open(process)
        if way in ("by hand", "by hand, twice") or self._writer is None or not self._writer.writer:
            cut = chance.randint(0, len(group)) if way == "by hand, twice" else 0
            for some in (group[:cut], group[cut:]):
                if some:
                    await process.append(process.speech.contents(some), loses)
            return process
        process = self._writer
        await process.write(process.speech.contents(group), loses)
        return process

    async def _open(self, process: Process) -> None:
        before, self._writer = self._writer, process
        if before is process and process.writer is not None:
            return
        await process.open_writer(first=before is None)
        if before is not None:
            await before.let_go()

    async def _end(self) -> Message:
        """Ends the message in some way, and returns the copy of who ended it."""
        way, process = self._chance.choice(ENDS), self._writer or self._world.processes[0]
        message, writer = process.message, process.writer
        if writer is None or way == "by hand":
            await message.fail_streaming("It broke.")
        elif way == "stop":
            await message.request_stop("Enough.")
        error = ZeroDivisionError("It broke.") if way == "failure" else None
        if writer is not None:
            with suppress(StreamStoppedError, MessageNotStreamingError):
                await writer.__aexit__(type(error) if error else None, error, None)
        return message

    async def _merge(self) -> None:
        store = self._world.viewer.message_model.store()
        message = self._message
        state = await store.reader.state(message.id, message.conversation_id)
        assert state is not None
        assert await store.paging.compact(state)

    # What all readers have

    def _expected(self, count: int, *, ended: bool) -> str:
        log = PartLog.of(self.log[:count])
        if all(map(is_text, self.log[:count])):
            return records_of([TextPart(log.text())] if log.text() else [])
        return records_of(parts_of(log.records(), ended=ended))

    def _check_copy(self, process: Process, written: int) -> None:
        """Checks the copy of who has just written, unless it missed what others wrote."""
        message = process.message
        assert message.next_sequence <= written
        expected = self._expected(message.next_sequence, ended=False)
        assert records_of(message.parts) == expected

    async def _check_reads(self, written: int, *copies: Message) -> None:
        viewer, message = self._world.viewer, self._message
        read = await viewer.get_message(message.id)
        conversation = await viewer.get_conversation(message.conversation_id)
        copies = (*copies, read)
        if not read.is_streaming:
            listed, history = await conversation.messages(), await conversation.history()
            copies = (*copies, *listed, *history.messages)
        log = PartLog.of(self.log[:written])
        expected = self._expected(written, ended=not read.is_streaming)
        for each in copies:
            assert records_of(each.parts) == expected
            assert each.content == log.text(), (each.next_sequence, each.status)

    async def _check_resumed(self) -> None:
        """Checks who saw the beginning as it was written, and sees the rest now."""
        count = len(self.log)
        reading = Reading(self.log)
        records, answer = reading.records(count), reading.answer(count)
        points = {0, count, self._chance.randint(0, count), self._chance.randint(0, count)}
        for n in points if self._plan is None else range(count + 1):
            rest = await self._watch(n - 1 if n else None)
            assert [chunk["sequence"] for chunk in rest] == list(range(n, count))
            log = PartLog.of(self.log[:n])
            if n % 2:
                log = PartLog.from_snapshot(log.snapshot())
            for chunk in rest:
                log.add(chunk)
            self._check_same(log)
            assert exact([log.records(), log.text()]) == exact([records, answer])

    async def _check_kinds(self, *, snapshot: bool) -> None:
        """Checks who watches some kinds, from anywhere or from what there is, up to the end."""
        chance, viewer, message_id = self._chance, self._world.viewer, self._message.id
        kinds = set(chance.sample(KINDS, 2)) if chance.random() < 0.8 or not snapshot else None
        n = chance.randint(0, len(self.log))
        log = PartLog.of(self.log[:n])
        watcher: Watcher[Any] = (
            viewer.watch_message(message_id, kinds=kinds, snapshot=True)
            if snapshot
            else viewer.watch_message(message_id, n - 1 if n else None, kinds=kinds)
        )
        async for event in watcher:
            if isinstance(event, MessageSnapshot):
                log = event.log()
            elif isinstance(event, ChunkReceived):
                log.add(event.chunk)
        found, expected = (
            [
                part
                for part in parts_of(each.records(), ended=True)
                if kinds is None or part.kind in kinds
            ]
            for each in (log, PartLog.of(self.log))
        )
        assert records_of(found) == records_of(expected), kinds

    def _check_same(self, log: PartLog) -> None:
        assert seen(log) == seen(PartLog.of(self.log))

    async def _watch(self, after: int | None) -> list[StoredChunk]:
        events = await collect(self._world.viewer, self._message, after)
        chunks = [event.chunk for event in events if isinstance(event, ChunkReceived)]
        if after is None:
            self._note_wire(chunks)
        return [chunk.to_stored() for chunk in chunks]

    def _note_wire(self, chunks: Sequence[MessageChunk]) -> None:
        """Keeps what browsers get, if JSON says it as it is."""
        records = PartLog.of(self.log).records()
        with suppress(TypeError, ValueError):
            said = json.dumps([self.log, records], allow_nan=False)
            records = json.loads(said, parse_float=as_in_javascript)[1]
            self._world.wire.append(([chunk.to_dict() for chunk in chunks], records))
