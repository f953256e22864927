"""What the benchmark of the clients over HTTP holds: a server, the clients, what is written."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.children import Child
from benchmarks.figures import BenchmarkError
from benchmarks.sse_clients_viewers import chunk_text, digest
from converse_mongo import Conversation, Converse, Message

__all__ = ["Server", "Talk", "Viewers"]

SETTLING_SECONDS, SETTLED_SECONDS = 0.3, 0.03
"""A server is at rest when it computes for less than the latter in the former."""
GONE_SECONDS = 120.0


class Server:
    """A process that serves, as its parent sees it.

    Attributes:
        port: Where it is.
    """

    def __init__(self, child: Child, port: int) -> None:
        self._child = child
        self.port = port

    async def state(self) -> Mapping[str, Any]:
        """How it is; ``peak`` and ``used``, processor time, are since it was asked last."""
        await self._child.go()
        return await self._child.expect("state")

    async def settled(self, watchers: int) -> Mapping[str, Any]:
        """The same once it has no more than so many watchers and nothing to do.

        Raises:
            BenchmarkError: It never came to that.
        """
        deadline = time.monotonic() + GONE_SECONDS
        peak = 0
        while True:
            state = await self.state()
            peak = max(peak, state["peak"])
            if state["watchers"] <= watchers and state["used"] < SETTLED_SECONDS:
                return {**state, "peak": peak}
            if time.monotonic() > deadline:
                raise BenchmarkError(f"It does not come to rest: {state}")
            await asyncio.sleep(SETTLING_SECONDS)


class Viewers:
    """The process that has the clients."""

    def __init__(self, child: Child) -> None:
        self._child = child

    async def open(
        self,
        server: Server,
        paths: Sequence[str],
        slow_paths: Sequence[str] = (),
        *,
        goals: Sequence[int] = (),
        ends: bool = True,
    ) -> None:
        """Opens clients of ``server``, and returns once all have a stream."""
        asked = {"port": server.port, "paths": paths, "slow_paths": slow_paths}
        line = json.dumps({**asked, "goals": goals, "ends": ends})
        await self._child.send(line.encode() + b"\n")
        await self._child.expect("opened")

    async def reached(self) -> Mapping[str, Any]:
        """Returns once all that read have had as many chunks as the next goal says."""
        return await self._child.expect("reached")

    async def ended(self) -> Mapping[str, Any]:
        """Returns once all that read have had the end."""
        return await self._child.expect("ended")

    async def leave(
        self, written: Sequence[str] = (), *, start: int | None = 0, slow: bool = False
    ) -> None:
        """Has the slow ones read all, and then all go.

        Args:
            written: The text of all chunks of the message; none if clients did not watch one.
            start: From which chunk on those that read must have had them; ``None`` without any.
            slow: Whether there are slow ones, which must have had all.

        Raises:
            BenchmarkError: They have had something else.
        """
        await self._child.go()
        gone = await self._child.expect("gone")
        if not written:
            return
        for name, first in (("ranges", start), ("slow_ranges", 0 if slow else None)):
            due = [] if first is None else [[first, len(written)]]
            if gone[name] != due:
                raise BenchmarkError(f"Chunks {gone[name]} came at clients instead of {due}")
        if gone["digest"] != digest(written[0 if slow else start :]):
            raise BenchmarkError("What came at the clients is not what was written")


class Talk:
    """A conversation with a message that streams, and what was written to it."""

    def __init__(self, conversation: Conversation, message: Message) -> None:
        self._message = message
        self.conversation = conversation
        self.written: list[str] = []

    @classmethod
    async def start(cls, converse: Converse) -> "Talk":
        """Starts one."""
        conversation = await converse.start_conversation()
        return cls(conversation, await conversation.start_streaming_assistant())

    @property
    def path(self) -> str:
        """The stream of it from the start."""
        return f"/api/conversations/{self.conversation.id}/events"

    async def path_from_here(self) -> str:
        """The same from where it is now."""
        return f"{self.path}?after={(await self.conversation.history(1)).cursor}"

    async def write(self, size: int) -> None:
        """Writes a chunk."""
        self.written.append(chunk_text(size))
        await self._message.append_chunk(self.written[-1])

    async def write_many(self, count: int, size: int) -> None:
        """Writes so many at once."""
        texts = [chunk_text(size) for _ in range(count)]
        self.written += texts
        await self._message.append_chunks(texts)

    async def write_slowly(self, count: int, size: int, per_second: float) -> None:
        """Writes them at equal distances."""
        start = time.monotonic()
        for number in range(count):
            await asyncio.sleep(start + number / per_second - time.monotonic())
            await self.write(size)

    async def end(self) -> None:
        """Completes the message."""
        await self._message.complete_streaming()
