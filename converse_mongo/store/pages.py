"""Pages: runs of chunks that a long message no longer embeds.

The page is stored first and the message trimmed second, so that a crash in between leaves readers a
duplicate that they drop, never a hole. Only chunks that no failover can roll back go into a page,
and the message is trimmed only once no failover can roll back the page: otherwise a message that
lost its last chunks in a failover could be trimmed by a page that still has them.
"""

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import bson
from pymongo.errors import DuplicateKeyError, PyMongoError

from converse_mongo.domain.errors import ConverseError, WatchError
from converse_mongo.domain.headers import MessageHeader, check_format, pages_of
from converse_mongo.domain.validation import MAX_CONTENT_BYTES, PAGE_BYTES, PAGE_CHUNKS
from converse_mongo.driver import collections, retry, servers
from converse_mongo.store import updates
from converse_mongo.store.collections import PAGES, Collections, WriteQueue
from converse_mongo.store.values import Values, referred_to

logger = logging.getLogger("converse_mongo")

LEFT_OF_PARTS = 4
"""A merge is tried if the text and this fraction of the parts fit: values that were replaced go."""

SEAL_SECONDS = 5.0
"""The time limit of each call while an append waits for it; less than a writer's lease."""
_FIRST_DELAY_SECONDS, _DELAY_SECONDS = 0.05, 5.0


