"""Queues: messages that wait for a worker, and what becomes of them.

Each step is one write, whose filter says from where it leads: see
:mod:`converse_mongo.store.work_updates`. What a step leaves to be done, such as looking for a
place, whoever comes next can do as well.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from typing import Any

from bson import ObjectId

from converse_mongo.domain.errors import (
    InvalidInputError,
    MessageNotFoundError,
    StreamStoppedError,
)
from converse_mongo.domain.headers import HEADER, MessageHeader
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.metadata import aware, check_metadata
from converse_mongo.domain.open_calls import expire_at, first_expiry
from converse_mongo.domain.work import Job, Work, WorkState, check_delay, check_queue
from converse_mongo.driver.collections import aggregate
from converse_mongo.store import updates, work_updates
from converse_mongo.store.appends import fenced, refuse_overtaken
from converse_mongo.store.clock import ServerClock
from converse_mongo.store.collections import Collections, back_off
from converse_mongo.store.places import Places, left_to_a_sweep

POSTPONED_SECONDS = 60.0
"""Seconds until workers look again at a message that could not go on."""

Checkpoint = Mapping[str, Any] | None
"""What the next worker is to know; ``None`` leaves what is stored."""


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """A queue at a moment.

    Attributes:
        counts: The number of its messages by state; those that are not due yet are ``delayed``.
        oldest: Seconds for which the first of those that are due has been so; ``None`` if none is.
    """

    counts: Mapping[WorkState, int] = field(default_factory=dict)
    oldest: float | None = None


class Queues:
    """Gives queued messages to workers, and takes them back."""

    def __init__(self, collections: Collections, places: Places, clock: ServerClock) -> None:
        self._collections = collections
        self._places = places
        self._clock = clock

    # From the start to a worker

    async def work_of(self, job: Job) -> Work:
        """Returns the work of a new message, by the server's clock, in the caller's trace.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        probe = self._collections.probe
        trace = None if probe is None else probe.trace()
        return Work.of(job, await self._clock.now(), trace)

    async def enqueued(self, key: Mapping[str, Any]) -> None:
        """Looks for a place for a message that was added just now; in a transaction, later.

        If it fails, a sweep does it.
        """

        async def ask(collections: Collections) -> None:
            with left_to_a_sweep(key["_id"]):
                stored: Any = await collections.call(
                    collections.messages.find_one,
                    *(updates.any_log(key), HEADER),
                    what=f"read message {key['_id']}",
                )
                if stored is not None:
                    await Places(collections).ask(MessageHeader.from_stored(stored))

        await self._collections.after_commit(ask)

    async def due(
        self, queues: Sequence[str], limit: int, *, last_lives: bool = True
    ) -> list[MessageHeader]:
        """Returns messages that somebody has to look at, the best first, in one indexed query.

        Those that are ``queued`` can be claimed, a ``delayed`` one is for :meth:`undelay`, and a
        ``waiting`` one for ``Calls.expire``. Some may be due a moment later only.

        Args:
            queues: The names of the queues.
            limit: The most messages.
            last_lives: False to leave out those to claim that one more crash would end.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        if self._clock.latest() is None:
            await self._clock.read()
        moment: Any = self._clock.latest()
        match = work_updates.due(list(map(check_queue, queues)), moment)
        if not last_lives:
            match |= work_updates.BUT_LAST_LIVES

        async def read() -> list[Mapping[str, Any]]:
            cursor = self._collections.messages.find(match, HEADER).sort(work_updates.DUE_ORDER)
            found: list[Mapping[str, Any]] = await cursor.limit(limit).to_list(limit)
            return found

        stored = await self._collections.call(read, what="look for queued messages")
        return [MessageHeader.from_stored(each) for each in stored]

    async def is_due(self, work: Work) -> bool:
        """Returns whether the time of a queued message has come, by the server's clock.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        if work.due is None:
            return False
        estimate = self._clock.estimate()
        if estimate is not None and work.due <= estimate - timedelta(seconds=1):
            return True
        latest = self._clock.latest()
        if latest is not None and work.due > latest:
            return False
        return work.due <= await self._clock.read()

    async def undelay(self, state: MessageHeader) -> bool:
        """Has a message whose delay is over look for a place of its key.

        Args:
            state: The message, as it was delayed.

        Returns:
            True if it is queued then.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        work = state.work
        if work is None or work.state is not WorkState.DELAYED or not await self.is_due(work):
            return False
        at: Any = work.available_at
        await self._change(state.key, work_updates.undelay(state.key, at, self._clock.new_id()))
        blocked = await self._look(state.key)  # it may be another who was first
        return blocked is not None and await self._places.ask(blocked)

    async def postpone(self, state: MessageHeader) -> None:
        """Has workers look later at a message that cannot go on now.

        Else it would be the first that they find each time, in the way of those behind it.

        Args:
            state: The message, as it was due.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        if state.work is not None:
            later = await self._clock.now() + timedelta(seconds=POSTPONED_SECONDS)
            await self._change(state.key, work_updates.postpone(state, state.work, later))

    async def hasten(self, state: MessageHeader) -> MessageHeader:
        """Ends the delay of a message, so that a worker may take it at once.

        Args:
            state: The message, as it was read.

        Returns:
            The message as it is then. One with a key may wait for a place of it; one that was not
            delayed is as it was.

        Raises:
            MessageNotFoundError: The message does not exist.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        work = state.work
        if work is None or work.due is None or await self.is_due(work):
            return state
        if work.state is WorkState.QUEUED:
            change = work_updates.hasten(state.key, work.due)
            await self._change(state.key, work_updates.told(change, work.queue))
        elif work.state is WorkState.DELAYED:
            at, ticket = work.available_at, self._clock.new_id()
            await self._change(state.key, work_updates.undelay(state.key, at or work.due, ticket))
            await self._places.ask(await self._look_at_any(state.key))
        return await self._look_at_any(state.key)

    async def claim(
        self, state: MessageHeader, holder: ObjectId | None = None
    ) -> MessageHeader | None:
        """Makes the caller the writer of a queued message.

        Args:
            state: The message, as it was queued.
            holder: The holder of the lease, a new one; ``None`` to make it here.

        Returns:
            The message with the lease of the caller. ``None`` if another took it, if it was
            stopped or deleted, or if its time has not come.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds. If it was claimed all
                the same, its lease runs out.
        """
        work, holder = state.work, holder or ObjectId()
        if work is None or work.state is not WorkState.QUEUED or not await self.is_due(work):
            return None
        duration = self._collections.options.lease
        change = work_updates.claim(state.key, state.lease.epoch, holder, duration)
        retries: list[None] = []
        claimed_now = await self._change(state.key, change, lambda: retries.append(None))
        if not retries:
            # Nothing that matters to a worker has changed since, or it would have another epoch. An
            # update that returns the document would write its image into the oplog.
            return _claimed(state, work, holder, duration) if claimed_now else None
        # A try whose answer was lost may have succeeded.
        return _if_held_by(holder, await self._look(state.key))

    async def enlist(self, key: Mapping[str, Any], job: Job) -> MessageHeader | None:
        """Puts a message that was started without a queue into one, as claimed by the caller.

        Args:
            key: The message.
            job: How it is to be queued, without a delay and a key.

        Returns:
            The message with the lease of the caller. ``None`` if somebody has begun to write to it,
            if it has a queue, or if it was stopped or deleted.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        holder, work = ObjectId(), (await self.work_of(job)).claimed()
        duration = self._collections.options.lease
        await self._change(key, work_updates.enlist(key, work, holder, duration))
        return _if_held_by(holder, await self._look(key))

    # From a worker

    async def hand_over(
        self,
        key: Mapping[str, Any],
        lease: Lease,
        queue: str,
        checkpoint: Checkpoint = None,
        *,
        crashes: int = 0,
    ) -> MessageHeader:
        """Gives a message back to its queue, for another worker at once.

        Args:
            key: The message.
            lease: The lease of the worker.
            queue: The name of the queue.
            checkpoint: What the next worker is to know; ``None`` leaves what is stored.
            crashes: Those of the message as the worker has claimed it.

        Returns:
            The message as it is then.

        Raises:
            InvalidMetadataError: The checkpoint cannot be stored.
            StreamStoppedError: A stop was requested: the message is to be cancelled.
            WriterFencedError: The message has another worker, or was deleted and started anew.
            MessageNotStreamingError: The message has ended.
            MessageNotFoundError: The message does not exist.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        checked = _checked(checkpoint)
        change = work_updates.hand_over(key, lease, checked)
        done = await self._change(key, work_updates.told(change, queue))
        return await self._left(key, lease, {WorkState.QUEUED}, crashes, done=done)

    async def retry(
        self,
        key: Mapping[str, Any],
        lease: Lease,
        delay: float = 0,
        checkpoint: Checkpoint = None,
    ) -> MessageHeader:
        """Gives a message back to its queue for another attempt.

        While it is delayed, a message with a key gives its place back.

        Args:
            key: The message.
            lease: The lease of the worker.
            delay: Seconds until a worker may take it.
            checkpoint: What the next worker is to know; ``None`` leaves what is stored.

        Raises:
            InvalidInputError: It was the last attempt: fail the message.

        It also raises and returns what :meth:`hand_over` does.
        """
        checked, seconds = _checked(checkpoint), check_delay(delay)
        state = await self._held(key, lease)
        work: Any = state.work
        if work.is_last_attempt:
            raise InvalidInputError(
                f"Attempt {work.attempt} of message {key['_id']} was the last one: fail the "
                "message. Nothing was written."
            )
        at = await self._clock.now() + timedelta(seconds=seconds) if seconds else None
        leaves = at is not None and work.key is not None
        change = work_updates.retry(key, lease, at, checked, leaves_place=leaves)
        done = await self._change(key, work_updates.told(change, work.queue, at))
        states = {WorkState.QUEUED, WorkState.DELAYED}
        left = await self._left(key, lease, states, work.crashes, done=done)
        await self._release(left, work)
        return left

    async def suspend(
        self,
        key: Mapping[str, Any],
        lease: Lease,
        expires: float | None = None,
        checkpoint: Checkpoint = None,
    ) -> MessageHeader:
        """Has a message wait for the answers to its open calls, without a worker and a place.

        If all are answered already, it goes back to its queue instead: its state tells.

        Args:
            key: The message.
            lease: The lease of the worker.
            expires: Seconds after which the calls are denied; ``None`` for never.
            checkpoint: What the next worker is to know; ``None`` leaves what is stored.

        It raises and returns what :meth:`hand_over` does.
        """
        checked = _checked(checkpoint)
        seconds = None if expires is None else check_delay(expires, "expires")
        state = await self._held(key, lease)
        for attempt in count():
            work: Any = state.work
            if not work.pending:
                return await self.hand_over(
                    key, lease, work.queue, checkpoint, crashes=work.crashes
                )
            at = None if seconds is None else await self._clock.now() + timedelta(seconds=seconds)
            pending = expire_at(work.pending, at)
            change = work_updates.suspend(
                *(key, lease, state.next_sequence, pending, first_expiry(pending)), checked
            )
            changed = await self._change(key, change)
            found = await self._look(key)
            if not changed and found is not None and found.lease.is_held_by(lease):
                state = await self._held(key, lease)  # somebody answered, or appended
                await back_off(attempt)
                continue
            # Others may have answered since.
            states = {*WorkState} - {WorkState.RUNNING}
            left = await self._left(key, lease, states, work.crashes, done=changed)
            await self._release(left, work)
            return left
        raise AssertionError("unreachable")

    async def _held(self, key: Mapping[str, Any], lease: Lease) -> MessageHeader:
        """Reads a message that a worker still has, and that goes on."""
        state = await self._look_at_any(key)
        refuse_overtaken(state, key, lease)
        if state.stop_requested:
            raise StreamStoppedError(state.message_id, state.stop_reason)
        if state.work is None:
            raise InvalidInputError(
                f"Message {state.message_id} was not started with a queue: it has none to go back "
                "to. Nothing was written."
            )
        return state

    async def _left(
        self,
        key: Mapping[str, Any],
        lease: Lease,
        states: Collection[WorkState],
        crashes: int,
        *,
        done: bool,
    ) -> MessageHeader:
        """Reads a message that a worker left, or wanted to leave, in one of some states."""
        state = await self._look_at_any(key)
        if done:
            return state  # another worker may have it by now, and may even have ended it
        work = state.work
        same = state.log_id == key["log_id"] and state.lease.epoch == lease.epoch
        # By an earlier try whose answer was lost, unless others took the worker for dead: they
        # count a crash, and know no checkpoint.
        if same and state.lease.holder is None and work is not None and work.state in states:
            if work.crashes == crashes:
                return state
            raise fenced(state.message_id, state.status)
        return await self._held(key, lease)

    async def _release(self, left: MessageHeader, before: Work) -> None:
        """Gives back the place that a message had, once it is seen to have lost it."""
        if before.ticket is None or (left.work is not None and left.work.ticket == before.ticket):
            return
        with left_to_a_sweep(left.message_id):
            await self._places.release(before)

    # What is there

    async def statistics(self, queues: Sequence[str] | None = None) -> dict[str, QueueStatistics]:
        """Counts the messages of queues; those with no message are left out.

        Args:
            queues: The names of the queues; ``None`` for all.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        names = None if queues is None else list(map(check_queue, queues))
        clock = await self._clock.read()
        counts: dict[str, dict[WorkState, int]] = {}
        for each in await self._aggregate(work_updates.count_states(names)):
            of = each["_id"]
            counts.setdefault(of["queue"], {})[WorkState(of["state"])] = each["count"]
        found = list(counts)
        for each in await self._aggregate(work_updates.count_later(found, clock)):
            states, later = counts[each["_id"]], each["count"]
            states[WorkState.DELAYED] = states.get(WorkState.DELAYED, 0) + later
            states[WorkState.QUEUED] = max(states.get(WorkState.QUEUED, 0) - later, 0)
        oldest = {
            each["_id"]: (clock - aware(each["due"])).total_seconds()
            for each in await self._aggregate(work_updates.find_oldest(found, clock))
        }
        return {name: QueueStatistics(each, oldest.get(name)) for name, each in counts.items()}

    async def waiting(
        self, queues: Sequence[str] | None = None, limit: int = 100
    ) -> list[MessageHeader]:
        """Lists messages of queues that have not ended, by queue, the oldest of each first.

        Args:
            queues: The names of the queues; ``None`` for all.
            limit: The most messages.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        match = work_updates.in_queues(None if queues is None else list(map(check_queue, queues)))

        async def read() -> list[Mapping[str, Any]]:
            cursor = self._collections.messages.find(match, HEADER)
            order = [("work.queue", 1), ("created_at", 1), ("_id", 1)]
            found: list[Mapping[str, Any]] = await cursor.sort(order).limit(limit).to_list(limit)
            return found

        stored = await self._collections.call(read, what="list queued messages")
        return [MessageHeader.from_stored(each) for each in stored]

    async def _aggregate(self, pipeline: list[updates.Document]) -> list[dict[str, Any]]:
        return await self._collections.call(
            aggregate,
            *(self._collections.messages, pipeline),
            what="count queued messages",
        )

    async def _change(
        self,
        key: Mapping[str, Any],
        change: tuple[updates.Document, updates.Document],
        on_retry: Callable[[], None] | None = None,
    ) -> bool:
        """Changes a message, and returns whether this try did."""
        result = await self._collections.call(
            self._collections.messages.update_one,
            *change,
            what=f"move message {key['_id']} in its queue",
            on_retry=on_retry,
        )
        return bool(result.matched_count)

    async def _look(self, key: Mapping[str, Any]) -> MessageHeader | None:
        """Reads a message; ``None`` if it is gone."""
        stored: Any = await self._collections.call(
            self._collections.messages.find_one,
            *(key, HEADER),
            what=f"read message {key['_id']}",
        )
        return MessageHeader.from_stored(stored) if stored else None

    async def _look_at_any(self, key: Mapping[str, Any]) -> MessageHeader:
        """Reads the message that has the id."""
        state = await self._look(updates.any_log(key))
        if state is None:
            raise MessageNotFoundError(key["_id"])
        return state


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    return None if checkpoint is None else check_metadata(checkpoint, "checkpoint")


def _if_held_by(holder: ObjectId, state: MessageHeader | None) -> MessageHeader | None:
    """Returns a message that a holder may write to; one that was ended as lost still names it."""
    if state is None or state.lease.holder != holder or state.status.is_final:
        return None
    return state


def _claimed(state: MessageHeader, work: Work, holder: ObjectId, duration: float) -> MessageHeader:
    """Returns a message as it is once it is claimed, but for the time of the claim."""
    lease = Lease(epoch=state.lease.epoch + 1, holder=holder, duration=duration)
    return replace(state, lease=lease, work=work.claimed())
