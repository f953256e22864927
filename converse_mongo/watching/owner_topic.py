"""A watched owner: what a list of their conversations has to know.

Of each conversation the topic knows a few numbers. A hint only names a conversation to read; what
the read shows beyond these numbers becomes events. So nothing that a change stream skips is lost,
and what waits to be read never grows beyond the number of conversations.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import NamedTuple, TypeAlias

from bson import ObjectId

from converse_mongo.domain.events import (
    ConversationCreated,
    ConversationDeleted,
    ConversationUpdated,
    MessageCreated,
    OwnerEvent,
)
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.owners import OwnerKey
from converse_mongo.domain.summaries import NEVER, ChangeMarkers, ConversationSummary
from converse_mongo.store.reads import Counters
from converse_mongo.watching.doubts import Doubts, OutdatedReadError
from converse_mongo.watching.owner_reader import OwnerReader, Rows
from converse_mongo.watching.replay import message_created
from converse_mongo.watching.topics import WINDOW_BYTES, WINDOW_EVENTS
from converse_mongo.watching.window import Window

__all__ = ["Known", "OwnerRoutes", "OwnerTopic", "State", "is_behind", "learn"]

MAX_CONVERSATIONS = 2000
"""How many conversations of an owner are known from the start: those that were added to last."""
CONVERSATIONS_PER_READ = 64
SKEW = timedelta(seconds=60)
"""By how much the clocks of writers may differ before only the rarer, full comparison finds what
they wrote and no change stream told."""
CHECKS_PER_FULL_CHECK = 15


class Known(NamedTuple):
    """What was told of a conversation.

    Attributes:
        revision: How often it was saved.
        end: The position behind its last message.
        open: The ids of its messages that stream.
    """

    revision: int
    end: int
    open: frozenset[ObjectId] = frozenset()


class State(dict[ObjectId, Known]):
    """What was told of conversations, by their ids.

    Attributes:
        cut: Where more conversations were there at first than are known: the last change of the
            oldest known.
    """

    cut: datetime | None = None

    def copy(self) -> "State":
        """The same, to go on by itself."""
        copied = State(self)
        copied.cut = self.cut
        return copied

    def was_before(self, found: ConversationSummary) -> bool:
        """Whether a conversation is one of the many that are not known one by one."""
        unknown = found.conversation_id not in self
        return unknown and self.cut is not None and found.created_at <= self.cut


Put: TypeAlias = Callable[[OwnerEvent, Known | None], None]


def learn(state: State, event: OwnerEvent, base: Known | None) -> bool:
    """Notes in ``state`` what an event tells; returns ``False`` if it tells nothing new.

    Args:
        state: What is known of each conversation.
        event: The event.
        base: What was known of its conversation when it was told: of one that was not known, where
            telling of it began.
    """
    key = event.conversation_id
    known = state.get(key)
    if isinstance(event, ConversationDeleted):
        return state.pop(key, None) is not None
    if known is None:
        if base is None or not isinstance(event, ConversationCreated | ConversationUpdated):
            return False
        state[key] = base
    elif isinstance(event, ConversationCreated):
        return False
    elif isinstance(event, ConversationUpdated):
        if event.revision <= known.revision:
            return False
        state[key] = known._replace(revision=event.revision)
    elif isinstance(event, MessageCreated):
        if event.position < known.end:
            return False
        opened = {event.message_id} if event.streaming else set()
        state[key] = known._replace(end=event.position + 1, open=known.open | opened)
    elif event.message_id not in known.open:
        return False
    else:
        state[key] = known._replace(open=known.open - {event.message_id})
    return True


def is_behind(known: Known | None, other: Known | None) -> bool:
    """Whether ``other`` has more of a conversation than ``known``."""
    if known is None or other is None:
        return known is not other
    return (
        known.revision < other.revision
        or known.end < other.end
        or (known.end == other.end and not known.open <= other.open)
    )


class OwnerRoutes:
    """Leads hints to the owners that are watched.

    Attributes:
        topics: By the id of a conversation, or of a message that streams: the topic, and the
            conversation.
        reading: Topics that are finding out what leads to them.
    """

    def __init__(self) -> None:
        self.topics: dict[ObjectId, tuple[OwnerTopic, ObjectId]] = {}
        self.reading: set[OwnerTopic] = set()

    def hear(self, key: ObjectId) -> None:
        """Takes a hint of a conversation, or of the end of a message."""
        if found := self.topics.get(key):
            topic, conversation_id = found
            topic.hints += 1
            topic.tell(conversation_id)
        for topic in self.reading:
            topic.heard.add(key)


class OwnerTopic:
    """A watched owner, shared by all who watch them.

    Attributes:
        key: The owner.
        reader: Reads their conversations.
        window: Recent events, each with what was known before it.
        state: What the window has told.
        dirty: Conversations to be read.
        stale: Whether conversations may have changed unheard of.
        ready: Whether the database was read at least once.
        failure: What every watcher of it is to raise, where watching cannot go on.
        watchers: How many watch it; the hub counts.
        hints: How many hints it was given.
        heard: What hints named while it was reading.
    """

    ended = False

    def __init__(self, key: OwnerKey, reader: OwnerReader, routes: OwnerRoutes) -> None:
        self.key = key
        self.reader = reader
        self.window: Window[tuple[OwnerEvent, Known | None]] = Window(WINDOW_EVENTS, WINDOW_BYTES)
        self.state = State()
        self.dirty: dict[ObjectId, None] = {}
        self.stale = True
        self.ready = False
        self.failure: BaseException | None = None
        self.watchers = self.hints = 0
        self.heard: set[ObjectId] = set()
        self._routes = routes
        # Not all owners at once.
        self._checks = random.randrange(CHECKS_PER_FULL_CHECK)
        self._latest = NEVER
        self._reading = asyncio.Lock()
        self._doubts = Doubts() if reader.local else Doubts(0)

    def mark_stale(self) -> None:
        """Says that there may be news in the database; whoever waits wakes and reads it."""
        self.stale = True
        self.window.wake()

    def fail(self, failure: BaseException) -> None:
        """Makes every watcher raise ``failure``."""
        self.failure = self.failure or failure
        self.window.wake()

    def tell(self, conversation_id: ObjectId) -> None:
        """Says that there is news of a conversation."""
        self.dirty[conversation_id] = None
        self.window.wake()

    def forget(self) -> None:
        """Takes it out of what it has put itself into; nobody watches it any more."""
        for conversation_id, known in self.state.items():
            self._lead(conversation_id, known, None)
        self._routes = OwnerRoutes()

    @property
    def open(self) -> dict[ObjectId, ObjectId]:
        """The messages that stream, with their conversations."""
        return {
            message_id: conversation_id
            for conversation_id, known in self.state.items()
            for message_id in known.open
        }

    def _lead(self, conversation_id: ObjectId, before: Known | None, after: Known | None) -> None:
        """Has hints of a conversation led here as long as it is known."""
        old = {conversation_id, *before.open} if before else set()
        new = {conversation_id, *after.open} if after else set()
        topics = self._routes.topics
        for key in old - new:
            if topics.get(key) == (self, conversation_id):
                del topics[key]
        topics |= dict.fromkeys(new - old, (self, conversation_id))

    # Reading

    async def attach(self) -> None:
        """Brings the window up to what the database holds now.

        Raises:
            OutdatedReadError: What was read is older than what is known.
            PyMongoError: The database could not be read.
        """
        self.stale = True
        await self.catch_up()
        for _ in range(0, len(self.dirty), CONVERSATIONS_PER_READ):
            await self.catch_up()

    async def catch_up(self) -> None:
        """Reads some of the conversations that there is news of; one reads for all who ask.

        Raises:
            OutdatedReadError: What was read is older than what is known; the news stay.
            PyMongoError: The database could not be read; the news stay.
        """
        async with self._reading, self.reader.turns:
            if self.failure or not (self.stale or self.dirty):
                return
            stale, self.stale = self.stale, False  # news that come while reading are kept
            some: dict[ObjectId, None] = {}
            self.heard.clear()
            self._routes.reading.add(self)
            try:
                if stale:
                    await self._compare_all()
                some = dict.fromkeys(islice(self.dirty, CONVERSATIONS_PER_READ))
                for conversation_id in some:
                    del self.dirty[conversation_id]
                before = {key: self.state.get(key) for key in some}
                rest = await self.read(
                    self.state, list(some), lambda *told: self.window.put(told, _weight(told[0]))
                )
            except BaseException:
                self.stale = self.stale or stale
                self.dirty = some | self.dirty
                self.window.wake()
                raise
            finally:
                self._routes.reading.discard(self)
            for conversation_id, known in before.items():
                self._lead(conversation_id, known, self.state.get(conversation_id))
            for conversation_id in rest:
                self.tell(conversation_id)
            for key in self.heard:
                topic, conversation_id = self._routes.topics.get(key, (None, key))
                if topic is self:
                    self.tell(conversation_id)

    async def read(self, state: State, ids: list[ObjectId], put: Put) -> list[ObjectId]:
        """Tells of some conversations what is news to who knows ``state``, and notes it there.

        All is read before the first event is put: who is cancelled meanwhile has missed nothing.

        Returns:
            Those of which there is more to read.

        Raises:
            OutdatedReadError: What was read is older than what is known.
            PyMongoError: The database could not be read.
        """
        if not ids:
            return []
        found = await self.reader.conversations(ids)
        theirs = {key: each for key, each in found.items() if each.owner == self.key}
        bases = await self._bases(state, theirs)
        opened = {message_id: key for key, base in bases.items() for message_id in base.open}
        headers = await self.reader.headers(opened)
        rows = await self.reader.rows(
            {key: base.end for key, base in bases.items()},
            {key: each.next_position for key, each in theirs.items()},
        )
        # From here on nothing waits.

        def tell(event: OwnerEvent) -> None:
            base = state.get(event.conversation_id) or bases.get(event.conversation_id)
            if learn(state, event, base):
                put(event, base)

        for key in ids:
            if key not in theirs:
                tell(ConversationDeleted(conversation_id=key))
            elif key in rows.ends:
                self._tell(tell, state, theirs[key], headers, rows)
        return [key for key in theirs if key not in rows.whole]

    async def _bases(
        self, state: State, found: Mapping[ObjectId, ConversationSummary]
    ) -> dict[ObjectId, Known]:
        """What is known of some conversations; of those that are not, where telling begins."""
        bases = {key: state.get(key) or Known(each.revision, 0) for key, each in found.items()}
        # Of those, from now on, and what streams.
        older = [key for key, each in found.items() if state.was_before(each)]
        streaming = await self.reader.streaming(older)
        for key in older:
            end = found[key].next_position
            bases[key] = Known(found[key].revision, min(streaming.get(key, {}), default=end))
        return bases

    def _tell(
        self,
        tell: Callable[[OwnerEvent], None],
        state: State,
        found: ConversationSummary,
        headers: Mapping[ObjectId, MessageHeader],
        rows: Rows,
    ) -> None:
        key = found.conversation_id
        if key in state or state.was_before(found):
            tell(found.updated())
        else:
            tell(found.created())
        streaming = state[key].open
        ended = [headers[each] for each in streaming if each in headers]
        for header in sorted(ended, key=lambda each: each.position):
            if header.status.is_final:
                tell(header.ended())
        for row in rows.found.get(key, ()):
            tell(message_created(row))
            if row.state.streamed and row.state.status.is_final:
                tell(row.state.ended())
        gone = streaming - headers.keys()
        known = state[key]
        state[key] = known._replace(end=max(known.end, rows.ends[key]), open=known.open - gone)

    async def reach(
        self, state: State, goals: Mapping[ObjectId, Known | None], put: Put
    ) -> list[ObjectId]:
        """The same for conversations of which others were told more.

        Args:
            state: As above.
            goals: What they know.
            put: As above.
        """
        rest = await self.read(state, list(goals), put)
        for key, goal in goals.items():
            if goal is None or key not in state or key in rest:
                continue
            if not is_behind(state[key], goal):
                self._doubts.dispel(key)
            elif not self._doubts.stands(key):
                raise OutdatedReadError
        return rest

    # The comparison with the database

    async def _compare_all(self) -> None:
        marks = await self.reader.marks(self.key, MAX_CONVERSATIONS)
        if self.ready:
            self.compare(marks)
            streaming = set(self.open.values())
            self.dirty |= {k: None for k in self.state if k not in marks or k in streaming}
            return
        streaming_now = await self.reader.streaming(list(marks))
        if len(marks) == MAX_CONVERSATIONS:
            self.state.cut = min(each.updated_at for each in marks.values())
        for key, found in marks.items():
            opened = streaming_now.get(key, {}).items()
            ids = frozenset(each for position, each in opened if position < found.next_position)
            self.state[key] = Known(found.revision, found.next_position, ids)
            self._lead(key, None, self.state[key])
        self._latest = max((each.updated_at for each in marks.values()), default=NEVER)
        self.ready = True

    def compare(self, marks: Mapping[ObjectId, ChangeMarkers]) -> bool:
        """Tells of each conversation that is not as it was known.

        Returns:
            Whether there is one that there had been no news of.
        """
        untold = False
        for conversation_id, found in marks.items():
            known, cut = self.state.get(conversation_id), self.state.cut
            if known is None and cut is not None and found.updated_at <= cut:
                continue  # one of the many that are not known one by one, and it is as it was
            self._latest = max(self._latest, found.updated_at)
            if known is None or found.revision > known.revision or found.next_position > known.end:
                untold = untold or conversation_id not in self.dirty
                self.tell(conversation_id)
        return untold

    def find_ended(self, counters: Mapping[ObjectId, Counters]) -> bool:
        """Tells of each conversation with a message that streamed and does not any more.

        Returns:
            As above.
        """
        untold = False
        for message_id, conversation_id in self.open.items():
            found = counters.get(message_id)
            if found is None or found.ended:
                untold = untold or conversation_id not in self.dirty
                self.tell(conversation_id)
        return untold

    def due(self) -> datetime | None:
        """For a check: since when conversations may have changed; ``None`` if all are to be read.

        Then whoever watches does that.
        """
        self._checks += 1
        if self._checks % CHECKS_PER_FULL_CHECK == 0:
            self.mark_stale()
        return None if self.stale else self._latest - SKEW


def _weight(event: OwnerEvent) -> int:
    return len(event.content) if isinstance(event, MessageCreated) else 0
