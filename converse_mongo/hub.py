"""The hub: the one change stream of a facade, and all that it feeds."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo import _changes
from converse_mongo._conversation_topic import ConversationTopic, Routes
from converse_mongo._driver import (
    CLOSE_SECONDS,
    Change,
    ChangeFeed,
    is_transient,
    lacks_change_streams,
)
from converse_mongo._owned import OwnerKey
from converse_mongo._owner_topic import OwnerReader, OwnerTopic
from converse_mongo._reader import Reader
from converse_mongo._topics import MessageTopic, Topic
from converse_mongo.errors import (
    ConversationNotFoundError,
    ConverseClosedError,
    StoreUnavailableError,
    WatchError,
)
from converse_mongo.store import Store
from converse_mongo.types import WatchMode

__all__ = ["Hub", "HubStatistics"]

logger = logging.getLogger("converse_mongo")

FIRST_BACKOFF_SECONDS = 0.05
MAX_BACKOFF_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """What a hub has to do.

    Attributes:
        watchers: Watchers that are attached. A running writer is none, though it has the stream
            opened as well, to hear of stops.
        topics: Messages, conversations and owners that they watch.
        streams_opened: Change streams opened so far; one at a time.
        changes: Change events received.
        checks: Times that the counters of all topics were compared with the database.
    """

    watchers: int
    topics: int
    streams_opened: int
    changes: int
    checks: int


class Hub:
    """Feeds the topics of one pair of collections.

    Two tasks: one follows the change stream and hands its hints to the topics; the other compares
    the counters of all topics with the database, at ``poll_interval`` where there is no change
    stream (for now, or at all), else at ``check_interval``, since a change stream can skip events
    without saying so. Both only ever say "look there": what a watcher yields is in ``_topics``.
    """

    def __init__(
        self,
        reader: Reader,
        open_feed: Callable[[], Awaitable[ChangeFeed]] | None,
        store: Store,
        *,
        poll_interval: float,
        check_interval: float,
    ) -> None:
        self._reader = reader
        self._signals = store.signals
        self._leases = store.leases
        self._open_feed = open_feed
        self._poll_interval = poll_interval
        self._check_interval = check_interval
        self._messages: dict[ObjectId, MessageTopic] = {}
        self._conversations: dict[ObjectId, ConversationTopic] = {}
        self._owners: dict[OwnerKey, OwnerTopic] = {}
        self._owner_reader = OwnerReader(reader)
        self._routes = Routes()
        self._owned: dict[ObjectId, OwnerTopic] = {}  # conversation to watched owner
        self._tasks: list[asyncio.Task[None]] = []
        self._signals.on_listen = self._ensure_running
        self._watched = asyncio.Event()
        self._soon: asyncio.TimerHandle | None = None
        self._check_now = asyncio.Event()
        self._live = False
        self._closing = False
        self._failure: BaseException | None = None
        self._streams_opened = self._changes = self._checks = 0

    @property
    def mode(self) -> WatchMode:
        """How watchers learn of news."""
        return WatchMode.POLLING if self._open_feed is None else WatchMode.CHANGE_STREAM

    def statistics(self) -> HubStatistics:
        """What there is to do right now."""
        topics = self._topics()
        return HubStatistics(
            watchers=sum(topic.watchers for topic in topics),
            topics=len(topics),
            streams_opened=self._streams_opened,
            changes=self._changes,
            checks=self._checks,
        )

    def _topics(self) -> list[Topic[Any, Any] | OwnerTopic]:
        return [*self._messages.values(), *self._conversations.values(), *self._owners.values()]

    def join_message(self, message_id: ObjectId) -> MessageTopic:
        """The topic of a message, with one more watcher; :meth:`leave` it in the end."""
        topic = self._messages.get(message_id)
        if topic is None:
            topic = self._messages[message_id] = MessageTopic(message_id, self._reader)
            self._check_soon()
        self._join(topic)
        return topic

    def join_conversation(self, conversation_id: ObjectId) -> ConversationTopic:
        """The topic of a conversation, with one more watcher; :meth:`leave` it in the end."""
        topic = self._conversations.get(conversation_id)
        if topic is None:
            topic = ConversationTopic(conversation_id, self._reader, self._routes)
            self._conversations[conversation_id] = topic
            self._check_soon()
        self._join(topic)
        return topic

    def join_owner(self, owner: OwnerKey) -> OwnerTopic:
        """The topic of an owner, with one more watcher; :meth:`leave` it in the end."""
        topic = self._owners.get(owner)
        if topic is None:
            topic = self._owners[owner] = OwnerTopic(owner, self._owner_reader, self._owned)
        self._join(topic)
        return topic

    def _join(self, topic: Topic[Any, Any] | OwnerTopic) -> None:
        topic.watchers += 1
        if self._failure is not None:
            topic.fail(self._failure)
            return
        self._ensure_running()

    def _ensure_running(self) -> None:
        self._watched.set()
        if not self._tasks and not self._closing:
            self._start("check", self._check())
            if self._open_feed is not None:
                self._start("follow", self._follow())

    def leave(self, topic: Topic[Any, Any] | OwnerTopic) -> None:
        """Takes a watcher away; a topic that nobody watches is forgotten at once."""
        topic.watchers -= 1
        if topic.watchers:
            return
        topic.forget()
        topics: dict[Any, Any] = self._conversations
        if isinstance(topic, OwnerTopic):
            topics = self._owners
        elif isinstance(topic, MessageTopic):
            topics = self._messages
        if topics.get(topic.key) is topic:
            del topics[topic.key]

    async def aclose(self) -> None:
        """Ends the tasks, closes the change stream, and ends all watchers with an error."""
        self._fail(
            ConverseClosedError("This Converse was closed while the stream was being watched.")
        )
        # The flag beside the cancellation: on Python 3.11, asyncio.wait_for, which PyMongo uses to
        # connect, may swallow a cancellation that comes as it finishes.
        self._closing = True
        self._signals.on_listen = None
        if self._soon is not None:
            self._soon.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            # A driver may say goodbye to a server that hangs; a closed client ends that, too.
            await asyncio.wait(self._tasks, timeout=2 * CLOSE_SECONDS)
        self._tasks.clear()

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"converse_mongo-{name}")
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        logger.critical("Task %s crashed", task.get_name(), exc_info=error)
        failure = WatchError(f"The task {task.get_name()} crashed: {error!r}. Open a new Converse.")
        failure.__cause__ = error
        self._fail(failure)

    def _fail(self, failure: BaseException) -> None:
        self._failure = self._failure or failure
        for topic in self._topics():
            topic.fail(failure)

    # The change stream

    async def _follow(self) -> None:
        failures = 0
        while self._open_feed is not None and not self._closing:
            try:
                feed = await self._open_feed()
            except PyMongoError as error:
                if lacks_change_streams(error):
                    logger.warning("No change stream is to be had (%s); polling instead", error)
                    self._open_feed = None
                    self._check_now.set()
                    return
                logger.warning("Could not open a change stream (%s); polling until then", error)
            else:
                self._streams_opened += 1
                self._live = True
                # What was written before the stream opened is read, not hoped for.
                self._mark_all_stale()
                try:
                    while not self._closing:
                        for change in await feed.next_batch():
                            failures = 0
                            self._take(change)
                except (PyMongoError, _StreamLostError) as error:
                    logger.warning("The change stream was lost (%s); opening a new one", error)
                finally:
                    self._live = False
                    self._check_now.set()
                    await asyncio.shield(feed.aclose())
            longest = min(FIRST_BACKOFF_SECONDS * 2 ** min(failures, 10), MAX_BACKOFF_SECONDS)
            failures += 1
            await asyncio.sleep(random.uniform(longest / 2, longest))

    def _take(self, change: Change) -> None:
        self._changes += 1
        try:
            hint = _changes.decode(change, self._reader.conversations.name)
        except (KeyError, TypeError, ValueError, AttributeError):
            logger.exception("Could not read a change event; the next check reads what changed")
            return
        if hint is None:
            return
        if isinstance(hint, _changes.StreamInvalidated):
            raise _StreamLostError(hint.operation)
        if isinstance(hint, _changes.ConversationChanged):
            self._tell_owners(hint)
            return
        if isinstance(hint, _changes.Updated) and (hint.concerns_writer or hint.epoch is not None):
            self._signals.tell(hint.message_id, hint.epoch)
        conversation_id = hint.conversation_id
        if conversation_id is not None and (owner := self._owned.get(conversation_id)):
            if isinstance(hint, _changes.Inserted):
                owner.tell(conversation_id, said=True)
            elif isinstance(hint, _changes.Updated):
                owner.saved(conversation_id, hint)
        for topic in self._topics_of(hint):
            try:
                topic.receive(hint)
            except Exception:
                # A document that is not the library's own: its watchers find out when they read it.
                logger.exception("Could not use a change of message %s", hint.message_id)
                topic.mark_stale()

    def _tell_owners(self, hint: _changes.ConversationChanged) -> None:
        before = self._owned.get(hint.conversation_id)
        if before is not None:
            before.tell(hint.conversation_id)
        now = self._owners.get(hint.owner) if hint.owner is not None else None
        if now is not None:
            now.claim(hint.conversation_id)
            now.tell(hint.conversation_id)

    def _topics_of(self, hint: _changes.MessageHint) -> set[Topic[Any, Any]]:
        found: set[Topic[Any, Any]] = set()
        if message := self._messages.get(hint.message_id):
            found.add(message)
        if hint.conversation_id is not None:
            if conversation := self._conversations.get(hint.conversation_id):
                found.add(conversation)
        elif conversation := self._routes.open.get(hint.message_id):
            found.add(conversation)
        else:
            found |= self._routes.reading
        return found

    # The comparison with the database

    async def _check(self) -> None:
        while not self._closing:
            if not (self._topics() or self._signals.messages):
                self._watched.clear()
            await self._watched.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    self._check_interval if self._live else self._poll_interval
                ):
                    await self._check_now.wait()
            self._check_now.clear()
            try:
                await self._check_topics()
            except (PyMongoError, StoreUnavailableError) as error:
                log = logger.debug if is_transient(error) else logger.warning
                log("Could not compare the watched messages with the database: %s", error)
            except (KeyError, TypeError, ValueError):
                # Something in the database is not the library's own: who watches it finds out.
                logger.exception("Could not compare the watched messages with the database")
                self._mark_all_stale()

    def _check_soon(self) -> None:
        """Has a topic that is new compared once it was read: its writer may have died long ago."""

        def check() -> None:
            self._soon = None
            self._check_now.set()

        if self._soon is None and not self._closing:
            loop = asyncio.get_running_loop()
            self._soon = loop.call_later(min(self._poll_interval, self._check_interval), check)

    async def _check_topics(self) -> None:
        """Marks every topic stale that is behind the database: a query or three for all of them."""
        self._checks += 1
        messages = {
            topic: topic.state
            for topic in self._messages.values()
            if topic.state and not (topic.stale or topic.ended)
        }
        conversations = {
            topic: topic.cursor
            for topic in self._conversations.values()
            if topic.cursor and not topic.stale
        }
        keys = {topic.key: state.conversation_id for topic, state in messages.items()}
        for conversation in conversations:
            keys |= dict.fromkeys(conversation.open, conversation.key)
        orphans: list[ObjectId] = []
        written = dict(self._signals.messages)
        keys |= written
        if keys:
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
            orphans = await self._leases.find_expired(leases, keys)
        if conversations:
            ends = {topic.key: cursor.end for topic, cursor in conversations.items()}
            behind = await self._reader.behind(ends)
            there = await self._reader.existing_conversations(list(ends))
            revisions = await self._reader.revisions(list(ends))
            for conversation in conversations:
                if conversation.key not in there:
                    conversation.fail(ConversationNotFoundError(conversation.key))
                if conversation.key in behind:
                    conversation.mark_stale()
                for message_id, saved in revisions.get(conversation.key, {}).items():
                    conversation.saved(message_id, saved.revision, saved.position)

        owners = {topic: since for topic in self._owners.values() if (since := topic.due())}
        if owners:
            changed = await self._owner_reader.changed(
                {topic.key: since for topic, since in owners.items()}
            )
            for owner in owners:
                owner.compare(changed[owner.key])
        for message_id in orphans:
            await self._settle(message_id, keys[message_id])

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
            for topic in self._topics():
                if topic.key in (message_id, conversation_id):
                    topic.mark_stale()

    def _mark_all_stale(self) -> None:
        for topic in self._topics():
            topic.mark_stale()


class _StreamLostError(Exception):
    """The change stream ended for a reason that is no error of the driver's."""
