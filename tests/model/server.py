"""A simulated server: every call of the library to it is a place where anything may happen.

The collections are mongomock's, which know MongoDB's filters and updates. A call does not reach
them until the simulation says so, and then its answer may get lost, or the call itself, or it may
come late, when its sender has long given up.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, TypeAlias

import mongomock
from bson import ObjectId
from pymongo.errors import AutoReconnect
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

__all__ = [
    "CLOCK",
    "MESSAGES",
    "PAGES",
    "Fate",
    "Operation",
    "RemoteCollection",
    "RemoteDatabase",
    "Request",
    "Server",
    "documents",
    "no_answer",
]

Answer = asyncio.Future[Any]

MESSAGES, PAGES = "messages", "message_chunk_pages"

CURSOR_BATCH = 2
"""How many documents a cursor gets at once: few, so that writes come in between."""


class Clock:
    """The time, everywhere: it passes when the simulation says so."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def read(self) -> datetime:
        return self.now

    def read_naive(self) -> datetime:
        return self.now.replace(tzinfo=None)

    def monotonic(self) -> float:
        return self.now.timestamp()


CLOCK = Clock()


class Fate(Enum):
    """What becomes of a call."""

    DONE = "done"
    ANSWER_LOST = "answer lost"
    REQUEST_LOST = "request lost"
    LATE = "late"
    """Its sender hears of an error, and the call arrives whenever."""


@dataclass(eq=False)
class Operation:
    """One thing that a process does, in as many calls as it takes.

    Attributes:
        label: Its name in reports.
        process: Who does it.
        kind: What it does.
        log_id: The log of the message that it was given; ``None`` if it looks for one.
        epoch: That of the writer who does it.
        unless_stopped: Whether a request to stop is to keep it from its work.
        contents: What it appends, as it is said.
        pieces: The same, as the library gets it.
        append_id: The id of the append, if it was chosen by who makes it.
        began: When it began.
        safe_before: What was safe when it began.
        deletions: How many messages had been deleted when it began.
        orphaned: How many heartbeats there were, if it began when the lease had run out.
        looked: How many heartbeats there were when it last looked.
        troubles: How many of its calls went wrong.
        queued: Whether another one of its process was making room when it ended.
        interrupted: Whether it was cancelled, and is to go on all the same.
        request: The call that it waits for.
        outcome: What it returned, or raised.
    """

    label: str
    process: str
    kind: str
    log_id: ObjectId | None = None
    epoch: int | None = None
    unless_stopped: bool = False
    contents: tuple[str, ...] = ()
    pieces: Sequence[Any] = ()
    append_id: ObjectId | None = None
    began: datetime | None = None
    safe_before: Any = None
    deletions: int = 0
    orphaned: int = -1
    looked: int = -1
    troubles: int = 0
    queued: bool = False
    interrupted: bool = False
    request: "Request | None" = None
    outcome: Any = None

    def __repr__(self) -> str:
        return f"<{self.label}, epoch={self.epoch}, {self.contents}>"


@dataclass(eq=False)
class Request:
    """A call to the server that is not answered yet."""

    name: str
    perform: Callable[[], Any]
    writes: bool = False
    majority: bool = True
    operation: Operation | None = None
    answer: Answer | None = None


Sender: TypeAlias = Callable[[Request], Answer | None]
"""Takes a call into account; ``None`` has it performed at once."""


@dataclass
class Server:
    """A primary, and what a majority of the replica set has of it.

    Without ``lagging`` there is no difference between the two. While the primary is ``isolated`` it
    performs what it is asked to, and can neither confirm it nor pass it on: who does not ask for a
    majority gets an answer all the same.
    """

    lagging: bool
    isolated: bool = False
    primary: Any = field(default_factory=lambda: mongomock.MongoClient().model)
    majority: Any = None
    late: list[Request] = field(default_factory=list)
    on_write: Callable[[Operation], None] = lambda operation: None
    on_read: Callable[[Operation], None] = lambda operation: None
    on_replicated: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.majority = mongomock.MongoClient().model if self.lagging else self.primary

    def perform(self, request: Request, *, confirmed: bool = True) -> Any:
        """Does what a request asks for.

        Args:
            confirmed: Whether a write waits until a majority has it.
        """
        assert request.operation is not None
        try:
            return request.perform()
        finally:
            if request.writes:
                self.on_write(request.operation)
                if not self.lagging or (confirmed and not self.isolated):
                    self.replicate()
            self.on_read(request.operation)

    def replicate(self) -> None:
        """Has the majority catch up with the primary."""
        if self.lagging:
            _copy(self.primary, self.majority)
        self.on_replicated()

    def fail_over(self) -> None:
        """Makes one of the majority the primary: what only the old one had is gone."""
        self.isolated = False
        self.late.clear()
        _copy(self.majority, self.primary)

    def rejoin(self) -> None:
        """Makes good what the primary could not do while it was isolated."""
        self.isolated = False
        self.replicate()


