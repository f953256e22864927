"""Stuck work: queued messages that should have moved long ago, for those who look from outside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId

from converse_mongo.domain.headers import HEADER, MessageHeader
from converse_mongo.domain.work import WorkState
from converse_mongo.driver.collections import Collection
from converse_mongo.store import work_updates
from converse_mongo.store.clock import ServerClock
from converse_mongo.store.collections import Collections

MOST_READ = 1000
"""The most messages of each kind that are read."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """The stuck messages of a queue, of one kind.

    Attributes:
        queue: The name of the queue.
        messages: Their ids, the oldest first; at most :data:`MOST_READ` of all queues.
        seconds: Since when the first of them is stuck.
        running: How many messages of the queue have a worker.
    """

    queue: str
    messages: Sequence[ObjectId]
    seconds: float
    running: int = 0


class StuckWork:
    """Finds queued messages that should have moved long ago; it only reads.

    Args:
        collections: The collections.
        patience: Seconds after which a message counts as stuck.
    """

    def __init__(self, collections: Collections, patience: float) -> None:
        self._collections = collections
        self._clock = ServerClock(collections)
        self._patience = timedelta(seconds=patience)

    async def overdue(self) -> list[Stuck]:
        """Returns messages that a worker should have looked at: is there none?

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        moment = await self._clock.read()
        match = work_updates.in_queues(None, _LOOKED_AT)
        # What could not go on is due later, while a worker tries it again and again.
        names, before = ("due", "available_at"), {"$lte": moment - self._patience}
        match["$or"] = [{f"work.{name}": before} for name in names]
        states = await self._read(match, [("work.due", 1)])
        since = {
            each.message_id: min(at for at in (each.work.due, each.work.available_at) if at)
            for each in states
            if each.work
        }
        found = _by_queue(states, since, moment)
        counts = await self._running([each.queue for each in found])
        return [
            Stuck(each.queue, each.messages, each.seconds, counts.get(each.queue, 0))
            for each in found
        ]

    async def abandoned(self) -> list[Stuck]:
        """Returns messages whose worker died long ago, and that nobody gave back to their queue.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        moment = await self._clock.read()
        match = work_updates.in_queues(None, [WorkState.RUNNING])
        match["lease.renewed_at"] = {"$lte": moment - self._patience}
        since: dict[ObjectId, datetime] = {}
        states = await self._read(match, [("lease.renewed_at", 1)])
        for state in states:
            lease = state.lease
            if lease.duration is not None and lease.renewed_at is not None:
                expired = lease.renewed_at + timedelta(seconds=lease.duration)
                if expired <= moment - self._patience:
                    since[state.message_id] = expired
        return _by_queue(states, since, moment)

    async def blocked(self) -> list[Stuck]:
        """Returns messages that wait for a place of their key, though there is one.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        moment = await self._clock.read()
        match = work_updates.in_queues(None, [WorkState.BLOCKED])
        match["work.ticket"] = {"$lte": ObjectId.from_datetime(moment - self._patience)}
        states = await self._read(match, [("work.ticket", 1)])
        taken = await self._taken({each.work.places_id for each in states if each.work})
        since = {
            each.message_id: each.work.ticket.generation_time
            for each in states
            if each.work
            and each.work.ticket
            and taken.get(each.work.places_id, 0) < (each.work.limit or 1)
        }
        return _by_queue(states, since, moment)

    async def _taken(self, keys: set[str | None]) -> dict[str | None, int]:
        """Counts the places of keys that a message has; who has given one up is not counted."""
        places = await self._find(self._collections.places, {"_id": {"$in": list(keys)}})
        ids = {each["message_id"] for stored in places for each in stored["running"]}
        tickets = {
            each["_id"]: (each.get("work") or {}).get("ticket")
            for each in await self._find(
                self._collections.messages, {"_id": {"$in": list(ids)}}, {"work": 1}
            )
        }
        return {
            stored["_id"]: sum(
                tickets.get(each["message_id"]) == each["ticket"] for each in stored["running"]
            )
            for stored in places
        }

    async def _running(self, queues: Sequence[str]) -> dict[str, int]:
        found = {}
        for queue in queues:
            match = work_updates.in_queues([queue], [WorkState.RUNNING])
            found[queue] = await self._collections.call(
                self._collections.messages.count_documents, match, what="count queued messages"
            )
        return found

    async def _read(self, match: Mapping[str, Any], order: list[Any]) -> list[MessageHeader]:
        stored = await self._find(self._collections.messages, match, HEADER, order)
        return [MessageHeader.from_stored(each) for each in stored]

    async def _find(
        self,
        collection: Collection,
        match: Mapping[str, Any],
        fields: Mapping[str, Any] | None = None,
        order: list[Any] | None = None,
    ) -> list[Mapping[str, Any]]:
        async def read() -> list[Mapping[str, Any]]:
            cursor = collection.find(match, fields).sort(order or [("_id", 1)])
            found: list[Mapping[str, Any]] = await cursor.limit(MOST_READ).to_list(MOST_READ)
            return found

        return await self._collections.call(read, what="look for stuck messages")


_LOOKED_AT = [WorkState.QUEUED, WorkState.DELAYED, WorkState.WAITING]
"""The states in which a message that is due is for workers."""


def _by_queue(
    states: Sequence[MessageHeader], since: Mapping[ObjectId, datetime], moment: datetime
) -> list[Stuck]:
    found: dict[str, list[ObjectId]] = {}
    for state in states:
        if state.work is not None and state.message_id in since:
            found.setdefault(state.work.queue, []).append(state.message_id)
    return [
        Stuck(queue, ids, (moment - min(since[each] for each in ids)).total_seconds())
        for queue, ids in found.items()
    ]
