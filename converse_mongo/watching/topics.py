"""Topics: watched conversations. Hints in, exact events out.

A topic has a *cursor*: the position behind the last event of its window. A hint that continues
from the cursor becomes an event at once. Any other news only makes the topic *stale*: the next
watcher that asks for an event reads what is missing from the database. The document is the truth,
a hint is only a hint. A watcher behind the window reads from its own cursor to the topic's.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, cast

from bson import ObjectId, Timestamp

from converse_mongo.domain.chunks import MessageChunk, PartChunk
from converse_mongo.domain.cursors import NOW, ConversationCursor
from converse_mongo.domain.errors import ConversationNotFoundError, InvalidCursorError
from converse_mongo.domain.events import (
    ChunkReceived,
    ConversationEvent,
    FinalEvent,
    MessageCreated,
    MessageSnapshot,
    MessageUpdated,
)
from converse_mongo.domain.headers import MessageRow
from converse_mongo.domain.part_identity import PartIdentity
from converse_mongo.domain.types import MessageRole
from converse_mongo.driver.servers import Mark
from converse_mongo.store.reads import Counters, Reader, Saved
from converse_mongo.watching.changes import Deleted, Inserted, MessageHint, Updated
from converse_mongo.watching.doubts import Doubts, OutdatedReadError
from converse_mongo.watching.replay import Replay, cursor_at
from converse_mongo.watching.saves import SAVES_KNOWN, SaveNews
from converse_mongo.watching.window import Window
from converse_mongo.watching.work_news import WorkNews

logger = logging.getLogger("converse_mongo")

WINDOW_EVENTS = 512
WINDOW_BYTES = 2 * 1024 * 1024
HELD_HINTS = 1000
AGAIN_SECONDS = 0.02
"""Seconds between an outdated read and the next one, at least."""


class Routes:
    """Leads hints of messages to the conversations that are watched.

    An update of a message does not say which conversation it belongs to.
    """

    def __init__(self) -> None:
        self.open: dict[ObjectId, Topic] = {}
        """The topics by the ids of the streaming messages of all watched conversations."""
        self.reading: set[Topic] = set()
        """The topics that are reading which messages stream."""
        self.saves_since: Mark | None = None
        """All topics know all saves before this moment."""

    async def begin_saves(self, reader: Reader) -> None:
        """Notes the moment before the first topic is read."""
        if self.saves_since is None:
            moment = await reader.moment()
            self.saves_since = self.saves_since or moment


class OpenMessage(NamedTuple):
    """A streaming message, as a topic knows it.

    Attributes:
        position: Its position in the conversation.
        role: Its role, as stored.
        since: When it was found. Earlier updates may be of another message with the same id.
    """

    position: int
    role: str
    since: Timestamp | None = None


class Topic:
    """A watched conversation, shared by all its watchers.

    Attributes:
        key: The id of the conversation.
        cursor: The cursor behind the last event; ``None`` before the first read.
        open: The streaming messages, by id.
        window: The recent events.
        stale: Whether the database may hold more than the window has brought.
        ready: Whether the database was read at least once.
        ended: Whether the last event of the window is the final one. A conversation never ends.
        failure: The error that every watcher raises, once watching cannot go on.
        watchers: The number of watchers; the hub counts them.
        hints: The number of hints received.
        work: What its queued messages wait for.
    """

    def __init__(self, key: ObjectId, reader: Reader, routes: Routes) -> None:
        self.key = key
        self.cursor: ConversationCursor | None = None
        self.open: dict[ObjectId, OpenMessage] = {}
        self.doubts = Doubts() if reader.local else Doubts(0)
        self.window: Window[ConversationEvent] = Window(WINDOW_EVENTS, WINDOW_BYTES)
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
        self._routes = routes
        self._forgotten = False
        self._told = _Told()
        self._saves = SaveNews()
        self.work = WorkNews()

    @property
    def _known(self) -> ConversationCursor:
        return cast(ConversationCursor, self.cursor)

    def mark_stale(self) -> None:
        """Notes that the database may hold news. A waiting watcher wakes and reads it."""
        self.stale = True
        self.window.wake()

    def fail(self, failure: BaseException) -> None:
        """Makes every watcher raise ``failure``."""
        self.failure = self.failure or failure
        self.window.wake()

    def forget(self) -> None:
        """Removes the routes to a topic that has no watchers any more."""
        self._set_open({})
        self._forgotten = True

    # The cursors of watchers

    async def start(self, after: object) -> ConversationCursor:
        """The cursor that an application's ``after`` means.

        Raises:
            InvalidCursorError: It is not a cursor of this conversation.
            PyMongoError: The database could not be read.
        """
        if after is None:
            return ConversationCursor(self.key)
        if after != NOW:
            return ConversationCursor.parse(after, self.key)
        if self._reader.local is None:
            return self._known
        # A majority read may not show all that is stored yet.
        stored = await self._stored()
        return stored if stored and stored.end >= self._known.end else self._known

    async def enter(self, cursor: ConversationCursor) -> None:
        """Catches up with a watcher's cursor, and checks that the library made it.

        Raises:
            InvalidCursorError: The cursor is ahead of what is stored, or was not made here.
            OutdatedReadError: The read is behind the cursor, and has to be repeated.
            PyMongoError: The database could not be read.
        """
        if not self._known.covers(cursor):
            # It comes from another process that was further.
            self.mark_stale()
            await self.catch_up()
        if not self._known.covers(cursor):
            await self._refuse_ahead(cursor)
        unknown = [position for position in cursor.open if position not in self._known.open]
        for found in await self._reader.messages_at(self.key, unknown):
            sequence = cursor.open[found.position]
            if not found.streamed or (found.status.is_final and sequence > found.next_sequence):
                raise InvalidCursorError(
                    f"after={str(cursor)!r} is not a cursor of this conversation: the message at "
                    f"position {found.position} has no chunk {sequence - 1} that was streamed."
                )

    async def _refuse_ahead(self, cursor: ConversationCursor) -> NoReturn:
        if self._reader.local is not None:
            # A primary has all that watchers were given, as long as it is the primary.
            if await self._is_stored(cursor):
                raise OutdatedReadError
            confirmed = await self._reader.confirm_primary(self.key)
            if await self._is_stored(cursor) or not (
                confirmed or self.doubts.stands(("ahead", str(cursor)))
            ):
                raise OutdatedReadError
        raise InvalidCursorError(
            f"after={str(cursor)!r} is ahead of what is stored: it was not made here, or the "
            "database was set back."
        )

    async def _is_stored(self, cursor: ConversationCursor) -> bool:
        stored = await self._stored()
        return stored is not None and stored.covers(cursor)

    async def _stored(self) -> ConversationCursor | None:
        """The cursor behind all that the primary has; ``None`` if it has no conversation."""
        end = await self._local.conversation_end(self.key)
        if end is None:
            return None
        return cursor_at(self.key, end, await self._local.streaming(self.key, end))

    def behind(self, event: ConversationEvent | MessageSnapshot) -> ConversationCursor:
        """The cursor behind ``event``."""
        return ConversationCursor.parse(event.cursor, self.key)

    async def identity(self, event: ChunkReceived, part: int) -> PartIdentity | None:
        """Reads what the part is that an event names; ``None`` if its chunk begins none.

        Raises:
            OutdatedReadError: The read lacks that chunk.
        """
        try:
            return await self._local.identity(event.message_id, event.conversation_id, part)
        except LookupError:
            if not self.doubts.stands(("part", event.message_id, part)):
                raise OutdatedReadError from None
            return None

    def locate(self, cursor: ConversationCursor) -> int | None:
        """The index in the window behind ``cursor``; ``None`` if events have to be read first."""
        return self.window.head if cursor == self._known else None

    def here(self) -> tuple[ConversationCursor, int]:
        """A cursor to read up to, and the index in the window behind it."""
        return self._known, self.window.head - self.ended

    async def read(
        self, cursor: ConversationCursor, goal: ConversationCursor
    ) -> Sequence[ConversationEvent]:
        """Reads some events from ``cursor`` towards ``goal``; none if there are none in between.

        Raises:
            MessageNotFoundError: The watched message was deleted.
            OutdatedReadError: The read is older than what is known.
            PyMongoError: The database could not be read.
        """
        return [event for event, _ in await self._replay().steps(cursor, goal)]

    def _replay(self) -> Replay:
        return Replay(self._known, self._told.gone, self._reader, self.doubts)

    # Hints

    def receive(self, hint: MessageHint) -> None:
        """Applies a hint, or holds it while the topic is stale or is being read.

        What is stored may not continue the window: while a stream was lost, a message may have
        been deleted and started anew.
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

    def _note(self, hint: MessageHint) -> None:
        """Remembers what a hint tells, so that an older read is refused."""
        known = self.open.get(hint.message_id)
        if isinstance(hint, Inserted):
            self._note_inserted(hint)
        elif known is not None and is_after(hint, known.since):
            if isinstance(hint, Deleted):
                self._note_gone(hint.message_id)
            else:
                self._told.update(known.position, hint)
        if isinstance(hint, Updated) and hint.conversation_id == self.key and hint.role:
            self.saved(hint.message_id, hint.role, hint.revision)

    def _note_inserted(self, hint: Inserted) -> None:
        self._told.end = max(self._told.end, _position(hint.document) + 1)

    def _note_gone(self, message_id: ObjectId) -> None:
        self._told.gone.add(self.open[message_id].position)
        self._close(message_id)  # later hints with this id are of another message
        self.mark_stale()

    def note_deleted(self) -> None:
        """Notes that the conversation was deleted."""
        self._told.deleted = True
        self.mark_stale()

    def _apply(self, hint: MessageHint) -> None:
        """Turns a hint that continues from the cursor into an event, or marks the topic stale."""
        if isinstance(hint, Inserted):
            self._apply_inserted(hint)
        elif isinstance(hint, Updated) and (known := self.open.get(hint.message_id)):
            self._apply_updated(hint, known)

    def _apply_inserted(self, hint: Inserted) -> None:
        position = _position(hint.document)
        if position < self._known.end or self.stale:
            return  # seen, or about to be read
        if position > self._known.end or hint.document.get("next_sequence"):
            self.mark_stale()
            return
        row = MessageRow.from_stored(hint.document)
        cursor = self._known.created(row.state.streamed)
        self._put(row.created(str(cursor)), cursor)
        self._read_work(hint.message_id, row.state.role.value, hint.document.get("work"))

    def _read_work(self, message_id: ObjectId, role: str, stored: Mapping[str, Any] | None) -> None:
        """Takes the work of a streaming message as it is stored."""
        if stored and self.work.read(message_id, self._known.conversation_id, role, stored):
            self.window.wake()

    def _apply_updated(self, hint: Updated, known: OpenMessage) -> None:
        for stored in hint.chunks if is_after(hint, known.since) else ():
            if stored["sequence"] == self._known.open[known.position]:
                self._append(hint.message_id, known, MessageChunk.from_stored(stored))
        if hint.ended or (hint.next_sequence or 0) > self._known.open[known.position]:
            self.mark_stale()
        if hint.work and self.work.change(
            hint.message_id, self._known.conversation_id, known.role, hint.work
        ):
            self.window.wake()

    def _append(self, message_id: ObjectId, known: OpenMessage, chunk: MessageChunk) -> None:
        cursor = self._known.appended(known.position, chunk.sequence + 1)
        event = ChunkReceived(
            conversation_id=cursor.conversation_id,
            message_id=message_id,
            role=MessageRole(known.role),
            chunk=chunk,
            cursor=self._text(cursor),
        )
        self._put(event, cursor)

    def _text(self, cursor: ConversationCursor) -> str | None:
        """The text of a cursor for an event."""
        return str(cursor)

    def _put(self, event: ConversationEvent, cursor: ConversationCursor) -> None:
        known = self.open.get(event.message_id)
        if isinstance(event, MessageCreated) and event.streaming:
            self.open[event.message_id] = OpenMessage(event.position, event.role)
            if not self._forgotten:
                self._routes.open[event.message_id] = self
        elif isinstance(event, FinalEvent) and known and known.position not in cursor.open:
            self._close(event.message_id)
        self.cursor = cursor
        self.window.put(event, _weight(event))

    def _set_open(self, messages: dict[ObjectId, OpenMessage]) -> None:
        for message_id in self.open.keys() - messages.keys():
            self._close(message_id)
        self.open = messages
        self.work.keep(messages)
        if not self._forgotten:
            self._routes.open |= dict.fromkeys(messages, self)

    def _close(self, message_id: ObjectId) -> None:
        """Removes a message that does not stream any more, and the route to it."""
        self.open.pop(message_id, None)
        if self._routes.open.get(message_id) is self:
            del self._routes.open[message_id]

    # Comparisons with the database

    def is_behind(self, counters: Mapping[ObjectId, Counters]) -> bool:
        """Returns whether the stored counters are ahead of the cursor."""
        for message_id, known in self.open.items():
            found = counters.get(message_id)
            # A read that failed halfway may have closed the message already.
            sequence = self._known.open.get(known.position, -1)
            if found is None or found.ended or found.next_sequence > sequence:
                return True
            if self.work.is_behind(message_id, found.work):
                return True
        return False

    def find_saved(self, save: Saved) -> None:
        """Handles a save that a comparison with the database found."""
        if not self._saves.is_old(save):
            self.saved(save.message_id, save.role, save.revision, save.position)

    def saved(
        self, message_id: ObjectId, role: str | None, revision: int, position: int | None = None
    ) -> None:
        """Handles the save of a message of the conversation."""
        if not self._saves.is_news(message_id, revision):
            return
        unread = position is not None and self.cursor is not None and position >= self.cursor.end
        if self.stale or self._held is not None or unread:
            # The event of its creation comes first, and may still have to be read.
            self._saves.early[message_id] = role, revision
            self.mark_stale()
            return
        self._tell_saved(message_id, role, revision)

    def _tell_saved(self, message_id: ObjectId, role: str | None, revision: int) -> None:
        if not self._saves.note(message_id, revision):
            return
        if role not in set(MessageRole):
            logger.error("Message %s has the role %r, which is not valid", message_id, role)
            return
        event = MessageUpdated(
            conversation_id=self.key,
            message_id=message_id,
            role=MessageRole(role),
            revision=revision,
            cursor=str(self._known),
        )
        self.window.put(event, 0)

    # Reads

    async def catch_up(self) -> None:
        """Reads what the window lacks from the database, once for all watchers that ask.

        Raises:
            NotFoundError: The conversation, or the watched message, does not exist.
            OutdatedReadError: The read is older than what is known. The topic stays stale.
            PyMongoError: The database could not be read. The topic stays stale.
        """
        async with self._reading, self._reader.turns:
            if not self.stale or self.ended or self.failure:
                return
            if time.monotonic() < self._again_at:
                raise OutdatedReadError
            self.stale = False  # news that come while reading make it stale again
            self._held = deque()  # the read shows all that was told before it
            try:
                await self._read_news()
            except BaseException as error:
                self.stale = True
                self.window.wake()
                if isinstance(error, OutdatedReadError):  # however many watchers ask
                    self._again_at = time.monotonic() + AGAIN_SECONDS
                raise
            self.ready = True
            if self.stale:
                return  # hints stay held until the next read
            held, self._held = self._held, None
            for hint in held:
                self._apply(hint)

    async def _read_news(self) -> None:
        """Reads what is new into the window, or moves the window behind it."""
        # Until the streaming messages are known, a hint of any message may be for this topic.
        self._routes.reading.add(self)
        try:
            await self._read_to_end()
        finally:
            self._routes.reading.discard(self)

    async def _read_to_end(self) -> None:
        reader, known = self._reader, self.cursor
        # The end first: a message before it that does not stream has ended.
        end = await reader.conversation_end(self.key)
        if end is None:
            await self._refuse_missing()
        self.doubts.dispel("gone")
        if known is None:
            await self._routes.begin_saves(reader)
            self._saves.begin(await reader.last_saves(self.key, SAVES_KNOWN))
        streaming = await reader.streaming(self.key, end)
        target = cursor_at(self.key, end, streaming)
        if known is not None:
            target = self._refuse_older(known, target)
        opened = await self._find_open(
            {
                message_id: OpenMessage(position, role)
                for position, (message_id, _, role, _) in streaming.items()
                if position in target.open
            }
        )
        put = 0
        while self.cursor is not None and put < WINDOW_EVENTS:
            steps = await self._replay().steps(self.cursor, target)
            if not steps:
                break
            for event, cursor in steps:
                self._put(event, cursor)
            put += len(steps)
        if self.cursor != target:
            # The first read, or more than the window holds: each watcher reads at its own pace.
            self.cursor = target
            self.window.jump(self.window.head)
        self._set_open(opened)
        for message_id, _, role, work in streaming.values():
            if message_id in opened:
                self._read_work(message_id, role, work)
        self._told.forget_all_but(target.open)
        for message_id, save in self._saves.take_early().items():
            self._tell_saved(message_id, *save)

    async def _find_open(
        self, streaming: Mapping[ObjectId, OpenMessage]
    ) -> dict[ObjectId, OpenMessage]:
        """Adds to streaming messages the moment when they were found."""
        opened = {
            message_id: known
            for message_id, found in streaming.items()
            if (known := self.open.get(message_id)) and known.position == found.position
        }
        if len(opened) < len(streaming):
            since = await self._reader.committed_time()
            for message_id, found in streaming.items():
                opened.setdefault(message_id, found._replace(since=since))
        return opened

    async def _refuse_missing(self) -> NoReturn:
        """Raises that the conversation is missing, once that is certain."""
        error = ConversationNotFoundError(self.key)
        if self.cursor is None:
            # It may be too new for a majority read, but not for the primary.
            if self._reader.local and await self._local.has_conversation(self.key):
                raise OutdatedReadError
            raise error
        if not self._told.deleted and not self.doubts.stands("gone"):
            raise OutdatedReadError
        self.fail(error)
        raise error

    def _refuse_older(
        self, known: ConversationCursor, target: ConversationCursor
    ) -> ConversationCursor:
        """Refuses a target that is older than what is known, until that has lasted."""
        told = self._told
        behind = target.end < max(known.end, told.end) or any(
            position in told.ended
            or (position < known.end and position not in known.open)
            or sequence < max(known.open.get(position, 0), told.open.get(position, 0))
            for position, sequence in target.open.items()
        )
        if not behind:
            self.doubts.dispel("behind")
            return target
        if not self.doubts.stands("behind"):
            raise OutdatedReadError
        self._told = _Told()
        opened = {
            position: max(found, known.open.get(position, 0))
            for position, found in target.open.items()
            if position >= known.end or position in known.open
        }
        return ConversationCursor(target.conversation_id, max(target.end, known.end), opened)


