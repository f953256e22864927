"""The viewers of the load test, each of which checks all that it sees."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.children import tell, wait_for_parent
from benchmarks.figures import BenchmarkError
from benchmarks.load_samples import VIEWERS_PER_MESSAGE, Latencies, digest, sample_parts
from converse_mongo import (
    ChunkReceived,
    Converse,
    MessageCancelled,
    MessageCompleted,
    MessageFailed,
)
from converse_mongo.domain.events import FinalEvent

__all__ = ["view"]


@dataclass(slots=True)
class View:
    """What one viewer had of one message, and its end."""

    contents: list[str] = field(default_factory=list)
    end: FinalEvent | None = None


class Audience:
    """The viewers of a process.

    Attributes:
        complete: Set once each message has all its viewers for the first time.
        latencies: From a token to a viewer that was there before it.
        messages: That were seen to their end by all their viewers.
        chunks: That came, at each viewer.
        tokens: The same.
        early_tokens: Those of them that were written before their viewer came.
    """

    def __init__(self, converse: Converse, viewers: int) -> None:
        self._converse = converse
        self._missing = viewers
        self.complete = asyncio.Event()
        self.latencies = Latencies()
        self.messages = self.tokens = self.chunks = self.early_tokens = 0

    async def follow(self, message_id: str) -> None:
        """Watches a message and all that come after it, each to its end.

        Raises:
            BenchmarkError: A viewer or the database has something else than what was written.
        """
        following: str | None = message_id
        checking: asyncio.Task[None] | None = None
        before: tuple[str, list[str]] | None = None
        while following is not None:
            async with asyncio.TaskGroup() as tasks:
                watching = [
                    tasks.create_task(self._watch(following)) for _ in range(VIEWERS_PER_MESSAGE)
                ]
            views = [task.result() for task in watching]
            for view in views:
                _check_view(following, view)
            if checking is not None:
                await checking
            if before is not None:
                # Its writer knows by now that it has ended: it is not looked for any more.
                checking = asyncio.create_task(self._check_stored(*before, delete=True))
            before = following, views[0].contents
            assert views[0].end is not None  # noqa: S101 - it was checked
            following = views[0].end.metadata["next"]
            self.messages += 1
        if checking is not None:
            await checking
        if before is not None:
            await self._check_stored(*before, delete=False)

    async def _watch(self, message_id: str) -> View:
        view = View()
        async with self._converse.watch_message(message_id) as events:
            came = time.monotonic_ns() // 1000
            self._missing -= 1
            if not self._missing:
                self.complete.set()
            async for event in events:
                if isinstance(event, ChunkReceived):
                    if event.chunk.sequence != len(view.contents):
                        raise BenchmarkError(
                            f"Message {message_id}: chunk {event.chunk.sequence} came instead of "
                            f"chunk {len(view.contents)}"
                        )
                    view.contents.append(event.chunk.content)
                    self._count(event.chunk.content, came)
                elif isinstance(event, MessageCompleted | MessageFailed | MessageCancelled):
                    view.end = event
        return view

    def _count(self, content: str, came: int) -> None:
        """Counts the tokens of a chunk, and how long they took since the viewer was there."""
        now = time.monotonic_ns() // 1000
        self.chunks += 1
        for text in content.split():
            written = int(text)
            self.tokens += 1
            if written >= came:
                self.latencies.add((now - written) / 1e6)
            else:
                self.early_tokens += 1

    async def _check_stored(self, message_id: str, contents: list[str], *, delete: bool) -> None:
        """Checks that the same is in the database, and perhaps deletes it there.

        Else the server's memory would be full of finished messages, which is no load.
        """
        stored = await self._converse.get_message(message_id)
        found = [chunk.content for chunk in stored.chunks]
        if not stored.is_completed or found != contents or stored.content != "".join(contents):
            raise BenchmarkError(f"Message {message_id} is not stored as it was watched")
        if delete:
            await stored.delete()


def _check_view(message_id: str, view: View) -> None:
    if not isinstance(view.end, MessageCompleted):
        raise BenchmarkError(f"Message {message_id} was not completed: {view.end!r}")
    metadata, count = view.end.metadata, len(view.contents)
    if not count == view.end.chunk_count == metadata["chunks"]:
        raise BenchmarkError(
            f"Message {message_id}: {count} chunks came of {metadata['chunks']} written"
        )
    if digest("".join(view.contents)) != metadata["digest"]:
        raise BenchmarkError(f"Message {message_id}: the text that came is not what was written")


async def view(converse: Converse, seconds: float, messages: Sequence[str]) -> None:
    """Has each of ``messages``, and those that come after it, watched by five viewers."""
    viewers = VIEWERS_PER_MESSAGE * len(messages)
    audience = Audience(converse, viewers)
    async with asyncio.TaskGroup() as tasks:
        for message_id in messages:
            tasks.create_task(audience.follow(message_id))
        await audience.complete.wait()
        tell("watching", mode=converse.watch_mode, viewers=viewers)
        await wait_for_parent()
        tasks.create_task(
            sample_parts(
                converse,
                seconds,
                dict,
                lambda: {"latencies": audience.latencies.take(), "tokens": audience.tokens},
            )
        )
    tell(
        "result",
        messages=audience.messages,
        tokens=audience.tokens,
        chunks=audience.chunks,
        early_tokens=audience.early_tokens,
    )
