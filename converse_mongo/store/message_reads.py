"""Reads of one message: its header, its chunks wherever they are, its parts, or all of it."""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self, TypeAlias

from bson import ObjectId, Timestamp

from converse_mongo.domain.chunks import MessageChunk, StoredChunk
from converse_mongo.domain.headers import HEADER, MessageHeader, message_key, pages_of
from converse_mongo.domain.part_identity import MAX_NESTING, PartIdentity, Start, start_of
from converse_mongo.domain.part_log import TEXT, PartLog, restored_records
from converse_mongo.domain.part_merging import expand_events
from converse_mongo.domain.validation import PAGE_CHUNKS
from converse_mongo.driver import collections, servers
from converse_mongo.driver.collections import Collection

READS_AT_ONCE = 16
CHUNKS_PER_READ = 8 * PAGE_CHUNKS
"""The approximate number of chunks to read at once of a long message."""
"""The most tool calls, one in the other, that are looked up."""
MERGED_CHUNKS_PER_READ = 8192
"""The number of chunks to make of the text of a merged message at once."""

USUAL_PAGE = 2 * PAGE_CHUNKS
"""The most chunks of a page, unless moving them failed for a while."""

Collections: TypeAlias = tuple[Collection, Collection, Collection]

_EXPANDS = ("content", "completed_at", "chunk_lengths", "chunk_metadata", "chunk_events")
_MERGED = dict.fromkeys(_EXPANDS, 1)


