"""The writers of the load test.

A token is the time at which it was written, so that whoever sees it knows how long it took: the
clock (``CLOCK_MONOTONIC``) is one for all processes of a machine. A message names the next one of
its conversation when it ends, and what its text and its chunks were; its viewers go on there.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.children import tell, wait_for_parent
from benchmarks.load_samples import TOKENS_PER_SECOND, digest, sample_parts
from converse_mongo import Conversation, Converse, Message
from converse_mongo.writing.writer import MessageWriter

__all__ = ["write"]

TOKENS_PER_MESSAGE = 1000
"""A message takes twenty seconds."""


def token() -> str:
    """A token that is written now: microseconds, and a space."""
    return f"{time.monotonic_ns() // 1000} "


@dataclass(slots=True)
class Totals:
    """What the writers of a process did, those that are done together."""

    messages: int = 0
    tokens: int = 0
    writes: int = 0
    retries: int = 0
    waits: int = 0


@dataclass(slots=True, eq=False)
class Stream:
    """A conversation in which one message comes after the other, token by token.

    Tokens are due at equal distances, also across messages: those that fell due while one message
    ended and the next began are written at once then.

    Attributes:
        conversation: The conversation.
        message: The message that streams.
        flush_interval: That of its writer.
        first_tokens: How many tokens the first message has.
        totals: Of the process.
        writer: The writer that runs.
        text_bytes: How much was written to it.
    """

    conversation: Conversation
    message: Message
    flush_interval: float
    first_tokens: int
    totals: Totals
    writer: MessageWriter | None = None
    text_bytes: int = 0

    @property
    def waiting_bytes(self) -> int:
        """How much text is not stored yet."""
        return 0 if self.writer is None else self.text_bytes - self.writer.statistics().bytes

    async def run(self, seconds: float) -> None:
        """Streams for so long, and completes the last message then."""
        due = time.monotonic()
        stop, left, last = due + seconds, self.first_tokens, False
        while not last:
            # Made meanwhile, so that there is no pause longer than need be.
            following = asyncio.create_task(self.conversation.start_streaming_assistant())
            parts: list[str] = []
            self.text_bytes = 0
            async with self.message.writer(flush_interval=self.flush_interval) as writer:
                self.writer = writer
                while left and time.monotonic() < stop:
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    await self._write(writer, parts)
                    due += 1 / TOKENS_PER_SECOND
                    left -= 1
                await writer.flush()
                last = time.monotonic() >= stop
                self.message = await following
                writer.metadata["digest"] = digest("".join(parts))
                writer.metadata["chunks"] = writer.statistics().chunks
                writer.metadata["next"] = None if last else str(self.message.id)
            self._add_up(writer)
            left = TOKENS_PER_MESSAGE

    async def _write(self, writer: MessageWriter, parts: list[str]) -> None:
        text = token()
        parts.append(text)
        self.text_bytes += len(text)
        self.totals.tokens += 1
        await writer.write(text)

    def _add_up(self, writer: MessageWriter) -> None:
        self.writer, statistics, totals = None, writer.statistics(), self.totals
        totals.messages += 1
        totals.writes += statistics.writes
        totals.retries += statistics.retries
        totals.waits += statistics.waits


async def write(converse: Converse, seconds: float, count: int, flush_interval: float) -> None:
    """Streams ``count`` messages at once, with new ones behind those that end."""
    totals, streams = Totals(), []
    for number in range(count):
        conversation = await converse.start_conversation()
        message = await conversation.start_streaming_assistant()
        # They end by and by, and not all at once.
        first = TOKENS_PER_MESSAGE * (number + 1) // count
        streams.append(Stream(conversation, message, flush_interval, first, totals))
    tell("started", messages=[str(stream.message.id) for stream in streams])
    await wait_for_parent()

    def counted() -> dict[str, Any]:
        running = [stream.writer.statistics() for stream in streams if stream.writer is not None]
        return {
            "tokens": totals.tokens,
            "writes": totals.writes + sum(one.writes for one in running),
        }

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(
            sample_parts(
                converse,
                seconds,
                lambda: {"waiting": sum(stream.waiting_bytes for stream in streams)},
                counted,
            )
        )
        for stream in streams:
            tasks.create_task(stream.run(seconds))
    tell(
        "result",
        messages=totals.messages,
        tokens=totals.tokens,
        writes=totals.writes,
        retries=totals.retries,
        waits=totals.waits,
    )
