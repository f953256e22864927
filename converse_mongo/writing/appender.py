"""The appender: the background task of a writer, which appends and sends heartbeats."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from bson import ObjectId

from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.errors import (
    ConverseError,
    InvalidInputError,
    MessageNotFoundError,
    MessageNotStreamingError,
    StoreUnavailableError,
    StreamStoppedError,
    WriterFailedError,
    WriterFencedError,
)
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.types import Granularity
from converse_mongo.domain.validation import check_int, check_seconds
from converse_mongo.driver.shielded import ShieldedTask
from converse_mongo.store import Store, WriteQueue
from converse_mongo.store.appends import WriterClaim, refuse_overtaken
from converse_mongo.store.updates import End
from converse_mongo.writing.attempt import Attempt
from converse_mongo.writing.buffer import TokenBuffer

logger = logging.getLogger("converse_mongo")

HEARTBEATS_PER_LEASE = 3

TURNS = 3
"""The turns after which the event loop counts as free."""
LOOK_SECONDS = 0.1
"""The time for which a loop then counts as free; longer than the usual ``flush_interval``."""
CATCH_UP_SECONDS = 0.05
"""The time for which ``write`` waits for overdue work, in a loop that is not free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterOptions:
    """The options of a writer; see ``Message.writer``."""

    flush_interval: float
    max_buffered: int
    granularity: Granularity
    interrupt: bool

    def __post_init__(self) -> None:
        check_seconds(self.flush_interval, "flush_interval")
        check_int(self.max_buffered, "max_buffered", 1)
        if self.granularity not in ("flush", "token"):
            raise InvalidInputError(
                f"granularity must be 'flush' or 'token', got {self.granularity!r}. "
                "Nothing was written."
            )


@dataclass(frozen=True, slots=True)
class WriterTarget:
    """The message of a writer.

    Attributes:
        store: The store.
        queue: The queue of the message.
        key: The filter for the message.
        taken_over: Loads the message after a take-over by the given lease.
        written: Called with chunks that are stored.
        behind_steps: Returns the number from which a reset voids what no finished step has.
        end: Ends the message, if the writer still holds the given lease; a second call with the
            same id is the same end.
        attempt: The attempt of a worker that holds the lease; ``None`` without a worker.
    """

    store: Store
    queue: WriteQueue
    key: Mapping[str, Any]
    taken_over: Callable[[Lease], Awaitable[Any]]
    written: Callable[[Sequence[MessageChunk]], None]
    behind_steps: Callable[[], Awaitable[int]]
    end: Callable[[End, Lease, ObjectId], Awaitable[Any]]
    attempt: Attempt | None = None

    @property
    def message_id(self) -> ObjectId:
        """The id of the message."""
        message_id: ObjectId = self.key["_id"]
        return message_id


class Turns:
    """Detects an event loop that turns only during ``write``.

    That happens if the generation loop never awaits anything else, as with a synchronous SDK.

    Attributes:
        look_at: The time of the next check, by the monotonic clock; before it the loop is free.
    """

    def __init__(self) -> None:
        self.look_at = 0.0
        self._left = 0

    def note(self) -> None:
        """Notes that the loop turns right now."""
        self.look_at = monotonic() + LOOK_SECONDS

    @property
    def passed(self) -> bool:
        """True if the loop has turned a few times since :meth:`watch`."""
        return not self._left

    def watch(self) -> None:
        """Begins to count turns, unless it is counting."""
        self.note()
        if not self._left:
            self._left = TURNS
            asyncio.get_running_loop().call_soon(self._count)

    def _count(self) -> None:
        self._left -= 1
        if self._left:
            asyncio.get_running_loop().call_soon(self._count)


