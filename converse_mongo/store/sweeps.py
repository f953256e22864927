"""Sweeps: the content of redacted parts goes from the chunks, wherever they are.

A message embeds its newest chunks, and pages have the others. A process that moves chunks to a page
may have read them before the sweep. So ``sweeps`` of a message counts its redactions and its
sweeps; a page has the count with which its chunks were read, and a message is trimmed by a page of
its own count only. Hence after a sweep of the embedded chunks:

- A page by which the message was trimmed before it is in the order of pages, and is swept there.
  ``page_start`` tells the sweep if one was added meanwhile.
- By a page that was read before it, the message is never trimmed. Who stored the page removes it,
  or the sweep, or who seals the next page; if all of these die, the end of the message.

``compact_at`` is set with the redaction itself. So if a process dies before its sweep is done, the
sweeper of any process finishes it.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

from converse_mongo.domain.chunks import MessageChunk, StoredChunk
from converse_mongo.domain.headers import HEADER, MessageHeader, pages_of
from converse_mongo.domain.part_redaction import Sweep
from converse_mongo.store import updates
from converse_mongo.store.collections import Collections, back_off
from converse_mongo.store.pages import Pages
from converse_mongo.store.values import Values, referred_to


class Sweeps:
    """Removes the content of redacted parts from the chunks of messages."""

    def __init__(self, collections: Collections, pages: Pages, values: Values) -> None:
        self._collections = collections
        self._pages = pages
        self._values = values

    async def sweep(self, key: Mapping[str, Any]) -> None:
        """Sweeps the chunks of a message, unless they are merged, which sweeps them as well.

        When it returns, no failover brings the content back.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds; to be repeated.
        """
        for attempt in count(1):
            if await self._sweep(key):
                return
            await back_off(attempt)

    async def _sweep(self, key: Mapping[str, Any]) -> bool:
        """Returns ``False`` if chunks moved meanwhile."""
        call = partial(self._collections.call, what=f"redact a part of message {key['_id']}")
        messages, pages = await self._pages.durable()
        stored: Any = await call(
            self._collections.messages.find_one, updates.known(key), {**HEADER, "chunks": 1}
        )
        if stored is None:
            return True
        state = MessageHeader.from_stored(stored)
        if not state.redactions or state.compacted or not state.streamed:
            return True
        sweep = Sweep([each["part"] for each in state.redactions])
        async for page in self._moved(state, key):
            if changed := _changed(sweep, page["chunks"]):
                await self._values.delete(key, _lost(page["chunks"], changed))
                same = ("_id", "conversation_id", "next_sequence")
                found = await call(
                    pages.update_one,
                    {name: page[name] for name in same},
                    {"$set": {f"chunks.{index}": chunk for index, chunk in changed.items()}},
                )
                if not found.matched_count:
                    return False
        embedded = stored.get("chunks") or ()
        changed = _changed(sweep, embedded)
        # Before their references go.
        await self._values.delete(key, _lost(embedded, changed))
        freed = _size([embedded[index] for index in changed]) - _size(changed.values())
        swept = await call(
            messages.update_one,
            *updates.sweep(key, stored.get("page_start"), state.sweeps, changed, freed),
        )
        if not swept.matched_count:
            return False
        sweeps = (state.sweeps or 0) + 1
        behind = {"first_sequence": {"$gte": state.page_start}, **updates.older_than(sweeps)}
        await call(pages.delete_many, {**pages_of(key), **behind})
        await call(
            messages.update_one, *updates.finish_sweep(key, sweeps, state.status, state.merges_at)
        )
        return True

    async def _moved(
        self, state: MessageHeader, key: Mapping[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        """Yields the pages of a message in order, one at a time, since there may be many."""
        start = 0
        while start < state.page_start:
            page = await self._collections.call(
                self._collections.reader.page_from,
                *(key, start, state.page_start),
                what=f"read message {key['_id']}",
            )
            if page is None:
                return
            yield page
            start = page["next_sequence"]


def _lost(chunks: Sequence[StoredChunk], changed: Mapping[int, StoredChunk]) -> set[str]:
    """Returns the ids of the values to which changed chunks refer no more."""
    return referred_to(chunks[index] for index in changed) - referred_to(changed.values())


def _size(chunks: Iterable[StoredChunk]) -> int:
    return sum([MessageChunk.from_stored(chunk).stored_size for chunk in chunks])


def _changed(sweep: Sweep, chunks: Any) -> dict[int, StoredChunk]:
    """Returns what becomes of chunks, by their index, if that is another chunk."""
    return {
        index: swept
        for index, chunk in enumerate(chunks)
        if (swept := sweep.sweep(chunk)) is not chunk and swept != chunk
    }
