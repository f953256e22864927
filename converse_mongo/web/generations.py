"""Generations: the background tasks that write answers and outlive their requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeAlias

from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo.documents.conversations import Conversation, load_context
from converse_mongo.documents.messages import Message
from converse_mongo.domain.errors import (
    ConfigurationError,
    ConverseClosedError,
    ConverseError,
    MessageNotFoundError,
    MessageNotStreamingError,
    StreamStoppedError,
    WriterExistsError,
    WriterFencedError,
)
from converse_mongo.store import Transaction, context_apart, open_transaction
from converse_mongo.web.errors import BusyError
from converse_mongo.writing.shielded import ShieldedTask

logger = logging.getLogger("converse_mongo")

Respond: TypeAlias = Callable[[Conversation, Message], Awaitable[None]]
"""Writes the answer of the model into a streaming message."""

UNFINISHED = "The answer could not be generated."
SHUT_DOWN = "The service was shut down."


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
        self._running: dict[tuple[ObjectId, ObjectId | None], asyncio.Task[None]] = {}
        self._beginning: set[asyncio.Task[Message]] = set()
        self._closed = False

    @property
    def running(self) -> int:
        """The number of answers that are being written."""
        return len(self._running)

    def check_room(self) -> None:
        """Checks that one more answer can be started.

        Raises:
            BusyError: ``limit`` run already, or it is closed.
        """
        if self._closed:
            raise BusyError("The service is restarting. Try again in a few seconds.")
        if len(self._running) + len(self._beginning) >= self._limit:
            logger.warning("An answer was refused: limit=%d are being written", self._limit)
            raise BusyError

    async def begin(
        self, conversation: Conversation, create: Callable[[], Awaitable[Message]]
    ) -> Message:
        """Creates a message and starts its answer, even if the request is cancelled meanwhile.

        Within ``converse.transaction()`` the message belongs to the transaction, and is written
        once that is committed. ``respond`` runs in the context of the caller, without its
        transaction and without a deadline of ``pymongo.timeout()``.

        Args:
            conversation: The conversation.
            create: Starts the message, or finds it.

        Raises:
            BusyError: ``limit`` run already, or it is closed; nothing was created.
        """
        self.check_room()

        async def both() -> Message:
            message = await create()
            self._start(conversation, message)
            return message

        task = asyncio.create_task(both(), name="converse_mongo-generation-begin")
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)
        return await asyncio.shield(task)

    def start(self, conversation: Conversation, message: Message) -> None:
        """Starts ``respond`` for a streaming message, unless it runs here already.

        Raises:
            BusyError: ``limit`` run already, or it is closed.
        """
        self._start(conversation, message, check_room=True)

    def _start(
        self, conversation: Conversation, message: Message, *, check_room: bool = False
    ) -> None:
        key = message.id, message.log_id
        if not message.is_streaming or key in self._running:
            return
        if check_room:
            self.check_room()
        task = asyncio.create_task(
            self._write(conversation, message, open_transaction(message.store())),
            name=f"converse_mongo-generation-{message.id}",
            # It outlives its request, and the deadline of that.
            context=context_apart(),
        )
        self._running[key] = task
        task.add_done_callback(lambda _: self._running.pop(key, None))

    async def _write(
        self, conversation: Conversation, message: Message, transaction: Transaction | None
    ) -> None:
        if transaction is not None and not await transaction.outcome():
            return  # the message was never created
        metadata: dict[str, str] | None = None
        try:
            await load_context(conversation)
            await self._respond(conversation, message)
        except StreamStoppedError:
            pass  # a stop was requested, and the message is cancelled
        except WriterExistsError:
            logger.info("Message %s is being written by another process", message.id)
            return
        except (WriterFencedError, ConverseClosedError) as error:
            logger.warning("The generation of message %s ended: %s", message.id, error)
            return
        except asyncio.CancelledError:
            await ShieldedTask(
                lambda: self._end(message, lambda: message.cancel_streaming(SHUT_DOWN)),
                "converse_mongo-generation-end",
            ).wait()
            raise
        except Exception as error:
            logger.exception("The generation of message %s failed", message.id)
            metadata = {"error_type": type(error).__name__}
        await self._end(message, lambda: message.fail_streaming(UNFINISHED, metadata))

    async def _end(self, message: Message, end: Callable[[], Awaitable[object]]) -> None:
        """Ends a message that was left streaming."""
        if not message.is_streaming:
            return
        try:
            await end()
        except MessageNotStreamingError:
            pass  # its writer ended it
        except MessageNotFoundError:
            logger.info("Message %s was deleted while it was generated", message.id)
        except (ConverseError, PyMongoError):
            logger.exception("Message %s could not be ended", message.id)

    async def aclose(self) -> None:
        """Refuses new answers, and returns once all that run have ended."""
        self._closed = True
        if self._beginning:
            await asyncio.wait(self._beginning)
        running = list(self._running.values())
        if not running:
            return
        await asyncio.wait(running, timeout=self._grace)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

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
