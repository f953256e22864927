"""What runs in child processes: workers, web processes and an observer, which report all."""

import asyncio
import contextlib
import json
import logging
import random
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from bson import ObjectId
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from converse_mongo import (
    Approval,
    Conversation,
    Converse,
    ConverseError,
    Event,
    FinalEvent,
    Message,
    MessageCreated,
    MessageNotFoundError,
    MessageQueued,
    MessageStarted,
    MessageSuspended,
    MessageWriter,
    NotFoundError,
    Queue,
    Retry,
    RetryPolicy,
    StoreUnavailableError,
    ToolCallPart,
    ToolOutput,
    TransactionAbortedError,
)
from converse_mongo.store import work_updates
from converse_mongo.web import Generations
from tests.faults.observing import Shot, held_throughout, oddities
from tests.faults.programs import (
    Access,
    Tell,
    crash_before,
    describe,
    log_to,
    retry_reads,
    run,
    use_small_pages,
)
from tests.faults.work_schedules import WEB_QUEUE, MessagePlan, WorkCrash, WorkSchedule

__all__ = ["ABORTED", "BUSY", "PLANNED", "Observing", "Serving", "Working", "work_token"]

BUSY = "the provider is busy"
"""The reason of every retry that is asked for."""
PLANNED = "no such model"
"""The error of every attempt that is to fail."""

RETRIES = RetryPolicy(max=10, backoff=0.1)
ABORTED = -1
"""In place of the life of a message whose transaction is aborted."""

POLL_SECONDS = 0.5
SAMPLE_SECONDS = 0.1

WORK_EVENTS = (MessageQueued, MessageStarted, MessageSuspended)


def work_token(plan: MessagePlan, life: int, epoch: int, number: int) -> str:
    """A text that no other write has: its message, the life of that, the attempt, its number."""
    chance = random.Random(f"{plan.seed} {epoch} {number}")
    padding = chance.randint(0, plan.padding)
    return f"<{plan.number}.{life}.{epoch}.{number}{'·' * padding}>"


async def orders_in(orders: Connection) -> AsyncIterator[dict[str, Any]]:
    """Yields the orders of the runner."""
    reader = asyncio.StreamReader(limit=1024 * 1024)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), orders
    )
    while (line := await reader.readline()).endswith(b"\n"):
        yield json.loads(line)


