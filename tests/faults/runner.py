"""Runs a schedule: starts who writes and who watches, does the harm, and judges what is left."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bson import ObjectId

from converse_mongo import (
    ChunkReceived,
    Conversation,
    Converse,
    Message,
    MessageNotStreamingError,
)
from tests.faults.children import Child, Children
from tests.faults.harm import Harm
from tests.faults.programs import DETACH, Appending, Link, Viewing, Writing
from tests.faults.proxy import Proxy
from tests.faults.reports import RETRY_SECONDS, Notes, ScheduleFailedError
from tests.faults.runs import RUNNER_OPTIONS, child_options, reported
from tests.faults.schedules import Fault, Schedule, ViewerPlan, draw
from tests.faults.servers import Server
from tests.faults.verdict import (
    FAREWELL,
    REASON,
    Evidence,
    StoredText,
    ViewerRecord,
    WriterRecord,
    judge,
)

__all__ = ["Outcome", "ScheduleFailedError", "run_schedule"]

DEADLINE_SECONDS = 90.0
STALL_SECONDS = 6.0
"""How long a fault waits for tokens that do not come, since another fault keeps them."""
SETTLE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run in which all promises were kept."""

    schedule: Schedule
    seconds: float
    status: str
    tokens: int
    chunks: int
    pages: int
    done: Counter[str] = field(default_factory=Counter)


async def run_schedule(seed: int, server: Server) -> Outcome:
    """Runs the schedule of a seed.

    Raises:
        ScheduleFailedError: A promise was broken; says which, and how to do it again.
    """
    schedule = draw(seed)
    again = f"--seed {seed} --schedules 1"
    return await reported(
        lambda logs: Run(schedule, server, logs), schedule.describe(), again, str(schedule)
    )


