"""What can be watched: a message, a conversation. Hints in, exact events out.

A topic knows a *state*: what its window of events has brought so far. A hint that continues the
state becomes an event at once. Any other news only makes the topic *stale*: whoever watches it then
reads from the database what lies between, since the document is the truth and a hint only a hint.
A watcher that is behind the window reads the same way, from its own state to that of the topic.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar, cast

from bson import ObjectId

from converse_mongo._changes import MessageHint, Updated
from converse_mongo._fanout import Window
from converse_mongo._reader import Reader
from converse_mongo._state import MessageState
from converse_mongo._validation import check_sequence
from converse_mongo.chunks import MessageChunk
from converse_mongo.errors import (
    MessageNotFoundError,
    WatchError,
)
from converse_mongo.events import (
    ChunkReceived,
    Event,
    MessageEvent,
)

__all__ = ["MessageTopic", "Topic"]

WINDOW_EVENTS = 512
WINDOW_BYTES = 2 * 1024 * 1024
CHUNKS_PER_READ = 256
HELD_HINTS = 1000

E = TypeVar("E", bound=Event)
S = TypeVar("S")


class Topic(ABC, Generic[E, S]):
    """One watched thing, shared by all who watch it.

    Attributes:
        key: The id of what is watched.
        window: Its recent events.
        stale: Whether the database may hold more than the window has brought.
        ready: Whether the database was read at least once.
        ended: Whether the last event of the window is the final one.
        failure: What every watcher of it is to raise, where watching cannot go on.
        watchers: How many watch it; the hub counts.
    """

    def __init__(self, key: ObjectId, reader: Reader) -> None:
        self.key = key
        self.window: Window[E] = Window(WINDOW_EVENTS, WINDOW_BYTES)
        self.stale = True
        self.ready = False
        self.ended = False
        self.failure: BaseException | None = None
        self.watchers = 0
        self._reader = reader
        self._reading = asyncio.Lock()
        self._held: deque[MessageHint] | None = deque()

    def mark_stale(self) -> None:
        """Says that there may be news in the database; whoever waits wakes and reads it."""
        self.stale = True
        self.window.wake()

    def fail(self, failure: BaseException) -> None:
        """Makes every watcher raise ``failure``."""
        self.failure = self.failure or failure
        self.window.wake()

    def receive(self, hint: MessageHint) -> None:
        """Takes a hint; while the database is being read it is held until that is done."""
        if self._held is None:
            self._apply(hint)
        elif len(self._held) < HELD_HINTS:
            self._held.append(hint)
        else:
            self.stale = True

    async def catch_up(self) -> None:
        """Brings the window up to what the database holds; one reads for all who ask.

        Raises:
            NotFoundError: What is watched is not in the database (any more).
            PyMongoError: The database could not be read; the topic stays stale.
        """
        async with self._reading:
            if not self.stale or self.ended or self.failure:
                return
            self.stale = False  # news that come while reading make it stale again
            if self._held is None:
                self._held = deque()
            try:
                await self._read_news()
            except BaseException:
                self.stale = True
                self.window.wake()
                raise
            self.ready = True
            held, self._held = self._held, None
            for hint in held:
                self._apply(hint)

    @abstractmethod
    def state_at(self, after: object) -> S:
        """The state that a caller's ``after`` means, checked by the watcher."""

    def covers(self, state: S) -> bool:  # noqa: ARG002
        """Whether the window has brought all that a watcher in ``state`` has had."""
        return True

    @abstractmethod
    def state_behind(self, event: E) -> S:
        """The state of a watcher that has had ``event`` and all before it."""

    def is_final(self, event: E) -> bool:  # noqa: ARG002
        """Whether nothing follows ``event``."""
        return False

    @abstractmethod
    def locate(self, state: S) -> int | None:
        """The index in the window where a watcher in ``state`` goes on; ``None``: it is behind."""

    @abstractmethod
    def here(self) -> tuple[S, int]:
        """The state that the window has brought, and the index that goes on from it."""

    @abstractmethod
    async def read(self, state: S, goal: S) -> Sequence[E]:
        """Some events from ``state`` towards ``goal``; none when there are none in between.

        Raises:
            NotFoundError: What is watched is not in the database any more.
            PyMongoError: The database could not be read.
        """

    def forget(self) -> None:
        """Takes it out of what it has put itself into; nobody watches it any more."""

    @abstractmethod
    def _apply(self, hint: MessageHint) -> None:
        """Turns a hint that continues the state into an event, or marks the topic stale."""

    @abstractmethod
    async def _read_news(self) -> None:
        """Reads the database, and puts what is new into the window, or jumps over it."""


