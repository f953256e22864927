"""Ends: a message leaves ``streaming``, once."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from bson import ObjectId
from pymongo.errors import OperationFailure, PyMongoError

from converse_mongo.domain.chunks import StoredChunk, text_of
from converse_mongo.domain.errors import (
    ConverseClosedError,
    MessageNotFoundError,
    MessageNotStreamingError,
    StoreUnavailableError,
    StreamStoppedError,
)
from converse_mongo.domain.headers import HEADER, MessageHeader, check_format, with_chunk_count
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.part_log import PartLog, Record
from converse_mongo.domain.part_redaction import reduced
from converse_mongo.domain.types import MessageStatus
from converse_mongo.domain.validation import MAX_CONTENT_BYTES, MAX_SECONDS, now
from converse_mongo.driver.failures import is_too_large
from converse_mongo.store import updates, work_updates
from converse_mongo.store.appends import refuse_overtaken
from converse_mongo.store.collections import Collections, WriteQueue, back_off, name_too_large
from converse_mongo.store.pages import Pages
from converse_mongo.store.places import Places
from converse_mongo.store.sweeps import Sweeps
from converse_mongo.store.updates import End

logger = logging.getLogger("converse_mongo")


@dataclass(frozen=True, slots=True)
class EndedMessage:
    """A message right after its end: its header, its text, and its chunks if they were read.

    The text is ``None`` if it could not be read, or is too large for a document. So are the records
    of the parts; they are also ``None`` for a message without parts.
    """

    state: MessageHeader
    content: str | None
    chunks: list[StoredChunk] | None
    records: list[Record] | None = None


class Known(NamedTuple):
    """What a caller knows of a message that it ends.

    Attributes:
        chunk_count: The number of chunks up to which it knows all.
        text: The text of the answer.
        log: The parts, if there are any.
    """

    chunk_count: int
    text: str
    log: PartLog | None = None


class Ends:
    """Ends messages."""

    def __init__(
        self, collections: Collections, pages: Pages, sweeps: Sweeps, places: Places
    ) -> None:
        self._collections = collections
        self._pages = pages
        self._sweeps = sweeps
        self._places = places

    async def end(
        self,
        queue: WriteQueue,
        key: Mapping[str, Any],
        end: End,
        *,
        retention: float | None = None,
        known: Known | None = None,
        lease: Lease | None = None,
        end_id: ObjectId | None = None,
    ) -> EndedMessage:
        """Ends a message; only one call ever succeeds.

        The end itself is one write that does not depend on the number of chunks, so that no burst
        of appends can delay it. The joined text and the chunk count follow in a second write by the
        same caller; without it, readers join the chunks instead.

        Args:
            queue: The queue of the message.
            key: The filter for the message.
            end: The end.
            retention: Seconds until the chunks are merged; ``None`` for never.
            known: What the caller has of the message: if there are no more chunks, none are read.
            lease: The lease of a writer, to end the message only while it is the writer.
            end_id: The id of an end whose outcome is unknown, to retry the same one.

        Raises:
            InvalidMetadataError: The database is a mock, which cannot store a key.
            MessageTooLargeError: The metadata make the document too large.
            MessageNotStreamingError: Another call ended the message first.
            MessageNotFoundError: The message does not exist.
            WriterFencedError: There is another writer, or another message with this id.
            StreamStoppedError: A stop of the message, which is from a queue, was requested: cancel
                it.
            UnknownFormatError: A later version wrote to the message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        self._collections.check_keys(end.metadata)
        end_id, attempt = end_id or ObjectId(), 0
        condition = {} if lease is None else updates.held_by(lease)
        if queue.has_work and end.status is not MessageStatus.CANCELLED:
            condition |= work_updates.NOT_STOPPED
        async with queue.lock:
            while True:
                with name_too_large(key["_id"]):
                    state = await self._end(key, end_id, end, retention, condition)
                if state is None or (lease is None and state.log_id != key["log_id"]):
                    raise MessageNotFoundError(key["_id"])
                if state.log_id == key["log_id"] and state.end_id == end_id:
                    break
                if lease is not None:
                    refuse_overtaken(state, key, lease)
                if state.status.is_final:
                    raise MessageNotStreamingError(key["_id"], state.status)
                check_format(key["_id"], state.format)
                if state.stop_requested and "stop_requested_at" in condition:
                    raise StreamStoppedError(key["_id"], state.stop_reason)
                # A failover rolled back the write that was first, or the end itself.
                attempt += 1
                await back_off(attempt)
        return await self._finish(state, known)

    async def settle(
        self, state: MessageHeader, end: End, condition: Mapping[str, Any]
    ) -> MessageHeader | None:
        """Ends a message that nobody writes to, if ``condition`` still holds.

        Returns:
            The message as it is then; ``None`` if it is gone.
        """
        end_id = ObjectId()
        ended = await self._end(state.key, end_id, end, state.retention, condition, fence=True)
        if ended is None or ended.log_id != state.log_id:
            return None
        if ended.end_id != end_id:
            return ended
        return (await self._finish(ended, None)).state

    async def _end(
        self,
        key: Mapping[str, Any],
        end_id: ObjectId,
        end: End,
        retention: float | None,
        condition: Mapping[str, Any],
        *,
        fence: bool = False,
    ) -> MessageHeader | None:
        """Tries to end a message, and returns the message that then has its id, if there is one."""
        match, update = updates.end(
            *(key, end_id, end, now()),
            retention=None if retention is None else min(retention, MAX_SECONDS),
            condition=condition,
            fence=fence,
        )
        what, messages = f"end message {key['_id']}", self._collections.messages
        call = partial(self._collections.call, what=what)
        # An update that returns the document writes its image into the oplog. And a try whose
        # answer was lost may have succeeded: the id tells whose end it is.
        await call(messages.update_one, match, update)
        stored: Any = await call(messages.find_one, updates.any_log(key), HEADER)
        return MessageHeader.from_stored(stored) if stored else None

    async def _finish(self, state: MessageHeader, known: Known | None) -> EndedMessage:
        """Stores the text of an ended message, if it can: the end itself is already stored."""
        content, chunks, records = None, None, None
        fits = state.content_bytes + state.part_bytes <= MAX_CONTENT_BYTES
        if known is not None and (known.chunk_count != state.next_sequence or state.redactions):
            known = None
        elif known is not None and known.log is None and state.has_parts and fits:
            known = None  # the parts are to be stored as well
        try:
            if state.content_bytes > MAX_CONTENT_BYTES:
                pass
            elif known is not None:
                content = known.text
                records = known.log.records() if known.log is not None and fits else None
            elif fits:
                chunks = await self._collections.call(
                    self._collections.reader.stored_chunks,
                    state.key,
                    what=f"read message {state.message_id}",
                )
                if [chunk["sequence"] for chunk in chunks] == list(range(state.next_sequence)):
                    content, records = _read(chunks, state)
                else:
                    logger.error("Message %s has chunks that are not in order", state.message_id)
                    chunks = None
            await self._fill(state, content, records)
            merged = state.retention == 0 and await self._pages.compact(state)
            if state.redactions and not merged:
                # A writer that did not know went on to write into the part.
                await self._sweeps.sweep(state.key)
        except (PyMongoError, StoreUnavailableError, ConverseClosedError):
            logger.exception(
                "Message %s has ended, but its joined text is not stored; "
                "readers join its chunks instead",
                state.message_id,
            )
        state = replace(state, metadata=with_chunk_count(state.metadata, state.next_sequence))
        await self._places.release_of(state.message_id, state.work)
        await self._collections.handlers.publish(state.ended())
        return EndedMessage(state, content, chunks, records)

    async def _fill(
        self, state: MessageHeader, content: str | None, records: list[Record] | None
    ) -> None:
        """Stores what readers would otherwise derive from the chunks."""
        key = state.key
        fill = partial(
            self._collections.call,
            self._collections.messages.update_one,
            what=f"end message {key['_id']}",
        )
        end_id: Any = state.end_id
        try:
            await fill(
                *updates.fill(
                    *(key, end_id, state.next_sequence, content, records),
                    redactions=state.redactions,
                )
            )
        except OperationFailure as error:
            if not is_too_large(error):
                raise
            # Metadata and joined text do not fit into one document: the chunks are the text.
            await fill(
                *updates.fill(key, end_id, state.next_sequence, None, redactions=state.redactions)
            )


def _read(chunks: list[StoredChunk], state: MessageHeader) -> tuple[str, list[Record] | None]:
    """Returns the text that the chunks of a message make, and the records of its parts."""
    if not state.has_parts:
        return text_of(chunks), None
    log = reduced(chunks, state.redactions)
    return log.text(), log.records()
