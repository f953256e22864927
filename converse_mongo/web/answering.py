"""Answering: how the answer to a question is started, here or in a queue for workers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Protocol

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.domain.errors import ConfigurationError, InvalidInputError
from converse_mongo.domain.generated_ids import generated_id
from converse_mongo.domain.queues import AnyQueue, Queue, as_queue, job
from converse_mongo.domain.work import Key
from converse_mongo.driver import deadlines
from converse_mongo.web.errors import BusyError, InternalError
from converse_mongo.web.limits import Slots

logger = logging.getLogger("converse_mongo")

BEGUN_AT_ONCE = 1000
"""The most answers that are being added to a queue at once."""

RESTARTING = "The service is restarting. Try again in a few seconds."


class Answering(Protocol):
    """How answers are started."""

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

        Args:
            conversation: The conversation.
            create: Adds the message with :meth:`add`, or finds it.
            name: Names the answer. If one of that name is being created, this waits for it.
            slots: The slots of keys.
            key: Who asks.

        Raises:
            BusyError: There is no room for one more; nothing was created.
            LimitError: The key has no slot left; nothing was created.
        """

    async def add(
        self,
        conversation: Conversation,
        name: str,
        key: Hashable,
        metadata: dict[str, str] | None = None,
    ) -> Message:
        """Adds the message of an answer, or finds it, while it is created.

        Args:
            conversation: The conversation.
            name: Its ``generation_id``.
            key: Who asks.
            metadata: Its metadata.
        """

    def holds(self, message: Message) -> bool:
        """Returns whether a message that was just added is claimed by this process."""

    async def adopt(self, conversation: Conversation, message: Message) -> None:
        """Starts the answer of a message that nobody has begun to write, if there is room."""

    def look_after(self) -> None:
        """Sees to what was begun and no process is writing."""


class Beginnings:
    """The creations of messages: each is finished, although its request may be cancelled."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Message]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def tasks(self) -> list["asyncio.Task[Message]"]:
        """Those that run."""
        return list(self._tasks.values())

    def find(self, name: Hashable) -> "asyncio.Task[Message] | None":
        """Returns the one with a name, if it runs."""
        return self._tasks.get(name)

    def start(
        self, name: Hashable, create: Callable[[], Awaitable[Message]]
    ) -> "asyncio.Task[Message]":
        """Starts one, without the deadline of its request."""

        async def run() -> Message:
            deadlines.forget()
            return await create()

        task = asyncio.create_task(run(), name="converse_mongo-generation-begin")
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))
        return task

    async def finish(self, task: "asyncio.Task[Message]") -> Message:
        """Waits for one, which goes on if this is cancelled.

        Raises:
            BusyError: It was cancelled itself, when the service was shut down.
        """
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise BusyError(RESTARTING) from None
            raise


class QueuedAnswers:
    """Starts answers in a queue: workers write them, in any process.

    The key of a message is who asks, as texts. Without one, a limit per key does not apply. A slot
    is taken only while a message is being added, since who waits in the queue takes nothing here.

    Args:
        queue: The queue.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._unlimited = replace(queue, per_key=None)
        self._beginnings = Beginnings()

    async def begin(
        self,
        conversation: Conversation,  # noqa: ARG002 - of the interface
        create: Callable[[], Awaitable[Message]],
        *,
        name: Hashable = None,
        slots: Slots | None = None,
        key: Hashable = None,
    ) -> Message:
        """See :class:`Answering`.

        Raises:
            InternalError: The key cannot be that of a message; nothing was created.
        """
        self._placed(key)
        name = object() if name is None else name
        task = self._beginnings.find(name)
        if task is None:
            if len(self._beginnings) >= BEGUN_AT_ONCE:
                logger.warning("An answer was refused: %d are being queued", len(self._beginnings))
                raise BusyError
            taken = ExitStack()
            if slots is not None:
                taken.enter_context(slots.hold(key))
            task = self._beginnings.start(name, create)
            task.add_done_callback(lambda _: taken.close())  # also if it never runs
        return await self._beginnings.finish(task)

    async def add(
        self,
        conversation: Conversation,
        name: str,
        key: Hashable,
        metadata: dict[str, str] | None = None,
    ) -> Message:
        """See :class:`Answering`."""
        answers, message_id = conversation.store().answers, generated_id(conversation.id, name)
        where: dict[str, Any] = {}
        # A worker may have it at once: one that was stopped before is for nobody to write.
        if await answers.early_stop(conversation.id, message_id) is None:
            where = self._placed(key)
        return await conversation.start_streaming_assistant(metadata, generation_id=name, **where)

    def holds(self, message: Message) -> bool:  # noqa: ARG002 - of the interface
        """See :class:`Answering`."""
        return False

    async def adopt(self, conversation: Conversation, message: Message) -> None:
        """Does nothing: a message that was queued has been started."""

    def look_after(self) -> None:
        """Does nothing: workers do so."""

    def _placed(self, key: Hashable) -> dict[str, Any]:
        """The queue of a message, and its key.

        Raises:
            InternalError: It has a key that cannot be stored.
        """
        own = _key_of(key)
        if self._queue.per_key is None or own is None:
            return {"queue": self._unlimited}
        try:
            job(self._queue, key=own)
        except InvalidInputError as error:
            logger.exception("Limits.key returned what cannot be the key of a queued message")
            raise InternalError from error
        return {"queue": self._queue, "key": own}


def _key_of(key: Hashable) -> Key | None:
    if key is None or isinstance(key, str):
        return key
    parts = key if isinstance(key, tuple) else (key,)
    return tuple(each if isinstance(each, str) else str(each) for each in parts)


def queued_answers(queue: AnyQueue) -> QueuedAnswers:
    """Has answers started in a queue, given as it is or by its name.

    Raises:
        ConfigurationError: It is no queue.
    """
    try:
        found = as_queue(queue)
        job(found, key=None if found.per_key is None else "key")
    except InvalidInputError as error:
        raise ConfigurationError(
            f"generations={queue!r}: pass Generations(respond), a Queue, or the name of one. "
            f"{error}"
        ) from error
    return QueuedAnswers(found)
