"""Collections of either driver, with their read and write concerns."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

from beanie import Document
from bson import DatetimeConversion, Timestamp
from pymongo import ReadPreference
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from converse_mongo.driver.failures import is_transient
from converse_mongo.driver.installed import SPEAKS_MOTOR

Collection: TypeAlias = Any
"""The asynchronous collection of either driver, for the calls that both have in common."""

LINEARIZABLE_MS = 5000


def collection_of(model: type[Document], *, majority: bool = False) -> Collection:
    """Returns the collection that a document class is bound to, read from the primary.

    Args:
        model: The class.
        majority: True to read only what no failover can roll back; else the state of the primary,
            including the write that made a repeated write mismatch.

    Raises:
        beanie.exceptions.CollectionWasNotInitialized: The class is not bound.
    """
    collection: Collection = (
        model.get_motor_collection() if SPEAKS_MOTOR else cast(Any, model).get_pymongo_collection()
    )
    return from_primary(collection, majority=majority)


def from_primary(collection: Collection, *, majority: bool = False) -> Collection:
    """Returns a collection, read from the primary; see :func:`collection_of`."""
    if is_mock(collection):  # its with_options forgets that it is asynchronous
        return collection
    return collection.with_options(
        codec_options=collection.codec_options.with_options(
            tz_aware=True,
            # A date of another application that Python cannot represent must not prevent reading
            # other documents.
            datetime_conversion=DatetimeConversion.DATETIME_AUTO,
        ),
        read_preference=ReadPreference.PRIMARY,
        read_concern=ReadConcern("majority" if majority else "local"),
    )


class _AfterClusterTime(ReadConcern):
    """The read concern "majority", of a snapshot that is not older than a time.

    The server waits for it. Drivers send the same from causally consistent sessions, see
    https://www.mongodb.com/docs/manual/reference/read-concern/#afterclustertime.
    """

    def __init__(self, time: Timestamp) -> None:
        super().__init__("majority")
        self._time = time

    @property
    def document(self) -> dict[str, Any]:
        return {**super().document, "afterClusterTime": self._time}


def read_after(collection: Collection, time: Timestamp) -> Collection:
    """Returns the collection with majority reads that show everything committed at ``time``."""
    return collection.with_options(read_concern=_AfterClusterTime(time))


async def read_linearizable(collection: Collection, key: Mapping[str, Any]) -> bool:
    """Makes a read that only a primary with a majority can answer.

    Returns:
        ``False`` if the server refuses such a read.

    Raises:
        PyMongoError: It was not answered in time.
    """
    confirmed = collection.with_options(read_concern=ReadConcern("linearizable"))
    try:
        await confirmed.find_one(key, {"_id": 1}, max_time_ms=LINEARIZABLE_MS)
    except OperationFailure as error:
        if is_transient(error):
            raise
        return False
    return True


async def aggregate(
    collection: Collection, pipeline: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Runs a pipeline and returns all that it finds."""
    cursor = collection.aggregate(list(pipeline))
    if inspect.isawaitable(cursor):  # PyMongo's
        cursor = await cursor
    found: list[dict[str, Any]] = await cursor.to_list(None)
    return found


def majority_of(collection: Collection) -> Collection:
    """Returns the collection, read and written so that no failover rolls anything back."""
    if is_mock(collection):
        return collection
    return collection.with_options(
        read_concern=ReadConcern("majority"),
        write_concern=WriteConcern(**{**collection.write_concern.document, "w": "majority"}),
    )


def sibling(collection: Collection, name: str) -> Collection:
    """Returns another collection of the same database, read and written in the same way.

    Args:
        collection: One from :func:`collection_of` or :func:`majority_of`.
        name: The name of the other.
    """
    if is_mock(collection):
        return collection.database[name]
    return collection.database.get_collection(
        name,
        codec_options=collection.codec_options,
        read_preference=collection.read_preference,
        read_concern=collection.read_concern,
        write_concern=collection.write_concern,
    )


def is_mock(collection: Collection) -> bool:
    """Returns whether the collection is one of mongomock-motor's."""
    # mongomock_motor's classes imitate Motor's; only their bases differ.
    return any(base.__module__.startswith("mongomock") for base in type(collection).__mro__)
