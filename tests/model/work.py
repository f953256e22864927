"""Processes that work on queued messages of the simulated server, in any order, with any trouble.

Each has a store of its own, and does some things at a time. Each call to the server waits until the
world answers it, loses it, or lets it come late. Processes die, and are frozen for longer than a
lease. In the end all trouble is over, and all work has to get done.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from random import Random
from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import DuplicateKeyError, PyMongoError

from converse_mongo.domain import errors
from converse_mongo.domain.chunks import Piece
from converse_mongo.domain.headers import WORK_FORMAT, MessageHeader, message_key
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.open_calls import CallAnswer
from converse_mongo.domain.part_log import TOOL_CALL
from converse_mongo.domain.part_pieces import AnyPiece, PartPiece, PartRef
from converse_mongo.domain.types import MessageStatus
from converse_mongo.domain.work import Job, WorkState
from converse_mongo.store import (
    Options,
    Store,
    WriteQueue,
    appends,
    calls,
    pages,
    recovery,
    updates,
)
from converse_mongo.store.appends import WriterClaim
from converse_mongo.store.updates import End
from tests.model.contract import broken
from tests.model.server import (
    CLOCK,
    MESSAGES,
    Fate,
    RemoteCollection,
    RemoteDatabase,
    Request,
    Server,
    no_answer,
)
from tests.model.work_contract import PLAIN, Step, WorkContract
from tests.model.world import simulate

__all__ = ["World", "in_the_world"]

CONVERSATION = ObjectId("c" * 24)
IDS = [ObjectId(f"{number}" * 24) for number in range(1, 5)]
LEASE = 30.0
START: dict[str, Any] = {
    "position": 0,
    "role": "assistant",
    "status": "streaming",
    "content": "",
    "next_sequence": 0,
    "page_start": 0,
    "chunk_bytes": 0,
    "content_bytes": 0,
    "error": None,
    "stop_reason": None,
}
CALLS_AT_MOST = 400
WORKERS = ("one", "two", "three")
PROCESSES = (*WORKERS, "web", "sweeper")
PAUSE = "pause"
STEPS = 300

REFUSALS = (
    errors.MessageNotFoundError,
    errors.MessageNotStreamingError,
    errors.StreamStoppedError,
    errors.WriterFencedError,
    errors.CallNotPendingError,
    errors.MessageQueuedError,
    errors.WriterExistsError,
)

_step: ContextVar[Step] = ContextVar("step")
_world: ContextVar["World"] = ContextVar("world")


def in_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes all clocks that of the world, and pages so long that there are none."""

    async def pause(seconds: float) -> None:
        await _world.get().pause(seconds)

    simulate(monkeypatch, parts=True)
    monkeypatch.setattr(pages, "PAGE_CHUNKS", 10_000)
    monkeypatch.setattr(recovery, "pause", pause)
    monkeypatch.setattr(pages, "PAGE_BYTES", 10_000_000)
    for module in (appends, calls, updates):
        monkeypatch.setattr(module, "MAX_LIVE_BYTES", 10_000_000)


class Process:
    """A process; what it knows is gone when it crashes."""

    def __init__(self, world: "World", name: str) -> None:
        self.name = name
        self.frozen = 0
        self._database = RemoteDatabase(world.server, world.sent)
        self.start()

    def start(self) -> None:
        options = Options(retry_timeout=0, lease=LEASE, idle_timeout=LEASE, retention=None)
        self.store = Store(
            RemoteCollection(self._database, MESSAGES),
            RemoteCollection(self._database, "conversations"),
            options=options,
        )
        self.tasks: dict[Step, asyncio.Task[None]] = {}

    def queue(self, state: MessageHeader) -> WriteQueue:
        queue = self.store.queue((state.message_id, state.log_id))
        queue.has_work = True
        return queue


