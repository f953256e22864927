"""What runs in child processes: writers and viewers, which report all that they are told."""

import asyncio
import bisect
import contextlib
import ctypes
import itertools
import json
import logging
import os
import random
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from bson import ObjectId

from converse_mongo import (
    ChunkReceived,
    Converse,
    ConverseError,
    Event,
    FinalEvent,
    Message,
    MessageChunk,
    MessageCreated,
    MessageNotStreamingError,
    MessageWriter,
    StoreUnavailableError,
    WriterError,
    WriterExistsError,
    WriterFailedError,
)
from converse_mongo.documents import own_writes
from converse_mongo.store import pages, updates
from converse_mongo.watching import topics
from tests.faults.schedules import MOST_IN_BATCH, Crash, Schedule, ViewerPlan
from tests.faults.speech import Speaker, contents_of, tokens_in
from tests.faults.verdict import goal_of

__all__ = ["DETACH", "Access", "Appending", "Link", "Viewing", "Writing", "token"]

T = TypeVar("T")

DETACH = signal.SIGUSR1
"""Tells a writer to let go of its message."""

FLUSH_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1

Tell = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a child reaches the database."""

    uri: str
    database: str
    client_options: dict[str, Any]
    options: dict[str, Any]
    log: Path

    async def open(self) -> Converse:
        """Opens a facade, however long that takes."""
        converse = Converse(
            self.uri,
            database=self.database,
            create_indexes=False,
            client_options=self.client_options,
            **self.options,
        )
        return await retry_reads(converse.open)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link(Access):
    """How a child reaches one message."""

    conversation_id: ObjectId
    message_id: ObjectId


async def retry_reads(call: Callable[[], Awaitable[T]]) -> T:
    """Awaits ``call()`` until MongoDB has answered: the runner gives up if that takes too long."""
    while True:
        try:
            return await call()
        except StoreUnavailableError as error:
            logging.warning("Not yet: %s", error)
            await asyncio.sleep(0.05)


def token(schedule: Schedule, writer: int, number: int) -> str:
    """A text that no other write of the same schedule has: its writer and its number."""
    padding = random.Random(f"{schedule.seed} {writer} {number}").randint(0, schedule.padding)
    return f"<{writer}.{number}{'·' * padding}>"


def run(program: Callable[[Tell], Coroutine[Any, Any, None]], reports: Connection) -> None:
    """Runs ``program`` as a child, whose reports are lines of JSON."""
    if sys.platform == "linux":  # else a runner that is killed would leave it behind
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def tell(kind: str, **fields: Any) -> None:
        line = json.dumps({"kind": kind, **fields}).encode() + b"\n"
        while line:
            line = line[os.write(reports.fileno(), line) :]

    try:
        asyncio.run(program(tell))
    except BaseException:  # noqa: BLE001 - the runner raises it
        tell("broken", error=traceback.format_exc())


# Writers


@dataclass(frozen=True, slots=True)
class Writing:
    """A process that writes by a writer: the first of its message, or one that resumes."""

    link: Link
    schedule: Schedule
    number: int
    resumes: bool
    crash: Crash | None

    def __call__(self, reports: Connection) -> None:
        log_to(self.link.log)
        use_small_pages(self.schedule.page_chunks)
        crash_before(self.crash)
        run(self.write, reports)

    async def write(self, tell: Tell) -> None:
        detaching = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(DETACH, detaching.set)
        converse = await self.link.open()
        message = await retry_reads(lambda: converse.get_message(self.link.message_id))
        try:
            writer = await self._enter(message)
        except ConverseError as error:
            tell("refused", error=type(error).__name__)
            return
        tell(
            "entered",
            length=len(message.content),
            epoch=writer._lease.epoch,
            count=message.next_sequence,
            parts=records_of(message) if message.format else None,
        )
        generation = Generation(self, message, writer, detaching, tell)
        left = await generation.run()
        tell("left", **left)
        await converse.aclose()

    async def _enter(self, message: Message) -> MessageWriter:
        schedule, resumes = self.schedule, self.resumes
        while True:
            make = message.resume_writer if resumes else message.writer
            writer = make(
                metadata={"writer": self.number},
                flush_interval=schedule.flush_interval,
                max_buffered=schedule.max_buffered,
                granularity=schedule.granularity,
                interrupt=schedule.interrupt,
            )
            try:
                return await writer.__aenter__()
            except StoreUnavailableError:
                # Whether it was made the writer is not known; nobody else may have been.
                resumes = True
            except WriterExistsError:
                if not resumes:
                    raise
                await message.refresh()


class Generation:
    """The loop of an application around a writer."""

    def __init__(
        self,
        writing: Writing,
        message: Message,
        writer: MessageWriter,
        detaching: asyncio.Event,
        tell: Tell,
    ) -> None:
        self._schedule = writing.schedule
        self._number = writing.number
        self._tokens = [
            token(writing.schedule, writing.number, number)
            for number in range(writing.schedule.tokens)
        ]
        self._texts: list[int] = []
        self._ends: list[int] = []
        self._message = message
        self._writer = writer
        self._speaker = Speaker(writer, lambda call, value: tell("output", call=call, value=value))
        self._detaching = detaching
        self._tell = tell
        self._accepted = self._stored = 0
        self._detached = False

    async def run(self) -> dict[str, Any]:
        """Writes all tokens; returns what there is to say in the end."""
        error: ConverseError | None = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_exit(self._writer)
                await self._write()
        except ConverseError as caught:
            error = caught
        lost = await self._lost()
        return {
            "error": type(error).__name__ if error else None,
            "cause": type(error.__cause__).__name__ if error and error.__cause__ else None,
            "detached": self._detached,
            "accepted": self._accepted,
            "texts": self._texts,
            "parts": records_of(self._message) if self._message.is_completed else None,
            **lost,
        }

    async def _write(self) -> None:
        schedule, writer = self._schedule, self._writer
        for number, text in enumerate(self._tokens):
            if self._detaching.is_set():
                await writer.detach()
                self._detached = True
                return
            self._tell("writes", number=number)
            how = await self._speaker.say(schedule.way_of(self._number, number), text)
            self._accepted = number + 1
            if how == "text":
                self._texts.append(number)
                self._ends.append(len(text.encode()) + (self._ends[-1] if self._ends else 0))
            if how == "stored":
                self._know_stored(self._accepted)
            elif schedule.flush_every and self._accepted % schedule.flush_every == 0:
                await writer.flush()
                self._know_stored(self._accepted)
            else:  # what comes before a text is stored with it
                stored = bisect.bisect_right(self._ends, writer.statistics().bytes)
                self._know_stored(self._texts[stored - 1] + 1 if stored else 0)
            await asyncio.sleep(schedule.pause)

    def _know_stored(self, count: int) -> None:
        if count > self._stored:
            self._stored = count
            self._tell("stored", count=count)

    async def _lost(self) -> dict[str, Any]:
        """What is known of the text that the writer took: stored, or in the hands of an error."""
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._writer.flush()
        except WriterError as error:
            known = not isinstance(error, WriterFailedError) or error.append_id is None
            return {"lost": error.text, "lost_is_known": known}
        self._know_stored(self._accepted)
        return {"lost": "", "lost_is_known": True}


@dataclass(frozen=True, slots=True)
class Appending:
    """A process that appends by hand, perhaps beside others."""

    link: Link
    schedule: Schedule
    number: int
    crash: Crash | None

    def __call__(self, reports: Connection) -> None:
        log_to(self.link.log)
        use_small_pages(self.schedule.page_chunks)
        crash_before(self.crash)
        run(self.append, reports)

    async def append(self, tell: Tell) -> None:
        converse = await self.link.open()
        message = await retry_reads(lambda: converse.get_message(self.link.message_id))
        tell("entered", length=len(message.content), epoch=0)
        schedule, error = self.schedule, None
        count = 0
        try:
            for batch in self._batches():
                tell("writes", number=count)
                contents = [
                    content
                    for number, text in enumerate(batch, count)
                    for content in contents_of(schedule.way_of(self.number, number), text)
                ]
                chunks = await self._append(message, contents)
                count += len(batch)
                assert [text for text, _ in tokens_in(chunks)] == batch
                tell("stored", count=count, places=tokens_in(chunks))
                await asyncio.sleep(schedule.pause * len(batch))
            if schedule.writers == 1:
                await self._complete(message)
        except MessageNotStreamingError as ended:
            error = type(ended).__name__
        tell("left", error=error, accepted=count, lost="", lost_is_known=error is None)
        await converse.aclose()

    def _batches(self) -> Iterator[list[str]]:
        chance = random.Random(f"{self.schedule.seed} {self.number}")
        texts = [token(self.schedule, self.number, n) for n in range(self.schedule.tokens)]
        while texts:
            size = (
                1 if self.schedule.writing == "append_chunk" else chance.randint(1, MOST_IN_BATCH)
            )
            yield texts[:size]
            texts = texts[size:]

    async def _append(self, message: Message, contents: list[Any]) -> list[MessageChunk]:
        """The chunks of ``contents`` that the last call made, if several had to be made."""
        append_id: ObjectId | None = None
        while True:
            try:
                if self.schedule.writing == "append_chunk":
                    chunks = [await message.append_chunk(contents[0], append_id=append_id)]
                else:
                    chunks = await message.append_chunks(contents, append_id=append_id)
            except StoreUnavailableError as error:
                append_id, contents = error.append_id, contents[error.appended :]
                if append_id is None:
                    raise RuntimeError("this append cannot be tried again") from error
            else:
                return chunks

    async def _complete(self, message: Message) -> None:
        while True:
            try:
                await message.complete_streaming({"writer": self.number})
            except StoreUnavailableError:
                continue  # should the end be stored already, the next try says that it has ended
            return


# Viewers


@dataclass(frozen=True, slots=True)
class Viewing:
    """A process that watches, from behind what it saw in an earlier life, for the rest."""

    link: Link
    plan: ViewerPlan
    after: int | str | None
    waits_for: frozenset[str]

    def __call__(self, reports: Connection) -> None:
        log_to(self.link.log)
        vars(topics)["WINDOW_EVENTS"] = self.plan.window
        run(self.watch, reports)

    async def watch(self, tell: Tell) -> None:
        converse = await self.link.open()
        chance = random.Random(self.plan.seed)
        watcher: Any
        if self.plan.watches == "message":
            assert not isinstance(self.after, str)
            watcher = converse.watch_message(self.link.message_id, self.after)
        else:
            assert not isinstance(self.after, int)
            watcher = converse.watch_conversation(self.link.conversation_id, self.after)
        waits_for: set[str | None] = {*self.waits_for}
        tell("watches")
        while (event := await self._next(watcher, chance)) is not None:
            said = describe(event)
            tell("event", **said)
            waits_for.discard(goal_of(said))
            if self.plan.watches == "conversation" and not waits_for:
                await watcher.aclose()
            await asyncio.sleep(chance.uniform(0, self.plan.slowness))
        tell("done")
        await converse.aclose()

    async def _next(self, watcher: Any, chance: random.Random) -> Event | None:
        while True:
            patience = chance.uniform(0.0005, 0.3) if self.plan.restless else None
            try:
                async with asyncio.timeout(patience):
                    event: Event = await anext(watcher)
                    return event
            except TimeoutError:
                continue
            except StopAsyncIteration:
                return None


def records_of(message: Message) -> list[dict[str, Any]]:
    """The parts that a copy of a message has, in the form of JSON."""
    return [part.to_dict() for part in message.parts]


def describe(event: Event) -> dict[str, Any]:
    """What a viewer says of an event."""
    said: dict[str, Any] = {"type": event.type, "cursor": event.cursor}
    message_id = getattr(event, "message_id", None)
    said["message_id"] = str(message_id)
    if isinstance(event, ChunkReceived):
        chunk = event.chunk.to_dict()
        said |= {name: chunk[name] for name in chunk if name not in ("created_at", "metadata")}
    elif isinstance(event, MessageCreated):
        said |= {"content": event.content}
    elif isinstance(event, FinalEvent):
        said |= {"chunk_count": event.chunk_count}
    return said


# What children do to themselves


def log_to(path: Path) -> None:
    logging.basicConfig(
        filename=path, level=logging.INFO, format="%(asctime)s %(name)s %(message)s", force=True
    )


def use_small_pages(page_chunks: int) -> None:
    for module in (pages, own_writes):
        vars(module)["PAGE_CHUNKS"] = page_chunks


def crash_before(crash: tuple[str, int] | None, builders: ModuleType = updates) -> None:
    """Has this process killed just before it sends an update, as if its machine had failed."""
    if crash is None:
        return
    name, time = crash
    build = getattr(builders, name)
    calls = itertools.count(1)

    def build_or_die(*arguments: Any, **options: Any) -> Any:
        if next(calls) == time:
            os.kill(os.getpid(), signal.SIGKILL)
        return build(*arguments, **options)

    vars(builders)[name] = build_or_die