class MessageReader:
    """Reads messages one by one. A read may always be repeated.

    Attributes:
        local: For majority reads, the reader of the primary's own state; else ``None``. An older
            majority snapshot of a new primary can lack what was seen before. The primary itself
            cannot.
    """

    def __init__(
        self,
        messages: Collection,
        conversations: Collection,
        pages: Collection,
        local: Self | None = None,
    ) -> None:
        self.local = local
        self.turns = asyncio.Semaphore(READS_AT_ONCE)
        """Limits the reads at one time when a lost change stream makes every watcher read."""
        self._collections: Collections = (messages, conversations, pages)
        self._recent: Collections | None = self._collections
        self._seen_time: Timestamp | None = None
        self._keeps_times = False

    async def server_time(self) -> datetime:
        """Returns the time by the server's clock."""
        return await servers.server_time(self.messages.database)

    def begin_times(self, time: Timestamp | None) -> None:
        """Notes the time at which a change stream begins; ``None`` if times cannot be used."""
        self._keeps_times = time is not None and self.local is not None
        self.note_time(time)

    def note_time(self, time: Timestamp | None) -> None:
        """Makes later majority reads show everything committed at ``time``.

        Args:
            time: That of a change in the change stream; ``None`` changes nothing.
        """
        if not self._keeps_times or time is None or (self._seen_time or time) > time:
            return
        self._seen_time, self._recent = time, None

    def _now(self) -> Collections:
        if self._recent is None:
            time: Any = self._seen_time
            messages, conversations, pages = (
                collections.read_after(each, time) for each in self._collections
            )
            self._recent = messages, conversations, pages
        return self._recent

    @property
    def messages(self) -> Collection:
        """The messages, with the read concern to use now."""
        return self._now()[0]

    @property
    def conversations(self) -> Collection:
        """The conversations, with the same read concern."""
        return self._now()[1]

    @property
    def pages(self) -> Collection:
        """The pages, with the same read concern."""
        return self._now()[2]

    async def committed_time(self) -> Timestamp | None:
        """Returns a time by which everything that majority reads have shown was written, if known.

        Raises:
            PyMongoError: The server could not be reached.
        """
        return await servers.committed_time(self.messages.database) if self.local else None

    # One message

    async def has_message(self, message_id: ObjectId) -> bool:
        """Returns whether the message exists."""
        return await self.messages.find_one({"_id": message_id}, {"_id": 1}) is not None

    async def state(self, message_id: ObjectId, conversation_id: ObjectId) -> MessageHeader | None:
        """Returns the header of a message; ``None`` if it does not exist."""
        stored = await self.messages.find_one(
            {"_id": message_id, "conversation_id": conversation_id}, HEADER
        )
        return MessageHeader.from_stored(stored) if stored else None

    async def read(
        self,
        message_id: ObjectId,
        conversation_id: ObjectId,
        start: int,
        limit: int,
        page_start: int = 0,
        stop: int | None = None,
    ) -> tuple[MessageHeader, list[MessageChunk]] | None:
        """Reads the header of a message, and some chunks from sequence ``start``.

        These are the chunks in one place: in the message itself, in a page or the next ones, or in
        the text of a merged message. The list is empty only if the message has none from ``start``.

        Args:
            message_id: The message.
            conversation_id: Its conversation.
            start: The sequence of the first chunk.
            limit: The approximate number of chunks.
            page_start: The expected start of the embedded chunks; a wrong guess costs a read.
            stop: The sequence before which to end in any case.

        Returns:
            ``None`` if the message does not exist.
        """
        key = {"_id": message_id, "conversation_id": conversation_id}
        return await self._read(key, start, limit, page_start, stop)

    async def read_at(
        self,
        conversation_id: ObjectId,
        position: int,
        start: int,
        limit: int,
        stop: int | None = None,
    ) -> tuple[MessageHeader, list[MessageChunk]] | None:
        """Reads the message at a position of a conversation, as :meth:`read` does."""
        key = {"conversation_id": conversation_id, "position": position}
        return await self._read(key, start, limit, 0, stop)

    async def read_tail(
        self, message_id: ObjectId, limit: int
    ) -> tuple[MessageHeader, list[MessageChunk]] | None:
        """Reads up to ``limit`` of the last embedded chunks of a message, given by its id alone."""
        projection = {**HEADER, "chunks": {"$slice": -limit}}
        stored = await self.messages.find_one({"_id": message_id}, projection)
        return (MessageHeader.from_stored(stored), _chunks(stored)) if stored else None

    async def _read(
        self,
        match: Mapping[str, Any],
        start: int,
        limit: int,
        page_start: int,
        stop: int | None,
    ) -> tuple[MessageHeader, list[MessageChunk]] | None:
        merged_limit = MERGED_CHUNKS_PER_READ
        if stop is not None:
            stop = max(stop, start + 1)  # MongoDB takes no $slice of nothing
            limit, merged_limit = min(limit, stop - start), min(merged_limit, stop - start)
        while True:
            embedded = {"chunks": {"$slice": [start - page_start, limit]}}
            stored = await self.messages.find_one(
                match, HEADER | (embedded if start >= page_start else {})
            )
            if stored is None:
                return None
            state = MessageHeader.from_stored(stored)
            if state.page_start == page_start <= start:
                return state, _chunks(stored)
            page_start = state.page_start
            if start < page_start:
                chunks = await self._read_moved(state, start, limit, merged_limit)
                if chunks is not None:
                    return state, chunks
                # Its pages were merged, or it was deleted, in between: look again.
                page_start = 0

    async def _read_moved(
        self, state: MessageHeader, start: int, limit: int, merged_limit: int
    ) -> list[MessageChunk] | None:
        """Reads chunks that the message no longer embeds; ``None`` if they just went elsewhere."""
        key = state.key
        if state.compacted:
            merged = await self.messages.find_one(key, _MERGED)
            if merged is None:
                return None
            found = expand_events(merged, start, merged_limit)
            return [MessageChunk.from_stored(chunk) for chunk in found]
        page = await self._page(state, start, start - USUAL_PAGE)
        if page is None:
            page = await self._page(state, start, -1)
        if page is not None and start < page["next_sequence"]:
            chunks = _chunks(page, start - page["first_sequence"], limit)
            if limit - len(chunks) >= PAGE_CHUNKS:
                chunks += await self._following(state, page["next_sequence"], limit - len(chunks))
            return chunks
        now = await self.messages.find_one(key, {"compacted": 1})
        return None if now is None or now.get("compacted") else []

    async def _page(self, state: MessageHeader, start: int, behind: int) -> dict[str, Any] | None:
        """Returns the last page that begins at ``start`` or before, and behind another sequence."""
        page: dict[str, Any] | None = await self.pages.find_one(
            # A range with two ends: some servers read all of it before they sort.
            {**pages_of(state.key), "first_sequence": {"$gt": behind, "$lte": start}},
            sort=[("first_sequence", -1)],
        )
        return page

    async def _following(self, state: MessageHeader, start: int, limit: int) -> list[MessageChunk]:
        """Reads whole pages, from the page that begins at ``start``.

        Returns:
            About ``limit`` chunks, and fewer if a page is gone.
        """
        count = limit // PAGE_CHUNKS
        wanted = {"$gte": start, "$lt": min(start + limit, state.page_start)}
        cursor = self.pages.find({**pages_of(state.key), "first_sequence": wanted})
        cursor = cursor.sort([("first_sequence", 1)])
        chunks: list[MessageChunk] = []
        for page in await cursor.limit(count).to_list(count):
            if page["first_sequence"] != start:
                break  # the next read finds out why
            chunks += _chunks(page)
            start = page["next_sequence"]
        return chunks

    async def identity(
        self, message_id: ObjectId, conversation_id: ObjectId, part: int
    ) -> PartIdentity | None:
        """Reads what a part is.

        Returns:
            ``None`` if the chunk with this number begins no part.

        Raises:
            LookupError: The message, or the chunk, does not exist.
        """
        starts: list[Start] = []
        number: int | None = part
        # One more than are shown, which tells that there are too many.
        while number is not None and len(starts) <= MAX_NESTING + 1:
            found = await self.read(message_id, conversation_id, number, 1, stop=number + 1)
            if found is None or not found[1]:
                raise LookupError(f"message {message_id} has no chunk {number}")
            start = start_of(found[1][0])
            if start.kind is None or (start.parent is not None and start.parent >= number):
                return None
            starts.append(start)
            number = start.parent
        identity: PartIdentity | None = None
        for start in reversed(starts):
            identity = PartIdentity(start.kind or "", start.name, identity)
        return identity

    async def parts(
        self, message_id: ObjectId, conversation_id: ObjectId
    ) -> tuple[MessageHeader, PartLog] | None:
        """Reads the parts of a message, up to some moment; ``None`` if it does not exist.

        It holds some pages of chunks at a time. The parts that are stored with an end need none.
        """
        log, page_start = PartLog(), 0
        while True:
            found = await self.read(
                *(message_id, conversation_id, log.next_sequence, CHUNKS_PER_READ, page_start)
            )
            if found is None:
                return None
            header, chunks = found
            if not log.next_sequence and header.status.is_final:
                stored = await self._stored_parts(header)
                if stored is not None:
                    return header, stored
            for chunk in chunks:
                log.add(chunk.to_stored())
            if not chunks or log.next_sequence >= header.next_sequence:
                for each in (header.redactions or ()) if header.status.is_final else ():
                    log.redact(each["part"], each.get("reason"))
                return header, log
            page_start = header.page_start

    async def _stored_parts(self, header: MessageHeader) -> PartLog | None:
        """Reads the parts that were stored with the end of a message, if they were."""
        stored = await self.messages.find_one(header.key, {"parts": 1, "content": 1})
        if stored is None:
            return None
        records, text = stored.get("parts"), stored.get("content")
        if records is None:
            if header.has_parts or (header.next_sequence and not text):
                return None  # too large, or not stored yet: in the chunks
            records = [{"part": 0, "kind": TEXT, "fields": {}, "text": text}] if text else []
        snapshot = {"next_sequence": header.next_sequence, "parts": restored_records(records)}
        return PartLog.from_snapshot(snapshot)

    async def appended(self, key: Mapping[str, Any], append_id: ObjectId, first: int) -> int | None:
        """Looks in the pages of a message for an append.

        Args:
            key: The message.
            append_id: The append.
            first: A sequence before which it cannot be.

        Returns:
            The sequence of its first chunk, if it is there.
        """
        page = await self.pages.find_one(
            {**pages_of(key), "next_sequence": {"$gt": first}, "chunks.append_id": append_id},
            {"chunks": {"$elemMatch": {"append_id": append_id}}},
        )
        sequence: int | None = page["chunks"][0]["sequence"] if page else None
        return sequence

    async def page_from(
        self, key: Mapping[str, Any], start: int, stop: int
    ) -> dict[str, Any] | None:
        """Returns the first page of a message that begins at ``start`` to before ``stop``."""
        page: dict[str, Any] | None = await self.pages.find_one(
            {**pages_of(key), "first_sequence": {"$gte": start, "$lt": stop}},
            sort=[("first_sequence", 1)],
        )
        return page

    async def stored_chunks(self, key: Mapping[str, Any]) -> list[StoredChunk]:
        """Reads all chunks of a message; an empty list if it does not exist."""
        log = dict.fromkeys(("conversation_id", "log_id", "chunks", "page_start", "compacted"), 1)
        stored = await self.messages.find_one(key, log | _MERGED)
        if stored is None:
            return []
        await self.add_moved_chunks(stored)
        return list(stored.get("chunks") or ())

    async def document(
        self, key: Mapping[str, Any], longest: int | None = None
    ) -> dict[str, Any] | None:
        """Reads a whole document with all chunks; ``None`` if it does not exist.

        Args:
            key: The filter for the message.
            longest: The size of the text in bytes above which moved chunks are left out.
        """
        stored: dict[str, Any] | None = await self.messages.find_one(key)
        if stored and (longest is None or stored.get("content_bytes", 0) <= longest):
            await self.add_moved_chunks(stored)
        return stored

    async def add_moved_chunks(self, stored: dict[str, Any]) -> None:
        """Adds to a whole document of a message the chunks that it no longer embeds."""
        page_start = stored.get("page_start", 0)
        if not page_start:
            return
        if not stored.get("compacted"):
            moved = await self._chunks_before(stored, page_start)
            if len(moved) == page_start:
                stored["chunks"] = moved + list(stored.get("chunks") or ())
                return
            # Merged in between, or pages are missing, which the length then shows.
            again = await self.messages.find_one(_key(stored))
            if again is None or not again.get("compacted"):
                stored["chunks"] = moved + list(stored.get("chunks") or ())
                return
            stored.clear()
            stored |= again
        stored["chunks"] = expand_events(stored)

    async def _chunks_before(self, stored: Mapping[str, Any], page_start: int) -> list[StoredChunk]:
        match = {**pages_of(_key(stored)), "first_sequence": {"$lt": page_start}}
        chunks: list[StoredChunk] = []
        async for page in self.pages.find(match, {"chunks": 1}).sort([("first_sequence", 1)]):
            chunks += page["chunks"]
        while chunks and chunks[-1]["sequence"] >= page_start:
            chunks.pop()
        return chunks


def _key(stored: Mapping[str, Any]) -> dict[str, Any]:
    return message_key(stored["_id"], stored["conversation_id"], stored.get("log_id"))


def _chunks(
    stored: Mapping[str, Any], start: int = 0, limit: int | None = None
) -> list[MessageChunk]:
    stop = None if limit is None else start + limit
    return [MessageChunk.from_stored(chunk) for chunk in (stored.get("chunks") or ())[start:stop]]
