"""The store: all reads and writes of one set of collections."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from converse_mongo.domain.errors import ConverseClosedError, ConverseError
from converse_mongo.store.answers import Answers
from converse_mongo.store.appends import Appends
from converse_mongo.store.calls import Calls
from converse_mongo.store.collections import Collections
from converse_mongo.store.ends import Ends
from converse_mongo.store.leases import Leases
from converse_mongo.store.notices import Openings, WriterNotices
from converse_mongo.store.pages import Pages
from converse_mongo.store.places import Places
from converse_mongo.store.positions import Positions
from converse_mongo.store.queues import Queues
from converse_mongo.store.recovery import Recovery
from converse_mongo.store.redactions import Redactions
from converse_mongo.store.saves import Saves
from converse_mongo.store.sweeps import Sweeps
from converse_mongo.store.values import Values

GIVE_UP_SECONDS, GIVE_UP_TRIES = 0.5, 4
"""The wait for writers that are told to give up, and the number of times they are told."""


class RunningWriter(Protocol):
    """The part of a writer that the store uses."""

    async def shut_down(self) -> None:
        """Stores what was written, and accepts no more."""

    def give_up(self, error: ConverseError) -> None:
        """Ends at once; the error of the writer has the text that is not stored."""


class Store(Collections):
    """The collections of one database, and all reads and writes.

    Attributes:
        answers: Lists answers that are being written, and gives turns to begin one.
        background: Tasks that go on until it is closed, and are cancelled then.
        appends: Appends chunks to streaming messages.
        calls: Answers tool calls that wait for people.
        ends: Ends streaming messages.
        large_values: Stores values of parts that are too large for a chunk.
        leases: Gives the right to write to a message, and ends messages whose writer died.
        notices: Notifies running writers.
        openings: Notifies workers.
        paging: Moves chunks out of long messages, and merges those of ended messages.
        jobs: Gives queued messages to workers, and takes them back.
        key_places: Gives queued messages the places of their keys.
        positions: Adds conversations and messages.
        recovery: Ends orphans, and merges chunks that are due.
        redactions: Removes the content of parts.
        saves: Saves fields that the application changed.
        sweeps: Removes the content of redacted parts from chunks.
        writers: The running writers.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.notices = WriterNotices()
        self.openings = Openings()
        self.background: set[asyncio.Task[None]] = set()
        self.writers: set[RunningWriter] = set()
        self.large_values = Values(self)
        self.paging = Pages(self, self.large_values)
        self.appends = Appends(self, self.paging, self.large_values)
        self.sweeps = Sweeps(self, self.paging, self.large_values)
        self.key_places = Places(self)
        self.ends = Ends(self, self.paging, self.sweeps, self.key_places)
        self.leases = Leases(self, self.ends)
        self.jobs = Queues(self, self.key_places, self.leases.clock)
        self.calls = Calls(self, self.paging, self.large_values, self.leases.clock)
        self.answers = Answers(self, self.leases)
        self.positions = Positions(self)
        self.recovery = Recovery(self, self.leases, self.paging, self.sweeps)
        self.redactions = Redactions(self, self.appends, self.sweeps, self.large_values)
        self.saves = Saves(self)

    async def aclose(self, timeout: float) -> None:  # noqa: ASYNC109 - writers then give up
        """Lets running writers store what they have accepted, then refuses all calls.

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

    async def _give_up(self, running: Mapping[asyncio.Task[None], RunningWriter]) -> None:
        error = ConverseClosedError(
            "This Converse was closed before MongoDB answered. The 'text' of the writer's error is "
            "the text that was not stored until then."
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
