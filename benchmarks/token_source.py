"""A stand-in for a language model, in a process of its own, as those are.

It gives the next token a fixed time after it was asked for it. So a loop that is late once stays
late, and whatever holds it up can be seen in its time. A timer of the loop itself would not do:
asyncio rounds those up to whole milliseconds, and more or less so as other things wake it.
"""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.children import Children, tell

__all__ = ["TokenSource", "open_token_source"]

_REQUEST = struct.Struct("!d")
_TOKEN = b" token."


class TokenSource:
    """The connection to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def next_token(self, seconds: float) -> str:
        """Asks for a token, which is to come ``seconds`` from now."""
        self._writer.write(_REQUEST.pack(seconds))
        return (await self._reader.readexactly(len(_TOKEN))).decode()


@asynccontextmanager
async def open_token_source(children: Children) -> AsyncIterator[TokenSource]:
    """Starts one."""
    child = await children.start("token source", __name__)
    port = (await child.expect("listening"))["port"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield TokenSource(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


def main() -> None:
    """Serves one connection, until it is closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        tell("listening", port=server.getsockname()[1])
        connection, _ = server.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while request := connection.recv(_REQUEST.size, socket.MSG_WAITALL):
            (seconds,) = _REQUEST.unpack(request)
            time.sleep(seconds)
            connection.sendall(_TOKEN)


if __name__ == "__main__":
    main()
