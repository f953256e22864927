"""The worker: looks for queued messages, claims them, and runs an attempt at each."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Self

from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo.domain.errors import (
    ConfigurationError,
    ConverseClosedError,
    ConverseError,
    InvalidInputError,
    StoreUnavailableError,
)
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.queues import AnyQueue, names_of
from converse_mongo.domain.retries import RetryPolicy
from converse_mongo.domain.validation import check_int, check_seconds
from converse_mongo.domain.work import WorkState, check_delay
from converse_mongo.driver.closing import CLOSE_SECONDS
from converse_mongo.store import Store, context_apart
from converse_mongo.working.attempt import Attempt, Limits, Loaded, Outcome, Verdict
from converse_mongo.working.room import Room
from converse_mongo.working.spread import Spread

logger = logging.getLogger("converse_mongo")

SPARE = 4
"""Messages to look at beyond those that there is room for: others claim some first."""
MOST_LOOKED_AT = 64
CLAIMS_AT_ONCE = 8
POLL_SECONDS = 5.0
MOST_HEARD, MOST_GRABBED = 1000, 100
"""The most messages whose claim is yet to come, and of those whose own claim has no news yet."""

TENDINGS_PER_LEASE = 3

POLLS_APART = 4
"""Without a change stream, a worker looks for messages at every so many polls of the watchers."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
"""Seconds to wait after a look that failed."""


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """The numbers of a worker.

    Attributes:
        running: The attempts that run.
        claimed: The messages claimed so far.
        ended: The attempts whose message ended.
        retried: The attempts that another one followed since they failed.
        handed_over: The attempts that another worker goes on with.
        suspended: The attempts whose message waits for people.
        lost: The attempts whose message got another worker, or was deleted.
        looks: The looks for messages in the database.
    """

    running: int = 0
    claimed: int = 0
    ended: int = 0
    retried: int = 0
    handed_over: int = 0
    suspended: int = 0
    lost: int = 0
    looks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """The options of a worker; see ``Converse.worker``."""

    queues: Sequence[str]
    concurrency: int
    limits: Limits
    grace: float
    poll_interval: float

    @classmethod
    def of(
        cls,
        *,
        queues: Iterable[AnyQueue],
        concurrency: int,
        retry: RetryPolicy,
        timeout: float | None,
        silence: float | None,
        start_over: bool,
        grace: float,
        poll_interval: float = POLL_SECONDS,
    ) -> "WorkerOptions":
        """Checks the options that a user gave.

        Raises:
            InvalidInputError: One is out of range.
        """
        if not isinstance(retry, RetryPolicy):
            raise InvalidInputError(f"retry must be a RetryPolicy, got {retry!r}.")
        for name, seconds in (("timeout", timeout), ("silence", silence)):
            if seconds is not None:
                check_seconds(seconds, name)
        return cls(
            queues=names_of(queues),
            concurrency=check_int(concurrency, "concurrency", 1),
            limits=Limits(timeout, silence, retry, start_over),
            grace=check_delay(grace, "grace"),
            poll_interval=check_seconds(poll_interval, "poll_interval"),
        )


