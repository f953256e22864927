"""Places: how many messages of a key may have a worker at a time.

See :mod:`converse_mongo.store.work_updates` for what keeps the number exact. A process that dies
leaves what it began: a message that is blocked though there is a place, or a place whose message is
gone. A sweep finds both; one process of all sweeps in each interval.
"""

import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import Enum
from functools import partial
from itertools import count
from typing import Any

from bson import ObjectId
from pymongo.errors import DuplicateKeyError, PyMongoError

from converse_mongo.domain.errors import ConverseError
from converse_mongo.domain.headers import FORMATS, HEADER, MessageHeader
from converse_mongo.domain.work import Work, WorkState
from converse_mongo.store import work_updates
from converse_mongo.store.collections import Collections, back_off

logger = logging.getLogger("converse_mongo")

PLACES_PER_READ = 100
"""The number of keys whose places a sweep reads at once."""


class _Outcome(Enum):
    PROMOTED = "promoted"
    FULL = "full"
    DEAD = "dead"
    """The message has another ticket by now, or none; its place is given back."""


@contextmanager
def left_to_a_sweep(message_id: ObjectId) -> Iterator[None]:
    """Logs an error of the block instead of raising it: the step of the caller is done."""
    try:
        yield
    except (PyMongoError, ConverseError) as error:
        logger.warning(
            "The places of the key of message %s are left to a sweep (%s)", message_id, error
        )