class Run:
    """One run."""

    def __init__(self, schedule: Schedule, server: Server, logs: Path) -> None:
        self._schedule = schedule
        self._server = server
        self._logs = logs
        self._database = f"faults_{schedule.seed}_{random.getrandbits(32):08x}"
        self._started = time.monotonic()
        self.notes = Notes(self._started)
        self._done: Counter[str] = Counter()
        self._children = Children()
        self._writers: list[_Writer] = []
        self._viewers: list[_Viewer] = []
        self._progress = _Progress(schedule.tokens * schedule.writers)
        self._stop: str | None = None
        self._stop_was_requested = False
        self._waits_for = "the start"
        self._proxies: dict[str, Proxy] = {}
        self._harm = Harm(server, self._proxies, self.notes.note)
        self._message: Message
        self._message_ids: dict[int, str] = {}
        self._was_saved = False
        self._due = 0
        self._tasks: asyncio.TaskGroup
        self._converse: Converse
        self._conversation: Conversation

    # What happens

    async def run(self) -> Outcome:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS), AsyncExitStack() as stack:
                stack.push_async_callback(self._server.heal)
                stack.enter_context(self._children)
                for name in ("writers", "viewers"):
                    self._proxies[name] = await stack.enter_async_context(Proxy(self._server.port))
                self._converse = await stack.enter_async_context(self._facade())
                await self._prepare()
                async with asyncio.TaskGroup() as self._tasks:
                    await self._play()
                outcome = await self._verdict()
                await self._server.drop(self._database)
                return outcome
        except TimeoutError as error:
            raise AssertionError(f"waited too long for {self._waits_for}") from error

    async def _play(self) -> None:
        """Lets it all happen, up to where only viewers have something to do."""
        for number, plan in enumerate(self._schedule.viewers):
            viewer = _Viewer(plan, ViewerRecord(name=f"viewer {number}", watches=plan.watches))
            self._viewers.append(viewer)
            self._tasks.create_task(self._attend(viewer))
        self._waits_for = "the first viewers"
        for viewer in self._viewers:
            if viewer.plan.at == 0.0:
                await viewer.watches.wait()
        for _ in range(self._schedule.writers):
            self._start_writer()
        self._waits_for = "the faults"
        faults = [self._do_in_time(fault) for fault in self._schedule.faults]
        await asyncio.gather(*map(self._tasks.create_task, faults))
        self._waits_for = "the writers"
        for writer in self._writers:  # some may be added meanwhile
            await writer.has_left.wait()
        for proxy in self._proxies.values():
            proxy.heal()
        await self._server.heal()
        self.notes.note("all is healed")
        if self._schedule.writers > 1:
            await self._complete()
        await self._settle()
        await self._say(FAREWELL)
        self._waits_for = "the viewers"

    def _facade(self) -> Converse:
        return Converse(
            self._server.uri,
            database=self._database,
            lease=self._schedule.lease,
            idle_timeout=self._schedule.lease,
            retention="compact" if self._schedule.compact else "keep",
            sweep_interval=0.3 if self._schedule.settled_by == "sweeper" else None,
            client_options=RUNNER_OPTIONS,
        )

    async def _prepare(self) -> None:
        self._conversation = await self._converse.start_conversation("faults")
        await self._say("Will this be stored?")
        self._message = await self._conversation.start_streaming_assistant()
        self._told(self._message)

    async def _say(self, text: str) -> None:
        self._told(await self._conversation.create_user_message(text))

    def _told(self, message: Message) -> None:
        assert message.position is not None
        self._message_ids[message.position] = str(message.id)

    async def _complete(self) -> None:
        """Ends what several have appended to, unless it has ended."""
        try:
            await self._message.complete_streaming()
        except MessageNotStreamingError as ended:
            self.notes.note(f"not completed: {ended.status.value}")

    async def _settle(self) -> None:
        self._waits_for = f"{self._schedule.settled_by} to settle it"
        while not await self._has_ended():
            if self._schedule.settled_by == "get_message":
                await self._converse.get_message(self._message.id)
            elif self._schedule.settled_by == "recover_stale":
                await self._converse.recover_stale()
            await asyncio.sleep(SETTLE_SECONDS)
        self.notes.note("it has ended")

    async def _has_ended(self) -> bool:
        found = await self._server.documents(
            self._database, "messages", {"_id": self._message.id, "status": {"$ne": "streaming"}}
        )
        return bool(found)

    # Writers and viewers

    def _link(self, who: str, log: str, **options: Any) -> Link:
        schedule = self._schedule
        return Link(
            uri=f"mongodb://127.0.0.1:{self._proxies[who].port}/?directConnection=true",
            database=self._database,
            conversation_id=ObjectId(self._message.conversation_id),
            message_id=ObjectId(self._message.id),
            client_options=child_options(
                who, schedule.socket_timeout, retry_writes=schedule.retry_writes
            ),
            options={
                "lease": schedule.lease,
                "idle_timeout": schedule.lease,
                "retry_timeout": RETRY_SECONDS,
                "poll_interval": 0.1,
                "check_interval": 0.3,
                "retention": "compact" if schedule.compact else "keep",
                **options,
            },
            log=self._logs / f"{log}.log",
        )

    def _start_writer(self, *, resumes: bool = False) -> None:
        number = len(self._writers)
        link = self._link("writers", f"writer {number}")
        crash = self._schedule.crash if number == 0 else None
        program: Writing | Appending = (
            Writing(link, self._schedule, number, resumes, crash)
            if self._schedule.writing == "writer"
            else Appending(link, self._schedule, number, crash)
        )
        child = self._children.start(f"writer {number}", program, link.log)
        writer = _Writer(child, WriterRecord(number=number))
        self._writers.append(writer)
        self.notes.note(f"writer {number} {'resumes' if resumes else 'starts'}")
        self._tasks.create_task(self._listen(writer))

    async def _listen(self, writer: "_Writer") -> None:
        record = writer.record
        async for report in writer.child.reports():
            record.take(self._sound(report))
            if report["kind"] == "writes":
                self._progress.advance(record.number, report["number"])
            elif report["kind"] != "stored":
                self.notes.note(f"writer {record.number}: {report}")
        is_dead = record.left is None and record.refused is None
        self.notes.note(f"writer {record.number} is {'dead' if is_dead else 'gone'}")
        if is_dead and not writer.was_killed:
            assert self._schedule.crash is not None, f"writer {record.number} died by itself"
            self._done["crash"] += 1
            if self._schedule.resumed:
                self._start_writer(resumes=True)
        writer.has_left.set()
        if not self._due and all(writer.has_left.is_set() for writer in self._writers):
            self._progress.finish()

    async def _attend(self, viewer: "_Viewer") -> None:
        """Lets a viewer watch, and come back as often as it is killed."""
        await self._progress.reaches(viewer.plan.at)
        record = viewer.record
        while True:
            viewer.is_to_return.clear()
            streams = viewer.plan.change_streams
            link = self._link("viewers", record.name, change_streams=streams)
            program = Viewing(link, viewer.plan, record.cursor, frozenset(record.waits_for))
            viewer.child = self._children.start(record.name, program, link.log)
            self.notes.note(f"{record.name} comes, after {record.cursor}")
            async for report in viewer.child.reports():
                match self._sound(report)["kind"]:
                    case "watches":
                        viewer.watches.set()
                    case "event":
                        record.events.append(report)
                    case "done":
                        record.done = True
            if record.done:
                self.notes.note(f"{record.name} is done")
                return
            assert viewer.was_killed, f"{record.name} died by itself"
            await viewer.is_to_return.wait()
            viewer.was_killed = False
            if not record.waits_for:
                record.done = True
                return

    def _sound(self, report: dict[str, Any]) -> dict[str, Any]:
        if report["kind"] == "broken":
            raise AssertionError(report["error"])
        return report

    # Harm

    async def _do_in_time(self, fault: Fault) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STALL_SECONDS):
                await self._progress.reaches(fault.at)
        self.notes.note(f"{fault.kind} {fault.target} {fault.how} for {fault.seconds:.2f} s")
        if await (self._harm.does(fault) or getattr(self, f"_do_{fault.kind}"))(fault):
            self._done[fault.kind] += 1
        else:
            self.notes.note(f"{fault.kind} came too late")

    async def _do_kill_writer(self, fault: Fault) -> bool:
        writer = self._writer(fault)
        if writer is None:
            return False
        async with self._followed(fault):
            writer.kill()
            await writer.has_left.wait()
        return True

    async def _do_vanish_writer(self, fault: Fault) -> bool:
        proxy, writer = self._proxies["writers"], self._writer(fault)
        if writer is None:
            return False
        async with self._followed(fault):
            proxy.deafen(answers=False)
            await asyncio.sleep(min(fault.seconds, self._schedule.socket_timeout / 2))
            writer.kill()
            await writer.has_left.wait()
            proxy.heal(drop=True)
        return True

    async def _do_pause_writer(self, fault: Fault) -> bool:
        writer = self._writer(fault)
        if writer is None:
            return False
        writer.child.pause()
        if fault.how == "followed":
            self._start_writer(resumes=True)
        await asyncio.sleep(fault.seconds)
        writer.child.resume()
        return True

    async def _do_take_over(self, fault: Fault) -> bool:
        is_in_time = self._writer(fault) is not None
        self._start_writer(resumes=True)
        return is_in_time

    async def _do_detach_writer(self, fault: Fault) -> bool:
        writer = self._writer(fault)
        if writer is None or writer.record.epoch is None:
            return False
        async with self._followed(fault):
            writer.child.signal(DETACH)
            await writer.has_left.wait()
        return True

    @contextlib.asynccontextmanager
    async def _followed(self, fault: Fault) -> AsyncIterator[None]:
        """Starts another writer behind what happens, if it is to be; until then one is due."""
        follows = fault.how == "followed"
        self._due += follows
        yield
        if follows:
            await asyncio.sleep(fault.seconds)
            self._due -= 1
            self._start_writer(resumes=True)
        elif all(other.has_left.is_set() for other in self._writers):
            self._progress.finish()

    def _writer(self, fault: Fault) -> "_Writer | None":
        """Who writes now, or the one of several that a fault means; ``None`` if it has left."""
        number = fault.target if self._schedule.writers > 1 else -1
        assert isinstance(number, int)
        writer = self._writers[number]
        return None if writer.has_left.is_set() else writer

    async def _do_kill_viewer(self, fault: Fault) -> bool:
        viewer = self._viewer(fault)
        if viewer is None or viewer.was_killed:
            return False
        viewer.was_killed = True
        child, viewer.child = viewer.child, None
        assert child is not None
        child.kill()
        await asyncio.sleep(fault.seconds)
        viewer.is_to_return.set()
        return True

    async def _do_pause_viewer(self, fault: Fault) -> bool:
        viewer = self._viewer(fault)
        if viewer is None or viewer.child is None:
            return False
        child = viewer.child
        child.pause()
        await asyncio.sleep(fault.seconds)
        child.resume()
        return True

    def _viewer(self, fault: Fault) -> "_Viewer | None":
        assert isinstance(fault.target, int)
        viewer = self._viewers[fault.target]
        return None if viewer.record.done or viewer.child is None else viewer

    async def _do_stop(self, fault: Fault) -> bool:
        self._stop_was_requested = True
        self._stop = (await self._converse.request_stop(self._message.id, REASON)).value
        self.notes.note(f"whoever stopped it was told that it is {self._stop}")
        return True

    async def _do_recover(self, fault: Fault) -> bool:
        recovered = await self._converse.recover_stale()
        self.notes.note(f"recovered: {[event.type for event in recovered]}")
        return True

    async def _do_save(self, fault: Fault) -> bool:
        self._message.metadata["saved"] = True
        await self._message.save()
        self._was_saved = True
        return True

    async def _do_interject(self, fault: Fault) -> bool:
        await self._say("By the way")
        return True

    # The verdict

    async def _verdict(self) -> Outcome:
        self._waits_for = "the verdict"
        if self._schedule.compact:
            await self._converse.compact_due()
        message = (await self._documents("messages", {"_id": self._message.id}))[0]
        pages = await self._documents("message_chunk_pages", {"message_id": self._message.id})
        loaded = await self._converse.get_message(self._message.id)
        watched = [
            event.chunk
            async for event in self._converse.watch_message(self._message.id)
            if isinstance(event, ChunkReceived)
        ]
        iterated = [chunk async for chunk in loaded.iter_chunks()]
        evidence = Evidence(
            schedule=self._schedule,
            message=message,
            pages=pages,
            texts=[
                StoredText.of(how, [chunk.to_dict() for chunk in chunks])
                for how, chunks in (
                    ("get_message", list(loaded.chunks)),
                    ("iter_chunks", iterated),
                    ("watch_message", watched),
                )
            ],
            content=loaded.content,
            parts=[part.to_dict() for part in loaded.parts] if loaded.format else None,
            writers=[writer.record for writer in self._writers],
            viewers=[viewer.record for viewer in self._viewers],
            stop=self._stop,
            stop_was_requested=self._stop_was_requested,
            was_saved=self._was_saved,
            message_ids=[self._message_ids[position] for position in sorted(self._message_ids)],
        )
        if wrong := judge(evidence):
            raise AssertionError("\n".join(wrong))
        return Outcome(
            schedule=self._schedule,
            seconds=time.monotonic() - self._started,
            status=message["status"],
            tokens=sum(content.count("<") for content in evidence.texts[0].contents),
            chunks=message["next_sequence"],
            pages=len(pages),
            done=self._done,
        )

    async def _documents(self, collection: str, match: dict[str, Any]) -> list[dict[str, Any]]:
        return await self._server.documents(self._database, collection, match)


