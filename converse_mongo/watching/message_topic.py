"""A watched message: its conversation, filtered to one position, up to the message's end."""

from collections.abc import Sequence
from typing import NoReturn, TypeVar, cast

from bson import ObjectId

from converse_mongo.domain.cursors import ConversationCursor
from converse_mongo.domain.errors import MessageNotFoundError
from converse_mongo.domain.events import (
    ChunkReceived,
    ConversationEvent,
    FinalEvent,
    MessageSnapshot,
)
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.validation import check_sequence
from converse_mongo.store.reads import Reader
from converse_mongo.watching.changes import Deleted, Inserted, MessageHint
from converse_mongo.watching.doubts import OutdatedReadError
from converse_mongo.watching.replay import CHUNKS_PER_READ, hole, run_from
from converse_mongo.watching.topics import WINDOW_EVENTS, OpenMessage, Routes, Topic, is_after

T = TypeVar("T")


class MessageTopic(Topic):
    """A watched message. No other message of its conversation is read.

    The index of a chunk in the window is its sequence. The final event follows the last chunk.
    Events carry no cursor: a watcher continues from the sequence of a chunk.

    Attributes:
        key: The id of the message.
        header: The message as of the last read.
    """

    def __init__(self, key: ObjectId, reader: Reader) -> None:
        super().__init__(key, reader, Routes())
        self.header: MessageHeader | None = None

    @property
    def _message(self) -> MessageHeader:
        return cast(MessageHeader, self.header)

    @property
    def _next(self) -> int:
        """The sequence of the next chunk."""
        return self._known.open[self._message.position]

    def _at(self, sequence: int) -> ConversationCursor:
        position = self._message.position
        return ConversationCursor(self._message.conversation_id, position + 1, {position: sequence})

    async def start(self, after: object) -> ConversationCursor:
        return self._at(check_sequence(after))

    async def enter(self, cursor: ConversationCursor) -> None:
        """Accepts any cursor: a watcher may wait for a chunk that is not stored yet."""

    def behind(self, event: ConversationEvent | MessageSnapshot) -> ConversationCursor:
        if isinstance(event, ChunkReceived):
            return self._at(event.chunk.sequence + 1)
        return self._at(cast(MessageSnapshot | FinalEvent, event).chunk_count)

    async def snapshot(self) -> MessageSnapshot:
        """Reads the parts so far.

        Raises:
            MessageNotFoundError: The message is missing, or was deleted and started anew.
            OutdatedReadError: The read is older than what is known.
            WatchError: A chunk is missing.
        """
        found = await self._reader.parts(self.key, self._message.conversation_id)
        header, log = await self._accept(found)
        if log.next_sequence != header.next_sequence:
            self._refuse_hole(log.next_sequence)
        return MessageSnapshot.of(
            log,
            ended=header.status.is_final,
            conversation_id=header.conversation_id,
            message_id=header.message_id,
            role=header.role,
            metadata=header.metadata,
        )

    def locate(self, cursor: ConversationCursor) -> int | None:
        sequence = cursor.open[self._message.position]
        if self.ended:
            sequence = min(sequence, self.window.head - 1)
        return sequence if sequence >= self.window.first else None

    async def read(
        self, cursor: ConversationCursor, goal: ConversationCursor
    ) -> Sequence[ConversationEvent]:
        known, position = self._message, self._message.position
        start = cursor.open[position]
        found = await self._reader.read(
            *(self.key, known.conversation_id, start, CHUNKS_PER_READ),
            page_start=known.page_start,
            stop=goal.open[position],
        )
        chunks = run_from(start, (await self._accept(found))[1])
        if not chunks:
            self._refuse_hole(start)
        return [known.chunk_received(chunk) for chunk in chunks]

    def _text(self, cursor: ConversationCursor) -> None:  # noqa: ARG002
        return None

    def _note_inserted(self, hint: Inserted) -> None:
        """Notes that the message was started anew. Its own insertion may be reported late."""
        known = self.open.get(self.key)
        restarted = known and hint.document.get("log_id") != self._message.log_id
        if known and restarted and is_after(hint, known.since):
            self._note_gone(self.key)

    def _apply(self, hint: MessageHint) -> None:
        if isinstance(hint, Deleted) and not self.ended:
            self.mark_stale()  # it came during the first read
        super()._apply(hint)

    def _apply_inserted(self, hint: Inserted) -> None:  # noqa: ARG002
        if not self.ended:
            self.mark_stale()

    async def _read_news(self) -> None:
        first_time = self.header is None
        if self.header is None:
            found = await self._reader.read_tail(self.key, WINDOW_EVENTS)
        else:
            found = await self._reader.read(
                *(self.key, self.header.conversation_id, self._next, WINDOW_EVENTS),
                page_start=self.header.page_start,
            )
        header, chunks = await self._accept(found)
        end, final = header.next_sequence, header.status.is_final
        if not first_time:
            target = self._at(end)
            self._refuse_older(self._known, target.ended(header.position) if final else target)
        opened = await self._find_open(
            {} if final else {self.key: OpenMessage(header.position, header.role)}
        )
        self.header = header
        if first_time:
            self._jump(end - len(chunks))
        elif end > self._next + len(chunks):
            # More than the window holds: each watcher reads at its own pace.
            self._jump(end)
            chunks = []
        for chunk in run_from(self._next, chunks):
            self._append(self.key, OpenMessage(header.position, header.role), chunk)
        if self._next != end:
            self._refuse_hole(self._next)
        self._set_open(opened)
        if header.work is not None and not final:
            self._read_work(self.key, header.role.value, header.work.to_stored())
        self._told.forget_all_but(self._known.open)
        if final:
            self.ended = True
            self.window.put(header.ended(), 0)

    def _jump(self, sequence: int) -> None:
        self.cursor = self._at(sequence)
        self.window.jump(sequence)

    async def _accept(self, found: tuple[MessageHeader, T] | None) -> tuple[MessageHeader, T]:
        """Returns what was read, if it is the watched message.

        Raises:
            MessageNotFoundError: The message is missing, or was deleted and started anew.
            OutdatedReadError: The message is missing, but that has not lasted long enough.
        """
        known = self.header
        if found is not None and (known is None or found[0].log_id == known.log_id):
            self.doubts.dispel("gone")
            self._told.gone.clear()
            return found
        error = MessageNotFoundError(self.key)
        if known is None:
            # It may be too new for a majority read, but not for the primary.
            if self._reader.local and await self._local.has_message(self.key):
                raise OutdatedReadError
            raise error
        if known.position not in self._told.gone and not self.doubts.stands("gone"):
            raise OutdatedReadError
        self.fail(error)
        raise error

    def _refuse_hole(self, sequence: int) -> NoReturn:
        """Refuses a read that lacks a chunk."""
        if not self.doubts.stands(("hole", sequence)):
            raise OutdatedReadError
        raise hole(self.key, sequence)
