"""The hub: the one change stream of a facade, and all that it feeds."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo import _changes
from converse_mongo._changes import OwnerKey
from converse_mongo._comparison import Comparison
from converse_mongo._conversation_topic import ConversationTopic
from converse_mongo._driver import (
    CLOSE_SECONDS,
    Change,
    ChangeFeed,
    is_transient,
    refuses_change_streams,
)
from converse_mongo._owner_topic import OwnerTopic
from converse_mongo._reader import Reader
from converse_mongo._topics import MessageTopic
from converse_mongo._watched import AnyTopic, Watched
from converse_mongo.errors import ConverseClosedError, StoreUnavailableError, WatchError
from converse_mongo.store import Store
from converse_mongo.types import WatchMode

__all__ = ["Hub", "HubStatistics"]

logger = logging.getLogger("converse_mongo")

FIRST_BACKOFF_SECONDS = 0.05
MAX_BACKOFF_SECONDS = 5.0
REFUSED_SECONDS = 600.0
"""The longest time until a change stream that was refused is asked for again."""
LOSSES_IN_A_ROW = 2
"""How many failures that no retry cures may come in a row before they count as a refusal."""
STEADY_SECONDS = 60.0
"""How long a change stream has to last, with no change in it, to count as one that works."""

T = TypeVar("T", bound=AnyTopic)


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
        self._watched = Watched(reader)
        self._comparison = Comparison(self._watched, reader, store)
        self._conversations = reader.conversations.name
        self._signals = store.signals
        self._open_feed = open_feed
        self._poll_interval = poll_interval
        self._check_interval = check_interval
        self._tasks: list[asyncio.Task[None]] = []
        self._signals.on_listen = self._ensure_running
        self._needed = asyncio.Event()
        self._soon: asyncio.TimerHandle | None = None
        self._check_now = asyncio.Event()
        self._live = False
        self._polls = open_feed is None
        self._refusal: tuple[type[Exception], Any] | None = None
        self._closing = False
        self._failure: BaseException | None = None
        self._streams_opened = self._changes = self._checks = 0

    @property
    def mode(self) -> WatchMode:
        """How watchers learn of news right now."""
        return WatchMode.POLLING if self._polls else WatchMode.CHANGE_STREAM

    def statistics(self) -> HubStatistics:
        """What there is to do right now."""
        topics = self._watched.all()
        return HubStatistics(
            watchers=sum(topic.watchers for topic in topics),
            topics=len(topics),
            streams_opened=self._streams_opened,
            changes=self._changes,
            checks=self._checks,
        )

    def join_message(self, message_id: ObjectId) -> MessageTopic:
        """The topic of a message, with one more watcher; :meth:`leave` it in the end."""
        topic = self._join(self._watched.message(message_id))
        self._check_soon(topic)
        return topic

    def join_conversation(self, conversation_id: ObjectId) -> ConversationTopic:
        """The topic of a conversation, with one more watcher; :meth:`leave` it in the end."""
        topic = self._join(self._watched.conversation(conversation_id))
        self._check_soon(topic)
        return topic

    def join_owner(self, owner: OwnerKey) -> OwnerTopic:
        """The topic of an owner, with one more watcher; :meth:`leave` it in the end."""
        return self._join(self._watched.owner(owner))

    def expect(self, conversation_id: ObjectId, end: int) -> None:
        """Has a watched conversation read if it has not heard of all messages before ``end``."""
        topic = self._watched.conversations.get(conversation_id)
        if topic is not None and topic.cursor is not None and topic.cursor.end < end:
            topic.mark_stale()

    def _join(self, topic: T) -> T:
        topic.watchers += 1
        if self._failure is not None:
            topic.fail(self._failure)
        else:
            self._ensure_running()
        return topic

    def _ensure_running(self) -> None:
        self._needed.set()
        if not self._tasks and not self._closing:
            self._start("check", self._check())
            if self._open_feed is not None:
                self._start("follow", self._follow())

    def leave(self, topic: AnyTopic) -> None:
        """Takes a watcher away; a topic that nobody watches is forgotten at once."""
        topic.watchers -= 1
        if not topic.watchers:
            self._watched.forget(topic)

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
        self._watched.fail(failure)

    # The change stream

    async def _follow(self) -> None:
        failures = losses = 0
        time = asyncio.get_running_loop().time
        while self._open_feed is not None and not self._closing:
            refused = False
            try:
                feed = await self._open_feed()
            except Exception as error:  # noqa: BLE001 - polling goes on, and it is tried again
                losses = losses + 1 if _is_lasting(error) else 0
                refused = refuses_change_streams(error) or losses > LOSSES_IN_A_ROW
                self._note_loss("Could not open a change stream", error, refused)
            else:
                began = time()
                self._streams_opened += 1
                self._live, self._polls = True, False
                # What was written before the stream opened is read, not hoped for.
                self._watched.mark_all_stale()
                try:
                    while not self._closing:
                        for change in await feed.next_batch():
                            failures, losses, self._refusal = 0, 0, None
                            self._take(change)
                except Exception as error:  # noqa: BLE001 - hints are read again from the database
                    if time() - began >= STEADY_SECONDS:
                        failures, losses, self._refusal = 0, 0, None
                    losses = losses + 1 if _is_lasting(error) else 0
                    refused = losses > LOSSES_IN_A_ROW
                    self._note_loss("The change stream was lost", error, refused)
                finally:
                    self._live, self._polls = False, True
                    self._check_now.set()
                    await asyncio.shield(feed.aclose())
            longest = min(FIRST_BACKOFF_SECONDS * 2 ** min(failures, 10), MAX_BACKOFF_SECONDS)
            if refused:
                longest = REFUSED_SECONDS
            failures += 1
            await asyncio.sleep(random.uniform(longest / 2, longest))

    def _note_loss(self, what: str, error: Exception, refused: bool) -> None:
        """Logs that there is no change stream for now; a refusal only once."""
        self._polls = True
        self._check_now.set()
        if not refused:
            logger.warning("%s (%s). Watchers poll until a new one is open", what, error)
            return
        known, self._refusal = self._refusal, (type(error), getattr(error, "code", None))
        logger.log(
            logging.DEBUG if known == self._refusal else logging.WARNING,
            "%s (%s). This is a refusal: watchers poll, and the next try is made after %d s",
            *(what, error, REFUSED_SECONDS / 2),
        )

    def _take(self, change: Change) -> None:
        self._changes += 1
        try:
            hint = _changes.decode(change, self._conversations)
            if hint is not None:
                self._lead(hint)
        except (KeyError, TypeError, ValueError, AttributeError):
            # Not the library's own: it may have an id that no dictionary takes.
            logger.exception("Could not read a change event; the next check reads what changed")

    def _lead(self, hint: _changes.Hint) -> None:
        if isinstance(hint, _changes.StreamInvalidated):
            raise _StreamLostError(hint.operation)
        if isinstance(hint, _changes.Updated) and (hint.concerns_writer or hint.holder is not None):
            self._signals.tell(hint.message_id, hint.holder)
        self._watched.take(hint)

    # The comparison with the database

    async def _check(self) -> None:
        while not self._closing:
            if not (self._watched.all() or self._signals.messages):
                self._needed.clear()
            await self._needed.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    self._check_interval if self._live else self._poll_interval
                ):
                    await self._check_now.wait()
            self._check_now.clear()
            try:
                self._checks += 1
                await self._comparison.run()
            except (PyMongoError, StoreUnavailableError) as error:
                log = logger.debug if is_transient(error) else logger.warning
                log("Could not compare the watched messages with the database: %s", error)

    def _check_soon(self, topic: MessageTopic | ConversationTopic) -> None:
        """Has a topic that is new compared once it was read: its writer may have died long ago."""
        if topic.ready:
            return

        def check() -> None:
            self._soon = None
            self._check_now.set()

        if self._soon is None and not self._closing:
            loop = asyncio.get_running_loop()
            self._soon = loop.call_later(min(self._poll_interval, self._check_interval), check)


def _is_lasting(error: Exception) -> bool:
    """Whether MongoDB says something that it may say again each time."""
    return isinstance(error, PyMongoError) and not is_transient(error)


class _StreamLostError(Exception):
    """The change stream ended for a reason that is no error of the driver's."""