def documents(database: Any, name: str) -> list[dict[str, Any]]:
    """The documents of a collection as they are, not copied: only to be looked at."""
    return list(database[name]._store.documents)


def _copy(source: Any, target: Any) -> None:
    for name in (MESSAGES, PAGES):
        target[name].delete_many({})
        if found := documents(source, name):
            target[name].insert_many(found)


async def _send(sender: Sender, request: Request) -> Any:
    answer = sender(request)
    return request.perform() if answer is None else await answer


class RemoteDatabase:
    """A database, as the drivers show it, as far as the library looks."""

    def __init__(self, server: Server, sender: Sender) -> None:
        self.server = server
        self.sender = sender
        self.client = self.admin = self

    async def command(self, name: str) -> Mapping[str, Any]:
        assert name == "hello"
        request = Request(name, lambda: {"localTime": CLOCK.now, "setName": "simulated"})
        answer: Mapping[str, Any] = await _send(self.sender, request)
        return answer

    def get_collection(self, name: str, **options: Any) -> "RemoteCollection":
        return RemoteCollection(self, name).with_options(**options)


class RemoteCollection:
    """A collection, as the drivers show it, as far as the library calls it."""

    codec_options = read_preference = None

    def __init__(
        self,
        database: RemoteDatabase,
        name: str,
        read_concern: ReadConcern | None = None,
        write_concern: WriteConcern | None = None,
    ) -> None:
        self.database = database
        self.name = name
        self.read_concern = read_concern or ReadConcern("local")
        self.write_concern = write_concern or WriteConcern("majority")

    def with_options(
        self,
        *,
        read_concern: ReadConcern | None = None,
        write_concern: WriteConcern | None = None,
        **_options: Any,
    ) -> "RemoteCollection":
        return RemoteCollection(
            self.database,
            self.name,
            read_concern or self.read_concern,
            write_concern or self.write_concern,
        )

    def read(self) -> Any:
        server = self.database.server
        majority = self.read_concern.level == "majority"
        return (server.majority if majority else server.primary)[self.name]

    async def _call(self, method: str, writes: bool, *arguments: Any, **options: Any) -> Any:
        server = self.database.server

        def perform() -> Any:
            collection = server.primary[self.name] if writes else self.read()
            return getattr(collection, method)(*arguments, **options)

        majority = self.write_concern.document.get("w") == "majority"
        request = Request(f"{self.name}.{method}", perform, writes, majority)
        return await _send(self.database.sender, request)

    async def find_one(self, *arguments: Any, **options: Any) -> Any:
        return await self._call("find_one", False, *arguments, **options)

    async def update_one(self, *arguments: Any, **options: Any) -> Any:
        return await self._call("update_one", True, *arguments, **options)

    async def find_one_and_update(self, *arguments: Any, **options: Any) -> Any:
        return await self._call("find_one_and_update", True, *arguments, **options)

    async def insert_one(self, *arguments: Any, **options: Any) -> Any:
        return await self._call("insert_one", True, *arguments, **options)

    async def delete_one(self, *arguments: Any, **options: Any) -> Any:
        return await self._call("delete_one", True, *arguments, **options)

    async def delete_many(self, *arguments: Any, **options: Any) -> Any:
        return await self._call("delete_many", True, *arguments, **options)

    def find(self, *arguments: Any) -> "RemoteCursor":
        return RemoteCursor(self, arguments)


class RemoteCursor:
    """A cursor: no snapshot, each batch shows what is there when it is read."""

    def __init__(self, collection: RemoteCollection, arguments: Sequence[Any]) -> None:
        self._collection = collection
        self._arguments = arguments
        self._sort: Sequence[tuple[str, int]] | None = None
        self._limit = 0
        self._seen: set[Any] = set()

    def sort(self, keys: Sequence[tuple[str, int]]) -> "RemoteCursor":
        self._sort = keys
        return self

    def limit(self, limit: int) -> "RemoteCursor":
        self._limit = limit
        return self

    async def to_list(self, length: int | None) -> list[dict[str, Any]]:
        return await self._batch(length)

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            batch = await self._batch(CURSOR_BATCH)
            for document in batch:
                yield document
            if len(batch) < CURSOR_BATCH:
                return

    async def _batch(self, length: int | None) -> list[dict[str, Any]]:
        def perform() -> list[dict[str, Any]]:
            found = self._collection.read().find(
                *self._arguments, sort=self._sort, limit=self._limit
            )
            return [document for document in found if document["_id"] not in self._seen][:length]

        batch: list[dict[str, Any]] = await _send(
            self._collection.database.sender, Request(f"{self._collection.name}.find", perform)
        )
        self._seen.update(document["_id"] for document in batch)
        return batch


def no_answer() -> AutoReconnect:
    """What a client gets instead of an answer."""
    return AutoReconnect("the simulated connection was lost")
