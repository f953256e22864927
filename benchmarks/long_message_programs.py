"""The child processes of the long message: its writer, its watcher and its reader.

Each tells how far it is and how much memory it has. None keeps what it wrote or saw, since that is
what its memory is measured for.
"""

import asyncio
import contextlib
import hashlib
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from benchmarks.children import SERVER_VARIABLE, tell, wait_for_parent
from benchmarks.meters import forget_peak, memory
from converse_mongo import (
    ChunkReceived,
    Conversation,
    Converse,
    Message,
    MessageChunk,
    MessageCompleted,
)
from converse_mongo.writing.writer import MessageWriter

__all__ = ["token"]

PARTS = 100
TENTH = PARTS // 10
POLL_SECONDS = 0.01
_FILLER = "é was said of it, and so it went on for as long as anybody cared to hear of it all. " * 2


def token(sequence: int) -> str:
    """The text of a chunk: 24 to 88 characters, 56 on average, each of them unlike the others."""
    start = f"{sequence} "
    return start + _FILLER[: 24 + sequence * 37 % 65 - len(start)]


class ChangeMarkers:
    """Tells the parent of every hundredth of the way, with the memory there.

    Args:
        what: Which way it is.
        chunks: How long.
    """

    def __init__(self, what: str, chunks: int) -> None:
        self._what = what
        self._chunks = chunks
        self._next = 0
        self._in_first_tenth = True

    def pass_by(self, done: int) -> None:
        """Says that ``done`` of the chunks are done."""
        if done < self._next and done < self._chunks:
            return
        part = self._chunks // PARTS
        self._next = done - done % part + part
        tell("mark", what=self._what, done=done, at=time.monotonic(), resident=memory().resident)
        if self._in_first_tenth and done >= TENTH * part:
            self._in_first_tenth = False
            forget_peak()


class Check:
    """Checks chunks one by one, without keeping them."""

    def __init__(self) -> None:
        self.count = 0
        self.size = 0
        self.in_order = True
        self._digest = hashlib.sha256()

    def chunk(self, chunk: MessageChunk) -> None:
        """Takes the next chunk: its sequence and its text have to be those of that place."""
        self.in_order &= chunk.sequence == self.count and chunk.content == token(self.count)
        self.text(chunk.content)

    def text(self, text: str) -> None:
        """Takes the next text."""
        encoded = text.encode()
        self._digest.update(encoded)
        self.size += len(encoded)
        self.count += 1

    def tell(self, what: str) -> None:
        """Tells the parent the result, with the peak of the memory since the first tenth."""
        tell(
            "result",
            what=what,
            count=self.count,
            size=self.size,
            in_order=self.in_order,
            digest=self._digest.hexdigest(),
            at=time.monotonic(),
            peak=memory().peak,
        )


@asynccontextmanager
async def timed(what: str, chunks: int) -> AsyncIterator[None]:
    """Has the block timed: its own time here, that of the server by the parent."""
    tell("begin")
    await wait_for_parent()
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    tell("end", what=what, chunks=chunks, seconds=seconds)
    await wait_for_parent()


# The writer


async def write(converse: Converse, chunks: int) -> None:
    """Writes a message of ``chunks`` tokens.

    In the first and in the last tenth each hundredth of it has its turn with as many tokens for a
    new message.
    """
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    tell("started", conversation=str(conversation.id), message=str(message.id))
    await wait_for_parent()
    marks, check = ChangeMarkers("writer", chunks), Check()
    async with message.writer(granularity="token") as writer, _marked(writer, marks):
        for part in range(PARTS):
            sequences = range(part * chunks // PARTS, (part + 1) * chunks // PARTS)
            if TENTH <= part < PARTS - TENTH:
                await _write_part(writer, sequences, check)
                continue
            tenth = "first tenth" if part < TENTH else "last tenth"
            await writer.flush()  # what is still in the buffer belongs to the part before
            async with timed(tenth, len(sequences)):
                await _write_part(writer, sequences, check)
                await writer.flush()
            await _write_new_message(conversation, f"new beside the {tenth}", len(sequences))
        await writer.flush()
    check.tell("writer")


async def _write_part(writer: MessageWriter, sequences: range, check: Check | None) -> None:
    for sequence in sequences:
        text = token(sequence)
        if check is not None:
            check.text(text)
        await writer.write(text)


async def _write_new_message(conversation: Conversation, what: str, chunks: int) -> None:
    message = await conversation.start_streaming_assistant()
    async with message.writer(granularity="token") as writer, timed(what, chunks):
        await _write_part(writer, range(chunks), Check())
        await writer.flush()


@asynccontextmanager
async def _marked(writer: MessageWriter, marks: ChangeMarkers) -> AsyncIterator[None]:
    """Marks what ``writer`` has stored, which is behind what was written to it."""

    async def mark() -> None:
        while True:
            marks.pass_by(writer.statistics().chunks)
            await asyncio.sleep(POLL_SECONDS)

    marking = asyncio.create_task(mark())
    try:
        yield
    finally:
        marking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await marking
        marks.pass_by(writer.statistics().chunks)


# The watcher and the reader


async def watch(converse: Converse, message_id: str, chunks: int) -> None:
    """Watches the message from before its first chunk to its end."""
    marks, check = ChangeMarkers("watcher", chunks), Check()
    async with converse.watch_message(message_id) as events:
        tell("watching", mode=converse.watch_mode)
        async for event in events:
            if isinstance(event, ChunkReceived):
                check.chunk(event.chunk)
                marks.pass_by(check.count)
            else:
                check.in_order &= isinstance(event, MessageCompleted)
    check.tell("watcher")


async def read(converse: Converse, conversation_id: str, chunks: int) -> None:
    """Reads the message back in both ways, from a listing, which loads no chunks.

    Then it reads hundredths of it, one of the first tenth and one of the last in turns.
    """
    conversation = await converse.get_conversation(conversation_id)
    message = (await conversation.messages(limit=1))[0]
    marks, check = ChangeMarkers("iter_chunks", chunks), Check()
    async for chunk in message.iter_chunks():
        check.chunk(chunk)
        marks.pass_by(check.count)
    check.in_order &= message.is_completed
    check.tell("iter_chunks")
    marks, check = ChangeMarkers("iter_content", chunks), Check()
    async for text in message.iter_content():
        check.text(text)
        marks.pass_by(check.count)
    check.tell("iter_content")
    part = chunks // PARTS
    for number in range(TENTH):
        for what, start in (("first tenth", 0), ("last tenth", chunks - TENTH * part)):
            async with timed(what, part):
                await _read_part(message, start + number * part, part)


async def _read_part(message: Message, start: int, count: int) -> None:
    stop = start + count
    async for chunk in message.iter_chunks(after=start - 1):
        if chunk.sequence + 1 == stop:
            return


async def main(arguments: Sequence[str]) -> None:
    """Runs the program that ``arguments`` name."""
    program, database, chunks, *ids = arguments
    uri = os.environ[SERVER_VARIABLE]
    # The writer comes first and makes the indexes.
    async with Converse(uri, database=database, create_indexes=program == "write") as converse:
        if program == "write":
            await write(converse, int(chunks))
        elif program == "watch":
            await watch(converse, ids[0], int(chunks))
        else:
            await read(converse, ids[0], int(chunks))
        tell("finished")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
