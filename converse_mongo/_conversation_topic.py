"""A watched conversation: all its messages, as one stream of events."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, cast

from bson import ObjectId

from converse_mongo._changes import Deleted, Inserted, MessageHint, Updated
from converse_mongo._cursors import NOW, ConversationCursor
from converse_mongo._driver import Mark
from converse_mongo._reader import Counters, MessageRow, Reader, Saved
from converse_mongo._state import MessageState
from converse_mongo._topics import CHUNKS_PER_READ, WINDOW_EVENTS, Topic, check_run, hole
from converse_mongo.chunks import MessageChunk
from converse_mongo.errors import ConversationNotFoundError, WatchError
from converse_mongo.events import (
    ChunkReceived,
    ConversationEvent,
    FinalEvent,
    MessageCreated,
    MessageUpdated,
)

__all__ = ["ConversationTopic", "Routes"]

ROWS_PER_READ = 64
SAVES_KNOWN = 256

Step: TypeAlias = tuple[ConversationEvent, ConversationCursor]
"""An event, and where a watcher of the conversation stands behind it."""


class Routes:
    """Leads hints of messages to the conversations that are watched.

    An update of a message does not say which conversation it belongs to.
    """

    def __init__(self) -> None:
        self.open: dict[ObjectId, ConversationTopic] = {}
        """Message id to topic, of all streaming messages of all watched conversations."""
        self.reading: set[ConversationTopic] = set()
        """Topics that are finding out which messages stream."""
        self.saves_since: Mark | None = None
        """Up to when all topics know of all saves; a topic knows those before it was first read."""

    async def begin_saves(self, reader: Reader) -> None:
        """Notes the moment before the first of all topics is read."""
        if self.saves_since is None:
            moment = await reader.moment()
            self.saves_since = self.saves_since or moment


class ConversationTopic(Topic[ConversationEvent, ConversationCursor]):
    """A conversation. Its state is a cursor; the index in its window is just a count."""

    def __init__(self, key: ObjectId, reader: Reader, routes: "Routes") -> None:
        super().__init__(key, reader)
        self.cursor: ConversationCursor | None = None
        """Where the window is; ``None`` before the first read."""
        self.open: dict[ObjectId, int] = {}
        """Message id to position of the messages that stream, as the window knows them."""
        self._routes = routes
        self._forgotten = False
        self._revisions: dict[ObjectId, int] = {}
        self._oldest_save: Mark | None = None
        self._early_saves: dict[ObjectId, int] = {}

    def state_at(self, after: object) -> ConversationCursor:
        if after == NOW:
            return self._known
        if after is None:
            return ConversationCursor(self.key)
        return ConversationCursor.parse(after, self.key)

    def covers(self, state: ConversationCursor) -> bool:
        return self._known.covers(state)

    def state_behind(self, event: ConversationEvent) -> ConversationCursor:
        return ConversationCursor.parse(event.cursor, self.key)

    def locate(self, state: ConversationCursor) -> int | None:
        return self.window.head if state == self._known else None

    def here(self) -> tuple[ConversationCursor, int]:
        return self._known, self.window.head

    async def read(
        self, state: ConversationCursor, goal: ConversationCursor
    ) -> Sequence[ConversationEvent]:
        return [event for event, _ in await self._read(state, goal)]

    def is_behind(self, counters: Mapping[ObjectId, Counters]) -> bool:
        """Whether one of its streaming messages has moved on, says the database."""
        for message_id, position in self.open.items():
            found = counters.get(message_id)
            if found is None or found.ended or found.next_sequence > self._known.open[position]:
                return True
        return False

    def find_saved(self, save: Saved) -> None:
        """Takes a save that a look at the database found."""
        if self._oldest_save is None or save.mark >= self._oldest_save:
            self.saved(save.message_id, save.revision, save.position)

    def saved(self, message_id: ObjectId, revision: int, position: int | None = None) -> None:
        """Takes the news that a message of the conversation was saved."""
        if self._revisions.get(message_id, 0) >= revision:
            return
        if self.stale or (position is not None and position >= self._known.end):
            # Its creation may be among what is to be read, and comes first.
            self._early_saves[message_id] = revision
            self.mark_stale()
            return
        self._revisions.pop(message_id, None)  # put back as the last to be forgotten
        self._revisions[message_id] = revision
        if len(self._revisions) > SAVES_KNOWN:
            del self._revisions[next(iter(self._revisions))]
        event = MessageUpdated(
            conversation_id=self.key,
            message_id=message_id,
            revision=revision,
            cursor=str(self._known),
        )
        self.window.put(event, 0)

    def forget(self) -> None:
        self._set_open({})
        self._forgotten = True

    def _set_open(self, messages: dict[ObjectId, int]) -> None:
        for message_id in self.open:
            self._routes.open.pop(message_id, None)
        self.open = messages
        if self._forgotten:
            return
        self._routes.open |= dict.fromkeys(messages, self)

    @property
    def _known(self) -> ConversationCursor:
        return cast(ConversationCursor, self.cursor)

    def _apply(self, hint: MessageHint) -> None:
        if isinstance(hint, Inserted):
            self._apply_inserted(hint)
        elif isinstance(hint, Deleted):
            if hint.message_id in self.open:
                self.mark_stale()
        elif isinstance(hint, Updated):
            if hint.message_id in self.open:
                self._apply_appended(hint)
            if hint.conversation_id == self.key:
                self.saved(hint.message_id, hint.revision)

    def _apply_inserted(self, hint: Inserted) -> None:
        position = hint.document.get("position", 0)
        if position < self._known.end or self.stale:
            return  # seen, or among what is to be read, behind what came before it
        if position > self._known.end or hint.document.get("next_sequence"):
            self.mark_stale()
            return
        state = MessageState.from_stored(hint.document)
        row = MessageRow(state, "" if state.streamed else hint.document.get("content") or "")
        self._put(*_created(self._known, row))

    def _apply_appended(self, hint: Updated) -> None:
        position = self.open[hint.message_id]
        for stored in hint.chunks:
            if stored["sequence"] == self._known.open[position]:
                chunk = MessageChunk.from_stored(stored)
                self._put(*_appended(self._known, position, hint.message_id, chunk))
        if hint.ended or (hint.next_sequence or 0) > self._known.open[position]:
            self.mark_stale()

    def _put(self, event: ConversationEvent, cursor: ConversationCursor) -> None:
        if isinstance(event, MessageCreated) and event.streaming:
            self.open[event.message_id] = event.position
            if not self._forgotten:
                self._routes.open[event.message_id] = self
        elif isinstance(event, FinalEvent):
            self.open.pop(event.message_id, None)
            self._routes.open.pop(event.message_id, None)
        self.cursor = cursor
        self.window.put(event, _weight(event))

    async def _read_news(self) -> None:
        # Until it is known which messages stream, a hint of any message may be for this topic.
        self._routes.reading.add(self)
        try:
            await self._read_to_end()
        finally:
            self._routes.reading.discard(self)

    async def _read_to_end(self) -> None:
        reader = self._reader
        # The end first: a message before it that is not among the streaming ones has ended.
        end = await reader.conversation_end(self.key)
        if end is None:
            raise ConversationNotFoundError(self.key)
        if self.cursor is None:
            await self._routes.begin_saves(reader)
            known = await reader.last_saves(self.key, SAVES_KNOWN)
            self._revisions = {save.message_id: save.revision for save in reversed(known)}
            # Where there are more, those before are old as well.
            self._oldest_save = known[-1].mark if len(known) == SAVES_KNOWN else None
        streaming = await reader.streaming(self.key, end)
        target = ConversationCursor(
            self.key, end, {position: found[1] for position, found in streaming.items()}
        )
        put = 0
        while self.cursor is not None and put < WINDOW_EVENTS:
            steps = await self._read(self.cursor, target)
            if not steps:
                break
            for event, cursor in steps:
                self._put(event, cursor)
            put += len(steps)
        if self.cursor != target:
            # The first read, or too much for the window: watchers read it at their own pace.
            self.cursor = target
            self.window.jump(self.window.head)
        self._set_open({found[0]: position for position, found in streaming.items()})
        early, self._early_saves = self._early_saves, {}
        for message_id, revision in early.items():
            self.saved(message_id, revision)

    async def _read(self, cursor: ConversationCursor, target: ConversationCursor) -> list[Step]:
        """Some steps from ``cursor`` towards ``target``; none when there is nothing in between."""
        while cursor != target:
            behind = (p for p in sorted(cursor.open) if target.open.get(p) != cursor.open[p])
            position = next(behind, None)
            if position is not None:
                steps, cursor = await self._read_open(cursor, target, position)
            elif cursor.end < target.end:
                steps, cursor = await self._read_created(cursor, target)
            else:
                break
            if steps:
                return steps
        return []

    async def _read_open(
        self, cursor: ConversationCursor, target: ConversationCursor, position: int
    ) -> tuple[list[Step], ConversationCursor]:
        """Chunks of one message, and its end where ``target`` is behind that."""
        start, stop = cursor.open[position], target.open.get(position)
        found = await self._reader.read_at(self.key, position, start, CHUNKS_PER_READ, stop=stop)
        if found is None:  # deleted
            return [], cursor.ended(position)
        state, chunks = found
        check_run(state.message_id, start, chunks)
        steps: list[Step] = []
        for chunk in chunks:
            steps.append(_appended(cursor, position, state.message_id, chunk))
            cursor = steps[-1][1]
        if stop is None and cursor.open[position] == state.next_sequence:
            if not state.status.is_final:
                raise WatchError(f"Message {state.message_id} had ended and is streaming again.")
            cursor = cursor.ended(position)
            steps.append((state.ended(str(cursor)), cursor))
        elif not chunks:
            raise hole(state.message_id, start)
        return steps, cursor

    async def _read_created(
        self, cursor: ConversationCursor, target: ConversationCursor
    ) -> tuple[list[Step], ConversationCursor]:
        """Messages up to the first that was streamed: its chunks come before what follows it."""
        rows = await self._reader.rows(self.key, cursor.end, target.end, ROWS_PER_READ)
        steps: list[Step] = []
        for row in rows:
            # Positions that are missing belonged to messages that were deleted since.
            cursor = replace(cursor, end=row.state.position)
            steps.append(_created(cursor, row))
            cursor = steps[-1][1]
            if row.state.streamed:
                return steps, cursor
        if len(rows) < ROWS_PER_READ:
            cursor = replace(cursor, end=target.end)
            if steps:  # so that the last event says that nothing is left
                steps[-1] = (replace(steps[-1][0], cursor=str(cursor)), cursor)
        return steps, cursor


def _created(cursor: ConversationCursor, row: MessageRow) -> Step:
    state = row.state
    cursor = cursor.created(state.streamed)
    event = MessageCreated(
        conversation_id=state.conversation_id,
        message_id=state.message_id,
        position=state.position,
        role=state.role,
        streaming=state.streamed,
        content=row.content,
        metadata=state.metadata,
        created_at=state.created_at,
        cursor=str(cursor),
    )
    return event, cursor


def _appended(
    cursor: ConversationCursor, position: int, message_id: ObjectId, chunk: MessageChunk
) -> Step:
    cursor = cursor.appended(position, chunk.sequence + 1)
    event = ChunkReceived(
        conversation_id=cursor.conversation_id,
        message_id=message_id,
        chunk=chunk,
        cursor=str(cursor),
    )
    return event, cursor


def _weight(event: ConversationEvent) -> int:
    if isinstance(event, ChunkReceived):
        return len(event.chunk.content)
    return len(event.content) if isinstance(event, MessageCreated) else 0
