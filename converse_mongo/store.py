"""The only module that writes conversations and messages."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import count
from typing import Any, TypeAlias, TypeVar, cast
from weakref import WeakValueDictionary

from bson import ObjectId
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError

from converse_mongo import _retry, _updates
from converse_mongo._driver import Collection, is_too_large
from converse_mongo._handlers import Handlers
from converse_mongo._reader import Reader
from converse_mongo._state import STATE, MessageState, with_chunk_count
from converse_mongo._validation import MAX_MESSAGE_BYTES, now
from converse_mongo.chunks import MessageChunk, StoredChunk
from converse_mongo.errors import (
    ConversationNotFoundError,
    ConverseClosedError,
    MessageNotFoundError,
    MessageNotStreamingError,
    MessageTooLargeError,
    StoreUnavailableError,
)
from converse_mongo.events import ChunkReceived, MessageCompleted, MessageFailed, MessageUpdated
from converse_mongo.types import MessageStatus

__all__ = ["EndedMessage", "Lane", "Store"]

logger = logging.getLogger("converse_mongo")

T = TypeVar("T")

Insert: TypeAlias = Callable[[int], Awaitable[Any]]
"""Inserts a document at a position; ``DuplicateKeyError`` says that the position is taken."""

_BACKOFF_SECONDS = 0.002
_BACKOFF_MAX_SECONDS = 0.1


class Lane:
    """Keeps the writers of one message, or one conversation, of this process in a queue.

    Without it they would race one another to the server, where one wins and all others try again.
    Writers in other processes still race; the filters of the updates decide there.
    """

    __slots__ = ("__weakref__", "lock", "next_sequence")

    def __deepcopy__(self, memo: object) -> "Lane":
        return self  # a copy of a message is written in the same queue

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.next_sequence = 0


@dataclass(frozen=True, slots=True)
class EndedMessage:
    """A message right after its end: its state, its text, and its chunks where they were read.

    The text is ``None`` where it could not be read any more.
    """

    state: MessageState
    content: str | None
    chunks: list[StoredChunk] | None


class Store:
    """Writes to one pair of collections.

    Every write may be repeated safely: what it does not find to be true any more it does not do,
    and what it did before it recognises by an id that it chose. So calls that fail on the network
    are tried again for ``retry_timeout`` seconds.
    """

    def __init__(
        self,
        messages: Collection,
        conversations: Collection,
        *,
        handlers: Handlers | None = None,
        retry_timeout: float = 30.0,
    ) -> None:
        self.messages = messages
        self.conversations = conversations
        self.reader = Reader(messages, conversations)
        self.handlers = handlers or Handlers()
        self.closed = False
        self._retry_timeout = retry_timeout
        self._lanes: WeakValueDictionary[ObjectId, Lane] = WeakValueDictionary()

    def lane(self, key: ObjectId) -> Lane:
        """The lane of a message or conversation; it lives as long as somebody holds it."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane()
        return lane

    async def append(
        self,
        lane: Lane,
        message_id: ObjectId,
        conversation_id: ObjectId,
        contents: Sequence[str],
        metadata: Mapping[str, Any],
        append_id: ObjectId | None = None,
    ) -> list[MessageChunk]:
        """Appends one chunk for each of ``contents``, all or none, and returns them.

        Args:
            append_id: That of an append whose outcome is unknown, to try the same one again.

        Raises:
            MessageNotStreamingError: The message has ended.
            MessageNotFoundError: There is no such message.
            MessageTooLargeError: The chunks would pass ``MAX_MESSAGE_BYTES``.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds; carries the append id.
        """
        key = _updates.message_key(message_id, conversation_id)
        created_at = now()
        async with lane.lock:
            # What may be stored already is looked for first, by a try that cannot match.
            first = lane.next_sequence if append_id is None else -1
            append_id = append_id or ObjectId()
            for attempt in count():
                chunks = _number(first, contents, created_at, metadata)
                match, update = _updates.append(key, chunks, append_id)
                try:
                    result = await self.call(
                        self.messages.update_one,
                        match,
                        update,
                        what=f"append to message {message_id}",
                        append_id=append_id,
                    )
                except OperationFailure as error:
                    if is_too_large(error):
                        raise MessageTooLargeError(message_id) from error
                    raise
                if result.matched_count:
                    break
                found = await self._explain_miss(message_id, key, append_id)
                if found.get("chunks"):
                    # An earlier try was stored after all. The try that missed was a write under the
                    # same write concern, and MongoDB confirms a write that changed nothing only
                    # once what it saw is confirmed, so this append is acknowledged too.
                    chunks = await self._read_back(key, found["chunks"][0]["sequence"], contents)
                    break
                if found["next_sequence"] == first and is_full(found, chunks):
                    raise MessageTooLargeError(message_id)
                # Another writer was first: go behind it. Each miss is another's success.
                first = found["next_sequence"]
                if attempt:
                    await _back_off(attempt)
            lane.next_sequence = chunks[-1].sequence + 1
        if self.handlers.wants(ChunkReceived):
            for chunk in chunks:
                await self.handlers.publish(
                    ChunkReceived(
                        conversation_id=conversation_id, message_id=message_id, chunk=chunk
                    )
                )
        return chunks

    async def _explain_miss(
        self, message_id: ObjectId, key: Mapping[str, Any], append_id: ObjectId
    ) -> Mapping[str, Any]:
        """What the message has instead of what an append expected; its chunk, if it is stored."""
        found = await self.call(
            self.messages.find_one,
            key,
            _updates.find_append(append_id),
            what=f"read message {message_id}",
            append_id=append_id,
        )
        if found is None:
            raise MessageNotFoundError(message_id)
        status = MessageStatus(found["status"])
        if status.is_final and not found.get("chunks"):
            raise MessageNotStreamingError(message_id, status)
        return cast(Mapping[str, Any], found)

    async def _read_back(
        self, key: Mapping[str, Any], first: int, contents: Sequence[str]
    ) -> list[MessageChunk]:
        read = await self.call(
            self.reader.read,
            *(key["_id"], key["conversation_id"], first, len(contents)),
            what=f"read message {key['_id']}",
        )
        if read is None:
            raise MessageNotFoundError(key["_id"])
        return read[1]

    async def end(
        self,
        lane: Lane,
        message_id: ObjectId,
        conversation_id: ObjectId,
        status: MessageStatus,
        metadata: Mapping[str, Any],
        error: str | None = None,
        known: tuple[int, str] | None = None,
    ) -> EndedMessage:
        """Takes a message out of ``streaming`` into ``status``; only one call ever does.

        The end itself is one write that does not depend on how many chunks there are, so that no
        rush of appends can hold it up. The joined text and the chunk count follow in a second
        write by the same caller; should it never come, readers join the chunks instead.

        Args:
            known: A chunk count and the text up to it, where the caller has them: when that turns
                out to be all, the text need not be read back.

        Raises:
            MessageNotStreamingError: Another call ended the message first.
            MessageNotFoundError: There is no such message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        key = _updates.message_key(message_id, conversation_id)
        end_id = ObjectId()
        match, update = _updates.end(key, end_id, status, error, metadata, now())
        async with lane.lock:
            stored = await self.call(
                self._find_and_update, match, update, what=f"end message {message_id}"
            )
            if stored is None:
                stored = await self.call(
                    self.messages.find_one, key, STATE, what=f"read message {message_id}"
                )
                if stored is None:
                    raise MessageNotFoundError(message_id)
                if stored.get("end_id") != end_id:
                    raise MessageNotStreamingError(message_id, MessageStatus(stored["status"]))
        state = MessageState.from_stored(stored)
        content, chunks = None, None
        try:
            if known is not None and known[0] == state.next_sequence:
                content = known[1]
            else:
                chunks = await self.call(
                    self.reader.stored_chunks,
                    *(message_id, conversation_id),
                    what=f"read message {message_id}",
                )
                content = "".join([chunk["content"] for chunk in chunks])
            await self._fill(key, end_id, state.next_sequence, content)
        except (PyMongoError, StoreUnavailableError):
            logger.exception(
                "Message %s has ended, but its joined text is not stored; "
                "readers join its chunks instead",
                message_id,
            )
        state = replace(state, metadata=with_chunk_count(state.metadata, state.next_sequence))
        if self.handlers.wants(MessageCompleted) or self.handlers.wants(MessageFailed):
            await self.handlers.publish(state.ended())
        return EndedMessage(state, content, chunks)

    async def _find_and_update(
        self, match: Mapping[str, Any], update: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        found: dict[str, Any] | None = await self.messages.find_one_and_update(
            match, update, projection=STATE, return_document=ReturnDocument.AFTER
        )
        return found

    async def _fill(
        self, key: Mapping[str, Any], end_id: ObjectId, chunk_count: int, content: str
    ) -> None:
        """Stores what readers would else work out from the chunks."""
        fill = partial(self.call, self.messages.update_one, what=f"end message {key['_id']}")
        try:
            await fill(*_updates.fill(key, end_id, chunk_count, content))
        except OperationFailure as error:
            if not is_too_large(error):
                raise
            # Chunks and joined text do not fit into one document: the chunks are the text.
            await fill(*_updates.fill(key, end_id, chunk_count, None))

    async def add_message(
        self,
        lane: Lane,
        conversation_id: ObjectId,
        new_id: ObjectId | None,
        insert: Insert,
    ) -> int:
        """Inserts a message at the next position of its conversation, and returns the position.

        A position is used only once the one before it is in the database, and the unique index on
        (conversation_id, position) gives each to one writer. So messages become visible in the
        order of their positions, without a gap, whatever the number of writers: a reader that has
        seen position *n* has seen all before it. A writer that dies between its insert and the move
        of the counter is helped by the next, which collides and moves it.

        Args:
            new_id: The id of the message, where it was made for this very call: if it is in the
                database, an earlier try put it there.
            insert: Inserts the message at a position.

        Raises:
            ConversationNotFoundError: There is no such conversation; nothing was written.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        call = partial(self.call, what=f"add a message to conversation {conversation_id}")
        async with lane.lock:
            for attempt in count():
                conversation = await call(
                    self.conversations.find_one, {"_id": conversation_id}, {"next_position": 1}
                )
                if conversation is None:
                    raise ConversationNotFoundError(conversation_id)
                position: int = conversation["next_position"]
                inserted = True
                try:
                    await call(insert, position)
                except DuplicateKeyError:
                    stored: Any = new_id and await call(
                        self.messages.find_one,
                        _updates.message_key(new_id, conversation_id),
                        {"position": 1},
                    )
                    if stored:
                        position = stored["position"]
                    elif await call(
                        self.messages.find_one,
                        {"conversation_id": conversation_id, "position": position},
                        {"_id": 1},
                    ):
                        inserted = False
                    else:  # a unique index of the application's
                        raise
                await call(
                    self.conversations.update_one,
                    {"_id": conversation_id},
                    _updates.move_next_position(position, now()),
                )
                if inserted:
                    return position
                await _back_off(attempt)
        raise AssertionError("unreachable")

    async def add_conversation(
        self, new_id: ObjectId | None, insert: Callable[[], Awaitable[Any]]
    ) -> None:
        """Inserts a conversation; ``new_id`` as in :meth:`add_message`.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        what = "start a conversation"
        try:
            await self.call(insert, what=what)
        except DuplicateKeyError:
            if new_id is None or not await self.call(
                self.conversations.find_one, {"_id": new_id}, {"_id": 1}, what=what
            ):
                raise

    async def save_conversation(self, conversation_id: ObjectId, update: _updates.Document) -> None:
        """Applies ``update`` to a conversation.

        Raises:
            ConversationNotFoundError: There is no such conversation.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        result = await self.call(
            self.conversations.update_one,
            {"_id": conversation_id},
            update,
            what=f"save conversation {conversation_id}",
        )
        if not result.matched_count:
            raise ConversationNotFoundError(conversation_id)

    async def save_message(
        self, message_id: ObjectId, conversation_id: ObjectId, update: _updates.Document
    ) -> int:
        """Applies ``update`` to a message, and returns the revision it made.

        Raises:
            MessageNotFoundError: There is no such message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        key = _updates.message_key(message_id, conversation_id)
        save = partial(
            self.messages.find_one_and_update,
            projection={"revision": 1},
            return_document=ReturnDocument.AFTER,
        )
        try:
            stored = await self.call(save, key, update, what=f"save message {message_id}")
        except OperationFailure as error:
            if is_too_large(error):
                raise MessageTooLargeError(message_id) from error
            raise
        if stored is None:
            raise MessageNotFoundError(message_id)
        revision: int = stored["revision"]
        await self.handlers.publish(
            MessageUpdated(
                conversation_id=conversation_id, message_id=message_id, revision=revision
            )
        )
        return revision

    async def call(
        self,
        function: Callable[..., Awaitable[T]],
        *arguments: Any,
        what: str,
        append_id: ObjectId | None = None,
    ) -> T:
        """Awaits a call that is safe to repeat, for ``retry_timeout`` seconds if need be."""
        if self.closed:
            raise ConverseClosedError
        return await _retry.call(
            function, *arguments, what=what, timeout=self._retry_timeout, append_id=append_id
        )


def is_full(found: Mapping[str, Any], chunks: Sequence[MessageChunk]) -> bool:
    """Whether a message has no room left for ``chunks``."""
    size = sum(chunk.stored_size for chunk in chunks)
    return bool(found.get("chunk_bytes", 0) + size > MAX_MESSAGE_BYTES)


def _number(
    first: int, contents: Sequence[str], created_at: datetime, metadata: Mapping[str, Any]
) -> list[MessageChunk]:
    return [
        MessageChunk(sequence, content, created_at, metadata)
        for sequence, content in enumerate(contents, first)
    ]


async def _back_off(attempt: int) -> None:
    """Waits a random while, so that writers in several processes do not meet again and again."""
    longest = min(_BACKOFF_SECONDS * 2 ** min(attempt, 10), _BACKOFF_MAX_SECONDS)
    await asyncio.sleep(random.uniform(0, longest))