class World:
    """Some messages, and all who do something with them.

    Attributes:
        calm: Whether nothing goes wrong any more.
    """

    def __init__(self, seed: int, *, moves: Sequence[str] = ()) -> None:
        CLOCK.reset()
        self.random = Random(seed)
        self.loop = asyncio.new_event_loop()
        self.server = Server(lagging=False)
        self.contract = WorkContract(self.server)
        self.server.on_write = self.contract.written
        self.limit = self.random.choice([1, 1, 2])
        self.calm = False
        self.moves = moves or tuple(MOVES)
        self._count = 0
        self._processes = {name: Process(self, name) for name in PROCESSES}
        self._finished: list[Step] = []

    # Calls

    def sent(self, request: Request) -> asyncio.Future[Any]:
        step = _step.get()
        request.operation, request.answer = step, self.loop.create_future()
        step.request = request
        return request.answer

    def pause(self, seconds: float) -> asyncio.Future[Any]:
        """What waits until so much time has passed."""
        return self.sent(Request(PAUSE, lambda: CLOCK.advance(seconds)))

    def begin(
        self, process: Process, kind: str, work: Callable[[Step], Coroutine[Any, Any, Any]]
    ) -> Step:
        self._count += 1
        step = Step(f"{process.name}:{kind}:{self._count}", process.name, kind)

        async def run() -> None:
            _step.set(step)
            _world.set(self)
            try:
                step.outcome = await work(step)
            except Exception as error:  # noqa: BLE001 - it is judged
                step.outcome = error
            process.tasks.pop(step, None)
            self._finished.append(step)

        process.tasks[step] = self.loop.create_task(run(), name=step.label)
        self._spin()
        return step

    def _spin(self) -> None:
        """Lets all tasks run until each of them waits for an answer or is done."""
        loop: Any = self.loop
        while loop._ready:
            loop.call_soon(loop.stop)
            loop.run_forever()
        while self._finished:
            self._judge(self._finished.pop(0))

    def _judge(self, step: Step) -> None:
        error = step.outcome
        if isinstance(error, errors.StoreUnavailableError):
            if not step.troubles:
                broken("There is an answer where there is no trouble", step, error)
        elif isinstance(error, Exception) and not isinstance(error, REFUSALS):
            raise error
        self.contract.check_acknowledged()

    def answer(self, step: Step, fate: Fate = Fate.DONE) -> None:
        """Decides on the call that ``step`` waits for."""
        request, step.request = step.request, None
        assert request is not None
        assert request.answer is not None
        if request.name == PAUSE or fate is Fate.DONE:
            try:
                request.answer.set_result(self.server.perform(request))
            except PyMongoError as error:
                request.answer.set_exception(error)
        else:
            step.troubles += 1
            if fate is Fate.ANSWER_LOST:
                self._perform_unseen(request)
            elif fate is Fate.LATE and request.writes:
                self.server.late.append(request)
            request.answer.set_exception(no_answer())
        self._spin()

    def _perform_unseen(self, request: Request) -> None:
        with contextlib.suppress(PyMongoError):
            self.server.perform(request)

    def finish(self, step: Step) -> None:
        """Answers all calls of ``step``."""
        for _ in range(CALLS_AT_MOST):
            if step.request is None:
                return
            self.answer(step)
        broken("Everything comes to an end", step)

    # Trouble

    def run(self, steps: int = STEPS) -> None:
        """Has things happen, and all of it end."""
        try:
            for _ in range(steps):
                self._happen()
            self._settle()
        finally:
            self.close()

    def _happen(self) -> None:
        random = self.random
        chance = random.random()
        waiting = [
            step
            for process in self._processes.values()
            if process.frozen <= 0
            for step in process.tasks
            if step.request is not None
        ]
        for process in self._processes.values():
            process.frozen -= 1
        if chance < 0.02:
            self._crash(self._processes[random.choice(PROCESSES)])
        elif chance < 0.04:
            self._processes[random.choice(PROCESSES)].frozen = random.randint(5, 40)
        elif chance < 0.07:
            CLOCK.advance(random.choice([1, LEASE / 2, LEASE + 1]))
        elif chance < 0.1 and self.server.late:
            late = self.server.late
            self._perform_unseen(late.pop(random.randrange(len(late))))
        elif chance < 0.75 and waiting:
            fates = [Fate.DONE] * 24 + list(Fate)
            self.answer(random.choice(waiting), random.choice(fates))
        else:
            move = random.choice(self.moves)
            who = MOVES[move]
            process = self._processes[random.choice(who)]
            if len(process.tasks) < 2 and process.frozen <= 0:
                ACTIVITIES[move](self, process)

    def _crash(self, process: Process) -> None:
        for step, task in list(process.tasks.items()):
            request, step.request = step.request, None
            if request is not None and request.writes and request.name != PAUSE:
                fate = self.random.choice(list(Fate))
                if fate is Fate.LATE:
                    self.server.late.append(request)
                elif fate in (Fate.DONE, Fate.ANSWER_LOST):
                    self._perform_unseen(request)
            task.cancel()
        self._spin()
        process.start()

    # The end

    def _settle(self) -> None:
        """Has all trouble be over: then all that was asked for gets done."""
        self.calm = True
        late = self.server.late
        while late:
            self._perform_unseen(late.pop(self.random.randrange(len(late))))
        for process in self._processes.values():
            for step in list(process.tasks):
                self.finish(step)
        for _ in range(40):
            CLOCK.advance(LEASE + 1)
            self._tidy()
            for message_id, view in list(self.contract.now.items()):
                if view.streams and view.state == PLAIN:
                    self.finish(enlist(self, self._processes["one"], message_id))
            if not self._work_off():
                break
        else:
            broken("All work gets done", self.contract.now)
        for view in self.contract.now.values():
            if view.streams and view.state != "waiting":
                broken("Nothing is left behind", view)
            if view.log_id in self.contract.stops and view.streams:
                broken("A stop wins", view)
        for _ in range(20):
            for message_id, view in list(self.contract.now.items()):
                if view.state == "waiting":
                    self.finish(answer(self, self._processes["web"], message_id))
            CLOCK.advance(LEASE + 1)
            self._work_off()
        self._tidy()
        if any(view.streams for view in self.contract.now.values()):
            broken("All that was waited for gets done", self.contract.now)
        if self.contract.places():
            broken("No place is held by the dead after a sweep", self.contract.places())

    def _tidy(self) -> None:
        """Sweeps, as the processes do in intervals."""
        sweeper = self._processes["sweeper"]
        self.finish(recover(self, sweeper))
        self.finish(sweep(self, sweeper))
        self.contract.check_swept()

    def _work_off(self) -> bool:
        """Has a worker do what is due; returns whether there was something."""
        before = self.contract.now
        worker = self._processes[self.random.choice(WORKERS)]
        self.finish(work(self, worker))
        return self.contract.now != before

    def close(self) -> None:
        """Ends all tasks without a further call."""
        for process in self._processes.values():
            for task in process.tasks.values():
                task.cancel()
        self._finished.clear()
        loop: Any = self.loop
        while loop._ready:
            loop.call_soon(loop.stop)
            loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


