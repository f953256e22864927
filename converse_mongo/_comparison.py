"""The comparison with the database: what is watched or written, and not as it is stored.

A change stream can skip events without saying so, and where there is none nothing tells of news.
"""

import logging
from bisect import bisect_left
from collections.abc import Awaitable, Iterable, Mapping
from typing import TypeVar

from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo import _driver
from converse_mongo._conversation_topic import ConversationTopic
from converse_mongo._cursors import ConversationCursor
from converse_mongo._driver import Mark
from converse_mongo._reader import IDS_PER_QUERY, Reader
from converse_mongo._watched import AnyTopic, Watched
from converse_mongo.errors import StoreUnavailableError
from converse_mongo.store import Store

__all__ = ["Comparison"]

logger = logging.getLogger("converse_mongo")

PLACES_PER_CHECK = 8
SAVES_OVERLAP_SECONDS = 2
"""For how long a write may be on its way that has got its mark; and some servers round it down."""

T = TypeVar("T")


class Comparison:
    """Compares all topics with the database: a few queries for all of them together.

    A topic that is behind becomes stale. Running writers hear of stops, and a message whose writer
    is dead is ended.
    """

    def __init__(self, watched: Watched, reader: Reader, store: Store) -> None:
        self._watched = watched
        self._reader = reader
        self._signals = store.signals
        self._leases = store.leases
        self._next_place = 0

    async def run(self) -> None:
        """Compares all once.

        Raises:
            PyMongoError: The database could not be read.
            StoreUnavailableError: A message of a dead writer could not be ended.
        """
        conversations = {
            topic: topic.cursor
            for topic in self._watched.conversations.values()
            if topic.cursor and not topic.stale
        }
        watched = self._watched
        orphans = await self._attempt(
            self._compare_messages(conversations), [*watched.messages.values(), *conversations]
        )
        if conversations:
            await self._attempt(self._compare_conversations(conversations), conversations)
        elif not watched.conversations:
            watched.routes.saves_since = None
        await self._attempt(self._compare_owners(), watched.owners.values())
        for message_id, conversation_id in (orphans or {}).items():
            await self._settle(message_id, conversation_id)

    async def _attempt(self, step: Awaitable[T], topics: Iterable[AnyTopic]) -> T | None:
        """Awaits a step. If a document cannot be read, the watchers of ``topics`` find out which.

        The other steps go on: one document that another application wrote must not stop them.
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
        self, conversations: Mapping[ConversationTopic, ConversationCursor]
    ) -> dict[ObjectId, ObjectId]:
        """Compares counters; the messages whose writers may be dead, with their conversations."""
        messages = {
            topic: topic.state
            for topic in self._watched.messages.values()
            if topic.state and not (topic.stale or topic.ended)
        }
        keys = {topic.key: state.conversation_id for topic, state in messages.items()}
        for conversation in conversations:
            keys |= dict.fromkeys(conversation.open, conversation.key)
        written = dict(self._signals.messages)
        keys |= written
        if not keys:
            return {}
        counters = await self._reader.counters(keys)
        for message in messages:
            found = counters.get(message.key)
            if found is None or found.ended or found.next_sequence > message.window.head:
                message.mark_stale()
        for conversation in conversations:
            if conversation.is_behind(counters):
                conversation.mark_stale()
        for message_id in written:
            found = counters.get(message_id)
            if found is None or found.ended or found.stop_requested:
                self._signals.tell(message_id)
        leases = {key: found.lease for key, found in counters.items() if not found.ended}
        return {key: keys[key] for key in await self._leases.find_expired(leases, keys)}

    async def _compare_conversations(
        self, conversations: Mapping[ConversationTopic, ConversationCursor]
    ) -> None:
        """Finds new messages, saved ones, and conversations that are gone.

        Each query is answered by an index alone, at some keys for each conversation.
        """
        ends = {topic.key: cursor.end for topic, cursor in conversations.items()}
        moment = await self._reader.moment()
        counted = await self._reader.next_positions(list(ends))
        behind = {key for key, end in ends.items() if counted.get(key, 0) > end}
        behind |= await self._reader.having(self._some_places(ends))
        for conversation in conversations:
            if conversation.key in behind or conversation.key not in counted:
                conversation.mark_stale()
        await self._find_saves(conversations, moment)

    def _some_places(self, ends: Mapping[ObjectId, int]) -> dict[int, list[ObjectId]]:
        """By the position that comes next, conversations to be looked at there; each has its turn.

        Only where a writer died between its message and the counter is a message there that the
        counter does not tell of.
        """
        places: dict[int, list[ObjectId]] = {}
        for conversation_id, end in ends.items():
            places.setdefault(end, []).append(conversation_id)
        order = sorted(places)
        start = bisect_left(order, self._next_place)
        chosen = (order[start:] + order[:start])[:PLACES_PER_CHECK]
        self._next_place = chosen[-1] + 1
        return {position: places[position][:IDS_PER_QUERY] for position in chosen}

    async def _find_saves(
        self, conversations: Mapping[ConversationTopic, ConversationCursor], moment: Mark
    ) -> None:
        routes = self._watched.routes
        if routes.saves_since is None:
            return  # the next topic to be read notes it
        since = _driver.earlier(routes.saves_since, SAVES_OVERLAP_SECONDS)
        topics = {topic.key: topic for topic in conversations}
        for save in await self._reader.saves(list(topics), since):
            topics[save.conversation_id].find_saved(save)
        routes.saves_since = moment

    async def _compare_owners(self) -> None:
        owners = {topic: since for topic in self._watched.owners.values() if (since := topic.due())}
        if not owners:
            return
        changed = await self._watched.owner_reader.changed(
            {topic.key: since for topic, since in owners.items()}
        )
        for owner in owners:
            owner.compare(changed[owner.key])

    async def _settle(self, message_id: ObjectId, conversation_id: ObjectId) -> None:
        """Ends a message whose writer may be dead; whoever waits for it hears of it."""
        try:
            state = await self._leases.settle_orphan(message_id, conversation_id)
        except (PyMongoError, StoreUnavailableError):
            raise
        except Exception:
            # One that is not as the library writes it must not be in the way of the others.
            logger.exception("Message %s could not be looked at", message_id)
            return
        if state is None or state.status.is_final:
            for topic in self._watched.all():
                if topic.key in (message_id, conversation_id):
                    topic.mark_stale()
