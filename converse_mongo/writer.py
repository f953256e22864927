"""The writer: tokens in, batched appends out."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import bson
from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo._state import MessageState
from converse_mongo._validation import (
    CHUNK_OVERHEAD,
    MAX_APPEND_BYTES,
    MAX_APPEND_CHUNKS,
    MAX_CHUNK_BYTES,
    check_content,
    check_metadata,
    check_seconds,
)
from converse_mongo.chunks import MessageChunk
from converse_mongo.errors import (
    ConverseClosedError,
    ConverseError,
    InvalidInputError,
    MessageNotStreamingError,
    StoreUnavailableError,
    StreamStoppedError,
    WriterError,
    WriterFailedError,
    WriterFencedError,
)
from converse_mongo.store import Lane, Store
from converse_mongo.store.appends import Piece, WriterClaim, fenced
from converse_mongo.store.ends import End
from converse_mongo.types import Granularity, MessageStatus, Metadata

__all__ = ["MessageWriter", "WriterOptions", "WriterStatistics", "WriterTarget"]

logger = logging.getLogger("converse_mongo")

HEARTBEATS_PER_LEASE = 3
MAX_ERROR_LENGTH = 10_000
MAX_CANCELLATIONS = 100

_NO_METADATA: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class WriterStatistics:
    """What a writer has done.

    Attributes:
        tokens: Calls of ``write`` that it took.
        chunks: Chunks that it stored.
        writes: Appends that it made of them.
        retries: Times that one of those had to be tried again.
        bytes: The text that it stored, in bytes of UTF-8.
        waits: Calls of ``write`` that had to wait, since the buffer was full.
    """

    tokens: int = 0
    chunks: int = 0
    writes: int = 0
    retries: int = 0
    bytes: int = 0
    waits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterOptions:
    """How a writer is to write; ``Message.writer`` explains them."""

    flush_interval: float = 0.04
    max_buffered: int = 1024 * 1024
    granularity: Granularity = "flush"
    interrupt: bool = False

    def __post_init__(self) -> None:
        check_seconds(self.flush_interval, "flush_interval")
        if isinstance(self.max_buffered, bool) or not isinstance(self.max_buffered, int):
            raise InvalidInputError(f"max_buffered={self.max_buffered!r}: pass a number of bytes.")
        if self.max_buffered < 1:
            raise InvalidInputError(f"max_buffered={self.max_buffered}: pass 1 or more bytes.")
        if self.granularity not in ("flush", "token"):
            raise InvalidInputError(
                f"granularity={self.granularity!r}: pass 'flush' or 'token'. Nothing was written."
            )


@dataclass(frozen=True, slots=True)
class WriterTarget:
    """What a writer writes to.

    Attributes:
        store: Where.
        lane: The queue of the message's writers.
        message_id: The message.
        conversation_id: Its conversation.
        taken_over: Told after a take-over, when no other writer can add anything any more.
        written: Told of chunks that are stored.
        end: Ends the message, if the writer's epoch still is the given one; a second call with the
            same id is the same end.
    """

    store: Store
    lane: Lane
    message_id: ObjectId
    conversation_id: ObjectId
    taken_over: Callable[[], Awaitable[Any]]
    written: Callable[[Sequence[MessageChunk]], None]
    end: Callable[[End, int, ObjectId], Awaitable[Any]]


class _Token(NamedTuple):
    content: str
    metadata: Mapping[str, Any]
    text_size: int
    encoded: bytes

    @property
    def size(self) -> int:
        return self.text_size + len(self.encoded)


class MessageWriter:
    """Stores the tokens of a generation loop in the background.

    Made by ``Message.writer`` and ``Message.resume_writer``, and used in ``async with``. A clean
    exit stores what is left and completes the message; an exception fails it; a cancellation marks
    it cancelled. Whichever it is, the text that was written is stored first.

    Attributes:
        metadata: Merged into the metadata of the message when it completes; yours to fill.

    Entering raises:
        WriterExistsError: ``Message.writer`` only: the message has, or had, another writer.
        StreamStoppedError: Somebody asked for a stop before; the message is cancelled.
        MessageNotStreamingError: The message has ended.
        MessageNotFoundError: There is no such message.
        StoreUnavailableError: MongoDB gave no answer.
        ConverseClosedError: The facade is closed.

    Leaving raises what :meth:`write` does, and :class:`StoreUnavailableError` if all text is
    stored, but the end is not. A block that is left cleanly after a stop raises nothing: the
    message is cancelled then.
    """

    def __init__(
        self,
        target: WriterTarget,
        options: WriterOptions,
        metadata: Metadata | None = None,
        *,
        take_over: bool = False,
    ) -> None:
        self.metadata: dict[str, Any] = dict(check_metadata(metadata))
        self._target = target
        self._options = options
        self._take_over = take_over
        self._epoch = 0
        self._buffer: deque[_Token] = deque()
        self._unsent = 0
        self._in_flight: list[_Token] = []
        self._in_flight_bytes = 0
        self._pieces: list[Piece] = []
        self._append_id = ObjectId()
        self._tried = False
        self._end_id = ObjectId()
        self._closing: asyncio.Task[None] | None = None
        self._accepted = self._stored = 0
        self._room: deque[asyncio.Future[None]] = deque()
        self._queue = asyncio.Lock()
        self._wake = asyncio.Event()
        self._stop_known = asyncio.Event()
        self._hurry = self._draining = self._look = self._detached = False
        self._stop: StreamStoppedError | None = None
        self._refusal: ConverseError | None = WriterError(
            "This writer is not open: use it in 'async with'.", target.message_id
        )
        self._failure: ConverseError | None = None
        self._task: asyncio.Task[None] | None = None
        self._unlisten: Callable[[], None] | None = None
        self._surrounding: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._interrupted = False
        self._counts = {"tokens": 0, "chunks": 0, "writes": 0, "retries": 0, "bytes": 0, "waits": 0}

    # For the generation loop

    async def write(self, token: str, metadata: Metadata | None = None) -> None:
        """Takes a token; returns at once unless the buffer is full.

        Cancelled while it waits for room, it has not taken the token.

        Args:
            token: Text, at most ``MAX_CHUNK_BYTES`` in UTF-8; an empty one is nothing.
            metadata: What BSON can hold, said of this token. Tokens become one chunk only where
                theirs are equal.

        Raises:
            InvalidInputError: The token or its metadata cannot be stored; it was not taken.
            StreamStoppedError: Somebody asked for a stop.
            WriterFencedError: Another writer took over, or the message was ended as an orphan.
            MessageNotStreamingError: Another call ended the message, and all text is stored.
            WriterFailedError: The writer gave up; ``text`` holds what is not stored.
            ConverseClosedError: The facade was closed.
        """
        if self._refusal is not None:
            raise self._refusal
        text_size = check_content(token, MAX_CHUNK_BYTES)
        checked, encoded = _NO_METADATA, b""
        if metadata:
            checked = check_metadata(metadata, "chunk metadata")
            encoded = bson.encode(checked)
        if not text_size:
            return
        size = text_size + len(encoded)
        if self._queue.locked() or self._is_full(size):
            self._counts["waits"] += 1
            async with self._queue:  # first come, first served: a large token has its turn, too
                while self._is_full(size):
                    await self._wait_for_progress()
                    if self._refusal is not None:
                        raise self._refusal
        self._counts["tokens"] += 1
        self._accepted += 1
        self._unsent += size
        self._buffer.append(_Token(token, checked, text_size, encoded))
        if len(self._buffer) == 1 or self._is_urgent():
            self._wake.set()

    async def flush(self) -> None:
        """Waits until all that was written so far is stored. Raises as :meth:`write` does."""
        goal = self._accepted
        while self._stored < goal:
            if self._failure is not None:
                raise self._failure
            if self._task is None or self._task.done():
                raise self._refusal or self._closed()
            self._hurry = True
            self._wake.set()
            await self._wait_for_progress()

    @property
    def stopping(self) -> bool:
        """Whether somebody asked for a stop: leave the loop, ``write`` takes nothing any more."""
        return self._stop is not None

    async def wait_stopping(self) -> str | None:
        """Waits until somebody asks for a stop, and returns the reason.

        Also returns when the writer cannot go on for another reason, with ``None``.
        """
        await self._stop_known.wait()
        return self._stop.reason if self._stop is not None else None

    async def detach(self) -> None:
        """Stores what was written and lets go of the message without ending it.

        For a worker that shuts down while another is to go on with ``Message.resume_writer``. The
        message has the facade's ``idle_timeout`` until it counts as an orphan.

        Raises:
            StoreUnavailableError: MongoDB gave no answer.
        """
        if self._refusal is not None:
            raise self._refusal
        self._detached = True
        self._refusal = WriterError(
            f"This writer has let go of message {self._target.message_id}.",
            self._target.message_id,
        )
        await self._drain()
        if self._failure is not None:
            raise self._failure
        if self._stop is None:
            await self._target.store.leases.release(
                self._target.message_id, self._target.conversation_id, self._epoch
            )

    def statistics(self) -> WriterStatistics:
        """What was done so far."""
        return WriterStatistics(**self._counts)

    # Lifetime

    async def __aenter__(self) -> Self:
        if self._task is not None or self._epoch:
            raise WriterError("A writer is used once: make a new one.", self._target.message_id)
        store, ids = self._target.store, (self._target.message_id, self._target.conversation_id)
        opening = asyncio.create_task(self._open(), name="converse_mongo-writer-open")
        try:
            state = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The message may be this writer's by now, and nobody else would end it.
            await asyncio.wait({opening})
            if not opening.cancelled() and opening.exception() is None:
                cancelled = End(MessageStatus.CANCELLED, self._final_metadata())
                await asyncio.wait({asyncio.create_task(self._end_quietly(cancelled))})
            raise
        if state.stop_requested:
            self._note_stop(state.stop_reason)
            await self._end(End(MessageStatus.CANCELLED, self._final_metadata()))
            raise StreamStoppedError(state.message_id, state.stop_reason)
        if store.closing:
            with contextlib.suppress(ConverseError, PyMongoError):
                await store.leases.release(*ids, self._epoch)
            raise ConverseClosedError
        self._refusal = None
        self._surrounding = asyncio.current_task()
        if self._surrounding is not None:
            self._cancelling = self._surrounding.cancelling()
        self._task = asyncio.create_task(self._run(), name=f"converse_mongo-writer-{ids[0]}")
        self._unlisten = store.signals.listen(*ids, self._notice)
        store.writers.add(self)
        return self

    async def _open(self) -> MessageState:
        target = self._target
        leases = target.store.leases
        lease = leases.take_over if self._take_over else leases.acquire
        state = await lease(target.message_id, target.conversation_id)
        self._epoch = state.lease.epoch
        if self._take_over:
            await target.taken_over()
        return state

    async def _end_quietly(self, end: End) -> None:
        try:
            await self._end(end)
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
        try:
            await self._uninterrupted(lambda: self._close(exc))
        except (ConverseError, PyMongoError) as error:
            if exc is None:
                raise
            logger.exception("Message %s could not be ended", self._target.message_id)
            exc.add_note(f"Besides, message {self._target.message_id} could not be ended: {error}")
        if interrupted or exc is None:
            verdict = self._failure or (self._stop if interrupted else None)
            if verdict is not None:
                raise verdict from (verdict.__cause__ or exc)
        elif self._failure is not None and exc is not self._failure:
            exc.add_note(f"Besides: {self._failure}")
            exc.__context__ = exc.__context__ or self._failure

    def _closed(self) -> WriterError:
        return WriterError("This writer is closed.", self._target.message_id)

    async def shut_down(self) -> None:
        """Stores what was written and takes no more: the facade is about to be closed."""
        if self._closing is not None:
            await asyncio.wait({self._closing})
            return
        closed = ConverseClosedError()
        self._refusal = self._refusal or closed
        self._detached = True
        await self._drain()
        self._failure = self._failure or closed
        self._wake_loop()

    async def _close(self, exc: BaseException | None) -> None:
        """Stores what is left, and ends the message in the way that ``exc`` calls for."""
        await self._drain()
        if self._stop is not None or self._detached:
            return
        if self._failure is not None:
            if isinstance(self._failure.__cause__, PyMongoError):
                # MongoDB answers, but refuses the text: the message need not wait for its lease.
                await self._end(
                    End(
                        MessageStatus.FAILED,
                        self._final_metadata(),
                        _error_text(self._failure.__cause__),
                    )
                )
            return
        try:
            end = self._end_for(exc)
        except InvalidInputError as error:  # of the metadata
            await self._end(End(MessageStatus.FAILED, {}, _error_text(error)))
            raise
        await self._end(end)

    async def _uninterrupted(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Awaits ``work()`` to its end, whoever is cancelled meanwhile; then re-raises that."""
        cancelled: asyncio.CancelledError | None = None
        self._closing = _persisting(work)
        while not self._closing.done():
            try:
                await asyncio.wait({self._closing})
            except asyncio.CancelledError as error:
                cancelled = error
            if self._closing.cancelled():
                self._closing = _persisting(work)
        if self._unlisten is not None:
            self._unlisten()
        self._target.store.writers.discard(self)
        self._stop_known.set()
        if cancelled is not None:
            if (failure := self._closing.exception()) is not None:
                logger.error("A writer could not end its message", exc_info=failure)
            raise cancelled
        self._closing.result()

    def _end_for(self, exc: BaseException | None) -> End:
        if exc is None:
            return End(MessageStatus.COMPLETED, check_metadata(self.metadata))
        metadata = self._final_metadata()
        if isinstance(exc, Exception):
            return End(MessageStatus.FAILED, metadata, _error_text(exc))
        return End(MessageStatus.CANCELLED, metadata)

    def _final_metadata(self) -> dict[str, Any]:
        """What may be said of a message that did not end well."""
        with contextlib.suppress(InvalidInputError):
            return check_metadata(self.metadata)
        return {}

    async def _end(self, end: End) -> None:
        await self._target.end(end, self._epoch, self._end_id)

    async def _drain(self) -> None:
        self._draining = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task})
            while self._task.cancelled():  # before its first step, so that it never ran
                self._task = asyncio.create_task(self._run())
                await asyncio.wait({self._task})

    # The background task

    async def _run(self) -> None:
        try:
            await _despite_cancellation(self._write_and_settle, self._hasten)
        except Exception as error:  # noqa: BLE001 - the generation loop gets it
            self._fail(error)
        finally:
            self._wake_waiters()

    async def _write_and_settle(self) -> None:
        await self._write_until_drained()
        if self._stop is not None:
            await self._end(End(MessageStatus.CANCELLED, self._final_metadata()))

    def _hasten(self) -> None:
        """Something cancels every task there is: store what was taken, and be done."""
        self._draining = True

    async def _write_until_drained(self) -> None:
        time = asyncio.get_running_loop().time
        silence = self._target.store.options.lease / HEARTBEATS_PER_LEASE
        next_flush, next_renewal = time(), time() + silence
        while True:
            self._wake.clear()
            if self._look or time() >= next_renewal:
                await self._renew()
                next_renewal = time() + silence
            elif self._has_work and (
                self._draining or self._hurry or self._is_urgent() or time() >= next_flush
            ):
                next_flush = time() + self._options.flush_interval
                await self._flush()
                next_renewal = time() + silence
            elif self._draining and not self._has_work:
                return
            else:
                deadline = min(next_flush, next_renewal) if self._has_work else next_renewal
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        await self._wake.wait()

    @property
    def _has_work(self) -> bool:
        # What is in flight is so after a cancellation: it has to be tried again.
        return bool(self._buffer or self._in_flight)

    async def _flush(self) -> None:
        if not self._in_flight:
            self._pieces, self._append_id, self._tried = self._take_batch(), ObjectId(), False
        if not self._buffer:
            self._hurry = False
        try:
            chunks = await self._append()
        except StreamStoppedError as stop:
            self._note_stop(stop.reason)
            chunks = await self._append()
        self._counts["writes"] += 1
        self._counts["chunks"] += len(chunks)
        self._counts["bytes"] += sum([token.text_size for token in self._in_flight])
        self._stored += len(self._in_flight)
        self._in_flight, self._in_flight_bytes = [], 0
        self._target.written(chunks)
        self._wake_waiters()

    async def _append(self) -> list[MessageChunk]:
        target, again = self._target, self._tried
        claim = WriterClaim(
            self._epoch, unless_stopped=self._stop is None, on_retry=self._count_retry
        )
        self._tried = True  # if this is cancelled, it is not known whether it was stored
        try:
            return await target.store.appends.append(
                target.lane,
                target.message_id,
                target.conversation_id,
                self._pieces,
                self._append_id,
                claim,
                again=again,
            )
        except StreamStoppedError:
            self._tried = again
            raise

    def _count_retry(self) -> None:
        self._counts["retries"] += 1

    def _take_batch(self) -> list[Piece]:
        """Takes out of the buffer what one append can hold, and makes chunks of it."""
        pieces: list[tuple[list[str], Mapping[str, Any]]] = []
        encoded = b""
        total = merged = 0
        merges = self._options.granularity == "flush"
        while self._buffer:
            token = self._buffer[0]
            merge = (
                merges
                and bool(pieces)
                and encoded == token.encoded
                and merged + token.text_size <= MAX_CHUNK_BYTES
            )
            cost = token.text_size if merge else token.size + CHUNK_OVERHEAD
            if pieces and (
                total + cost > MAX_APPEND_BYTES or len(pieces) + (not merge) > MAX_APPEND_CHUNKS
            ):
                break
            if merge:
                pieces[-1][0].append(token.content)
                merged += token.text_size
            else:
                pieces.append(([token.content], token.metadata))
                merged, encoded = token.text_size, token.encoded
            total += cost
            self._in_flight.append(self._buffer.popleft())
            self._in_flight_bytes += token.size
            self._unsent -= token.size
        return [Piece("".join(contents), metadata) for contents, metadata in pieces]

    async def _renew(self) -> None:
        self._look = False
        target = self._target
        try:
            state = await target.store.leases.renew(
                target.message_id, target.conversation_id, self._epoch
            )
        except StoreUnavailableError as error:
            # What is written decides; and the lease may outlive the trouble.
            logger.warning("Message %s: no sign of life was given (%s)", target.message_id, error)
            return
        self._judge(state)

    def _judge(self, state: MessageState) -> None:
        if state.lease.epoch != self._epoch:
            raise fenced(state.message_id, state.status)
        if state.status.is_final:
            raise MessageNotStreamingError(state.message_id, state.status)
        if state.stop_requested and self._stop is None:
            self._note_stop(state.stop_reason)

    # News

    def _notice(self, epoch: int | None) -> None:
        if epoch == self._epoch:
            return  # its own coming
        self._look = True
        self._wake.set()

    def _note_stop(self, reason: str | None) -> None:
        self._stop = StreamStoppedError(self._target.message_id, reason)
        self._refusal = self._refusal or self._stop
        self._draining = True
        self._wake_loop()

    def _fail(self, error: Exception) -> None:
        text = "".join(token.content for token in (*self._in_flight, *self._buffer))
        if isinstance(error, WriterFencedError):
            error.text = text
            self._failure = error
        else:
            self._failure = self._gave_up(error, text)
        self._refusal = self._failure
        self._buffer.clear()
        self._in_flight.clear()
        self._unsent = self._in_flight_bytes = 0
        logger.warning("%s", self._failure)
        self._wake_loop()

    def _gave_up(self, error: Exception, text: str) -> ConverseError:
        if isinstance(error, MessageNotStreamingError) and not text:
            return error
        message_id = self._target.message_id
        failure = WriterFailedError(
            f"The writer of message {message_id} gave up ({error}). "
            + (
                f"{len(text)} characters that it had taken may not be stored: see 'text'."
                if text
                else "All text that it had taken is stored."
            ),
            message_id,
            text,
        )
        failure.append_id = self._append_id if self._in_flight else None
        failure.unconfirmed = [piece.content for piece in self._pieces] if self._in_flight else []
        failure.unsent = "".join([token.content for token in self._buffer])
        failure.__cause__ = error
        return failure

    def _wake_loop(self) -> None:
        """Makes the generation loop notice that the writer takes no more."""
        self._stop_known.set()
        self._wake_waiters()
        if self._options.interrupt and self._surrounding is not None and not self._interrupted:
            self._interrupted = True
            self._surrounding.cancel()

    # The buffer

    def _is_full(self, size: int) -> bool:
        held = self._unsent + self._in_flight_bytes
        return bool(held) and held + size > self._options.max_buffered

    def _is_urgent(self) -> bool:
        return bool(self._room) or 2 * self._unsent >= self._options.max_buffered

    async def _wait_for_progress(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._room.append(waiter)
        self._wake.set()
        try:
            await waiter
        finally:
            with contextlib.suppress(ValueError):
                self._room.remove(waiter)

    def _wake_waiters(self) -> None:
        waiters, self._room = self._room, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def _error_text(error: Exception) -> str:
    """The text of an exception, made fit to be stored."""
    text = str(error) or type(error).__name__
    return text[:MAX_ERROR_LENGTH].encode("utf-8", "replace").decode()


def _persisting(work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
    return asyncio.create_task(
        _despite_cancellation(work, lambda: None), name="converse_mongo-writer-close"
    )


async def _despite_cancellation(
    work: Callable[[], Coroutine[Any, Any, None]], noticed: Callable[[], None]
) -> None:
    """Awaits ``work()``, and again if this task is cancelled, as a loop that is ended does to all.

    ``work`` must go on where it was.
    """
    for _ in range(MAX_CANCELLATIONS):
        try:
            return await work()
        except asyncio.CancelledError:
            noticed()
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
    raise ConverseClosedError("The writer was cancelled again and again; its loop is ending.")