# What processes do


def new_ticket(log_id: ObjectId) -> ObjectId:
    """The ticket of a try to insert a message; each has its own, as in ``Message``."""
    return ObjectId()


async def insert(
    store: Store, key: dict[str, Any], work: dict[str, Any] | None, lease: Lease | None = None
) -> None:
    """Adds a message, if there is none with its id."""
    document = {
        **key,
        **START,
        "chunks": [],
        "metadata": {},
        "lease": dict(lease or Lease()),
        **({} if work is None else {"work": work}),
        "format": WORK_FORMAT,
        "created_at": CLOCK.now,
    }

    async def add() -> None:
        with contextlib.suppress(DuplicateKeyError):
            await store.messages.insert_one(document)

    await store.call(add, what="start a message")


def enqueue(world: World, process: Process) -> Step:
    """Starts a message, if there is none with its id."""
    random = world.random
    message_id, log_id = random.choice(IDS), ObjectId()
    key = None if message_id == IDS[-1] else "k"
    job = Job(
        queue="q",
        key=key,
        priority=random.randint(0, 1),
        delay=random.choice([None, None, 5.0]),
        limit=world.limit if key else None,
        max_attempts=random.choice([1, 2, 3]),
    )

    async def run(step: Step) -> None:
        store = process.store
        made = await store.jobs.work_of(job)
        blocked = made.state is WorkState.BLOCKED
        key = message_key(message_id, CONVERSATION, log_id)
        work = dict(made) | ({"ticket": new_ticket(log_id)} if blocked else {})
        await insert(store, key, work)
        await store.jobs.enqueued(key)

    return world.begin(process, "enqueue", run)


def start(world: World, process: Process) -> Step:
    """Starts a message that has no queue."""
    key = message_key(world.random.choice(IDS), CONVERSATION, ObjectId())

    async def run(step: Step) -> None:
        await insert(process.store, key, None)

    return world.begin(process, "start", run)


def begin(world: World, process: Process) -> Step:
    """Starts a message that it has claimed already, and writes it."""
    random, calm = Random(world.random.random()), world.calm
    job = Job(queue="q", max_attempts=random.choice([1, 2, 3]))
    key = message_key(random.choice(IDS), CONVERSATION, ObjectId())

    async def run(step: Step) -> None:
        store, holder = process.store, ObjectId()
        work = (await store.jobs.work_of(job)).claimed()
        lease = Lease.born(holder, await store.leases.clock.now(), LEASE)
        await insert(store, key, dict(work), lease)
        state = await _state(process, key["_id"])
        if state is not None and state.lease.holder == holder:
            await write(world, process, step, state, random, calm=calm)

    return world.begin(process, "begin", run)


