"""Recovery: the end of orphans, and the merge of chunks that are due."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context
from typing import Any

from bson import ObjectId

from converse_mongo.domain.errors import ConverseClosedError, StoreUnavailableError
from converse_mongo.domain.events import FinalEvent
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.validation import now
from converse_mongo.store.collections import Collections
from converse_mongo.store.leases import LOOKS_KEPT, Leases
from converse_mongo.store.pages import Pages
from converse_mongo.store.reads import Found
from converse_mongo.store.sweeps import Sweeps

logger = logging.getLogger("converse_mongo")

ROUNDS = 5
"""The most looks: two, and more if a call failed meanwhile."""
MARGIN_SECONDS = 0.01
TEND_SECONDS = 600.0
"""The least time between two merges in the background, in seconds."""


async def pause(seconds: float) -> None:
    """Waits until ``seconds`` have passed."""
    await asyncio.sleep(seconds + MARGIN_SECONDS)


class Recovery:
    """Ends orphans, and merges chunks that are due."""

    def __init__(
        self, collections: Collections, leases: Leases, pages: Pages, sweeps: Sweeps
    ) -> None:
        self._collections = collections
        self._leases = leases
        self._pages = pages
        self._sweeps = sweeps
        self._next_tending = 0.0
        self.tending: asyncio.Task[None] | None = None

    async def recover_stale(self, *, complete_partial: bool = False) -> list[FinalEvent]:
        """Ends all messages whose lease has expired, and returns their final events.

        It looks at them twice, with one wait for all of them until the second look is due.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        recovered: list[FinalEvent] = []
        seen: dict[ObjectId, float] | None = None
        for further in reversed(range(ROUNDS)):
            waiting: dict[ObjectId, float] = {}
            async for state in self._each(self._collections.reader.leased_anywhere):
                if seen is not None and state.message_id not in seen:
                    continue
                try:
                    found = await self._leases.settle_if_expired(
                        state, complete_partial=complete_partial
                    )
                except (StoreUnavailableError, ConverseClosedError):
                    raise
                except Exception:
                    logger.exception("Message %s could not be ended", state.message_id)
                    continue
                if found.status.is_final:
                    recovered.append(found.ended())
                    continue
                seconds = self._leases.next_look(found)
                if seconds is not None and len(waiting) < LOOKS_KEPT:
                    waiting[state.message_id] = seconds
            if not (waiting and further):
                break
            await pause(max(waiting.values()))
            seen = waiting
        return recovered

    async def compact_due(self) -> int:
        """Merges the chunks whose retention is over; returns the number of messages.

        It also finishes redactions whose process died.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        self._next_tending = asyncio.get_running_loop().time() + TEND_SECONDS
        compacted = 0
        async for state in self._each(self._collections.reader.to_compact, now()):
            try:
                if state.redactions:
                    await self._sweeps.sweep(state.key)
                    if state.merges_at is None or state.merges_at > now():
                        continue
                compacted += await self._pages.compact(state)
            except (StoreUnavailableError, ConverseClosedError):
                raise
            except Exception:
                logger.exception("The chunks of message %s were not merged", state.message_id)
        return compacted

    async def _each(
        self, read: Callable[..., Awaitable[Found]], *arguments: Any
    ) -> AsyncIterator[MessageHeader]:
        what, after = "look for messages that were left behind", None
        while True:
            states, after = await self._collections.call(read, after, *arguments, what=what)
            for state in states:
                yield state
            if after is None:
                return

    def tend(self) -> None:
        """Merges the chunks that are due in the background, unless that was done a moment ago.

        Who starts messages whose chunks are to be merged calls it, so that the database stays small
        without a sweeper, and processes that only read write nothing.
        """
        store, running = self._collections, self.tending is not None and not self.tending.done()
        moment = asyncio.get_running_loop().time()
        if running or moment < self._next_tending or store.closing or store.session is not None:
            return
        self.tending = asyncio.create_task(
            self._tend(), name="converse_mongo-tend", context=Context()
        )

    async def _tend(self) -> None:
        try:
            await self.compact_due()
        except Exception:
            # The next one does what this one did not.
            logger.warning("Chunks that are due were not merged; it is tried again", exc_info=True)

    async def sweep(self, interval: float) -> None:
        """Does both every ``interval`` seconds until the store is closed."""
        task = asyncio.current_task()
        while not (self._collections.closing or (task and task.cancelling())):
            for work in (self.recover_stale, self.compact_due):
                try:
                    await work()
                except Exception:
                    # The next sweep does what this one did not.
                    logger.warning("A sweep failed; the next one continues", exc_info=True)
            # On Python 3.11 a driver may swallow a cancellation.
            if not (self._collections.closing or (task and task.cancelling())):
                await asyncio.sleep(interval)
