"""What every benchmark is given."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pymongo import MongoClient

from benchmarks.servers import Server

__all__ = ["Load", "Setting"]


@dataclass(frozen=True, slots=True)
class Load:
    """How much the load test does.

    Attributes:
        minutes: For how long.
        messages: How many stream at once.
        flush_interval: That of their writers, in seconds.
    """

    minutes: float = 10.0
    messages: int = 200
    flush_interval: float = 0.04


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how much to measure.

    Attributes:
        server: The server, which does nothing else.
        rounds: How often each thing is measured.
        chunks: How many chunks a long message has.
        note: Told what goes on, for who waits.
        load: How much the load test does.
        before: A checkout of an earlier version, which ``sse_clients`` and ``parts`` compare with.
    """

    server: Server
    rounds: int
    chunks: int
    note: Callable[[str], None]
    load: Load = Load()
    before: Path | None = None

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The name of a new database, which is dropped in the end."""
        name = f"bench_{uuid4().hex[:16]}"
        try:
            yield name
        finally:
            with MongoClient[dict[str, Any]](self.server.uri) as client:
                client.drop_database(name)
