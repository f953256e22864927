"""Servers: their kind, their clock, and the time of their last majority commit."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from bson import Timestamp
from pymongo.errors import OperationFailure

from converse_mongo.domain.metadata import aware
from converse_mongo.domain.validation import EPOCH
from converse_mongo.driver.clients import Database
from converse_mongo.driver.collections import Collection, is_mock
from converse_mongo.driver.failures import is_transient

Mark: TypeAlias = Timestamp | datetime
"""A moment in the cluster's logical time, which no failover and no clock sets back; a date for a
mock. The server sets it, see
https://www.mongodb.com/docs/manual/reference/operator/update/currentDate/."""

FIRST_MARK = Timestamp(0, 0)


async def has_change_streams(database: Database) -> bool:
    """Returns whether the server supports change streams: as a replica set or a sharded cluster."""
    hello = await _hello(database)
    return "setName" in hello or hello.get("msg") == "isdbgrid"


async def is_sharded(database: Database) -> bool:
    """Returns whether the server is a ``mongos``."""
    return bool((await _hello(database)).get("msg") == "isdbgrid")


async def server_time(database: Database) -> datetime:
    """Returns the time by the server's clock; for a mock, by that of this process."""
    return aware((await _hello(database)).get("localTime") or datetime.now(UTC))


def mark_type(collection: Collection) -> Any:
    """Returns the operand with which ``$currentDate`` stores a :data:`Mark`."""
    return True if is_mock(collection) else {"$type": "timestamp"}


def first_mark(collection: Collection) -> Mark:
    """Returns a mark before all others."""
    return EPOCH if is_mock(collection) else FIRST_MARK


def earlier(mark: Mark, seconds: int) -> Mark:
    """Returns the mark of a moment some seconds before."""
    if isinstance(mark, Timestamp):
        return Timestamp(max(mark.time - seconds, 0), 0)
    return mark - timedelta(seconds=seconds)


async def cluster_time(database: Database) -> Mark:
    """Returns a moment up to which a majority read that begins now shows every write.

    Later writes get a later mark, except for writes in progress.
    """
    hello = await _hello(database)
    if not hello:
        return datetime.now(UTC)
    # A mongos reports the latest time it knows, and sends it to the shards in the next query.
    committed: Timestamp | None = _majority_time(hello) or hello.get("operationTime")
    return committed or Timestamp(int(aware(hello["localTime"]).timestamp()), 0)


async def _hello(database: Database) -> dict[str, Any]:
    """Returns the description of the server, which is empty for a mock."""
    # https://www.mongodb.com/docs/manual/reference/command/hello/
    try:
        hello: dict[str, Any] = await database.client.admin.command("hello")
    except NotImplementedError:
        return {}
    return hello


def _majority_time(hello: Mapping[str, Any]) -> Any:
    return hello.get("lastWrite", {}).get("majorityOpTime", {}).get("ts")


def _majority_find(**concern: Any) -> dict[str, Any]:
    """Returns a command that is a cheap majority read."""
    read = {"find": "messages", "limit": 1, "singleBatch": True, "projection": {"_id": 1}}
    return {**read, "readConcern": {"level": "majority", **concern}}


async def takes_time(database: Database, time: Timestamp | None) -> bool:
    """Returns whether the server accepts ``afterClusterTime``; some compatible servers do not."""
    if time is None:
        return False
    try:
        await database.command(_majority_find(afterClusterTime=time))
    except OperationFailure as error:
        if is_transient(error):
            raise
        return False
    return True


async def committed_time(database: Database) -> Timestamp | None:
    """Returns the time of the last majority-committed write, if the server reports it.

    A mongos does not report the time of its shards. There it is that of a majority read, which is
    behind the clock of a busy shard if another one is idle.

    Raises:
        PyMongoError: The server could not be reached.
    """
    committed = _majority_time(await _hello(database))
    if committed is None:
        committed = (await database.command(_majority_find())).get("operationTime")
    return committed if isinstance(committed, Timestamp) else None
