"""What a message consists of, and how a copy of it follows what is done through it."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from beanie import PydanticObjectId
from bson import ObjectId
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from converse_mongo.documents.tracking import (
    JsonableDict,
    StoredDocument,
    UtcDatetime,
)
from converse_mongo.domain.chunks import ChunkLog, MessageChunk
from converse_mongo.domain.errors import InvalidInputError, ProtectedFieldError
from converse_mongo.domain.headers import message_key, with_chunk_count
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.domain.validation import (
    MAX_CONTENT_BYTES,
    PAGE_CHUNKS,
    now,
)
from converse_mongo.store import EndedMessage, Store, WriteQueue

__all__ = ["Lease", "StoredMessage", "generated_id"]


class Lease(BaseModel):
    """Who may write to a streaming message, and how long without a sign of life.

    Attributes:
        epoch: How many writers the message has had; 0 while it is appended to by hand.
        holder: The id that the last writer gave itself.
        renewed_at: When there was a sign of life, by the server's clock; ``None`` for never.
        duration: Seconds from then on until whoever meets the message ends it as an orphan;
            ``None`` for never.
    """

    model_config = ConfigDict(frozen=True)

    epoch: int = 0
    holder: PydanticObjectId | None = None
    renewed_at: UtcDatetime | None = None
    duration: float | None = None


class StoredMessage(StoredDocument):
    """The fields of a message; :class:`converse_mongo.Message` is what is done with them."""

    if TYPE_CHECKING:  # what the library gives out is stored, and so has an id
        id: PydanticObjectId = Field(default=None)  # type: ignore[assignment]

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
    _queue: WriteQueue | None = PrivateAttr(default=None)

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

    # What this copy follows

    _follows: bool = PrivateAttr(default=False)
    _unconfirmed: bool = PrivateAttr(default=False)
    """Whether it followed appends of a transaction, which may not have been committed."""

    @property
    def _has_whole_text(self) -> bool:
        """Whether ``content`` is the text of the first ``next_sequence`` chunks."""
        return self.chunks.is_loaded or self._follows

    @property
    def _knows_text(self) -> bool:
        """Whether ``content`` may be taken for what is stored, without reading it."""
        return self._has_whole_text and not self._unconfirmed

    def _take_appended(self, chunks: Sequence[MessageChunk]) -> None:
        """Follows an append of this copy, which so holds all chunks that it held and made."""
        # By the dictionary: an attribute costs a call or two in Beanie's classes, at each append.
        fields = self.__dict__
        log: ChunkLog = fields["chunks"]
        if not (log.is_loaded and fields["status"] is MessageStatus.STREAMING):
            return
        if chunks[0].sequence == fields["next_sequence"]:  # else it stays a true beginning
            log.stored.extend([chunk.to_stored() for chunk in chunks])
            self._take_text(chunks, None)

    def _take_written(self, chunks: Sequence[MessageChunk]) -> None:
        """Follows a writer, but holds no more than a page of chunks and what text fits."""
        if not (self.is_streaming and self._has_whole_text):
            return
        self._follows = True
        if chunks[0].sequence != self.next_sequence:
            return
        if self.chunks.is_loaded and self.next_sequence + len(chunks) <= PAGE_CHUNKS:
            self.chunks.stored.extend([chunk.to_stored() for chunk in chunks])
        else:
            self.chunks = ChunkLog.not_loaded()
        self._take_text(chunks, MAX_CONTENT_BYTES)

    def _take_text(self, chunks: Sequence[MessageChunk], limit: int | None) -> None:
        fields, remembered = self.__dict__, self._private()["_remembered"]
        # With no other reference to it CPython grows a string in place; a copy for each chunk
        # would cost the square of the length.
        remembered.pop("content", None)
        text: str = fields.pop("content")
        for chunk in chunks:
            fields["next_sequence"] += 1
            fields["chunk_bytes"] += chunk.stored_size
            fields["content_bytes"] += chunk.content_size
            if limit is None or fields["content_bytes"] <= limit:
                text += chunk.content
            else:
                text = ""
        fields["content"] = text
        for name in ("content", "next_sequence", "chunk_bytes", "content_bytes"):
            remembered[name] = fields[name]

    def _take_end(self, ended: EndedMessage) -> None:
        state = ended.state
        self.status, self.error, self.stop_reason = state.status, state.error, state.stop_reason
        self.metadata, self.next_sequence = state.metadata, state.next_sequence
        self.content_bytes, self.completed_at = state.content_bytes, state.completed_at
        if ended.content is not None:
            self.content = ended.content
        if ended.chunks is not None:
            self.chunks = ChunkLog(ended.chunks)
        elif self.chunks.is_loaded and len(self.chunks) != state.next_sequence:
            self.chunks, self.content = ChunkLog.not_loaded(), ended.content or ""
        self._remember()

    def _refuse_protected(self, name: str) -> None:
        super()._refuse_protected(name)
        if name == "content" and (self.is_streaming or self.next_sequence):
            raise ProtectedFieldError(
                f"The content of message {self.id} is the text of its chunks: use append_chunk "
                "while it streams. Nothing was written."
            )

    def _load(self, stored: dict[str, Any]) -> None:
        super()._load(stored)
        self._queue = None  # the message may be another one with the same id
        self._follows = self._unconfirmed = False

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied.chunks = self.chunks.copy()
        return copied

    def _own_id(self) -> ObjectId:
        own_id = self.id
        if own_id is None:
            raise InvalidInputError("This message is not stored yet: await insert() first.")
        return own_id

    def _own_key(self) -> dict[str, Any]:
        """The filter that finds this message, and no later one with the same id."""
        return message_key(self._own_id(), self.conversation_id, self.log_id)

    def _own_queue(self, store: Store) -> WriteQueue:
        private: dict[str, Any] = self._private()
        queue: WriteQueue | None = private["_queue"] if store.session is None else None
        if queue is None:
            queue = store.queue((self._own_id(), self.log_id))
            if store.session is None:
                private["_queue"] = queue
        fields = self.__dict__
        queue.role = fields["role"]
        queue.learn(fields["next_sequence"], fields["page_start"], fields["chunk_bytes"])
        return queue


def generated_id(conversation_id: ObjectId, generation_id: str) -> PydanticObjectId:
    """The id of the message that a generation makes in a conversation.

    Derived, so that of two processes that start the same generation one finds it started: the
    unique index on ``_id`` is one that every collection has, sharded or not.
    """
    digest = hashlib.sha256(conversation_id.binary + generation_id.encode()).digest()
    return PydanticObjectId(digest[:12])
