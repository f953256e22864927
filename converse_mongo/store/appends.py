"""Appends: chunks are added at the end of a streaming message."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any, cast

from bson import ObjectId
from pymongo.errors import OperationFailure

from converse_mongo.domain.chunks import MessageChunk, Piece, stored_size
from converse_mongo.domain.errors import (
    InvalidInputError,
    MessageNotFoundError,
    MessageNotStreamingError,
    MessageTooLargeError,
    StoreUnavailableError,
    StreamStoppedError,
    WriterFencedError,
)
from converse_mongo.domain.headers import MessageHeader, check_format
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.open_calls import closed_by, may_change_more, open_calls
from converse_mongo.domain.part_pieces import (
    AnyPiece,
    is_chunk,
    large_values,
    numbered,
    part_size,
    settle,
)
from converse_mongo.domain.types import MessageStatus
from converse_mongo.domain.validation import (
    MAX_APPEND_BYTES,
    MAX_APPEND_CHUNKS,
    MAX_LIVE_BYTES,
    now,
)
from converse_mongo.domain.work import PendingCall, Work
from converse_mongo.driver.failures import is_too_large
from converse_mongo.store import updates, work_updates
from converse_mongo.store.appended import publish_chunks, stored_at, with_append_id
from converse_mongo.store.collections import Collections, WriteQueue, back_off
from converse_mongo.store.message_loads import find_log
from converse_mongo.store.pages import Pages
from converse_mongo.store.values import Values, referred_to


@dataclass(frozen=True, slots=True)
class WriterClaim:
    """The conditions of an append by a writer.

    Attributes:
        lease: The writer must still hold this lease.
        unless_stopped: True if no stop may have been requested.
        on_retry: Called before each retry of the write.
        keep_alive: Called before each write of a value that is stored apart.
    """

    lease: Lease
    unless_stopped: bool
    on_retry: Callable[[], None]
    keep_alive: Callable[[], Awaitable[None]] | None = None


@dataclass(slots=True)
class _Append:
    """One append to a message.

    Attributes:
        key: The message.
        pieces: What becomes a chunk each.
        has_parts: True if they are not all text of the answer.
        append_id: The id of the append.
        claim: The conditions of a writer.
        created_at: The date of the chunks.
        first: The expected sequence of its first chunk.
        earliest: The sequence before which it cannot have been stored.
        text_size: The size of all text, in bytes of UTF-8.
        size: The size of the chunks in a document, in bytes.
        part_size: The size of those that are no text of the answer.
        reads_calls: True if only the log tells which calls wait for people behind it.
        pending: Those calls, once they are read.
        work: The work of the message, once it is read, of an append by no writer: if the message
            waits for people, and then no call is left, it goes on.
    """

    key: Mapping[str, Any]
    pieces: Sequence[AnyPiece]
    has_parts: bool
    append_id: ObjectId
    claim: WriterClaim | None
    created_at: datetime
    first: int | None = None
    earliest: int | None = None
    text_size: int = field(init=False)
    size: int = field(init=False)
    part_size: int = field(init=False, default=0)
    reads_calls: bool = False
    pending: Sequence[PendingCall] | None = field(init=False, default=None)
    work: Work | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        texts: Any = self.pieces
        if self.has_parts:
            texts = [piece for piece in texts if isinstance(piece, Piece)]
            self.part_size = part_size(self.pieces)
        self.text_size = sum([piece.text_size for piece in texts])
        sizes = [stored_size(piece.text_size, piece.metadata) for piece in texts]
        self.size = sum(sizes) + self.part_size

    def number(self, first: int) -> list[MessageChunk]:
        """Makes the chunks, from sequence ``first``."""
        if self.has_parts:
            return numbered(self.pieces, first, self.created_at, self.append_id)
        texts: Any = self.pieces
        return [
            MessageChunk(sequence, content, self.created_at, metadata)
            for sequence, (content, metadata, _) in enumerate(texts, first)
        ]


class Appends:
    """Appends to messages, each of them atomic."""

    def __init__(self, collections: Collections, pages: Pages, values: Values) -> None:
        self._collections = collections
        self._pages = pages
        self._values = values

    async def append(
        self,
        queue: WriteQueue,
        key: Mapping[str, Any],
        pieces: Sequence[AnyPiece],
        append_id: ObjectId | None = None,
        claim: WriterClaim | None = None,
        *,
        again: bool = True,
        has_parts: bool = False,
    ) -> list[MessageChunk]:
        """Appends one chunk for each of ``pieces``, all or none, and returns them.

        Args:
            queue: The queue of the message.
            key: The filter for the message.
            pieces: Texts with metadata, and events and deltas of parts.
            append_id: The id of this append, if the caller chose one.
            claim: The conditions of a writer.
            again: ``False`` if no append with that id was tried before.
            has_parts: True if not all of the pieces are text of the answer.

        Raises:
            InvalidInputError: The pieces are too large for one write.
            MessageNotStreamingError: The message has ended.
            MessageNotFoundError: The message does not exist.
            WriterFencedError: There is another writer, or another message with this id; nothing
                was stored.
            StreamStoppedError: A stop was requested; nothing was stored.
            UnknownFormatError: A later version wrote to the message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds; has the append id.
        """
        wanted = _Append(key, pieces, has_parts, append_id or ObjectId(), claim, now())
        if wanted.size > MAX_LIVE_BYTES:
            raise InvalidInputError(
                f"Chunks of {wanted.size} bytes are over the limit of {MAX_LIVE_BYTES} bytes for "
                "one atomic write: split them. Nothing was written."
            )
        # An append that may already be stored is looked for first, by a try that cannot match.
        wanted.first = -1 if append_id is not None and again else None
        large = large_values(pieces, wanted.append_id) if has_parts else None
        wanted.reads_calls = (
            has_parts
            and queue.has_work
            and (may_change_more(pieces) or (claim is None and bool(closed_by(wanted.number(0)))))
        )
        try:
            if large:
                keep_alive = claim.keep_alive if claim else None
                await self._values.store(key, large, keep_alive=keep_alive)
            chunks = await self._append_once_there_is_room(queue, wanted)
            if large:  # of an earlier try, whose part has been redacted since
                stray = large.keys() - referred_to(chunk.to_stored() for chunk in chunks)
                await self._values.delete(key, stray)
        except (MessageNotFoundError, WriterFencedError):
            if large:  # they may have come after those of the message were deleted
                await self._values.delete_if_gone(key)
            raise
        except StoreUnavailableError as error:
            told = with_append_id(error, "Retry it with", wanted.append_id)
            raise told from (error.__cause__ or error)
        if has_parts:
            settle(pieces, chunks)
        if self._pages.is_full(queue):
            await self._pages.seal_if_possible(queue, key)
        await publish_chunks(self._collections, queue, key, chunks)
        return chunks

    async def _append_once_there_is_room(
        self, queue: WriteQueue, wanted: _Append
    ) -> list[MessageChunk]:
        deadline: float | None = None
        for attempt in count(1):
            async with queue.lock:
                chunks = await self._append(queue, wanted)
                if chunks is not None:
                    queue.next_sequence = chunks[-1].sequence + 1
                    queue.live_bytes += wanted.size
                    return chunks
            # Not under the lock: nobody else, such as an end of the message, shall wait for this.
            seconds = self._collections.options.retry_timeout
            if deadline is None:
                deadline = time.monotonic() + seconds
            elif time.monotonic() >= deadline:
                raise StoreUnavailableError(
                    f"Could not append to message {wanted.key['_id']}: it embeds the most chunks "
                    f"that it can, and for {seconds:g} seconds none of them could be moved to a "
                    "page. A majority of the replica set may be behind. Nothing of this append was "
                    "stored."
                )
            if await self._pages.seal_if_possible(queue, wanted.key):
                deadline = None
            else:
                await back_off(attempt)
        raise AssertionError("unreachable")

    async def _append(self, queue: WriteQueue, wanted: "_Append") -> list[MessageChunk] | None:
        """Appends, or returns ``None`` if the message embeds so much that there is no room."""
        if wanted.first is None:
            wanted.first = queue.next_sequence
        if wanted.earliest is None:
            wanted.earliest = wanted.first
        for attempt in count():
            if wanted.reads_calls and wanted.first >= 0:
                await self._read_pending(wanted)
                if wanted.pending and wanted.claim is not None:
                    queue.asked_by = wanted.claim.lease.holder
            chunks = wanted.number(wanted.first)
            if await self._try(wanted, chunks, has_work=queue.has_work):
                return chunks
            found = await self._explain_miss(wanted, wanted.earliest)
            if "stored_at" in found:
                # An earlier try was stored. The try that missed had the same write concern, and
                # MongoDB confirms a write that changed nothing only once the state that it saw is
                # confirmed, so this append is acknowledged, too.
                return await self._read_back(wanted.key, found["stored_at"], wanted.pieces)
            # Another writer was first: append behind it. Each miss is the success of another.
            wanted.first = found["next_sequence"]
            wanted.earliest = min(wanted.earliest, wanted.first)
            if found.get("chunk_bytes", 0) + wanted.size > MAX_LIVE_BYTES:
                return None  # moving a page failed, or a process died before it
            if attempt:
                await back_off(attempt)
        raise AssertionError("unreachable")

    async def _read_pending(self, wanted: "_Append") -> None:
        """Reads which calls wait for people behind an append."""
        key = wanted.key
        found = await find_log(self._collections, key)
        if found is None or found[0].log_id != key["log_id"] or found[0].status.is_final:
            return  # the append does not match, and then says why
        state, log = found
        wanted.first = log.next_sequence
        for chunk in wanted.number(wanted.first):
            log.add(chunk)
        wanted.pending = open_calls(log, () if state.work is None else state.work.pending)
        wanted.work = state.work if wanted.claim is None else None

    async def _try(
        self, wanted: "_Append", chunks: Sequence[MessageChunk], *, has_work: bool
    ) -> bool:
        claim, message_id = wanted.claim, wanted.key["_id"]
        match, update = updates.append(
            *(wanted.key, chunks, wanted.append_id, wanted.size, wanted.text_size),
            lease=claim.lease if claim else None,
            unless_stopped=claim is not None and claim.unless_stopped,
            has_parts=wanted.has_parts,
            part_size=wanted.part_size,
        )
        if wanted.work is not None and wanted.pending is not None:
            # What a key has places for is left to a sweep.
            work_updates.change_pending(match, update, wanted.work, wanted.pending, ObjectId())
        elif has_work and wanted.has_parts:
            work_updates.keep_pending(update, wanted.pending, closed_by(chunks))
        try:  # without a context manager, since this runs for each append
            result = await self._collections.call(
                self._collections.messages.update_one,
                match,
                update,
                what=f"append to message {message_id}",
                on_retry=claim.on_retry if claim else None,
            )
        except OperationFailure as error:
            if is_too_large(error):
                raise MessageTooLargeError(message_id) from error
            raise
        return bool(result.matched_count)

    async def _explain_miss(self, wanted: "_Append", earliest: int) -> Mapping[str, Any]:
        """Reads the message after an append did not match, and raises if it never can.

        Returns:
            The fields of ``find_append``. If the append is stored, ``stored_at`` is the sequence of
            its first chunk.
        """
        key, append_id, claim = wanted.key, wanted.append_id, wanted.claim
        message_id = key["_id"]
        found = await self._collections.call(
            self._collections.messages.find_one,
            updates.any_log(key),
            updates.find_append(append_id),
            what=f"read message {message_id}",
        )
        if found is None:
            raise MessageNotFoundError(message_id)
        if found.get("log_id") != key["log_id"]:
            raise MessageNotFoundError(message_id) if claim is None else replaced(message_id)
        first = await stored_at(self._collections, key, append_id, found, earliest)
        if first is not None:
            return {**found, "stored_at": first}
        status = MessageStatus(found["status"])
        if claim is not None:
            if not Lease.from_stored(found.get("lease")).is_held_by(claim.lease):
                raise fenced(message_id, status)
            stopped = found.get("stop_requested_at") is not None
            if stopped and claim.unless_stopped and not status.is_final:
                raise StreamStoppedError(message_id, found.get("stop_reason"))
        if status.is_final:
            raise MessageNotStreamingError(message_id, status)
        check_format(message_id, found.get("format"))
        return cast(Mapping[str, Any], found)

    async def _read_back(
        self, key: Mapping[str, Any], first: int, pieces: Sequence[AnyPiece]
    ) -> list[MessageChunk]:
        """Reads the chunks of a stored append, from sequence ``first``."""
        chunks: list[MessageChunk] = []
        while len(chunks) < len(pieces):
            start = first + len(chunks)
            read = await self._collections.call(
                self._collections.reader.read,
                *(key["_id"], key["conversation_id"], start, len(pieces) - len(chunks)),
                what=f"read message {key['_id']}",
            )
            if read is None or read[0].log_id != key["log_id"]:
                raise MessageNotFoundError(key["_id"])
            if not read[1]:
                break
            chunks += read[1]
        pairs = list(zip(pieces, chunks, strict=False))
        if len(pairs) != len(pieces) or not all(is_chunk(*each) for each in pairs):
            raise InvalidInputError(
                f"The append_id belongs to another append, which message {key['_id']} has at "
                f"sequence {first}: pass it with the same contents. Nothing was written."
            )
        return [chunk for _, chunk in pairs]


def replaced(message_id: ObjectId) -> WriterFencedError:
    """Makes the error of a writer whose message was deleted and started anew."""
    return WriterFencedError(
        f"Message {message_id} was deleted, and another message with this id was started. This "
        "writer stores nothing more: leave the loop.",
        message_id,
    )


def fenced(message_id: ObjectId, status: MessageStatus) -> WriterFencedError:
    """Makes the error of a writer that no longer holds its lease."""
    how = (
        f"is {status.value}: it was taken over by another writer, or ended as an orphan since this "
        "one sent no heartbeat"
        if status.is_final
        else "was taken over by another writer"
    )
    return WriterFencedError(
        f"Message {message_id} {how}. This writer stores nothing more: leave the loop.",
        message_id,
    )


def refuse_overtaken(state: MessageHeader, key: Mapping[str, Any], lease: Lease) -> None:
    """Checks that a writer can still write to its message.

    Args:
        state: The stored message.
        key: The filter for the message of the writer.
        lease: The lease of the writer.

    Raises:
        WriterFencedError: Another writer took over, or another message has the id.
        MessageNotStreamingError: The message has ended.
        UnknownFormatError: A later version wrote to the message.
    """
    if state.log_id != key["log_id"]:
        raise replaced(state.message_id)
    if not state.lease.is_held_by(lease):
        raise fenced(state.message_id, state.status)
    if state.status.is_final:
        raise MessageNotStreamingError(state.message_id, state.status)
    check_format(state.message_id, state.format)


def in_appends(contents: Sequence[list[AnyPiece]]) -> Iterator[tuple[list[AnyPiece], int]]:
    """Splits the pieces of contents into atomic appends, of so many contents each."""
    batch: list[AnyPiece] = []
    size = count = 0
    for pieces in contents:
        cost = pieces[0].stored_size if len(pieces) == 1 else sum([p.stored_size for p in pieces])
        full = size + cost > MAX_APPEND_BYTES or len(batch) + len(pieces) > MAX_APPEND_CHUNKS
        if batch and full:
            yield batch, count
            batch, size, count = [], 0, 0
        batch += pieces
        size += cost
        count += 1
    if batch:
        yield batch, count
