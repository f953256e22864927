"""Generations: a worker inside a web process, for the answers that begin there."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from contextlib import ExitStack, suppress
from contextvars import Context
from functools import partial
from types import TracebackType
from typing import Any, Self

from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo.converse import DEFAULT_RETRIES, Converse
from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.documents.responding import (
    Respond,
    check_respond,
    header_of,
    load_attempt,
    load_started,
    start_claimed,
)
from converse_mongo.domain.errors import (
    ConfigurationError,
    ConverseClosedError,
    ConverseError,
    InvalidInputError,
)
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.queues import AnyQueue, Queue, as_queue, job
from converse_mongo.domain.retries import RetryPolicy
from converse_mongo.domain.validation import check_int
from converse_mongo.driver.closing import CLOSE_SECONDS
from converse_mongo.store import Store, Transaction, context_apart, open_transaction
from converse_mongo.web.answering import RESTARTING, Beginnings
from converse_mongo.web.errors import BusyError
from converse_mongo.web.limits import Slots
from converse_mongo.working.attempt import Attempt
from converse_mongo.working.room import Room
from converse_mongo.working.worker import Worker, WorkerOptions

logger = logging.getLogger("converse_mongo")

QUEUE = Queue("generations")


class Generations:
    """Writes answers in the background, so that no disconnect and no reload ends one.

    Use it in the lifespan of the application, inside that of the ``Converse``. It is a worker for
    the answers that begin in this process: each is in a queue from its start, so that no crash and
    no deployment loses it. Another process with the same ``queue`` goes on with it, or this one
    when it runs again. Leaving it gives running answers ``grace`` seconds, and then gives them back
    to their queue.

    A message ends with ``respond``: one that is left streaming is failed. The exception is logged,
    and neither stored here nor sent; ``Message.writer`` says what a writer stores of one.

    Args:
        respond: Writes the answer, for example with ``async with message.writer()``; see
            :data:`Respond`.
        limit: The most answers that may run at once; more raise :class:`BusyError`.
        grace: Seconds that running answers have to finish when it is closed.
        queue: The queue of its answers, or the name of one. Processes that have another ``respond``
            on the same database need another queue.
        start_over: True to void, before each further attempt, what an earlier one has written, for
            a ``respond`` that always begins anew. ``False`` for one that goes on behind
            ``message.parts`` and ``message.checkpoint``, and may suspend.
        retry: What errors of ``respond`` lead to.
        timeout: Seconds for an attempt; a longer one is ended, and made again. ``None`` for no
            limit.
        silence: Seconds without a write, and without ``writer.heartbeat()``, after which an attempt
            is ended and made again. ``None`` for no limit.

    Raises:
        ConfigurationError: An option makes no sense.
    """

    def __init__(
        self,
        respond: Respond,
        *,
        limit: int = 1000,
        grace: float = 5.0,
        queue: AnyQueue = QUEUE,
        start_over: bool = True,
        retry: RetryPolicy = DEFAULT_RETRIES,
        timeout: float | None = None,
        silence: float | None = None,
    ) -> None:
        self._respond = check_respond(respond)
        try:
            self._queue = as_queue(queue)
            self._options = WorkerOptions.of(
                queues=[self._queue],
                concurrency=check_int(limit, "limit", 1),
                retry=retry,
                timeout=timeout,
                silence=silence,
                start_over=start_over,
                grace=grace,
            )
        except InvalidInputError as error:
            raise ConfigurationError(f"Generations: {error}") from error
        if self._queue.per_key is not None:
            raise ConfigurationError(
                f"queue={queue!r} has a limit per key, which holds for workers alone: pass "
                "limits=Limits(answers_per_key=...) to routes() instead."
            )
        self._served: list[Converse] = []
        self._workers: dict[Store, Worker] = {}
        # A message that was deleted and started again has the same id, and needs its own writer.
        self._answers: dict[tuple[ObjectId, ObjectId | None], _Answer] = {}
        self._claimed: dict[asyncio.Task[Any] | None, Message] = {}
        """The messages that were added as claimed, by the tasks that still create them."""
        self._entered = 0
        self._beginnings = Beginnings()
        self._room = Room(
            self._options.concurrency, lambda: len(self._beginnings) + len(self._waiting)
        )
        self._freeing: asyncio.Task[None] | None = None
        # Not that of a request: what other processes began is not for its user, nor of its trace.
        self._context = Context()
        self._closed = False

    @property
    def queue(self) -> str:
        """The name of the queue of its answers."""
        return self._queue.name

    @property
    def running(self) -> int:
        """The number of answers that are being written."""
        return len(self._waiting) + sum(worker.running for worker in self._workers.values())

    @property
    def _waiting(self) -> "list[_Answer]":
        """Those that have not got as far as an attempt."""
        return [answer for answer in self._answers.values() if answer.attempt is None]

    def writes(self, message: Message) -> bool:
        """Returns whether ``respond`` is running for a message."""
        key = message.id, message.log_id
        return key in self._answers or any(
            (attempt.message_id, attempt.state.log_id) == key
            for worker in self._workers.values()
            for attempt in worker.attempts
        )

    def check_room(self) -> None:
        """Checks that one more answer can be started.

        Raises:
            BusyError: ``limit`` run already, or it is closed.
        """
        if self._closed:
            raise BusyError(RESTARTING)
        if self._is_full:
            limit = self._options.concurrency
            logger.warning("An answer was refused: limit=%d are being written", limit)
            raise BusyError

    @property
    def _is_full(self) -> bool:
        # What respond() does behind the end of its message counts less, and is bounded as well.
        limit, begun = self._options.concurrency, len(self._beginnings)
        claiming = sum(worker.claiming for worker in self._workers.values())
        return self.running + begun + claiming >= limit or self._room.taken >= 2 * limit

    # The worker

    def serve(self, converse: Converse) -> None:
        """Has the answers of a ``Converse`` seen through, once that is open: ``routes`` does so.

        Until the first request it looks for them only if it was entered with ``async with``.
        """
        if converse not in self._served:
            self._served.append(converse)

    def look_after(self) -> None:
        """Sees to the answers in the queue that no process is writing."""
        for converse in self._served:
            if not (self._closed or converse.closed):
                model = converse.message_model
                if model.bound_store is not None:
                    self._worker(model, model.bound_store)

    def _worker(self, model: type[Message], store: Store) -> Worker:
        """Returns the worker that has a store, which runs until the store is closed."""
        worker = self._workers.get(store)
        if worker is None:
            load = partial(load_attempt, model, self._respond)
            worker = self._workers[store] = Worker(store, load, self._options, self._room)
            running = asyncio.create_task(
                self._run(store, worker),
                name="converse_mongo-generations",
                context=self._context.copy(),
            )
            store.background.add(running)
            running.add_done_callback(store.background.discard)
            if self._closed:  # for an answer that began before
                worker.close()
        return worker

    async def _run(self, store: Store, worker: Worker) -> None:
        try:
            if not worker.closed:  # it may be before this began
                await worker.run()
        except ConverseClosedError:
            pass
        except Exception:
            logger.critical("The worker of Generations crashed", exc_info=True)
        finally:
            worker.close()
            if not self._closed and self._workers.get(store) is worker:
                del self._workers[store]

    # Answers

    async def begin(
        self,
        conversation: Conversation,
        create: Callable[[], Awaitable[Message]],
        *,
        name: Hashable = None,
        slots: Slots | None = None,
        key: Hashable = None,
    ) -> Message:
        """Creates a message and starts its answer, even if the request is cancelled meanwhile.

        Within ``converse.transaction()`` the message belongs to the transaction, and is written
        once that is committed. ``respond`` runs in the context of the caller, without its
        transaction and without a deadline of ``pymongo.timeout()``.

        Args:
            conversation: The conversation.
            create: Starts the message, or finds it.
            name: Names the answer. If one of that name is being created, this waits for it.
            slots: The slots of keys, of which the answer takes one until its message has ended, or
                waits for people.
            key: The key that takes the slot.

        Raises:
            BusyError: ``limit`` run already, or it is closed; nothing was created.
            LimitError: The key has no slot left; nothing was created.
        """
        name = object() if name is None else name
        task = self._beginnings.find(name)
        full = self._is_full or (slots is not None and slots.is_full(key))
        if task is None and full and not self._closed:
            await self.free_ended()
            task = self._beginnings.find(name)
        if task is None:
            self.check_room()
            taken = ExitStack()
            if slots is not None:
                taken.enter_context(slots.hold(key))
            task = self._beginnings.start(name, partial(self._create, conversation, create, taken))
            task.add_done_callback(lambda _: taken.close())  # also if it never runs
            task.add_done_callback(self._room.note)
        return await self._beginnings.finish(task)

    async def _create(
        self, conversation: Conversation, create: Callable[[], Awaitable[Message]], taken: ExitStack
    ) -> Message:
        task = asyncio.current_task()
        try:
            message = await create()
            is_claimed = self.holds(message)
        except BaseException:
            if task in self._claimed:
                await self._give_back(self._claimed[task])
            raise
        finally:
            self._claimed.pop(task, None)
        if is_claimed or _has_no_writer(message):  # else it was found
            self._start(conversation, message, taken.pop_all(), is_claimed=is_claimed)
        return message

    async def add(
        self,
        conversation: Conversation,
        name: str,
        key: Hashable,  # noqa: ARG002 - it holds a slot here
        metadata: dict[str, str] | None = None,
    ) -> Message:
        """Adds the message of an answer, or finds it, while it is created."""
        holder = ObjectId()
        message = await start_claimed(conversation, self._job(), holder, metadata, name)
        if message.lease is not None and message.lease.holder == holder:
            self._claimed[asyncio.current_task()] = message
        return message

    async def _give_back(self, message: Message) -> None:
        """Gives a message to its queue whose request failed behind its insert."""
        store, state = message.store(), header_of(message)
        if open_transaction(store) is not None:
            return  # it is not committed
        try:
            await store.jobs.hand_over(state.key, state.lease, self.queue)
        except (ConverseError, PyMongoError) as error:
            logger.warning("Message %s is left to its lease (%s)", message.id, error)

    def holds(self, message: Message) -> bool:
        """Returns whether the message that is being created is claimed by this process."""
        claimed, lease = self._claimed.get(asyncio.current_task()), message.lease
        if claimed is None or claimed.lease is None or lease is None:
            return False
        return lease.is_held_by(claimed.lease)

    def _job(self) -> Any:
        return job(self._queue)

    async def adopt(self, conversation: Conversation, message: Message) -> None:
        """Starts the answer of a message that nobody has begun to write, if there is room."""
        await self.free_ended()
        with suppress(BusyError):
            self.start(conversation, message)

    async def free_ended(self) -> None:
        """Frees the slots of answers whose messages have ended, however long ``respond`` goes on.

        The database is asked, once for all that wait: a client may have seen the end before this
        process has.
        """
        before = self._freeing
        if before is not None:  # it may have asked too early
            await asyncio.wait({before})
        if self._freeing is before or self._freeing is None:
            self._freeing = asyncio.create_task(
                self._free_what_has_ended(),
                name="converse_mongo-generation-free",
                context=Context(),  # others wait for it, too
            )
        await asyncio.shield(self._freeing)

    async def _free_what_has_ended(self) -> None:
        for store, worker in list(self._workers.items()):
            attempts = {each.message_id: each for each in worker.attempts if not each.is_over}
            if not attempts:
                continue
            conversations = {key: each.state.conversation_id for key, each in attempts.items()}
            counters = await store.call(
                store.reader.counters, conversations, what="look which answers have ended"
            )
            for key, attempt in attempts.items():
                if key not in counters or counters[key].ended:
                    attempt.note_ended()
        for answer in self._answers.values():
            if answer.attempt is not None and answer.attempt.is_over:
                answer.free()

    def start(self, conversation: Conversation, message: Message) -> None:
        """Starts ``respond`` for a streaming message that nobody has begun to write.

        It does nothing if somebody has. A message that was started in another queue is left to
        the workers of that.

        Raises:
            BusyError: ``limit`` run already, or it is closed.
            InvalidInputError: It has chunks, but was not started with a queue.
        """
        if message.is_streaming and message.work is None and message.next_sequence:
            raise InvalidInputError(
                f"Message {message.id} has chunks already: start it with queue={self.queue!r} to "
                "have it generated here. Nothing was written."
            )
        if _has_no_writer(message) and not self.writes(message):
            self.check_room()
            self._start(conversation, message, ExitStack(), is_claimed=False)

    def _start(
        self, conversation: Conversation, message: Message, taken: ExitStack, *, is_claimed: bool
    ) -> None:
        key = message.id, message.log_id
        if not message.is_streaming or key in self._answers:
            taken.close()
            return
        transaction = open_transaction(message.store())
        answer = self._answers[key] = _Answer(conversation, message, taken)
        answer.task = asyncio.create_task(
            self._write(answer, transaction, is_claimed=is_claimed),
            name=f"converse_mongo-generation-{message.id}",
            # It outlives its request, and the deadline of that.
            context=context_apart(),
        )

        def forget(_task: object) -> None:
            answer.free()
            self._answers.pop(key, None)
            self._room.note()

        answer.task.add_done_callback(forget)

    async def _write(
        self, answer: "_Answer", transaction: Transaction | None, *, is_claimed: bool
    ) -> None:
        if transaction is not None and not await transaction.outcome():
            return  # the message was never created
        conversation, message = answer.conversation, answer.message
        store, load = message.store(), None
        state: MessageHeader | None
        if is_claimed:
            state = header_of(message)
            load = partial(load_started, conversation, message, self._respond)
        else:
            try:
                state = await store.jobs.enlist(header_of(message).key, self._job())
            except (ConverseError, PyMongoError) as error:
                logger.warning("Message %s could not be claimed (%s)", message.id, error)
                return
        if state is None:
            return
        worker = self._worker(type(message), store)
        answer.attempt, running = worker.take_on(state, load)
        await asyncio.wait({running})

    # The end

    async def aclose(self) -> None:
        """Refuses new answers, and returns once all that run have ended, or were given back.

        It takes ``grace`` seconds, and then a few more while MongoDB does not answer. An answer
        that is left then goes back to its queue once its lease has run out.
        """
        self._closed = True
        for worker in self._workers.values():
            worker.close()
        time, grace = asyncio.get_running_loop().time, self._options.grace
        due = time() + grace
        while (beginning := self._begin_tasks()) and time() < due:
            await asyncio.wait(beginning, timeout=due - time())
        for task in beginning:
            task.cancel()
        if beginning:
            await asyncio.wait(beginning, timeout=CLOSE_SECONDS)
        left = max(due - time(), 0.0)
        await asyncio.gather(*(worker.drain(left) for worker in self._workers.values()))
        self._workers.clear()

    def _begin_tasks(self) -> set[asyncio.Task[Any]]:
        """The tasks of answers that have not got as far as an attempt."""
        tasks: set[asyncio.Task[Any]] = set(self._beginnings.tasks)
        return tasks | {answer.task for answer in self._waiting if answer.task is not None}

    async def __aenter__(self) -> Self:
        self._entered += 1
        self._closed = False
        self._context = context_apart()
        self.look_after()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if not self._entered:  # else a nested application has ended
            await self.aclose()


class _Answer:
    """An answer that began here.

    Attributes:
        conversation: The conversation.
        message: The message.
        attempt: The attempt at it, once it is claimed.
        task: The task that claims it, and waits for the attempt.
    """

    def __init__(self, conversation: Conversation, message: Message, taken: ExitStack) -> None:
        self.conversation = conversation
        self.message = message
        self.attempt: Attempt | None = None
        self.task: asyncio.Task[None] | None = None
        self._taken = taken

    def free(self) -> None:
        """Frees the slot that it takes."""
        self._taken.close()


def _has_no_writer(message: Message) -> bool:
    """Returns whether a message streams, and nobody has begun to write it, nor a queue has it."""
    has_writer = message.lease is not None and message.lease.epoch > 0
    return message.is_streaming and message.work is None and not has_writer
