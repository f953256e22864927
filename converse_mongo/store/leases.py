"""Leases: the right to write to a message, requests to stop, and the end of orphans.

A lease runs by the server's clock alone: the server stores the time of each heartbeat, and is asked
whether a lease has expired. The clock of a process is only a reason to ask. And an orphan is ended
only if there was no heartbeat since it was looked at.

It is looked at twice, a third of the lease apart. A writer that could not reach the server, or
whose lease seems to have expired by the clock of a new primary, sends a heartbeat in that time.
"""

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo.domain.errors import (
    ConverseError,
    MessageNotFoundError,
    MessageNotStreamingError,
    MessageQueuedError,
    WriterExistsError,
)
from converse_mongo.domain.headers import HEADER, MessageHeader, check_format
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.types import MessageStatus
from converse_mongo.domain.work import Work, WorkState
from converse_mongo.store import updates, work_updates
from converse_mongo.store.appends import fenced, replaced
from converse_mongo.store.clock import ServerClock
from converse_mongo.store.collections import Collections
from converse_mongo.store.ends import Ends
from converse_mongo.store.updates import End

INTERRUPTED = "interrupted"
"""The error of a message whose writer was presumed dead."""

LOOKS_APART = 3
"""The two looks are this fraction of a lease apart: a writer sends as many heartbeats."""
LOOKS_KEPT = 10_000
"""The most first looks to remember; further orphans are ended later."""


@dataclass(frozen=True, slots=True)
class _Look:
    """The first look at a message whose lease has expired.

    Attributes:
        log_id: Its log id.
        lease: Its lease.
        seconds: The time until the second look.
        moment: The time of this look, by the clock of this process.
        troubles: The number of failed calls by then.
    """

    log_id: ObjectId | None
    lease: Lease
    seconds: float
    moment: float
    troubles: int


