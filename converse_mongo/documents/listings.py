"""Listings: the conversations of an owner, and the messages of a conversation."""

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import bson
from beanie import Document
from beanie.odm.utils.parsing import parse_obj
from bson import ObjectId
from pymongo import ASCENDING, DESCENDING

from converse_mongo.documents.loading import load_message
from converse_mongo.documents.messages import Message
from converse_mongo.domain.chunks import ChunkLog
from converse_mongo.domain.cursors import ConversationCursor
from converse_mongo.domain.headers import HEADER, MessageHeader
from converse_mongo.domain.metadata import storable
from converse_mongo.domain.owners import Owner, check_owner
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.domain.validation import MAX_CONTENT_BYTES, utf8_size
from converse_mongo.driver.collections import Collection
from converse_mongo.store import Store
from converse_mongo.store.reads import Reader

MESSAGES_PER_READ = 100
WITHOUT_CHUNKS = dict.fromkeys(("chunks", "chunk_lengths", "chunk_events"), 0)
"""The projection of a message without its chunks."""
CONVERSATIONS_PER_READ = 100
MAJORITY_SECONDS = 5.0
"""The time for which a history waits for a majority to have what is stored."""
MAJORITY_PAUSE_SECONDS = 0.02

C = TypeVar("C", bound=Document)


