"""What is done with a message that streams."""

from collections.abc import AsyncIterable, Iterable, Iterator
from typing import Self

from bson import ObjectId

from converse_mongo.documents.stored_message import StoredMessage
from converse_mongo.domain.chunks import NO_METADATA, MessageChunk, Piece
from converse_mongo.domain.errors import InvalidInputError, StoreUnavailableError
from converse_mongo.domain.headers import LeaseState
from converse_mongo.domain.types import (
    Granularity,
    MessageStatus,
    Metadata,
)
from converse_mongo.domain.validation import (
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
    object_id,
    utf8_size,
)
from converse_mongo.store.ends import End
from converse_mongo.writing.writer import (
    MessageWriter,
    WriterOptions,
    WriterTarget,
)

__all__ = ["StreamingMessage"]


class StreamingMessage(StoredMessage):
    """The methods of a message that grows; :class:`converse_mongo.Message` has the others."""

    async def _reload(self, longest: int | None = None, lease: LeaseState | None = None) -> Self:
        """Loads the message again.

        Args:
            longest: Leave out moved chunks where the text takes more bytes.
            lease: That of a writer, which is shown only what it was given to go on from.
        """
        raise NotImplementedError

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
        store = self.store()
        queue, key = self._own_queue(store), self._own_key()
        chunks = await store.appends.append(queue, key, pieces, append_id)
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

        The writer stores what it has and the message ends ``cancelled``. If the message has no
        writer, this call ends it. If its writer is taken for dead, whoever looks at the message
        next ends it.

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
        state = await self.store().leases.request_stop(self._own_key(), check_reason(reason))
        return state.status

    async def _end(
        self, end: End, lease: LeaseState | None = None, end_id: ObjectId | None = None
    ) -> Self:
        store = self.store()
        ended = await store.ends.end(
            self._own_queue(store),
            self._own_key(),
            end,
            retention=self.retention,
            known=(self.next_sequence, self.content) if self._knows_text else None,
            lease=lease,
            end_id=end_id,
        )
        self._take_end(ended)
        return self


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
