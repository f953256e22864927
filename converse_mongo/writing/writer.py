"""The writer: accepts tokens, and ends the message with the block."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, Self

import bson
from bson import ObjectId
from bson.errors import BSONError
from pymongo.errors import OperationFailure, PyMongoError

from converse_mongo.domain.chunks import NO_METADATA
from converse_mongo.domain.errors import (
    ConverseClosedError,
    ConverseError,
    InvalidInputError,
    InvalidMetadataError,
    MessageTooLargeError,
    StreamStoppedError,
    WriterError,
    WriterFencedError,
)
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.metadata import (
    check_metadata,
    is_addressable,
    keep_storable,
    storable,
)
from converse_mongo.domain.part_events import PARTS, PartEvent
from converse_mongo.domain.part_pieces import AnyPiece, PartPiece, PartRef
from converse_mongo.domain.parts import Part
from converse_mongo.domain.types import MessageStatus, Metadata
from converse_mongo.domain.validation import (
    check_int,
    check_seconds,
    check_token,
    storable_error,
)
from converse_mongo.driver.failures import words_for
from converse_mongo.driver.shielded import ShieldedTask
from converse_mongo.store.updates import End
from converse_mongo.writing.appender import Appender, WriterOptions, WriterTarget
from converse_mongo.writing.parts import PartWriter

logger = logging.getLogger("converse_mongo")

_REFUSALS = (InvalidMetadataError, MessageTooLargeError, OperationFailure, BSONError)
"""The errors that the metadata of an end may cause."""


@dataclass(frozen=True, slots=True)
class WriterStatistics:
    """The work of a writer so far.

    Attributes:
        tokens: Accepted calls of ``write``.
        chunks: Stored chunks.
        writes: Appends, each of one or more chunks.
        retries: Retries of appends.
        bytes: The size of the stored text, in bytes of UTF-8.
        waits: Calls of ``write`` that waited, since the buffer was full.
        replaced: Unpaired halves of characters, each stored as U+FFFD.
    """

    tokens: int = 0
    chunks: int = 0
    writes: int = 0
    retries: int = 0
    bytes: int = 0
    waits: int = 0
    replaced: int = 0


class MessageWriter(PartWriter):
    """Stores the tokens of a generation loop in the background.

    Made by ``Message.writer`` and ``Message.resume_writer``, and used in ``async with``. A clean
    exit completes the message; an exception fails it, with its text as the error (in place of the
    texts of MongoDB, its driver and this library, a sentence for people is stored); a cancellation
    cancels it. In each case the text that was written is stored first.

    Attributes:
        metadata: Merged into the metadata of the message at any end; fill it inside the block. It
            never fails an answer: values that cannot be stored are left out, and
            ``metadata["unstored"]`` of the message has their keys with their types.

    Entering raises:
        WriterExistsError: ``Message.writer`` only: the message has, or had, another writer.
        StreamStoppedError: A stop was requested before; the message is cancelled.
        WriterFencedError: Another writer took over while this one entered.
        MessageNotStreamingError: The message has ended.
        MessageNotFoundError: The message does not exist.
        StoreUnavailableError: MongoDB did not answer.
        ConverseClosedError: The facade is closed.

    Leaving raises the errors of :meth:`write`, and :class:`StoreUnavailableError` if all text is
    stored, but the end is not. A clean exit after a stop raises nothing if the block knew of the
    stop, through :attr:`stopping` or :meth:`wait_stopping`: the message is then cancelled.
    """

    def __init__(
        self,
        target: WriterTarget,
        options: WriterOptions,
        metadata: Metadata | None = None,
        *,
        completion: Metadata | None = None,
        take_over: bool = False,
    ) -> None:
        super().__init__()
        self.metadata: dict[str, Any] = check_metadata(metadata)
        self._completion = check_metadata(completion)
        target.store.check_keys(self.metadata, self._completion)
        self._target = target
        self._interrupts = options.interrupt
        self._take_over = take_over
        self._appender = Appender(target, options, stopped=self._cancel, refused=self._refuse)
        self._buffer = self._appender.buffer
        self._turns = self._appender.turns
        self._lease = Lease()
        self._end_id = ObjectId()
        self._refusal: ConverseError | None = WriterError(
            "This writer is not open: use it in 'async with'.", target.message_id
        )
        self._refused = asyncio.Event()
        self._detached = self._knows_stop = self._has_ended = False
        self._closing: ShieldedTask | None = None
        self._given_up: ConverseError | None = None
        self._unlisten: Callable[[], None] | None = None
        self._surrounding: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._interrupted = False

    # For the generation loop

    async def write(self, token: str | Part | PartEvent, metadata: Metadata | None = None) -> None:
        """Accepts a token of the answer, a part, or an event of a part.

        It returns at once unless the buffer is full.

        In a loop that never awaits anything else, such as that of a synchronous SDK, it waits a
        moment so that earlier tokens are stored. If it is cancelled while it waits, the token was
        not accepted.

        Args:
            token: Text, at most ``MAX_CHUNK_BYTES`` in UTF-8; an empty token is ignored. Half of a
                character at its end, a lone surrogate, waits for the next token; unpaired halves
                are stored as U+FFFD.
            metadata: Metadata of this token: values that BSON can hold. Only tokens with equal
                metadata become one chunk. Parts have none.

        Raises:
            InvalidInputError: The token or its metadata cannot be stored; it was not accepted.
            StreamStoppedError: A stop was requested.
            WriterFencedError: Another writer took over, or the message was ended as an orphan.
            MessageNotStreamingError: Another call ended the message, and all text is stored.
            WriterFailedError: The writer gave up; ``text`` has the text that is not stored.
            ConverseClosedError: The facade was closed.
        """
        if self._refusal is not None:
            raise self._refusal
        if monotonic() >= self._turns.look_at:
            await self._let_others_run()
        buffer = self._buffer
        if metadata is None and isinstance(token, str) and buffer.extend(token):
            return
        if not isinstance(token, str) and isinstance(token, PARTS):
            await self.write_part(token)
            return
        size = check_token(token)
        checked, encoded = NO_METADATA, b""
        if metadata:
            checked = check_metadata(metadata, "chunk metadata")
            encoded = bson.encode(storable(checked))
        if not size:
            return
        if self._growing is not None:
            await self._end_growing()
        if not buffer.add(token, size, checked, encoded):
            await buffer.put(token, size, checked, encoded, self._check)

    async def put(self, pieces: Sequence[AnyPiece]) -> None:
        """Accepts pieces of parts, as :meth:`write` accepts tokens."""
        self._check()
        if monotonic() >= self._turns.look_at:
            await self._let_others_run()
        buffer = self._buffer
        for piece in pieces:
            if isinstance(piece, PartPiece):
                if not buffer.add_part(piece):
                    await buffer.put_part(piece, self._check)
            elif not buffer.add(piece.content, piece.text_size):
                await buffer.put(piece.content, piece.text_size, NO_METADATA, b"", self._check)

    async def _let_others_run(self) -> None:
        """Lets the background task run if the generation loop never awaits anything."""
        if not self._turns.passed or self._appender.overdue:
            await self._appender.catch_up()
            self._check()
        self._turns.watch()

    def _check(self) -> None:
        if self._refusal is not None:
            raise self._refusal

    async def reset(self, first: int | None = None) -> None:
        """Voids parts, to begin them anew; it is stored when this returns.

        Void parts, with their text, are no longer in the message. Viewers have seen them, and are
        told by an event of the log. What earlier parts got since stays. A tool that has run has had
        its effect all the same. In a message without chunks it does nothing: an answer that always
        begins anew may begin with it.

        Args:
            first: The number from which parts are void. ``None`` for those of the step that is
                open, or else behind the last step that was finished, with the tools that it ran:
                without steps, for all of the answer.

        Raises:
            InvalidInputError: ``first`` is not a number.

        It also raises the errors of :meth:`write`.
        """
        if first is not None:
            check_int(first, "first", 0)
        await self.flush()
        if not (self._target.queue.next_sequence or await self._has_chunks()):
            return  # there is nothing to void
        start = await self._target.behind_steps() if first is None else first
        mark = PartRef(None)
        self._growing = None
        await self.put([PartPiece("reset", fields={"from": start}, marks=mark)])
        await self.flush()
        self._composer.void(start, mark.number or 0)

    async def _has_chunks(self) -> bool:
        """Returns whether somebody else has appended to the message."""
        store, key = self._target.store, self._target.key
        state = await store.call(
            store.reader.state,
            *(key["_id"], key["conversation_id"]),
            what=f"read message {key['_id']}",
        )
        return state is not None and bool(state.next_sequence)

    async def flush(self) -> None:
        """Waits until all text that was written is stored. Raises the errors of :meth:`write`."""
        appender = self._appender
        goal = appender.buffer.accepted
        while appender.buffer.stored < goal:
            if appender.failure is not None:
                raise appender.failure
            if appender.done:
                raise self._refusal or self._closed()
            appender.hurry()
            await appender.buffer.progress()

    @property
    def stopping(self) -> bool:
        """True once a stop was requested: leave the loop, ``write`` accepts no more tokens."""
        self._knows_stop = self._appender.stop is not None
        return self._knows_stop

    async def wait_stopping(self) -> str | None:
        """Waits until a stop is requested, and returns the reason.

        Also returns, with ``None``, if the writer cannot continue for another reason.
        """
        await self._refused.wait()
        stop = self._appender.stop
        self._knows_stop = stop is not None
        return stop.reason if stop is not None else None

    async def detach(self, checkpoint: Mapping[str, Any] | None = None) -> None:
        """Stores all text, and releases the message without ending it.

        A queued message goes back to its queue, and another worker goes on at once: see
        :attr:`handing_over`. Any other message is for a process that continues with
        ``Message.resume_writer``; it becomes an orphan after the ``idle_timeout`` of the facade.

        Args:
            checkpoint: What the next attempt is to know, as ``Message.checkpoint``: values that
                BSON can hold. Only for a queued message.

        Raises:
            InvalidInputError: The checkpoint cannot be stored, or the message was not queued.
            StoreUnavailableError: All text is stored, but the message was not released.

        It also raises the errors of :meth:`write`.
        """
        attempt, target = self._target.attempt, self._target
        checked = None if checkpoint is None else check_metadata(checkpoint, "checkpoint")
        if attempt is None and checked is not None:
            raise InvalidInputError(
                "Only an attempt of a worker has a checkpoint, and this message has no worker. "
                "Nothing was written."
            )
        if not await self._leave():
            return
        if attempt is None:
            await target.store.leases.release(target.key, self._lease)
        else:
            await attempt.hand_over(checked)

    async def suspend(
        self, checkpoint: Mapping[str, Any] | None = None, *, expires: float | None = None
    ) -> None:
        """Stores all text, and has the message wait for the answers to its open tool calls.

        Return from ``respond`` then: no process waits. Open are the calls for which an approval was
        requested, and those that the browser executes. ``Converse.answer_tool_calls`` answers them,
        from any process. Once all are answered, a worker makes another attempt: at once if they are
        answered already.

        Args:
            checkpoint: What that attempt is to know, as ``Message.checkpoint``: values that BSON
                can hold.
            expires: Seconds after which the open calls are denied; ``None`` for never.

        Raises:
            InvalidInputError: The checkpoint cannot be stored, the message has no worker, or this
                attempt has opened no call that waits and has no new checkpoint.
            StoreUnavailableError: All text is stored, but the message was not released.

        It also raises the errors of :meth:`write`.
        """
        attempt = self._target.attempt
        checked = None if checkpoint is None else check_metadata(checkpoint, "checkpoint")
        if expires is not None:
            check_seconds(expires, "expires")
        if attempt is None:
            raise InvalidInputError(
                "Only an attempt of a worker can wait for people: start the message with a queue. "
                "Nothing was written."
            )
        await self.flush()
        attempt.check_suspend(checked, self._target.queue.asked_by)
        if await self._leave():
            await attempt.suspend(checked, expires)

    async def _leave(self) -> bool:
        """Stores all text and accepts no more; ``False`` if a stop ended the message."""
        self._check()
        appender, message_id = self._appender, self._target.message_id
        await self._end_growing()
        self._detached = True
        self._refusal = WriterError(
            f"This writer was detached from message {message_id}.", message_id
        )
        await appender.drain()
        if appender.failure is not None:
            raise appender.failure
        return appender.stop is None

    @property
    def handing_over(self) -> bool:
        """True once the worker of the message shuts down: reach a point to go on from, soon.

        Then :meth:`detach` with a checkpoint, and return: another worker goes on at once. If
        ``respond`` does not return in time, it is cancelled, and another worker goes on all the
        same. Always false without a worker.
        """
        attempt = self._target.attempt
        return attempt is not None and attempt.handing_over

    async def wait_handing_over(self) -> None:
        """Waits until :attr:`handing_over` is true; for ever without a worker."""
        attempt = self._target.attempt
        if attempt is None:
            await asyncio.Event().wait()
        else:
            await attempt.wait_handing_over()

    def heartbeat(self) -> None:
        """Tells the worker that there is progress, though nothing is written.

        It is for the limit of ``silence`` only: leases are renewed in the background.
        """
        if self._target.attempt is not None:
            self._target.attempt.note_progress()

    def statistics(self) -> WriterStatistics:
        """Returns the counters of this writer."""
        appender = self._appender
        return WriterStatistics(
            tokens=appender.buffer.taken,
            chunks=appender.chunks,
            writes=appender.writes,
            retries=appender.retries,
            bytes=appender.bytes,
            waits=appender.buffer.waits,
            replaced=appender.buffer.replaced,
        )

    # Lifetime

    async def __aenter__(self) -> Self:
        target = self._target
        if self._closing is not None or self._lease.epoch:
            raise WriterError("A writer can be used once: make a new one.", target.message_id)
        if target.attempt is not None:
            buffer = self._buffer
            state = target.attempt.open(lambda: buffer.accepted)
            self._lease = state.lease
        else:
            state = await self._acquire()
        if state.stop_requested:
            self._appender.note_stop(state.stop_reason)
            await self._cancel()
            raise StreamStoppedError(state.message_id, state.stop_reason)
        if target.store.closing:
            await self._release()
            raise ConverseClosedError
        self._refusal = None
        self._surrounding = asyncio.current_task()
        if self._surrounding is not None:
            self._cancelling = self._surrounding.cancelling()
        self._unlisten = self._appender.start(self._lease)
        self._turns.watch()
        target.store.writers.add(self)
        if target.attempt is not None and target.attempt.starts_over:
            await self._start_over()
        return self

    async def _start_over(self) -> None:
        """Voids what earlier attempts have written."""
        try:
            await self.reset(0)
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            raise

    async def _acquire(self) -> MessageHeader:
        opening = asyncio.create_task(self._open(), name="converse_mongo-writer-open")
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # This writer may hold the message by now, and nobody else would end it.
            await ShieldedTask(lambda: self._give_back(opening), "converse_mongo-writer-end").wait()
            raise

    async def _open(self) -> MessageHeader:
        target = self._target
        leases = target.store.leases
        lease = leases.take_over if self._take_over else leases.acquire
        state = await lease(target.key)
        self._lease = state.lease
        if self._take_over:
            try:
                await target.taken_over(self._lease)
            except BaseException:
                await self._release()
                raise
        return state

    async def _release(self) -> None:
        """Releases the message, if MongoDB answers."""
        target = self._target
        with contextlib.suppress(ConverseError, PyMongoError):
            if target.attempt is not None:
                await target.attempt.hand_over(None)
            else:
                await target.store.leases.release(target.key, self._lease)

    async def _give_back(self, opening: "asyncio.Task[MessageHeader]") -> None:
        await asyncio.wait({opening})
        if opening.cancelled() or opening.exception() is not None:
            return
        try:
            await self._end(MessageStatus.CANCELLED)
        except (ConverseError, PyMongoError):
            logger.exception("Message %s could not be ended", self._target.message_id)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        surrounding, self._surrounding = self._surrounding, None
        interrupted = (
            self._interrupted
            and surrounding is not None
            and surrounding.uncancel() <= self._cancelling
            and isinstance(exc, asyncio.CancelledError)
        )
        self._refusal = self._refusal or self._closed()
        self._closing = ShieldedTask(lambda: self._close(exc), "converse_mongo-writer-close")
        try:
            await self._closing.finish()
        except (ConverseError, PyMongoError) as error:
            if exc is None:
                raise
            logger.exception("Message %s could not be ended", self._target.message_id)
            exc.add_note(f"Message {self._target.message_id} could not be ended: {error}")
        finally:
            if self._unlisten is not None:
                self._unlisten()
            self._target.store.writers.discard(self)
            self._refused.set()
            if self._target.attempt is not None:
                self._target.attempt.close(has_ended=self._has_ended)
        failure = self._appender.failure
        if interrupted or exc is None:
            tell = interrupted or not self._knows_stop
            verdict = failure or (self._appender.stop if tell else None)
            if verdict is not None:
                raise verdict from (verdict.__cause__ or exc)
        elif failure is not None and exc is not failure:
            exc.add_note(f"Also: {failure}")
            exc.__context__ = exc.__context__ or failure

    def _closed(self) -> WriterError:
        return WriterError("This writer is closed.", self._target.message_id)

    async def shut_down(self) -> None:
        """Stores all text and accepts no more, since the facade is being closed."""
        if self._closing is not None:
            await self._closing.wait()
            return
        closed = ConverseClosedError()
        self._refusal = self._refusal or closed
        self._detached = True
        appender = self._appender
        try:
            await appender.drain()
            if appender.failure is None and appender.stop is None:
                await self._release()
        finally:
            appender.failure = appender.failure or closed
            self._refuse()

    def give_up(self, error: ConverseError) -> None:
        """Ends the background work now; the error of the writer has the text that is not stored."""
        self._given_up = error
        self._appender.give_up(error)
        if self._closing is not None and not self._closing.done:
            self._closing.interrupt()

    async def _close(self, exc: BaseException | None) -> None:
        """Stores the remaining text, and ends the message according to ``exc``."""
        try:
            if self._given_up is None:
                await self._store_and_end(exc)
                return
        except asyncio.CancelledError:
            if self._given_up is None:
                raise
        await self._appender.drain()
        if self._appender.failure is None:
            raise self._given_up

    async def _store_and_end(self, exc: BaseException | None) -> None:
        await self._appender.drain()
        failure = self._appender.failure
        if self._appender.stop is not None or self._detached:
            return
        if failure is not None:
            cause = failure.__cause__
            if isinstance(cause, PyMongoError):
                # MongoDB answers, but refuses the text: end the message before its lease expires.
                await self._fail(cause)
            return
        attempt = self._target.attempt
        if exc is not None and attempt is not None and attempt.keeps(exc):
            return
        if exc is None:
            await self._end(MessageStatus.COMPLETED)
        elif isinstance(exc, Exception):
            await self._fail(exc)
        else:
            await self._end(MessageStatus.CANCELLED)

    async def _fail(self, error: Exception) -> None:
        """Ends the message with the text of an exception, or with words in place of it."""
        words = words_for(error)
        if words is None:
            text = storable_error(str(error) or type(error).__name__)
            await self._end(MessageStatus.FAILED, text)
            return
        logger.error("Message %s has failed", self._target.message_id, exc_info=error)
        self.metadata.setdefault("error_type", type(error).__name__)
        await self._end(MessageStatus.FAILED, words)

    async def _end(self, status: MessageStatus, error: str | None = None) -> None:
        """Ends the message with the storable part of its metadata, which never fail an answer."""
        metadata, unstored = keep_storable(self.metadata)
        if status is MessageStatus.COMPLETED:
            metadata |= self._completion
        while True:
            if unstored:
                metadata["unstored"] = unstored
            try:
                await self._target.end(End(status, metadata, error), self._lease, self._end_id)
            except StreamStoppedError as stopped:
                # Of a message from a queue: a stop always wins.
                self._appender.note_stop(stopped.reason)
                await self._end(MessageStatus.CANCELLED)
                return
            except WriterFencedError:
                if self._target.store.probe is not None:
                    self._target.store.probe.lease_lost()
                raise
            except _REFUSALS as refused:
                metadata, refused_keys = _without_refused(metadata)
                if not refused_keys:
                    raise
                unstored |= refused_keys
                logger.warning("Message %s: %s", self._target.message_id, refused)
            else:
                break
        self._has_ended = True
        if unstored:
            logger.warning(
                "Message %s has ended without metadata that cannot be stored: %s",
                self._target.message_id,
                ", ".join(f"{key!r} ({kind})" for key, kind in unstored.items()),
            )

    async def _cancel(self) -> None:
        await self._end(MessageStatus.CANCELLED)

    def _refuse(self) -> None:
        """Accepts no more tokens, and notifies the generation loop."""
        appender = self._appender
        self._refusal = appender.failure or self._refusal or appender.stop
        self._refused.set()
        if self._interrupts and self._surrounding is not None and not self._interrupted:
            self._interrupted = True
            self._surrounding.cancel()


def _without_refused(metadata: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Splits off the metadata that a server may refuse; returns the types of those by their keys.

    First the keys that no path can name, which mongomock and old servers refuse; then all.
    """
    given = {key: value for key, value in metadata.items() if key != "unstored"}
    refused = {key for key in given if not is_addressable(key)} or set(given)
    left = {key: value for key, value in given.items() if key not in refused}
    return left, {key: type(given[key]).__name__ for key in given if key in refused}
