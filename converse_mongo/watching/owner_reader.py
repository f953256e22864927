"""Reads what a list of an owner's conversations shows."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any, TypeVar

from bson import ObjectId

from converse_mongo.domain.headers import HEADER, MessageHeader
from converse_mongo.domain.owners import OwnerKey, owner_key
from converse_mongo.domain.summaries import (
    MARKERS,
    SUMMARY,
    ChangeMarkers,
    ConversationSummary,
)
from converse_mongo.domain.types import MessageStatus
from converse_mongo.driver.collections import Collection
from converse_mongo.store.reads import IDS_PER_QUERY, MessageRow, Reader
from converse_mongo.watching.doubts import OutdatedReadError

__all__ = ["OwnerReader", "Rows"]

logger = logging.getLogger("converse_mongo")

T = TypeVar("T")

OWNERS_PER_QUERY = 100
ROWS_PER_READ = 64


@dataclass(slots=True)
class Rows:
    """Messages of some conversations, in their order.

    Attributes:
        found: By conversation; those that are not as the library writes them are left out.
        ends: Up to before which position each conversation was read; some may not have been.
        whole: Those that were read to their end.
    """

    found: dict[ObjectId, list[MessageRow]] = field(default_factory=dict)
    ends: dict[ObjectId, int] = field(default_factory=dict)
    whole: set[ObjectId] = field(default_factory=set)


class OwnerReader:
    """Reads conversations of owners. A read may always be repeated.

    Each method raises ``PyMongoError`` if the database could not be read, and those that read by id
    or position raise ``OutdatedReadError`` if the primary has what the majority does not show.
    """

    def __init__(self, reader: Reader) -> None:
        self.turns = reader.turns
        self.local = reader.local
        self._reader = reader

    async def marks(self, owner: OwnerKey, limit: int) -> dict[ObjectId, ChangeMarkers]:
        """The marks of the conversations of an owner, up to ``limit``, the last changed first."""
        cursor = self._reader.conversations.find(_whose(owner), MARKERS)
        cursor = cursor.sort([("updated_at", -1), ("_id", -1)]).limit(limit)
        return {
            stored["_id"]: ChangeMarkers.from_stored(stored)
            async for stored in cursor
            if owner_key(stored) == owner  # a query for a value finds it in an array, too
        }

    async def changed(
        self, owners: Mapping[OwnerKey, datetime]
    ) -> dict[OwnerKey, dict[ObjectId, ChangeMarkers]]:
        """The marks of the conversations of owners that changed after a moment."""
        found: dict[OwnerKey, dict[ObjectId, ChangeMarkers]] = {owner: {} for owner in owners}
        clauses = [
            {**_whose(owner), "updated_at": {"$gt": moment}} for owner, moment in owners.items()
        ]
        for offset in range(0, len(clauses), OWNERS_PER_QUERY):
            match = {"$or": clauses[offset : offset + OWNERS_PER_QUERY]}
            async for stored in self._reader.conversations.find(match, MARKERS):
                whose = owner_key(stored)
                if whose in found:
                    found[whose][stored["_id"]] = ChangeMarkers.from_stored(stored)
        return found

    async def conversations(self, ids: list[ObjectId]) -> dict[ObjectId, ConversationSummary]:
        """Those of these conversations that there are."""
        match: dict[str, Any] = {"_id": {"$in": ids}}
        stored = await _by_id(self._reader.conversations, match, SUMMARY)
        missing = [key for key in ids if key not in stored]
        if missing and self.local is not None:
            match = {"_id": {"$in": missing}}
            if await self.local.conversations.find_one(match, {"_id": 1}) is not None:
                raise OutdatedReadError
        return _readable(stored, ConversationSummary.from_stored)

    async def streaming(self, ids: list[ObjectId]) -> dict[ObjectId, dict[int, ObjectId]]:
        """Conversation to position to id, of their messages that stream."""
        found: dict[ObjectId, dict[int, ObjectId]] = {}
        for offset in range(0, len(ids), IDS_PER_QUERY):
            match = {
                "conversation_id": {"$in": ids[offset : offset + IDS_PER_QUERY]},
                "status": MessageStatus.STREAMING.value,
                "position": {"$gte": 0},  # what has none is not the library's own
            }
            projection = {"conversation_id": 1, "position": 1}
            async for stored in self._reader.messages.find(match, projection):
                messages = found.setdefault(stored["conversation_id"], {})
                messages[stored["position"]] = stored["_id"]
        return found

    async def headers(self, keys: Mapping[ObjectId, ObjectId]) -> dict[ObjectId, MessageHeader]:
        """Those of these messages that there are, given as message id to conversation id."""
        found: dict[ObjectId, dict[str, Any]] = {}
        ids = list(keys)
        for offset in range(0, len(ids), IDS_PER_QUERY):
            match = _messages(ids[offset : offset + IDS_PER_QUERY], keys)
            found |= await _by_id(self._reader.messages, match, HEADER)
        missing = [key for key in ids if key not in found]
        if missing and self.local is not None:
            match = _messages(missing[:IDS_PER_QUERY], keys)
            if await self.local.messages.find_one(match, {"_id": 1}) is not None:
                raise OutdatedReadError
        return _readable(found, MessageHeader.from_stored)

    async def rows(self, starts: Mapping[ObjectId, int], ends: Mapping[ObjectId, int]) -> Rows:
        """Some messages of conversations, from a position on.

        Args:
            starts: Conversation to position.
            ends: The positions that come next, as the conversations had them before this read.
        """
        clauses = [
            {"conversation_id": key, "position": {"$gte": start}} for key, start in starts.items()
        ]
        rows = Rows()
        if not clauses:
            return rows
        match = clauses[0] if len(clauses) == 1 else {"$or": clauses}
        cursor = self._reader.messages.find(match, {**HEADER, "content": 1})
        cursor = cursor.sort([("conversation_id", 1), ("position", 1)]).limit(ROWS_PER_READ)
        stored = await cursor.to_list(ROWS_PER_READ)
        last = stored[-1]["conversation_id"] if len(stored) == ROWS_PER_READ else None
        for key, start in starts.items():
            if last is not None and key > last:
                continue
            own = [each for each in stored if each["conversation_id"] == key]
            end = own[-1]["position"] + 1 if own else start
            if key != last:
                rows.whole.add(key)
                end = max(end, ends[key])
            rows.ends[key] = end
            await self._refuse_holes(key, [start - 1, *(each["position"] for each in own), end])
            readable = _readable({each["_id"]: each for each in own}, MessageRow.from_stored)
            rows.found[key] = list(readable.values())
        return rows

    async def _refuse_holes(self, conversation_id: ObjectId, positions: list[int]) -> None:
        """Refuses a read without messages that the primary has between these positions."""
        if self.local is None:
            return
        for before, behind in pairwise(positions):
            if before + 1 < behind and await self.local.has_messages(
                conversation_id, before + 1, behind
            ):
                raise OutdatedReadError


async def _by_id(
    collection: Collection, match: Mapping[str, Any], projection: Mapping[str, Any]
) -> dict[ObjectId, dict[str, Any]]:
    return {stored["_id"]: stored async for stored in collection.find(match, projection)}


def _readable(
    found: Mapping[ObjectId, Mapping[str, Any]], make: Callable[[Mapping[str, Any]], T]
) -> dict[ObjectId, T]:
    """What is as the library writes it: other documents must not be in the way of that."""
    made: dict[ObjectId, T] = {}
    for key, stored in found.items():
        try:
            made[key] = make(stored)
        except (KeyError, TypeError, ValueError, AttributeError):
            logger.exception("Document %s is not as the library writes it", key)
    return made


def _messages(ids: list[ObjectId], keys: Mapping[ObjectId, ObjectId]) -> dict[str, Any]:
    """The filter of messages, given by id, with the shard key."""
    return {
        "_id": {"$in": ids},
        "conversation_id": {"$in": list({keys[message_id] for message_id in ids})},
    }


def _whose(owner: OwnerKey) -> dict[str, Any]:
    return {"owner.type": owner[0], "owner.id": owner[1]}
