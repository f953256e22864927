"""Sites to attack, each a process of its own, and what attacks need."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from pymongo import MongoClient

BLOCKED = 12.0
"""Nothing may block a loop for as long as that many times the work of ``site.unit``: 50 ms."""


@dataclass
class Site:
    """A site, and a client of it that is nobody.

    Attributes:
        user: A user whom no other test has.
    """

    http: httpx.AsyncClient
    port: int
    user: str

    @property
    def mine(self) -> dict[str, str]:
        """The headers of the user."""
        return {"authorization": self.user, "content-type": "application/json"}

    async def probe(self) -> dict[str, float]:
        found: dict[str, float] = (await self.http.get("/probe")).json()
        return found

    async def state(self) -> dict[str, int]:
        found: dict[str, int] = (await self.http.get("/state")).json()
        return found

    async def begin(self, user: str | None = None, **query: str) -> dict[str, str]:
        """Begins a conversation; the ids of it (c), its question (q) and its answer (m)."""
        query["user"] = user or self.user
        found: dict[str, str] = (await self.http.post("/begin", params=query)).json()
        return found

    async def connect(self, *head: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that has sent the head of a request of the user."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**16)
        lines = [*head, f"authorization: {self.user}", f"host: 127.0.0.1:{self.port}", "", ""]
        writer.write("\r\n".join(lines).encode())
        return reader, writer

    async def settles(self, name: str, value: int) -> None:
        """Waits until a number of the state is at most ``value``."""
        async with asyncio.timeout(30):
            while (await self.state())[name] > value:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.05)


@contextmanager
def running(kind: str, uri: str) -> Iterator[int]:
    """Runs a site; gives its port."""
    database = f"test_{uuid4().hex[:16]}"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.hostile.site", kind, uri, database],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        with MongoClient[dict[str, object]](uri) as client:
            client.drop_database(database)


@pytest.fixture(scope="module")
def library_port(server_uri: str) -> Iterator[int]:
    with running("library", server_uri) as port:
        yield port


@pytest.fixture(scope="module")
def chat_port(server_uri: str) -> Iterator[int]:
    with running("chat", server_uri) as port:
        yield port


@asynccontextmanager
async def visited(port: int) -> AsyncIterator[Site]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        yield Site(http, port, uuid4().hex)


@pytest_asyncio.fixture
async def library(library_port: int) -> AsyncIterator[Site]:
    """The routes of the library."""
    async with visited(library_port) as site:
        yield site


@pytest_asyncio.fixture
async def chat(chat_port: int) -> AsyncIterator[Site]:
    """The chat that ``converse-mongo serve`` starts."""
    async with visited(chat_port) as site:
        yield site


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error in a response: for programs, for users, and maybe a detail for developers."""
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) - {"detail"} == {"code", "message"}
    return error
