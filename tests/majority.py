"""A stand-in for the majority of a replica set, which is behind its primary.

The embedded server commits at once. Here a thread follows the change stream of a database and
applies each change to copies of it, some time later: to one that is what the majority has, and to
an older one, which is what a new primary shows until its first own entry commits. Majority reads go
to the copies, and change streams are of the first; all else goes to the database itself.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from bson.codec_options import CodecOptions
from pymongo import MongoClient
from pymongo.read_concern import ReadConcern

from converse_mongo.driver import clients, collections

__all__ = ["Majority", "behind"]

MARKERS = "majority_markers"
WAIT_SECONDS = 30.0
READS = frozenset({"aggregate", "find", "find_one"})
WRITES = frozenset(
    {"delete_many", "find_one_and_update", "insert_one", "update_many", "update_one"}
)


class Majority:
    """What the majority has of one database.

    Attributes:
        lag: Seconds until it has what the primary has.
        older_lag: Seconds until the older copy has it.
        failing_over: Whether majority reads show the older copy.
    """

    def __init__(self, uri: str, name: str, lag: float, older_lag: float) -> None:
        self.name = name
        self.lag, self.older_lag = lag, older_lag
        self.failing_over = False
        self._client: MongoClient[dict[str, Any]] = MongoClient(uri, tz_aware=True)
        self._stream: Any = self._client[name].watch(max_await_time_ms=10)
        self._stream.try_next()  # which opens it
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"majority-{name}", daemon=True)
        self._thread.start()

    @property
    def copies(self) -> tuple[str, str]:
        """The names of the two copies."""
        return f"{self.name}_majority", f"{self.name}_older"

    @property
    def shown(self) -> str:
        """The name of the copy that majority reads show."""
        return self.copies[self.failing_over]

    async def has_all(self) -> None:
        """Waits until it has what the primary has now."""
        await asyncio.to_thread(self._wait_for_all)

    def _wait_for_all(self) -> None:
        marker = {"_id": uuid4().hex}
        self._client[self.name][MARKERS].insert_one(marker)
        until = time.monotonic() + WAIT_SECONDS
        while self._client[self.copies[0]][MARKERS].find_one(marker) is None:
            if time.monotonic() > until or self._closing:
                raise TimeoutError("The majority does not follow the primary")
            time.sleep(0.005)

    def _run(self) -> None:
        waiting: list[deque[tuple[float, Any]]] = [deque(), deque()]
        while not self._closing:
            change = self._stream.try_next()
            if change is not None:
                now = time.monotonic()
                waiting[0].append((now + self.lag, change))
                waiting[1].append((now + self.older_lag, change))
            for name, queue in zip(self.copies, waiting, strict=True):
                while queue and queue[0][0] <= time.monotonic():
                    self._apply(self._client[name], queue.popleft()[1])

    def _apply(self, copy: Any, change: Any) -> None:
        if change["operationType"] in ("dropDatabase", "invalidate"):
            return
        collection = copy[change["ns"]["coll"]]
        match change["operationType"]:
            case "insert" | "replace":
                collection.replace_one(change["documentKey"], change["fullDocument"], upsert=True)
            case "delete":
                collection.delete_one(change["documentKey"])
            case "update":
                description = change["updateDescription"]
                update = {"$set": description.get("updatedFields") or {}}
                if removed := description.get("removedFields"):
                    update["$unset"] = dict.fromkeys(removed, "")
                if description.get("truncatedArrays"):
                    raise NotImplementedError(description)
                collection.update_one(change["documentKey"], update)
            case "drop":
                collection.drop()

    def close(self) -> None:
        """Ends its thread, and drops the copies."""
        self._closing = True
        self._thread.join(WAIT_SECONDS)
        self._stream.close()
        for name in self.copies:
            self._client.drop_database(name)
        self._client.close()


class MajorityCollection:
    """A collection that is written with the concern "majority", and read so unless told not to."""

    def __init__(self, primary: Any, majority: Majority, *, reads: bool = True) -> None:
        self.primary = primary
        self.majority = majority
        self._reads = reads
        self.name = primary.name
        self.codec_options: CodecOptions[Any] = primary.codec_options
        self.write_concern = primary.write_concern

    @property
    def database(self) -> Any:
        """The copy, of which change streams are opened."""
        if not self._reads:
            return self.primary.database
        return self.primary.database.client.get_database(
            self.majority.copies[0],
            codec_options=self.codec_options,
            read_preference=self.primary.read_preference,
        )

    def with_options(self, **options: Any) -> Any:
        concern: ReadConcern | None = options.get("read_concern")
        if concern is not None and concern.level != "majority":
            return self.primary.with_options(**options)
        return self

    def sibling(self, name: str) -> "MajorityCollection":
        return MajorityCollection(_sibling(self.primary, name), self.majority, reads=self._reads)

    def __getattr__(self, name: str) -> Any:
        if name in READS and not self._reads:
            return getattr(self.primary, name)
        if name in READS:
            client = self.primary.database.client
            database = client.get_database(self.majority.shown, codec_options=self.codec_options)
            return getattr(database.get_collection(self.name), name)
        write = getattr(self.primary, name)
        if name not in WRITES:
            return write

        async def write_and_wait(*arguments: Any, **options: Any) -> Any:
            result = await write(*arguments, **options)
            await self.majority.has_all()
            return result

        return write_and_wait


_collection_of, _majority_of, _sibling = (
    collections.collection_of,
    collections.majority_of,
    collections.sibling,
)


@contextmanager
def behind(
    monkeypatch: pytest.MonkeyPatch, server: str, lag: float, older_lag: float | None = None
) -> Iterator[dict[str, Majority]]:
    """Has all facades that are opened on a server from now on read from majorities that lag.

    Yields:
        The majorities by the names of their databases.
    """
    majorities: dict[str, Majority] = {}
    known: dict[int, Any] = {}  # an id is only good while its client lives
    open_client = clients.open_client

    def record_client(uri: str, options: Any) -> Any:
        client = open_client(uri, options)
        if uri == server:
            known[id(client)] = client
        return client

    def followed(collection: Any) -> Majority | None:
        database = collection.database
        if id(database.client) not in known:
            return None
        if database.name not in majorities:
            older = lag if older_lag is None else older_lag
            majorities[database.name] = Majority(server, database.name, lag, older)
        return majorities[database.name]

    def collection_of(model: Any, *, majority: bool = False) -> Any:
        collection = _collection_of(model)
        if majority:
            return majority_of(collection)
        confirmed = collection.write_concern.document.get("w") == "majority"
        found = followed(collection) if confirmed else None
        return collection if found is None else MajorityCollection(collection, found, reads=False)

    def majority_of(collection: Any) -> Any:
        if isinstance(collection, MajorityCollection):
            return MajorityCollection(collection.primary, collection.majority)
        found = followed(collection)
        return _majority_of(collection) if found is None else MajorityCollection(collection, found)

    def sibling(collection: Any, name: str) -> Any:
        if isinstance(collection, MajorityCollection):
            return collection.sibling(name)
        return _sibling(collection, name)

    with monkeypatch.context() as patch:
        patch.setattr(clients, "open_client", record_client)
        patch.setattr(collections, "collection_of", collection_of)
        patch.setattr(collections, "majority_of", majority_of)
        patch.setattr(collections, "sibling", sibling)
        try:
            yield majorities
        finally:
            for each in majorities.values():
                each.close()