class MessageTopic(Topic[MessageEvent, int]):
    """A message. Its state is the sequence that comes next; so is the index in its window."""

    def __init__(self, key: ObjectId, reader: Reader) -> None:
        super().__init__(key, reader)
        self.state: MessageState | None = None
        """The message as it was last read."""

    def state_at(self, after: object) -> int:
        return check_sequence(after)

    def state_behind(self, event: MessageEvent) -> int:
        if isinstance(event, ChunkReceived):
            return event.chunk.sequence + 1
        return event.chunk_count + 1

    def is_final(self, event: MessageEvent) -> bool:
        return not isinstance(event, ChunkReceived)

    def locate(self, state: int) -> int | None:
        if self.ended:
            state = min(state, self.window.head - 1)
        return state if state >= self.window.first else None

    def here(self) -> tuple[int, int]:
        head = self.window.head - self.ended
        return head, head

    async def read(self, state: int, goal: int) -> Sequence[MessageEvent]:
        known = self._known
        found = await self._reader.read(
            *(self.key, known.conversation_id, state, CHUNKS_PER_READ),
            page_start=known.page_start,
            stop=goal,
        )
        if found is None:
            raise MessageNotFoundError(self.key)
        chunks = found[1]
        check_run(self.key, state, chunks)
        if not chunks:
            raise hole(self.key, state)
        return [known.chunk_received(chunk) for chunk in chunks]

    @property
    def _known(self) -> MessageState:
        return cast(MessageState, self.state)

    def _apply(self, hint: MessageHint) -> None:
        if self.ended:
            return
        if not isinstance(hint, Updated):
            self.mark_stale()  # deleted, or replaced as a whole
            return
        for stored in hint.chunks:
            if stored["sequence"] == self.window.head:
                self._put(MessageChunk.from_stored(stored))
        if hint.ended or (hint.next_sequence or 0) > self.window.head:
            self.mark_stale()

    def _put(self, chunk: MessageChunk) -> None:
        self.window.put(self._known.chunk_received(chunk), len(chunk.content))

    async def _read_news(self) -> None:
        if self.state is None:
            found = await self._reader.read_tail(self.key, WINDOW_EVENTS)
        else:
            found = await self._reader.read(
                *(self.key, self.state.conversation_id, self.window.head, WINDOW_EVENTS),
                page_start=self.state.page_start,
            )
        if found is None:
            raise MessageNotFoundError(self.key)
        first_time = self.state is None
        self.state, chunks = found
        end = self.state.next_sequence
        if first_time:
            self.window.jump(end - len(chunks))
        elif end > self.window.head + len(chunks):
            # Too much for the window: each watcher reads it at its own pace.
            self.window.jump(end)
            chunks = []
        check_run(self.key, self.window.head, chunks)
        for chunk in chunks:
            self._put(chunk)
        if self.state.status.is_final:
            self.ended = True
            self.window.put(self.state.ended(), 0)


def check_run(message_id: ObjectId, start: int, chunks: Sequence[MessageChunk]) -> None:
    """Checks that ``chunks`` go on from ``start`` without a gap.

    Raises:
        WatchError: They do not: something other than this library wrote to the message.
    """
    for sequence, chunk in enumerate(chunks, start):
        if chunk.sequence != sequence:
            raise hole(message_id, sequence)


def hole(message_id: ObjectId, sequence: int) -> WatchError:
    return WatchError(
        f"Chunk {sequence} of message {message_id} is not where it must be: "
        "something other than converse_mongo has written to the message."
    )
