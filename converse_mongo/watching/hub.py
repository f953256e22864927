"""The hub: the one change stream of a facade, and the topics that it feeds."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import Context
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any, TypeVar

from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo.domain.errors import (
    ConverseClosedError,
    StoreUnavailableError,
    WatchError,
)
from converse_mongo.domain.telemetry import Probe
from converse_mongo.domain.types import WatchMode
from converse_mongo.domain.work import Work, WorkState
from converse_mongo.driver.change_streams import Change, ChangeStream
from converse_mongo.driver.closing import CLOSE_SECONDS
from converse_mongo.driver.deadlines import bounded
from converse_mongo.driver.failures import is_transient, refuses_change_streams
from converse_mongo.driver.retry import backoff
from converse_mongo.store import Store
from converse_mongo.store.reads import Reader
from converse_mongo.watching import changes
from converse_mongo.watching.owner_feed import OwnerFeed
from converse_mongo.watching.pace import Pace
from converse_mongo.watching.reconciler import Reconciler
from converse_mongo.watching.registry import AnyTopic, TopicRegistry
from converse_mongo.watching.topics import Topic

logger = logging.getLogger("converse_mongo")

FIRST_BACKOFF_SECONDS = 0.05
MAX_BACKOFF_SECONDS = 5.0
REFUSED_SECONDS = 600.0
"""Seconds until a refused change stream is requested again, at most."""
LOSSES_IN_A_ROW = 2
"""More lasting failures in a row than this count as a refusal."""
STEADY_SECONDS = 60.0
"""Seconds after which a change stream counts as working, even if it brought no change."""

REOPENING_SECONDS = 1.0
"""Seconds until a lost change stream is opened again, at most. Processes wait at random."""
GRACE_SECONDS = 10.0
"""Seconds that a change stream stays as it is after the last demand for it."""
CHECK_SECONDS = 20.0
"""Seconds that a comparison may take. The limit doubles with each one that fails."""
MAX_CHECK_SECONDS = 160.0
FAULT_SECONDS = 60.0
"""Seconds for which comparisons may fail unexpectedly until watchers are told."""

T = TypeVar("T", bound=AnyTopic)


class Demand(IntEnum):
    """The parts that need a change stream. Each needs all that the one before needs, and more."""

    NOBODY = 0
    WRITERS = 1
    WORKERS = 2
    WATCHERS = 3


@dataclass(frozen=True, slots=True)
class WatchStatistics:
    """The numbers of a hub.

    Attributes:
        watchers: The attached watchers. A running writer does not count, though it needs the
            stream too, to be notified of stops.
        topics: The messages, conversations and owners that are watched.
        streams_opened: The change streams opened so far, one at a time.
        changes: The change events received.
        checks: The comparisons of all topics with the database.
    """

    watchers: int
    topics: int
    streams_opened: int
    changes: int
    checks: int


NO_STREAMS: Mapping[Demand, Callable[[], Awaitable[ChangeStream]]] = MappingProxyType({})


class Hub:
    """Feeds the topics of one pair of collections.

    The hub runs two tasks. One follows the change stream and passes its hints to the topics. The
    other compares the counters of all topics with the database: every ``poll_interval`` while there
    is no change stream, else every ``check_interval``, since a change stream can skip events
    silently. Both only tell topics where to read. What watchers yield is decided in ``topics``.

    The change stream is open while there are watchers or writers. Without watchers it reports only
    what concerns writers.

    Args:
        reader: Reads for the topics.
        open_stream: Opens a change stream for watchers; ``None`` if the server has none.
        store: The store that the running writers use.
        poll_interval: Seconds between two comparisons without a change stream.
        check_interval: Seconds between two comparisons while a change stream is open.
        narrow_streams: Open change streams of less than watchers need.
        sharded: Whether the server is a ``mongos``.
    """

    def __init__(
        self,
        reader: Reader,
        open_stream: Callable[[], Awaitable[ChangeStream]] | None,
        store: Store,
        *,
        poll_interval: float,
        check_interval: float,
        narrow_streams: Mapping[Demand, Callable[[], Awaitable[ChangeStream]]] = NO_STREAMS,
        sharded: bool = False,
    ) -> None:
        self._registry = TopicRegistry(reader)
        self.owner_routes = self._registry.owner_routes
        self._reconciler = Reconciler(self._registry, reader, store)
        self._reader = reader
        self._conversations = reader.conversations.name
        self._store = store
        self._notices = store.notices
        self._open_stream = open_stream
        self._narrow_streams = narrow_streams
        self._poll_interval = poll_interval
        self._check_interval = check_interval
        self._pace = Pace(poll_interval, check_interval, sharded=sharded)
        self._tasks: list[asyncio.Task[None]] = []
        self._openings = store.openings
        for listened in (self._notices, self._openings):
            listened.on_listen = self._ensure_running
            listened.on_leave = self._note_leaving
        self._openings.polls_every = lambda: poll_interval if self._polls else None
        self._needed = asyncio.Event()
        self._demand_changed = asyncio.Event()
        self._soon: asyncio.TimerHandle | None = None
        self._check_now = asyncio.Event()
        self._live = False
        self._limit = CHECK_SECONDS
        self._fails_since: float | None = None
        self._polls = open_stream is None
        self._refusal: tuple[type[Exception], Any] | None = None
        self._failures = self._losses = 0
        self._stream: ChangeStream | None = None
        self._closing = False
        self._failure: BaseException | None = None
        self._streams_opened = self._changes = self._checks = 0

    @property
    def probe(self) -> Probe | None:
        """Who is told of what watchers yield."""
        return self._store.probe

    @property
    def mode(self) -> WatchMode:
        """The way in which watchers get news right now."""
        return WatchMode.POLLING if self._polls else WatchMode.CHANGE_STREAM

    def statistics(self) -> WatchStatistics:
        """The numbers of right now."""
        topics = self._registry.all()
        return WatchStatistics(
            watchers=sum(topic.watchers for topic in topics),
            topics=len({topic.key for topic in topics}),
            streams_opened=self._streams_opened,
            changes=self._changes,
            checks=self._checks,
        )

    def join_message(self, message_id: ObjectId) -> Topic:
        """Adds a watcher to the topic of a message. Call :meth:`leave` in the end."""
        return self._join_topic(self._registry.message(message_id))

    def join_conversation(self, conversation_id: ObjectId) -> Topic:
        """Adds a watcher to the topic of a conversation. Call :meth:`leave` in the end."""
        return self._join_topic(self._registry.conversation(conversation_id))

    def join_owner(self, feed: OwnerFeed) -> None:
        """Attaches the feed of a watcher of an owner; :meth:`leave` it in the end."""
        self._registry.attach(self._join(feed))

    def _join(self, topic: T) -> T:
        topic.watchers += 1
        if self._failure is not None:
            topic.fail(self._failure)
        else:
            self._ensure_running()
        return topic

    def _join_topic(self, topic: Topic) -> Topic:
        if not topic.ready:
            # Compare it after its first read: its writer may have died long ago.
            self._check_within(min(self._poll_interval, self._check_interval), at_random=False)
        return self._join(topic)

    def _demand(self) -> Demand:
        if self._registry.any():
            return Demand.WATCHERS
        if self._openings:
            return Demand.WORKERS
        return Demand.WRITERS if self._notices.messages else Demand.NOBODY

    def _note_leaving(self) -> None:
        self._demand_changed.set()

    def _ensure_running(self) -> None:
        self._needed.set()
        self._demand_changed.set()
        if not self._tasks and not self._closing:
            self._start("check", self._check())
            if self._open_stream is not None:
                self._start("follow", self._follow())

    def leave(self, topic: AnyTopic) -> None:
        """Removes a watcher. A topic without watchers is forgotten at once."""
        topic.watchers -= 1
        if not topic.watchers:
            self._registry.forget(topic)
            self._note_leaving()

    async def aclose(self) -> None:
        """Ends the tasks, closes the change stream, and ends all watchers with an error."""
        self._fail(
            ConverseClosedError("This Converse was closed while the stream was being watched.")
        )
        self._registry.owner_routes.reader.close()
        # A flag beside the cancellation: on Python 3.11, asyncio.wait_for, which PyMongo uses to
        # connect, may swallow a cancellation that comes as it finishes.
        self._closing = True
        for listened in (self._notices, self._openings):
            listened.on_listen = listened.on_leave = None
        if self._soon is not None:
            self._soon.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            # A driver may wait for a server that hangs. Closing the client ends that, too.
            await asyncio.wait(self._tasks, timeout=2 * CLOSE_SECONDS)
        self._tasks.clear()

    def _is_ending(self) -> bool:
        """Returns whether the task has to end, even if a driver swallowed its cancellation."""
        task = asyncio.current_task()
        return self._closing or (task is not None and task.cancelling() > 0)

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        # In its own context: the first watcher may have a deadline or a transaction.
        task = asyncio.create_task(work, name=f"converse_mongo-{name}", context=Context())
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
        self._registry.fail(failure)

    # The change stream

    async def _follow(self) -> None:
        time = asyncio.get_running_loop().time
        while self._open_stream is not None and not self._is_ending():
            demand = await self._wait_for_demand()
            refused = opened = False
            try:
                if demand not in self._narrow_streams:
                    demand = Demand.WATCHERS
                open_stream = self._narrow_streams.get(demand, self._open_stream)
                stream = await bounded(CHECK_SECONDS, open_stream)
            except Exception as error:  # noqa: BLE001 - polling goes on, and it is tried again
                self._losses = self._losses + 1 if _is_lasting(error) else 0
                refused = refuses_change_streams(error) or self._losses > LOSSES_IN_A_ROW
                self._note_loss("Could not open a change stream", error, refused)
            else:
                began, opened, lost = time(), True, True
                self._streams_opened += 1
                self._live, self._polls = True, False
                # The stream does not report what was written before.
                self._registry.mark_all_stale()
                if self._notices.messages:
                    self._check_now.set()
                self._openings.tell_all()
                try:
                    await self._pump(stream, demand)
                    lost = False
                except Exception as error:  # noqa: BLE001 - hints are read again from the database
                    if time() - began >= STEADY_SECONDS:
                        self._note_news()
                    self._losses = self._losses + 1 if _is_lasting(error) else 0
                    refused = self._losses > LOSSES_IN_A_ROW
                    self._note_loss("The change stream was lost", error, refused)
                finally:
                    self._live, self._polls = False, lost
                    await asyncio.shield(_closed(stream))
                if not lost:
                    continue  # another kind of stream is wanted, or none
            longest = backoff(self._failures, FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS)
            shortest = longest / 2
            if opened and not self._failures:
                shortest, longest = 0.0, REOPENING_SECONDS
            if refused:
                shortest, longest = REFUSED_SECONDS / 2, REFUSED_SECONDS
            self._failures += 1
            if not self._is_ending():
                await asyncio.sleep(random.uniform(shortest, longest))

    async def _wait_for_demand(self) -> Demand:
        while (demand := self._demand()) is Demand.NOBODY:
            self._demand_changed.clear()
            await self._demand_changed.wait()
        return demand

    async def _pump(self, stream: ChangeStream, told: Demand) -> None:
        """Reads a stream until it reports too little, or more than is needed.

        Raises:
            Exception: The stream was lost.
        """
        self._stream = stream
        reading = asyncio.create_task(self._read(stream), name="converse_mongo-read")
        fitting = asyncio.create_task(self._while_it_fits(told), name="converse_mongo-fit")
        try:
            await asyncio.wait({reading, fitting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stream = None
            both = {reading, fitting}
            for task in both:
                task.cancel()
            await asyncio.wait(both, timeout=CLOSE_SECONDS)
            failure = None
            if reading.done() and not reading.cancelled():
                failure = reading.exception()
        if failure is not None:
            raise failure

    async def _read(self, stream: ChangeStream) -> None:
        while not self._is_ending() and self._stream is stream:
            for change in await stream.next_batch():
                self._note_news()
                self._take(change)

    async def _while_it_fits(self, told: Demand) -> None:
        time = asyncio.get_running_loop().time
        ends: float | None = None
        while (demand := self._demand()) <= told:
            if demand is told:
                ends = None
            elif ends is None:
                ends = time() + GRACE_SECONDS
            self._demand_changed.clear()
            try:
                async with asyncio.timeout_at(ends):
                    await self._demand_changed.wait()
            except TimeoutError:
                return

    def _note_news(self) -> None:
        self._failures, self._losses, self._refusal = 0, 0, None

    def _note_loss(self, what: str, error: Exception, refused: bool) -> None:
        """Logs that change streams are unavailable for now; a refusal only once."""
        self._polls = True
        self._check_within(min(self._poll_interval, REOPENING_SECONDS / 4))
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
        self._reader.note_time(change.get("clusterTime"))
        try:
            hint = changes.decode(change, self._conversations)
            if hint is not None:
                self._lead(hint)
        except (KeyError, TypeError, ValueError, AttributeError):
            # Not a document of the library. Its id may not even be hashable.
            logger.exception("Could not read a change event; the next check reads what changed")

    def _lead(self, hint: changes.Hint) -> None:
        if isinstance(hint, changes.StreamInvalidated):
            raise _StreamLostError(hint.operation)
        if self._openings:
            self._tell_workers(hint)
        if isinstance(hint, changes.Updated) and (hint.concerns_writer or hint.holder is not None):
            self._notices.hints += 1
            self._notices.tell(hint.message_id, hint.holder)
        elif isinstance(hint, changes.Deleted):
            self._notices.hints += 1
            self._notices.tell(hint.message_id)
        elif isinstance(hint, changes.ConversationChanged) and hint.deleted:
            self._notices.hints += 1
            self._notices.tell_conversation(hint.conversation_id)
        self._registry.take(hint)

    def _tell_workers(self, hint: changes.Hint) -> None:
        if isinstance(hint, changes.Updated):
            if hint.queue is not None:
                self._openings.tell(hint.queue, hint.message_id, hint.due, hint.queued_at)
            elif hint.holder is not None or hint.ended:
                self._openings.tell_gone(hint.message_id, hint.holder)
        elif isinstance(hint, changes.Inserted):
            work = Work.from_stored(hint.document.get("work"))
            if work is not None and work.state is WorkState.QUEUED:
                queued_at = None if work.available_at else work.due
                known = work.available_at, queued_at, hint.document
                self._openings.tell(work.queue, hint.message_id, *known)
            elif work is not None and work.state is WorkState.DELAYED:
                self._openings.tell(work.queue, hint.message_id, work.due)

    # The comparison with the database

    async def _check(self) -> None:
        time = asyncio.get_running_loop().time
        while not self._is_ending():
            if self._demand() is Demand.NOBODY:
                self._needed.clear()
                self._pace.reset()
            await self._needed.wait()
            left = self._reconciler.lease_left
            due = time() + (self._pace.checking(left) if self._live else self._pace.polling())
            while not self._check_now.is_set() and time() < due:
                late = self._live and self._pace.late
                await self._pause(min(due - time(), self._pace.polling() if late else due))
                if late and time() < due and await self._look(all_topics=False):
                    self._pace.note_timely()
            self._check_now.clear()
            await self._look(all_topics=True)

    async def _pause(self, seconds: float) -> None:
        """Waits, unless a comparison is requested meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._check_now.wait()

    async def _look(self, *, all_topics: bool) -> bool:
        """Compares, and returns whether there was news and the stream had reported all of it."""
        try:
            try:
                comparison = self._reconciler
                compare = comparison.run if all_topics else comparison.run_live
                went_on = await bounded(self._limit, compare)
                self._limit, self._fails_since = CHECK_SECONDS, None
            finally:
                self._checks += all_topics
        except (PyMongoError, StoreUnavailableError) as error:
            self._limit = min(self._limit * 2, MAX_CHECK_SECONDS)
            log = logger.debug if is_transient(error) else logger.warning
            log("Could not compare the watched messages with the database: %s", error)
            return False
        except Exception:  # a host without a thread left, say: it may pass
            moment = asyncio.get_running_loop().time()
            self._fails_since = moment if self._fails_since is None else self._fails_since
            if moment - self._fails_since >= FAULT_SECONDS:
                raise
            logger.exception("Could not compare the watched messages with the database")
            return False
        found = self._reconciler.found
        if not self._live:
            self._pace.reset()
            return False
        if found:
            # The stream may just be about to report it.
            await self._pause(self._pace.grace)
        self._pace.judge(untold=any(hints == source.hints for source, hints in found))
        return went_on and not found

    def _check_within(self, seconds: float, *, at_random: bool = True) -> None:
        """Requests a comparison within some seconds; at random, to spread the processes."""

        def check() -> None:
            self._soon = None
            self._check_now.set()

        if self._closing:
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + (random.uniform(0, seconds) if at_random else seconds)
        if self._soon is None or when < self._soon.when():
            if self._soon is not None:
                self._soon.cancel()
            self._soon = loop.call_at(when, check)


def _is_lasting(error: Exception) -> bool:
    """Returns whether an error is likely to come again with each try."""
    return isinstance(error, PyMongoError) and not is_transient(error)


async def _closed(stream: ChangeStream) -> None:
    try:
        await stream.aclose()
    except Exception as error:  # noqa: BLE001 - the server closes the cursor in the end
        logger.warning("Could not close a change stream (%s)", error)


class _StreamLostError(Exception):
    """The change stream ended without an error of the driver."""
