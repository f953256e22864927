"""What a watcher of an owner was told, and the reads that make the next events of it.

Of each conversation a few numbers are known. A hint only names a conversation to read. What the
read shows beyond the numbers becomes events, so nothing that a change stream skips is lost, and
nothing comes twice.
"""

import asyncio
import random
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from bson import ObjectId

from converse_mongo.domain.events import ConversationDeleted, OwnerEvent
from converse_mongo.domain.owners import OwnerKey
from converse_mongo.domain.summaries import NEVER, ChangeMarkers
from converse_mongo.store.reads import Counters
from converse_mongo.watching.owner_reader import Asked, Known, OwnerReader, Place
from converse_mongo.watching.replay import message_created

__all__ = ["OwnerFeed", "OwnerRoutes"]

MAX_CONVERSATIONS = 2000
"""How many conversations of an owner are known from the start: those that changed last."""
SKEW = timedelta(seconds=60)
"""By how much the clocks of writers may differ before only the rarer, full comparison finds what
they wrote and no change stream told."""
CHECKS_PER_FULL_CHECK = 15


class OwnerRoutes:
    """Leads hints to the feeds that they concern.

    Attributes:
        reader: Reads for them.
        feeds: By the id of a conversation or of a message that streams, those that know it; and by
            owner, those of the owner.
        reading: Feeds that are finding out what leads to them.
    """

    def __init__(self, reader: OwnerReader) -> None:
        self.reader = reader
        self.feeds: dict[ObjectId | OwnerKey | None, tuple[OwnerFeed, ...]] = {}
        self.reading: set[OwnerFeed] = set()

    def lead(self, feed: "OwnerFeed", keys: Iterable[ObjectId | OwnerKey]) -> None:
        """Has hints of keys led to a feed while it is attached and knows them."""
        known = feed.keys if feed.watchers else set()
        for key in keys:
            feeds = tuple(each for each in self.feeds.pop(key, ()) if each is not feed)
            if key in known:
                feeds += (feed,)
            if feeds:
                self.feeds[key] = feeds

    def hear(self, key: ObjectId, owner: OwnerKey | None = None) -> None:
        """Receives a hint of a conversation, and whose it is if known, or of a message's end."""
        self.reader.changes += 1
        for feed in {*self.feeds.get(key, ()), *self.feeds.get(owner, ())}:
            feed.hints += 1
            feed.hear(key)
        for feed in self.reading:
            feed.heard.add(key)


