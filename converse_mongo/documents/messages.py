"""Messages: what was said, whole or while it streams."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Self, TypeVar, cast

from beanie import Document, PydanticObjectId
from beanie.odm.actions import ActionDirections, EventTypes, wrap_with_actions
from beanie.odm.utils.parsing import parse_obj
from pymongo import ASCENDING, IndexModel

from converse_mongo.documents.stored_message import Lease, generated_id
from converse_mongo.documents.streaming import StreamingMessage
from converse_mongo.domain.chunks import ChunkLog, MessageChunk
from converse_mongo.domain.errors import (
    InvalidInputError,
    MessageNotFoundError,
    WatchError,
)
from converse_mongo.domain.events import MessageCreated
from converse_mongo.domain.headers import LeaseState, MessageHeader
from converse_mongo.domain.types import MessageStatus
from converse_mongo.domain.validation import (
    EPOCH,
    PAGE_CHUNKS,
    check_content,
    check_metadata,
    check_sequence,
    now,
)
from converse_mongo.driver.servers import FIRST_MARK
from converse_mongo.store import updates
from converse_mongo.store.appends import refuse_overtaken

__all__ = ["SUPERSEDED_INDEXES", "Message", "load_message"]

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

_own_key: ContextVar[dict[str, Any] | None] = ContextVar("converse_mongo_own_key", default=None)
"""The filter of a message that Beanie is about to find by its id alone, to update or delete it."""


@contextmanager
def _finding_only(key: dict[str, Any]) -> Iterator[None]:
    token = _own_key.set(key)
    try:
        yield
    finally:
        _own_key.reset(token)


class Message(StreamingMessage, Document):
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

    @classmethod
    def _models(cls) -> tuple[type[Document], type[Document]]:
        return cls, cls.conversation_model

    # Reading

    async def iter_chunks(self, after: int | None = None) -> AsyncIterator[MessageChunk]:
        """Yields the chunks that are stored, in order, from behind the sequence ``after``.

        Reads some pages at a time, so that a long message needs no more memory than a short one.

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
            MessageNotFoundError: There is no such message.
        """
        return await self._reload()

    async def _reload(self, longest: int | None = None, lease: LeaseState | None = None) -> Self:
        store, key = self.store(), self._own_key()
        stored: Any = await store.call(
            store.messages.find_one, updates.any_log(key), what=f"read message {self.id}"
        )
        if stored is None:
            raise MessageNotFoundError(self._own_id())
        if longest is None or stored.get("content_bytes", 0) <= longest:
            await store.call(store.reader.add_moved_chunks, stored, what=f"read message {self.id}")
        if lease is not None:
            refuse_overtaken(MessageHeader.from_stored(stored), key, lease)
        self._load(stored)
        return self

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
            MessageNotFoundError: There is no such message.
        """
        if self.id is None:
            return await self.insert()
        changes = self._changes()
        if "content" in changes.assign:
            check_content(self.content)
        if changes:
            saved_at, store = now(), self.store()
            if changes.unaddressable:
                await store.saves.save_unaddressable(
                    store.messages, self._own_key(), changes.unaddressable
                )
            update = updates.save(changes.assign, changes.remove, saved_at)
            self.revision = await store.saves.save_message(
                self._own_key(),
                updates.mark_edited(update, self.conversation_id, self.role, saved_at),
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

    @classmethod
    def find_one(cls, *args: Any, **kwargs: Any) -> Any:
        """Finds one message, as Beanie does."""
        own = _own_key.get()
        if own is not None and args and args[0] == {"_id": own["_id"]}:
            args = (own, *args[1:])
        return super().find_one(*args, **kwargs)

    async def update(self, *args: Any, **kwargs: Any) -> Self:
        """Applies update operators, as Beanie does, to fields that are not the library's.

        Beanie's ``set``, ``inc`` and ``current_date`` come here, too.

        Raises:
            ProtectedFieldError: One of the fields is written by the library only.
            MessageNotFoundError: There is no such message.
        """
        store, key = self.store(), self._own_key()
        what = f"read message {self.id}"
        if await store.call(store.messages.find_one, key, {"_id": 1}, what=what) is None:
            raise MessageNotFoundError(self._own_id())
        with _finding_only(key):
            return await super().update(*args, **kwargs)

    async def delete(self, *args: Any, **kwargs: Any) -> Any:
        """Deletes the message, as Beanie does, and its pages."""
        key = self._own_key()
        with _finding_only(key):
            deleted = await super().delete(*args, **kwargs)
        await self.store().paging.delete(key)
        return deleted


async def load_message(model: type[M], key: Mapping[str, Any]) -> M:
    """The message that a filter by its id finds, ended first if its writer is taken for dead.

    Raises:
        MessageNotFoundError: There is no such message.
        StoreUnavailableError: MongoDB gave no answer.
    """
    store, what = model.store(), f"read message {key['_id']}"
    stored: Any = await store.call(store.messages.find_one, key, what=what)
    if stored is None:
        raise MessageNotFoundError(key["_id"])
    state = MessageHeader.from_stored(stored)
    if not state.status.is_final:
        settled = await store.leases.settle_if_expired(state)
        if settled.status.is_final:
            return await load_message(model, key)
    await store.call(store.reader.add_moved_chunks, stored, what=what)
    return cast(M, parse_obj(model, stored))