def enlist(world: World, process: Process, message_id: ObjectId | None = None) -> Step:
    """Puts a message that has no queue into one, and writes it."""
    random, calm = Random(world.random.random()), world.calm
    chosen = message_id or random.choice(IDS)
    job = Job(queue="q", max_attempts=random.choice([1, 2, 3]))

    async def run(step: Step) -> None:
        state = await _state(process, chosen)
        if state is not None and not state.status.is_final:
            claimed = await process.store.jobs.enlist(state.key, job)
            if claimed is not None:
                await write(world, process, step, claimed, random, calm=calm)

    return world.begin(process, "enlist", run)


def work(world: World, process: Process) -> Step:
    """Looks for what is due, and does it."""
    random, calm = Random(world.random.random()), world.calm

    async def run(step: Step) -> None:
        jobs = process.store.jobs
        found = await jobs.due(["q"], 4)
        for state in found if calm else found[:1]:
            assert state.work is not None
            step.holder = None
            if state.work.state is WorkState.DELAYED:
                await jobs.undelay(state)
            elif state.work.state is WorkState.WAITING:
                await process.store.calls.expire(process.queue(state), state)
            else:
                await claim(step, state)

    async def claim(step: Step, state: MessageHeader) -> None:
        claimed = await process.store.jobs.claim(state)
        if claimed is not None:
            await write(world, process, step, claimed, random, calm=calm)

    return world.begin(process, "work", run)


async def write(
    world: World,
    process: Process,
    step: Step,
    claimed: MessageHeader,
    random: Random,
    *,
    calm: bool,
) -> None:
    """Writes what was claimed."""
    step.holder = claimed.lease.holder
    generation = Generation(world, process, step, claimed, random)
    try:
        for number in range(0 if calm else random.randint(0, 3)):
            await generation.go_on(number)
        await generation.leave(calm=calm)
    except errors.StreamStoppedError:
        with contextlib.suppress(errors.WriterFencedError, errors.MessageNotStreamingError):
            await generation.end(MessageStatus.CANCELLED)


class Generation:
    """An attempt of a worker to write an answer."""

    def __init__(
        self, world: World, process: Process, step: Step, claimed: MessageHeader, random: Random
    ) -> None:
        self._world, self._process, self._step = world, process, step
        self._claimed, self._random = claimed, random
        self._store, self._queue = process.store, process.queue(claimed)
        self._calls: list[PartRef] = []

    async def go_on(self, number: int) -> None:
        """Writes something, or sends a heartbeat."""
        random = self._random
        match random.choice(["text", "text", "ask", "ask", "tool", "reset", "renew"]):
            case "renew":
                await self._store.leases.renew(self._claimed.key, self._claimed.lease)
            case "text":
                text = f"{self._step.label}.{number};"
                await self._append([Piece(text, {}, len(text))], text)
            case "tool" if self._calls:
                call = random.choice(self._calls)
                await self._append([PartPiece("set", call, {"output": self._step.label})])
            case "reset":
                first = random.randint(0, self._claimed.next_sequence + number)
                await self._append([PartPiece("reset", fields={"from": first})])
                self._calls.clear()
            case _:
                await self._append([self._call(number)])

    def _call(self, number: int) -> PartPiece:
        ref = PartRef(TOOL_CALL)
        ref.is_clients = self._random.random() < 0.5
        fields: dict[str, Any] = {
            "kind": TOOL_CALL,
            "name": "t",
            "call_id": f"{self._step.label}.{number}",
            "input": 1,
        }
        if ref.is_clients:
            fields["executor"] = "client"
        if not ref.is_clients or self._random.random() < 0.3:
            fields["approval"] = {"id": f"a{number}"}
        self._calls.append(ref)
        return PartPiece("start", fields=fields, marks=ref)

    async def _append(self, pieces: Sequence[AnyPiece], *said: str) -> None:
        claim = WriterClaim(self._claimed.lease, True, lambda: None)
        has_parts = any(isinstance(piece, PartPiece) for piece in pieces)
        await self._store.appends.append(
            self._queue, self._claimed.key, pieces, None, claim, has_parts=has_parts
        )
        assert self._claimed.log_id is not None
        self._world.contract.appended(self._step, self._claimed.log_id, *said)

    async def leave(self, *, calm: bool) -> None:
        """Lets go of the message, or dies with it."""
        jobs, key, lease = self._store.jobs, self._claimed.key, self._claimed.lease
        ways = ["end"] if calm else ["end", "end", "die", "hand over", "retry", "later", "suspend"]
        work: Any = self._claimed.work
        match self._random.choice([*ways, *(() if calm else ("suspend", "release"))]):
            case "die":
                pass
            case "hand over":
                await jobs.hand_over(key, lease, work.queue, {"by": self._step.label})
            case "retry" if not work.is_last_attempt:
                await jobs.retry(key, lease)
            case "later" if not work.is_last_attempt:
                await jobs.retry(key, lease, 20.0)
            case "suspend":
                await jobs.suspend(key, lease, self._random.choice([None, 40.0]))
            case "release":
                await self._store.leases.release(key, lease)
            case _:
                await self.end(self._random.choice(FINAL))

    async def end(self, status: MessageStatus) -> None:
        """Ends the message."""
        error = "it broke" if status is MessageStatus.FAILED else None
        await self._store.ends.end(
            self._queue, self._claimed.key, End(status, {}, error), lease=self._claimed.lease
        )


