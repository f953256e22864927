"""The proxy does what schedules rely on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.proxy import Proxy


class Echo:
    """A server that says again what it hears, and remembers it."""

    def __init__(self) -> None:
        self.heard = asyncio.Queue[bytes]()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            self.heard.put_nowait(data)
            writer.write(data)
        writer.close()


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[Echo, Proxy]]:
    server = Echo()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    try:
        async with Proxy(listener.sockets[0].getsockname()[1]) as proxy, asyncio.timeout(10):
            yield server, proxy
    finally:
        listener.close()


@asynccontextmanager
async def connect(proxy: Proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def silence(reader: asyncio.StreamReader) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.read(100)


async def test_proxy__passes_on() -> None:
    async with echo() as (_, proxy), connect(proxy) as (reader, writer):
        writer.write(b"a")
        assert await reader.read(100) == b"a"
        proxy.delay = 0.01
        writer.write(b"b")
        assert await reader.read(100) == b"b"
        writer.write_eof()
        assert await reader.read(100) == b""


async def test_proxy__cuts() -> None:
    async with echo() as (_, proxy), connect(proxy) as (reader, writer):
        writer.write(b"a")
        assert await reader.read(100) == b"a"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read(100)


async def test_proxy__refuses() -> None:
    async with echo() as (_, proxy):
        proxy.refusing = True
        async with connect(proxy) as (reader, _writer):
            with pytest.raises(ConnectionResetError):
                await reader.read(100)


async def test_proxy__loses_answers_of_what_was_done() -> None:
    async with echo() as (server, proxy), connect(proxy) as (reader, writer):
        proxy.deafen(requests=False)
        writer.write(b"a")
        assert await server.heard.get() == b"a"
        await silence(reader)
        proxy.heal(drop=True)
        with pytest.raises(ConnectionResetError):
            await reader.read(100)


async def test_proxy__delivers_what_a_client_sent_that_is_gone() -> None:
    async with echo() as (server, proxy):
        proxy.deafen()
        async with connect(proxy) as (reader, writer):
            writer.write(b"late")
            await silence(reader)
            writer.close()
        assert server.heard.empty()
        proxy.heal()
        assert await server.heard.get() == b"late"
