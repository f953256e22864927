"""Generations: the background tasks that write answers and outlive their requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeAlias

from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo.documents.conversations import Conversation, load_context
from converse_mongo.documents.messages import Message
from converse_mongo.domain.errors import (
    ConfigurationError,
    ConversationNotFoundError,
    ConverseClosedError,
    ConverseError,
    MessageNotFoundError,
    MessageNotStreamingError,
    StreamStoppedError,
    WriterExistsError,
    WriterFailedError,
    WriterFencedError,
)
from converse_mongo.domain.types import MessageStatus
from converse_mongo.driver.closing import CLOSE_SECONDS
from converse_mongo.driver.deadlines import bounded
from converse_mongo.driver.shielded import ShieldedTask
from converse_mongo.store import Store, Transaction, context_apart, open_transaction
from converse_mongo.store.answers import CONVERSATION_DELETED
from converse_mongo.web.answering import RESTARTING, Beginnings
from converse_mongo.web.errors import BusyError
from converse_mongo.web.limits import Slots

logger = logging.getLogger("converse_mongo")

Respond: TypeAlias = Callable[[Conversation, Message], Awaitable[None]]
"""Writes the answer of the model into a streaming message."""

UNFINISHED = "The answer could not be generated."
SHUT_DOWN = "The service was shut down."

END_SECONDS = 10.0
"""The time for which closing waits for answers that were cancelled, as long as some end."""


class Generations:
    """Writes answers in the background, so that no disconnect and no reload ends one.

    Use it in the lifespan of the application. Leaving it gives running answers ``grace`` seconds,
    and then cancels them, which stores their text and ends their messages.

    A message ends with ``respond``: one that is left streaming is failed. The exception is logged,
    and neither stored here nor sent; ``Message.writer`` says what a writer stores of one.

    Args:
        respond: Writes the answer, for example with ``async with message.writer()``. Open the
            writer before you ask the model: if two processes were asked for the same answer, one of
            them is refused the writer.
        limit: The most answers that may run at once; more raise :class:`BusyError`.
        grace: Seconds that running answers have to finish when it is closed.
    """

    def __init__(self, respond: Respond, *, limit: int = 1000, grace: float = 5.0) -> None:
        if not callable(respond):
            raise ConfigurationError(f"respond={respond!r}: pass a coroutine function.")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigurationError(f"limit={limit!r}: pass an integer, at least 1.")
        if isinstance(grace, bool) or not isinstance(grace, int | float) or not grace >= 0:
            raise ConfigurationError(f"grace={grace!r}: pass a number of seconds, at least 0.")
        self._respond = respond
        self._limit = limit
        self._grace = grace
        # A message that was deleted and started again has the same id, and needs its own writer.
        self._answers: dict[tuple[ObjectId, ObjectId | None], _Answer] = {}
        self._beginnings = Beginnings()
        self._freeing: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def running(self) -> int:
        """The number of answers that are being written."""
        return sum([not answer.is_free for answer in self._answers.values()])

    def writes(self, message: Message) -> bool:
        """Returns whether ``respond`` is running for a message."""
        return (message.id, message.log_id) in self._answers

    def check_room(self) -> None:
        """Checks that one more answer can be started.

        Raises:
            BusyError: ``limit`` run already, or it is closed.
        """
        if self._closed:
            raise BusyError(RESTARTING)
        if self._is_full:
            logger.warning("An answer was refused: limit=%d are being written", self._limit)
            raise BusyError

    @property
    def _is_full(self) -> bool:
        # What respond() does behind the end of its message counts less, and is bounded as well.
        begun = len(self._beginnings)
        return self.running + begun >= self._limit or len(self._answers) + begun >= 2 * self._limit

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
            slots: The slots of keys, of which the answer takes one until its message has ended.
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
        return await self._beginnings.finish(task)

    async def _create(
        self, conversation: Conversation, create: Callable[[], Awaitable[Message]], taken: ExitStack
    ) -> Message:
        with taken:
            message = await create()
            if message.lease is None or not message.lease.epoch:  # else it was found
                self._start(conversation, message, taken.pop_all())
        return message

    async def add(
        self,
        conversation: Conversation,
        name: str,
        key: Hashable,  # noqa: ARG002 - it holds a slot here
        metadata: dict[str, str] | None = None,
    ) -> Message:
        """Adds the message of an answer, or finds it, while it is created."""
        return await conversation.start_streaming_assistant(metadata, generation_id=name)

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
                self._free_what_has_ended(), name="converse_mongo-generation-free"
            )
        await asyncio.shield(self._freeing)

    async def _free_what_has_ended(self) -> None:
        stores: dict[Store, dict[ObjectId, _Answer]] = {}
        for answer in self._answers.values():
            if not answer.is_free:
                stores.setdefault(answer.message.store(), {})[answer.message.id] = answer
        for store, answers in stores.items():
            keys = {key: answer.message.conversation_id for key, answer in answers.items()}
            counters = await store.call(
                store.reader.counters, keys, what="look which answers have ended"
            )
            for key, answer in answers.items():
                if key not in counters or counters[key].ended:
                    answer.free()

    def start(self, conversation: Conversation, message: Message) -> None:
        """Starts ``respond`` for a streaming message, unless it runs here already, or is queued.

        Raises:
            BusyError: ``limit`` run already, or it is closed.
        """
        if message.is_streaming and message.work is None and not self.writes(message):
            self.check_room()
        self._start(conversation, message, ExitStack())

    def _start(self, conversation: Conversation, message: Message, taken: ExitStack) -> None:
        key = message.id, message.log_id
        if not message.is_streaming or message.work is not None or key in self._answers:
            taken.close()
            return
        transaction = open_transaction(message.store())
        answer = self._answers[key] = _Answer(conversation, message, taken)
        answer.task = asyncio.create_task(
            self._write(answer, transaction),
            name=f"converse_mongo-generation-{message.id}",
            # It outlives its request, and the deadline of that.
            context=context_apart(),
        )

        def forget(_task: object) -> None:
            answer.free()
            self._answers.pop(key, None)

        answer.task.add_done_callback(forget)

    async def _write(self, answer: "_Answer", transaction: Transaction | None) -> None:
        message = answer.message
        if transaction is not None and not await transaction.outcome():
            return  # the message was never created
        metadata: dict[str, str] | None = None
        try:
            with answer.listening():
                await load_context(answer.conversation)
                writing = self._respond(answer.conversation, message)
                if not isinstance(writing, Awaitable):
                    kind = type(writing).__name__
                    raise TypeError(f"respond returned {kind}: it must be a coroutine function")
                await writing
        except StreamStoppedError:
            pass  # a stop was requested, and the message is cancelled
        except WriterExistsError:
            logger.info("Message %s is being written by another process", message.id)
            return
        except (WriterFencedError, ConverseClosedError) as error:
            logger.warning("The generation of message %s ended: %s", message.id, error)
            return
        except asyncio.CancelledError:
            if answer.verdict is not None:
                logger.info("The generation of message %s ended: %s", message.id, answer.verdict)
                return
            # However often this is cancelled: it has a time limit.
            await ShieldedTask(
                lambda: self._end(message, lambda: message.cancel_streaming(SHUT_DOWN)),
                "converse_mongo-generation-end",
            ).finish()
            raise
        except Exception as error:
            if answer.is_due_to_its_end(error):
                logger.info("The generation of message %s ended: %s", message.id, error)
            else:
                logger.exception("The generation of message %s failed", message.id)
            metadata = {"error_type": type(error).__name__}
        await self._end(message, lambda: message.fail_streaming(UNFINISHED, metadata))

    async def _end(self, message: Message, end: Callable[[], Awaitable[object]]) -> None:
        """Ends a message that was left streaming."""
        if not message.is_streaming:
            return
        try:
            if self._closed:
                await bounded(CLOSE_SECONDS, end, own=True)
            else:
                await end()
        except MessageNotStreamingError:
            pass  # its writer ended it
        except MessageNotFoundError:
            logger.info("Message %s was deleted while it was generated", message.id)
        except (ConverseError, PyMongoError) as error:
            if self._closed:
                logger.warning("Message %s is left to its lease: %s", message.id, error)
            else:
                logger.exception("Message %s could not be ended", message.id)

    async def aclose(self) -> None:
        """Refuses new answers, and returns once all that run have ended.

        It takes ``grace`` seconds, and then a few more as long as answers end. One that does not,
        since MongoDB does not answer or ``respond`` does not let itself be cancelled, is left: its
        message ends once its lease has run out.
        """
        self._closed = True
        time = asyncio.get_running_loop().time
        due = time() + self._grace
        while (left := self._tasks()) and time() < due:
            await asyncio.wait(left, timeout=due - time())
        last, due = time() + END_SECONDS, time() + CLOSE_SECONDS
        # Again, since on Python 3.11 a driver may swallow a cancellation.
        while (left := self._tasks()) and time() < min(due, last):
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=CLOSE_SECONDS / 8)
            if len(self._tasks()) < len(left):
                due = time() + CLOSE_SECONDS
        if left:
            logger.warning(
                "%d answers were left when the service was shut down, and end once their leases "
                "have run out: %s",
                *(len(left), ", ".join(str(key) for key, _ in self._answers)),
            )

    def _tasks(self) -> set[asyncio.Task[Any]]:
        tasks: set[asyncio.Task[Any]] = set(self._beginnings.tasks)
        for answer in self._answers.values():
            if answer.task is not None:
                tasks.add(answer.task)
        return tasks

    async def __aenter__(self) -> Self:
        self._closed = False
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class _Answer:
    """An answer that ``respond`` writes.

    Attributes:
        conversation: The conversation.
        message: The message.
        task: The task that runs ``respond``.
        verdict: The reason to end ``respond``, if its message has ended, or is gone, and it has no
            writer that could tell it.
        is_free: True once it takes no slot any more.
    """

    def __init__(self, conversation: Conversation, message: Message, taken: ExitStack) -> None:
        self.conversation = conversation
        self.message = message
        self.task: asyncio.Task[None] | None = None
        self.verdict: str | None = None
        self.is_free = False
        self._taken = taken
        self._looking: asyncio.Task[None] | None = None

    def free(self) -> None:
        """Frees the slots that it takes."""
        self.is_free = True
        self._taken.close()

    def is_due_to_its_end(self, error: Exception) -> bool:
        """Returns whether an error says that the message was stopped, or deleted."""
        if isinstance(error, WriterFailedError) and isinstance(error.__cause__, ConverseError):
            error = error.__cause__
        if isinstance(error, MessageNotStreamingError):
            own = error.message_id == self.message.id
            return own and error.status is MessageStatus.CANCELLED
        if isinstance(error, ConversationNotFoundError):
            return error.conversation_id == self.conversation.id
        return isinstance(error, MessageNotFoundError) and error.message_id == self.message.id

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Ends the task in the block if the message is stopped or deleted and has no writer.

        A writer gets to know by itself.
        """
        notices = self.message.store().notices
        stop = notices.listen(self.message.id, self.message.conversation_id, self._notice)
        try:
            yield
        finally:
            stop()
            if self._looking is not None:
                self._looking.cancel()

    def _notice(self, _holder: ObjectId | None) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="converse_mongo-generation-look")

    async def _look(self) -> None:
        message = self.message
        store = message.store()
        try:
            state = await store.answers.state(message.conversation_id, message.id)
            if state is not None and not await store.answers.has_conversation(state):
                state = await store.leases.request_stop(state.key, CONVERSATION_DELETED)
        except (ConverseError, PyMongoError) as error:
            logger.info("Could not look whether message %s was stopped: %s", message.id, error)
            return
        if not message.is_streaming:
            return  # respond() ended it, and goes on behind that
        if state is None or state.log_id != message.log_id:
            verdict = "the message was deleted"
        elif (
            state.status is MessageStatus.CANCELLED
            and state.lease.holder is None  # it never had a writer
        ):
            verdict = "a stop was requested"
        else:
            return
        if self.task is not None and store.notices.listeners(message.id) == 1:
            self.verdict = verdict
            self.task.cancel()
