"""Reads the events of a conversation between two cursors from the database."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from bson import ObjectId

from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.cursors import ConversationCursor
from converse_mongo.domain.errors import WatchError
from converse_mongo.domain.events import ConversationEvent
from converse_mongo.store.reads import Reader, Streaming
from converse_mongo.watching.doubts import Doubts, OutdatedReadError

CHUNKS_PER_READ = 256
ROWS_PER_READ = 64

Step: TypeAlias = tuple[ConversationEvent, ConversationCursor]
"""An event, and the cursor behind it."""


class Replay:
    """Turns stored documents into the events that led to them.

    Args:
        known: The cursor of the topic.
        gone: Positions of messages that are known to be deleted.
        reader: Reads the documents.
        doubts: The doubts of the topic.
    """

    def __init__(
        self, known: ConversationCursor, gone: Container[int], reader: Reader, doubts: Doubts
    ) -> None:
        self._key = known.conversation_id
        self._known = known
        self._gone = gone
        self._reader = reader
        self._doubts = doubts

    async def steps(self, cursor: ConversationCursor, target: ConversationCursor) -> list[Step]:
        """Reads some steps from ``cursor`` towards ``target``; none if there are none in between.

        Raises:
            OutdatedReadError: The read is older than what is known.
            WatchError: A chunk is missing.
            PyMongoError: The database could not be read.
        """
        while cursor != target:
            behind = (p for p in sorted(cursor.open) if target.open.get(p) != cursor.open[p])
            position = next(behind, None)
            if position is not None:
                steps, cursor = await self._read_open(cursor, target, position)
            elif cursor.end < target.end:
                steps, cursor = await self._read_created(cursor, target)
            else:
                break
            if steps:
                return steps
        return []

    async def _read_open(
        self, cursor: ConversationCursor, target: ConversationCursor, position: int
    ) -> tuple[list[Step], ConversationCursor]:
        """Reads chunks of one message, and its end if ``target`` is behind the end."""
        start, stop = cursor.open[position], target.open.get(position)
        found = await self._reader.read_at(self._key, position, start, CHUNKS_PER_READ, stop=stop)
        if found is None:
            await self._refuse_undeleted(position)
            return [], cursor.ended(position)
        self._doubts.dispel(("gone", position))
        state, chunks = found
        steps: list[Step] = []
        for chunk in run_from(start, chunks):
            cursor = cursor.appended(position, chunk.sequence + 1)
            steps.append((state.chunk_received(chunk, str(cursor)), cursor))
        if stop is None and cursor.open[position] == state.next_sequence:
            if not state.status.is_final:
                # The header is older than the target. The chunks are right all the same.
                if steps:
                    return steps, cursor
                if not self._doubts.stands(("streaming", position)):
                    raise OutdatedReadError
                raise WatchError(f"Message {state.message_id} had ended and is streaming again.")
            cursor = cursor.ended(position)
            steps.append((state.ended(str(cursor)), cursor))
        elif not steps:
            if not self._doubts.stands(("hole", position, start)):
                raise OutdatedReadError
            raise hole(state.message_id, start)
        return steps, cursor

    async def _refuse_undeleted(self, position: int) -> None:
        """Refuses a read without a message that may not be deleted."""
        if self._reader.local is None or position in self._gone:
            return
        if position in self._known.open:
            deleted = self._doubts.stands(("gone", position))
        else:
            deleted = not await self._lacks(position, position + 1)
        if not deleted:
            raise OutdatedReadError

    async def _read_created(
        self, cursor: ConversationCursor, target: ConversationCursor
    ) -> tuple[list[Step], ConversationCursor]:
        """Reads messages up to the first streamed one, whose chunks come next."""
        rows = await self._reader.rows(self._key, cursor.end, target.end, ROWS_PER_READ)
        steps: list[Step] = []
        for row in rows:
            position = row.state.position
            if await self._lacks(cursor.end, position):
                break
            # Missing positions are of messages that were deleted.
            cursor = replace(cursor, end=position).created(row.state.streamed)
            steps.append((row.created(str(cursor)), cursor))
            if row.state.streamed:
                return steps, cursor
        else:
            if len(rows) < ROWS_PER_READ and not await self._lacks(cursor.end, target.end):
                cursor = replace(cursor, end=target.end)
                if steps:  # so that the last event has the cursor of the target
                    steps[-1] = (replace(steps[-1][0], cursor=str(cursor)), cursor)
                return steps, cursor
        if not steps:
            raise OutdatedReadError
        return steps, cursor

    async def _lacks(self, start: int, stop: int) -> bool:
        """Returns whether the primary has messages where a majority read shows none."""
        local = self._reader.local
        return (
            start < stop and local is not None and await local.has_messages(self._key, start, stop)
        )


def run_from(start: int, chunks: Sequence[MessageChunk]) -> Sequence[MessageChunk]:
    """The ``chunks`` from ``start`` up to the first gap."""
    for index, chunk in enumerate(chunks):
        if chunk.sequence != start + index:
            return chunks[:index]
    return chunks


def hole(message_id: ObjectId, sequence: int) -> WatchError:
    """The error for a missing chunk."""
    return WatchError(
        f"Chunk {sequence} of message {message_id} is not where it must be: "
        "something other than converse_mongo has written to the message."
    )


def cursor_at(
    conversation_id: ObjectId, end: int, streaming: Mapping[int, Streaming]
) -> ConversationCursor:
    """The cursor behind all that is stored.

    Args:
        conversation_id: The conversation.
        end: The position that comes next.
        streaming: The streaming messages, as ``Reader.streaming`` returns them.
    """
    opened = {position: found.next_sequence for position, found in streaming.items()}
    return ConversationCursor(conversation_id, end, opened)
