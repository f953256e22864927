"""The server that schedules harm, and a way to it that no harm is done to."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self, TypeVar

from bson.codec_options import CodecOptions
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from converse_mongo.embedded import EmbeddedServer
from tests.faults.schedules import FAILPOINTS, Fault

__all__ = ["Server", "Stored"]

T = TypeVar("T")

Stored = dict[str, Any]

HEAL_SECONDS = 30.0


class Server:
    """An embedded server that keeps what it has confirmed through SIGKILL.

    All that blocks runs in one thread that lives as long as this object: on Linux the server would
    end with the thread that started it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="faults-server")
        self._directory = TemporaryDirectory(prefix="converse_faults_")
        self._embedded = EmbeddedServer(
            Path(self._directory.name), arguments=("--sync-on-commit", "--enable-test-commands")
        )
        self._client: MongoClient[Stored] | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._embedded.port

    @property
    def uri(self) -> str:
        """Where the runner itself finds it."""
        return self._embedded.uri

    def __enter__(self) -> Self:
        try:
            self._thread.submit(self._embedded.start).result()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.thaw()
        if self._client is not None:
            self._client.close()
        self._thread.submit(self._embedded.__exit__, None, None, None).result()
        self._thread.shutdown()
        self._directory.cleanup()

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # Harm

    async def kill(self) -> None:
        """SIGKILL."""
        await self._do(self._embedded.kill)

    async def start(self) -> None:
        """Starts it on the same port and data, unless it runs."""
        if self._embedded.pid is None:
            await self._do(self._embedded.start)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._embedded.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._embedded.pid, number)

    async def fail(self, fault: Fault) -> None:
        """Sets a failpoint, for one kind of client or for all; it replaces the one before.

        Raises:
            PyMongoError: The server does not run, or hangs.
        """
        data: Stored = {"failCommands": list(fault.commands)}
        data |= FAILPOINTS[fault.how]
        if data.get("blockConnection"):
            data["blockTimeMS"] = int(fault.seconds * 1000)
        if fault.target != "all":
            data["appName"] = fault.target
        await self._set_failpoint(mode={"times": fault.times}, data=data)

    async def heal(self) -> None:
        """Starts it if need be, thaws it, and takes the failpoint away."""
        self.thaw()
        await self.start()
        async with asyncio.timeout(HEAL_SECONDS):
            while True:
                with contextlib.suppress(PyMongoError):
                    return await self._set_failpoint(mode="off")

    async def _set_failpoint(self, **how: Any) -> None:
        await self._do(
            lambda: self.client.admin.command("configureFailPoint", "failCommand", **how)
        )

    # What is stored

    @property
    def client(self) -> MongoClient[Stored]:
        """A client of its own, to read what is stored without the library."""
        if self._client is None:
            self._client = MongoClient(
                self.uri,
                directConnection=True,
                appname="runner",
                serverSelectionTimeoutMS=1000,
                socketTimeoutMS=2000,
                heartbeatFrequencyMS=500,
            )
        return self._client

    async def documents(self, database: str, collection: str, match: Stored) -> list[Stored]:
        """All documents of a collection that match, as they are stored."""
        options: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True, tzinfo=UTC)
        found = self.client[database].get_collection(collection, codec_options=options)
        return await self._do(lambda: list(found.find(match).sort("first_sequence")))

    async def drop(self, database: str) -> None:
        """Forgets a database."""
        await self._do(lambda: self.client.drop_database(database))