class Appender:
    """Appends the content of a buffer, one write at a time, until it is drained.

    Attributes:
        buffer: The buffer.
        turns: Detects an event loop that is not free.
        stop: Set once a stop was requested.
        failure: Set once it cannot continue; it has the text of the buffer.
        chunks: The number of stored chunks.
        writes: The number of appends.
        retries: The number of retries of appends.
        bytes: The size of the stored text, in bytes of UTF-8.
    """

    def __init__(
        self,
        target: WriterTarget,
        options: WriterOptions,
        *,
        stopped: Callable[[], Awaitable[Any]],
        refused: Callable[[], None],
    ) -> None:
        self._target = target
        self._flush_interval = options.flush_interval
        self._stopped = stopped
        self._refused = refused
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._next_renewal = self._deadline = 0.0
        self._hurry = self._draining = self._look = False
        self._lease = Lease()
        self._append_id = ObjectId()
        self._tried = False
        self._task: ShieldedTask | None = None
        self._given_up: ConverseError | None = None
        self.turns = Turns()
        self.buffer = TokenBuffer(
            options.max_buffered, self._wake.set, merges=options.granularity == "flush"
        )
        self.stop: StreamStoppedError | None = None
        self.failure: ConverseError | None = None
        self.chunks = self.writes = self.retries = self.bytes = 0

    def start(self, lease: Lease) -> Callable[[], None]:
        """Begins to append with a lease; returns a function that ends its notices."""
        target = self._target
        self._lease = lease
        self._next_renewal = asyncio.get_running_loop().time() + self._silence
        self._task = ShieldedTask(
            self._run, f"converse_mongo-writer-{target.message_id}", self._hasten
        )
        return target.store.notices.listen(
            target.message_id, target.key["conversation_id"], self._notice
        )

    @property
    def done(self) -> bool:
        """True before it has begun, and once it is finished."""
        return self._task is None or self._task.done

    def hurry(self) -> None:
        """Writes the content of the buffer without a pause."""
        self._hurry = True
        self._wake.set()

    @property
    def _silence(self) -> float:
        """Seconds from one heartbeat to the next."""
        return self._target.store.options.lease / HEARTBEATS_PER_LEASE

    @property
    def overdue(self) -> bool:
        """True if the task should have continued by now, and could not run."""
        late = asyncio.get_running_loop().time() - self._deadline
        return self._settled.is_set() and late > CATCH_UP_SECONDS

    async def catch_up(self) -> None:
        """Waits a moment for overdue work; longer for a heartbeat."""
        if self.done:
            return
        overdue = asyncio.get_running_loop().time() >= self._next_renewal
        self._settled.clear()
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._silence if overdue else CATCH_UP_SECONDS):
                await self._settled.wait()

    async def drain(self) -> None:
        """Waits until everything is stored, or cannot be; nothing is appended after it."""
        self._draining = True
        self._wake.set()
        if self._task is not None:
            await self._task.wait()

    def give_up(self, error: ConverseError) -> None:
        """Ends the task now; :attr:`failure` has the text that is not stored."""
        self._given_up = error
        self._draining = True
        if self._task is not None and not self._task.done:
            self._task.interrupt()

    def note_stop(self, reason: str | None) -> None:
        """Notes that a stop was requested."""
        self.stop = StreamStoppedError(self._target.message_id, reason)
        self._draining = True
        self._refused()
        self.buffer.wake_waiters()

    def _notice(self, holder: ObjectId | None) -> None:
        """Receives a hint that there may be news of the message."""
        own = holder is not None and holder == self._lease.holder
        if not (own or self._draining):  # the last append finds out
            self._look = True
            self._wake.set()

    def _hasten(self) -> None:
        # The loop is ending, and cancels all tasks: store the buffer, and finish.
        self._draining = True

    async def _run(self) -> None:
        try:
            await self._append_until_drained()
            if self.stop is not None:
                await self._stopped()
        except asyncio.CancelledError:
            if self._given_up is None:
                raise
            self._fail(self._given_up)
        except Exception as error:  # noqa: BLE001 - the generation loop gets it
            self._fail(error)
        finally:
            self._settled.set()
            self.buffer.wake_waiters()

    async def _append_until_drained(self) -> None:
        time, buffer = asyncio.get_running_loop().time, self.buffer
        next_flush = time()
        while True:
            self._wake.clear()
            if self._given_up is not None:
                raise self._given_up
            self.turns.note()
            if self._draining:
                buffer.end_half()
                if not buffer:
                    return
            # Text goes before hints. They may come faster than they are handled, and an append
            # handles them as well: it fails if there is news.
            if buffer and (
                self._draining or self._hurry or buffer.is_urgent or time() >= next_flush
            ):
                next_flush = time() + self._flush_interval
                self._look = False
                await self._flush()
                self._next_renewal = time() + self._silence
            elif self._look or time() >= self._next_renewal:
                await self._renew()
                self._next_renewal = time() + self._silence
            else:
                renewal = self._next_renewal
                self._deadline = min(next_flush, renewal) if buffer else renewal
                self._settled.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._deadline):
                        await self._wake.wait()
                self._settled.clear()

    async def _flush(self) -> None:
        if not self.buffer.in_flight:  # else it was cancelled there, and continues
            self.buffer.take()
            self._append_id, self._tried = ObjectId(), False
        if not self.buffer.gathers:
            self._hurry = False
        try:
            chunks = await self._append()
        except StreamStoppedError as stop:
            self.note_stop(stop.reason)
            chunks = await self._append()
        self.writes += 1
        self.chunks += len(chunks)
        self._target.written(chunks)
        probe = self._target.store.probe
        if probe is not None:
            probe.stored([run.since for run in self.buffer.in_flight])
        self.bytes += self.buffer.confirm()

    async def _append(self) -> list[MessageChunk]:
        target, again = self._target, self._tried
        claim = WriterClaim(
            self._lease, not self.stop, on_retry=self._count_retry, keep_alive=self._keep_alive
        )
        self._tried = True  # if this is cancelled, it may or may not be stored
        try:
            return await target.store.appends.append(
                target.queue,
                target.key,
                self.buffer.batch,
                self._append_id,
                claim,
                again=again,
                has_parts=self.buffer.has_parts,
            )
        except StreamStoppedError:
            self._tried = again
            raise

    async def _keep_alive(self) -> None:
        """Sends a heartbeat if one is due, before an append that takes long."""
        time = asyncio.get_running_loop().time
        if time() >= self._next_renewal:
            await self._renew()
            self._next_renewal = time() + self._silence

    def _count_retry(self) -> None:
        self.retries += 1

    async def _renew(self) -> None:
        self._look = False
        target = self._target
        try:
            state = await target.store.leases.renew(target.key, self._lease)
        except StoreUnavailableError as error:
            # A write decides, and the lease may outlive the outage.
            logger.warning("Message %s: the heartbeat failed (%s)", target.message_id, error)
            return
        if state is not None:
            refuse_overtaken(state, target.key, self._lease)
            if state.stop_requested and self.stop is None:
                self.note_stop(state.stop_reason)

    def _fail(self, error: Exception) -> None:
        unconfirmed, behind = self.buffer.clear()
        unsent = "".join([each for each in behind if isinstance(each, str)])
        text = "".join([each for each in unconfirmed if isinstance(each, str)]) + unsent
        events = sum([not isinstance(each, str) for each in (*unconfirmed, *behind)])
        if isinstance(error, WriterFencedError):
            if self._target.store.probe is not None:
                self._target.store.probe.lease_lost()
            error.text = text
            self.failure = error
        elif isinstance(error, MessageNotStreamingError) and not (text or events):
            self.failure = error
        else:
            message_id = self._target.message_id
            failure = WriterFailedError(
                f"The writer of message {message_id} gave up ({error}). "
                + _what_is_lost(text, events),
                message_id,
                text,
            )
            failure.append_id = self._append_id if unconfirmed else None
            failure.unconfirmed, failure.unsent = unconfirmed, unsent
            failure.unsent_contents = behind
            failure.__cause__ = error
            self.failure = failure
        # A deletion is the wish of somebody.
        deleted = isinstance(error, MessageNotFoundError)
        logger.log(logging.INFO if deleted else logging.WARNING, "%s", self.failure)
        self._refused()
        self.buffer.wake_waiters()


def _what_is_lost(text: str, events: int) -> str:
    if not (text or events):
        return "All that it accepted is stored."
    lost = [f"{len(text)} characters"] if text else []
    lost += [f"{events} events of parts"] if events else []
    return (
        f"{' and '.join(lost)} that it accepted may not be stored: see 'text', 'unconfirmed' and "
        "'unsent_contents'."
    )
