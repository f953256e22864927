"""Calls: the answers of people to the tool calls of queued messages.

An answer is an append that also says which calls then wait. If none does, the same write gives the
message back to its queue. So nobody waits for what was answered, whoever dies.
"""

import math
import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from bson import ObjectId

from converse_mongo.domain.errors import (
    CallNotPendingError,
    InvalidInputError,
    MessageNotFoundError,
    MessageNotStreamingError,
    StoreUnavailableError,
    StreamStoppedError,
)
from converse_mongo.domain.headers import HEADER, MessageHeader, check_format
from converse_mongo.domain.open_calls import CallAnswer, expiry, open_calls, piece_of
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.part_pieces import large_values, numbered, part_size
from converse_mongo.domain.validation import MAX_APPEND_CHUNKS, MAX_LIVE_BYTES, now
from converse_mongo.domain.work import PendingCall, WorkState
from converse_mongo.store import updates, work_updates
from converse_mongo.store.appended import publish_chunks, stored_at, with_append_id
from converse_mongo.store.clock import ServerClock
from converse_mongo.store.collections import Collections, WriteQueue, back_off, name_too_large
from converse_mongo.store.message_loads import find_header, find_log
from converse_mongo.store.pages import Pages
from converse_mongo.store.places import Places, left_to_a_sweep
from converse_mongo.store.values import Values


class Answered(NamedTuple):
    """A message whose calls were answered.

    Attributes:
        state: The message as it is then.
        pending: The calls that still wait.
    """

    state: MessageHeader
    pending: tuple[PendingCall, ...]