@dataclass(slots=True)
class _Told:
    """The news of hints since the last read. A read that shows less is outdated.

    Attributes:
        end: The position behind the last message.
        open: The next sequences of streaming messages, by position.
        ended: Positions of messages that ended.
        gone: Positions of messages that were deleted.
        deleted: Whether the conversation was deleted.
    """

    end: int = 0
    open: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    deleted: bool = False

    def update(self, position: int, hint: Updated) -> None:
        """Adds the news of a streaming message."""
        self.open[position] = max(self.open.get(position, 0), hint.next_sequence or 0)
        if hint.ended:
            self.ended.add(position)

    def forget_all_but(self, positions: Container[int]) -> None:
        """Forgets the news of messages that are not at ``positions``."""
        self.open = {key: value for key, value in self.open.items() if key in positions}
        self.ended = {key for key in self.ended if key in positions}
        self.gone = {key for key in self.gone if key in positions}
        self.deleted = False


def is_after(hint: MessageHint, moment: Timestamp | None) -> bool:
    """Returns whether a change was made after a moment of the server's clock."""
    return hint.time is None or moment is None or hint.time > moment


def _position(document: Mapping[str, Any]) -> int:
    """The position of a message; -1 if the library has not written it."""
    position = document.get("position")
    return position if isinstance(position, int) else -1


def _weight(event: ConversationEvent) -> int:
    if isinstance(event, ChunkReceived):
        chunk = event.chunk
        return chunk.stored_size if isinstance(chunk, PartChunk) else len(chunk.content)
    return len(event.content) if isinstance(event, MessageCreated) else 0