class Worker:
    """Generates the answers of queued messages. Made by ``Converse.worker``.

    Use it in ``async with``, and await :meth:`run` inside. Leaving it gives the attempts that run
    ``grace`` seconds to reach a point to go on from, then cancels them, and gives their messages
    back to their queues: other workers go on with them at once.

    Args:
        store: The store.
        load: Loads a message for the application.
        options: The options.
        room: The room for its attempts, if others share it; by default it is the worker's alone.
    """

    def __init__(
        self,
        store: Store,
        load: Callable[[MessageHeader, Attempt], Awaitable[Loaded]],
        options: WorkerOptions,
        room: Room | None = None,
    ) -> None:
        self._store = store
        self._load = load
        self._options = options
        self._room = room or Room(options.concurrency)
        self._attempts: dict[Attempt, asyncio.Task[Outcome]] = {}
        self._wake = asyncio.Event()
        self._heard: dict[ObjectId, tuple[str, asyncio.TimerHandle]] = {}
        self._grabbed: dict[ObjectId, str] = {}
        self._spread = Spread()
        self._claims: set[asyncio.Task[bool]] = set()
        self._missed = False
        self._closing = self._cuts = self._runs = self._takes_last_life = False
        self._claimed = self._looks = 0
        self._outcomes = dict.fromkeys(Outcome, 0)
        self._room.add(self)

    @property
    def closed(self) -> bool:
        """True once it was closed: it claims nothing more."""
        return self._closing

    @property
    def running(self) -> int:
        """The number of messages that are being generated."""
        return sum(not attempt.is_over for attempt in self._attempts)

    @property
    def taken(self) -> int:
        """The number of messages that are being claimed, or are attempted."""
        return len(self._attempts) + len(self._claims)

    @property
    def claiming(self) -> int:
        """The number of messages that are being claimed."""
        return len(self._claims)

    @property
    def attempts(self) -> list[Attempt]:
        """The attempts that run, also those whose message has ended."""
        return list(self._attempts)

    def statistics(self) -> WorkerStatistics:
        """Returns the numbers of right now."""
        count = self._outcomes
        return WorkerStatistics(
            running=len(self._attempts),
            claimed=self._claimed,
            ended=count[Outcome.ENDED],
            retried=count[Outcome.RETRIED],
            handed_over=count[Outcome.HANDED_OVER],
            suspended=count[Outcome.SUSPENDED],
            lost=count[Outcome.LOST],
            looks=self._looks,
        )

    # Hints

    def opened(
        self,
        queue: str,
        message_id: ObjectId,
        due: datetime | None,
        queued_at: datetime | None,
        stored: Mapping[str, Any] | None,
    ) -> None:
        """Hears that a message waits for a worker."""
        if self._closing:
            return
        if message_id in self._heard:  # it may have to wait less long since
            self._heard.pop(message_id)[1].cancel()
        if not self._free:
            self._missed = True
            return
        seconds_until = self._store.leases.clock.seconds_until
        if queued_at is not None and (until := seconds_until(queued_at)) is not None:
            self._spread.note_lateness(max(-until, 0.0))
        left = None if due is None else seconds_until(due)
        seconds = max(left or 0.0, 0.0) + self._spread.wait(queue)
        if seconds > self._options.poll_interval or len(self._heard) >= MOST_HEARD:
            return  # a look finds it
        timer = asyncio.get_running_loop().call_later(
            seconds, self._grab, queue, message_id, stored
        )
        self._heard[message_id] = queue, timer

    def gone(self, message_id: ObjectId, holder: ObjectId | None) -> None:
        """Hears that a message has a worker, or has ended."""
        queue = self._grabbed.pop(message_id, None)
        if message_id in self._heard:
            queue, timer = self._heard.pop(message_id)
            timer.cancel()
        if queue is not None and holder is not None:  # else it may be of another queue
            self._spread.note_claim(queue, holder)

    def look(self) -> None:
        """Hears that there may be messages that no hint told of."""
        self._wake.set()

    def _grab(self, queue: str, message_id: ObjectId, stored: Mapping[str, Any] | None) -> None:
        self._heard.pop(message_id, None)
        self._grabbed[message_id] = queue
        if len(self._grabbed) > MOST_GRABBED:
            del self._grabbed[next(iter(self._grabbed))]
        if self._closing:
            return
        if not self._free:
            self._missed = True
            return
        if stored is None:
            self.look()  # the database tells what is the best now
            return
        self._begin_claim(MessageHeader.from_stored(stored))

    # Looking

    async def run(self) -> None:
        """Generates until it is cancelled or closed.

        Raises:
            ConfigurationError: It is closed already, or runs already.
        """
        if self._closing:
            raise ConfigurationError("This worker is closed: make a new one.")
        if self._runs:
            raise ConfigurationError("This worker runs already: make one for each run().")
        self._runs = True
        failures, task = 0, asyncio.current_task()
        cancelled = task.cancelling() if task is not None else 0
        stop_listening = self._store.openings.listen(self._options.queues, self)
        tending = asyncio.create_task(
            self._tend(), name="converse_mongo-worker-tend", context=context_apart()
        )
        try:
            while not self._closing:
                if task is not None and task.cancelling() > cancelled:
                    raise asyncio.CancelledError  # on Python 3.11 a driver may swallow one
                self._wake.clear()
                try:
                    more = await self._look()
                    failures = 0
                except Exception as error:
                    if self._store.closing:
                        raise
                    failures += 1
                    more = False
                    # Not only what is expected: nobody else would look.
                    logger.warning(
                        "Could not look for queued messages (%s)",
                        error,
                        exc_info=not isinstance(error, ConverseError | PyMongoError),
                    )
                if more:
                    continue
                await self._wait(failures)
        finally:
            self._runs = False
            tending.cancel()
            stop_listening()
            for _, timer in self._heard.values():
                timer.cancel()
            self._heard.clear()

    async def _wait(self, failures: int) -> None:
        seconds, polls_every = self._options.poll_interval, self._store.openings.polls_every()
        if polls_every is not None:
            seconds = min(seconds, POLLS_APART * polls_every)
        seconds *= random.uniform(0.75, 1.25)
        if failures:
            longest = FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 10)
            seconds = random.uniform(0.5, 1) * min(longest, LONGEST_PAUSE_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _tend(self) -> None:
        """Looks for messages of workers that died, and for places that nobody holds.

        One process of all does so in each interval.
        """
        store = self._store
        interval = store.options.lease / TENDINGS_PER_LEASE
        while self._runs:  # on Python 3.11 a driver may swallow a cancellation
            await asyncio.sleep(interval * random.uniform(0.5, 1))
            if not await _tried(partial(store.key_places.begin_sweep, interval)):
                continue
            for work in (store.key_places.sweep, store.recovery.recover_stale):
                await _tried(work)  # one may fail each time

    @property
    def _free(self) -> int:
        return self._room.free

    @property
    def _has_last_life(self) -> bool:
        """True if a message runs here, or is being claimed, that one more crash would end."""
        return self._takes_last_life or any(attempt.work.is_last_life for attempt in self._attempts)

    async def _look(self) -> bool:
        """Looks once, and returns whether there is more to look at now."""
        free = self._free
        self._missed = not free
        if not free:
            return False
        self._looks += 1
        limit = min(free + SPARE, MOST_LOOKED_AT)
        # It takes no second one on its last life, so that it has to look behind those.
        found = await self._store.jobs.due(
            self._options.queues, limit, last_lives=not self._has_last_life
        )
        claimable = [each for each in found if each.work and each.work.state is WorkState.QUEUED]
        won = 0
        while claimable and self._free > 0 and not self._closing:
            count = min(len(claimable), CLAIMS_AT_ONCE, self._free)
            claims = [self._begin_claim(claimable.pop(0)) for _ in range(count)]
            won += sum(await asyncio.gather(*map(asyncio.shield, claims)))
        for state in found:
            await self._move(state)
        if not self._free:
            self._missed = True  # others that share the room may free some
        return won > 0 and len(found) >= limit and self._free > 0

    async def _move(self, state: MessageHeader) -> None:
        """Has a message go on whose delay is over, or whose calls have expired.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        store = self._store
        try:
            if state.work is not None and state.work.state is WorkState.DELAYED:
                await store.jobs.undelay(state)
            elif state.work is not None and state.work.state is WorkState.WAITING:
                queue = store.queue((state.message_id, state.log_id))
                await store.calls.expire(queue, state)
        except (StoreUnavailableError, ConverseClosedError):
            raise
        except Exception:
            # It may fail at each look, and nobody would ever look at those behind it.
            logger.exception("Message %s cannot go on; it is tried again", state.message_id)
            await store.jobs.postpone(state)

    def _begin_claim(self, state: MessageHeader) -> "asyncio.Task[bool]":
        """Claims a message in a task of its own: a claim that is cancelled may have succeeded."""
        task = asyncio.create_task(
            self._claim(state), name="converse_mongo-worker-claim", context=context_apart()
        )
        self._claims.add(task)
        task.add_done_callback(self._claim_ended)
        return task

    def _claim_ended(self, task: "asyncio.Task[bool]") -> None:
        self._claims.discard(task)
        self._room.note()  # if the claim was lost

    def note_room(self) -> None:
        """Hears that there may be room for messages that it had none for."""
        if self._missed and self._free:
            self.look()

    async def _claim(self, state: MessageHeader) -> bool:
        """Claims a message and starts the attempt; returns whether this worker has it."""
        assert state.work is not None  # noqa: S101 - it was found in a queue
        if not state.work.is_last_life:
            return await self._take(state)
        if self._has_last_life:
            return False  # if it crashes this process, it shall not end another one
        self._takes_last_life = True
        try:
            return await self._take(state)
        finally:
            self._takes_last_life = False

    async def _take(self, state: MessageHeader) -> bool:
        holder = self._spread.new_holder()
        try:
            claimed = await self._store.jobs.claim(state, holder)
        except (ConverseError, PyMongoError) as error:
            logger.warning("Message %s could not be claimed (%s)", state.message_id, error)
            return False
        if claimed is None:
            return False
        self.take_on(claimed)
        return True

    def take_on(
        self, state: MessageHeader, load: Callable[[Attempt], Awaitable[Loaded]] | None = None
    ) -> "tuple[Attempt, asyncio.Task[Outcome]]":
        """Starts an attempt at a message that this process has claimed.

        Args:
            state: The message as it was claimed.
            load: Loads it for the application; ``None`` to load it from the database.

        Returns:
            The attempt, and the task in which it runs.
        """
        self._claimed += 1
        attempt = Attempt(
            self._store, state, load or partial(self._load, state), self._options.limits
        )
        if self._closing:
            attempt.shut_down()
        if self._cuts:
            attempt.cut(Verdict.SHUT_DOWN)  # its claim took longer than the worker
        probe = self._store.probe
        running = (
            attempt.run()
            if probe is None
            else probe.attempt(state, attempt.run, lambda: attempt.trouble)
        )
        task = asyncio.create_task(
            running,
            name=f"converse_mongo-worker-{state.message_id}",
            context=context_apart(),
        )
        self._attempts[attempt] = task
        task.add_done_callback(lambda done: self._finished(attempt, done))
        return attempt, task

    def _finished(self, attempt: Attempt, task: asyncio.Task[Outcome]) -> None:
        del self._attempts[attempt]
        self.look()
        self._room.note()
        if task.cancelled():
            self._outcomes[Outcome.HANDED_OVER] += 1
        elif (error := task.exception()) is not None:
            logger.critical("The attempt at message %s crashed", attempt.message_id, exc_info=error)
        else:
            self._outcomes[task.result()] += 1

    # The end

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    def close(self) -> None:
        """Claims nothing more, and tells the attempts that run to hand over soon."""
        self._closing = True
        self._wake.set()
        for attempt in self._attempts:
            attempt.shut_down()

    async def aclose(self) -> None:
        """Claims nothing more, and returns once all attempts have ended or were handed over.

        It takes ``grace`` seconds, and then a few more while MongoDB does not answer. A message
        that is left goes back to its queue once its lease has run out. If this is cancelled, the
        grace ends at once.
        """
        await self.drain(self._options.grace)

    async def drain(self, grace: float) -> None:
        """Does what :meth:`aclose` does, with another time of grace in seconds."""
        self.close()
        try:
            if self._claims:
                await asyncio.wait(set(self._claims), timeout=CLOSE_SECONDS)
            if self._attempts:
                await asyncio.wait(set(self._attempts.values()), timeout=grace)
        finally:
            await self._cut()

    async def _cut(self) -> None:
        self._cuts = True
        for attempt in list(self._attempts):
            attempt.cut(Verdict.SHUT_DOWN)
        if self._attempts:
            await asyncio.wait(set(self._attempts.values()), timeout=CLOSE_SECONDS)
        left = list(self._attempts)
        if left:
            logger.warning(
                "%d attempts were left when the worker was closed, and go back to their queues "
                "once their leases have run out: %s",
                *(len(left), ", ".join(str(attempt.message_id) for attempt in left)),
            )


async def _tried(work: Callable[[], Awaitable[Any]]) -> Any:
    """Returns what work does for the queues; ``None`` if it failed, since it is tried again."""
    try:
        return await work()
    except (ConverseError, PyMongoError) as error:
        logger.warning("Could not look after the queues (%s); it is tried again", error)
    except Exception:
        logger.exception("Could not look after the queues; it is tried again")
    return None
