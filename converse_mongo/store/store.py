"""The store: all that is done to one set of collections."""

import asyncio
from typing import Protocol

from converse_mongo._driver import Collection
from converse_mongo._handlers import Handlers
from converse_mongo._signals import Signals
from converse_mongo.store.appends import Appends
from converse_mongo.store.calls import Calls, Options
from converse_mongo.store.ends import Ends
from converse_mongo.store.leases import Leases
from converse_mongo.store.pages import Pages
from converse_mongo.store.positions import Positions
from converse_mongo.store.recovery import Recovery
from converse_mongo.store.saves import Saves

__all__ = ["Store"]


class RunningWriter(Protocol):
    """A writer, as the store knows it."""

    async def shut_down(self) -> None:
        """Stores what was written and takes no more."""


class Store(Calls):
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
        self.signals = Signals()
        self.writers: set[RunningWriter] = set()
        self.paging = Pages(self)
        self.appends = Appends(self, self.paging)
        self.ends = Ends(self, self.paging)
        self.leases = Leases(self, self.ends)
        self.positions = Positions(self)
        self.recovery = Recovery(self, self.leases, self.paging)
        self.saves = Saves(self)

    async def aclose(self) -> None:
        """Lets running writers store what they have taken, and refuses calls from then on."""
        self.closing = True
        try:
            await asyncio.gather(*[writer.shut_down() for writer in list(self.writers)])
        finally:
            self.closed = True
