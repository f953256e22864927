"""The feed of one watcher of an owner: its state, and the reads that produce its events.

The state has a few numbers of each conversation. A hint only names a conversation to read. The
difference between the numbers and the read becomes events. So no event that a change stream skips
is lost, and none is repeated.
"""

import asyncio
from collections import deque
from collections.abc import Container, Iterable, Mapping
from datetime import datetime, timedelta

from bson import ObjectId

from converse_mongo.domain.events import (
    ConversationDeleted,
    MessageSuspended,
    OwnerEvent,
    work_event,
)
from converse_mongo.domain.owners import OwnerKey
from converse_mongo.domain.summaries import NEVER, ChangeMarkers
from converse_mongo.store.reads import Counters
from converse_mongo.watching.owner_reader import Asked, Known, News, OwnerReader, Place

MAX_CONVERSATIONS = 2000
"""The number of conversations of an owner that are known from the start: the last changed."""
SKEW = timedelta(seconds=60)
"""The difference between the clocks of writers up to which each check finds what they wrote. Beyond
it only the rarer full comparison does."""
CHECKS_PER_FULL_CHECK = 15


class OwnerRoutes:
    """Delivers hints to the feeds of owners.

    Attributes:
        reader: Reads for all feeds.
        feeds: By the id of a conversation or a streaming message, the feeds that know it; by owner,
            all feeds of the owner.
        reading: Feeds that are being read, and may know more ids afterwards.
        checks: The number of comparisons with the database.
    """

    def __init__(self, reader: OwnerReader) -> None:
        self.reader = reader
        self.feeds: dict[ObjectId | OwnerKey | None, dict[OwnerFeed, None]] = {}
        self.reading: set[OwnerFeed] = set()
        self.checks = 0

    def lead(self, feed: "OwnerFeed", keys: Iterable[ObjectId | OwnerKey]) -> None:
        """Updates which of ``keys`` lead to a feed: those that it knows while it is attached."""
        for key in keys:
            feeds = self.feeds.setdefault(key, {})
            if feed.watchers and feed.knows(key):
                feeds[feed] = None
            else:
                feeds.pop(feed, None)
            if not feeds:
                del self.feeds[key]

    def receive(
        self, key: ObjectId, owner: OwnerKey | None = None, *, goes_on: bool = False
    ) -> None:
        """Delivers a hint.

        Args:
            key: The id of a conversation, or of a message that has ended or changed its work.
            owner: The owner of the conversation, if known.
            goes_on: Whether it says only that a message waits for people no longer, or for fewer:
                that is news of those that are known to wait.
        """
        self.reader.changes += 1
        for feed in {*self.feeds.get(key, ()), *self.feeds.get(owner, ())}:
            feed.hints += 1
            feed.receive(key, goes_on=goes_on)
        for feed in self.reading:
            if key in feed.named or len(feed.named) < MAX_CONVERSATIONS:
                feed.named[key] = feed.named.get(key, True) and goes_on
            else:
                feed.mark_stale()


