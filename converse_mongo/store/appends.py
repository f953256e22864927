"""Appends: chunks in at the end of a streaming message."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any, cast

from bson import ObjectId
from pymongo.errors import OperationFailure

from converse_mongo import _updates
from converse_mongo._driver import is_too_large
from converse_mongo._state import LeaseState
from converse_mongo._token_buffer import Piece
from converse_mongo._validation import MAX_LIVE_BYTES, now
from converse_mongo.chunks import MessageChunk
from converse_mongo.errors import (
    InvalidInputError,
    MessageNotFoundError,
    MessageNotStreamingError,
    MessageTooLargeError,
    StoreUnavailableError,
    StreamStoppedError,
    WriterFencedError,
)
from converse_mongo.events import ChunkReceived
from converse_mongo.store.calls import Calls, Lane, back_off
from converse_mongo.store.pages import Pages
from converse_mongo.types import MessageStatus

__all__ = ["Appends", "WriterClaim", "fenced"]


@dataclass(frozen=True, slots=True)
class WriterClaim:
    """What an append by a writer insists on.

    Attributes:
        epoch: That the writer is still the one of this epoch.
        unless_stopped: That nobody asked for a stop.
        on_retry: Called each time that the write is tried again.
    """

    epoch: int
    unless_stopped: bool
    on_retry: Callable[[], None]


class Appends:
    """Appends to messages, each append all or none."""

    def __init__(self, calls: Calls, pages: Pages) -> None:
        self._calls = calls
        self._pages = pages

    async def append(
        self,
        lane: Lane,
        message_id: ObjectId,
        conversation_id: ObjectId,
        pieces: Sequence[Piece],
        append_id: ObjectId | None = None,
        claim: WriterClaim | None = None,
        *,
        again: bool = True,
    ) -> list[MessageChunk]:
        """Appends one chunk for each of ``pieces``, all or none, and returns them.

        Args:
            append_id: The id of this append, where the caller chose one.
            claim: What a writer insists on.
            again: Whether an append with that id may have been tried before.

        Raises:
            InvalidInputError: The pieces are too large for one write.
            MessageNotStreamingError: The message has ended.
            MessageNotFoundError: There is no such message.
            WriterFencedError: The writer's epoch is over; nothing was stored.
            StreamStoppedError: The writer is to stop; nothing was stored.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds; carries the append id.
        """
        key = _updates.message_key(message_id, conversation_id)
        created_at = now()
        size = sum([piece.stored_size for piece in pieces])
        if size > MAX_LIVE_BYTES:
            raise InvalidInputError(
                f"Chunks of {size} bytes are over the limit of {MAX_LIVE_BYTES} bytes for one "
                "atomic write: split them. Nothing was written."
            )
        async with lane.lock:
            # What may be stored already is looked for first, by a try that cannot match.
            first = -1 if append_id is not None and again else lane.next_sequence
            append_id = append_id or ObjectId()
            try:
                chunks = await self._append(lane, key, pieces, created_at, first, append_id, claim)
            except StoreUnavailableError as error:
                error.append_id = append_id
                raise
            lane.next_sequence = chunks[-1].sequence + 1
            lane.live_bytes += size
            if self._pages.is_full(lane):
                await self._pages.seal_if_possible(lane, key)
        handlers = self._calls.handlers
        if handlers.wants(ChunkReceived):
            for chunk in chunks:
                await handlers.publish(
                    ChunkReceived(
                        conversation_id=conversation_id, message_id=message_id, chunk=chunk
                    )
                )
        return chunks

    async def _append(
        self,
        lane: Lane,
        key: Mapping[str, Any],
        pieces: Sequence[Piece],
        created_at: datetime,
        first: int,
        append_id: ObjectId,
        claim: WriterClaim | None,
    ) -> list[MessageChunk]:
        earliest = first
        for attempt in count():
            chunks = _number(first, pieces, created_at)
            if await self._try(key, chunks, append_id, claim):
                return chunks
            found = await self._explain_miss(key, append_id, earliest, claim)
            if "stored_at" in found:
                # An earlier try was stored after all. The try that missed was a write under the
                # same write concern, and MongoDB confirms a write that changed nothing only once
                # what it saw is confirmed, so this append is acknowledged too.
                return await self._read_back(key, found["stored_at"], pieces)
            size = sum([chunk.stored_size for chunk in chunks])
            if found.get("chunk_bytes", 0) + size > MAX_LIVE_BYTES:
                # Somebody died before a page was moved out of the way.
                await self._pages.seal(lane, key)
            # Another writer was first: go behind it. Each miss is another's success.
            first = found["next_sequence"]
            earliest = min(earliest, first)
            if attempt:
                await back_off(attempt)
        raise AssertionError("unreachable")

    async def _try(
        self,
        key: Mapping[str, Any],
        chunks: Sequence[MessageChunk],
        append_id: ObjectId,
        claim: WriterClaim | None,
    ) -> bool:
        match, update = (
            _updates.append(key, chunks, append_id)
            if claim is None
            else _updates.append(
                key, chunks, append_id, claim.epoch, unless_stopped=claim.unless_stopped
            )
        )
        try:
            result = await self._calls.call(
                self._calls.messages.update_one,
                match,
                update,
                what=f"append to message {key['_id']}",
                append_id=append_id,
                on_retry=claim.on_retry if claim else None,
                bounded=claim is not None,
            )
        except OperationFailure as error:
            if is_too_large(error):
                raise MessageTooLargeError(key["_id"]) from error
            raise
        return bool(result.matched_count)

    async def _explain_miss(
        self,
        key: Mapping[str, Any],
        append_id: ObjectId,
        earliest: int,
        claim: WriterClaim | None,
    ) -> Mapping[str, Any]:
        """What the message has instead of what an append expected.

        ``stored_at`` is added where the append is stored: the sequence of its first chunk.
        """
        message_id = key["_id"]
        found = await self._calls.call(
            self._calls.messages.find_one,
            key,
            _updates.find_append(append_id),
            what=f"read message {message_id}",
            append_id=append_id,
            bounded=claim is not None,
        )
        if found is None:
            raise MessageNotFoundError(message_id)
        # The chunk itself, or what a merge leaves of the last appends.
        stored = found.get("chunks") or found.get("recent_appends")
        if stored:
            return {**found, "stored_at": stored[0]["sequence"]}
        if found.get("page_start", 0) > earliest:
            stored_at = await self._calls.call(
                self._calls.reader.appended,
                *(message_id, key["conversation_id"], found.get("log_id")),
                *(append_id, max(earliest, 0)),
                what=f"read message {message_id}",
                append_id=append_id,
            )
            if stored_at is not None:
                return {**found, "stored_at": stored_at}
        status = MessageStatus(found["status"])
        if claim is not None:
            if LeaseState.from_stored(found.get("lease")).epoch != claim.epoch:
                raise fenced(message_id, status)
            stopped = found.get("stop_requested_at") is not None
            if stopped and claim.unless_stopped and not status.is_final:
                raise StreamStoppedError(message_id, found.get("stop_reason"))
        if status.is_final:
            raise MessageNotStreamingError(message_id, status)
        return cast(Mapping[str, Any], found)

    async def _read_back(
        self, key: Mapping[str, Any], first: int, pieces: Sequence[Piece]
    ) -> list[MessageChunk]:
        """The chunks that an append was stored as, from sequence ``first``."""
        chunks: list[MessageChunk] = []
        while len(chunks) < len(pieces):
            start = first + len(chunks)
            read = await self._calls.call(
                self._calls.reader.read,
                *(key["_id"], key["conversation_id"], start, len(pieces) - len(chunks)),
                what=f"read message {key['_id']}",
            )
            if read is None:
                raise MessageNotFoundError(key["_id"])
            if not read[1]:
                break
            chunks += read[1]
        chunks = chunks[: len(pieces)]
        if [chunk.content for chunk in chunks] != [piece.content for piece in pieces]:
            raise InvalidInputError(
                f"The append_id was given for another append, which message {key['_id']} holds at "
                f"sequence {first}: pass it with the same contents. Nothing was written."
            )
        return chunks


def fenced(message_id: ObjectId, status: MessageStatus) -> WriterFencedError:
    """The error of a writer whose epoch is over."""
    how = (
        f"is {status.value}: it was taken over by another writer, or ended as an orphan since this "
        "one gave no sign of life"
        if status.is_final
        else "was taken over by another writer"
    )
    return WriterFencedError(
        f"Message {message_id} {how}. Nothing more is stored by this one: leave the loop.",
        message_id,
    )


def _number(first: int, pieces: Sequence[Piece], created_at: datetime) -> list[MessageChunk]:
    return [
        MessageChunk(sequence, content, created_at, metadata)
        for sequence, (content, metadata) in enumerate(pieces, first)
    ]