class Pages:
    """Moves chunks out of streaming messages, and merges those of ended messages."""

    def __init__(self, collections: Collections, values: Values) -> None:
        self._collections = collections
        self._values = values
        self._replicated: bool | None = None

    def is_full(self, queue: WriteQueue) -> bool:
        """Returns whether a message is expected to embed enough chunks for a page."""
        return (
            queue.next_sequence - queue.page_start >= PAGE_CHUNKS or queue.live_bytes >= PAGE_BYTES
        )

    async def seal_if_possible(self, queue: WriteQueue, key: Mapping[str, Any]) -> bool:
        """Does :meth:`seal`, but logs errors instead of raising them.

        There is one at a time for a queue, and a pause after one without effect: the majority may
        be behind for long. So call it without the lock of the queue.

        Returns:
            True if the message embeds less now.
        """
        if queue.sealing or time.monotonic() < queue.next_seal:
            return False
        queue.sealing, sealed = True, False
        try:
            sealed = await self.seal(queue, key)
        except (PyMongoError, ConverseError):
            logger.warning(
                "Message %s could not move chunks to a page; a later append retries",
                key["_id"],
                exc_info=True,
            )
        finally:
            queue.sealing = False
        if sealed:
            queue.failed_seals, queue.next_seal = 0, 0.0
        else:
            if queue.failed_seals:  # one may fail by chance
                delay = retry.backoff(queue.failed_seals, _FIRST_DELAY_SECONDS, _DELAY_SECONDS)
                queue.next_seal = time.monotonic() + delay
            queue.failed_seals += 1
        return sealed

    async def seal(self, queue: WriteQueue, key: Mapping[str, Any]) -> bool:
        """Moves the embedded chunks of a message to a page, if there are enough of them.

        Several processes may do so at once, and each may fail at any step.

        Returns:
            True if the message embeds less now. Only chunks that a majority has are moved.

        Raises:
            StoreUnavailableError: No answer for some seconds.
        """
        message_id = key["_id"]
        call = partial(self._collections.call, at_most=SEAL_SECONDS)
        what = f"move chunks of message {message_id} to a page"
        messages, pages = await self.durable()
        found = await call(
            messages.find_one,
            updates.known(key),
            {"page_start": 1, "chunks": 1, "chunk_bytes": 1, "sweeps": 1},
            what=what,
        )
        if found is None:
            return False
        chunks = found.get("chunks") or []
        first, live_bytes = found.get("page_start", 0), found.get("chunk_bytes", 0)
        if not chunks or (len(chunks) < PAGE_CHUNKS and live_bytes < PAGE_BYTES):
            moved: bool = first > queue.page_start  # by another process
            if first >= queue.page_start:
                queue.page_start, queue.live_bytes = first, live_bytes  # a sweep frees some
            return moved
        sequences = [chunk["sequence"] for chunk in chunks]
        if sequences != list(range(first, first + len(chunks))):
            raise WatchError(
                f"The chunks of message {message_id} are not in order: something other than "
                "converse_mongo has written to the message."
            )
        sweeps = found.get("sweeps")
        page = made = updates.page(key, chunks, sweeps)
        page_key = {"_id": page["_id"], "conversation_id": page["conversation_id"]}
        try:
            await call(pages.insert_one, page, what=what)
        except DuplicateKeyError:
            # An earlier try, or another writer: the stored page counts.
            page = await call(pages.find_one, page_key, {"chunks": 0}, what=what)
            if page is None:
                return False  # a failover may still roll it back
            if page.get("sweeps") != sweeps:
                if not await self._replace(pages, page_key, made, what):
                    return False
                page = made
        trimmed = await call(
            self._collections.messages.update_one,
            *updates.trim(key, first, page["next_sequence"], page["chunk_bytes"], sweeps),
            what=what,
        )
        if not trimmed.matched_count:
            # Another process trimmed it; unless its chunks were merged or deleted.
            left = await call(
                messages.find_one,
                updates.any_log(key),
                dict.fromkeys(("compacted", "log_id", "page_start", "sweeps"), 1),
                what=what,
            )
            if left is None or left.get("compacted") or left.get("log_id") != key["log_id"]:
                await call(pages.delete_many, page_key, what=what)
            elif left.get("page_start", 0) == first:
                if (left.get("sweeps") or 0) > (sweeps or 0):
                    # Nobody trims the message by this page any more; it may have what was redacted.
                    await call(pages.delete_many, {**page_key, "sweeps": sweeps}, what=what)
                return False
        if page["next_sequence"] > queue.page_start:
            queue.page_start = page["next_sequence"]
            queue.live_bytes = max(queue.live_bytes - page["chunk_bytes"], 0)
        return True

    async def _replace(
        self,
        pages: collections.Collection,
        page_key: Mapping[str, Any],
        made: dict[str, Any],
        what: str,
    ) -> bool:
        """Replaces a page whose chunks were read before a sweep, and are not trimmed.

        Returns:
            ``False`` if the stored page is newer, or gone.
        """
        if "sweeps" not in made:
            return False
        replaced = await self._collections.call(
            pages.update_one,
            {**page_key, **updates.older_than(made["sweeps"])},
            {"$set": {name: value for name, value in made.items() if name != "_id"}},
            what=what,
        )
        return bool(replaced.matched_count)

    async def durable(self) -> tuple[collections.Collection, collections.Collection]:
        """Returns messages and pages, read and written so that no failover rolls anything back."""
        messages = self._collections.messages
        if self._collections.session is not None:  # the transaction holds all of it together
            return messages, self._collections.pages
        if self._replicated is None:
            self._replicated = await self._collections.call(
                servers.has_change_streams, messages.database, what="look at the server"
            )
        if self._replicated:
            messages = collections.majority_of(messages)
        return messages, collections.sibling(messages, PAGES)

    async def compact(self, state: MessageHeader) -> bool:
        """Merges the chunks of an ended message; returns whether they are gone.

        The text, and the lengths and metadata of its chunks, stay, so that watchers resume as
        before. If text and metadata take more than ``MAX_CONTENT_BYTES``, they are too large for a
        document, so the chunks stay.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds; it is done later.
        """
        collections, key = self._collections, state.key
        what = f"merge the chunks of message {state.message_id}"
        if not state.is_known:
            return False  # a process of the later version does it
        size = state.content_bytes + state.part_bytes // LEFT_OF_PARTS
        possible = state.end_id is not None and size <= MAX_CONTENT_BYTES
        if possible and not state.compacted:
            chunks = await collections.call(collections.reader.stored_chunks, key, what=what)
            if [chunk["sequence"] for chunk in chunks] != list(range(state.next_sequence)):
                return False  # just merged by another process, or modified outside the library
            end_id: Any = state.end_id
            match, update = updates.compact(key, end_id, chunks, state.retention, state.redactions)
            beside = ("chunk_metadata", "chunk_events")
            kept = {name: update["$set"].get(name, ()) for name in beside}
            size = len(bson.encode(kept))
            if state.has_parts:
                size *= 2  # the reduced parts are there as well
            possible = state.content_bytes + size <= MAX_CONTENT_BYTES
            if possible:
                messages, _ = await self.durable()
                await collections.call(messages.update_one, match, update, what=what)
        if possible and not await self._delete_merged(key, state):
            return False  # a failover rolled the end back, or may do so; or more was redacted
        await collections.call(
            collections.messages.update_one, *updates.finish_compaction(key), what=what
        )
        return possible

    async def _delete_merged(self, key: Mapping[str, Any], state: MessageHeader) -> bool:
        """Deletes what is only in the unmerged chunks of a message: pages, and replaced values.

        They go once no failover can roll back the merge. A primary that is about to step down may
        show a state that is rolled back: they may then be the only copy of acknowledged text.
        """
        what = f"merge the chunks of message {state.message_id}"
        messages, pages = await self.durable()
        call = self._collections.call
        fields = {"compacted": 1, "chunk_events.values": 1}
        merged = await call(messages.find_one, key, fields, what=what)
        if merged is None or not merged.get("compacted"):
            return False
        await call(pages.delete_many, pages_of(key), what=what)
        if state.has_parts:
            kept = referred_to(merged.get("chunk_events") or ())
            await self._values.delete_others(key, kept, messages)
        return True

    async def delete(self, key: Mapping[str, Any]) -> None:
        """Deletes the pages and the values of a deleted message.

        Raises:
            UnknownFormatError: It was not deleted, since a later version wrote to it.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        left: Any = await self._collections.call(
            self._collections.messages.find_one,
            *(key, {"format": 1}),
            what=f"read message {key['_id']}",
        )
        if left is not None:
            check_format(key["_id"], left.get("format"))
        await self._collections.call(
            self._collections.pages.delete_many,
            pages_of(key),
            what=f"delete the pages of message {key['_id']}",
        )
        await self._values.delete_all(key)