FINAL = [MessageStatus.COMPLETED, MessageStatus.FAILED]


def answer(world: World, process: Process, message_id: ObjectId | None = None) -> Step:
    """Answers some calls that wait, as a person does."""
    random, calm = Random(world.random.random()), world.calm
    chosen = message_id or random.choice(IDS)

    async def run(step: Step) -> None:
        state = await _state(process, chosen)
        if state is None or state.work is None or not state.work.pending:
            return
        calls = [each for each in state.work.pending if calm or random.random() < 0.6]
        answers = []
        for call in {each.call_id: each for each in calls}.values():
            if call.wanted == "approval":
                fields: dict[str, Any] = {"approved": random.random() < 0.5, "reason": step.label}
            else:
                fields = {"output": step.label}
            answers.append(CallAnswer(call.call_id, call.wanted, fields))
        if answers:
            await process.store.calls.answer(process.queue(state), state.key, answers)

    return world.begin(process, "answer", run)


def stop(world: World, process: Process) -> Step:
    """Asks for a stop."""
    chosen = world.random.choice(IDS)

    async def run(step: Step) -> None:
        state = await _state(process, chosen)
        if state is None:
            return
        found = await process.store.leases.request_stop(state.key, step.label)
        if not (found.status.is_final or found.stop_requested):
            broken("A stop ends a message, or has it stopped", step, found)
        assert found.log_id is not None
        world.contract.stops.add(found.log_id)

    return world.begin(process, "stop", run)


def take(world: World, process: Process) -> Step:
    """Wants to write to a message without a queue, and then dies."""
    kind, chosen = world.random.choice(["acquire", "take_over"]), world.random.choice(IDS)

    async def run(step: Step) -> None:
        state = await _state(process, chosen)
        if state is not None:
            await getattr(process.store.leases, kind)(state.key)

    return world.begin(process, "take", run)


def delete(world: World, process: Process) -> Step:
    """Deletes a message, as ``Message`` does."""
    chosen = world.random.choice(IDS)

    async def run(step: Step) -> None:
        state = await _state(process, chosen)
        if state is None:
            return
        store = process.store
        await store.call(store.messages.delete_one, state.key, what="delete a message")
        await store.paging.delete(state.key)
        await store.key_places.release_of(state.message_id, state.work)

    return world.begin(process, "delete", run)


def recover(world: World, process: Process) -> Step:
    """Looks for messages whose worker died."""

    async def run(step: Step) -> None:
        await process.store.recovery.recover_stale()

    return world.begin(process, "recover", run)


def sweep(world: World, process: Process) -> Step:
    """Looks for places that are held by the dead."""

    async def run(step: Step) -> None:
        await process.store.key_places.sweep()

    return world.begin(process, "sweep", run)


async def _state(process: Process, message_id: ObjectId) -> MessageHeader | None:
    read: Callable[..., Awaitable[MessageHeader | None]] = process.store.reader.state
    return await process.store.call(read, message_id, CONVERSATION, what="read a message")


ACTIVITIES: dict[str, Callable[[World, Process], Step]] = {
    "enqueue": enqueue,
    "start": start,
    "begin": begin,
    "enlist": enlist,
    "work": work,
    "answer": answer,
    "stop": stop,
    "delete": delete,
    "take": take,
    "recover": recover,
    "sweep": sweep,
}

MOVES: dict[str, Sequence[str]] = {
    "enqueue": ("web",),
    "start": ("web",),
    "begin": ("one", "two"),
    "enlist": WORKERS,
    "work": WORKERS,
    "answer": ("web", "sweeper"),
    "stop": ("web",),
    "delete": ("web",),
    "take": ("web",),
    "recover": ("sweeper", "one"),
    "sweep": ("sweeper", "two"),
}
"""Who does what."""
