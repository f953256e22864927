"""A TCP proxy on the loopback interface that can harm what passes through it."""

import asyncio
import contextlib
import socket
import struct
from typing import Self

__all__ = ["Proxy"]

READ_BYTES = 65536


class _Link:
    """One connection: what a client and the server say to one another through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._ends = client, server
        self.is_cut = False

    def cut(self) -> None:
        self.is_cut = True
        for end in self._ends:
            _reset(end)


class Proxy:
    """Passes bytes on to a port, until it is told to do something else.

    What it was told holds for connections that are there and for those that come.

    Args:
        target: The port of the server.

    Attributes:
        port: Where clients find it.
        refusing: Whether new connections are reset at once.
        delay: Seconds that all that it reads waits before it is passed on.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = 0
        self.refusing = False
        self.delay = 0.0
        # Set while it listens: what clients ask, what the server answers.
        self._hears_requests = asyncio.Event()
        self._hears_answers = asyncio.Event()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self.heal()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Resets all connections; what was on its way is lost."""
        for link in list(self._links):
            link.cut()

    def deafen(self, *, requests: bool = True, answers: bool = True) -> None:
        """Holds back what clients ask, or the server answers, or both; accepts connections."""
        if requests:
            self._hears_requests.clear()
        if answers:
            self._hears_answers.clear()

    def heal(self, *, drop: bool = False) -> None:
        """Passes on what was held back, as a network does that was cut in two; ends all harm.

        Args:
            drop: Whether what was held back is lost instead, and its connections with it.
        """
        if drop:
            self.cut()
        self._hears_requests.set()
        self._hears_answers.set()
        self.refusing = False
        self.delay = 0.0

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            _reset(writer)
            return
        try:
            upstream, server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(writer)
            return
        link = _Link(writer, server)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pump(link, reader, server, self._hears_requests),
                self._pump(link, upstream, writer, self._hears_answers),
            )
        finally:
            self._links.discard(link)
            link.cut()

    async def _pump(
        self,
        link: _Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        hears: asyncio.Event,
    ) -> None:
        """Passes bytes on in one direction; a client that is gone may have bytes on their way."""
        with contextlib.suppress(OSError):
            while True:
                data = await reader.read(READ_BYTES)
                if self.delay:
                    await asyncio.sleep(self.delay)
                await hears.wait()
                if link.is_cut:
                    return
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()
        if not link.is_cut and reader.exception() is not None:
            _reset(writer)


def _reset(end: asyncio.StreamWriter) -> None:
    """Ends a connection by RST, as a machine does that knows nothing of it."""
    with contextlib.suppress(OSError):  # it is closed
        end.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    end.transport.abort()
