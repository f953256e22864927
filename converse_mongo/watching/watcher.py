"""Watchers: the asynchronous iterators that an application follows events with."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar, cast

from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo.domain.cursors import NOW, ConversationCursor
from converse_mongo.domain.errors import InvalidCursorError
from converse_mongo.domain.events import (
    ChunkReceived,
    ConversationEvent,
    FinalEvent,
    MessageSnapshot,
    WorkEvent,
)
from converse_mongo.driver.deadlines import bounded
from converse_mongo.driver.failures import is_transient
from converse_mongo.driver.retry import random_pause
from converse_mongo.watching.doubts import OutdatedReadError
from converse_mongo.watching.hub import Hub
from converse_mongo.watching.kinds import KindFilter
from converse_mongo.watching.message_topic import MessageTopic
from converse_mongo.watching.topics import Topic

logger = logging.getLogger("converse_mongo")

E = TypeVar("E", bound=ConversationEvent | MessageSnapshot)
T = TypeVar("T")

FIRST_RETRY_SECONDS = 0.02
MAX_RETRY_SECONDS = 2.0
MAX_OUTDATED_SECONDS = 0.3
READ_SECONDS = 10.0
"""Seconds that a read may take. The limit doubles with each read that fails."""
MAX_READ_SECONDS = 80.0
_BEHIND = -1
_NEVER = datetime.max.replace(tzinfo=UTC)


class Readable(Protocol):
    """A topic, as far as :func:`retry_reads` has to know it."""

    @property
    def failure(self) -> BaseException | None:
        """The error to raise, once watching cannot go on."""


class Watcher(Generic[E]):
    """An asynchronous iterator over the events of a message or a conversation.

    Use it in a plain ``async for``, or as ``async with ... as events`` to mark where watching ends.
    A watcher holds no queue. It is a position in a window of events that all watchers of the same
    topic share, and it reads from the database what has left the window. It may be as slow as it
    likes. Closing it, dropping it or cancelling its wait releases everything at once. After a
    cancelled or timed-out wait it continues where it was: no chunk, message or end is lost. Only a
    :class:`MessageUpdated` may be.

    Iterating raises:
        NotFoundError: The message or conversation does not exist, or was deleted.
        InvalidCursorError: ``after`` is not a cursor of this stream.
        ConverseClosedError: The facade was closed before the stream ended.
        WatchError: Another program wrote to the message, or the hub crashed.
        PyMongoError: MongoDB refused a read. Lost connections are retried.
    """

    __slots__ = (
        "__weakref__",
        "_after",
        "_batch",
        "_closed",
        "_filter",
        "_goal",
        "_hub",
        "_index",
        "_iterating",
        "_join",
        "_key",
        "_last",
        "_news",
        "_probe",
        "_since",
        "_snapshot",
        "_start",
        "_topic",
        "_work_seen",
    )

    def __init__(
        self,
        hub: Hub,
        join: Callable[[Hub, ObjectId], Topic],
        key: ObjectId,
        after: object,
        kinds: KindFilter | None = None,
        *,
        snapshot: bool = False,
    ) -> None:
        self._hub = hub
        self._probe = hub.probe
        self._since = _NEVER
        self._join = join
        self._key = key
        self._after = after
        self._filter = kinds
        self._snapshot = snapshot
        self._start: ConversationCursor | None = None
        self._last: E | None = None
        self._topic: Topic | None = None
        self._index = _BEHIND
        self._goal: tuple[ConversationCursor, int] | None = None
        self._batch: deque[E] | None = None
        self._news: deque[WorkEvent] = deque()
        self._work_seen = 0
        self._iterating = False
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self, *, wait: bool = True) -> E:
        if self._iterating:
            raise RuntimeError("This watcher is being iterated already: make one for each task.")
        if self._closed:
            raise StopAsyncIteration
        self._iterating = True
        try:
            # One coroutine that calls little: it runs for each event of each watcher.
            topic = self._topic or await self._enter()
            while True:
                if self._closed:
                    raise StopAsyncIteration
                if self._batch:
                    event = self._batch.popleft()
                    if self._filter is None:
                        break
                elif topic.failure is not None:
                    raise topic.failure
                elif (found := topic.window.get(self._index)) is not None:
                    self._index += 1
                    event = cast(E, found)
                    if self._filter is None:
                        break
                else:
                    window = topic.window
                    if self._index < window.first:
                        await self._read_behind(topic)
                    elif topic.ended:
                        self._index = window.head - 1  # it asked for more than there is: the end
                    elif topic.stale:
                        await self._catch_up(topic)
                    elif self._news or topic.work.version > self._work_seen:
                        news = self._next_news(topic)
                        if news is not None:
                            return cast(E, news)  # it has no place among the others
                    elif not wait:
                        return cast(E, None)
                    else:
                        waiter = window.waiter()
                        try:
                            await waiter
                        except BaseException:
                            window.forget(waiter)
                            raise
                    continue
                shown = await self._filtered(topic, event)
                if shown is not None:
                    self._last, event = event, shown
                    break
                self._last = event
            if self._filter is None:
                self._last = event
            if topic.ended and isinstance(event, FinalEvent):
                await self.aclose()
            if self._probe is not None and isinstance(event, ChunkReceived):
                created_at = event.chunk.created_at
                if created_at >= self._since:  # else it is older than the watching
                    self._probe.delivered(created_at)
        except BaseException:
            # The exception's traceback may live long and would keep the topic alive.
            self._leave()
            raise
        finally:
            self._iterating = False
        return event

    def _next_news(self, topic: Topic) -> WorkEvent | None:
        """Returns the next news of queued messages."""
        if not self._news:
            self._news.extend(topic.work.since(self._work_seen))
            self._work_seen = topic.work.version
        return self._news.popleft() if self._news else None

    async def poll(self) -> E | None:
        """The next event if there is one, else ``None``. It reads, but does not wait for news.

        Raises ``StopAsyncIteration`` at the end, and whatever iterating raises.
        """
        return await self.__anext__(wait=False)

    async def __aenter__(self) -> Self:
        """Attaches, so that ``after="now"`` means this moment. Raises what iterating raises."""
        if self._topic is not None:
            return self  # entered before, or iterating
        try:
            await self._enter()
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the watching. Further iteration ends at once."""
        self._closed = True
        if self._iterating and self._topic is not None:
            self._topic.window.wake()  # another task waits in it
        self._leave()

    def detach(self) -> None:
        """Releases all that it holds. Iterating again continues where it was.

        Do not call it while another task iterates: :meth:`aclose` ends that.
        """
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        topic, self._topic = self._topic, None
        self._batch = None
        if topic is not None:
            self._hub.leave(topic)

    async def _enter(self) -> Topic:
        topic = self._topic = self._join(self._hub, self._key)
        if self._probe is not None:
            self._since = datetime.now(UTC)
        if topic.stale or not topic.ready:
            await self._catch_up(topic)
        if topic.failure is not None:
            raise topic.failure
        first: list[E] = []
        if self._snapshot and self._last is None:
            found = await retry_reads(topic, cast(MessageTopic, topic).snapshot)
            self._start, first = topic.behind(found), [cast(E, found)]
        elif self._start is None:
            self._start = await retry_reads(topic, lambda: topic.start(self._after))
        cursor = self._cursor(topic)
        try:
            await retry_reads(topic, lambda: topic.enter(cursor))
        except InvalidCursorError:
            if self._after != NOW or self._last is not None:
                raise
            self._start = cursor = topic.here()[0]  # a failover rolled back what there was
        index = topic.locate(cursor)
        self._index = _BEHIND if index is None else index
        self._goal = None
        self._batch = deque(first)
        self._news.clear()
        self._work_seen = 0
        return topic

    async def _filtered(self, topic: Topic, event: E) -> E | None:
        """Returns what passes the filter; until it does, the event counts as not yielded."""
        if self._filter is None or isinstance(event, FinalEvent):
            return event
        if isinstance(event, MessageSnapshot):
            return cast(E, self._filter.snapshot(event))
        assert isinstance(event, ChunkReceived)  # noqa: S101 - watch_message has no other events
        chunk = await self._filter(
            event.chunk, lambda part: retry_reads(topic, lambda: topic.identity(event, part))
        )
        if chunk is event.chunk:
            return event
        return None if chunk is None else cast(E, replace(event, chunk=chunk))

    def _cursor(self, topic: Topic) -> ConversationCursor:
        if self._last is None:
            return cast(ConversationCursor, self._start)
        return topic.behind(self._last)

    async def _read_behind(self, topic: Topic) -> None:
        """Reads a batch of events that left the window, or finds its index in the window."""
        cursor = self._cursor(topic)
        if self._goal is not None and cursor == self._goal[0]:
            # The index then, not now: saves of messages move the window, and no cursor shows them.
            index: int | None = self._goal[1]
        else:
            index = topic.locate(cursor)
        if index is None:
            # The window moves on meanwhile: read up to where it is now.
            self._goal = self._goal or topic.here()
            goal, goal_index = self._goal
            if cursor != goal:
                events = await retry_reads(topic, lambda: topic.read(cursor, goal))
                if events:
                    self._batch = deque(cast(Sequence[E], events))
                    return
            index = goal_index
        self._index = index
        self._goal = None

    async def _catch_up(self, topic: Topic) -> None:
        await retry_reads(topic, topic.catch_up)


async def retry_reads(topic: Readable, read: Callable[[], Awaitable[T]]) -> T:
    """Awaits ``read()``, and repeats it while MongoDB cannot be reached.

    A deadline that the caller set with ``pymongo.timeout()`` is ignored: watching has no end, and
    other watchers may wait for the same read.
    """
    limit, before = READ_SECONDS, _cancellations()
    for attempt in count(1):
        try:
            found = await bounded(limit, read, own=True)
            if _cancellations() > before:
                # On Python 3.11, asyncio.wait_for, which PyMongo uses, may swallow a cancellation.
                raise asyncio.CancelledError
            return found
        except PyMongoError as error:
            if topic.failure is not None:
                raise topic.failure from error
            if not is_transient(error):
                raise
            logger.warning("Could not read the watched documents (%s); retrying", error)
            longest, limit = MAX_RETRY_SECONDS, min(limit * 2, MAX_READ_SECONDS)
        except OutdatedReadError:
            logger.debug("A read was older than what is known; reading again")
            longest = MAX_OUTDATED_SECONDS
        if topic.failure is not None:
            raise topic.failure
        await asyncio.sleep(random_pause(attempt, FIRST_RETRY_SECONDS, longest))
    raise AssertionError("unreachable")


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task else 0
