"""The registry of all topics of a facade, which passes hints to the topics they concern."""

import logging
from typing import Any, TypeAlias

from bson import ObjectId

from converse_mongo.domain.work import WorkState
from converse_mongo.store.reads import Reader
from converse_mongo.watching.changes import ConversationChanged, Inserted, MessageHint, Updated
from converse_mongo.watching.message_topic import MessageTopic
from converse_mongo.watching.owner_feed import OwnerFeed, OwnerRoutes
from converse_mongo.watching.owner_reader import OwnerReader
from converse_mongo.watching.topics import Routes, Topic

AnyTopic: TypeAlias = Topic | OwnerFeed

logger = logging.getLogger("converse_mongo")


class TopicRegistry:
    """The topics of one pair of collections, and the routes by which hints get to them.

    Attributes:
        messages: By the id of the message.
        conversations: By the id of the conversation.
        owners: One for each watcher of an owner.
        routes: What all watched conversations share.
        owner_routes: What all watched owners share.
    """

    def __init__(self, reader: Reader) -> None:
        self.messages: dict[ObjectId, MessageTopic] = {}
        self.conversations: dict[ObjectId, Topic] = {}
        self.owners: set[OwnerFeed] = set()
        self._reader = reader
        self.routes = Routes()
        self.owner_routes = OwnerRoutes(OwnerReader(reader))

    def all(self) -> list[AnyTopic]:
        """All topics."""
        return [*self.messages.values(), *self.conversations.values(), *self.owners]

    def any(self) -> bool:
        """Returns whether there is a topic."""
        return bool(self.messages or self.conversations or self.owners)

    def message(self, message_id: ObjectId) -> MessageTopic:
        """The topic of a message, created if needed."""
        topic = self.messages.get(message_id)
        if topic is None or topic.failure is not None:
            topic = self.messages[message_id] = MessageTopic(message_id, self._reader)
        return topic

    def conversation(self, conversation_id: ObjectId) -> Topic:
        """The topic of a conversation, created if needed."""
        topic = self.conversations.get(conversation_id)
        if topic is None or topic.failure is not None:
            topic = Topic(conversation_id, self._reader, self.routes)
            self.conversations[conversation_id] = topic
        return topic

    def attach(self, feed: OwnerFeed) -> None:
        """Has the feed of an owner receive hints, until it is forgotten."""
        self.owners.add(feed)
        self.owner_routes.lead(feed, feed.keys)

    def forget(self, topic: AnyTopic) -> None:
        """Removes a topic and its routes."""
        if isinstance(topic, OwnerFeed):
            self.owners.discard(topic)
            self.owner_routes.lead(topic, topic.keys)
            return
        topic.forget()
        topics: dict[Any, Any] = self.conversations
        if isinstance(topic, MessageTopic):
            topics = self.messages
        if topics.get(topic.key) is topic:
            del topics[topic.key]

    def mark_all_stale(self) -> None:
        """Has everything read again: a new change stream does not report what came before."""
        for topic in self.all():
            topic.mark_stale()

    def fail(self, failure: BaseException) -> None:
        """Makes every watcher raise ``failure``."""
        for topic in self.all():
            topic.fail(failure)

    # Hints

    def take(self, hint: MessageHint | ConversationChanged) -> None:
        """Passes a hint to all topics that it concerns."""
        if isinstance(hint, ConversationChanged):
            self.owner_routes.receive(hint.conversation_id, hint.owner)
            if hint.deleted and (gone := self.conversations.get(hint.conversation_id)):
                gone.note_deleted()
            return
        if isinstance(hint, Inserted) and hint.conversation_id is not None:
            self.owner_routes.receive(hint.conversation_id)
        elif not isinstance(hint, Updated) or hint.ended:
            self.owner_routes.receive(hint.message_id)
        elif hint.work is not None:
            goes_on = hint.work.get("state") != WorkState.WAITING
            self.owner_routes.receive(hint.message_id, goes_on=goes_on)
        for topic in self._topics_of(hint):
            try:
                topic.receive(hint)
            except Exception:
                # A document of another application: its watchers find out when they read it.
                logger.exception("Could not use a change of message %s", hint.message_id)
                topic.mark_stale()

    def _topics_of(self, hint: MessageHint) -> set[Topic]:
        found: set[Topic] = set()
        if message := self.messages.get(hint.message_id):
            found.add(message)
        if hint.conversation_id is not None:
            if conversation := self.conversations.get(hint.conversation_id):
                found.add(conversation)
        elif conversation := self.routes.open.get(hint.message_id):
            found.add(conversation)
        else:
            found |= self.routes.reading
        return found
