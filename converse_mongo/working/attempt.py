"""Attempts: what a worker does with one message, from the claim to the end or the next attempt."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo.domain.errors import (
    ConversationNotFoundError,
    ConverseClosedError,
    ConverseError,
    InvalidInputError,
    MessageNotFoundError,
    MessageNotStreamingError,
    StoreUnavailableError,
    StreamStoppedError,
    WriterError,
    WriterFailedError,
    WriterFencedError,
)
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.retries import Retry, RetryPolicy
from converse_mongo.domain.types import MessageStatus
from converse_mongo.domain.validation import storable_error
from converse_mongo.domain.work import Work, WorkState
from converse_mongo.driver.shielded import ShieldedTask
from converse_mongo.store import Store
from converse_mongo.store.answers import CONVERSATION_DELETED
from converse_mongo.store.appends import refuse_overtaken
from converse_mongo.store.updates import End

logger = logging.getLogger("converse_mongo")

RENEWALS_PER_LEASE = 3

CANCEL_SECONDS, CANCELLATIONS = 5.0, 10
"""The time that the application has to end once it is cancelled, and how often it is cancelled."""

UNFINISHED = "The answer could not be generated."
TOO_LONG = "The answer took too long."
SILENT = "The answer made no progress."


class Verdict(Enum):
    """Why a worker ends an attempt that still runs."""

    SHUT_DOWN = "the worker shuts down"
    TOO_LONG = "it took too long"
    SILENT = "it made no progress"
    STOPPED = "a stop was requested"
    LOST = "the message has another worker, or is gone"


_RETRIED = {Verdict.TOO_LONG: TOO_LONG, Verdict.SILENT: SILENT}


class Outcome(Enum):
    """What became of a message."""

    ENDED = "ended"
    RETRIED = "retried"
    HANDED_OVER = "handed over"
    SUSPENDED = "suspended"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A message with its conversation, as the application is given them.

    Attributes:
        respond: Has the application generate the answer.
        is_streaming: Returns whether the message has not ended, as far as its copy knows.
        end: Ends the message while it has the lease; see ``WriterTarget.end``.
        has_chunks: True if earlier attempts have written something.
        checkpoint: What the last attempt has left.
    """

    respond: Callable[[], Awaitable[None]]
    is_streaming: Callable[[], bool]
    end: Callable[[End, Any, ObjectId], Awaitable[Any]]
    has_chunks: bool
    checkpoint: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker allows an attempt.

    Attributes:
        timeout: Seconds for an attempt; ``None`` for no limit.
        silence: Seconds without progress; ``None`` for no limit.
        retry: What errors lead to.
        start_over: True to void what earlier attempts have written.
    """

    timeout: float | None
    silence: float | None
    retry: RetryPolicy
    start_over: bool


class Attempt:
    """One attempt at a message whose lease the worker holds.

    It renews the lease while no writer does. It ends what the application left streaming, or gives
    it back to its queue.

    Args:
        store: The store.
        state: The message as it was claimed.
        load: Loads the message for the application.
        limits: What the attempt is allowed.
    """

    def __init__(
        self,
        store: Store,
        state: MessageHeader,
        load: Callable[["Attempt"], Awaitable[Loaded]],
        limits: Limits,
    ) -> None:
        self._store = store
        self._state = state
        self._load = load
        self._limits = limits
        self._end_id = ObjectId()
        self._handing_over = asyncio.Event()
        self._wake = asyncio.Event()
        self._outcome: Outcome | None = None
        self._verdict: Verdict | None = Verdict.STOPPED if state.stop_requested else None
        self._writes = self._had_writer = False
        self._ending = asyncio.Event()
        self._ended_elsewhere = self._known_ended = self._ended_by_writer = False
        self._loaded: Loaded | None = None
        self._progress: Callable[[], int] = int
        self._seen, self._seen_at = 0, 0.0
        self._error: BaseException | None = None

    @property
    def message_id(self) -> ObjectId:
        """The id of the message."""
        return self._state.message_id

    @property
    def state(self) -> MessageHeader:
        """The message as it was claimed."""
        return self._state

    @property
    def work(self) -> Work:
        """The work of the message as it was claimed."""
        assert self._state.work is not None  # noqa: S101 - it was claimed
        return self._state.work

    @property
    def trouble(self) -> BaseException | None:
        """What went wrong in it, once it is over; no stop, no hand-over and no other worker."""
        if self._verdict in _RETRIED:
            return TimeoutError(self._verdict.value)
        error = self._error
        if not isinstance(error, Exception) or self._is_due_to_its_end(error):
            return None
        return error

    # For the writer

    @property
    def handing_over(self) -> bool:
        """True once the worker shuts down: another one is to go on soon."""
        return self._handing_over.is_set()

    @property
    def starts_over(self) -> bool:
        """True if the writer is to void what is stored."""
        return self._limits.start_over and self._loaded is not None and self._loaded.has_chunks

    async def wait_handing_over(self) -> None:
        """Waits until the worker shuts down."""
        await self._handing_over.wait()

    def open(self, progress: Callable[[], int]) -> MessageHeader:
        """Gives the lease to a writer; see :class:`converse_mongo.writing.attempt.Attempt`."""
        if self._had_writer or self._outcome is not None:
            raise WriterError(
                f"Message {self.message_id} had a writer in this attempt: a worker's attempt has "
                "one writer.",
                self.message_id,
            )
        self._writes = self._had_writer = True
        self._progress = progress
        return self._state

    def close(self, *, has_ended: bool) -> None:
        """Takes the lease back from the writer, which has closed."""
        self._writes, self._ended_by_writer = False, has_ended

    def note_progress(self) -> None:
        """Notes that there is progress."""
        self._seen_at = asyncio.get_running_loop().time()

    def keeps(self, error: BaseException) -> bool:
        """Returns whether the worker decides what an error means."""
        if self._verdict in (Verdict.STOPPED, Verdict.LOST):
            return False
        # A cancellation may be a deadline of the application, which shows outside of the writer.
        return isinstance(error, asyncio.CancelledError) or self._may_retry(self._decisive(error))

    async def hand_over(self, checkpoint: Mapping[str, Any] | None) -> None:
        """Gives the message back to its queue, for another worker at once."""
        state = self._state
        await self._store.jobs.hand_over(
            state.key, state.lease, self.work.queue, checkpoint, crashes=self.work.crashes
        )
        self._outcome = Outcome.HANDED_OVER

    def check_suspend(
        self, checkpoint: Mapping[str, Any] | None, asked_by: ObjectId | None
    ) -> None:
        """Checks that the message can wait; see :class:`converse_mongo.writing.attempt.Attempt`."""
        if self._limits.start_over:
            raise InvalidInputError(
                "This worker voids what is stored before each further attempt, also the calls that "
                "would wait: pass start_over=False, and have respond go on behind message.parts. "
                "Nothing was written."
            )
        if self.work.pending or asked_by == self._state.lease.holder:
            return
        # An attempt that died may have asked, and all is answered: then this one goes on.
        known = None if self._loaded is None else self._loaded.checkpoint
        if checkpoint is None or checkpoint == known:
            raise InvalidInputError(
                "This attempt opened no tool call that waits for people, and has no other "
                "checkpoint than the last one: the next attempt would come at once, and end here "
                "again. Request an approval, or start a call with executor='client', before "
                "suspend(). The message does not wait."
            )

    async def suspend(self, checkpoint: Mapping[str, Any] | None, expires: float | None) -> bool:
        """Has the message wait for people; ``False`` if all of its calls were answered already."""
        state = self._state
        left = await self._store.jobs.suspend(state.key, state.lease, expires, checkpoint)
        waits = left.work is not None and left.work.state is WorkState.WAITING
        self._outcome = Outcome.SUSPENDED if waits else Outcome.HANDED_OVER
        return waits

    # For the worker

    @property
    def is_over(self) -> bool:
        """True once the message has ended, or has left the worker: what goes on is behind that."""
        return self._known_ended or self._is_over

    def note_ended(self) -> None:
        """Notes that the message has ended, or is gone, as the database says."""
        self._known_ended = True

    def shut_down(self) -> None:
        """Tells the application that another worker is to go on soon."""
        self._handing_over.set()

    def cut(self, verdict: Verdict) -> None:
        """Ends the attempt now."""
        if self._verdict is None:
            self._verdict = verdict
            self._ending.set()

    async def run(self) -> Outcome:
        """Has the application generate, and sees to what it leaves.

        Raises:
            CancelledError: It was cancelled; the message was handed over.
        """
        state, outcome = self._state, list[Outcome]()
        stop_listening = self._store.notices.listen(
            state.message_id, state.conversation_id, self._hear
        )
        keeping = asyncio.create_task(self._keep(), name="converse_mongo-worker-keep")
        responding = asyncio.create_task(
            self._respond(), name=f"converse_mongo-respond-{state.message_id}"
        )
        self.note_progress()
        timer = self._start_timer()
        try:
            cancelled = await self._wait_for(responding)
        finally:
            stop_listening()
            if timer is not None:
                timer.cancel()

        async def settle() -> None:
            error = _error_of(responding)
            self._error = None if error is None else self._decisive(error)
            outcome[:] = [await self._settle(self._error)]

        try:
            await ShieldedTask(settle, "converse_mongo-worker-settle").finish()
        finally:
            keeping.cancel()
        if cancelled is not None:
            raise cancelled
        return outcome[0]

    async def _respond(self) -> None:
        if self._verdict is not None:
            return
        self._loaded = await self._load(self)
        await self._loaded.respond()

    async def _wait_for(self, responding: "asyncio.Task[None]") -> asyncio.CancelledError | None:
        """Waits until the application is done, or does not end though it was cancelled.

        Returns:
            The cancellation of the caller.
        """
        cancelled: asyncio.CancelledError | None = None
        ending = asyncio.create_task(self._ending.wait(), name="converse_mongo-worker-ending")
        try:
            await asyncio.wait({responding, ending}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            cancelled = error
            self.cut(Verdict.SHUT_DOWN)
        finally:
            ending.cancel()
        for _ in range(CANCELLATIONS):
            if responding.done():
                break
            responding.cancel()  # again, since on Python 3.11 a driver may swallow a cancellation
            try:
                await asyncio.wait({responding}, timeout=CANCEL_SECONDS / CANCELLATIONS)
            except asyncio.CancelledError as error:
                cancelled = error
        if not responding.done():
            logger.error(
                "respond() does not end for message %s, though it was cancelled: it is left alone",
                self.message_id,
            )
        return cancelled

    def _start_timer(self) -> asyncio.TimerHandle | None:
        if self._limits.timeout is None:
            return None
        loop = asyncio.get_running_loop()
        return loop.call_later(self._limits.timeout, self.cut, Verdict.TOO_LONG)

    # The lease, while nobody writes

    def _hear(self, holder: ObjectId | None) -> None:
        if holder is None or holder != self._state.lease.holder:
            self._wake.set()

    async def _keep(self) -> None:
        seconds = self._store.options.lease / RENEWALS_PER_LEASE
        if self._limits.silence is not None:
            seconds = min(seconds, self._limits.silence / RENEWALS_PER_LEASE)
        # What hangs behind the end of the message takes a worker as well.
        while self._outcome is None and (self._limits.silence is not None or not self._is_over):
            try:
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
            except TimeoutError:
                self._check_silence()
            is_hinted = self._wake.is_set()
            self._wake.clear()
            if is_hinted and not self._is_over:
                await self._heed_deletion()
            if not (self._writes or self._is_over):
                await self._renew()

    @property
    def _is_over(self) -> bool:
        ended = self._loaded is not None and not self._loaded.is_streaming()
        return ended or self._ended_by_writer or self._outcome is not None

    def _check_silence(self) -> None:
        limit, seen = self._limits.silence, self._progress()
        if seen != self._seen:
            self._seen = seen
            self.note_progress()
        elif limit is not None and asyncio.get_running_loop().time() - self._seen_at > limit:
            self.cut(Verdict.SILENT)

    async def _heed_deletion(self) -> None:
        """Stops the message if its conversation was deleted without it."""
        state, store = self._state, self._store
        try:
            if not await store.answers.has_conversation(state):
                await store.leases.request_stop(state.key, CONVERSATION_DELETED)
        except MessageNotFoundError:
            pass  # the next heartbeat finds out
        except Exception as error:  # noqa: BLE001 - the next heartbeat tells as well
            logger.info("Could not look for the conversation of %s (%s)", self.message_id, error)

    async def _renew(self) -> None:
        """Sends a heartbeat, and hears of a stop, a deletion, or another worker."""
        state = self._state
        try:
            found = await self._store.leases.renew(state.key, state.lease)
            if found is None or self._writes or self._is_over:
                return
            own = found.status.is_final and found.lease.is_held_by(state.lease)
            if own and not self._ended_elsewhere:
                self._ended_elsewhere = True  # unless its copy knows at the next look
                return
            refuse_overtaken(found, state.key, state.lease)
        except (
            WriterError,
            MessageNotFoundError,
            MessageNotStreamingError,
            ConverseClosedError,
        ) as error:
            if isinstance(error, WriterFencedError) and self._store.probe is not None:
                self._store.probe.lease_lost()
            self.cut(Verdict.LOST)
        except Exception as error:  # noqa: BLE001 - who sends none loses the message
            logger.warning("Message %s: the heartbeat failed (%s)", self.message_id, error)
        else:
            if found.stop_requested:
                self.cut(Verdict.STOPPED)

    # What becomes of the message

    async def _settle(self, error: BaseException | None) -> Outcome:
        if self._is_over:
            if isinstance(error, Exception) and not self._is_due_to_its_end(error):
                logger.error("Behind the end of message %s", self.message_id, exc_info=error)
            self._outcome = self._outcome or Outcome.ENDED
            return self._outcome
        try:
            try:
                self._outcome = await self._decide(error)
            except StreamStoppedError:
                self._outcome = await self._cancel()
        except MessageNotStreamingError:
            self._outcome = Outcome.ENDED
        except (WriterError, MessageNotFoundError) as lost:
            logger.info("The attempt at message %s ended: %s", self.message_id, lost)
            self._outcome = Outcome.LOST
        except (ConverseError, PyMongoError):
            logger.exception("Message %s is left to its lease", self.message_id)
            self._outcome = Outcome.LOST
        return self._outcome

    async def _decide(self, error: BaseException | None) -> Outcome:
        verdict, state = self._verdict, self._state
        if verdict is Verdict.STOPPED or isinstance(error, StreamStoppedError):
            return await self._cancel()
        if isinstance(error, ConversationNotFoundError) and self._is_lost(error):
            # Nobody stopped it: whoever deleted the conversation died, or it was queued later.
            return await self._end(
                End(MessageStatus.CANCELLED, {}, stop_reason=CONVERSATION_DELETED)
            )
        if verdict is Verdict.LOST or self._is_lost(error):
            logger.info("The attempt at message %s ended: %s", self.message_id, error)
            return Outcome.LOST
        if verdict is Verdict.SHUT_DOWN or (error is None and self.handing_over):
            await self._store.jobs.hand_over(
                state.key, state.lease, self.work.queue, crashes=self.work.crashes
            )
            return Outcome.HANDED_OVER
        if verdict in _RETRIED or self._may_retry(error):
            if self._retries_left:
                pause = self._limits.retry.pause(self.work.retries, error)
                logger.warning(
                    "Attempt %d at message %s ended (%s); the next one follows in %.1f s",
                    *(self.work.attempt, self.message_id, self._reason(error), pause),
                )
                await self._store.jobs.retry(state.key, state.lease, pause)
                return Outcome.RETRIED
        elif error is not None and not isinstance(error, Exception):
            return await self._cancel()  # by the application
        return await self._fail(error)

    @property
    def _retries_left(self) -> bool:
        return not self.work.is_last_attempt and self._limits.retry.allows(self.work.retries)

    def _may_retry(self, error: BaseException | None) -> bool:
        if error is None or self._is_lost(error):
            return False
        if _is_outage(error):
            return True
        try:
            return self._limits.retry.wants(error)
        except Exception:
            # The worker would leave the message to its lease, as if it had died.
            logger.exception("retry_on failed: no other attempt at message %s", self.message_id)
            return False

    def _decisive(self, error: BaseException) -> BaseException:
        """Returns the error of a group that decides: any that allows no other attempt."""
        if not isinstance(error, BaseExceptionGroup) or self._may_retry(error):
            return error
        errors = list(_errors_in(error))
        for decides in (self._is_due_to_its_end, lambda each: not self._may_retry(each)):
            for each in errors:
                if decides(each):
                    return each
        return max(errors, key=lambda each: (isinstance(each, Retry) and each.after) or 0.0)

    def _is_lost(self, error: BaseException | None) -> bool:
        """Returns whether an error says that the message is somebody else's, or gone."""
        if isinstance(error, WriterFailedError) and isinstance(error.__cause__, ConverseError):
            error = error.__cause__
        if isinstance(error, ConversationNotFoundError):
            return error.conversation_id == self._state.conversation_id
        if isinstance(error, MessageNotFoundError):
            return error.message_id == self.message_id
        return isinstance(error, WriterFencedError | ConverseClosedError)

    def _is_due_to_its_end(self, error: BaseException) -> bool:
        """Returns whether an error says that the message has ended, was stopped, or is gone."""
        over = isinstance(error, StreamStoppedError | MessageNotStreamingError)
        return over or self._is_lost(error)

    def _reason(self, error: BaseException | None) -> str:
        if self._verdict is not None:
            return self._verdict.value
        return f"{type(error).__name__}: {error}"

    async def _cancel(self) -> Outcome:
        return await self._end(End(MessageStatus.CANCELLED, {}))

    async def _fail(self, error: BaseException | None) -> Outcome:
        """Fails the message; its error is for users, and the log has that of the application."""
        words = _RETRIED.get(self._verdict) if self._verdict else None
        if words is None and isinstance(error, Retry):
            words = storable_error(str(error.reason or ""))
        metadata: dict[str, Any] = {}
        if isinstance(error, Exception):
            logger.error("The generation of message %s failed", self.message_id, exc_info=error)
            metadata["error_type"] = type(error).__name__
        else:
            logger.error("The generation of message %s left it streaming", self.message_id)
        if self.work.attempt > 1:
            metadata["attempts"] = self.work.attempt
        return await self._end(End(MessageStatus.FAILED, metadata, words or UNFINISHED))

    async def _end(self, end: End) -> Outcome:
        state, store = self._state, self._store
        if self._loaded is not None:
            await self._loaded.end(end, state.lease, self._end_id)
        else:
            queue = store.queue((state.message_id, state.log_id))
            queue.has_work = True
            await store.ends.end(
                *(queue, state.key),
                end,
                retention=state.retention,
                known=None,
                lease=state.lease,
                end_id=self._end_id,
            )
        return Outcome.ENDED


def _is_outage(error: BaseException) -> bool:
    """Returns whether an attempt ended since MongoDB did not answer it."""
    if isinstance(error, WriterFailedError) and error.__cause__ is not None:
        error = error.__cause__
    return isinstance(error, StoreUnavailableError)


def _errors_in(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _errors_in(error)
        else:
            yield error


def _error_of(task: "asyncio.Task[None]") -> BaseException | None:
    if not task.done():
        return None
    return asyncio.CancelledError() if task.cancelled() else task.exception()
