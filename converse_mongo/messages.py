"""Messages: what was said, whole or while it streams."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, ClassVar, Self

from beanie import Document, PydanticObjectId
from beanie.odm.actions import ActionDirections, EventTypes, wrap_with_actions
from bson import ObjectId
from pymongo import ASCENDING, IndexModel

from converse_mongo import _updates
from converse_mongo._stored_message import Lease, StoredMessage, generated_id
from converse_mongo._validation import (
    CHUNK_OVERHEAD,
    MAX_APPEND_BYTES,
    MAX_APPEND_CHUNKS,
    MAX_CHUNK_BYTES,
    MAX_CONTENT_BYTES,
    check_chunk_contents,
    check_content,
    check_error,
    check_metadata,
    check_reason,
    check_sequence,
    now,
    object_id,
)
from converse_mongo.chunks import ChunkLog, MessageChunk
from converse_mongo.errors import (
    InvalidInputError,
    MessageNotFoundError,
    StoreUnavailableError,
    StreamStoppedError,
    WatchError,
)
from converse_mongo.events import MessageCreated
from converse_mongo.store.appends import Piece
from converse_mongo.store.ends import End
from converse_mongo.types import Granularity, MessageStatus, Metadata
from converse_mongo.writer import MessageWriter, WriterOptions, WriterTarget

__all__ = ["Message"]

CHUNKS_PER_READ = 500


class Message(StoredMessage, Document):
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
        log_id: The id of its chunks, which its pages carry; ``None`` if it never streamed.
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
            # What was edited in a conversation, for watchers that poll.
            IndexModel(
                [("conversation_id", ASCENDING), ("revision", ASCENDING)],
                name="conversation_revision",
            ),
            # What streams anywhere, for who looks for orphans. No append changes it.
            IndexModel(
                [("status", ASCENDING)],
                name="streaming",
                partialFilterExpression={"status": MessageStatus.STREAMING.value},
            ),
            # What is to be merged, for the sweeper.
            IndexModel([("compact_at", ASCENDING)], name="compact_at", sparse=True),
        ]

    _library_settings = Settings

    @classmethod
    def _models(cls) -> tuple[type[Document], type[Document]]:
        return cls, cls.conversation_model

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
            MessageNotFoundError: There is no such message.
            StoreUnavailableError: MongoDB gave no answer; the error carries the append id.
        """
        check_content(content, MAX_CHUNK_BYTES)
        checked = {} if metadata is None else check_metadata(metadata, "chunk metadata")
        return (await self._append([Piece(content, checked)], append_id))[0]

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
                appended += await self._append([Piece(text, {}) for text in batch], append_id)
                append_id = None
        except StoreUnavailableError as error:
            error.appended = len(appended)
            raise
        return appended

    async def _append(self, pieces: list[Piece], append_id: ObjectId | None) -> list[MessageChunk]:
        if append_id is not None:
            append_id = object_id(append_id, "append")
        store = self.store()
        chunks = await store.appends.append(
            self._own_lane(), self._own_id(), self.conversation_id, pieces, append_id
        )
        if store.session is not None:
            self._unconfirmed = True
        self._take_appended(chunks)
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
            metadata: Merged into the metadata of the message when it ends.
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
            lane=self._own_lane(),
            message_id=self._own_id(),
            conversation_id=self.conversation_id,
            taken_over=lambda: self._reload(MAX_CONTENT_BYTES),
            written=self._take_written,
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
    ) -> Self:
        """Writes all of ``tokens`` through a :meth:`writer`, and completes the message.

        A stop interrupts ``tokens`` even while they are silent, and closes them where they have an
        ``aclose``.

        Args:
            tokens: Any asynchronous iterable of text.
            metadata: Merged into the metadata of the message.
            flush_interval: As for :meth:`writer`, like the rest.
            max_buffered: See there.
            granularity: See there.

        Raises:
            InvalidInputError: These are no tokens, or an option makes no sense.
            StreamStoppedError: Somebody asked for a stop; the message is cancelled.

        Beside these it raises what a writer does, and what ``tokens`` do.
        """
        if not isinstance(tokens, AsyncIterable):
            raise InvalidInputError(
                f"pipe takes an asynchronous iterable of str, not {type(tokens).__name__}: "
                "use append_chunks for texts that are all there. Nothing was written."
            )
        try:
            async with self.writer(
                metadata=metadata,
                flush_interval=flush_interval,
                max_buffered=max_buffered,
                granularity=granularity,
                interrupt=True,
            ) as writer:
                async for token in tokens:
                    await writer.write(token)
        finally:
            close = getattr(tokens, "aclose", None)
            if close is not None:
                await close()
        if writer.stopping:  # after the last token, or the tokens took it for their own end
            raise StreamStoppedError(self._own_id(), self.stop_reason)
        return self

    # The end

    async def complete_streaming(self, metadata: Metadata | None = None) -> Self:
        """Ends the stream well; ``metadata`` is merged into the message's, key by key.

        Raises:
            InvalidMetadataError: The metadata cannot be stored.
            MessageNotStreamingError: The message has ended already; nothing was changed.
            MessageNotFoundError: There is no such message.
            StoreUnavailableError: MongoDB gave no answer.
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

        The writer stores what it has and the message ends ``cancelled``. Where no writer lives,
        this call ends it.

        Args:
            reason: Kept as the message's ``stop_reason``.

        Returns:
            The state of the message: ``CANCELLED``; ``STREAMING`` until its writer has heard of it;
            or how it had ended before, in which case nothing was changed.

        Raises:
            InvalidInputError: The reason cannot be stored.
            MessageNotFoundError: There is no such message.
            StoreUnavailableError: MongoDB gave no answer.
        """
        state = await self.store().leases.request_stop(
            self._own_id(), self.conversation_id, check_reason(reason)
        )
        return state.status

    async def _end(
        self, end: End, epoch: int | None = None, end_id: ObjectId | None = None
    ) -> Self:
        ended = await self.store().ends.end(
            self._own_lane(),
            self._own_id(),
            self.conversation_id,
            end,
            retention=self.retention,
            known=(self.next_sequence, self.content) if self._knows_text else None,
            epoch=epoch,
            end_id=end_id,
        )
        self._take_end(ended)
        return self

    # Reading

    async def iter_chunks(self, after: int | None = None) -> AsyncIterator[MessageChunk]:
        """Yields the chunks that are stored, in order, from behind the sequence ``after``.

        Reads a few hundred at a time, so that a long message needs no more memory than a short one.

        Raises:
            InvalidCursorError: ``after`` is no sequence.
            MessageNotFoundError: There is no such message.
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

        Raises:
            MessageNotFoundError: There is no such message.
        """
        return await self._reload(None)

    async def _reload(self, longest: int | None) -> Self:
        """Loads the message again, without moved chunks where the text is over ``longest``."""
        store = self.store()
        stored: Any = await store.call(
            store.messages.find_one,
            _updates.message_key(self._own_id(), self.conversation_id),
            what=f"read message {self.id}",
        )
        if stored is None:
            raise MessageNotFoundError(self._own_id())
        if longest is None or stored.get("content_bytes", 0) <= longest:
            await store.call(store.reader.add_moved_chunks, stored, what=f"read message {self.id}")
        self._load(stored)
        self._follows = self._unconfirmed = False
        return self

    @wrap_with_actions(EventTypes.SAVE)
    async def save(self, *_args: Any, **_kwargs: Any) -> Self:
        """Saves the fields that were changed on this copy, and no others.

        Chunks, state and counters are never written, whatever this copy holds, so that an old copy
        can be saved beside a writer. A message without an id is inserted. Beanie's arguments are
        taken and have no effect.

        Raises:
            ProtectedFieldError: A field that only the library writes was changed.
            InvalidInputError: A changed field cannot be stored.
            MessageNotFoundError: There is no such message.
        """
        if self.id is None:
            return await self.insert()
        changed, removed = self._changes()
        if "content" in changed:
            check_content(self.content)
        if changed or removed:
            saved_at = now()
            update = _updates.save(changed, removed, saved_at)
            self.revision = await self.store().saves.save_message(
                self.id,
                self.conversation_id,
                _updates.mark_edited(update, self.conversation_id, saved_at),
            )
            self.updated_at = saved_at
            self._remember()
        return self

    async def insert(self, **_kwargs: Any) -> Self:
        """Adds the message at the end of its conversation.

        One with the ``generation_id`` of a message that is there becomes a copy of that.

        Raises:
            InvalidInputError: The content or the metadata cannot be stored.
            ConversationNotFoundError: There is no such conversation; nothing was written.
            StoreUnavailableError: MongoDB gave no answer.
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
            store.lane(self.conversation_id), self.conversation_id, new_id, insert
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
        await self.store().paging.delete(_updates.message_key(self._own_id(), self.conversation_id))
        return deleted


def _batches(contents: list[str]) -> Iterator[list[str]]:
    """``contents`` in runs that one atomic append takes."""
    batch: list[str] = []
    size = 0
    for content in contents:
        cost = len(content.encode()) + CHUNK_OVERHEAD
        if batch and (size + cost > MAX_APPEND_BYTES or len(batch) == MAX_APPEND_CHUNKS):
            yield batch
            batch, size = [], 0
        batch.append(content)
        size += cost
    if batch:
        yield batch
