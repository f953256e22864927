"""Messages: what was said, whole or while it streams."""

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from beanie import Document, PydanticObjectId
from beanie.odm.actions import ActionDirections, EventTypes, wrap_with_actions
from bson import ObjectId
from pydantic import Field, PrivateAttr, model_validator
from pymongo import ASCENDING, IndexModel

from converse_mongo import _updates
from converse_mongo._document import JsonableDict, StoredDocument, UtcDatetime
from converse_mongo._state import with_chunk_count
from converse_mongo._validation import (
    MAX_CHUNK_BYTES,
    check_chunk_contents,
    check_content,
    check_error,
    check_metadata,
    check_sequence,
    now,
    object_id,
)
from converse_mongo.chunks import ChunkLog, MessageChunk
from converse_mongo.errors import (
    InvalidInputError,
    MessageNotFoundError,
    ProtectedFieldError,
)
from converse_mongo.events import MessageCreated
from converse_mongo.store import EndedMessage, Lane
from converse_mongo.types import MessageRole, MessageStatus, Metadata

__all__ = ["Message"]

CHUNKS_PER_READ = 500


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
        content: The text; while the message streams, the text so far.
        chunks: The chunks in order. Listings leave them out: see :class:`ChunkLog`.
        next_sequence: The sequence of the chunk that comes next, which is their number.
        chunk_bytes: What the chunks take in the document, in bytes, counted generously.
        metadata: What the application says of it; an ended stream adds the number of ``chunks``.
        error: Why it failed, or ``None``.
        revision: How often it was saved.
        created_at: When it was made; UTC, aware, like all dates here.
        updated_at: When it was last changed otherwise than by a chunk.
        completed_at: When it ended, or was added whole.
    """

    if TYPE_CHECKING:  # what the library gives out is stored, and so has an id
        id: PydanticObjectId = Field(default=None)  # type: ignore[assignment]

    conversation_id: PydanticObjectId
    position: int | None = None
    role: MessageRole
    status: MessageStatus = MessageStatus.COMPLETED
    content: str = ""
    chunks: ChunkLog = Field(default_factory=ChunkLog)
    next_sequence: int = 0
    chunk_bytes: int = 0
    metadata: JsonableDict = Field(default_factory=dict)
    error: str | None = None
    revision: int = 0
    created_at: UtcDatetime = Field(default_factory=now)
    updated_at: UtcDatetime = Field(default_factory=now)
    completed_at: UtcDatetime | None = None

    conversation_model: ClassVar[type[Document]]

    _protected: ClassVar[dict[str, str]] = {
        "id": "MongoDB ids never change",
        "conversation_id": "a message stays in its conversation",
        "position": "the order of messages is given once",
        "status": "use complete_streaming or fail_streaming",
        "chunks": "use append_chunk",
        "next_sequence": "use append_chunk",
        "chunk_bytes": "use append_chunk",
        "error": "use fail_streaming",
        "created_at": "it was given once",
        "completed_at": "use complete_streaming or fail_streaming",
        "revision": "save() counts it",
    }
    _untracked = frozenset({"revision_id", "chunks", "updated_at"})
    _lane: Lane | None = PrivateAttr(default=None)

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
        ]

    _library_settings = Settings

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, data: Any) -> Any:
        """Adds what the second write of an end has not stored yet, or could not."""
        if not isinstance(data, dict):
            return data
        chunks = data.get("chunks")
        if isinstance(chunks, list) and chunks and not data.get("content"):
            log = ChunkLog(chunks)
            data = {**data, "chunks": log, "content": log.text()}
        if data.get("end_id") is not None:
            count = data.get("next_sequence", 0)
            data = {**data, "metadata": with_chunk_count(data.get("metadata") or {}, count)}
        return data

    @classmethod
    def _models(cls) -> tuple[type[Document], type[Document]]:
        return cls, cls.conversation_model

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
            MessageTooLargeError: The chunks would pass ``MAX_MESSAGE_BYTES``.
            StoreUnavailableError: MongoDB gave no answer; the error carries the append id.
        """
        check_content(content, MAX_CHUNK_BYTES)
        checked = {} if metadata is None else check_metadata(metadata, "chunk metadata")
        return (await self._append([content], checked, append_id))[0]

    async def append_chunks(
        self, contents: Iterable[str], *, append_id: ObjectId | None = None
    ) -> list[MessageChunk]:
        """Appends a chunk for each of ``contents`` in one atomic write: all of them or none.

        Takes at most ``MAX_APPEND_BYTES`` of text; raises as :meth:`append_chunk` does, and
        :class:`AppendTooLargeError` beyond that.
        """
        checked = check_chunk_contents(contents)
        return await self._append(checked, {}, append_id) if checked else []

    async def _append(
        self, contents: list[str], metadata: dict[str, Any], append_id: ObjectId | None
    ) -> list[MessageChunk]:
        if append_id is not None:
            append_id = object_id(append_id, "append")
        chunks = await self.store().append(
            self._own_lane(), self._own_id(), self.conversation_id, contents, metadata, append_id
        )
        self._take_appended(chunks)
        return chunks

    def _take_appended(self, chunks: list[MessageChunk]) -> None:
        if not (self.is_streaming and self.chunks.is_loaded):
            return
        for chunk in chunks:
            if chunk.sequence != self.next_sequence:
                return  # others appended in between: this copy stays a true beginning of the text
            self.chunks.stored.append(chunk.to_stored())
            self.next_sequence += 1
            self.chunk_bytes += chunk.stored_size
            # With no other reference to it CPython grows a string in place; a copy for each chunk
            # would cost the square of the length.
            self._remembered.pop("content")
            text = self.__dict__.pop("content")
            text += chunk.content
            self.__dict__["content"] = self._remembered["content"] = text
        self._remembered["next_sequence"] = self.next_sequence
        self._remembered["chunk_bytes"] = self.chunk_bytes

    async def complete_streaming(self, metadata: Metadata | None = None) -> Self:
        """Ends the stream well; ``metadata`` is merged into the message's, key by key.

        Raises:
            InvalidMetadataError: The metadata cannot be stored.
            MessageNotStreamingError: The message has ended already; nothing was changed.
            MessageNotFoundError: There is no such message.
            StoreUnavailableError: MongoDB gave no answer.
        """
        return await self._end(MessageStatus.COMPLETED, metadata, None)

    async def fail_streaming(
        self, error: str | BaseException, metadata: Metadata | None = None
    ) -> Self:
        """Ends the stream with an error; the text so far is kept. Raises as a completion does."""
        return await self._end(MessageStatus.FAILED, metadata, check_error(error))

    async def mark_as_error(
        self, error: str | BaseException, metadata: Metadata | None = None
    ) -> Self:
        """Another name of :meth:`fail_streaming`, for code that comes from Converse."""
        return await self.fail_streaming(error, metadata)

    async def _end(
        self, status: MessageStatus, metadata: Metadata | None, error: str | None
    ) -> Self:
        ended = await self.store().end(
            self._own_lane(),
            self._own_id(),
            self.conversation_id,
            status,
            check_metadata(metadata),
            error,
            (self.next_sequence, self.content) if self.chunks.is_loaded else None,
        )
        self._take_end(ended)
        return self

    def _take_end(self, ended: EndedMessage) -> None:
        state = ended.state
        self.status, self.error = state.status, state.error
        self.metadata, self.next_sequence = state.metadata, state.next_sequence
        self.completed_at = state.completed_at
        if ended.content is not None:
            self.content = ended.content
        if ended.chunks is not None or ended.content is None:
            self.chunks = ChunkLog(ended.chunks)
        self._remember()

    async def iter_chunks(self, after: int | None = None) -> AsyncIterator[MessageChunk]:
        """Yields the chunks that are stored, in order, from behind the sequence ``after``.

        Reads a few hundred at a time, so that a long message needs no more memory than a short one.

        Raises:
            InvalidCursorError: ``after`` is no sequence.
            MessageNotFoundError: There is no such message.
        """
        start = check_sequence(after)
        store = self.store()
        while True:
            found = await store.call(
                store.reader.read,
                self._own_id(),
                self.conversation_id,
                start,
                CHUNKS_PER_READ,
                what=f"read message {self.id}",
            )
            if found is None:
                raise MessageNotFoundError(self._own_id())
            _, chunks = found
            for chunk in chunks:
                yield chunk
            if len(chunks) < CHUNKS_PER_READ:
                return
            start += len(chunks)

    async def refresh(self) -> Self:
        """Loads the message again into this object; unsaved changes are lost.

        Raises:
            MessageNotFoundError: There is no such message.
        """
        store = self.store()
        stored = await store.call(
            store.messages.find_one,
            _updates.message_key(self._own_id(), self.conversation_id),
            what=f"read message {self.id}",
        )
        if stored is None:
            raise MessageNotFoundError(self._own_id())
        self._load(stored)
        return self

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied.chunks = self.chunks.copy()
        return copied

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
            self.revision = await self.store().save_message(
                self.id,
                self.conversation_id,
                _updates.mark_edited(update, self.conversation_id, saved_at),
            )
            self.updated_at = saved_at
            self._remember()
        return self

    def _refuse_protected(self, name: str) -> None:
        super()._refuse_protected(name)
        if name == "content" and (self.is_streaming or self.next_sequence):
            raise ProtectedFieldError(
                f"The content of message {self.id} is the text of its chunks: use append_chunk "
                "while it streams. Nothing was written."
            )

    async def insert(self, **_kwargs: Any) -> Self:
        """Adds the message at the end of its conversation.

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
        if self.completed_at is None and not self.is_streaming:
            self.completed_at = self.created_at
        store, new_id = self.store(), None
        if self.id is None:
            self.id = new_id = PydanticObjectId()
        skip: list[ActionDirections | str] = []
        add = super().insert

        async def insert(position: int) -> None:
            self.position = position
            skipped = list(skip)
            skip[:] = [ActionDirections.BEFORE]  # hooks run once, however often it takes
            await add(skip_actions=skipped)

        self.position = await store.add_message(
            store.lane(self.conversation_id), self.conversation_id, new_id, insert
        )
        self._remember()
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

    def _own_id(self) -> ObjectId:
        if self.id is None:
            raise InvalidInputError("This message is not stored yet: await insert() first.")
        return self.id

    def _own_lane(self) -> Lane:
        if self._lane is None:
            self._lane = self.store().lane(self._own_id())
        self._lane.next_sequence = max(self._lane.next_sequence, self.next_sequence)
        return self._lane
