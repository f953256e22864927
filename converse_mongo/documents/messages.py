"""Messages: what was said, whole or while it streams."""

import copy
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Self, TypeVar, cast

from beanie import Document, PydanticObjectId
from beanie.odm.actions import ActionDirections, EventTypes, wrap_with_actions
from beanie.odm.utils.parsing import parse_obj
from bson import ObjectId
from pydantic import Field, PrivateAttr
from pymongo import ASCENDING, IndexModel

from converse_mongo.documents.base import JsonableDict, StoredDocument
from converse_mongo.documents.own_writes import OwnWrites
from converse_mongo.domain.chunks import NO_METADATA, ChunkLog, MessageChunk, Piece, UtcDatetime
from converse_mongo.domain.errors import (
    InvalidInputError,
    MessageNotFoundError,
    ProtectedFieldError,
    StoreUnavailableError,
    WatchError,
)
from converse_mongo.domain.events import MessageCreated
from converse_mongo.domain.headers import MessageHeader, message_key, with_chunk_count
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.metadata import check_metadata
from converse_mongo.domain.types import Granularity, MessageRole, MessageStatus, Metadata
from converse_mongo.domain.validation import (
    CHUNK_OVERHEAD,
    EPOCH,
    MAX_APPEND_BYTES,
    MAX_APPEND_CHUNKS,
    MAX_CHUNK_BYTES,
    MAX_CONTENT_BYTES,
    PAGE_CHUNKS,
    check_chunk_contents,
    check_content,
    check_error,
    check_reason,
    check_sequence,
    now,
    object_id,
    utf8_size,
)
from converse_mongo.driver.servers import FIRST_MARK
from converse_mongo.store import Store, WriteQueue, updates
from converse_mongo.store.appends import refuse_overtaken
from converse_mongo.store.ends import End
from converse_mongo.store.saves import Changes
from converse_mongo.writing.writer import MessageWriter, WriterOptions, WriterTarget

__all__ = ["SUPERSEDED_INDEXES", "Message", "generated_id", "load_message"]

M = TypeVar("M", bound="Message")

CHUNKS_PER_READ = 8 * PAGE_CHUNKS

SUPERSEDED_INDEXES = {
    "conversation_revision": [("conversation_id", 1), ("revision", 1)],
    "conversation_saves": [
        *[("conversation_id", 1), ("save_mark", 1)],
        *[("_id", 1), ("revision", 1), ("position", 1)],
    ],
    "streaming": [("status", 1)],
    "compact_at": [("compact_at", 1)],
}
"""Name to key of the indexes of earlier versions. A changed index gets a new name and a new key:
MongoDB refuses one with the name, or the key, of another that has other options."""


