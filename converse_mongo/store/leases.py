"""Leases: who may write to a message, who asked for its end, and who is taken for dead.

A lease runs by the server's clock alone: the server notes the time of each sign of life, and is
asked whether one is too long ago. What a process believes in between is only a reason to ask. And
whoever ends an orphan ends it only if there was no sign of life since it looked.
"""

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from bson import ObjectId
from pymongo import ReturnDocument

from converse_mongo import _updates
from converse_mongo._state import STATE, LeaseState, MessageState
from converse_mongo.errors import (
    MessageNotFoundError,
    MessageNotStreamingError,
    WriterExistsError,
)
from converse_mongo.store.calls import Calls
from converse_mongo.store.ends import End, Ends
from converse_mongo.types import MessageStatus

__all__ = ["INTERRUPTED", "Leases"]

INTERRUPTED = "interrupted"
"""The error of a message whose writer gave no sign of life for too long."""

_CLOCK_SECONDS = 30.0
"""How long a look at the server's clock is good for a guess."""


class Leases:
    """Gives leases of messages to writers, and ends what nobody writes to any more."""

    def __init__(self, calls: Calls, ends: Ends) -> None:
        self._calls = calls
        self._ends = ends
        self._clock: tuple[datetime, float] | None = None

    # Writers

    async def acquire(self, message_id: ObjectId, conversation_id: ObjectId) -> MessageState:
        """Makes the caller the first writer of a message.

        Raises:
            WriterExistsError: There is or was one already.
            MessageNotStreamingError: The message has ended.
            MessageNotFoundError: There is no such message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        key, holder = _updates.message_key(message_id, conversation_id), ObjectId()
        state = await self._change(
            key, _updates.acquire_lease(key, holder, self._calls.options.lease)
        )
        # A try whose answer was lost may have been the one that did it.
        self._refuse_ended(state)
        if state.lease.holder != holder:
            raise WriterExistsError(
                f"Message {message_id} has a writer already, or had one: if that is dead or is to "
                "be replaced, use resume_writer(). Nothing was written.",
                message_id,
            )
        return state

    async def take_over(self, message_id: ObjectId, conversation_id: ObjectId) -> MessageState:
        """Makes the caller the next writer of a message; the one before is fenced off.

        Raises:
            MessageNotStreamingError: The message has ended.
            MessageNotFoundError: There is no such message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        key, holder = _updates.message_key(message_id, conversation_id), ObjectId()
        state = await self._calls.call(
            self._calls.reader.state,
            *(message_id, conversation_id),
            what=f"read message {message_id}",
        )
        if state is None:
            raise MessageNotFoundError(message_id)
        while True:
            self._refuse_ended(state)
            # From the epoch that was seen to the next: a repeat that comes late changes nothing.
            seen = state.lease
            change = _updates.take_over(key, seen, holder, self._calls.options.lease)
            state = await self._change(key, change)
            if state.lease.holder == holder:
                self._refuse_ended(state)
                return state

    async def renew(
        self, message_id: ObjectId, conversation_id: ObjectId, epoch: int
    ) -> MessageState:
        """Gives a sign of life, and returns what has become of the message.

        Raises:
            MessageNotFoundError: There is no such message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        key = _updates.message_key(message_id, conversation_id)
        return await self._change(key, _updates.renew_lease(key, epoch))

    async def release(self, message_id: ObjectId, conversation_id: ObjectId, epoch: int) -> None:
        """Gives a message the time that one without a writer has until it is an orphan.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        key = _updates.message_key(message_id, conversation_id)
        await self._calls.call(
            self._calls.messages.update_one,
            *_updates.release_lease(key, epoch, self._calls.options.idle_timeout),
            what=f"release the lease of message {message_id}",
        )

    async def _change(
        self, key: Mapping[str, Any], change: tuple[_updates.Document, _updates.Document]
    ) -> MessageState:
        """Changes the lease if ``change`` matches, and returns the message as it then is."""
        update = partial(
            self._calls.messages.find_one_and_update,
            projection=STATE,
            return_document=ReturnDocument.AFTER,
        )
        what = f"change the lease of message {key['_id']}"
        stored: Any = await self._calls.call(update, *change, what=what, bounded=True)
        if stored is None:
            stored = await self._calls.call(
                self._calls.messages.find_one, key, STATE, what=what, bounded=True
            )
        if stored is None:
            raise MessageNotFoundError(key["_id"])
        return MessageState.from_stored(stored)

    def _refuse_ended(self, state: MessageState) -> None:
        if state.status.is_final:
            raise MessageNotStreamingError(state.message_id, state.status)

    # Stops

    async def request_stop(
        self, message_id: ObjectId, conversation_id: ObjectId | None, reason: str | None
    ) -> MessageState:
        """Asks the writer of a message to stop; ends the message where there is no writer.

        Returns:
            The message as it is then: cancelled, or streaming until its writer has heard of it, or
            ended otherwise before.

        Raises:
            MessageNotFoundError: There is no such message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        if conversation_id is None:
            conversation_id = await self._conversation_of(message_id)
        key = _updates.message_key(message_id, conversation_id)
        state = await self._change(key, _updates.request_stop(key, reason))
        if state.status.is_final:
            return state
        if state.lease.holder is None:
            # Appends by hand, which may go on all the time, do not listen.
            condition = _updates.same_epoch(state.lease) | {"lease.holder": None}
            return await self._settle(state, condition) or state
        if await self._has_expired(state.lease):
            return await self._settle(state) or state
        return state

    async def _conversation_of(self, message_id: ObjectId) -> ObjectId:
        found = await self._calls.call(
            self._calls.messages.find_one,
            {"_id": message_id},
            {"conversation_id": 1},
            what=f"read message {message_id}",
        )
        if found is None:
            raise MessageNotFoundError(message_id)
        conversation_id: ObjectId = found["conversation_id"]
        return conversation_id

    # Orphans

    async def find_expired(
        self, leases: Mapping[ObjectId, LeaseState], conversations: Mapping[ObjectId, ObjectId]
    ) -> list[ObjectId]:
        """Which of these messages seem to be orphans, after at most one look at the clock.

        Those that nobody has written to nor met so far count from now on.

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
            await self._calls.call(
                self._calls.messages.update_many,
                *_updates.start_lease(them),
                what="start the leases of messages",
            )
        met = limited.keys() - unmet
        if met and self._guess_clock() is None:
            await self._read_clock()
        return [key for key in met if self._may_have_expired(limited[key])]

    async def settle_orphan(
        self, message_id: ObjectId, conversation_id: ObjectId
    ) -> MessageState | None:
        """Ends a message if its lease has run out; returns it as it is then, if there is one.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        state = await self._calls.call(
            self._calls.reader.state,
            *(message_id, conversation_id),
            what=f"read message {message_id}",
        )
        if state is None:
            return None
        return await self.settle_if_expired(state)

    async def settle_if_expired(
        self, state: MessageState, *, complete_partial: bool = False
    ) -> MessageState:
        """Ends the message of ``state`` if its lease has run out; returns it as it is then.

        Args:
            complete_partial: Whether one that has text is completed instead of failed.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        lease = state.lease
        if state.status.is_final or lease.duration is None:
            return state
        if lease.renewed_at is None:
            key = _updates.message_key(state.message_id, state.conversation_id)
            await self._calls.call(
                self._calls.messages.update_one,
                *_updates.start_lease(key),
                what=f"start the lease of message {state.message_id}",
            )
            return state
        if not await self._has_expired(lease):
            return state
        return await self._settle(state, complete_partial=complete_partial) or state

    async def _settle(
        self,
        state: MessageState,
        condition: Mapping[str, Any] | None = None,
        *,
        complete_partial: bool = False,
    ) -> MessageState | None:
        if state.stop_requested:
            end = End(MessageStatus.CANCELLED, {})
        elif complete_partial and state.next_sequence:
            end = End(MessageStatus.COMPLETED, {"partial": True})
        else:
            end = End(MessageStatus.FAILED, {}, INTERRUPTED)
        if condition is None:
            condition = _updates.unchanged_lease(state.lease)
        return await self._ends.settle(state, end, condition)

    def _may_have_expired(self, lease: LeaseState) -> bool:
        """Whether it is worth asking the server's clock; costs nothing."""
        if lease.renewed_at is None or lease.duration is None:
            return False
        guess = self._guess_clock()
        return guess is None or lease.has_expired(guess)

    def _guess_clock(self) -> datetime | None:
        """The latest that the server's clock may say; ``None`` if it was seen too long ago."""
        if self._clock is None:
            return None
        seen, when = self._clock
        elapsed = time.monotonic() - when
        return seen + timedelta(seconds=elapsed + 1) if elapsed <= _CLOCK_SECONDS else None

    async def _has_expired(self, lease: LeaseState) -> bool:
        return self._may_have_expired(lease) and lease.has_expired(await self._read_clock())

    async def _read_clock(self) -> datetime:
        seen = await self._calls.call(
            self._calls.reader.server_time, what="read the server's clock"
        )
        self._clock = seen, time.monotonic()
        return seen
