"""A watched owner: which conversations are theirs, and in which of them something happened.

Of what happened this knows nothing: it leads the watchers of the owner to a conversation, and they
read it, or watch it. So there is nothing to lose and nothing that grows with the number of events.
"""

import asyncio
import random
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from bson import ObjectId

from converse_mongo.domain.events import MessageUpdated
from converse_mongo.domain.owners import OwnerKey, owner_key
from converse_mongo.domain.summaries import (
    MARKERS,
    NEVER,
    SUMMARY,
    ChangeMarkers,
    ConversationSummary,
)
from converse_mongo.domain.types import MessageStatus
from converse_mongo.driver.collections import Collection
from converse_mongo.store.reads import IDS_PER_QUERY, Reader
from converse_mongo.watching.changes import Updated
from converse_mongo.watching.doubts import OutdatedReadError
from converse_mongo.watching.window import Window

__all__ = ["News", "OwnerReader", "OwnerTopic"]

MAX_CONVERSATIONS = 2000
"""How many conversations of an owner are known from the start: those that were added to last."""
OWNERS_PER_QUERY = 100
SKEW = timedelta(seconds=60)
"""By how much the clocks of writers may differ before only the rarer, full comparison finds what
they wrote and no change stream told."""
CHECKS_PER_FULL_CHECK = 15
SAVES_KEPT = 256


class OwnerReader:
    """Reads conversations of owners. A read may always be repeated."""

    def __init__(self, reader: Reader) -> None:
        self.turns = reader.turns
        self._reader = reader
        self._local = reader.local and reader.local.conversations

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
        """Those of these conversations that there are.

        Raises:
            OutdatedReadError: The primary has one that the majority does not show.
            PyMongoError: The database could not be read.
        """
        found = await _owned(self._reader.conversations, ids)
        missing = [key for key in ids if key not in found]
        if missing and self._local is not None and await _owned(self._local, missing):
            raise OutdatedReadError
        return found

    async def streaming(self, ids: list[ObjectId]) -> dict[ObjectId, dict[int, int]]:
        """Conversation to position to next sequence, of their messages that stream."""
        found: dict[ObjectId, dict[int, int]] = {}
        projection = {"conversation_id": 1, "position": 1, "next_sequence": 1}
        for offset in range(0, len(ids), IDS_PER_QUERY):
            match = {
                "conversation_id": {"$in": ids[offset : offset + IDS_PER_QUERY]},
                "status": MessageStatus.STREAMING.value,
                "position": {"$gte": 0},  # what has none is not the library's own
            }
            async for stored in self._reader.messages.find(match, projection):
                messages = found.setdefault(stored["conversation_id"], {})
                messages[stored["position"]] = stored.get("next_sequence", 0)
        return found


async def _owned(
    conversations: Collection, ids: list[ObjectId]
) -> dict[ObjectId, ConversationSummary]:
    cursor = conversations.find({"_id": {"$in": ids}}, SUMMARY)
    return {stored["_id"]: ConversationSummary.from_stored(stored) async for stored in cursor}


def _whose(owner: OwnerKey) -> dict[str, Any]:
    return {"owner.type": owner[0], "owner.id": owner[1]}


class News(NamedTuple):
    """That something happened in a conversation.

    Attributes:
        serial: When: the news of an owner are counted.
        said: Whether a message was added.
    """

    serial: int
    said: bool