class OwnerFeed:
    """The state of one watcher.

    Attributes:
        key: The owner.
        known: The reported part of each conversation, by id.
        open: The streaming messages, by id.
        cut: The last change of the oldest known conversation, if the owner had more of them at the
            beginning.
        dirty: Conversations to read, in this order; ``None`` stands for all. At most
            ``MAX_CONVERSATIONS`` unknown ones are added by hints.
        ready: Whether the database was read at least once.
        events: Events that are not yielded yet, all from one read.
        wake: Set when there is something to do.
        failure: The error to raise if watching cannot go on.
        watchers: 1 while the watcher is attached; the hub counts.
        hints: The number of hints received.
        named: The ids that hints named during a read, with the ``goes_on`` that all of them had.
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
        self.named: dict[ObjectId, bool] = {}
        self._reader = routes.reader
        self._routes = routes
        self._being_read: ObjectId | None = None
        self._latest = NEVER

    @property
    def keys(self) -> set[ObjectId | OwnerKey]:
        """The keys of hints that concern it."""
        return {self.key, *self.known, *self.open}

    def knows(self, key: ObjectId | OwnerKey) -> bool:
        """Returns whether a key is one of :attr:`keys`."""
        return key in self.known or key in self.open or key == self.key

    def mark_stale(self) -> None:
        """Has all conversations compared with the database."""
        self.mark(None)

    def fail(self, failure: BaseException) -> None:
        """Makes the watcher raise ``failure``."""
        self.failure = self.failure or failure
        self.wake.set()

    def mark(self, *ids: ObjectId | None) -> bool:
        """Marks conversations as dirty; returns whether one was not marked before."""
        added = [key for key in ids if key not in self.dirty]
        for key in added:
            # If there are too many unknown ones, a comparison finds those that still exist.
            unnamed = key not in self.known and len(self.dirty) >= MAX_CONVERSATIONS
            self.dirty[None if unnamed else key] = None
        if added:
            self.wake.set()
        return bool(added)

    def receive(self, key: ObjectId, *, goes_on: bool = False) -> None:
        """Receives a hint; see :meth:`OwnerRoutes.receive`."""
        place = self.open.get(key)
        if not goes_on or (place is not None and place.waits is not None):
            self.mark(key if place is None else place.conversation_id)

    @property
    def waiting(self) -> list[MessageSuspended]:
        """What is reported of the messages that wait for people."""
        return [place.waits for place in self.open.values() if place.waits]

    # The comparison with the database

    def due(self) -> datetime | None:
        """Begins a check: returns the time since which conversations may have changed.

        ``None`` if there is nothing to check, since the watcher will compare all of them.
        """
        # Not all owners at once, but all watchers of an owner, which share the read.
        if (self._routes.checks + hash(self.key)) % CHECKS_PER_FULL_CHECK == 0:
            self.mark_stale()
        return None if None in self.dirty or not self.ready else self._latest - SKEW

    def compare(self, markers: Mapping[ObjectId, ChangeMarkers]) -> bool:
        """Marks conversations that are not as reported.

        Returns:
            Whether one was neither marked before, nor is being read.
        """
        news = self._note(markers)
        if self._being_read in news:
            self.mark(self._being_read)
        return self.mark(*news)

    def _note(self, markers: Mapping[ObjectId, ChangeMarkers]) -> list[ObjectId]:
        """Notes the last change, and returns the conversations that are not as reported."""
        self._reader.changes += 1
        self._latest = max([self._latest, *(found.updated_at for found in markers.values())])
        return [key for key, found in markers.items() if self._is_news(key, found)]

    def _is_news(self, key: ObjectId, found: ChangeMarkers) -> bool:
        if key not in self.known:
            return self.cut is None or found.updated_at > self.cut
        return self.known[key] < (found.created_at, found.revision, found.next_position)

    def find_changed(
        self, counters: Mapping[ObjectId, Counters], asked: Container[ObjectId]
    ) -> bool:
        """Marks conversations with a message that has ended, or does not wait as was reported.

        Args:
            counters: The counters that were read.
            asked: The ids of the messages that they were read for.

        Returns:
            Whether one was not marked before.
        """
        self._reader.changes += 1
        changed = [
            place.conversation_id
            for key, place in self.open.items()
            if key in asked and _is_other(counters.get(key), place)
        ]
        return self.mark(*changed)

    # Reading

    async def catch_up(self) -> None:
        """Reads the first dirty conversation. It stays dirty if that fails or is cancelled.

        Raises:
            OutdatedReadError: The majority snapshot contradicts the primary.
            PyMongoError: The database could not be read.
        """
        key = self._being_read = next(iter(self.dirty)) if self.ready else None
        del self.dirty[key]  # hints during the read mark it again
        self.named.clear()
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
            self._being_read = None
            self._routes.reading.discard(self)
            for named, goes_on in self.named.items():
                if self.knows(named):
                    self.receive(named, goes_on=goes_on)

    async def _begin(self) -> None:
        """Reads the state before the first event."""
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
        self._routes.lead(self, self.keys)

    async def _compare_all(self) -> None:
        markers = await self._reader.all_since(self.key, self.cut or NEVER)
        missing = [key for key in self.known if key not in markers]  # they may be gone
        streaming = [place.conversation_id for place in self.open.values()]
        self.dirty |= dict.fromkeys([*self._note(markers), *missing, *streaming])

    async def _read(self, key: ObjectId) -> None:
        known = self.known.get(key)
        opened = {each: at for each, at in self.open.items() if at.conversation_id == key}
        places = frozenset(at.position for at in opened.values())
        news = await self._reader.news(Asked(self.key, key, known, places, self.cut))
        # No await from here on: the state and the events change together.
        self._tell(key, known, opened, news)
        self._routes.lead(self, {key, *opened})

    def _tell(
        self, key: ObjectId, known: Known | None, opened: Mapping[ObjectId, Place], news: News
    ) -> None:
        found, report = news.found, self.events.append
        for message_id in opened:
            del self.open[message_id]
        if known and (found is None or found.created_at != known.created_at):
            report(ConversationDeleted(conversation_id=key))
            del self.known[key]
            known = None
        if found is None:
            return
        if known is None:
            report(found.updated() if news.older else found.created())
        elif found.revision > known.revision:
            report(found.updated())
        for row in news.rows:
            message = row.state
            if known is None or message.position >= known.end:
                report(row.created())
            if message.streamed and message.status.is_final:
                report(message.ended())
            elif message.streamed:
                before, place = opened.get(message.message_id), Place.of(message)
                if message.work and place.awaited != (before and before.awaited):
                    report(work_event(message.message_id, key, message.role, message.work))
                self.open[message.message_id] = place
                self._routes.lead(self, [message.message_id])
        revision = max(found.revision, known.revision if known else 0)
        self.known[key] = Known(found.created_at, revision, news.end)
        if news.more:
            self.dirty[key] = None


def _is_other(found: Counters | None, place: Place) -> bool:
    """Returns whether a message has ended, or does not wait as its place says."""
    return found is None or found.ended or (found.work and found.work.awaited) != place.awaited
