"""Reads: the queries of watchers and of the store, which load no more text than needed.

Those of one message are in :mod:`converse_mongo.store.message_reads`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from bson import ObjectId

from converse_mongo.domain.headers import HEADER, MessageHeader, MessageRow
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.types import MessageStatus
from converse_mongo.domain.validation import EPOCH
from converse_mongo.domain.work import Work
from converse_mongo.driver import collections, servers
from converse_mongo.driver.servers import Mark
from converse_mongo.store.message_reads import MessageReader

logger = logging.getLogger("converse_mongo")

T = TypeVar("T")

IDS_PER_QUERY = 1000
STATES_PER_READ = 500

COUNTERS = dict.fromkeys(("status", "next_sequence", "lease", "stop_requested_at", "work"), 1)
"""The projection of all that a :class:`Counters` holds."""

SAVE = {"conversation_id": 1, "save_mark": 1, "revision": 1, "position": 1, "role": 1}
"""The projection of all that a :class:`Saved` holds: ``conversation_saves_role`` covers it."""


@dataclass(frozen=True, slots=True)
class Counters:
    """The progress of a message, its lease, its work, and whether a stop was requested."""

    next_sequence: int
    ended: bool
    lease: Lease
    stop_requested: bool
    work: Work | None = None

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> "Counters":
        """Returns the values in a document, or in its projection :data:`COUNTERS`."""
        return cls(
            stored.get("next_sequence", 0),
            stored["status"] != MessageStatus.STREAMING.value,
            Lease.from_stored(stored.get("lease")),
            stored.get("stop_requested_at") is not None,
            Work.from_stored(stored.get("work")),
        )


class Streaming(NamedTuple):
    """A streaming message of a conversation, whose role and work are as stored."""

    message_id: ObjectId
    next_sequence: int
    role: str
    work: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Saved:
    """The last save of a message, whose role is as stored."""

    conversation_id: ObjectId
    message_id: ObjectId
    role: str | None
    revision: int
    position: int
    mark: Mark

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> "Saved":
        """Returns the save in the projection :data:`SAVE`."""
        return cls(
            stored["conversation_id"],
            stored["_id"],
            stored.get("role"),
            stored.get("revision", 0),
            stored.get("position", 0),
            stored["save_mark"],
        )


class Place(NamedTuple):
    """A message in a listing that goes over all conversations."""

    message_id: ObjectId
    compact_at: datetime | None


class Found(NamedTuple):
    """Some messages of such a listing, without those that the library cannot read.

    Attributes:
        states: The messages.
        last: The place to continue from; ``None`` at the end.
    """

    states: list[MessageHeader]
    last: Place | None


class Reader(MessageReader):
    """Reads from one set of collections. A read may always be repeated."""

    # Many messages

    async def counters(self, keys: Mapping[ObjectId, ObjectId]) -> dict[ObjectId, Counters]:
        """Reads the counters of messages, with a query for each 1,000.

        Args:
            keys: Message id to conversation id.

        Returns:
            The counters of the messages that exist.
        """
        found: dict[ObjectId, Counters] = {}
        for some in _batches(list(keys)):
            match = {
                "_id": {"$in": some},
                "conversation_id": {"$in": list({keys[message_id] for message_id in some})},
            }
            async for stored in self.messages.find(match, COUNTERS):
                try:
                    found[stored["_id"]] = Counters.from_stored(stored)
                except (KeyError, TypeError, ValueError, AttributeError):
                    # Counts as ended, so that its watchers read it and raise the error.
                    logger.exception("Message %s has an unknown form", stored["_id"])
                    found[stored["_id"]] = Counters(0, True, Lease(), False)
        return found

    async def leased_anywhere(self, after: Place | None) -> Found:
        """Lists some streaming messages that may become orphans, in the order of their ids.

        Those that wait in a queue, or for people, have no lease.
        """
        behind = {} if after is None else {"_id": {"$gt": after.message_id}}
        match = {
            "status": MessageStatus.STREAMING.value,
            "lease.duration": {"$gte": 0},
            **behind,
        }
        return await self._states(match, [("_id", 1)])

    async def to_compact(self, after: Place | None, moment: datetime) -> Found:
        """Lists some messages whose chunks are due to be merged at ``moment``, the oldest first."""
        match: dict[str, Any] = {"compact_at": {"$gt": EPOCH, "$lte": moment}}
        if after is not None:
            # Also as a range, so that the scan begins there however the server treats $or.
            match["compact_at"]["$gte"] = after.compact_at
            match["$or"] = [
                {"compact_at": {"$gt": after.compact_at}},
                {"compact_at": after.compact_at, "_id": {"$gt": after.message_id}},
            ]
        return await self._states(match, [("compact_at", 1), ("_id", 1)])

    async def _states(self, match: Mapping[str, Any], order: list[tuple[str, int]]) -> Found:
        cursor = self.messages.find(match, {**HEADER, "compact_at": 1}).sort(order)
        page = await cursor.limit(STATES_PER_READ).to_list(STATES_PER_READ)
        found: list[MessageHeader] = []
        for stored in page:
            try:
                found.append(MessageHeader.from_stored(stored))
            except (KeyError, TypeError, ValueError, AttributeError):
                logger.exception("Message %s has an unknown form", stored["_id"])
        if len(page) < STATES_PER_READ:
            return Found(found, None)
        return Found(found, Place(page[-1]["_id"], page[-1].get("compact_at")))

    # Conversations

    async def conversation_end(self, conversation_id: ObjectId) -> int | None:
        """Returns the next position of a conversation; ``None`` if it does not exist.

        Both the counter and the last message may be behind the other: the counter for a moment
        after an insert, the last message once it is deleted.
        """
        found = await self.conversations.find_one({"_id": conversation_id}, {"next_position": 1})
        if found is None:
            return None
        last = await self.messages.find_one(
            {"conversation_id": conversation_id},
            {"_id": 0, "position": 1},
            sort=[("position", -1)],
        )
        counted: int = found["next_position"]
        return max(counted, last["position"] + 1) if last else counted

    async def has_conversation(self, conversation_id: ObjectId) -> bool:
        """Returns whether the conversation exists."""
        found = await self.conversations.find_one({"_id": conversation_id}, {"_id": 1})
        return found is not None

    async def has_messages(self, conversation_id: ObjectId, start: int, stop: int) -> bool:
        """Returns whether there is a message at a position from ``start`` to before ``stop``."""
        match = {"conversation_id": conversation_id, "position": {"$gte": start, "$lt": stop}}
        return await self.messages.find_one(match, {"_id": 1}) is not None

    async def messages_at(
        self, conversation_id: ObjectId, positions: Sequence[int]
    ) -> list[MessageHeader]:
        """Reads the headers of the messages at these positions of a conversation."""
        found: list[MessageHeader] = []
        for some in _batches(positions):
            match = {"conversation_id": conversation_id, "position": {"$in": some}}
            cursor = self.messages.find(match, HEADER)
            found += [MessageHeader.from_stored(stored) async for stored in cursor]
        return found

    async def confirm_primary(self, conversation_id: ObjectId) -> bool:
        """Waits until the server that answers knows that it is the primary.

        Returns:
            ``False`` if the server does not support linearizable reads
            (https://www.mongodb.com/docs/manual/reference/read-concern-linearizable/).

        Raises:
            PyMongoError: It could not be confirmed; a later try may succeed.
        """
        return await collections.read_linearizable(self.conversations, {"_id": conversation_id})

    async def next_positions(self, conversation_ids: Sequence[ObjectId]) -> dict[ObjectId, int]:
        """Returns the next position of each of these conversations that exists.

        For a moment after a message was added it may be too low; for longer, if its writer died in
        that moment.
        """
        found: dict[ObjectId, int] = {}
        for some in _batches(conversation_ids):
            match = {"_id": {"$in": some}}
            async for stored in self.conversations.find(match, {"next_position": 1}):
                found[stored["_id"]] = stored.get("next_position", 0)
        return found

    async def streaming(self, conversation_id: ObjectId, before: int) -> dict[int, Streaming]:
        """Returns the streaming messages by their positions."""
        match = {
            "conversation_id": conversation_id,
            "status": MessageStatus.STREAMING.value,
            "position": {"$lt": before},
        }
        names = ("next_sequence", "position", "role", "work")
        return {
            each["position"]: Streaming(
                *(each["_id"], each["next_sequence"], each["role"]), each.get("work")
            )
            async for each in self.messages.find(match, dict.fromkeys(names, 1))
        }

    async def rows(
        self, conversation_id: ObjectId, start: int, stop: int, limit: int
    ) -> list[MessageRow]:
        """Reads up to ``limit`` messages at the positions from ``start`` to before ``stop``."""
        match = {"conversation_id": conversation_id, "position": {"$gte": start, "$lt": stop}}
        cursor = self.messages.find(match, {**HEADER, "content": 1}).sort([("position", 1)])
        return [
            MessageRow.from_stored(stored) for stored in await cursor.limit(limit).to_list(limit)
        ]

    async def having(self, places: Mapping[int, Sequence[ObjectId]]) -> set[ObjectId]:
        """Returns the conversations, given by position, that have a message at that position."""
        clauses = [
            {"conversation_id": {"$in": list(ids)}, "position": position}
            for position, ids in places.items()
        ]
        if not clauses:
            return set()
        match = clauses[0] if len(clauses) == 1 else {"$or": clauses}
        cursor = self.messages.find(match, {"_id": 0, "conversation_id": 1})
        return {stored["conversation_id"] async for stored in cursor}

    async def moment(self) -> Mark:
        """Returns a moment before which every save is visible to later reads."""
        return await servers.cluster_time(self.messages.database)

    async def saves(self, conversation_ids: Sequence[ObjectId], since: Mark) -> list[Saved]:
        """Reads the last saves, since a moment, of the messages of these conversations."""
        found: list[Saved] = []
        for some in _batches(conversation_ids):
            match = {"conversation_id": {"$in": some}, "save_mark": {"$gt": since}}
            cursor = self.messages.find(match, SAVE)
            found.extend([Saved.from_stored(stored) async for stored in cursor])
        return found

    async def last_saves(self, conversation_id: ObjectId, limit: int) -> list[Saved]:
        """Reads the last saves in a conversation, the newest first."""
        first = servers.first_mark(self.messages)
        match = {"conversation_id": conversation_id, "save_mark": {"$gt": first}}
        cursor = self.messages.find(match, SAVE).sort([("save_mark", -1)])
        return [Saved.from_stored(stored) for stored in await cursor.limit(limit).to_list(limit)]


def _batches(values: Sequence[T]) -> Iterator[list[T]]:
    """Splits ``values`` into lists for one query each."""
    for offset in range(0, len(values), IDS_PER_QUERY):
        yield list(values[offset : offset + IDS_PER_QUERY])
