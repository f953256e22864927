"""What a server says of itself: its kind, its clock, and what a majority of its set has."""

from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from bson import Timestamp
from pymongo.errors import OperationFailure

from converse_mongo.domain.validation import EPOCH
from converse_mongo.driver.clients import Database
from converse_mongo.driver.collections import Collection, is_mock
from converse_mongo.driver.failures import is_transient

__all__ = [
    "FIRST_MARK",
    "Mark",
    "cluster_time",
    "committed_time",
    "earlier",
    "first_mark",
    "has_change_streams",
    "is_sharded",
    "mark_type",
    "server_time",
    "takes_time",
]

Mark: TypeAlias = Timestamp | datetime
"""A moment in the cluster's logical time, which no failover and no clock sets back; a date where
there is no cluster (a mock). The server sets it, see
https://www.mongodb.com/docs/manual/reference/operator/update/currentDate/."""

FIRST_MARK = Timestamp(0, 0)


async def has_change_streams(database: Database) -> bool:
    """Whether the server is one that has change streams: a replica set or a sharded cluster."""
    try:
        hello = await database.client.admin.command("hello")
    except NotImplementedError:
        return False
    return "setName" in hello or hello.get("msg") == "isdbgrid"


async def is_sharded(database: Database) -> bool:
    """Whether the server is a ``mongos``."""
    hello = await database.client.admin.command("hello")
    return bool(hello.get("msg") == "isdbgrid")


async def server_time(database: Database) -> datetime:
    """What the clock of the server says; that of this process, where it is the server (a mock)."""
    try:
        hello = await database.client.admin.command("hello")
    except NotImplementedError:
        return datetime.now(UTC)
    moment: datetime = hello["localTime"]
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def mark_type(collection: Collection) -> Any:
    """What ``$currentDate`` is to store as a :data:`Mark`."""
    return True if is_mock(collection) else {"$type": "timestamp"}


def first_mark(collection: Collection) -> Mark:
    """A mark before all others."""
    return EPOCH if is_mock(collection) else FIRST_MARK


def earlier(mark: Mark, seconds: int) -> Mark:
    """The mark of a moment some seconds before."""
    if isinstance(mark, Timestamp):
        return Timestamp(max(mark.time - seconds, 0), 0)
    return mark - timedelta(seconds=seconds)


async def cluster_time(database: Database) -> Mark:
    """A moment up to which a majority read that begins now shows every write.

    What is written later gets a later mark, but for writes that are about to be stored.
    """
    try:
        hello = await database.client.admin.command("hello")
    except NotImplementedError:
        return datetime.now(UTC)
    committed: Timestamp | None = (
        hello.get("lastWrite", {}).get("majorityOpTime", {}).get("ts")
        # A mongos says what it has heard of, and tells the shards of that in the next query.
        or hello.get("operationTime")
    )
    return committed or Timestamp(int(hello["localTime"].replace(tzinfo=UTC).timestamp()), 0)


def _majority_find(**concern: Any) -> dict[str, Any]:
    """A command that reads as a majority read does, and finds little."""
    read = {"find": "messages", "limit": 1, "singleBatch": True, "projection": {"_id": 1}}
    return {**read, "readConcern": {"level": "majority", **concern}}


async def takes_time(database: Database, time: Timestamp | None) -> bool:
    """Whether the server takes ``afterClusterTime``; some that speak MongoDB's protocol do not."""
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
    """The time of the last majority-committed write; ``None`` if the server does not tell.

    A mongos does not tell the time of its shards. There it is that of a majority read, which is
    behind the clock of a busy shard where another one is idle.

    Raises:
        PyMongoError: The server could not be reached.
    """
    # https://www.mongodb.com/docs/manual/reference/command/hello/
    hello = await database.client.admin.command("hello")
    committed = hello.get("lastWrite", {}).get("majorityOpTime", {}).get("ts")
    if committed is None:
        committed = (await database.command(_majority_find())).get("operationTime")
    return committed if isinstance(committed, Timestamp) else None
