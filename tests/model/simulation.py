"""Processes that run the library against the simulated server, one call at a time.

Each process has a store of its own, as processes have; each thing that it does is a task, which
waits whenever it calls the server until the simulation answers. So every interleaving can be had,
and the same one again.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from itertools import count
from typing import Any, TypeVar

from bson import ObjectId
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from converse_mongo.domain.chunks import MessageChunk, StoredChunk
from converse_mongo.domain.errors import MessageNotFoundError, WriterFencedError
from converse_mongo.domain.headers import message_key
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.part_pieces import PartRef
from converse_mongo.store import Options, Store
from converse_mongo.store.reads import Reader
from tests.model.contract import CONVERSATION_ID, MESSAGE, MESSAGE_ID, Contract, broken
from tests.model.server import (
    CLOCK,
    MESSAGES,
    PAGES,
    Fate,
    Operation,
    RemoteCollection,
    RemoteDatabase,
    Request,
    Server,
    no_answer,
)
from tests.model.speech import Part, said

__all__ = ["Process", "Simulation", "contract", "pause"]

T = TypeVar("T")

IDS = (MESSAGE_ID, CONVERSATION_ID)
LEASE, IDLE_TIMEOUT = 30.0, 60.0
PATIENCE = 10.0
"""For how long an append of who is hasty waits for room."""
RECENT_CHUNKS = 4
CALLS_AT_MOST = 200
"""No operation needs more calls when nothing gets in its way."""

PAUSE = "pause"

_current: ContextVar[Operation] = ContextVar("operation")
_simulation: ContextVar["Simulation"] = ContextVar("simulation")


def contract() -> Contract:
    """The contract that what runs just now is held to."""
    return _simulation.get().contract


async def pause(seconds: float) -> None:
    """Waits until the simulation lets so much time pass; what others do comes before."""
    await _simulation.get().pause(seconds)


class Process:
    """A process of the application; what it knows is gone when it crashes.

    Attributes:
        log_id: The log of the message that it was given: of an old copy, one that is no more.
        lease: That of its writer, if it has one.
        stopped: Whether its writer has heard of a stop.
        reads_what_is_safe: Whether it reads only what no failover takes back, as who watches does.
        copy: The stored chunks that its copy of the message has.
        begun: The parts that its writer began.
        seen: The stored chunks that the consumer that follows the message here has had, and of
            which log.
    """

    def __init__(
        self,
        name: str,
        server: Server,
        sender: Callable[[Request], Any],
        log_id: ObjectId | None,
        *,
        hasty: bool,
    ) -> None:
        self.name = name
        self._concern = WriteConcern(1 if hasty else "majority")
        self._patience = PATIENCE if hasty else 0
        self.log_id = log_id
        self.reads_what_is_safe = name in ("reader", "follower")
        self._database = RemoteDatabase(server, sender)
        self.seen: tuple[ObjectId | None, list[StoredChunk]] = (log_id, [])
        self.start()

    def start(self) -> None:
        """Starts it anew."""
        self.store = Store(
            RemoteCollection(self._database, MESSAGES, write_concern=self._concern),
            RemoteCollection(self._database, "conversations", write_concern=self._concern),
            options=Options(retry_timeout=self._patience, lease=LEASE, idle_timeout=IDLE_TIMEOUT),
        )
        level = "majority" if self.reads_what_is_safe else "local"
        self.reader = _reader(self._database, ReadConcern(level))
        self.tasks: dict[Operation, asyncio.Task[None]] = {}
        self.take_up(self.log_id)

    def take_up(self, log_id: ObjectId | None) -> None:
        """Goes on with the message of a log, of which it knows nothing."""
        self.log_id = log_id
        self.queue = self.store.queue((MESSAGE_ID, log_id))
        self.lease: Lease | None = None
        self.stopped = False
        self.copy: list[StoredChunk] = []
        self.begun: list[Part] = []

    @property
    def key(self) -> dict[str, Any]:
        """The filter that finds its message."""
        return message_key(*IDS, self.log_id)

    def is_sealing(self, log_id: ObjectId | None) -> bool:
        """Whether something that it does moves chunks of a log to a page."""
        queue = self.store.queues.get((MESSAGE_ID, log_id))
        return queue is not None and queue.sealing

    def check_queue(self) -> None:
        """Checks that nobody waits in the queue of a message until a seal gets its answers."""
        if self.queue.sealing and self.queue.lock.locked():
            sent = [task for task in self.tasks if task.request and task.log_id == self.log_id]
            if len(sent) == 1:  # by who seals: so it holds the queue as well
                broken("Nobody holds the queue of a message for a seal", *sent)

    def take(self, log_id: ObjectId | None, chunks: Sequence[MessageChunk]) -> None:
        """Follows an append to a log with the copy of this process."""
        if log_id == self.log_id and len(self.copy) == chunks[0].sequence:
            self.copy += [chunk.to_stored() for chunk in chunks]

    @property
    def parts(self) -> list[Part]:
        """The parts that its copy has."""
        return [
            Part(said(chunk), chunk["fields"]["kind"], PartRef(None, chunk["sequence"]))
            for chunk in self.copy
            if chunk.get("event") == "start" and said(chunk)
        ]


def _reader(database: RemoteDatabase, concern: ReadConcern | None = None) -> Reader:
    messages, conversations, pages = (
        RemoteCollection(database, name, concern) for name in (MESSAGES, "conversations", PAGES)
    )
    return Reader(messages, conversations, pages)


class Simulation:
    """One message, and all who do something with it.

    Where they are ``hasty`` they write with ``w: 1``, and wait for room where a majority is behind.
    Where there are ``parts`` they write these as well as text.
    """

    def __init__(
        self,
        *,
        lagging: bool,
        hasty: bool,
        idle_timeout: float | None,
        retention: float | None,
        most_live_bytes: int,
        parts: bool = False,
    ) -> None:
        CLOCK.reset()
        self.parts = parts
        self.loop = asyncio.new_event_loop()
        self.retention = retention
        self.server = Server(lagging)
        self._idle_timeout = idle_timeout
        self._logs = count(1)
        self.server.primary[MESSAGES].insert_one(self.new_message())
        self.contract = Contract(self.server, most_live_bytes, PATIENCE if hasty else 0, hasty)
        self.server.replicate()
        self.server.on_write = self._written
        self.server.on_read = self.contract.read
        self.server.on_replicated = self.contract.replicated
        names = ("alpha", "beta", "reader", "follower", "sweeper", "other sweeper")
        log_id = self.contract.now.log_id
        self.processes = {
            name: Process(name, self.server, self._sent, log_id, hasty=hasty) for name in names
        }
        fresh = RemoteDatabase(self.server, lambda request: None)
        self._fresh = _reader(fresh)
        self._count = 0
        self._finished: list[tuple[Operation, Callable[[Operation, Any], None]]] = []

    def new_message(self) -> dict[str, Any]:
        """The document of the generation, as it is when it is started."""
        return {
            **MESSAGE,
            "position": 0,
            "role": "assistant",
            "status": "streaming",
            "content": "",
            "chunks": [],
            "next_sequence": 0,
            "page_start": 0,
            "chunk_bytes": 0,
            "content_bytes": 0,
            "metadata": {},
            "error": None,
            "stop_reason": None,
            "retention": self.retention,
            "log_id": ObjectId(f"{next(self._logs):024x}"),
            "lease": {"epoch": 0, "duration": self._idle_timeout, "renewed_at": None},
            "created_at": CLOCK.now,
        }

    # What processes do

    def begin(
        self,
        process: Process,
        kind: str,
        work: Callable[[Operation], Coroutine[Any, Any, Any]],
        judge: Callable[[Operation, Any], None],
        **attributes: Any,
    ) -> Operation:
        """Has ``process`` begin something; ``judge`` gets what it returned or raised."""
        self._count += 1
        operation = Operation(
            f"{process.name}:{kind}:{self._count}",
            process.name,
            kind,
            began=CLOCK.now,
            safe_before=self.contract.safe,
            deletions=self.contract.deletions,
            orphaned=self.contract.now.signs if self.contract.now.expired else -1,
            **attributes,
        )

        async def run() -> None:
            _current.set(operation)
            _simulation.set(self)
            try:
                operation.outcome = await work(operation)
            except Exception as error:  # noqa: BLE001 - it is judged
                operation.outcome = error
            operation.queued = process.is_sealing(operation.log_id)
            del process.tasks[operation]
            self._finished.append((operation, judge))

        process.tasks[operation] = self.loop.create_task(run(), name=operation.label)
        self._spin()
        return operation

    def next_label(self) -> str:
        """Something that no operation before had to do with."""
        return str(self._count + 1)

    @property
    def waiting(self) -> list[Operation]:
        """What waits for an answer, in the order in which it began."""
        running = [operation for process in self.processes.values() for operation in process.tasks]
        return [operation for operation in running if operation.request is not None]

    def _sent(self, request: Request) -> asyncio.Future[Any]:
        operation = _current.get()
        request.operation, request.answer = operation, self.loop.create_future()
        operation.request = request
        return request.answer

    def pause(self, seconds: float) -> asyncio.Future[Any]:
        """What an operation waits for that lets time pass."""
        return self._sent(Request(PAUSE, lambda: CLOCK.advance(seconds)))

    def _spin(self) -> None:
        """Lets all tasks run until each of them waits for an answer or is done."""
        loop: Any = self.loop
        while loop._ready:
            loop.call_soon(loop.stop)
            loop.run_forever()
        for process in self.processes.values():
            process.check_queue()
        while self._finished:
            operation, judge = self._finished.pop(0)
            if isinstance(operation.outcome, AssertionError):
                raise operation.outcome
            judge(operation, operation.outcome)
            self._tell(operation)

    def _tell(self, operation: Operation) -> None:
        """Gives a process that heard that its message is gone the one that has its id now."""
        process, log_id = self.processes[operation.process], self.contract.now.log_id
        if isinstance(operation.outcome, (MessageNotFoundError, WriterFencedError)):
            stale = operation.log_id == process.log_id != log_id
            if stale and log_id is not None:
                process.take_up(log_id)

    # What becomes of their calls

    def answer(self, operation: Operation, fate: Fate = Fate.DONE) -> None:
        """Decides on the call that ``operation`` waits for."""
        request, operation.request = operation.request, None
        assert request is not None
        assert request.answer is not None
        if request.name == PAUSE:
            fate = Fate.DONE
        if fate is Fate.DONE and self.server.isolated and request.writes and request.majority:
            fate = Fate.ANSWER_LOST  # there is no majority to wait for
        if fate is Fate.DONE:
            try:
                request.answer.set_result(self.server.perform(request))
            except PyMongoError as error:
                request.answer.set_exception(error)
        else:
            operation.troubles += 1
            self._lose(request, fate)
            request.answer.set_exception(no_answer())
        self._spin()

    def _lose(self, request: Request, fate: Fate) -> None:
        if fate is Fate.LATE and request.writes:
            self.server.late.append(request)
        elif fate is Fate.ANSWER_LOST:
            self._perform_unseen(request)

    def _perform_unseen(self, request: Request) -> None:
        with contextlib.suppress(PyMongoError):  # nobody is there to hear of it
            self.server.perform(request, confirmed=False)

    def interrupt(self, operation: Operation, fate: Fate) -> None:
        """Cancels the call that ``operation`` waits for; the driver may go on with it."""
        request, operation.request = operation.request, None
        assert request is not None
        assert request.answer is not None
        operation.troubles += 1
        operation.interrupted = True
        self._lose(request, fate)
        request.answer.cancel()
        self._spin()

    def finish(self, operation: Operation) -> None:
        """Answers all calls of ``operation``, as long as it makes some."""
        for _ in range(CALLS_AT_MOST):
            if operation.request is None:
                return
            self.answer(operation)
        broken("Everything comes to an end", operation)

    def arrive(self) -> None:
        """Performs a call, if there is one, whose sender has given up long ago."""
        if self.server.late:
            self._perform_unseen(self.server.late.pop())

    def crash(self, name: str, fate: Fate) -> None:
        """Ends a process; ``fate`` is that of the calls that it was waiting for."""
        process = self.processes[name]
        for operation, task in list(process.tasks.items()):
            request, operation.request = operation.request, None
            if request is not None:
                self._lose(request, fate)
            task.cancel()
        self._spin()
        process.start()

    def fail_over(self) -> None:
        """Loses the primary; what it had not passed on is gone."""
        self.server.fail_over()
        self.contract.failed_over()

    # What is always true

    def _written(self, operation: Operation) -> None:
        self.contract.written(operation)
        self.check_readable()

    def check_readable(self) -> None:
        """Has the library read it, as somebody does who comes just now."""
        log = self.contract.now.log
        stored = self.server.primary[MESSAGES].find_one(MESSAGE)
        if stored is None:
            return
        at_once(self._fresh.add_moved_chunks(stored))
        sequences = [chunk["sequence"] for chunk in stored["chunks"]]
        if sequences != list(range(len(log))) or not self.contract.now.has(stored["chunks"]):
            broken("A reader gets the log as it is", sequences, stored["chunks"], log)
        # What comes in pieces is read from where the last writes were.
        start = max(0, len(log) - RECENT_CHUNKS)
        while start < len(log):
            found = at_once(self._fresh.read(*IDS, start, RECENT_CHUNKS, stored["page_start"]))
            if found is None or not found[1]:
                broken("A reader finds every chunk", start, log)
            if not self.contract.now.has([chunk.to_stored() for chunk in found[1]], start):
                broken("A reader gets the log as it is", found[1], log)
            start += len(found[1])

    # The end

    def close(self) -> None:
        """Ends all tasks without a further call."""
        for process in self.processes.values():
            for task in process.tasks.values():
                task.cancel()
        self._finished.clear()
        self._spin()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waited for something")
