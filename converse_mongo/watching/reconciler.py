"""The reconciler: compares what is watched or written with the database.

A change stream can skip events silently, and without one nothing else reports news.
"""

import logging
import random
from bisect import bisect_left
from collections.abc import Awaitable, Container, Iterable, Mapping
from datetime import datetime
from typing import Protocol, TypeVar

from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo.domain.cursors import ConversationCursor
from converse_mongo.domain.errors import StoreUnavailableError
from converse_mongo.domain.owners import OwnerKey
from converse_mongo.driver import servers
from converse_mongo.driver.servers import Mark
from converse_mongo.store import Store
from converse_mongo.store.reads import (
    IDS_PER_QUERY,
    Counters,
    Reader,
)
from converse_mongo.watching.owner_feed import OwnerFeed
from converse_mongo.watching.registry import AnyTopic, TopicRegistry
from converse_mongo.watching.topics import Topic

logger = logging.getLogger("converse_mongo")

PLACES_PER_CHECK = 8
SAVES_OVERLAP_SECONDS = 2
"""Seconds between the mark of a save and its commit, at most. Some servers round the mark down."""

T = TypeVar("T")


class HintedAt(Protocol):
    """Something that receives the hints of a change stream."""

    hints: int
    """The number of hints received."""


class Reconciler:
    """Compares all topics with the database, with a few queries for all of them.

    A topic that is behind becomes stale. Running writers are notified of stops. A message whose
    writer is presumed dead is ended.

    Attributes:
        found: The receivers of hints that the last comparison found to be behind, each with its
            number of hints then. If there are no more a moment later, the stream skipped them.
        lease_left: Seconds until the first lease of a message expires, if known.
    """

    def __init__(self, watched: TopicRegistry, reader: Reader, store: Store) -> None:
        self._registry = watched
        self._reader = reader
        self._notices = store.notices
        self._told: dict[ObjectId, str] = {}
        self._leases = store.leases
        self._note_trouble = store.note_trouble
        self._next_place = 0
        self._hints = 0
        self.found: list[tuple[HintedAt, int]] = []
        self.lease_left: float | None = None

    async def run(self) -> bool:
        """Compares everything, and returns whether there were hints since the last time.

        Raises:
            PyMongoError: The database could not be read.
            StoreUnavailableError: A message of a dead writer could not be ended in time.
        """
        try:
            return await self._run()
        except (PyMongoError, StoreUnavailableError):
            self._note_trouble()
            raise

    async def _run(self) -> bool:
        self.found, watched = [], self._registry
        topics = self._live_topics()
        orphans = await self._attempt(self._compare_messages(topics), topics)
        conversations = {
            topic: cursor
            for topic, cursor in topics.items()
            if watched.conversations.get(topic.key) is topic
        }
        if conversations:
            await self._attempt(self._compare_conversations(conversations), conversations)
        elif not watched.conversations:
            watched.routes.saves_since = None
        await self._attempt(self._compare_owners(), watched.owners)
        for message_id, conversation_id in (orphans or {}).items():
            await self._settle(message_id, conversation_id)
        return self._were_hints()

    async def run_live(self) -> bool:
        """Compares only the watched messages that stream, with one query or none.

        Raises:
            PyMongoError: The database could not be read.
        """
        self.found = []
        topics = self._live_topics()
        keys = self._watched_keys(topics)
        if keys:
            self._take_counters(await self._reader.counters(keys), topics, keys)
        return self._were_hints()

    def _live_topics(self) -> dict[Topic, ConversationCursor]:
        """The messages and conversations that no watcher is about to read, and their cursors."""
        watched = self._registry
        return {
            topic: topic.cursor
            for topic in (*watched.messages.values(), *watched.conversations.values())
            if topic.cursor and not (topic.stale or topic.ended)
        }

    def _were_hints(self) -> bool:
        before, self._hints = (
            self._hints,
            sum(
                [topic.hints for topic in self._registry.all() if not isinstance(topic, OwnerFeed)]
            ),
        )
        return self._hints > before

    def _mark_stale(self, topic: Topic) -> None:
        self.found.append((topic, topic.hints))
        topic.mark_stale()

    async def _attempt(self, step: Awaitable[T], topics: Iterable[AnyTopic]) -> T | None:
        """Awaits a step. If a document cannot be read, the watchers of ``topics`` find out which.

        The other steps continue: a document of another application must not stop them.
        """
        try:
            return await step
        except (PyMongoError, StoreUnavailableError):
            raise
        except Exception:
            logger.exception("Could not compare what is watched with the database")
            for topic in topics:
                topic.mark_stale()
            return None

    async def _compare_messages(
        self, topics: Mapping[Topic, ConversationCursor]
    ) -> dict[ObjectId, ObjectId]:
        """Compares counters, and returns messages whose writers may be dead with conversations."""
        written = dict(self._notices.messages)
        keys = self._watched_keys(topics) | written
        self.lease_left = None
        if not keys:
            return {}
        counters = await self._reader.counters(keys)
        self._take_counters(counters, topics, keys)
        self._tell_writers({message_id: counters.get(message_id) for message_id in written})
        leases = {key: found.lease for key, found in counters.items() if not found.ended}
        expired = await self._leases.find_expired(leases, keys)
        self.lease_left = self._leases.seconds_left(leases.values())
        return {key: keys[key] for key in expired}

    def _watched_keys(self, topics: Mapping[Topic, ConversationCursor]) -> dict[ObjectId, ObjectId]:
        """The watched messages that stream, with their conversations."""
        keys: dict[ObjectId, ObjectId] = {}
        for topic, cursor in topics.items():
            keys |= dict.fromkeys(topic.open, cursor.conversation_id)
        for owner in self._registry.owners:
            keys |= {each: place.conversation_id for each, place in owner.open.items()}
        return keys

    def _take_counters(
        self,
        counters: Mapping[ObjectId, Counters],
        topics: Iterable[Topic],
        asked: Container[ObjectId],
    ) -> None:
        for topic in topics:
            if topic.is_behind(counters):
                self._mark_stale(topic)
        for owner in self._registry.owners:
            self._note(owner, owner.find_changed(counters, asked))

    def _note(self, owner: OwnerFeed, untold: bool) -> None:
        if untold:
            self.found.append((owner, owner.hints))

    def _tell_writers(self, written: Mapping[ObjectId, Counters | None]) -> None:
        """Notifies each writer once of what concerns it."""
        news: dict[ObjectId, str] = {}
        for message_id, found in written.items():
            if found is None:
                news[message_id] = "it is gone"
            elif found.ended:
                news[message_id] = "it has ended"
            elif found.stop_requested:
                news[message_id] = "it is to stop"
        told, self._told = self._told, news
        for message_id, what in news.items():
            if told.get(message_id) != what:
                self.found.append((self._notices, self._notices.hints))
                self._notices.tell(message_id)

    async def _compare_conversations(
        self, conversations: Mapping[Topic, ConversationCursor]
    ) -> None:
        """Finds new messages, saves, and deleted conversations.

        Each query is answered by an index alone, with some keys for each conversation.
        """
        ends = {topic.key: cursor.end for topic, cursor in conversations.items()}
        moment = await self._reader.moment()
        counted = await self._reader.next_positions(list(ends))
        behind = {key for key, end in ends.items() if counted.get(key, 0) > end}
        behind |= await self._reader.having(self._some_places(ends))
        for conversation in conversations:
            if conversation.key in behind or conversation.key not in counted:
                self._mark_stale(conversation)
        await self._find_saves(conversations, moment)

    def _some_places(self, ends: Mapping[ObjectId, int]) -> dict[int, list[ObjectId]]:
        """Some conversations to look for a message behind their end, by that position.

        The counter lacks a message only if its writer died between the two writes. So the
        conversations take turns.
        """
        places: dict[int, list[ObjectId]] = {}
        for conversation_id, end in ends.items():
            places.setdefault(end, []).append(conversation_id)
        order = sorted(places)
        start = bisect_left(order, self._next_place)
        chosen = (order[start:] + order[:start])[:PLACES_PER_CHECK]
        self._next_place = chosen[-1] + 1
        return {
            position: random.sample(places[position], min(len(places[position]), IDS_PER_QUERY))
            for position in chosen
        }

    async def _find_saves(
        self, conversations: Mapping[Topic, ConversationCursor], moment: Mark
    ) -> None:
        routes = self._registry.routes
        if routes.saves_since is None:
            return  # the next first read of a topic notes it
        since = servers.earlier(routes.saves_since, SAVES_OVERLAP_SECONDS)
        topics = {topic.key: topic for topic in conversations}
        for save in await self._reader.saves(list(topics), since):
            topic = topics[save.conversation_id]
            hints, head = topic.hints, topic.window.head
            topic.find_saved(save)
            if topic.window.head != head:
                self.found.append((topic, hints))
        routes.saves_since = moment

    async def _compare_owners(self) -> None:
        self._registry.owner_routes.checks += 1
        due = {feed: moment for feed in self._registry.owners if (moment := feed.due())}
        since: dict[OwnerKey, datetime] = {}
        for feed, moment in due.items():
            since[feed.key] = min(moment, since.get(feed.key, moment))
        changed = await self._registry.owner_routes.reader.changed(since)
        for feed in due:
            self._note(feed, feed.compare(changed[feed.key]))

    async def _settle(self, message_id: ObjectId, conversation_id: ObjectId) -> None:
        """Ends a message whose writer may be dead, and has its topics read it."""
        try:
            state = await self._leases.settle_orphan(message_id, conversation_id)
        except (PyMongoError, StoreUnavailableError):
            raise
        except Exception:
            # A document of another application must not stop the others.
            logger.exception("Could not check message %s", message_id)
            return
        if state is None or state.status.is_final:
            for topic in self._registry.all():
                if topic.key in (message_id, conversation_id):
                    topic.mark_stale()
            self._registry.owner_routes.receive(conversation_id)