class _Complaints(logging.Handler):
    """Reports what is logged and should never be."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(logging.ERROR)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "asyncio" or record.levelno >= logging.CRITICAL:
            self._tell("complaint", text=self.format(record))


# Workers


@dataclass(frozen=True, slots=True)
class Working:
    """A process with a worker, until it is ordered to close."""

    access: Access
    schedule: WorkSchedule
    crash: WorkCrash | None

    def __call__(self, reports: Connection, orders: Connection) -> None:
        log_to(self.access.log)
        use_small_pages(self.schedule.page_chunks)
        crash_before(self.crash, work_updates)
        run(partial(self.work, orders), reports)

    async def work(self, orders: Connection, tell: Tell) -> None:
        logging.getLogger().addHandler(_Complaints(tell))
        converse, schedule = await self.access.open(), self.schedule

        async def wait_for_an_order() -> None:
            async for _ in orders_in(orders):
                return

        async with converse.worker(
            partial(_respond, schedule, tell),
            queues=sorted({each.queue for each in schedule.messages if not each.is_of_web}),
            concurrency=schedule.concurrency,
            retry=RETRIES,
            start_over=schedule.start_over[False],
            grace=schedule.grace,
            silence=schedule.silence,
            poll_interval=POLL_SECONDS,
        ) as worker:
            tell("ready")
            running = asyncio.create_task(worker.run())
            ordered = asyncio.create_task(wait_for_an_order())
            await asyncio.wait({running, ordered}, return_when=asyncio.FIRST_COMPLETED)
            worker.close()
            await running
        await converse.aclose()
        tell("left")


async def _respond(
    schedule: WorkSchedule, tell: Tell, _conversation: Conversation, message: Message
) -> None:
    await _Answer(schedule, message, tell).give()


class _Answer:
    """What an application does with a message."""

    def __init__(self, schedule: WorkSchedule, message: Message, tell: Tell) -> None:
        assert message._attempt is not None
        header = message._attempt._state  # type: ignore[attr-defined]
        self._message = message
        self._plan = schedule.messages[message.metadata["m"]]
        self._may_hang = schedule.silence is not None
        self._life: int = message.metadata["life"]
        self._epoch: int = header.lease.epoch
        self._attempt: int = header.work.attempt
        self._tell = partial(tell, m=self._plan.number, life=self._life, epoch=self._epoch)
        self._phase = int((message.checkpoint or {}).get("phase", 0))
        self._number = self._count = 0
        self._said_at = time.monotonic()

    async def give(self) -> None:
        message = self._message
        self._tell(
            "begins",
            attempt=self._attempt,
            at=time.monotonic(),
            count=message.next_sequence,
            content=message.content,
            phase=self._phase,
        )
        starts_over = self._plan.style == "start_over" and message.next_sequence > 0
        try:
            if starts_over:
                self._tell("resets")
            async with message.writer(
                flush_interval=0.01, granularity="token", interrupt=bool(self._plan.seed % 2)
            ) as writer:
                if starts_over:
                    self._tell("has_reset")
                how = await self._write(writer)
        except BaseException as error:
            cause = type(error.__cause__).__name__
            self._tell("leaves", how=type(error).__name__, cause=cause, phase=0)
            raise
        self._tell("leaves", how=how, cause=None, phase=self._phase)

    async def _write(self, writer: MessageWriter) -> str:
        plan, message = self._plan, self._message
        begun = self._phase
        calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
        asked = len(calls)
        self._count = 0 if plan.style == "start_over" else message.content.count("<")
        if plan.style == "reset" and message.next_sequence and self._attempt > 1:
            self._tell("resets")
            await writer.reset(0)
            self._tell("has_reset")
            asked, self._count = begun, sum(phase.tokens for phase in plan.phases[:begun])
        goal = sum(phase.tokens for phase in plan.phases[:begun])
        for number, phase in enumerate(plan.phases[begun:], begun):
            goal += phase.tokens
            while self._count < goal:
                if plan.heeds and writer.handing_over:
                    self._phase = number
                    self._tell("turns")
                    await writer.detach({"phase": number})
                    return "detached"
                await self._say(writer)
            await self._flush(writer)
            if plan.hangs and self._may_hang and self._attempt == 1:
                await asyncio.Event().wait()
            if self._attempt <= plan.retries:
                self._tell("turns")
                raise Retry(BUSY, after=plan.retry_after)
            if not phase.asks:
                break
            if asked <= number:
                await self._ask(writer, number, phase.asks)
            await asyncio.sleep(phase.lingers)
            self._phase = number + 1
            self._tell("turns")
            await writer.suspend({"phase": self._phase}, expires=phase.expires)
            return "suspended"
        self._tell("turns")
        if plan.fails:
            raise ValueError(PLANNED)
        return "completed"

    async def _say(self, writer: MessageWriter) -> None:
        plan, number = self._plan, self._number
        self._tell("writes", number=number)
        self._said_at = time.monotonic()
        await writer.write(work_token(plan, self._life, self._epoch, number))
        self._number += 1
        self._count += 1
        if self._number % plan.flush_every == 0:
            await self._flush(writer)
        await asyncio.sleep(plan.pause)

    async def _flush(self, writer: MessageWriter) -> None:
        await writer.flush()
        # The last token was stored after that moment: the lease was held until then.
        self._tell("stored", count=self._number, at=self._said_at)

    async def _ask(self, writer: MessageWriter, number: int, asks: str) -> None:
        call_id = f"{self._plan.number}.{self._life}.{self._epoch}.{number}"
        call = await writer.start_tool_call(
            "ask", call_id=call_id, executor="client" if asks == "output" else "server"
        )
        await call.set_input({"of": call_id})
        if asks == "approval":
            await call.request_approval()
        self._tell("asks", call=call_id)


# Web processes


@dataclass(frozen=True, slots=True)
class Serving:
    """A web process: it does what it is ordered to, and says what came of it."""

    access: Access
    schedule: WorkSchedule
    crash: WorkCrash | None

    def __call__(self, reports: Connection, orders: Connection) -> None:
        log_to(self.access.log)
        use_small_pages(self.schedule.page_chunks)
        crash_before(self.crash, work_updates)
        run(partial(self.serve, orders), reports)

    async def serve(self, orders: Connection, tell: Tell) -> None:
        logging.getLogger().addHandler(_Complaints(tell))
        converse, schedule = await self.access.open(), self.schedule
        generations = Generations(
            partial(_respond, schedule, tell),
            queue=WEB_QUEUE,
            start_over=schedule.start_over[True],
            retry=RETRIES,
            grace=schedule.grace,
            silence=schedule.silence,
        )
        generations.serve(converse)
        web = _Web(converse, schedule, generations, tell)
        async with generations:
            tell("ready")
            tasks: set[asyncio.Task[None]] = set()
            async for order in orders_in(orders):
                if order["do"] == "close":
                    break
                task = asyncio.create_task(web.obey(order))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await converse.aclose()
        tell("left")


class _Web:
    """What a web process can do."""

    def __init__(
        self, converse: Converse, schedule: WorkSchedule, generations: Generations, tell: Tell
    ) -> None:
        self._converse = converse
        self._schedule = schedule
        self._generations = generations
        self._tell = tell

    async def obey(self, order: dict[str, Any]) -> None:
        do: Callable[..., Awaitable[dict[str, Any]]] = getattr(self, f"_do_{order.pop('do')}")
        number = order.pop("id", None)
        try:
            found = await do(**order)
        except ConverseError as error:
            found = {"error": type(error).__name__, "text": str(error)}
        except Exception:
            self._tell("broken", error=traceback.format_exc())
            raise
        if number is not None:
            self._tell("reply", id=number, **found)

    async def _do_enqueue(
        self, m: int, life: int, conversation: str, generation: str
    ) -> dict[str, Any]:
        plan = self._schedule.messages[m]
        of = await retry_reads(lambda: self._converse.get_conversation(conversation))

        async def ask(life: int, *, aborted: bool = False) -> Message:
            while True:
                try:
                    async with self._converse.transaction():
                        about = {"question": m, "life": life}
                        await of.create_user_message(
                            "?", about, generation_id=f"question {m} {life}"
                        )
                        message = await self._queue(of, plan, life, generation)
                        if aborted:
                            raise _ChangedMindError
                        return message
                except TransactionAbortedError:
                    await asyncio.sleep(0.05)

        if plan.question == "aborted":
            with contextlib.suppress(_ChangedMindError):
                await retry_reads(lambda: ask(ABORTED, aborted=True))
        message = await retry_reads(
            lambda: ask(life) if plan.question else self._queue(of, plan, life, generation)
        )
        return {"message_id": str(message.id), "life": message.metadata["life"]}

    async def _queue(
        self, of: Conversation, plan: MessagePlan, life: int, generation: str
    ) -> Message:
        metadata = dict[str, Any](m=plan.number, life=life)
        if plan.is_of_web:
            generations = self._generations
            return await generations.begin(
                of, lambda: generations.add(of, generation, None, metadata)
            )
        return await of.start_streaming_assistant(
            metadata,
            generation_id=generation,
            queue=Queue(plan.queue, per_key=plan.limit),
            key=plan.key,
            priority=plan.priority,
            delay=plan.delay,
            max_attempts=plan.max_attempts,
        )

    async def _do_stop(self, message_id: str, reason: str) -> dict[str, Any]:
        status = await retry_reads(lambda: self._converse.request_stop(message_id, reason))
        message = await retry_reads(lambda: self._converse.get_message(message_id))
        return {
            "status": status.value,
            "life": message.metadata["life"],
            "epoch": message.lease.epoch if message.lease else 0,
            "count": message.next_sequence,
        }

    async def _do_delete(self, message_id: str, life: int) -> dict[str, Any]:
        async def delete() -> None:
            message = await self._converse.get_message(message_id)
            if message.metadata["life"] == life:
                await message.delete()

        with contextlib.suppress(MessageNotFoundError):  # deleted by a try whose answer was lost
            await retry_reads(delete)
        return {}

    async def _do_answer(
        self, message_id: str, call: str, asks: str, value: int, append_id: str
    ) -> dict[str, Any]:
        answer: Approval | ToolOutput = ToolOutput(call, value)
        if asks == "approval":
            answer = Approval(call, approved=bool(value % 2), reason=str(value))
        while True:
            try:
                await self._converse.answer_tool_calls(
                    message_id, [answer], append_id=ObjectId(append_id)
                )
            except StoreUnavailableError:
                continue
            return {"stored": True}

    async def _do_watch(self, viewer: str, message_id: str, m: int, after: int | None) -> Any:
        plan = self._schedule.messages[m]
        chance = random.Random(f"{plan.seed} {after}")
        while True:
            watcher: Any = self._converse.watch_message(message_id, after)
            is_known = False
            try:
                async for event in watcher:
                    if not is_known:  # the id may be that of another life
                        message = await retry_reads(lambda: self._converse.get_message(message_id))
                        if viewer != f"{m}.{message.metadata['life']}":
                            raise MessageNotFoundError(message.id)
                        is_known = True
                    said = describe_work(event)
                    self._tell("event", viewer=viewer, **said)
                    if "sequence" in said:
                        after = said["sequence"]
                    if isinstance(event, FinalEvent):
                        return {}
                    await asyncio.sleep(chance.uniform(0, plan.slowness))
                    if plan.restless and chance.random() < 0.05:
                        await watcher.aclose()
                        self._tell("returns", viewer=viewer)
                        break
            except NotFoundError:
                self._tell("gone", viewer=viewer)
                return {}

    async def _do_follow(self, conversation: int, of: str, after: str | None) -> Any:
        chance = random.Random(f"{self._schedule.seed} {conversation} {after}")
        while True:
            watcher: Any = self._converse.watch_conversation(of, after)
            try:
                async for event in watcher:
                    self._tell("followed", conversation=conversation, **describe_work(event))
                    after = event.cursor or after
                    if chance.random() < 0.02:
                        await watcher.aclose()
                        self._tell("returns")
                        break
            except ConverseError as error:
                text = f"the viewer of conversation {conversation} met {error!r}"
                self._tell("complaint", text=text)
                return {}


class _ChangedMindError(Exception):
    """A transaction is not to be committed."""


def describe_work(event: Event) -> dict[str, Any]:
    """What a viewer says of an event."""
    said = describe(event)
    if isinstance(event, WORK_EVENTS):
        said["attempt"] = event.attempt
    if isinstance(event, MessageSuspended):
        said["pending"] = [call.call_id for call in event.pending]
    if isinstance(event, MessageCreated):
        said["metadata"] = dict(event.metadata)
    return said


# The observer


@dataclass(frozen=True, slots=True)
class Observing:
    """A process that looks at what is stored, again and again, without the library."""

    uri: str
    database: str

    def __call__(self, reports: Connection) -> None:
        run(self.observe, reports)

    async def observe(self, tell: Tell) -> None:
        client: MongoClient[dict[str, Any]] = MongoClient(
            self.uri,
            directConnection=True,
            appname="observer",
            serverSelectionTimeoutMS=500,
            socketTimeoutMS=1000,
            heartbeatFrequencyMS=500,
        )
        database = client[self.database]
        before: Shot | None = None
        while True:
            try:
                places = list(database.message_places.find({"running": {"$exists": True}}))
                messages = list(
                    database.messages.find(
                        {"work": {"$exists": True}},
                        {"work": 1, "lease": 1, "status": 1, "stop_requested_at": 1, "log_id": 1},
                    )
                )
            except PyMongoError:
                before = None
            else:
                shot = Shot.of(messages)
                wrong = oddities(messages)
                if before is not None:
                    wrong += held_throughout(before, places, shot)
                before = shot
                try:
                    tell("sampled", wrong=wrong)
                except BrokenPipeError:
                    return  # the runner is done
            await asyncio.sleep(SAMPLE_SECONDS)
