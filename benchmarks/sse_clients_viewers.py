"""The clients over HTTP: bare sockets, whose work is little beside that of the server.

Each compares what comes, byte for byte, with what another has had before it; only the first reads
what is in it.
"""

import asyncio
import hashlib
import json
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial

from benchmarks.children import tell, wait_for_parent
from benchmarks.figures import BenchmarkError
from benchmarks.load_samples import Latencies

__all__ = ["COMPLETED", "chunk_text", "digest", "view"]

COMPLETED = "message.completed"
AT_ONCE = 50
"""Clients that connect at the same time: the queue of a listening socket is short."""
SMALL = 4096
"""The buffer in bytes of a client that does not read: what the system keeps for it is no memory of
the server's process."""


def chunk_text(size: int) -> str:
    """The text of a chunk that is written now: the time in microseconds, and what fills it up."""
    return f"{time.monotonic_ns() // 1000:020d} ".ljust(size, ".")


def written_at(text: str) -> int:
    """When the chunk with this text was written."""
    return int(text[:20])


def digest(texts: Iterable[str]) -> str:
    """What stands for all chunks of a message."""
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode())
    return found.hexdigest()


class Audience:
    """What all clients of this process have had of a message.

    Attributes:
        latencies: From writing a chunk to a client, of those that read.
        known: The sequence of each chunk and when it was written, by the bytes it came in.
        texts: Of the chunks, by sequence.
        opened: Set once all have a stream.
        reached: Set once all that read have had as many chunks as they were to.
        ended: Set once all that were to end have had the end.
    """

    def __init__(self, clients: int, slow: int) -> None:
        self.latencies = Latencies()
        self.known: dict[bytes, tuple[int, int]] = {}
        self.texts: dict[int, str] = {}
        self.opened, self.reached, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.opening, self.ending = clients + slow, clients
        self.goal, self.behind = sys.maxsize, clients
        self._clients = clients
        self.failure: str | None = None

    def look(self, event: bytes) -> tuple[int, int]:
        """Reads a chunk that nobody has had before."""
        data = next(line[6:] for line in event.split(b"\n") if line.startswith(b"data: "))
        chunk = json.loads(data)["chunk"]
        sequence, text = chunk["sequence"], chunk["content"]
        if self.texts.setdefault(sequence, text) != text:
            self.fail(f"Two clients had something else as chunk {sequence}")
        self.known[event] = found = sequence, written_at(text)
        return found

    def aim(self, goal: int) -> None:
        """Begins to wait until all that read have had so many chunks."""
        self.goal, self.behind = goal, self._clients
        self.reached.clear()

    def fail(self, why: str) -> None:
        """Ends all waiting: what is to come will never be all there."""
        self.failure = self.failure or why
        for event in (self.opened, self.reached, self.ended):
            event.set()

    async def wait(self, event: asyncio.Event) -> None:
        """Waits for one of the three.

        Raises:
            BenchmarkError: A client had something that it should not have had.
        """
        await event.wait()
        if self.failure is not None:
            raise BenchmarkError(self.failure)