async def list_conversations(
    model: type[C], store: Store, owner: tuple[str, Any] | Owner, limit: int | None
) -> AsyncIterator[C]:
    """Yields the conversations of an owner, those that were added to last first.

    Raises:
        InvalidInputError: The owner is not a pair of a type and an id.
        StoreUnavailableError: MongoDB did not answer.
    """
    whose = check_owner(owner)

    async def read(match: dict[str, Any], size: int) -> list[dict[str, Any]]:
        order = [("updated_at", DESCENDING), ("_id", DESCENDING)]
        found: list[dict[str, Any]] = (
            await store.conversations.find(match).sort(order).limit(size).to_list(size)
        )
        return found

    match: dict[str, Any] = {"owner.type": whose.type, "owner.id": whose.id}
    left = limit
    while left is None or left > 0:
        size = CONVERSATIONS_PER_READ if left is None else min(left, CONVERSATIONS_PER_READ)
        page = await store.call(read, match, size, what=f"list the conversations of {whose}")
        for stored in page:
            yield cast(C, parse_obj(model, stored))
        if len(page) < size:
            return
        left = None if left is None else left - size
        last = page[-1]
        # Also as a range, so that the scan begins there however the server treats $or.
        match["updated_at"] = {"$lte": last["updated_at"]}
        match["$or"] = [
            {"updated_at": {"$lt": last["updated_at"]}},
            {"updated_at": last["updated_at"], "_id": {"$lt": last["_id"]}},
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The messages of a conversation to list.

    Attributes:
        start: The first position.
        stop: The position before which to end; ``None`` for no end.
        limit: The most messages; ``None`` for all.
        status: Only those in this state; ``None`` for all.
        roles: Only those of these roles; ``None`` for all.
        newest_first: From the last one to the first.
        max_bytes: The size of the texts and the metadata together, in bytes, at which to end early;
            it has at least one message. ``None`` for any size.
    """

    start: int = 0
    stop: int | None = None
    limit: int | None = None
    status: MessageStatus | None = None
    roles: frozenset[MessageRole] | None = None
    newest_first: bool = False
    max_bytes: int | None = None

    def match(self, conversation_id: ObjectId) -> dict[str, Any]:
        """Returns the filter for these messages."""
        positions = {"$gte": self.start} | ({} if self.stop is None else {"$lt": self.stop})
        match: dict[str, Any] = {"conversation_id": conversation_id, "position": positions}
        if self.status is not None:
            match["status"] = self.status.value
        if self.roles is not None:
            match["role"] = {"$in": sorted(role.value for role in self.roles)}
        return match

    def behind(self, position: int, count: int) -> "Range":
        """Returns the rest of it behind a message, after ``count`` of them."""
        left = None if self.limit is None else self.limit - count
        if self.newest_first:
            return replace(self, stop=position, limit=left)
        return replace(self, start=position + 1, limit=left)


class MessageList:
    """The messages of a conversation in order: await it for a list, or iterate it in batches.

    The chunks of ended messages stay in the database; a streaming message has its chunks and its
    text so far.
    """

    def __init__(
        self,
        model: type[Message],
        source: Collection,
        conversation_id: ObjectId,
        wanted: Range,
    ) -> None:
        self._model = model
        self._source = source
        self._conversation_id = conversation_id
        self._wanted = wanted
        self.is_cut = False
        """True if there were more messages than ``max_bytes`` allows."""

    def __await__(self) -> Generator[Any, None, list[Message]]:
        return self._all().__await__()

    async def _all(self) -> list[Message]:
        return [message async for message in self]

    async def __aiter__(self) -> AsyncIterator[Message]:
        wanted, taken = self._wanted, 0
        while wanted.limit is None or wanted.limit > 0:
            size = MESSAGES_PER_READ if wanted.limit is None else wanted.limit
            page = await self._read(wanted, min(size, MESSAGES_PER_READ), taken)
            for message in page:
                yield message
            if len(page) < min(size, MESSAGES_PER_READ):
                return
            taken += sum(map(listed_bytes, page))
            wanted = wanted.behind(_position(page[-1]), len(page))

    async def _read(self, wanted: Range, size: int, taken: int) -> list[Message]:
        store, conversation_id = self._model.store(), self._conversation_id
        what = f"list the messages of conversation {conversation_id}"
        order = [("position", DESCENDING if wanted.newest_first else ASCENDING)]

        async def read(match: dict[str, Any], projection: Any) -> list[dict[str, Any]]:
            cursor = self._source.find(match, projection)
            if "_id" not in match:  # a query by id needs no order: no index has both
                cursor = cursor.sort(order)
            found: list[dict[str, Any]] = await cursor.limit(size).to_list(size)
            return found

        async def read_some(match: dict[str, Any], projection: Any) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            left = (wanted.max_bytes or 0) - taken
            cursor = self._source.find(match, projection).sort(order).limit(size)
            try:
                async for stored in cursor:
                    left -= _bytes_of(stored)
                    if left < 0 and (found or taken):
                        self.is_cut = True
                        break
                    found.append(stored)
            finally:
                await cursor.close()
            return found

        match = wanted.match(conversation_id)
        read_page = read if wanted.max_bytes is None else read_some
        page = await store.call(read_page, match, WITHOUT_CHUNKS, what=what)
        for stored in page:
            if stored["status"] == MessageStatus.STREAMING.value:
                await store.leases.settle_if_expired(MessageHeader.from_stored(stored))
        # The text of a message that streams, or has just ended, is only in its chunks.
        textless = [stored["_id"] for stored in page if _needs_chunks(stored)]
        whole: dict[ObjectId, dict[str, Any]] = {}
        if textless:
            them = {"_id": {"$in": textless}, "conversation_id": conversation_id}
            for stored in await store.call(read, them, None, what=what):
                await store.call(store.reader.add_moved_chunks, stored, what=what)
                whole[stored["_id"]] = stored
        return [_load_listed(self._model, whole.get(stored["_id"], stored)) for stored in page]


async def read_headers(
    store: Store, conversation_id: ObjectId, wanted: Range
) -> list[MessageHeader]:
    """Reads messages of a conversation without their texts.

    Raises:
        StoreUnavailableError: MongoDB did not answer.
    """
    order = [("position", DESCENDING if wanted.newest_first else ASCENDING)]

    async def read(match: dict[str, Any]) -> list[dict[str, Any]]:
        cursor = store.messages.find(match, HEADER).sort(order)
        if wanted.limit is not None:
            cursor = cursor.limit(wanted.limit)
        found: list[dict[str, Any]] = await cursor.to_list(wanted.limit)
        return found

    what = f"list the messages of conversation {conversation_id}"
    found = await store.call(read, wanted.match(conversation_id), what=what)
    headers = map(MessageHeader.from_stored, found)
    return [await store.leases.settle_if_expired(header) for header in headers]


@dataclass(frozen=True, slots=True)
class History:
    """A page of the messages of a conversation, and how to continue from it.

    Attributes:
        messages: In order, the oldest first; with their text, and streaming ones with their chunks
            so far.
        before: The ``before`` of the page before this one. ``None`` on the first page.
        cursor: On the newest page, the ``after`` for ``watch_conversation``: it continues exactly
            behind these messages, chunks included. ``None`` on other pages.
    """

    messages: list[Message]
    before: int | None
    cursor: str | None


async def read_history(model: type[Message], conversation_id: ObjectId, page: Range) -> History:
    """Reads a page of messages: the newest of a range that has a ``limit``.

    It shows the state that watchers see, so that its cursor is not ahead of them. It includes all
    earlier writes: it waits for a write that was acknowledged before a majority had it, as with the
    write concern w:1.

    Raises:
        StoreUnavailableError: MongoDB did not answer.
    """
    store, stored = model.store(), None
    if page.stop is None and store.committed is not store.messages:
        stored = await store.call(
            _stored_cursor, store.reader, conversation_id, what=f"read {conversation_id}"
        )
    until = time.monotonic() + MAJORITY_SECONDS
    while True:
        history = await _read_committed(model, conversation_id, page)
        if stored is None or history.cursor is None or time.monotonic() > until:
            return history
        if ConversationCursor.parse(history.cursor, conversation_id).covers(stored):
            return history
        await asyncio.sleep(MAJORITY_PAUSE_SECONDS)


async def _stored_cursor(reader: Reader, conversation_id: ObjectId) -> ConversationCursor:
    """Returns the cursor behind everything that the primary has of a conversation."""
    end = await _end(reader.messages, conversation_id)
    streaming = await reader.streaming(conversation_id, end)
    opened = {position: found.next_sequence for position, found in streaming.items()}
    return ConversationCursor(conversation_id, end, opened)


async def _end(source: Collection, conversation_id: ObjectId) -> int:
    """Returns the position behind the last message of a conversation."""
    last = await source.find_one(
        {"conversation_id": conversation_id},
        {"_id": 0, "position": 1},
        sort=[("position", DESCENDING)],
    )
    return last["position"] + 1 if last else 0


async def _read_committed(model: type[Message], conversation_id: ObjectId, page: Range) -> History:
    source, end, limit = model.store().committed, page.stop, cast(int, page.limit)
    if end is None and page.roles is not None:
        # Read first: what is added meanwhile is behind the cursor.
        what = f"read conversation {conversation_id}"
        end = await model.store().call(_end, source, conversation_id, what=what)
    listed = MessageList(model, source, conversation_id, replace(page, stop=end, limit=limit + 1))
    messages = await listed
    more, messages = len(messages) > limit or listed.is_cut, messages[:limit][::-1]
    first = _position(messages[0]) if messages else 0
    cursor = None
    if page.stop is None:
        if end is None:
            end = _position(messages[-1]) + 1 if messages else 0
        # Messages of other roles that are streaming may be anywhere.
        hidden = first if page.roles is None else end
        open_ones = await _streaming_before(model, conversation_id, hidden)
        # Streaming messages were read one by one, so the cursor has their own sequences.
        open_ones |= {_position(each): each.next_sequence for each in messages if each.is_streaming}
        cursor = str(ConversationCursor(conversation_id, end, open_ones))
    return History(messages, first if more else None, cursor)


async def _streaming_before(
    model: type[Message], conversation_id: ObjectId, position: int
) -> dict[int, int]:
    """Maps the positions of streaming messages before a position to their next sequences."""
    store = model.store()
    match = Range(stop=position, status=MessageStatus.STREAMING).match(conversation_id)

    async def read() -> list[MessageHeader]:
        return [
            MessageHeader.from_stored(each) async for each in store.committed.find(match, HEADER)
        ]

    found = await store.call(read, what=f"read conversation {conversation_id}")
    states = [await store.leases.settle_if_expired(state) for state in found]
    return {
        state.position: state.next_sequence
        for state in states
        if state.status is MessageStatus.STREAMING
    }


def _position(message: Message) -> int:
    return cast(int, message.position)  # only a message that is not stored yet has none


def listed_bytes(message: Message) -> int:
    """Returns the size of the text, the parts and the metadata that a listing has of a message."""
    return _bytes_of(message.__dict__)


def _bytes_of(stored: Mapping[str, Any]) -> int:
    metadata = stored.get("metadata")
    size: int = len(bson.encode(storable(metadata))) if metadata else 0
    streamed: int = stored.get("content_bytes", 0)
    if streamed > MAX_CONTENT_BYTES:  # its text is left out
        return size
    records = stored.get("parts") or stored.get("part_records")
    size += len(bson.encode({"": records})) if records else stored.get("part_bytes", 0)
    return size + max(streamed, utf8_size(stored.get("content") or ""))


def _needs_chunks(stored: Mapping[str, Any]) -> bool:
    if stored.get("content_bytes", 0) > MAX_CONTENT_BYTES:
        return False
    return stored["status"] == MessageStatus.STREAMING.value or (
        bool(stored.get("next_sequence")) and not (stored.get("content") or stored.get("parts"))
    )


def _load_listed(model: type[Message], stored: dict[str, Any]) -> Message:
    if "chunks" not in stored and stored.get("next_sequence"):
        stored["chunks"] = ChunkLog.not_loaded()
    return cast(Message, parse_obj(model, stored))


async def load_outline(
    model: type[Message], conversation_id: ObjectId, message_id: ObjectId
) -> Message | None:
    """Loads a message without its chunks; ``None`` if the conversation does not have it.

    One that has ended has its text, as in listings. One that is streaming is as it was started,
    without text, since its stream has all of it.

    Raises:
        StoreUnavailableError: MongoDB did not answer.
    """
    store, key = model.store(), {"_id": message_id, "conversation_id": conversation_id}
    stored: Any = await store.call(
        store.messages.find_one,
        *(key, WITHOUT_CHUNKS),
        what=f"read message {message_id}",
    )
    if stored is None:
        return None
    header = MessageHeader.from_stored(stored)
    if not header.status.is_final:
        header = await store.leases.settle_if_expired(header)
        if not header.status.is_final:
            return _load_listed(model, {**stored, "next_sequence": 0})
        return await load_message(model, key)
    if _needs_chunks(stored):  # it has just ended
        return await load_message(model, key)
    return _load_listed(model, stored)