class Calls:
    """Answers the tool calls that wait for people."""

    def __init__(
        self,
        collections: Collections,
        pages: Pages,
        values: Values,
        clock: ServerClock,
    ) -> None:
        self._collections = collections
        self._pages = pages
        self._values = values
        self._clock = clock

    async def answer(
        self,
        queue: WriteQueue,
        key: Mapping[str, Any],
        answers: Sequence[CallAnswer],
        append_id: ObjectId | None = None,
    ) -> Answered:
        """Answers calls, all or none; has the message go on if none waits any more.

        Args:
            queue: The write queue of the message.
            key: The message.
            answers: The answers, of a call each.
            append_id: The id of this answer, if a try of it had no answer.

        Raises:
            CallNotPendingError: A call does not wait for this answer.
            InvalidInputError: There are no answers, two to one call, or too many.
            StreamStoppedError: A stop was requested.
            MessageNotStreamingError: The message has ended.
            MessageNotFoundError: The message does not exist.
            UnknownFormatError: A later version wrote to the message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds; has the append id.
        """
        if not 0 < len({each.call_id for each in answers}) == len(answers) <= MAX_APPEND_CHUNKS:
            raise InvalidInputError(
                f"Answer from 1 to {MAX_APPEND_CHUNKS} calls at once, each of them once. Nothing "
                "was written."
            )
        wanted = append_id or ObjectId()
        try:
            return await self._answer(queue, key, answers, wanted, again=append_id is not None)
        except MessageNotFoundError:
            # Large values may have come after those of the message were deleted.
            await self._values.delete_if_gone(key)
            raise
        except StoreUnavailableError as error:
            told = with_append_id(error, "Answer again with", wanted)
            raise told from (error.__cause__ or error)

    async def answer_by_id(
        self,
        message_id: ObjectId,
        answers: Sequence[CallAnswer],
        append_id: ObjectId | None = None,
    ) -> Answered:
        """Answers calls of a message of which only the id is known; see :meth:`answer`."""
        state = await find_header(self._collections, message_id)
        queue = self._collections.queue((state.message_id, state.log_id))
        queue.role = state.role
        return await self.answer(queue, state.key, answers, append_id)

    async def expire(self, queue: WriteQueue, state: MessageHeader) -> Answered | None:
        """Denies the calls of a message that nobody has answered in time.

        Args:
            queue: The write queue of the message.
            state: The message, as it waited.

        Returns:
            ``None`` if none of them has expired, by the server's clock.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        # A message that waits has no holder: who stops it ends it.
        work = state.work
        if work is None or work.state is not WorkState.WAITING or work.available_at is None:
            return None
        clock = await self._clock.read()
        over = [each for each in work.pending if each.expires_at and each.expires_at <= clock]
        if not over:
            return None
        queue.role = state.role
        try:
            return await self._answer(
                *(queue, state.key, [expiry(each) for each in over], ObjectId()),
                expiring=over,
            )
        except (CallNotPendingError, MessageNotFoundError, MessageNotStreamingError):
            return None  # somebody was faster

    async def _answer(
        self,
        queue: WriteQueue,
        key: Mapping[str, Any],
        answers: Sequence[CallAnswer],
        append_id: ObjectId,
        expiring: Sequence[PendingCall] = (),
        *,
        again: bool = False,
    ) -> Answered:
        created_at, earliest = now(), 0 if again else math.inf
        deadline = time.monotonic() + self._collections.options.retry_timeout
        for attempt in count():
            if (attempt or again) and await self._is_stored(key, append_id, earliest):
                break
            state, log = await self._read(key)
            earliest = min(earliest, log.next_sequence)
            calls = self._find(state, answers, expiring)
            pieces = [piece_of(*each) for each in zip(answers, calls, strict=True)]
            size = part_size(pieces)
            if size > MAX_LIVE_BYTES:
                raise InvalidInputError(
                    f"Answers of {size} bytes are over the limit of {MAX_LIVE_BYTES} bytes for one "
                    "atomic write: give some of them by themselves. Nothing was written."
                )
            if values := large_values(pieces, append_id):
                await self._values.store(key, values)
            chunks = numbered(pieces, log.next_sequence, created_at, append_id)
            for chunk in chunks:
                log.add(chunk)
            work: Any = state.work
            change = updates.append(
                *(key, chunks, append_id, size, 0), has_parts=True, part_size=size
            )
            if work.key is not None:
                await self._clock.now()  # for the ticket
            left, ticket = open_calls(log, work.pending), self._clock.new_id()
            work_updates.answer(*change, work, left, ticket)
            if expiring:
                work_updates.expires(change[0], work.available_at)
            if await self._write(queue, key, change, size):
                await publish_chunks(self._collections, queue, key, chunks)
                break
            await self._make_room(queue, key, size, deadline)
            await back_off(attempt)
        return await self._finish(queue, key)

    async def _read(self, key: Mapping[str, Any]) -> tuple[MessageHeader, PartLog]:
        found = await find_log(self._collections, key)
        if found is None or found[0].log_id != key["log_id"]:
            raise MessageNotFoundError(key["_id"])
        return found

    async def _look(
        self, key: Mapping[str, Any], projection: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        stored: Any = await self._collections.call(
            self._collections.messages.find_one,
            *(key, projection),
            what=f"read message {key['_id']}",
        )
        if stored is None:
            raise MessageNotFoundError(key["_id"])
        found: Mapping[str, Any] = stored
        return found

    async def _is_stored(
        self, key: Mapping[str, Any], append_id: ObjectId, earliest: float
    ) -> bool:
        """Returns whether an earlier try was stored."""
        found = await self._look(key, updates.find_append(append_id))
        return await stored_at(self._collections, key, append_id, found, earliest) is not None

    def _find(
        self,
        state: MessageHeader,
        answers: Sequence[CallAnswer],
        expiring: Sequence[PendingCall],
    ) -> list[PendingCall]:
        """Returns the calls that are answered, if all of them wait."""
        if state.status.is_final:
            raise MessageNotStreamingError(state.message_id, state.status)
        check_format(state.message_id, state.format)
        if state.stop_requested:
            raise StreamStoppedError(state.message_id, state.stop_reason)
        waiting = () if state.work is None else state.work.pending
        found: list[PendingCall] = []
        for answer in answers:
            same = [
                each
                for each in waiting
                if (each.call_id, each.wanted) == (answer.call_id, answer.wanted)
                and (not expiring or each in expiring)
            ]
            if not same:
                left = {each.call_id: each.wanted for each in waiting}
                raise CallNotPendingError(state.message_id, answer.call_id, left)
            found.append(same[0])
        return found

    async def _write(
        self,
        queue: WriteQueue,
        key: Mapping[str, Any],
        change: tuple[updates.Document, updates.Document],
        size: int,
    ) -> bool:
        match, update = change
        async with queue.lock:
            with name_too_large(key["_id"]):
                result = await self._collections.call(
                    self._collections.messages.update_one,
                    *(match, update),
                    what=f"answer calls of message {key['_id']}",
                )
            if not result.matched_count:
                return False
            queue.next_sequence = match["next_sequence"] + update["$inc"]["next_sequence"]
            queue.live_bytes += size
        return True

    async def _make_room(
        self, queue: WriteQueue, key: Mapping[str, Any], size: int, deadline: float
    ) -> None:
        """Moves chunks to a page if that is what an answer did not match for."""
        found = await self._look(key, {"chunk_bytes": 1})
        if found.get("chunk_bytes", 0) + size <= MAX_LIVE_BYTES:
            return
        if not await self._pages.seal_if_possible(queue, key) and time.monotonic() >= deadline:
            raise StoreUnavailableError(
                f"Could not answer calls of message {key['_id']}: it embeds the most chunks that "
                "it can, and none of them could be moved to a page. Nothing was written."
            )

    async def _finish(self, queue: WriteQueue, key: Mapping[str, Any]) -> Answered:
        """Looks for a place for a message that goes on, and returns it."""
        state = MessageHeader.from_stored(await self._look(key, HEADER))
        work = state.work
        if work is not None and work.state is WorkState.BLOCKED:
            await self._places_of(state)
            state = MessageHeader.from_stored(await self._look(key, HEADER))
        if self._pages.is_full(queue):
            await self._pages.seal_if_possible(queue, key)
        return Answered(state, () if state.work is None else state.work.pending)

    async def _places_of(self, state: MessageHeader) -> None:
        async def ask(collections: Collections) -> None:
            with left_to_a_sweep(state.message_id):
                await Places(collections).ask(state)

        await self._collections.after_commit(ask)
