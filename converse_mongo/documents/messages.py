"""Messages: added whole, or streamed."""

import copy
import logging
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from functools import partial
from typing import Annotated, Any, ClassVar, Self

from beanie import Document, PydanticObjectId
from beanie.odm.actions import ActionDirections, EventTypes, wrap_with_actions
from bson import ObjectId
from pydantic import Field, PrivateAttr
from pymongo import IndexModel

from converse_mongo.documents.base import GIVEN_ONCE, JsonableDict, Protected, StoredDocument
from converse_mongo.documents.message_indexes import MESSAGE_INDEXES
from converse_mongo.documents.own_writes import OwnWrites
from converse_mongo.documents.texts import texts_of, with_text
from converse_mongo.documents.views import MessageView
from converse_mongo.domain.chunks import NO_METADATA, ChunkLog, MessageChunk, Piece, UtcDatetime
from converse_mongo.domain.composing import pieces_of
from converse_mongo.domain.errors import (
    ChunksNotLoadedError,
    InvalidInputError,
    MessageNotFoundError,
    ProtectedFieldError,
    StoreUnavailableError,
)
from converse_mongo.domain.events import MessageCreated
from converse_mongo.domain.generated_ids import generated_id
from converse_mongo.domain.headers import (
    WORK_FORMAT,
    MessageHeader,
    message_key,
    shows_parts,
)
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.metadata import check_metadata
from converse_mongo.domain.part_events import PartEvent
from converse_mongo.domain.part_log import Record, restored_records
from converse_mongo.domain.part_pieces import AnyPiece
from converse_mongo.domain.parts import Part, TextPart, ToolCallPart, parts_of
from converse_mongo.domain.stored_values import LargeValue, StoredValue, check_stored
from converse_mongo.domain.types import Granularity, MessageRole, MessageStatus, Metadata
from converse_mongo.domain.validation import (
    MAX_CHUNK_BYTES,
    MAX_CONTENT_BYTES,
    check_content,
    check_error,
    check_reason,
    now,
    object_id,
)
from converse_mongo.domain.work import Work, WorkState
from converse_mongo.driver.failures import words_for
from converse_mongo.store import Store, WriteQueue, updates
from converse_mongo.store.appends import in_appends, refuse_overtaken
from converse_mongo.store.message_loads import find_log, load_chunks, load_stored
from converse_mongo.store.saves import Changes
from converse_mongo.store.updates import End
from converse_mongo.writing.appender import WriterOptions, WriterTarget
from converse_mongo.writing.attempt import Attempt, attempt_at
from converse_mongo.writing.parts import check_contents, closed_in_the_end
from converse_mongo.writing.writer import MessageWriter

_NOT_EVERYWHERE = frozenset(
    {"checkpoint", "format", "part_bytes", "part_records", "redactions", "work"}
)

_AT_THE_START = Protected("pass it when you start the message")
_BY_APPENDS = Protected("use append_chunk")
logger = logging.getLogger("converse_mongo")

_BY_AN_END = Protected("use complete_streaming, fail_streaming or cancel_streaming")


