"""The store: all that is done to one set of collections."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from converse_mongo.domain.errors import ConverseClosedError, ConverseError
from converse_mongo.driver.collections import Collection
from converse_mongo.store.appends import Appends
from converse_mongo.store.collections import Collections, Options
from converse_mongo.store.ends import Ends
from converse_mongo.store.handlers import Handlers
from converse_mongo.store.leases import Leases
from converse_mongo.store.notices import WriterNotices
from converse_mongo.store.pages import Pages
from converse_mongo.store.positions import Positions
from converse_mongo.store.recovery import Recovery
from converse_mongo.store.saves import Saves

__all__ = ["Store"]

GIVE_UP_SECONDS, GIVE_UP_TRIES = 0.5, 4
"""How long to wait for writers that are told to give up, and how often they are told."""


class RunningWriter(Protocol):
    """A writer, as the store knows it."""

    async def shut_down(self) -> None:
        """Stores what was written and takes no more."""

    def give_up(self, error: ConverseError) -> None:
        """Ends at once; what is not stored is in its own error."""


class Store(Collections):
    """The collections of one database, and all that is done to them.

    Attributes:
        appends: Chunks in at the end of a streaming message.
        ends: A message leaves ``streaming``.
        leases: Who may write to a message, and what becomes of one whose writer died.
        paging: Chunks out of a long message.
        positions: Messages into a conversation.
        recovery: What was left behind.
        saves: Fields that the application changed.
        signals: What running writers want to hear.
        writers: The running writers themselves.
    """

    def __init__(
        self,
        messages: Collection,
        conversations: Collection,
        *,
        pages: Collection | None = None,
        committed: Collection | None = None,
        handlers: Handlers | None = None,
        options: Options | None = None,
    ) -> None:
        super().__init__(
            messages,
            conversations,
            pages=pages,
            committed=committed,
            handlers=handlers,
            options=options,
        )
        self.notices = WriterNotices()
        self.writers: set[RunningWriter] = set()
        self.paging = Pages(self)
        self.appends = Appends(self, self.paging)
        self.ends = Ends(self, self.paging)
        self.leases = Leases(self, self.ends)
        self.positions = Positions(self)
        self.recovery = Recovery(self, self.leases, self.paging)
        self.saves = Saves(self)

    async def aclose(self, timeout: float) -> None:  # noqa: ASYNC109 - writers then give up
        """Lets running writers store what they have taken, and refuses calls from then on.

        Args:
            timeout: Seconds until writers give up what they could not store.
        """
        self.closing = True
        running = {
            asyncio.create_task(writer.shut_down(), name="converse_mongo-writer-shut-down"): writer
            for writer in self.writers
        }
        try:
            if running:
                await asyncio.wait(running, timeout=timeout)
        finally:
            self.closed = True
            await self._give_up(running)
        for task in running:
            if task.done() and not task.cancelled():
                task.result()

    async def _give_up(self, running: "Mapping[asyncio.Task[None], RunningWriter]") -> None:
        error = ConverseClosedError(
            "This Converse was closed before MongoDB had answered. What was not stored until then "
            "is in the 'text' of the writer's error."
        )
        # Again, since on Python 3.11 a driver may swallow a cancellation.
        for _ in range(GIVE_UP_TRIES):
            late = {task for task in running if not task.done()}
            if not late:
                return
            for task in late:
                running[task].give_up(error)
            await asyncio.wait(late, timeout=GIVE_UP_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.wait(late, timeout=GIVE_UP_SECONDS)
