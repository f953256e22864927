"""What can be watched: a message, a conversation. Hints in, exact events out.

A topic knows a *state*: what its window of events has brought so far. A hint that continues the
state becomes an event at once. Any other news only makes the topic *stale*: whoever watches it then
reads from the database what lies between, since the document is the truth and a hint only a hint.
A watcher that is behind the window reads the same way, from its own state to that of the topic.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Generic, NoReturn, TypeVar, cast

from bson import ObjectId, Timestamp

from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.errors import MessageNotFoundError, WatchError
from converse_mongo.domain.events import (
    ChunkReceived,
    Event,
    MessageEvent,
)
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.validation import check_sequence
from converse_mongo.store.reads import Reader
from converse_mongo.watching.changes import Deleted, Inserted, MessageHint, Updated
from converse_mongo.watching.doubts import Doubts, OutdatedReadError
from converse_mongo.watching.window import Window

__all__ = ["MessageTopic", "Topic"]

WINDOW_EVENTS = 512
WINDOW_BYTES = 2 * 1024 * 1024
CHUNKS_PER_READ = 256
HELD_HINTS = 1000
AGAIN_SECONDS = 0.02
"""The shortest time between a read that was outdated and the next one."""

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
        hints: How many hints it was given.
    """

    def __init__(self, key: ObjectId, reader: Reader) -> None:
        self.key = key
        self.doubts = Doubts() if reader.local else Doubts(0)
        self.window: Window[E] = Window(WINDOW_EVENTS, WINDOW_BYTES)
        self.stale = True
        self.ready = False
        self.ended = False
        self.failure: BaseException | None = None
        self.watchers = self.hints = 0
        self._reader = reader
        self._local = reader.local or reader
        self._reading = asyncio.Lock()
        self._held: deque[MessageHint] | None = deque()
        self._again_at = 0.0

    def mark_stale(self) -> None:
        """Says that there may be news in the database; whoever waits wakes and reads it."""
        self.stale = True
        self.window.wake()

    def fail(self, failure: BaseException) -> None:
        """Makes every watcher raise ``failure``."""
        self.failure = self.failure or failure
        self.window.wake()

    def receive(self, hint: MessageHint) -> None:
        """Takes a hint. While the topic is stale or is being read, it is held until that is done.

        What is stored may not be what the window continues: after a lost stream, a message may
        have been deleted and started anew.
        """
        self.hints += 1
        self._note(hint)
        if self._held is None and not self.stale:
            self._apply(hint)
        elif self._held is None:
            self._held = deque([hint])
        elif len(self._held) < HELD_HINTS:
            self._held.append(hint)
        else:
            self.stale = True

    async def catch_up(self) -> None:
        """Brings the window up to what the database holds; one reads for all who ask.

        Raises:
            NotFoundError: What is watched is not in the database (any more).
            OutdatedReadError: What was read is older than what is known; the topic stays stale.
            PyMongoError: The database could not be read; the topic stays stale.
        """
        async with self._reading, self._reader.turns:
            if not self.stale or self.ended or self.failure:
                return
            if time.monotonic() < self._again_at:
                raise OutdatedReadError
            self.stale = False  # news that come while reading make it stale again
            self._held = deque()  # what was told before is among what is read
            try:
                await self._read_news()
            except BaseException as error:
                self.stale = True
                self.window.wake()
                if isinstance(error, OutdatedReadError):  # however many ask
                    self._again_at = time.monotonic() + AGAIN_SECONDS
                raise
            self.ready = True
            if self.stale:
                return  # hints stay held until the next read
            held, self._held = self._held, None
            for hint in held:
                self._apply(hint)

    async def reach(self, state: S) -> None:
        """Catches up until the window covers ``state``, which a caller has had elsewhere.

        Raises:
            InvalidCursorError: It is ahead of what is stored.
            OutdatedReadError: What was read is behind it, and is to be read again.
            PyMongoError: The database could not be read.
        """

    async def begin(self, after: object) -> S:
        """The state from which a watcher begins that a caller gave ``after``.

        Raises:
            PyMongoError: The database could not be read.
        """
        return self.state_at(after)

    @abstractmethod
    def state_at(self, after: object) -> S:
        """The state that a caller's ``after`` means, checked by the watcher."""

    def covers(self, state: S) -> bool:  # noqa: ARG002
        """Whether the window has brought all that a watcher in ``state`` has had."""
        return True

    async def check(self, state: S) -> None:
        """Checks that a watcher can be in ``state``.

        Raises:
            InvalidCursorError: Nobody can: the library has not given it to anybody.
            PyMongoError: The database could not be read.
        """

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
            OutdatedReadError: What was read is older than what is known.
            PyMongoError: The database could not be read.
        """

    def forget(self) -> None:
        """Takes it out of what it has put itself into; nobody watches it any more."""

    @abstractmethod
    def _note(self, hint: MessageHint) -> None:
        """Remembers what a hint tells, so that an older read is not taken for the truth."""

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
        self.state: MessageHeader | None = None
        """The message as it was last read."""
        self._since: Timestamp | None = None
        """When it was first read: updates before may be of a message that had the same id."""
        self._told = 0
        """The highest counter that a hint told since."""
        self._end_told = self._deletion_told = False

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
        chunks = run_from(state, (await self._accept(found))[1])
        if not chunks:
            self._refuse_hole(state)
        return [known.chunk_received(chunk) for chunk in chunks]

    @property
    def _known(self) -> MessageHeader:
        return cast(MessageHeader, self.state)

    def _note(self, hint: MessageHint) -> None:
        if isinstance(hint, Updated):
            if self.state is not None and is_after(hint, self._since):
                self._told = max(self._told, hint.next_sequence or 0)
                self._end_told = self._end_told or hint.ended
        elif self._is_gone_by(hint):
            # What was told before is of no use.
            self._told, self._end_told, self._deletion_told = 0, False, True

    def _is_gone_by(self, hint: Inserted | Deleted) -> bool:
        """Whether it was deleted, or started anew: news of its own insertion may come late."""
        if not is_after(hint, self._since):
            return False
        known = self.state
        return isinstance(hint, Deleted) or (
            known is not None and hint.document.get("log_id") != known.log_id
        )

    def _apply(self, hint: MessageHint) -> None:
        if self.ended:
            return
        if not isinstance(hint, Updated):
            self.mark_stale()
            return
        for stored in hint.chunks if is_after(hint, self._since) else ():
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
        state, chunks = await self._accept(found)
        self._refuse_older(state)
        first_time = self.state is None
        if first_time:
            self._since = await self._reader.committed_time()
        self.state = state
        end = state.next_sequence
        if first_time:
            self.window.jump(end - len(chunks))
        elif end > self.window.head + len(chunks):
            # Too much for the window: each watcher reads it at its own pace.
            self.window.jump(end)
            chunks = []
        for chunk in run_from(self.window.head, chunks):
            self._put(chunk)
        if self.window.head != end:
            self._refuse_hole(self.window.head)
        if state.status.is_final:
            self.ended = True
            self.window.put(state.ended(), 0)

    async def _accept(
        self, found: tuple[MessageHeader, list[MessageChunk]] | None
    ) -> tuple[MessageHeader, list[MessageChunk]]:
        """What was read, if it is of the message that is watched.

        Raises:
            MessageNotFoundError: It is not there, or was deleted and started anew.
            OutdatedReadError: That is to be seen for longer until it is believed.
        """
        same = self.state is None or (found and found[0].log_id == self.state.log_id)
        if found is not None and same:
            self.doubts.dispel("gone")
            self._deletion_told = False
            return found
        error = MessageNotFoundError(self.key)
        if self.state is None:
            # Never seen before: it may be too new for the majority, but not for the primary.
            if self._reader.local and await self._local.has_message(self.key):
                raise OutdatedReadError
            raise error
        if not self._deletion_told and not self.doubts.stands("gone"):
            raise OutdatedReadError
        self.fail(error)
        raise error

    def _refuse_older(self, state: MessageHeader) -> None:
        """Refuses a state that is behind what is known."""
        known, final = self.window.head if self.state else 0, state.status.is_final
        behind = state.next_sequence < max(self._told, known) or (self._end_told and not final)
        if behind and not self.doubts.stands("behind"):
            raise OutdatedReadError
        if state.next_sequence < known:
            raise hole(self.key, state.next_sequence)
        if behind:
            self._told, self._end_told = 0, False
        else:
            self.doubts.dispel("behind")

    def _refuse_hole(self, sequence: int) -> NoReturn:
        """Refuses a read that does not show a chunk which there must be."""
        if not self.doubts.stands(("hole", sequence)):
            raise OutdatedReadError
        raise hole(self.key, sequence)


def is_after(hint: MessageHint, moment: Timestamp | None) -> bool:
    """Whether a change was made after a moment of the server's clock."""
    return hint.time is None or moment is None or hint.time > moment


def run_from(start: int, chunks: Sequence[MessageChunk]) -> Sequence[MessageChunk]:
    """Those of ``chunks`` that go on from ``start`` without a gap."""
    for index, chunk in enumerate(chunks):
        if chunk.sequence != start + index:
            return chunks[:index]
    return chunks


def hole(message_id: ObjectId, sequence: int) -> WatchError:
    return WatchError(
        f"Chunk {sequence} of message {message_id} is not where it must be: "
        "something other than converse_mongo has written to the message."
    )
