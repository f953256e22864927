"""Reads of the conversations of owners, for their watchers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from contextvars import Context
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias, TypeVar

from bson import ObjectId

from converse_mongo.domain.events import MessageSuspended, work_event
from converse_mongo.domain.headers import HEADER, MessageHeader, MessageRow
from converse_mongo.domain.owners import OwnerKey, owner_key
from converse_mongo.domain.summaries import MARKERS, SUMMARY, ChangeMarkers, ConversationSummary
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.domain.work import PendingCall, Work
from converse_mongo.driver.deadlines import bounded
from converse_mongo.store.reads import Reader
from converse_mongo.watching.doubts import OutdatedReadError

logger = logging.getLogger("converse_mongo")

T = TypeVar("T")
Stored: TypeAlias = Mapping[str, Any]
Markers: TypeAlias = dict[ObjectId, ChangeMarkers]

OWNERS_PER_QUERY = 100
ROWS_PER_READ = 64
READ_SECONDS = 80.0
"""Seconds that a shared read may take. Its callers have shorter limits."""


class Place(NamedTuple):
    """Where a streaming message is, and whether it waits for people.

    Attributes:
        conversation_id: The conversation.
        position: The position.
        waits: What is reported of it if it waits for people, else ``None``.
    """

    conversation_id: ObjectId
    position: int
    waits: MessageSuspended | None = None

    @classmethod
    def of(cls, message: MessageHeader) -> "Place":
        """Returns the place of a message that streams."""
        key, conversation_id = message.message_id, message.conversation_id
        waits = _waits(key, conversation_id, message.role, message.work)
        return cls(conversation_id, message.position, waits)

    @classmethod
    def from_stored(cls, stored: Stored) -> "Place":
        """Returns the place in a document, or in its projection :data:`PLACE`."""
        key, conversation_id = stored["_id"], stored["conversation_id"]
        work = Work.from_stored(stored.get("work"))
        waits = _waits(key, conversation_id, MessageRole(stored["role"]), work)
        return cls(conversation_id, stored["position"], waits)

    @property
    def awaited(self) -> tuple[PendingCall, ...] | None:
        """The calls that people have to answer; ``None`` if it does not wait for people."""
        return None if self.waits is None else tuple(self.waits.pending)


def _waits(
    message_id: ObjectId, conversation_id: ObjectId, role: MessageRole, work: Work | None
) -> MessageSuspended | None:
    if work is None or work.awaited is None:
        return None
    event = work_event(message_id, conversation_id, role, work)
    return event if isinstance(event, MessageSuspended) else None


PLACE = dict.fromkeys(("conversation_id", "position", "role", "work"), 1)
"""The projection of a :class:`Place`."""


class Known(NamedTuple):
    """The part of a conversation that was reported to a watcher.

    Attributes:
        created_at: The time of its start. Another conversation may have had its id before.
        revision: The number of times it was saved.
        end: The position behind its last message.
    """

    created_at: datetime
    revision: int
    end: int


class Asked(NamedTuple):
    """A conversation to read.

    Attributes:
        owner: The owner.
        key: The id of the conversation.
        known: The part that was reported, if any.
        opened: The positions of its messages that were streaming.
        cut: See :class:`OwnerFeed`.
    """

    owner: OwnerKey
    key: ObjectId
    known: Known | None
    opened: frozenset[int]
    cut: datetime | None


class News(NamedTuple):
    """The result of reading a conversation.

    Attributes:
        found: The conversation, if it exists and belongs to the owner.
        older: Whether it is unknown because it changed before the cut.
        rows: The messages that were streaming, and new ones.
        end: The position before which all messages were read.
        more: Whether there may be more new ones.
    """

    found: ConversationSummary | None
    older: bool = False
    rows: Sequence[MessageRow] = ()
    end: int = 0
    more: bool = False


class OwnerReader:
    """Reads conversations of owners. Any read may be repeated.

    Each method raises ``PyMongoError`` if the database could not be read.

    Attributes:
        turns: Limits the number of reads at once; see :class:`Reader`.
        changes: Increases with each hint and comparison. A read that began before is not shared
            with those who ask after it.
    """

    def __init__(self, reader: Reader) -> None:
        self.turns = reader.turns
        self.changes = 0
        self._reader = reader
        self._reads: dict[Hashable, asyncio.Task[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def latest(self, owner: OwnerKey, limit: int) -> Markers:
        """The markers of the conversations of an owner that changed last, up to ``limit``."""
        cursor = self._reader.conversations.find(_whose(owner), MARKERS)
        cursor = cursor.sort([("updated_at", -1), ("_id", -1)]).limit(limit)
        return _markers([owner], await cursor.to_list(limit))[owner]

    async def changed(self, owners: Mapping[OwnerKey, datetime]) -> dict[OwnerKey, Markers]:
        """The markers of the conversations of owners that changed since a time."""
        clauses = [
            {**_whose(owner), "updated_at": {"$gte": moment}} for owner, moment in owners.items()
        ]
        found: list[Stored] = []
        for offset in range(0, len(clauses), OWNERS_PER_QUERY):
            match = {"$or": clauses[offset : offset + OWNERS_PER_QUERY]}
            found += [each async for each in self._reader.conversations.find(match, MARKERS)]
        return _markers(owners, found)

    async def streaming(self, conversation_ids: list[ObjectId]) -> dict[ObjectId, Place]:
        """The streaming messages of conversations, by id."""
        match = {
            "conversation_id": {"$in": conversation_ids},
            "status": MessageStatus.STREAMING.value,
            "position": {"$gte": 0},  # what has none is not the library's own
        }
        found = self._reader.messages.find(match, PLACE)
        places = {each["_id"]: _readable(each, Place.from_stored) async for each in found}
        return {message_id: place for message_id, place in places.items() if place}

    async def news(self, asked: Asked) -> News:
        """Reads a conversation, once for all callers that ask for the same at the same time.

        Raises:
            OutdatedReadError: The primary has something else than the majority shows.
        """
        return await self._shared(asked, lambda: self._read(asked))

    async def all_since(self, owner: OwnerKey, moment: datetime) -> Markers:
        """The same as :meth:`changed`, for one owner, and shared as :meth:`news` is."""

        async def read() -> Markers:
            async with self.turns:
                return (await self.changed({owner: moment}))[owner]

        return await self._shared((owner, moment), read)

    def close(self) -> None:
        """Cancels all shared reads, when no watcher goes on."""
        for task in self._tasks:
            task.cancel()

    async def _shared(self, asked: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """Awaits ``read()``, once for all callers that ask for the same at the same time.

        The read has a context and a time limit of its own, since a caller may have a deadline or a
        transaction. After a caller that gives up, the next one begins another read.
        """
        key = self.changes, asked
        task = self._reads.get(key)
        if task is None:
            task = self._reads[key] = asyncio.create_task(
                bounded(READ_SECONDS, read, own=True),
                name="converse_mongo-owner",
                context=Context(),
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            found: T = await asyncio.shield(task)
            return found
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task.cancelled() and not (caller and caller.cancelling()):  # by :meth:`close`
                raise OutdatedReadError from None
            raise
        finally:
            if self._reads.get(key) is task:
                del self._reads[key]

    async def _read(self, asked: Asked) -> News:
        async with self.turns:
            found, known, older = await self._conversation(asked), asked.known, False
            if found is None:
                return News(None)
            if known and known.created_at == found.created_at:
                places, start = asked.opened, known.end
            elif known is None and asked.cut is not None and found.created_at <= asked.cut:
                streaming = await self.streaming([asked.key])
                places = frozenset(place.position for place in streaming.values())
                start, older = found.next_position, True
            else:
                places, start = frozenset(), 0
            rows, end, more = await self._messages(found, places, start)
            return News(found, older, rows, end, more)

    async def _conversation(self, asked: Asked) -> ConversationSummary | None:
        found, local = await _summary(self._reader, asked), self._reader.local
        now = found and found.created_at
        if local and (now is None or now != (asked.known and asked.known.created_at)):
            # It is new, gone, not there yet, or another one: the primary must confirm that.
            held = await _summary(local, asked)
            if now != (held and held.created_at):
                raise OutdatedReadError
        return found

    async def _messages(
        self, found: ConversationSummary, places: frozenset[int], start: int
    ) -> tuple[list[MessageRow], int, bool]:
        """Messages in order: those at ``places``, and some from ``start`` on.

        Returns:
            The messages, the position before which all were read, and whether there may be more.
        """
        key, limit = found.conversation_id, ROWS_PER_READ + len(places)
        clauses: list[Stored] = [{"conversation_id": key, "position": {"$gte": start}}]
        if places:
            clauses.append({"conversation_id": key, "position": {"$in": list(places)}})
        cursor = self._reader.messages.find({"$or": clauses}, {**HEADER, "content": 1})
        stored = await cursor.sort([("position", 1)]).limit(limit).to_list(limit)
        more = len(stored) == limit
        end = max(start if more else found.next_position, start)
        end = max([end, *(each["position"] + 1 for each in stored)])
        if self._reader.local and len(stored) < len(places) + end - start:
            # Some were deleted, or the snapshot does not have them.
            seen = [each["_id"] for each in stored]
            match = {"$or": clauses, "position": {"$lt": end}, "_id": {"$nin": seen}}
            if await self._reader.local.messages.find_one(match, {"_id": 1}) is not None:
                raise OutdatedReadError
        rows = [_readable(each, MessageRow.from_stored) for each in stored]
        return [each for each in rows if each], end, more


async def _summary(reader: Reader, asked: Asked) -> ConversationSummary | None:
    stored = await reader.conversations.find_one({"_id": asked.key}, SUMMARY)
    found = _readable(stored, ConversationSummary.from_stored) if stored else None
    return found if found and found.owner == asked.owner else None


def _readable(stored: Stored, make: Callable[[Stored], T]) -> T | None:
    """Parses a document; ``None`` if it is not as the library writes it."""
    try:
        return make(stored)
    except (KeyError, TypeError, ValueError, AttributeError):
        # It must not keep the others from being read.
        logger.exception("Document %s is not as the library writes it", stored["_id"])
        return None


def _markers(owners: Iterable[OwnerKey], found: Iterable[Stored]) -> dict[OwnerKey, Markers]:
    """The markers by owner. A query for a value also matches arrays, which are left out."""
    markers: dict[OwnerKey, Markers] = {owner: {} for owner in owners}
    for stored in found:
        if (owner := owner_key(stored)) in markers:
            markers[owner][stored["_id"]] = ChangeMarkers.from_stored(stored)
    return markers


def _whose(owner: OwnerKey) -> dict[str, Any]:
    return {"owner.type": owner[0], "owner.id": owner[1]}