class _Writer:
    """A process that writes, and what it reports."""

    def __init__(self, child: Child, record: WriterRecord) -> None:
        self.child = child
        self.record = record
        self.has_left = asyncio.Event()
        self.was_killed = False

    def kill(self) -> None:
        self.was_killed = True
        self.child.kill()


class _Viewer:
    """Somebody who watches, in one process after the other."""

    def __init__(self, plan: ViewerPlan, record: ViewerRecord) -> None:
        self.plan = plan
        self.record = record
        self.child: Child | None = None
        self.watches = asyncio.Event()
        self.was_killed = False
        self.is_to_return = asyncio.Event()


class _Progress:
    """How many of all tokens have been written; wakes those who wait for a part of them."""

    def __init__(self, goal: int) -> None:
        self._goal = goal
        self._part = 0.0
        self._written: dict[int, int] = {}
        self._waiting: list[tuple[float, asyncio.Event]] = []

    def advance(self, writer: int, count: int) -> None:
        self._written[writer] = count
        self._wake(sum(self._written.values()) / self._goal)

    def finish(self) -> None:
        self._wake(1.0)

    def _wake(self, part: float) -> None:
        self._part = max(self._part, part)
        for at, event in self._waiting:
            if at <= self._part:
                event.set()

    async def reaches(self, at: float) -> None:
        event = asyncio.Event()
        self._waiting.append((at, event))
        self._wake(0.0)
        await event.wait()