class Client(asyncio.Protocol):
    """One client: a bare socket, which takes chunked HTTP apart and checks what comes.

    All chunks have to come, from some first one on, in order and each once.

    Args:
        audience: Who is told.
        path: What it asks for.
        slow: Whether to read nothing once the stream is there.

    Attributes:
        first: The sequence of the first chunk that it has had; -1 before that.
        next: The one that comes next.
    """

    def __init__(self, audience: Audience, path: str, *, slow: bool) -> None:
        self._audience = audience
        self._path = path
        self.slow = slow
        self._transport: asyncio.Transport | None = None
        self._raw = bytearray()
        self._text = bytearray()
        self._in_body = False
        self._ended = False
        self.first = self.next = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks for its stream."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what TCP has
        self._transport = transport
        transport.write(f"GET {self._path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())

    def connection_lost(self, exc: Exception | None) -> None:
        """Says so if there was more to come."""
        if not self._ended:
            self._audience.fail(f"A client lost its connection after chunk {self.next - 1}: {exc}")

    def data_received(self, data: bytes) -> None:
        """Takes what there is, as far as it is whole."""
        self._raw += data
        if not self._in_body:
            head, found, rest = bytes(self._raw).partition(b"\r\n\r\n")
            if not found:
                return
            if b" 200 " not in head.partition(b"\r\n")[0]:
                self._audience.fail(f"A client was answered {head[:100]!r}")
                return
            self._in_body, self._raw = True, bytearray(rest)
        start = 0
        while (line := self._raw.find(b"\r\n", start)) >= 0:
            stop = line + 2 + int(self._raw[start:line], 16)
            if len(self._raw) < stop + 2:
                break
            self._text += self._raw[line + 2 : stop]
            start = stop + 2
        del self._raw[:start]
        *events, rest = bytes(self._text).split(b"\n\n")
        self._text = bytearray(rest)
        for event in events:
            self._take(event)

    def _take(self, event: bytes) -> None:
        audience = self._audience
        known = audience.known.get(event)
        if known is None:
            if b"event: chunk.received" not in event:
                self._take_other(event)
                return
            known = audience.look(event)
        sequence, written = known
        if self.first < 0:
            self.first = self.next = sequence
        if sequence != self.next:
            audience.fail(f"A client had chunk {sequence} instead of chunk {self.next}")
        self.next += 1
        if not self.slow:
            audience.latencies.add((time.monotonic_ns() // 1000 - written) / 1e6)
            if self.next == audience.goal:
                audience.behind -= 1
                if not audience.behind:
                    audience.reached.set()

    def _take_other(self, event: bytes) -> None:
        audience = self._audience
        if event.startswith(b"retry: "):
            audience.opening -= 1
            if not audience.opening:
                audience.opened.set()
            if self.slow and self._transport is not None:
                self._transport.pause_reading()
        elif f"event: {COMPLETED}".encode() in event:
            self._ended = True
            audience.ending -= 1
            if not audience.ending:
                audience.ended.set()

    def go_on(self) -> None:
        """Reads from now on."""
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        """Goes away."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()


async def view() -> None:
    """Does what the parent says, a line of JSON each, until it says no more."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        await _view(**json.loads(line))


async def _view(
    port: int, paths: Sequence[str], slow_paths: Sequence[str], goals: Sequence[int], ends: bool
) -> None:
    """Opens clients, and tells when they are there, have had what they are to, and have the end.

    Args:
        port: Of the server.
        paths: What each of those that read asks for.
        slow_paths: The same of those that read nothing until the parent says so.
        goals: After how many chunks to tell that all that read have had them.
        ends: Whether the message ends; else they go away when the parent says so.
    """
    audience = Audience(len(paths), len(slow_paths))
    made = [Client(audience, path, slow=False) for path in paths]
    lazy = [Client(audience, path, slow=True) for path in slow_paths]
    made += lazy
    await _connect(made, port)
    await audience.wait(audience.opened)
    if goals:
        audience.aim(goals[0])
    tell("opened")
    for number, goal in enumerate(goals):
        await audience.wait(audience.reached)
        audience.aim(goals[number + 1] if number + 1 < len(goals) else sys.maxsize)
        tell("reached", chunks=goal, at=time.monotonic(), latencies=audience.latencies.take())
    if ends:
        await audience.wait(audience.ended)
    tell("ended", slow_ranges=_ranges(lazy))
    await wait_for_parent()
    if lazy:
        audience.ended.clear()
        audience.ending = len(lazy)
        for one in lazy:
            one.go_on()
        await audience.wait(audience.ended)
    texts = [text for _, text in sorted(audience.texts.items())]
    for one in made:
        one.close()
    tell(
        "gone",
        ranges=_ranges(one for one in made if not one.slow),
        slow_ranges=_ranges(lazy),
        digest=digest(texts),
    )


def _itself(client: Client) -> Client:
    return client


def _ranges(clients: Iterable[Client]) -> list[tuple[int, int]]:
    """From which chunk to before which one they have had all, each once."""
    return sorted({(one.first, one.next) for one in clients})


async def _connect(clients: Sequence[Client], port: int) -> None:
    loop = asyncio.get_running_loop()
    left = iter(clients)

    async def work() -> None:
        for client in left:
            connection = socket.socket()
            connection.setblocking(False)
            if client.slow:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            await loop.sock_connect(connection, ("127.0.0.1", port))
            await loop.create_connection(partial(_itself, client), sock=connection)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