class Places:
    """Gives messages the places of their keys."""

    def __init__(self, collections: Collections) -> None:
        self._collections = collections

    async def ask(self, state: MessageHeader) -> bool:
        """Puts a blocked message into its queue, if there is a place for it.

        Args:
            state: The message, as it was blocked.

        Returns:
            True if it has a place: it is queued then, unless a worker took it already.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds; a sweep does it.
        """
        work = state.work
        if work is None or work.key is None or work.state is not WorkState.BLOCKED:
            return False
        outcome = await self._seat(state, work)
        if outcome is _Outcome.DEAD:
            await self.fill(work.queue, work.key)
        return outcome is _Outcome.PROMOTED

    async def _seat(self, state: MessageHeader, work: Work) -> _Outcome:
        for attempt in count():
            if not await self._take(state, work):
                return _Outcome.FULL
            promoted = await self._promote(state, work)
            if promoted is not None:
                return promoted
            await back_off(attempt)  # a failover
        raise AssertionError("unreachable")

    async def _take(self, state: MessageHeader, work: Work) -> bool:
        """Takes a place, or returns ``False`` if there is none."""
        call = partial(self._collections.call, what=f"find a place for message {state.message_id}")
        upsert = partial(self._collections.places.update_one, upsert=True)
        for attempt in count():
            try:
                await call(upsert, *work_updates.take_place(state, work))
            except DuplicateKeyError:
                stored = await call(self._collections.places.find_one, {"_id": work.places_id})
                running = [] if stored is None else stored["running"]
                if any(each["ticket"] == work.ticket for each in running):
                    return True
                if len(running) >= (work.limit or 1):
                    return False
                await back_off(attempt)  # one was given back just now
            else:
                return True
        raise AssertionError("unreachable")

    async def _promote(self, state: MessageHeader, work: Work) -> _Outcome | None:
        """Puts a message that has a place into its queue; ``None`` to try again."""
        ticket: Any = work.ticket
        call = partial(self._collections.call, what=f"queue message {state.message_id}")
        messages = self._collections.messages
        change = work_updates.told(work_updates.promote(state.key, ticket), work.queue)
        promoted = await call(messages.update_one, *change)
        if promoted.matched_count:
            return _Outcome.PROMOTED
        stored = await call(messages.find_one, state.key, {"format": 1, "status": 1, "work": 1})
        now = None if stored is None else Work.from_stored(stored.get("work"))
        if now is not None and now.holds(ticket):
            if now.state is not WorkState.BLOCKED:
                return _Outcome.PROMOTED  # by who swept, or by an earlier try
            if stored.get("format") in FORMATS:
                return None
            return _Outcome.DEAD  # a process of the later version goes on with it
        await self._give_back(str(work.places_id), ticket)
        return _Outcome.DEAD

    async def release(self, work: Work) -> None:
        """Gives the place of a message back, and has others use it.

        Call it once the message is seen to have lost the place: it has another ticket, or none, or
        has ended, or is deleted. No such ticket comes back.

        Args:
            work: The work of the message, while it had the place.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds; a sweep does it.
        """
        if work.key is None or work.ticket is None:
            return
        await self._give_back(str(work.places_id), work.ticket)
        await self.fill(work.queue, work.key)

    async def release_of(self, message_id: ObjectId, work: Work | None) -> None:
        """Gives back the place of a message that has ended or is deleted, once that is stored.

        If it fails, a sweep does it.

        Args:
            message_id: The message.
            work: Its work, if it was queued.
        """
        if work is None or work.ticket is None:
            return

        async def release(collections: Collections) -> None:
            with left_to_a_sweep(message_id):
                await Places(collections).release(work)

        await self._collections.after_commit(release)

    async def _give_back(self, of: str, ticket: ObjectId) -> None:
        places = self._collections.places
        call = partial(self._collections.call, what=f"give back a place of {of}")
        deleted = await call(places.delete_one, work_updates.alone(of, ticket))
        if not deleted.deleted_count:
            await call(places.update_one, *work_updates.give_back(of, [ticket]))

    async def fill(self, queue: str, key: str) -> None:
        """Gives the free places of a key to the best messages that are blocked.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds; a sweep does it.
        """
        tried: set[Any] = set()
        while True:
            state = await self._best(queue, key)
            if state is None or state.work is None or state.work.ticket in tried:
                return
            tried.add(state.work.ticket)
            if await self._seat(state, state.work) is _Outcome.FULL:
                return

    async def _best(self, queue: Any, key: Any) -> MessageHeader | None:
        find = partial(self._collections.messages.find_one, sort=work_updates.BLOCKED_ORDER)
        stored: Any = await self._collections.call(
            find,
            *(work_updates.blocked(queue, key), HEADER),
            what="look for messages that wait for a place",
        )
        return MessageHeader.from_stored(stored) if stored else None

    # Sweeps

    async def begin_sweep(self, interval: float) -> bool:
        """Returns whether the caller is to sweep: no process has begun for ``interval`` seconds.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        call = partial(self._collections.call, what="sweep the places")
        clock, apart = await call(self._collections.reader.server_time), timedelta(seconds=interval)
        upsert = partial(self._collections.places.update_one, upsert=True)
        try:
            await call(upsert, *work_updates.begin_sweep(clock - apart, clock + apart))
        except DuplicateKeyError:
            return False
        return True

    async def sweep(self) -> None:
        """Gives back what is held by no message, and has those move up that wait.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds; to be repeated.
        """
        async for stored in self._taken():
            await self._sweep(stored)
        queue, key = "", ""
        while True:
            state = await self._best(queue, {"$gt": key}) if queue else None
            if state is None:
                state = await self._best({"$gt": queue}, {"$gt": ""})
            if state is None or state.work is None or state.work.key is None:
                return
            queue, key = state.work.queue, state.work.key
            await self.fill(queue, key)

    async def _taken(self) -> AsyncIterator[Mapping[str, Any]]:
        """Yields all documents with places, in the order of their ids."""
        behind: dict[str, Any] = {"$lt": work_updates.SWEEP}
        while True:

            async def read(which: Mapping[str, Any] = behind) -> list[Mapping[str, Any]]:
                cursor = self._collections.places.find({"_id": dict(which)}).sort([("_id", 1)])
                found: list[Mapping[str, Any]] = await cursor.limit(PLACES_PER_READ).to_list(
                    PLACES_PER_READ
                )
                return found

            some = await self._collections.call(read, what="sweep the places")
            for stored in some:
                yield stored
            if len(some) < PLACES_PER_READ:
                return
            behind = {"$gt": some[-1]["_id"], "$lt": work_updates.SWEEP}

    async def _sweep(self, taken: Mapping[str, Any]) -> None:
        """Sweeps the places of a key."""
        of, call = taken["_id"], partial(self._collections.call, what="sweep the places")
        states = await self._states(taken["running"])
        dead: list[ObjectId] = []
        for place in taken["running"]:
            state = states.get(place["message_id"])
            if state is not None and not state.is_known and state.log_id == place["log_id"]:
                continue  # a process of the later version knows
            work = None if state is None else state.work
            if state is None or work is None or not work.holds(place["ticket"]):
                dead.append(place["ticket"])
            elif work.state is WorkState.BLOCKED:
                await self._promote(state, work)
        places = self._collections.places
        if dead:
            await call(places.update_one, *work_updates.give_back(of, dead))
        if len(dead) == len(taken["running"]):
            await call(places.delete_one, work_updates.free(of))

    async def _states(self, taken: Sequence[Mapping[str, Any]]) -> dict[ObjectId, MessageHeader]:
        ids = [each["message_id"] for each in taken]
        match = {
            "_id": {"$in": ids},
            "conversation_id": {"$in": list({each["conversation_id"] for each in taken})},
        }

        async def read() -> list[Mapping[str, Any]]:
            found: list[Mapping[str, Any]] = await self._collections.messages.find(
                match, HEADER
            ).to_list(None)
            return found

        stored = await self._collections.call(read, what="sweep the places") if ids else []
        return {each["_id"]: MessageHeader.from_stored(each) for each in stored}