class OwnerFeed:
    """What one watcher was told, and what it has yet to read.

    Attributes:
        key: The owner.
        known: What was told of each conversation, by id.
        open: The messages that stream, by id.
        cut: The last change of the oldest known conversation, where the owner had more of them at
            the beginning.
        dirty: Conversations that there is news of, in their turn; ``None`` for all of them. Of
            those that are not known not more than there are, or ``MAX_CONVERSATIONS``.
        ready: Whether the database was read at least once.
        events: Events that are not yielded yet: those of one read.
        wake: Set with each news.
        failure: The error that the watcher raises, where watching cannot go on.
        watchers: Whether the watcher is attached; the hub counts.
        hints: The number of hints received.
        heard: What hints named during a read.
    """

    def __init__(self, key: OwnerKey, routes: OwnerRoutes) -> None:
        self.key = key
        self.known: dict[ObjectId, Known] = {}
        self.open: dict[ObjectId, Place] = {}
        self.cut: datetime | None = None
        self.dirty: dict[ObjectId | None, None] = {None: None}
        self.ready = False
        self.events: deque[OwnerEvent] = deque()
        self.wake = asyncio.Event()
        self.failure: BaseException | None = None
        self.watchers = self.hints = 0
        self.heard: set[ObjectId] = set()
        self._reader = routes.reader
        self._routes = routes
        # Not all owners at once.
        self._checks = random.randrange(CHECKS_PER_FULL_CHECK)
        self._latest = NEVER

    @property
    def keys(self) -> set[ObjectId | OwnerKey]:
        """Whatever hints name that concern it."""
        return {self.key, *self.known, *self.open}

    def mark_stale(self) -> None:
        """Says that there may be news that nothing named."""
        self.tell(None)

    def fail(self, failure: BaseException) -> None:
        """Makes the watcher raise ``failure``."""
        self.failure = self.failure or failure
        self.wake.set()

    def tell(self, *ids: ObjectId | None) -> bool:
        """Says that there is news of conversations; returns whether that is new of any."""
        untold = [key for key in ids if key not in self.dirty]
        for key in untold:
            # A comparison finds those of the many new ones that there still are by then.
            unnamed = key not in self.known and len(self.dirty) >= MAX_CONVERSATIONS
            self.dirty[None if unnamed else key] = None
        if untold:
            self.wake.set()
        return bool(untold)

    def hear(self, key: ObjectId) -> None:
        """Receives a hint of a conversation, or of the end of a message."""
        self.tell(self.open[key].conversation_id if key in self.open else key)

    # The comparison with the database

    def due(self) -> datetime | None:
        """For a check: since when conversations may have changed.

        ``None``: the watcher is to read all of them.
        """
        self._checks += 1
        if self._checks % CHECKS_PER_FULL_CHECK == 0:
            self.mark_stale()
        return None if None in self.dirty or not self.ready else self._latest - SKEW

    def compare(self, markers: Mapping[ObjectId, ChangeMarkers]) -> bool:
        """Tells of each conversation that is not as it was told; returns as :meth:`tell` does."""
        return self.tell(*self._note(markers))

    def _note(self, markers: Mapping[ObjectId, ChangeMarkers]) -> list[ObjectId]:
        """Notes the last change, and returns which conversations are not as they were told."""
        self._reader.changes += 1
        self._latest = max([self._latest, *(found.updated_at for found in markers.values())])
        return [key for key, found in markers.items() if self._is_news(key, found)]

    def _is_news(self, key: ObjectId, found: ChangeMarkers) -> bool:
        if key not in self.known:
            return self.cut is None or found.updated_at > self.cut
        return self.known[key] < (found.created_at, found.revision, found.next_position)

    def find_ended(self, counters: Mapping[ObjectId, Counters]) -> bool:
        """Tells of each conversation with a message that streams no more; returns the same."""
        self._reader.changes += 1
        ended = [key for key in self.open if key not in counters or counters[key].ended]
        return self.tell(*[self.open[key].conversation_id for key in ended])

    # Reading

    async def catch_up(self) -> None:
        """Reads the first of what there is news of.

        If the read fails or is cancelled, that stays news.

        Raises:
            OutdatedReadError: The majority shows something else than the primary has.
            PyMongoError: The database could not be read.
        """
        before, key = self.keys, next(iter(self.dirty)) if self.ready else None
        del self.dirty[key]  # news that come during the read are kept
        self.heard.clear()
        self._routes.reading.add(self)
        try:
            if key is not None:
                await self._read(key)
            elif self.ready:
                await self._compare_all()
            else:
                await self._begin()
        except BaseException:
            self.dirty[key] = None
            raise
        finally:
            self._routes.reading.discard(self)
            self._routes.lead(self, before ^ self.keys)
            for heard in self.heard & self.keys:
                self.hear(heard)

    async def _begin(self) -> None:
        """Notes what there is, so that events tell what comes after."""
        async with self._reader.turns:
            markers = await self._reader.latest(self.key, MAX_CONVERSATIONS)
            streaming = await self._reader.streaming(list(markers))
        for key, found in markers.items():
            self.known[key] = Known(found.created_at, found.revision, found.next_position)
        for message_id, place in streaming.items():
            if place.position < self.known[place.conversation_id].end:
                self.open[message_id] = place
        if len(markers) == MAX_CONVERSATIONS:
            self.cut = min(found.updated_at for found in markers.values())
        self._note(markers)
        self.ready = True

    async def _compare_all(self) -> None:
        async with self._reader.turns:
            markers = (await self._reader.changed({self.key: self.cut or NEVER}))[self.key]
        missing = [key for key in self.known if key not in markers]  # they may be gone
        streaming = [place.conversation_id for place in self.open.values()]
        self.dirty |= dict.fromkeys([*self._note(markers), *missing, *streaming])

    async def _read(self, key: ObjectId) -> None:
        known = self.known.get(key)
        opened = {each: at for each, at in self.open.items() if at.conversation_id == key}
        places = frozenset(at.position for at in opened.values())
        news = await self._reader.news(Asked(self.key, key, known, places, self.cut))
        # From here on nothing waits.
        found, tell = news.found, self.events.append
        for message_id in opened:
            del self.open[message_id]
        if known and (found is None or found.created_at != known.created_at):
            tell(ConversationDeleted(conversation_id=key))
            del self.known[key]
            known = None
        if found is None:
            return
        if known is None:
            tell(found.updated() if news.older else found.created())
        elif found.revision > known.revision:
            tell(found.updated())
        for row in news.rows:
            message = row.state
            if known is None or message.position >= known.end:
                tell(message_created(row))
            if message.streamed and message.status.is_final:
                tell(message.ended())
            elif message.streamed:
                self.open[message.message_id] = Place(key, message.position)
        revision = max(found.revision, known.revision if known else 0)
        self.known[key] = Known(found.created_at, revision, news.end)
        if news.more:
            self.dirty[key] = None