class OwnerTopic:
    """A watched owner, shared by all who watch them.

    Attributes:
        key: The owner.
        window: Recent saves of messages; it also wakes who waits for news of any kind.
        serial: The number of the last news.
        forgotten: Who knows only older news than that has to compare all conversations.
        cut: Where more conversations are there than are known: the last change of the oldest known.
        stale: Whether conversations may have changed unheard of.
        ready: Whether the database was read at least once.
        failure: What every watcher of it is to raise, where watching cannot go on.
        watchers: How many watch it; the hub counts.
        hints: How many hints it was given.
    """

    ended = False

    def __init__(
        self, key: OwnerKey, reader: OwnerReader, routes: dict[ObjectId, "OwnerTopic"]
    ) -> None:
        self.key = key
        self.reader = reader
        self.window: Window[MessageUpdated] = Window(SAVES_KEPT, SAVES_KEPT)
        self.serial = 0
        self.forgotten = 0
        self.cut: datetime | None = None
        self.stale = True
        self.ready = False
        self.failure: BaseException | None = None
        self.watchers = self.hints = 0
        self._routes = routes
        self._marks: dict[ObjectId, ChangeMarkers] = {}
        self._news: dict[ObjectId, News] = {}  # in the order of their serials
        self._serial_before = self._compared = 0
        # Not all owners at once.
        self._checks = random.randrange(CHECKS_PER_FULL_CHECK)
        self._latest = NEVER
        self._reading = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._looked: tuple[int, Mapping[ObjectId, News], dict[ObjectId, ConversationSummary]]
        self._looked = 0, {}, {}

    def mark_stale(self) -> None:
        """Says that there may be news in the database; whoever waits wakes and reads it."""
        self.stale = True
        self.window.wake()

    def fail(self, failure: BaseException) -> None:
        """Makes every watcher raise ``failure``."""
        self.failure = self.failure or failure
        self.window.wake()

    def forget(self) -> None:
        """Takes it out of what it has put itself into; nobody watches it any more."""
        for conversation_id in {*self._marks, *self._news}:
            if self._routes.get(conversation_id) is self:
                del self._routes[conversation_id]
        self._routes = {}

    def tell(self, conversation_id: ObjectId, *, said: bool = False) -> None:
        """Says that something happened in a conversation."""
        before = self._news.pop(conversation_id, None)
        said = said or (before is not None and before.said)
        self.serial += 1
        self._news[conversation_id] = News(self.serial, said)
        self.window.wake()

    def claim(self, conversation_id: ObjectId) -> None:
        """Has what is heard of a conversation led here: it is this owner's, not one's before."""
        self._routes[conversation_id] = self

    def disown(self, conversation_id: ObjectId) -> None:
        """The opposite: it is not there any more, or not this owner's."""
        if self._routes.get(conversation_id) is self:
            del self._routes[conversation_id]

    def saved(self, conversation_id: ObjectId, hint: Updated) -> None:
        """Says that a message was saved."""
        event = MessageUpdated(
            conversation_id=conversation_id, message_id=hint.message_id, revision=hint.revision
        )
        self.window.put(event, 1)

    def news_after(self, serial: int, limit: int) -> dict[ObjectId, News]:
        """The first ``limit`` news behind a serial, in their order."""
        found: list[tuple[ObjectId, News]] = []
        for conversation_id, news in reversed(self._news.items()):
            if news.serial <= serial:
                break
            found.append((conversation_id, news))
        return dict(found[: -limit - 1 : -1])

    async def look(self, news: Mapping[ObjectId, News]) -> dict[ObjectId, ConversationSummary]:
        """Reads the conversations that there are news of; one reads for all who ask for the same.

        Raises:
            PyMongoError: The database could not be read.
        """
        async with self._looking:
            serial, ids, found = self._looked
            if not ids.keys() >= news.keys() or any(n.serial > serial for n in news.values()):
                serial = self.serial  # before the read, so that it is behind all that it names
                found = await self.reader.conversations(list(news))
                # What one has read is of use to another; who is alone needs no memory.
                self._looked = (serial, news, found) if self.watchers > 1 else (0, {}, {})
            return found

    # The comparison with the database

    async def attach(self) -> tuple[int, dict[ObjectId, ChangeMarkers]]:
        """Where a new watcher begins: behind which news, and with what seen.

        Raises:
            PyMongoError: The database could not be read.
        """
        serial = self.serial  # before the read, so that nothing falls between the two
        self.stale = True
        await self.catch_up()
        return serial, dict(self._marks)

    async def catch_up(self) -> None:
        """Compares all conversations with the database; one reads for all who ask.

        Raises:
            PyMongoError: The database could not be read; the topic stays stale.
        """
        async with self._reading, self.reader.turns:
            if not self.stale or self.failure:
                return
            self.stale = False  # news that come while reading make it stale again
            serial = self.serial
            try:
                marks = await self.reader.marks(self.key, MAX_CONVERSATIONS)
            except BaseException:
                self.stale = True
                self.window.wake()
                raise
            oldest = None
            if len(marks) == MAX_CONVERSATIONS:
                oldest = min(each.updated_at for each in marks.values())
            if not self.ready:
                self.ready = True
                self.cut = oldest
                self._marks = dict(marks)
                self._routes |= dict.fromkeys(marks, self)
                self._latest = max((each.updated_at for each in marks.values()), default=NEVER)
                return
            self.compare(marks)
            for conversation_id in self._marks.keys() - marks.keys():
                if oldest is None or self._marks[conversation_id].updated_at > oldest:
                    del self._marks[conversation_id]
                    self.disown(conversation_id)
                    self.tell(conversation_id)
            self._forget_news(serial)

    def _forget_news(self, serial: int) -> None:
        """Forgets news of conversations that were gone when all were read the last two times."""
        for conversation_id, news in list(self._news.items()):
            if news.serial > self._serial_before:
                break
            if conversation_id not in self._marks:
                self.forgotten = news.serial
                self.disown(conversation_id)
                del self._news[conversation_id]
        self._serial_before = serial

    def compare(self, marks: Mapping[ObjectId, ChangeMarkers]) -> bool:
        """Tells of each conversation that is not as it was known.

        Returns:
            Whether there is one that there had been no news of since the last time.
        """
        untold, compared = False, self._compared
        for conversation_id, found in marks.items():
            known = self._marks.get(conversation_id)
            if known is None and self.cut is not None and found.updated_at <= self.cut:
                continue  # one of the many that are not known one by one, and it is as it was
            if found != known:
                self._marks[conversation_id] = found
                self.claim(conversation_id)
                self._latest = max(self._latest, found.updated_at)
                before = known.next_position if known else 0
                news = self._news.get(conversation_id)
                untold = untold or news is None or news.serial <= compared
                self.tell(conversation_id, said=found.next_position != before)
        self._compared = self.serial
        return untold

    def due(self) -> datetime | None:
        """For a check: since when conversations may have changed; ``None`` if all are to be read.

        Then whoever watches does that.
        """
        self._checks += 1
        if self._checks % CHECKS_PER_FULL_CHECK == 0:
            self.mark_stale()
        return None if self.stale else self._latest - SKEW