class Message(StoredDocument, Document):
    """One entry of a conversation.

    An object is a copy: what was loaded, and what was done through it since. ``content`` and
    ``chunks`` grow with its own appends as long as nobody else appends; :meth:`refresh` loads the
    message again.

    Attributes:
        conversation_id: The conversation it belongs to.
        position: Its place there: 0, 1, 2, … in the order in which messages became visible.
        role: Who speaks.
        status: Streaming, or one of the final states.
        content: The text; while the message streams, the text so far. Empty where the text is
            longer than ``MAX_CONTENT_BYTES`` and was not asked for: in listings, and behind a
            writer. ``get_message`` has it, and :meth:`iter_content`.
        chunks: The chunks in order. Listings leave them out: see :class:`ChunkLog`.
        next_sequence: The sequence of the chunk that comes next, which is their number.
        page_start: The sequence of the first chunk that its document embeds; those before it are in
            pages.
        log_id: Tells it from another message with the same ``_id``, which a generation gets again
            when it is deleted and started anew. Its pages carry it. ``None`` for some messages of
            earlier versions.
        chunk_bytes: What the embedded chunks take in the document, in bytes, counted generously.
        content_bytes: The size of the streamed text, in bytes of UTF-8.
        metadata: What the application says of it; an ended stream adds the number of ``chunks``.
        error: Why it failed, or ``None``.
        stop_reason: What was given as the reason for a stop, or ``None``.
        generation_id: The id that the application gave to what it generates, or ``None``.
        retention: Seconds after the end at which the chunks are merged away; ``None`` for never.
        lease: Who may write to it; ``None`` for a message that never streamed.
        revision: How often it was saved.
        created_at: When it was made; UTC, aware, like all dates here.
        updated_at: When it was last changed otherwise than by a chunk.
        completed_at: When it ended, or was added whole.
    """

    conversation_id: PydanticObjectId
    position: int | None = None
    role: MessageRole
    status: MessageStatus = MessageStatus.COMPLETED
    content: str = ""
    chunks: ChunkLog = Field(default_factory=ChunkLog)
    next_sequence: int = 0
    page_start: int = 0
    log_id: PydanticObjectId | None = None
    chunk_bytes: int = 0
    content_bytes: int = 0
    metadata: JsonableDict = Field(default_factory=dict)
    error: str | None = None
    stop_reason: str | None = None
    generation_id: str | None = None
    retention: float | None = None
    lease: Lease | None = None
    revision: int = 0
    created_at: UtcDatetime = Field(default_factory=now)
    updated_at: UtcDatetime = Field(default_factory=now)
    completed_at: UtcDatetime | None = None

    _protected: ClassVar[dict[str, str]] = {
        "id": "MongoDB ids never change",
        "conversation_id": "a message stays in its conversation",
        "position": "the order of messages is given once",
        "role": "it was given once",
        "status": "use complete_streaming, fail_streaming or cancel_streaming",
        "chunks": "use append_chunk",
        "next_sequence": "use append_chunk",
        "page_start": "use append_chunk",
        "log_id": "it was given once",
        "chunk_bytes": "use append_chunk",
        "content_bytes": "use append_chunk",
        "error": "use fail_streaming",
        "stop_reason": "use request_stop or cancel_streaming",
        "generation_id": "pass it when you start the message",
        "retention": "pass it when you start the message",
        "lease": "writers keep it",
        "created_at": "it was given once",
        "completed_at": "use complete_streaming, fail_streaming or cancel_streaming",
        "revision": "save() counts it",
    }
    _untracked = frozenset({"revision_id", "chunks", "updated_at", "lease"})
    _kind = "message"
    _missing_error = MessageNotFoundError

    conversation_model: ClassVar[type[Document]]

    class Settings:
        """What Beanie is to know."""

        name = "messages"
        bson_encoders: ClassVar[dict[Any, Any]] = {
            # Beanie's state management encodes listed messages, too; none of it is written.
            ChunkLog: lambda log: log.stored if log.is_loaded else None
        }
        indexes: ClassVar[list[IndexModel]] = [
            # Order, listing, resuming; the shard key leads, so a sharded collection can have it.
            IndexModel(
                [("conversation_id", ASCENDING), ("position", ASCENDING)],
                unique=True,
                name="conversation_position",
            ),
            # What streams in a conversation right now, for its watchers.
            IndexModel(
                [
                    ("conversation_id", ASCENDING),
                    ("status", ASCENDING),
                    ("position", ASCENDING),
                ],
                name="conversation_status",
            ),
            # What was saved in a conversation and when, for watchers: one covered query.
            IndexModel(
                [
                    ("conversation_id", ASCENDING),
                    ("save_mark", ASCENDING),
                    ("_id", ASCENDING),
                    ("revision", ASCENDING),
                    ("position", ASCENDING),
                    ("role", ASCENDING),
                ],
                name="conversation_saves_role",
                partialFilterExpression={"save_mark": {"$gt": FIRST_MARK}},
            ),
            # What streams anywhere, for who looks for orphans. No append changes it.
            IndexModel(
                [("status", ASCENDING), ("_id", ASCENDING)],
                name="streaming_by_id",
                partialFilterExpression={"status": MessageStatus.STREAMING.value},
            ),
            # What is to be merged, for the sweeper. Not sparse: every message has an _id.
            IndexModel(
                [("compact_at", ASCENDING), ("_id", ASCENDING)],
                name="compact_at_by_id",
                partialFilterExpression={"compact_at": {"$gt": EPOCH}},
            ),
        ]

    _library_settings = Settings

    @property
    def is_streaming(self) -> bool:
        """Whether it was still growing when this copy last knew."""
        return self.status is MessageStatus.STREAMING

    @property
    def is_completed(self) -> bool:
        """Whether it ended well, or was added whole."""
        return self.status is MessageStatus.COMPLETED

    @property
    def is_failed(self) -> bool:
        """Whether it ended with an error."""
        return self.status is MessageStatus.FAILED

    @property
    def is_cancelled(self) -> bool:
        """Whether it was stopped."""
        return self.status is MessageStatus.CANCELLED

    # Reading

    async def iter_chunks(self, after: int | None = None) -> AsyncIterator[MessageChunk]:
        """Yields the chunks that are stored, in order, from behind the sequence ``after``.

        Reads some pages at a time, so that a long message needs no more memory than a short one.

        Raises:
            InvalidCursorError: ``after`` is not a sequence.
            MessageNotFoundError: The message does not exist.
            WatchError: A chunk is missing: something else wrote to the message.
        """
        start, page_start = check_sequence(after), self.page_start
        store = self.store()
        while True:
            found = await store.call(
                store.reader.read,
                *(self._own_id(), self.conversation_id, start, CHUNKS_PER_READ, page_start),
                what=f"read message {self.id}",
            )
            if found is None:
                raise MessageNotFoundError(self._own_id())
            state, chunks = found
            if state.log_id != self.log_id:
                raise MessageNotFoundError(self._own_id())
            for chunk in chunks:
                yield chunk
            start += len(chunks)
            if start >= state.next_sequence:
                return
            if not chunks:
                raise WatchError(
                    f"Chunk {start} of message {self.id} is not where it must be: something other "
                    "than converse_mongo has written to the message or its pages."
                )
            page_start = state.page_start

    async def iter_content(self, after: int | None = None) -> AsyncIterator[str]:
        """Yields the text that is stored, piece by piece, from behind the sequence ``after``.

        For a text of any length; see :meth:`iter_chunks`, which it raises like. A message that was
        added whole is one piece.
        """
        if not self.is_streaming and not self.next_sequence:
            yield self.content
            return
        async for chunk in self.iter_chunks(after):
            yield chunk.content

    async def refresh(self) -> Self:
        """Loads the message again into this object; unsaved changes are lost.

        If the message was deleted and its generation was started anew, this becomes a copy of the
        new message. Until then, every call on this copy raises :class:`MessageNotFoundError`.

        Raises:
            MessageNotFoundError: The message does not exist.
        """
        return await self._reload()

    async def sync(self, *_args: Any, **_kwargs: Any) -> None:
        """The same as :meth:`refresh`."""
        await self.refresh()

    async def _reload(self, longest: int | None = None, lease: Lease | None = None) -> Self:
        store, key = self.store(), self._own_key()
        read, key_now = store.reader.document, updates.any_log(key)
        stored = await store.call(read, key_now, longest, what=f"read message {self.id}")
        if stored is None:
            raise MessageNotFoundError(self._own_id())
        if lease is not None:
            refuse_overtaken(MessageHeader.from_stored(stored), key, lease)
        self._load(stored)
        return self

    # The document

    @wrap_with_actions(EventTypes.SAVE)
    async def save(self, *_args: Any, **_kwargs: Any) -> Self:
        """Saves the fields that were changed on this copy, and no others.

        Chunks, state and counters are never written, whatever this copy holds, so that an old copy
        can be saved beside a writer. A message without an id is inserted. Beanie's arguments are
        taken and have no effect. Keys of ``metadata`` with a dot or a leading ``$`` take a write of
        their own, before the rest.

        Raises:
            ProtectedFieldError: A field that only the library writes was changed.
            InvalidInputError: A changed field cannot be stored.
            MessageNotFoundError: The message does not exist.
        """
        return await self._save(partial(self.store().saves.save_message, role=self.role))

    async def insert(self, **_kwargs: Any) -> Self:
        """Adds the message at the end of its conversation.

        One with the ``generation_id`` of a message that is there becomes a copy of that.

        Raises:
            InvalidInputError: The content or the metadata cannot be stored.
            ConversationNotFoundError: The conversation does not exist; nothing was written.
            StoreUnavailableError: MongoDB did not answer.
        """
        check_content(self.content)
        self.metadata = check_metadata(self.metadata)
        if self.next_sequence or self.chunks.stored or (self.is_streaming and self.content):
            raise InvalidInputError(
                "A new message is either whole and has content, or is streaming and has none yet: "
                "chunks come with append_chunk. Nothing was written."
            )
        self._check_encoding()
        store, new_id = self.store(), None
        if self.completed_at is None and not self.is_streaming:
            self.completed_at = self.created_at
        if self.is_streaming:
            self.lease = self.lease or Lease(duration=store.options.idle_timeout)
        self.log_id = PydanticObjectId()
        if self.generation_id is not None:
            self.id = new_id = generated_id(self.conversation_id, self.generation_id)
        elif self.id is None:
            self.id = new_id = PydanticObjectId()
        skip: list[ActionDirections | str] = []
        add = super().insert

        async def insert(position: int) -> None:
            self.position = position
            skipped = list(skip)
            skip[:] = [ActionDirections.BEFORE]  # hooks run once, however often it takes
            await add(skip_actions=skipped, session=store.session)

        self.position, is_new = await store.positions.add_message(
            store.queue(self.conversation_id), self.conversation_id, new_id, insert
        )
        self._remember()
        if self.generation_id is not None and not is_new:
            return await self.refresh()
        if store.handlers.wants(MessageCreated):
            await store.handlers.publish(
                MessageCreated(
                    conversation_id=self.conversation_id,
                    message_id=self._own_id(),
                    position=self.position,
                    role=self.role,
                    streaming=self.is_streaming,
                    content=self.content,
                    metadata=self.metadata,
                    created_at=self.created_at,
                )
            )
        return self

    async def delete(self, *args: Any, **kwargs: Any) -> Any:
        """Deletes the message, as Beanie does, and its pages."""
        deleted = await super().delete(*args, **kwargs)
        await self.store().paging.delete(self._own_key())
        return deleted

    # Chunks by hand

    async def append_chunk(
        self, content: str, metadata: Metadata | None = None, *, append_id: ObjectId | None = None
    ) -> MessageChunk:
        """Appends one chunk; when it returns, the chunk is stored.

        Args:
            content: The text, at most ``MAX_CHUNK_BYTES`` in UTF-8.
            metadata: What BSON can hold, said of this chunk.
            append_id: The ``append_id`` of a :class:`StoreUnavailableError`, to try that same
                append again: it is stored once, whether or not it was stored then.

        Raises:
            InvalidInputError: The content or the metadata cannot be stored.
            MessageNotStreamingError: The message has ended.
            MessageNotFoundError: The message does not exist.
            StoreUnavailableError: MongoDB did not answer; the error carries the append id.
        """
        size = check_content(content, MAX_CHUNK_BYTES)
        checked = NO_METADATA if metadata is None else check_metadata(metadata, "chunk metadata")
        return (await self._append([Piece(content, checked, size)], append_id))[0]

    async def append_chunks(
        self, contents: Iterable[str], *, append_id: ObjectId | None = None
    ) -> list[MessageChunk]:
        """Appends a chunk for each of ``contents``, in as few atomic writes as limits allow.

        One write, all of it or none, takes ``MAX_APPEND_CHUNKS`` chunks of together
        ``MAX_APPEND_BYTES``; more are split into several writes, one after the other. Should one of
        them fail, those before it are stored: the error's ``appended`` says how many contents.

        Args:
            contents: Texts, each at most ``MAX_CHUNK_BYTES`` in UTF-8.
            append_id: The ``append_id`` of a :class:`StoreUnavailableError`, to try again with
                those ``contents`` that begin at its ``appended``.

        Raises what :meth:`append_chunk` does; nothing is written if one of ``contents`` is no good.
        """
        checked = check_chunk_contents(contents)
        appended: list[MessageChunk] = []
        try:
            for batch in _batches(checked):
                pieces = [Piece(text, NO_METADATA, utf8_size(text)) for text in batch]
                appended += await self._append(pieces, append_id)
                append_id = None
        except StoreUnavailableError as error:
            error.appended = len(appended)
            raise
        return appended

    async def _append(self, pieces: list[Piece], append_id: ObjectId | None) -> list[MessageChunk]:
        if append_id is not None:
            append_id = object_id(append_id, "append")
        store, private = self.store(), self._private()
        queue, key = self._own_queue(store), self._own_key()
        chunks = await store.appends.append(queue, key, pieces, append_id)
        own_writes: OwnWrites = private["_own_writes"]
        if store.session is not None:
            own_writes.unconfirmed = True
        own_writes.append(self.__dict__, private["_tracker"], chunks)
        return chunks

    # Chunks by a writer

    def writer(
        self,
        *,
        metadata: Metadata | None = None,
        flush_interval: float = 0.04,
        max_buffered: int = 1024 * 1024,
        granularity: Granularity = "flush",
        interrupt: bool = False,
    ) -> MessageWriter:
        """A writer, to be used in ``async with``: the first one that this message has.

        The first token is written at once. While a write is in flight, and for ``flush_interval``
        after it began, tokens gather; then they are written together, by a timer and not by the
        next token. There is never more than one write in flight.

        Args:
            metadata: Merged into the metadata of the message when it ends, however it ends.
            flush_interval: Seconds from the beginning of a write to that of the next.
            max_buffered: How many bytes of text may wait to be stored; beyond it ``write`` waits.
            granularity: ``"flush"`` makes one chunk of adjacent tokens that are written together,
                ``"token"`` a chunk of each.
            interrupt: Whether a stop, or the loss of the message to another writer, cancels what
                the task awaits inside the block, such as a model that is silent. The block then
                ends with :class:`StreamStoppedError` or :class:`WriterFencedError`.

        Raises:
            InvalidInputError: An option makes no sense, or the metadata cannot be stored.
        """
        options = WriterOptions(
            flush_interval=flush_interval,
            max_buffered=max_buffered,
            granularity=granularity,
            interrupt=interrupt,
        )
        return MessageWriter(self._writer_target(), options, metadata)

    def resume_writer(
        self,
        *,
        metadata: Metadata | None = None,
        flush_interval: float = 0.04,
        max_buffered: int = 1024 * 1024,
        granularity: Granularity = "flush",
        interrupt: bool = False,
    ) -> MessageWriter:
        """The same, taking the message over from the writer that it has or had.

        Once it is entered, the other one's next write fails with :class:`WriterFencedError` and
        stores nothing, and this copy of the message was loaded again: ``content`` is what to go on
        from.
        """
        options = WriterOptions(
            flush_interval=flush_interval,
            max_buffered=max_buffered,
            granularity=granularity,
            interrupt=interrupt,
        )
        return MessageWriter(self._writer_target(), options, metadata, take_over=True)

    def _writer_target(self) -> WriterTarget:
        store = self.store()
        if store.session is not None:
            raise InvalidInputError(
                "A writer stores text while it streams, which a transaction would hide: use it "
                "outside, or append_chunks inside. Nothing was written."
            )
        return WriterTarget(
            store=store,
            queue=self._own_queue(store),
            key=self._own_key(),
            taken_over=lambda lease: self._reload(MAX_CONTENT_BYTES, lease),
            written=lambda chunks: self._own_writes.write(self.__dict__, self._tracker, chunks),
            end=self._end,
        )

    async def pipe(
        self,
        tokens: AsyncIterable[str],
        metadata: Metadata | None = None,
        *,
        flush_interval: float = 0.04,
        max_buffered: int = 1024 * 1024,
        granularity: Granularity = "flush",
        resume: bool = False,
    ) -> Self:
        """Writes all of ``tokens`` through a :meth:`writer`, and completes the message.

        A stop interrupts ``tokens`` even while they are silent, and closes them where they have an
        ``aclose``.

        Args:
            tokens: Any asynchronous iterable of text.
            metadata: Merged into the metadata of the message when it completes. Nothing of it is
                stored when the message fails or is stopped.
            flush_interval: As for :meth:`writer`, like the rest.
            max_buffered: See there.
            granularity: See there.
            resume: Take the message over from the writer that it has or had, as
                :meth:`resume_writer` does, and go on behind its text.

        Raises:
            InvalidInputError: These are no tokens, an option makes no sense, or the metadata cannot
                be stored. No token was taken.
            StreamStoppedError: Somebody asked for a stop; the message is cancelled.

        Beside these it raises what a writer does, and what ``tokens`` do.
        """
        if not isinstance(tokens, AsyncIterable):
            raise InvalidInputError(
                f"pipe takes an asynchronous iterable of str, not {type(tokens).__name__}: "
                "use append_chunks for texts that are all there. Nothing was written."
            )
        try:
            options = WriterOptions(
                flush_interval=flush_interval,
                max_buffered=max_buffered,
                granularity=granularity,
                interrupt=True,
            )
            target = self._writer_target()
            async with MessageWriter(
                target, options, completion=metadata, take_over=resume
            ) as writer:
                async for token in tokens:
                    await writer.write(token)
        finally:
            close = getattr(tokens, "aclose", None)
            if close is not None:
                await close()
        return self

    # The end

    async def complete_streaming(self, metadata: Metadata | None = None) -> Self:
        """Ends the stream well; ``metadata`` is merged into the message's, key by key.

        The metadata is stored with the completion and only with it: nothing of it is stored when
        this call raises.

        Raises:
            InvalidMetadataError: The metadata cannot be stored; the message goes on streaming.
            MessageNotStreamingError: The message has ended already; nothing was changed.
            MessageNotFoundError: The message does not exist.
            StoreUnavailableError: MongoDB did not answer.
        """
        return await self._end(End(MessageStatus.COMPLETED, check_metadata(metadata)))

    async def fail_streaming(
        self, error: str | BaseException, metadata: Metadata | None = None
    ) -> Self:
        """Ends the stream with an error; the text so far is kept. Raises as a completion does."""
        return await self._end(
            End(MessageStatus.FAILED, check_metadata(metadata), check_error(error))
        )

    async def mark_as_error(
        self, error: str | BaseException, metadata: Metadata | None = None
    ) -> Self:
        """Another name of :meth:`fail_streaming`, for code that comes from Converse."""
        return await self.fail_streaming(error, metadata)

    async def cancel_streaming(
        self, reason: str | None = None, metadata: Metadata | None = None
    ) -> Self:
        """Ends the stream as stopped, at once; the text so far is kept.

        For whoever writes the message; anybody else uses :meth:`request_stop`, which lets the
        writer store what it has. Raises as a completion does.
        """
        return await self._end(
            End(MessageStatus.CANCELLED, check_metadata(metadata), stop_reason=check_reason(reason))
        )

    async def request_stop(self, reason: str | None = None) -> MessageStatus:
        """Asks the writer of the message, in whatever process, to stop.

        The writer stores what it has and the message ends ``cancelled``. If the message has no
        writer, this call ends it. If its writer is presumed dead, whoever looks at the message
        next ends it.

        Args:
            reason: Kept as the message's ``stop_reason``.

        Returns:
            The state of the message: ``CANCELLED``; ``STREAMING`` until its writer has heard of it;
            or how it had ended before, in which case nothing was changed.

        Raises:
            InvalidInputError: The reason cannot be stored.
            MessageNotFoundError: The message does not exist.
            StoreUnavailableError: MongoDB did not answer.
        """
        state = await self.store().leases.request_stop(self._own_key(), check_reason(reason))
        return state.status

    async def _end(
        self, end: End, lease: Lease | None = None, end_id: ObjectId | None = None
    ) -> Self:
        store = self.store()
        ended = await store.ends.end(
            self._own_queue(store),
            self._own_key(),
            end,
            retention=self.retention,
            known=self._own_writes.known_text(self.__dict__),
            lease=lease,
            end_id=end_id,
        )
        self._own_writes.end(self.__dict__, ended)
        self._remember()
        return self

    # This copy

    _own_writes: OwnWrites = PrivateAttr(default_factory=OwnWrites)

    @classmethod
    def _derive(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Adds what the second write of an end has not stored yet, or could not."""
        chunks, count = data.get("chunks"), data.get("next_sequence", 0)
        if isinstance(chunks, list) and count and len(chunks) != count:
            # Read past the library: the rest is in pages, or was merged.
            data = {**data, "chunks": ChunkLog.not_loaded()}
        elif isinstance(chunks, list) and chunks and not data.get("content"):
            log = ChunkLog(chunks)
            data = {**data, "chunks": log, "content": log.text()}
        if data.get("end_id") is not None:
            data = {**data, "metadata": with_chunk_count(data.get("metadata") or {}, count)}
        return data

    def _changes(self) -> Changes:
        changes = super()._changes()
        if "content" in changes.assign:
            check_content(self.content)
        return changes

    def _refuse_protected(self, name: str) -> None:
        super()._refuse_protected(name)
        if name == "content" and (self.is_streaming or self.next_sequence):
            raise ProtectedFieldError(
                f"The content of message {self.id} is the text of its chunks: use append_chunk "
                "while it streams. Nothing was written."
            )

    def _load(self, stored: dict[str, Any]) -> None:
        super()._load(stored)
        self._own_writes = OwnWrites()  # the message may be another one with the same id

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied.chunks = self.chunks.copy()
        copied._own_writes = copy.copy(self._own_writes)  # noqa: SLF001
        return copied

    def _own_key(self) -> dict[str, Any]:
        """The filter that finds this message, and no later one with the same id."""
        return message_key(self._own_id(), self.conversation_id, self.log_id)

    def _own_queue(self, store: Store) -> WriteQueue:
        own_writes: OwnWrites = self._private()["_own_writes"]
        queue = own_writes.queue if store.session is None else None
        if queue is None:
            queue = store.queue((self._own_id(), self.log_id))
            if store.session is None:
                own_writes.queue = queue
        fields = self.__dict__
        queue.role = fields["role"]
        queue.learn(fields["next_sequence"], fields["page_start"], fields["chunk_bytes"])
        return queue


async def load_message(model: type[M], key: Mapping[str, Any]) -> M:
    """The message that a filter by its id finds, ended first if its writer is presumed dead.

    Raises:
        MessageNotFoundError: The message does not exist.
        StoreUnavailableError: MongoDB did not answer.
    """
    store, what = model.store(), f"read message {key['_id']}"
    stored = await store.call(store.reader.document, key, what=what)
    if stored is None:
        raise MessageNotFoundError(key["_id"])
    state = MessageHeader.from_stored(stored)
    if not state.status.is_final:
        settled = await store.leases.settle_if_expired(state)
        if settled.status.is_final:
            return await load_message(model, key)
    return cast(M, parse_obj(model, stored))


def generated_id(conversation_id: ObjectId, generation_id: str) -> PydanticObjectId:
    """The id of the message that a generation makes in a conversation.

    Derived, so that of two processes that start the same generation one finds it started: the
    unique index on ``_id`` is one that every collection has, sharded or not.
    """
    digest = hashlib.sha256(conversation_id.binary + generation_id.encode()).digest()
    return PydanticObjectId(digest[:12])


def _batches(contents: list[str]) -> Iterator[list[str]]:
    """``contents`` in runs that one atomic append takes."""
    batch: list[str] = []
    size = 0
    for content in contents:
        cost = utf8_size(content) + CHUNK_OVERHEAD
        if batch and (size + cost > MAX_APPEND_BYTES or len(batch) == MAX_APPEND_CHUNKS):
            yield batch
            batch, size = [], 0
        batch.append(content)
        size += cost
    if batch:
        yield batch