class Message(StoredDocument, Document):
    """One entry of a conversation.

    An object is a copy of the stored message as it was loaded, with the writes made through it
    since. ``content`` and ``chunks`` grow with its own appends as long as nobody else appends;
    :meth:`refresh` loads the message again.

    Attributes:
        conversation_id: The conversation it belongs to.
        position: Its place there: 0, 1, 2, … in the order in which messages became visible.
        role: The speaker.
        status: Streaming, or one of the final states.
        content: The text; while the message streams, the text so far. Empty in listings and after
            a writer if the text is longer than ``MAX_CONTENT_BYTES``: use ``get_message`` or
            :meth:`iter_content`.
        chunks: The chunks in order. Listings leave them out: see :class:`ChunkLog`.
        next_sequence: The sequence of the next chunk, which is the number of chunks.
        page_start: The sequence of the first chunk that its document embeds; those before it are in
            pages.
        log_id: Tells it from another message with the same ``_id``, as a generation has that is
            deleted and started anew. Its pages have it, too. ``None`` for some messages of earlier
            versions.
        chunk_bytes: An upper bound of the size of the embedded chunks, in bytes.
        content_bytes: The size of the streamed text, in bytes of UTF-8.
        part_bytes: An upper bound of the size of all else in the chunks, in bytes.
        part_records: The parts in stored form, for :attr:`parts`.
        redactions: The parts that were redacted: ``part``, the number, and ``reason`` if any.
        format: ``None`` for a message of text alone, 2 for one with parts, 3 for one that was
            queued for workers.
        metadata: The metadata of the application; an ended stream adds the number of ``chunks``.
        error: The reason of a failure, or ``None``.
        stop_reason: The reason of a stop, or ``None``.
        generation_id: The id that the application gave to the generation, or ``None``.
        retention: Seconds from the end to the merge of the chunks; ``None`` for never.
        lease: The right to write to it; ``None`` for a message that never streamed.
        work: Its place in its queue; ``None`` for a message that was never queued.
        checkpoint: What the last worker left to the next, or ``None``.
        revision: The number of saves so far.
        created_at: When it was made; UTC, aware, like all dates here.
        updated_at: When it was last changed, other than by a chunk.
        completed_at: When it ended, or was added whole.
    """

    conversation_id: Annotated[PydanticObjectId, Protected("a message stays in its conversation")]
    position: Annotated[int | None, Protected("the order of messages never changes")] = None
    role: Annotated[MessageRole, GIVEN_ONCE]
    status: Annotated[MessageStatus, _BY_AN_END] = MessageStatus.COMPLETED
    content: str = ""
    chunks: Annotated[ChunkLog, _BY_APPENDS] = Field(default_factory=ChunkLog)
    next_sequence: Annotated[int, _BY_APPENDS] = 0
    page_start: Annotated[int, _BY_APPENDS] = 0
    log_id: Annotated[PydanticObjectId | None, GIVEN_ONCE] = None
    chunk_bytes: Annotated[int, _BY_APPENDS] = 0
    content_bytes: Annotated[int, _BY_APPENDS] = 0
    part_bytes: Annotated[int, _BY_APPENDS] = 0
    part_records: Annotated[list[dict[str, Any]] | None, _BY_APPENDS] = Field(None, alias="parts")
    redactions: Annotated[list[dict[str, Any]] | None, Protected("use redact_part")] = None
    format: Annotated[int | None, _BY_APPENDS] = None
    metadata: JsonableDict = Field(default_factory=dict)
    error: Annotated[str | None, Protected("use fail_streaming")] = None
    stop_reason: Annotated[str | None, Protected("use request_stop or cancel_streaming")] = None
    generation_id: Annotated[str | None, _AT_THE_START] = None
    retention: Annotated[float | None, _AT_THE_START] = None
    lease: Annotated[Lease | None, Protected("writers set it")] = None
    work: Annotated[Work | None, Protected("its queue sets it")] = None
    checkpoint: Annotated[JsonableDict | None, Protected("workers set it")] = None
    revision: Annotated[int, Protected("save() counts it")] = 0
    created_at: Annotated[UtcDatetime, GIVEN_ONCE] = Field(default_factory=now)
    updated_at: UtcDatetime = Field(default_factory=now)
    completed_at: Annotated[UtcDatetime | None, _BY_AN_END] = None

    _untracked = frozenset({"revision_id", "chunks", "updated_at", "lease", "work", "checkpoint"})
    _kind = "message"
    _view = MessageView
    _missing_error = MessageNotFoundError

    conversation_model: ClassVar[type[Document]]

    class Settings:
        """Settings for Beanie."""

        name = "messages"
        bson_encoders: ClassVar[dict[Any, Any]] = {
            # Beanie's state management encodes listed messages, too, but does not write them.
            ChunkLog: lambda log: log.stored if log.is_loaded else None
        }
        indexes: ClassVar[list[IndexModel]] = MESSAGE_INDEXES

    _library_settings = Settings

    @property
    def is_streaming(self) -> bool:
        """True if it is streaming, as far as this copy knows."""
        return self.status is MessageStatus.STREAMING

    @property
    def is_completed(self) -> bool:
        """True if it ended without an error, or was added whole."""
        return self.status is MessageStatus.COMPLETED

    @property
    def is_failed(self) -> bool:
        """True if it ended with an error."""
        return self.status is MessageStatus.FAILED

    @property
    def is_cancelled(self) -> bool:
        """True if it was stopped."""
        return self.status is MessageStatus.CANCELLED

    @property
    def parts(self) -> list[Part]:
        """The parts, in order, as far as this copy knows.

        A message of text alone has one :class:`TextPart`, or none if it is empty.

        Raises:
            ChunksNotLoadedError: They are derived from chunks that this copy does not have.
        """
        if not self._has_parts:
            return [TextPart(self.content)] if self.content else []
        records = self._records
        if records is None:
            raise ChunksNotLoadedError
        return parts_of(records, ended=not self.is_streaming)

    @property
    def attempt(self) -> int:
        """The number of the attempt to generate it, from 1 on; 1 if it was never queued."""
        return 1 if self.work is None else self.work.attempt

    @property
    def _has_parts(self) -> bool:
        """True if it has more than the text of the answer, as far as this copy knows."""
        return shows_parts(self.format, self.part_bytes, self.redactions)

    @property
    def _records(self) -> list[Record] | None:
        """The records of the parts; ``None`` for text alone, and if this copy lacks them."""
        if self.part_records is not None:
            return restored_records(self.part_records)
        log = None if not self._has_parts else self._own_writes.log_of(self.__dict__)
        return None if log is None else log.records()

    @property
    def _open_part(self) -> int | None:
        """The number of the part that the next text of the answer continues, if that is known."""
        return self._own_writes.open_part(self.__dict__) if self.is_streaming else None

    @property
    def unfinished_calls(self) -> list[ToolCallPart]:
        """The tool calls without an outcome; their ``state`` says how far they are.

        Raises:
            ChunksNotLoadedError: As :attr:`parts` does.
        """
        calls = [part for part in self.parts if isinstance(part, ToolCallPart)]
        return [call for call in calls if not call.is_finished]

    def __iter__(self) -> Generator[tuple[str, Any], None, None]:
        """Yields the fields. Those of parts, and of work, are stored only where there is some."""
        for name, value in super().__iter__():
            if value or name not in _NOT_EVERYWHERE:
                yield name, value

    # Reading

    async def iter_chunks(self, after: int | None = None) -> AsyncIterator[MessageChunk]:
        """Yields the stored chunks in order, from behind the sequence ``after``.

        It reads some pages at a time, so that a long message needs no more memory than a short one.

        Raises:
            InvalidCursorError: ``after`` is not a sequence.
            MessageNotFoundError: The message does not exist.
            WatchError: A chunk is missing: something else wrote to the message.
        """
        chunks = load_chunks(self.store(), self._own_key(), after, self.page_start)
        async for chunk in chunks:
            yield chunk

    async def iter_content(self, after: int | None = None) -> AsyncIterator[str]:
        """Yields the stored text in pieces, from behind the sequence ``after``.

        For a text of any length. A message that was added whole is one piece. Raises the errors of
        :meth:`iter_chunks`.
        """
        if not self.is_streaming and not self.next_sequence:
            yield self.content
        elif not self._has_parts and not self.is_streaming:
            async for chunk in self.iter_chunks(after):
                yield chunk.content
        else:
            async for text in texts_of(self.iter_chunks, after, self.redactions):
                yield text

    async def load_value(self, value: StoredValue) -> Any:
        """Loads a large value of a part of this message, as it was written.

        Args:
            value: The value in the ``fields`` of a part, such as the ``output`` of a tool call.

        Raises:
            InvalidInputError: It is not a :class:`StoredValue`.
            ValueNotFoundError: It was replaced, redacted or deleted since.
            StoreUnavailableError: MongoDB did not answer.
        """
        return await self.store().large_values.load(self._own_key(), check_stored(value))

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
        key = self._own_key()
        stored = await load_stored(self.store(), updates.any_log(key), longest)
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
        accepted and ignored. Keys of ``metadata`` with a dot or a leading ``$`` need a write of
        their own, before the rest.

        Raises:
            ProtectedFieldError: A field that only the library writes was changed.
            InvalidInputError: A changed field cannot be stored.
            MessageNotFoundError: The message does not exist.
        """
        save = partial(self.store().saves.save_message, role=MessageRole(self.role))
        return await self._save(save)

    async def insert(self, **_kwargs: Any) -> Self:
        """Adds the message at the end of its conversation.

        If a message has the same ``generation_id``, this becomes a copy of it.

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
        if self.work is not None:
            is_claimed = self.work.state is WorkState.RUNNING
            self.lease = self.lease if is_claimed else Lease()
            self.format = WORK_FORMAT
        elif self.is_streaming:
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
            if self.work is not None and self.work.state is WorkState.BLOCKED:
                # A new one for each try: a late place of another message cannot be taken for its.
                ticket = store.leases.clock.new_id()
                self.work = self.work.model_copy(update={"ticket": ticket})
            skipped = list(skip)
            skip[:] = [ActionDirections.BEFORE]  # hooks run once, also with retries
            await add(skip_actions=skipped, session=store.session)

        values, self._large_values = self._large_values, None
        key = self._own_key()
        if values:
            await store.large_values.store(key, values)
        try:
            self.position, is_new = await store.positions.add_message(
                store.queue(self.conversation_id), self.conversation_id, new_id, insert
            )
        except StoreUnavailableError:  # it may be stored
            raise
        except Exception:
            if values:
                await store.large_values.delete_if_gone(key)
            raise
        self._remember()
        if self.generation_id is not None and not is_new:
            if values:  # unless an earlier try of this call stored the message
                await store.large_values.delete_if_gone(key)
            await self.refresh()
            self._was_stored = True
            await self._ask()
            return self
        await self._ask()
        if store.handlers.wants(MessageCreated):
            await store.handlers.publish(
                MessageCreated(
                    conversation_id=self.conversation_id,
                    message_id=self._own_id(),
                    position=self.position,
                    role=MessageRole(self.role),
                    streaming=self.is_streaming,
                    content=self.content,
                    metadata=self.metadata,
                    created_at=self.created_at,
                    has_parts=self._has_parts,
                )
            )
        return self

    async def _ask(self) -> None:
        """Has a queued message look for a place of its key, if it needs one."""
        if self.work is not None and self.work.state is WorkState.BLOCKED:
            await self.store().jobs.enqueued(self._own_key())

    async def delete(self, *args: Any, **kwargs: Any) -> Any:
        """Deletes the message, as Beanie does, with its pages and its large values.

        Raises:
            UnknownFormatError: A later version wrote to the message, and knows what else it has.
            StoreUnavailableError: MongoDB did not answer.
            ConverseClosedError: The facade was closed.
        """
        store, key = self.store(), self._own_key()
        if self.position is not None:
            await store.positions.mark_used(self.conversation_id, self.position)
        deleted = await super().delete(*args, **kwargs)
        await store.paging.delete(key)
        await store.key_places.release_of(key["_id"], self.work)
        return deleted

    def _deletable(self) -> dict[str, Any]:
        return updates.known(self._own_key())

    # Chunks by hand

    async def append_chunk(
        self, content: str, metadata: Metadata | None = None, *, append_id: ObjectId | None = None
    ) -> MessageChunk:
        """Appends one chunk of text; when it returns, the chunk is stored.

        Args:
            content: The text, at most ``MAX_CHUNK_BYTES`` in UTF-8.
            metadata: Metadata of this chunk: values that BSON can hold.
            append_id: The ``append_id`` of a :class:`StoreUnavailableError`, to retry that append:
                it is stored once, whether or not the first try stored it.

        Raises:
            InvalidInputError: The content or the metadata cannot be stored.
            MessageNotStreamingError: The message has ended.
            MessageNotFoundError: The message does not exist.
            StoreUnavailableError: MongoDB did not answer; the error has the append id.
        """
        size = check_content(content, MAX_CHUNK_BYTES)
        checked = NO_METADATA if metadata is None else check_metadata(metadata, "chunk metadata")
        return (await self._append([Piece(content, checked, size)], append_id))[0]

    async def append_chunks(
        self,
        contents: Iterable[str | Part | PartEvent],
        *,
        append_id: ObjectId | None = None,
    ) -> list[MessageChunk]:
        """Appends a chunk for each of ``contents``, in as few atomic writes as limits allow.

        Events of parts are checked by themselves only: whether a part of another append is there
        would take a read. What names no living part is void.

        One atomic write has at most ``MAX_APPEND_CHUNKS`` chunks and ``MAX_APPEND_BYTES``; more are
        split into several writes, one after the other. If one of them fails, those before it are
        stored: the ``appended`` of the error is the number of their contents.

        Args:
            contents: Texts, each at most ``MAX_CHUNK_BYTES`` in UTF-8; parts, which are one or more
                chunks each; and events of parts.
            append_id: The ``append_id`` of a :class:`StoreUnavailableError`, to retry with the
                ``contents`` that begin at its ``appended``.

        Raises the errors of :meth:`append_chunk`; nothing is written if one of ``contents`` is
        invalid.
        """
        pieces = pieces_of(contents)
        chunks: list[MessageChunk] = []
        appended = 0
        try:
            for batch, count in in_appends(pieces):
                chunks += await self._append(batch, append_id)
                append_id, appended = None, appended + count
        except StoreUnavailableError as error:
            error.appended = appended
            raise
        return chunks

    async def _append(
        self, pieces: Sequence[AnyPiece], append_id: ObjectId | None
    ) -> list[MessageChunk]:
        if append_id is not None:
            append_id = object_id(append_id, "append")
        store, private = self.store(), self._private()
        queue, key = self._own_queue(store), self._own_key()
        has_parts = {*map(type, pieces)} != {Piece}
        chunks = await store.appends.append(queue, key, pieces, append_id, has_parts=has_parts)
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
        """Makes the first writer of this message, to be used in ``async with``.

        The first token is written at once. While a write is in flight, and for ``flush_interval``
        after it began, tokens gather; then a timer writes them together, without waiting for the
        next token. There is never more than one write in flight.

        Args:
            metadata: Merged into the metadata of the message at any end.
            flush_interval: Seconds from the beginning of a write to that of the next.
            max_buffered: The most bytes of text and parts that wait to be stored; beyond it
                ``write`` waits.
            granularity: ``"flush"`` makes one chunk of adjacent tokens that are written together,
                ``"token"`` a chunk of each.
            interrupt: True to cancel the current ``await`` of the task inside the block, such as
                that of a silent model, when a stop is requested or another writer takes over. The
                block then ends with :class:`StreamStoppedError` or :class:`WriterFencedError`.

        Raises:
            InvalidInputError: An option is invalid, or the metadata cannot be stored.
        """
        return self._writer(
            metadata,
            flush_interval=flush_interval,
            max_buffered=max_buffered,
            granularity=granularity,
            interrupt=interrupt,
        )

    def resume_writer(
        self,
        *,
        metadata: Metadata | None = None,
        flush_interval: float = 0.04,
        max_buffered: int = 1024 * 1024,
        granularity: Granularity = "flush",
        interrupt: bool = False,
    ) -> MessageWriter:
        """Makes a writer that takes over the message from the writer that it has or had.

        On entry, this copy of the message is loaded again: continue from its ``content``. The next
        write of the other writer then fails with :class:`WriterFencedError` and stores nothing. The
        arguments are those of :meth:`writer`.
        """
        return self._writer(
            metadata,
            take_over=True,
            flush_interval=flush_interval,
            max_buffered=max_buffered,
            granularity=granularity,
            interrupt=interrupt,
        )

    def _writer(
        self,
        metadata: Metadata | None = None,
        *,
        completion: Metadata | None = None,
        take_over: bool = False,
        **options: Any,
    ) -> MessageWriter:
        checked, store = WriterOptions(**options), self.store()
        if store.session is not None:
            raise InvalidInputError(
                "A writer stores text while it streams, which a transaction would hide: use it "
                "outside, or append_chunks inside. Nothing was written."
            )
        target = WriterTarget(
            store=store,
            queue=self._own_queue(store),
            key=self._own_key(),
            taken_over=lambda lease: self._reload(MAX_CONTENT_BYTES, lease),
            written=lambda chunks: self._own_writes.write(self.__dict__, self._tracker, chunks),
            behind_steps=self._behind_steps,
            end=self._end,
            attempt=self._attempt or attempt_at(self._own_key()),
        )
        return MessageWriter(target, checked, metadata, completion=completion, take_over=take_over)

    async def _behind_steps(self) -> int:
        store, log = self.store(), self._own_writes.log_of(self.__dict__)
        count = self._own_queue(store).next_sequence
        if log is not None and log.next_sequence == count:
            return log.behind_steps()
        if not self._has_parts and self.next_sequence == count:
            return 0  # text alone
        found = await find_log(store, self._own_key())
        if found is None:
            raise MessageNotFoundError(self._own_id())
        return found[1].behind_steps()

    async def pipe(
        self,
        tokens: AsyncIterable[str | Part | PartEvent],
        metadata: Metadata | None = None,
        *,
        flush_interval: float = 0.04,
        max_buffered: int = 1024 * 1024,
        granularity: Granularity = "flush",
        resume: bool = False,
    ) -> Self:
        """Writes all of ``tokens`` through a :meth:`writer`, and completes the message.

        A stop interrupts ``tokens`` even while they are silent, and closes them if they have an
        ``aclose``.

        Args:
            tokens: Any asynchronous iterable of text, parts and events of parts.
            metadata: Merged into the metadata of the message when it completes. It is not stored if
                the message fails or is stopped.
            flush_interval: As for :meth:`writer`, like the next two.
            max_buffered: See there.
            granularity: See there.
            resume: True to take over the message from the writer that it has or had, as
                :meth:`resume_writer` does, and continue behind its text.

        Raises:
            InvalidInputError: ``tokens`` or an option is invalid, or the metadata cannot be stored.
                No token was read.
            StreamStoppedError: A stop was requested; the message is cancelled.

        It also raises the errors of a writer, and those of ``tokens``.
        """
        check_contents(tokens)
        async with (
            closed_in_the_end(tokens),
            self._writer(
                completion=metadata,
                take_over=resume,
                flush_interval=flush_interval,
                max_buffered=max_buffered,
                granularity=granularity,
                interrupt=True,
            ) as writer,
        ):
            async for token in tokens:
                await writer.write(token)
        return self

    # The end

    async def complete_streaming(self, metadata: Metadata | None = None) -> Self:
        """Completes the stream; ``metadata`` is merged into the message's, key by key.

        The metadata is stored with the completion and only with it: it is not stored if this call
        raises.

        Raises:
            InvalidMetadataError: The metadata cannot be stored; the message continues to stream.
            MessageNotStreamingError: The message has ended before; nothing was changed.
            MessageNotFoundError: The message does not exist.
            StoreUnavailableError: MongoDB did not answer.
        """
        return await self._end(End(MessageStatus.COMPLETED, check_metadata(metadata)))

    async def fail_streaming(
        self, error: str | BaseException, metadata: Metadata | None = None
    ) -> Self:
        """Ends the stream with an error; keeps the text so far. Raises as a completion does.

        Args:
            error: Text, or an exception whose text is stored. In place of one that has the text of
                MongoDB, its driver or this library, a sentence for people is stored, and
                ``metadata["error_type"]`` has the name of its class; the exception is logged.
            metadata: Merged into the metadata of the message.
        """
        checked, told = check_metadata(metadata), error
        if isinstance(error, BaseException) and (words := words_for(error)) is not None:
            logger.error("Message %s has failed", self.id, exc_info=error)
            checked, told = {"error_type": type(error).__name__, **checked}, words
        return await self._end(End(MessageStatus.FAILED, checked, check_error(told)))

    async def mark_as_error(
        self, error: str | BaseException, metadata: Metadata | None = None
    ) -> Self:
        """Another name of :meth:`fail_streaming`, for code that was written for Converse."""
        return await self.fail_streaming(error, metadata)

    async def cancel_streaming(
        self, reason: str | None = None, metadata: Metadata | None = None
    ) -> Self:
        """Cancels the stream at once; keeps the text so far.

        For the process that writes the message. Others use :meth:`request_stop`, which lets the
        writer store its text. Raises as a completion does.
        """
        return await self._end(
            End(MessageStatus.CANCELLED, check_metadata(metadata), stop_reason=check_reason(reason))
        )

    async def request_stop(self, reason: str | None = None) -> MessageStatus:
        """Asks the writer of the message, in whatever process, to stop.

        The writer stores its text and the message ends ``cancelled``. If the message has no writer,
        this call ends it. If its writer is presumed dead, the next process that reads the message
        ends it.

        Args:
            reason: Stored as the ``stop_reason`` of the message.

        Returns:
            The state of the message: ``CANCELLED``; ``STREAMING`` until its writer is notified; or
            its earlier final state, in which case nothing was changed.

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
            known=self._own_writes.known(self.__dict__),
            lease=lease,
            end_id=end_id,
        )
        self._own_writes.end(self.__dict__, ended)
        self._remember()
        return self

    # Redaction

    async def redact_part(self, part: Part | int, reason: str | None = None) -> Self:
        """Removes the content of a part from the database, and tells the viewers.

        The part stays in its place, with its kind and its number. A tool call also keeps its name,
        and data their name and their id. Its ``redacted`` is the reason, or true. Text is taken out
        of ``content``. Parts of a sub-agent are parts of their own: redacting the call leaves them.

        Viewers of a message that streams get a chunk with the event ``redact``; text that the
        writer adds to the part later is dropped. For a message that has ended, watchers of the
        conversation get :class:`MessageUpdated`. Until this call returns, :meth:`iter_chunks` and
        watchers of such a message may still yield the chunks.

        Call it again if it raises: what a first call has begun is then finished. If nobody does,
        the sweeper of a ``Converse`` does it. Redacting a part again changes nothing, also not the
        reason.

        The message is read into this copy: changes of its ``content`` that are not saved are lost.

        Args:
            part: A part of this message, or its number.
            reason: A text for viewers, such as ``"personal data"``.

        Raises:
            InvalidInputError: The message has no such part, or the reason cannot be stored.
            MessageNotFoundError: The message does not exist.
            UnknownFormatError: A later version wrote to the message.
            StoreUnavailableError: MongoDB did not answer.
        """
        number, reason = self._number_of(part), check_reason(reason)
        store, key = self.store(), self._own_key()
        await store.redactions.redact(self._own_queue(store), key, number, reason)
        while True:
            stored = await load_stored(store, key)
            if stored.get("next_sequence", 0) >= self.next_sequence:
                break  # else a writer has meanwhile added to this copy
        self._own_writes = OwnWrites()
        self._own_writes.unconfirmed = store.session is not None
        self._own_writes.read(self.__dict__, self._tracker, type(self).model_validate(stored))
        return self

    def _number_of(self, part: object) -> int | None:
        """Returns the number of a part; ``None`` for the text of a message of text alone.

        Raises:
            InvalidInputError: It is neither a part of this message nor a number.
        """
        number = part.number if isinstance(part, Part) else part
        if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
            return number
        if not self._has_parts and isinstance(part, Part) and part in self.parts:
            return None
        raise InvalidInputError(
            f"{part!r} is no part of message {self.id}: pass one of its parts, or the number of "
            "one. Nothing was written."
        )

    # This copy

    _own_writes: OwnWrites = PrivateAttr(default_factory=OwnWrites)
    _was_stored: bool = PrivateAttr(default=False)  # when it was inserted
    _attempt: Attempt | None = PrivateAttr(default=None)  # of the worker that generates it
    _large_values: Mapping[str, LargeValue] | None = PrivateAttr(default=None)  # to be inserted

    @classmethod
    def _derive(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Adds what the second write of an end has not stored yet, or could not store."""
        return with_text(data)

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
        """Returns the filter for this message, and for no later message with the same id."""
        return message_key(self._own_id(), self.conversation_id, self.log_id)

    def _own_queue(self, store: Store) -> WriteQueue:
        own_writes: OwnWrites = self._private()["_own_writes"]
        queue = own_writes.queue if store.session is None else None
        if queue is None:
            queue = store.queue((self._own_id(), self.log_id))
            if store.session is None:
                own_writes.queue = queue
        fields = self.__dict__
        queue.role = MessageRole(fields["role"])
        queue.has_work = fields["work"] is not None
        queue.learn(fields["next_sequence"], fields["page_start"], fields["chunk_bytes"])
        return queue
