"""A watched conversation: all its messages, as one stream of events."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeAlias, cast

from bson import ObjectId, Timestamp

from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.cursors import NOW, ConversationCursor
from converse_mongo.domain.errors import (
    ConversationNotFoundError,
    InvalidCursorError,
    WatchError,
)
from converse_mongo.domain.events import (
    ChunkReceived,
    ConversationEvent,
    FinalEvent,
    MessageCreated,
    MessageUpdated,
)
from converse_mongo.domain.types import MessageRole
from converse_mongo.driver.servers import Mark
from converse_mongo.store.reads import (
    Counters,
    MessageRow,
    Reader,
    Saved,
)
from converse_mongo.watching.changes import (
    Deleted,
    Inserted,
    MessageHint,
    Updated,
)
from converse_mongo.watching.doubts import OutdatedReadError
from converse_mongo.watching.topics import (
    CHUNKS_PER_READ,
    WINDOW_EVENTS,
    Topic,
    hole,
    is_after,
    run_from,
)

__all__ = ["ConversationTopic", "Routes", "message_created"]

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
        self._roles: dict[ObjectId, MessageRole] = {}
        self._routes = routes
        self._forgotten = False
        self._revisions: dict[ObjectId, int] = {}
        self._oldest_save: Mark | None = None
        self._early_saves: dict[ObjectId, tuple[MessageRole, int]] = {}
        self._told = _Told()
        self._since: dict[ObjectId, Timestamp | None] = {}
        """When the open messages were found: updates before may be of others with the same id."""

    async def begin(self, after: object) -> ConversationCursor:
        if after != NOW or self._reader.local is None:
            return await super().begin(after)
        # The majority may not have all yet that is stored.
        end = await self._local.conversation_end(self.key)
        if end is None or end < self._known.end:
            return self._known
        return _target(self.key, end, await self._local.streaming(self.key, end))

    def state_at(self, after: object) -> ConversationCursor:
        if after == NOW:
            return self._known
        if after is None:
            return ConversationCursor(self.key)
        return ConversationCursor.parse(after, self.key)

    def covers(self, state: ConversationCursor) -> bool:
        return self._known.covers(state)

    async def reach(self, state: ConversationCursor) -> None:
        self.mark_stale()
        await self.catch_up()
        if self.covers(state):
            return
        if self._reader.local is not None:
            # The primary has all that anybody has had elsewhere, if it is the primary still.
            if await self._is_stored(state):
                raise OutdatedReadError
            confirmed = await self._reader.confirm_primary(self.key)
            if await self._is_stored(state) or not (
                confirmed or self.doubts.stands(("ahead", str(state)))
            ):
                raise OutdatedReadError
        raise InvalidCursorError(
            f"after={str(state)!r} is ahead of what is stored: it was not made here, or the "
            "database was set back."
        )

    async def _is_stored(self, state: ConversationCursor) -> bool:
        """Whether the primary has all that was seen at ``state``."""
        end = await self._local.conversation_end(self.key)
        if end is None:
            return False
        return _target(self.key, end, await self._local.streaming(self.key, end)).covers(state)

    async def check(self, state: ConversationCursor) -> None:
        unknown = [position for position in state.open if position not in self._known.open]
        for found in await self._reader.messages_at(self.key, unknown):
            sequence = state.open[found.position]
            if not found.streamed or (found.status.is_final and sequence > found.next_sequence):
                raise InvalidCursorError(
                    f"after={str(state)!r} is not a cursor of this conversation: the message at "
                    f"position {found.position} has no chunk {sequence - 1} that was streamed."
                )

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
            self.saved(save.message_id, save.role, save.revision, save.position)

    def saved(
        self, message_id: ObjectId, role: MessageRole, revision: int, position: int | None = None
    ) -> None:
        """Takes the news that a message of the conversation was saved."""
        if self._revisions.get(message_id, 0) >= revision:
            return
        unread = position is not None and self.cursor is not None and position >= self.cursor.end
        if self.stale or self._held is not None or unread:
            # Its creation may be among what is to be read, and comes first.
            self._early_saves[message_id] = role, revision
            self.mark_stale()
            return
        self._tell_saved(message_id, role, revision)

    def _tell_saved(self, message_id: ObjectId, role: MessageRole, revision: int) -> None:
        if self._revisions.get(message_id, 0) >= revision:
            return
        self._revisions.pop(message_id, None)  # put back as the last to be forgotten
        self._revisions[message_id] = revision
        if len(self._revisions) > SAVES_KNOWN:
            del self._revisions[next(iter(self._revisions))]
        event = MessageUpdated(
            conversation_id=self.key,
            message_id=message_id,
            role=role,
            revision=revision,
            cursor=str(self._known),
        )
        self.window.put(event, 0)

    def forget(self) -> None:
        self._set_open({})
        self._forgotten = True

    def note_deleted(self) -> None:
        """Takes the news that the conversation was deleted."""
        self._told.deleted = True
        self.mark_stale()

    def _set_open(self, messages: dict[ObjectId, int]) -> None:
        for message_id in self.open.keys() - messages.keys():
            self._close(message_id)
        self.open = messages
        if self._forgotten:
            return
        self._routes.open |= dict.fromkeys(messages, self)

    @property
    def _known(self) -> ConversationCursor:
        return cast(ConversationCursor, self.cursor)

    def _close(self, message_id: ObjectId) -> None:
        """Has hints of a message not led here any more."""
        self.open.pop(message_id, None)
        self._roles.pop(message_id, None)
        self._since.pop(message_id, None)
        if self._routes.open.get(message_id) is self:
            del self._routes.open[message_id]

    def _note(self, hint: MessageHint) -> None:
        told, position = self._told, self.open.get(hint.message_id)
        if isinstance(hint, Inserted):
            told.end = max(told.end, _position(hint.document) + 1)
        elif isinstance(hint, Deleted):
            if position is not None:
                # What follows under the same id is of another message.
                self._close(hint.message_id)
                told.gone.add(position)
                self.mark_stale()
        else:
            if position is not None and is_after(hint, self._since.get(hint.message_id)):
                sequence = max(told.open.get(position, 0), hint.next_sequence or 0)
                told.open[position] = sequence
                if hint.ended:
                    told.ended.add(position)
            if hint.conversation_id == self.key and hint.role is not None:
                self.saved(hint.message_id, hint.role, hint.revision)

    def _apply(self, hint: MessageHint) -> None:
        if isinstance(hint, Inserted):
            self._apply_inserted(hint)
        elif isinstance(hint, Updated) and hint.message_id in self.open:
            self._apply_appended(hint)

    def _apply_inserted(self, hint: Inserted) -> None:
        position = _position(hint.document)
        if position < self._known.end or self.stale:
            return  # seen, or among what is to be read, behind what came before it
        if position > self._known.end or hint.document.get("next_sequence"):
            self.mark_stale()
            return
        self._put(*_created(self._known, MessageRow.from_stored(hint.document)))

    def _apply_appended(self, hint: Updated) -> None:
        position = self.open[hint.message_id]
        recent = is_after(hint, self._since.get(hint.message_id))
        for stored in hint.chunks if recent else ():
            if stored["sequence"] == self._known.open[position]:
                chunk, role = MessageChunk.from_stored(stored), self._roles[hint.message_id]
                self._put(*_appended(self._known, position, hint.message_id, role, chunk))
        if hint.ended or (hint.next_sequence or 0) > self._known.open[position]:
            self.mark_stale()

    def _put(self, event: ConversationEvent, cursor: ConversationCursor) -> None:
        if isinstance(event, MessageCreated) and event.streaming:
            self.open[event.message_id] = event.position
            self._roles[event.message_id] = event.role
            if not self._forgotten:
                self._routes.open[event.message_id] = self
        elif isinstance(event, FinalEvent) and self.open.get(event.message_id) not in cursor.open:
            self._close(event.message_id)
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
        reader, known = self._reader, self.cursor
        # The end first: a message before it that is not among the streaming ones has ended.
        end = await reader.conversation_end(self.key)
        if end is None:
            await self._refuse_missing()
        self.doubts.dispel("gone")
        if known is None:
            await self._routes.begin_saves(reader)
            saves = await reader.last_saves(self.key, SAVES_KNOWN)
            self._revisions = {save.message_id: save.revision for save in reversed(saves)}
            # Where there are more, those before are old as well.
            self._oldest_save = saves[-1].mark if len(saves) == SAVES_KNOWN else None
        streaming = await reader.streaming(self.key, end)
        target = _target(self.key, end, streaming)
        if known is not None:
            target = self._refuse_older(known, target)
        opened = {
            message_id: position
            for position, (message_id, *_) in streaming.items()
            if position in target.open
        }
        if opened.items() - self.open.items():
            moment = await reader.committed_time()
            self._since |= dict.fromkeys(opened.keys() - self.open.keys(), moment)
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
        self._set_open(opened)
        self._roles = {message_id: role for message_id, _, role in streaming.values()}
        self._told.forget_all_but(target.open)
        early, self._early_saves = self._early_saves, {}
        for message_id, save in early.items():
            self._tell_saved(message_id, *save)

    async def _refuse_missing(self) -> NoReturn:
        """Refuses to find no conversation, unless it was told of, or that stands."""
        error = ConversationNotFoundError(self.key)
        if self.cursor is None:
            # Never seen before: it may be too new for the majority, but not for the primary.
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
        """``target``, if nothing is known that is ahead of it; else it stands, and is moved up."""
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
        return ConversationCursor(self.key, max(target.end, known.end), opened)

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
        if found is None:
            await self._refuse_undeleted(position)
            return [], cursor.ended(position)
        self.doubts.dispel(("gone", position))
        state, chunks = found
        steps: list[Step] = []
        for chunk in run_from(start, chunks):
            steps.append(_appended(cursor, position, state.message_id, state.role, chunk))
            cursor = steps[-1][1]
        if stop is None and cursor.open[position] == state.next_sequence:
            if not state.status.is_final:
                # Older than what told that it had ended; the chunks are right all the same.
                if steps:
                    return steps, cursor
                if not self.doubts.stands(("streaming", position)):
                    raise OutdatedReadError
                raise WatchError(f"Message {state.message_id} had ended and is streaming again.")
            cursor = cursor.ended(position)
            steps.append((state.ended(str(cursor)), cursor))
        elif not steps:
            if not self.doubts.stands(("hole", position, start)):
                raise OutdatedReadError
            raise hole(state.message_id, start)
        return steps, cursor

    async def _refuse_undeleted(self, position: int) -> None:
        """Refuses to find no message at a position, unless it was deleted."""
        if self._reader.local is None or position in self._told.gone:
            return
        if position in self._known.open:
            deleted = self.doubts.stands(("gone", position))
        else:
            deleted = not await self._local.has_messages(self.key, position, position + 1)
        if not deleted:
            raise OutdatedReadError

    async def _read_created(
        self, cursor: ConversationCursor, target: ConversationCursor
    ) -> tuple[list[Step], ConversationCursor]:
        """Messages up to the first that was streamed: its chunks come before what follows it."""
        rows = await self._reader.rows(self.key, cursor.end, target.end, ROWS_PER_READ)
        steps: list[Step] = []
        for row in rows:
            position = row.state.position
            if await self._lacks(cursor.end, position):
                break
            # Positions that are missing belonged to messages that were deleted since.
            cursor = replace(cursor, end=position)
            steps.append(_created(cursor, row))
            cursor = steps[-1][1]
            if row.state.streamed:
                return steps, cursor
        else:
            if len(rows) < ROWS_PER_READ and not await self._lacks(cursor.end, target.end):
                cursor = replace(cursor, end=target.end)
                if steps:  # so that the last event says that nothing is left
                    steps[-1] = (replace(steps[-1][0], cursor=str(cursor)), cursor)
                return steps, cursor
        if not steps:
            raise OutdatedReadError
        return steps, cursor

    async def _lacks(self, start: int, stop: int) -> bool:
        """Whether there are messages, where none were read, that the majority may not have yet."""
        if start >= stop or self._reader.local is None:
            return False
        return await self._local.has_messages(self.key, start, stop)


@dataclass(slots=True)
class _Told:
    """What hints told since the last read: a read that shows less is outdated.

    Attributes:
        end: Behind the position of the last message.
        open: Position to next sequence of messages that stream.
        ended: Positions of messages that ended.
        gone: Positions of messages that were deleted.
        deleted: Whether the conversation was.
    """

    end: int = 0
    open: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    deleted: bool = False

    def forget_all_but(self, positions: Container[int]) -> None:
        """Forgets what is of no use once only the messages at ``positions`` stream."""
        self.open = {key: value for key, value in self.open.items() if key in positions}
        self.ended = {key for key in self.ended if key in positions}
        self.gone = {key for key in self.gone if key in positions}
        self.deleted = False


def _target(
    conversation_id: ObjectId, end: int, streaming: Mapping[int, tuple[ObjectId, int, MessageRole]]
) -> ConversationCursor:
    opened = {position: sequence for position, (_, sequence, _) in streaming.items()}
    return ConversationCursor(conversation_id, end, opened)


def _position(document: Mapping[str, Any]) -> int:
    """The position of a message; that of one which the library has not written is before all."""
    position = document.get("position")
    return position if isinstance(position, int) else -1


def _created(cursor: ConversationCursor, row: MessageRow) -> Step:
    cursor = cursor.created(row.state.streamed)
    return message_created(row, str(cursor)), cursor


def message_created(row: MessageRow, cursor: str | None = None) -> MessageCreated:
    """The event that a message was added."""
    state = row.state
    return MessageCreated(
        conversation_id=state.conversation_id,
        message_id=state.message_id,
        position=state.position,
        role=state.role,
        streaming=state.streamed,
        content=row.content,
        metadata=state.metadata,
        created_at=state.created_at,
        cursor=cursor,
    )


def _appended(
    cursor: ConversationCursor,
    position: int,
    message_id: ObjectId,
    role: MessageRole,
    chunk: MessageChunk,
) -> Step:
    cursor = cursor.appended(position, chunk.sequence + 1)
    event = ChunkReceived(
        conversation_id=cursor.conversation_id,
        message_id=message_id,
        role=role,
        chunk=chunk,
        cursor=str(cursor),
    )
    return event, cursor


def _weight(event: ConversationEvent) -> int:
    if isinstance(event, ChunkReceived):
        return len(event.chunk.content)
    return len(event.content) if isinstance(event, MessageCreated) else 0