class Leases:
    """Gives leases of messages to writers, and ends messages that nobody writes to."""

    def __init__(self, collections: Collections, ends: Ends) -> None:
        self._collections = collections
        self._ends = ends
        self.clock = ServerClock(collections)
        self._looks: dict[ObjectId, _Look] = {}

    # Writers

    async def acquire(self, key: Mapping[str, Any]) -> MessageHeader:
        """Makes the caller the first writer of a message.

        Args:
            key: The filter for the message.

        Returns:
            The message, with the lease of the caller.

        Raises:
            WriterExistsError: The message has or had a writer.
            MessageQueuedError: It is queued: only a worker takes it.
            WriterFencedError: Another writer took over meanwhile.
            MessageNotStreamingError: The message has ended.
            MessageNotFoundError: The message does not exist.
            UnknownFormatError: A later version wrote to the message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        holder = ObjectId()
        change = updates.acquire_lease(key, holder, self._collections.options.lease)
        acquired = await self._change(key, change)
        state = await self._look_after_claim(key, Lease(epoch=1, holder=holder))
        self._refuse_overtaken(state, holder, claimed=acquired)
        # A try whose answer was lost may have succeeded.
        if state.lease.holder != holder:
            raise WriterExistsError(
                f"Message {state.message_id} has or had another writer: to replace it, use "
                "resume_writer(). Nothing was written.",
                state.message_id,
            )
        return state

    async def take_over(self, key: Mapping[str, Any]) -> MessageHeader:
        """Makes the caller the next writer of a message, and fences off the previous one.

        Raises:
            WriterFencedError: Yet another writer took over meanwhile.
            MessageQueuedError: It is queued: only a worker takes it.
            MessageNotStreamingError: The message has ended.
            MessageNotFoundError: The message does not exist.
            UnknownFormatError: A later version wrote to the message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        state, holder, taken = await self._look(key), ObjectId(), False
        while state.lease.holder != holder:
            self._refuse_overtaken(state, holder, claimed=taken)
            # From the lease that was seen to the next: a late repeat changes nothing.
            change = updates.take_over(key, state.lease, holder, self._collections.options.lease)
            taken = await self._change(key, change)
            state = await self._look_after_claim(
                key, Lease(epoch=state.lease.epoch + 1, holder=holder)
            )
        self._refuse_overtaken(state, holder, claimed=taken)
        return state

    async def renew(self, key: Mapping[str, Any], lease: Lease) -> MessageHeader | None:
        """Sends a heartbeat of the writer that was given ``lease``.

        Returns:
            The message, if there may be news for the writer; else ``None``.

        Raises:
            WriterFencedError: Another message has the id.
            MessageNotFoundError: The message does not exist.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        if await self._change(key, updates.renew_lease(key, lease)):
            return None
        return await self._look(key, for_writer=True)

    async def release(self, key: Mapping[str, Any], lease: Lease) -> None:
        """Releases a message, which becomes an orphan after the ``idle_timeout``.

        One from a queue goes back to it.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        idle_timeout = self._collections.options.idle_timeout
        if not await self._change(key, updates.release_lease(key, lease, idle_timeout)):
            state = await self._look(key)
            if state.work is not None:
                change = work_updates.hand_over(key, lease)
                await self._change(key, work_updates.told(change, state.work.queue))

    async def _change(
        self, key: Mapping[str, Any], change: tuple[updates.Document, updates.Document]
    ) -> bool:
        """Changes the lease of a message, and returns whether the change matched.

        It may not match because an earlier try, whose answer was lost, succeeded.
        """
        result = await self._collections.call(
            self._collections.messages.update_one,
            *change,
            what=f"change the lease of message {key['_id']}",
        )
        return bool(result.matched_count)

    async def _look(self, key: Mapping[str, Any], *, for_writer: bool = False) -> MessageHeader:
        """Reads the message as it is now."""
        message_id = key["_id"]
        stored = await self._collections.call(
            self._collections.messages.find_one,
            *(updates.any_log(key), HEADER),
            what=f"read message {message_id}",
        )
        if stored is None:
            raise MessageNotFoundError(message_id)
        state = MessageHeader.from_stored(stored)
        if state.log_id != key.get("log_id", state.log_id):
            raise replaced(message_id) if for_writer else MessageNotFoundError(message_id)
        return state

    async def _look_after_claim(self, key: Mapping[str, Any], lease: Lease) -> MessageHeader:
        """Reads the message after a claim, which may have given the caller this lease."""
        try:
            return await self._look(key)
        except (PyMongoError, ConverseError):
            with contextlib.suppress(PyMongoError, ConverseError):
                await self.release(key, lease)  # else nobody could write until it expires
            raise

    def _refuse_overtaken(self, state: MessageHeader, holder: ObjectId, *, claimed: bool) -> None:
        if claimed and state.lease.holder != holder:
            raise fenced(state.message_id, state.status)
        if state.status.is_final:
            raise MessageNotStreamingError(state.message_id, state.status)
        check_format(state.message_id, state.format)
        work = state.work
        if work is not None and work.state not in (None, WorkState.RUNNING):
            raise MessageQueuedError(state.message_id, work.state)

    # Stops

    async def request_stop(self, key: Mapping[str, Any], reason: str | None) -> MessageHeader:
        """Asks the writer of a message to stop; ends a message without a writer.

        Args:
            key: The filter for the message; its id is enough.
            reason: Stored as the reason of the stop.

        Returns:
            The message as it is then: cancelled, or streaming until its writer is notified, or
            ended before.

        Raises:
            MessageNotFoundError: The message does not exist.
            UnknownFormatError: A later version wrote to the message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        if "conversation_id" not in key:
            key = (await self._look(key)).key
        while True:
            await self._change(key, updates.request_stop(key, reason))
            state = await self._look(key)
            if state.status.is_final:
                return state
            check_format(state.message_id, state.format)
            if state.lease.holder is None:
                # Appends by hand are not notified, and may continue until then.
                end = End(MessageStatus.CANCELLED, {}, stop_reason=reason)
                if state.stop_requested:
                    end = End(MessageStatus.CANCELLED, {})
                unheld = updates.unheld(stopped=state.stop_requested)
                ended = await self._ends.settle(state, end, unheld)
                if ended is not None and ended.status.is_final:
                    return ended
            elif state.stop_requested:
                return await self.settle_if_expired(state)
            # A writer came or left in between, or the message is gone, which is said next.

    # Orphans

    async def find_expired(
        self, leases: Mapping[ObjectId, Lease], conversations: Mapping[ObjectId, ObjectId]
    ) -> list[ObjectId]:
        """Returns those messages that seem to be orphans; reads the server's clock at most once.

        The leases of messages that nobody has written to or read so far begin now. Messages whose
        second look is not due yet are left out.

        Args:
            leases: Message id to lease.
            conversations: Message id to conversation id.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        limited = {key: lease for key, lease in leases.items() if lease.duration is not None}
        unmet = [key for key, lease in limited.items() if lease.renewed_at is None]
        if unmet:
            them = {
                "_id": {"$in": unmet},
                "conversation_id": {"$in": list({conversations[key] for key in unmet})},
            }
            await self._collections.call(
                self._collections.messages.update_many,
                *updates.start_lease(them),
                what="start the leases of messages",
            )
        met = limited.keys() - unmet
        if met and self.clock.latest() is None:
            await self.clock.read()
        return [
            key
            for key in met
            if self._may_have_expired(limited[key]) and not self._waits(key, limited[key])
        ]

    async def settle_orphan(
        self, message_id: ObjectId, conversation_id: ObjectId
    ) -> MessageHeader | None:
        """Does :meth:`settle_if_expired` for a message; returns it as it is then, if it exists.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        state = await self._collections.call(
            self._collections.reader.state,
            *(message_id, conversation_id),
            what=f"read message {message_id}",
        )
        if state is None:
            return None
        return await self.settle_if_expired(state)

    async def settle_if_expired(
        self, state: MessageHeader, *, complete_partial: bool = False
    ) -> MessageHeader:
        """Ends the message of ``state`` if its lease has expired; returns it as it is then.

        One from a queue goes back to it, while it has attempts left.

        Not at the first look: :meth:`next_look` then returns when the second is due.

        Args:
            state: The message.
            complete_partial: True to complete a message that has chunks, instead of failing it.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        lease = state.lease
        if state.status.is_final or lease.duration is None or not state.is_known:
            return state
        if lease.renewed_at is None:
            await self._collections.call(
                self._collections.messages.update_one,
                *updates.start_lease(state.key),
                what=f"start the lease of message {state.message_id}",
            )
            return state
        if not await self._has_expired(lease):
            return state
        if not self._looked_before(state):
            return state
        return await self._settle(state, complete_partial=complete_partial) or state

    def next_look(self, state: MessageHeader) -> float | None:
        """Returns the seconds until the second look at a message, if there was a first."""
        look = self._looks.get(state.message_id)
        if look is None or (look.log_id, look.lease) != (state.log_id, state.lease):
            return None
        return max(look.moment + look.seconds - time.monotonic(), 0.0)

    def _waits(self, message_id: ObjectId, lease: Lease) -> bool:
        look = self._looks.get(message_id)
        if look is None or look.lease != lease or look.troubles != self._collections.troubles:
            return False
        return time.monotonic() < look.moment + look.seconds

    def _looked_before(self, state: MessageHeader) -> bool:
        """Looks at a message, and returns whether it is unchanged since a look long enough ago.

        After a call that failed meanwhile it looks anew: the writer may have been cut off as well.
        """
        message_id, moment = state.message_id, time.monotonic()
        troubles = self._collections.troubles
        look = self._looks.pop(message_id, None)
        if (
            look is None
            or (look.log_id, look.lease) != (state.log_id, state.lease)
            or look.troubles != troubles
        ):
            seconds = state.lease.duration or 0.0
            if state.lease.holder is None:  # no heartbeats: only an outage has to be over
                seconds = min(seconds, self._collections.options.lease)
            look = _Look(state.log_id, state.lease, seconds / LOOKS_APART, moment, troubles)
        elif moment >= look.moment + look.seconds:
            return True
        self._looks[message_id] = look
        if len(self._looks) > LOOKS_KEPT:
            del self._looks[next(iter(self._looks))]
        return False

    async def _settle(
        self, state: MessageHeader, *, complete_partial: bool = False
    ) -> MessageHeader | None:
        """Ends an orphan, or gives it back to its queue; returns it as it is then, if it exists."""
        work, lost = state.work, End(MessageStatus.FAILED, {}, INTERRUPTED)
        if state.stop_requested:
            lost = End(MessageStatus.CANCELLED, {})
        elif work is not None and work.state is WorkState.RUNNING:
            if not work.is_last_attempt:
                return await self._requeue(state, work)
            attempts = f"{INTERRUPTED} in attempt {work.attempt} of {work.max_attempts}"
            lost = End(MessageStatus.FAILED, {}, attempts, is_crash=True)
        if complete_partial and state.next_sequence and lost.status is MessageStatus.FAILED:
            lost = End(MessageStatus.COMPLETED, {"partial": True}, is_crash=lost.is_crash)
        condition = updates.unchanged_lease(state.lease)
        if not state.stop_requested:
            condition["stop_requested_at"] = None
        return await self._ends.settle(state, lost, condition)

    async def _requeue(self, state: MessageHeader, work: Work) -> MessageHeader | None:
        change = work_updates.told(work_updates.recover(state.key, state.lease), work.queue)
        await self._change(state.key, change)
        return await self._collections.call(
            self._collections.reader.state,
            *(state.message_id, state.conversation_id),
            what=f"read message {state.message_id}",
        )

    def _may_have_expired(self, lease: Lease) -> bool:
        """Returns whether the server's clock should be read."""
        if lease.renewed_at is None or lease.duration is None:
            return False
        guess = self.clock.latest()
        return guess is None or lease.has_expired(guess)

    def seconds_left(self, leases: Iterable[Lease]) -> float | None:
        """Returns the time until the first of these leases expires, if it can be estimated."""
        guess = self.clock.latest()
        left = [
            lease.duration - (guess - lease.renewed_at).total_seconds()
            for lease in leases
            if guess is not None and lease.renewed_at and lease.duration is not None
        ]
        return min(left, default=None)

    async def _has_expired(self, lease: Lease) -> bool:
        return self._may_have_expired(lease) and lease.has_expired(await self.clock.read())
