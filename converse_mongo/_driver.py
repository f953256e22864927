"""The only module that knows Motor from PyMongo Async, and Beanie 1 from Beanie 2.

Beanie 1 speaks Motor, Beanie 2 speaks PyMongo's own ``AsyncMongoClient``; which one is installed
decides the driver of this process. Everything above sees one asynchronous collection, one kind of
change feed, and document classes.
"""

import asyncio
import contextlib
import copy
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any, TypeAlias, TypeVar, cast

from beanie import Document
from beanie.odm.actions import ActionRegistry
from beanie.odm.fields import IndexModelField
from beanie.odm.utils.init import Initializer
from beanie.odm.utils.typing import get_index_attributes
from bson import DatetimeConversion, Timestamp
from pymongo import AsyncMongoClient, IndexModel, ReadPreference
from pymongo.errors import (
    ConnectionFailure,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
)
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from converse_mongo._feeds import (
    CLOSE_SECONDS,
    Change,
    ChangeFeed,
    TaskFeed,
    ThreadFeed,
    in_thread,
)
from converse_mongo._validation import EPOCH
from converse_mongo.errors import ConfigurationError

__all__ = [
    "CLOSE_SECONDS",
    "FIRST_MARK",
    "Change",
    "ChangeFeed",
    "Client",
    "Collection",
    "Database",
    "Mark",
    "SessionCollection",
    "abandon_client",
    "bind_documents",
    "bound_subclass",
    "close_client",
    "cluster_time",
    "collection_of",
    "committed_time",
    "driver_name",
    "driver_versions",
    "earlier",
    "first_mark",
    "has_change_streams",
    "indexes_of",
    "is_aborted",
    "is_mock",
    "is_sharded",
    "is_too_large",
    "is_transient",
    "majority_of",
    "mark_type",
    "open_change_feed",
    "open_client",
    "open_database",
    "read_after",
    "read_linearizable",
    "refuses_change_streams",
    "release_documents",
    "server_time",
    "sibling",
    "start_transaction",
]

logger = logging.getLogger("converse_mongo")

Client: TypeAlias = Any
"""A ``motor.motor_asyncio.AsyncIOMotorClient``, its mongomock twin, or an ``AsyncMongoClient``."""
Database: TypeAlias = Any
Collection: TypeAlias = Any
"""The asynchronous collection of either driver, where both take the same calls the same way."""
Mark: TypeAlias = Timestamp | datetime
"""A moment in the cluster's logical time, which no failover and no clock sets back; a date where
there is no cluster (a mock). The server sets it, see
https://www.mongodb.com/docs/manual/reference/operator/update/currentDate/."""
D = TypeVar("D", bound=Document)

FIRST_MARK = Timestamp(0, 0)

# https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml
_TRANSIENT_CODES = frozenset(
    # The network, and members, config servers or signing keys that are not available yet.
    {6, 7, 89, 94, 133, 145, 149, 172, 173, 174, 199, 211, 303, 317, 384, 9001, 56846, 91331}
    # No primary, an election, a shutdown.
    | {91, 95, 189, 190, 216, 333, 372, 10058, 10107, 11600, 11602, 13435, 13436}
    # Time limits and interruptions, a slow majority, a lock that was not to be had.
    | {24, 46, 50, 64, 90, 107, 134, 202, 262, 279, 281, 282, 290, 310, 355, 407, 453}
    | {11601, 46841, 10045600}
    # Conflicts with other writes, with transactions and with operations on the collection.
    | {112, 117, 215, 267, 314, 319, 338, 342, 363, 365, 371, 406, 412, 12586, 12587, 50915}
    # A router or a shard that has to refresh what it knows, and snapshots that are gone.
    | {63, 150, 239, 246, 249, 250, 272, 343, 9996, 13388}
    # A cursor that a restart took along.
    | {43, 136, 175, 237}
    # An overloaded server.
    | {208, 261, 402, 433, 449, 450, 462}
)
# Each says that the server, or the driver, takes a repeated call for worthwhile.
_TRANSIENT_LABELS = (
    "RetryableWriteError",
    "RetryableError",
    "SystemOverloadedError",
    "ResumableChangeStreamError",
)
# WriteConflict, NoSuchTransaction
_ABORTED_CODES = frozenset({112, 251})
# UnknownReplWriteConcern, UnsatisfiableWriteConcern: the set has no such members, now or later.
_REFUSED_CONCERN_CODES = frozenset({79, 100})
LINEARIZABLE_MS = 5000
_TOO_LARGE_CODES = frozenset({10334, 17419})
# What ends one change stream, while a new one can be had: a token that is of no use any more
# (260, 280, 286), an invalidation, a change of shards (222, 234, 346, 348, 351), a large event.
_LOST_STREAM_CODES = frozenset({222, 234, 260, 280, 286, 346, 348, 351, 401, 10334})

_BEANIE_SPEAKS_MOTOR = version("beanie").startswith("1.")


def driver_name() -> str:
    """``"motor"`` or ``"pymongo"``: the driver that the installed Beanie speaks."""
    return "motor" if _BEANIE_SPEAKS_MOTOR else "pymongo"


def driver_versions() -> dict[str, str]:
    """The packages between the library and the server, with their versions."""
    names = ["beanie", "pymongo", "pydantic"] + (["motor"] if _BEANIE_SPEAKS_MOTOR else [])
    return {name: version(name) for name in names}


def open_client(uri: str, options: Mapping[str, Any]) -> Client:
    """A client of the driver that the installed Beanie speaks."""
    if _BEANIE_SPEAKS_MOTOR:
        from motor.motor_asyncio import AsyncIOMotorClient

        return AsyncIOMotorClient(uri, **options)
    return AsyncMongoClient(uri, **options)


_closing: set[asyncio.Task[None]] = set()


def _closed(task: asyncio.Task[None]) -> None:
    _closing.discard(task)
    if not task.cancelled() and task.exception() is not None:
        logger.debug("Closing failed", exc_info=task.exception())


async def close_client(client: Client) -> None:
    """Closes a client of either driver, within a few seconds also when the server hangs."""
    if isinstance(client, AsyncMongoClient):
        # Not cancelled when time is up: once the server is back, or gone, it frees the connections.
        closing = asyncio.create_task(
            client.close(), name="converse_mongo-close-client", context=Context()
        )
        _closing.add(closing)
        closing.add_done_callback(_closed)
        await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
    else:
        # Motor's close() says goodbye to the server, and blocks until it has answered.
        await in_thread(client.close, CLOSE_SECONDS)


async def abandon_client(client: Client) -> None:
    """Closes a client whose event loop is closed, as far as that goes."""
    if not isinstance(client, AsyncMongoClient):
        await in_thread(client.close, CLOSE_SECONDS)
        return
    # Its locks and tasks belong to the other loop.
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_SECONDS):
            await client.close()


def open_database(client: Client, name: str | None) -> Database:
    """The database ``name`` of ``client``, read from the primary, with dates that know their zone.

    The primary, because a read that explains why a write did not match must see that write's truth.

    Raises:
        ConfigurationError: The client is none, is of the other driver, does not acknowledge
            writes, or no database was named.
    """
    _check_client(client)
    if name is None:
        try:
            name = client.get_default_database().name
        except PyMongoError as error:
            raise ConfigurationError(
                "No database was named: pass database=..., or a URI with a default database "
                "such as mongodb://localhost:27017/chat."
            ) from error
    options = client.codec_options.with_options(tz_aware=True)
    database = client.get_database(
        name, codec_options=options, read_preference=ReadPreference.PRIMARY
    )
    if not database.write_concern.acknowledged:
        raise ConfigurationError(
            "This client has the write concern w=0, under which no write is ever acknowledged; "
            "converse_mongo promises that acknowledged text is stored. Use w='majority'."
        )
    return database


def _check_client(client: Client) -> None:
    speaks_pymongo = isinstance(client, AsyncMongoClient)
    if not speaks_pymongo and not hasattr(client, "get_io_loop"):
        raise ConfigurationError(
            f"Converse takes a MongoDB URI, a Motor client or an AsyncMongoClient, "
            f"not {type(client).__name__}."
        )
    if speaks_pymongo and _BEANIE_SPEAKS_MOTOR:
        raise ConfigurationError(
            f"Beanie {version('beanie')} speaks Motor, and this client is PyMongo's "
            "AsyncMongoClient: install 'beanie>=2', or pass an AsyncIOMotorClient."
        )
    if not speaks_pymongo and not _BEANIE_SPEAKS_MOTOR:
        raise ConfigurationError(
            f"Beanie {version('beanie')} speaks PyMongo's AsyncMongoClient, and this client is "
            "Motor's: install 'converse-mongo[motor]', or pass an AsyncMongoClient."
        )


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


def refuses_change_streams(error: BaseException) -> bool:
    """Whether ``error`` means that a new change stream would be refused as this one was.

    Rights, the topology, the tier of a hosted service or an API version forbid it. Any of these may
    change, but not within seconds.
    """
    return (
        isinstance(error, PyMongoError)
        and not is_transient(error)
        and not error.has_error_label("NonResumableChangeStreamError")
        and not (isinstance(error, OperationFailure) and error.code in _LOST_STREAM_CODES)
    )


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a moment later: the network, a failover, a slow majority.

    A write that raised so may have been applied or not. What ended a transaction is not transient:
    the call must not be repeated, but the transaction may be; see :func:`is_aborted`.
    """
    if not isinstance(error, PyMongoError) or error.has_error_label("TransientTransactionError"):
        return False
    if any(error.has_error_label(label) for label in _TRANSIENT_LABELS):
        return True
    if isinstance(error, WriteConcernError):
        return error.code not in _REFUSED_CONCERN_CODES
    if isinstance(error, ConnectionFailure):
        return True
    return isinstance(error, OperationFailure) and error.code in _TRANSIENT_CODES


def is_too_large(error: BaseException) -> bool:
    """Whether ``error`` means that a document would pass MongoDB's limit of 16 MiB."""
    return isinstance(error, OperationFailure) and error.code in _TOO_LARGE_CODES


# Documents


def bound_subclass(model: type[D], **attributes: Any) -> type[D]:
    """A subclass of ``model`` that can be bound to a database of its own.

    Beanie binds a class to one database for the whole process, and replaces its class attributes by
    query expressions when it does so; pydantic then takes those for the defaults of every field
    that a subclass inherits. The fields of ``model`` itself are untouched, so they are put back.
    """
    namespace = {
        "__module__": model.__module__,
        "__qualname__": model.__qualname__,
        "__doc__": model.__doc__,
        **attributes,
    }
    metaclass: Any = type(model)
    bound: type[D] = metaclass(model.__name__, (model,), namespace)
    for name, field in model.model_fields.items():
        bound.model_fields[name] = copy.copy(field)
    bound.model_rebuild(force=True)
    return bound


async def bind_documents(database: Database, models: Sequence[type[Document]]) -> None:
    """Binds ``models`` to ``database``, and only them; makes no indexes.

    ``init_beanie`` would bind their parents too, and so move a class that the application has bound
    to another database; parents that count as done are left alone.
    """
    initializer = Initializer(database=database, document_models=list(models), skip_indexes=True)
    for model in models:
        initializer.inited_classes.extend(
            parent for parent in model.__mro__[1:] if issubclass(parent, Document)
        )
    await initializer


def indexes_of(model: type[Document]) -> list[IndexModel]:
    """The indexes that Beanie would make for a bound class: of its settings and of its fields."""
    fields = [
        IndexModelField(IndexModel([(field.alias or name, attributes[0])], **attributes[1]))
        for name, field in model.model_fields.items()
        if (attributes := get_index_attributes(field)) is not None
    ]
    of_settings = model.get_settings().indexes or []
    merged = IndexModelField.merge_indexes(fields, of_settings)
    indexes: list[IndexModel] = IndexModelField.list_to_index_model(merged)
    return indexes


def release_documents(models: Sequence[type[Document]]) -> None:
    """Lets go of classes made by :func:`bound_subclass`: Beanie's registry would keep them."""
    for model in models:
        ActionRegistry.clean_actions(model)


def collection_of(model: type[Document], *, majority: bool = False) -> Collection:
    """The collection that a document class is bound to, read as in :func:`open_database`.

    Args:
        model: The class.
        majority: Whether reads give only what no failover can take back any more; else they give
            what the primary has, every write that it just refused to repeat included.

    Raises:
        beanie.exceptions.CollectionWasNotInitialized: It is bound to none.
    """
    collection: Collection = (
        model.get_motor_collection()
        if _BEANIE_SPEAKS_MOTOR
        else cast(Any, model).get_pymongo_collection()
    )
    if is_mock(collection):  # its with_options forgets that it is asynchronous
        return collection
    return collection.with_options(
        codec_options=collection.codec_options.with_options(
            tz_aware=True,
            # A date that Python does not have, which another application wrote, must not keep the
            # documents beside it from being read.
            datetime_conversion=DatetimeConversion.DATETIME_AUTO,
        ),
        read_preference=ReadPreference.PRIMARY,
        read_concern=ReadConcern("majority" if majority else "local"),
    )


class _AfterClusterTime(ReadConcern):
    """The read concern "majority", of a snapshot that is not older than a moment.

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
    """The same collection, with majority reads that show all that was committed at ``time``."""
    return collection.with_options(read_concern=_AfterClusterTime(time))


async def read_linearizable(collection: Collection, key: Mapping[str, Any]) -> bool:
    """Reads a document in a way that only a primary can answer that a majority still follows.

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


def majority_of(collection: Collection) -> Collection:
    """The same collection, read and written so that no failover takes anything back."""
    if is_mock(collection):
        return collection
    return collection.with_options(
        read_concern=ReadConcern("majority"),
        write_concern=_majority(collection.write_concern),
    )


def _majority(concern: WriteConcern) -> WriteConcern:
    return WriteConcern(**{**concern.document, "w": "majority"})


def sibling(collection: Collection, name: str) -> Collection:
    """Another collection of the same database, read and written in the same way.

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


class SessionCollection:
    """A collection whose every call belongs to one session."""

    def __init__(self, collection: Collection, session: Any) -> None:
        self._collection = collection
        self._session = session

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._collection, name)
        if name not in _SESSION_CALLS:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            return found(*arguments, session=self._session, **options)

        return call


_SESSION_CALLS = frozenset(
    {"delete_many", "find", "find_one", "insert_one", "update_many", "update_one"}
)


async def start_transaction(database: Database) -> Any:
    """A session of the database's client, with a transaction begun.

    A transaction would inherit what the client was given. MongoDB takes only the primary, and only
    some read concerns; and it is a snapshot that the library reads in one.
    """
    session = database.client.start_session()
    if inspect.isawaitable(session):  # Motor's
        session = await session
    concern = database.write_concern
    started = session.start_transaction(
        read_concern=ReadConcern("snapshot"),
        write_concern=concern if concern.acknowledged else WriteConcern("majority"),
        read_preference=ReadPreference.PRIMARY,
    )
    if inspect.isawaitable(started):  # PyMongo's
        await started
    return session


def is_aborted(error: BaseException) -> bool:
    """Whether ``error`` means that the transaction is over, and may succeed if it is run again."""
    return isinstance(error, PyMongoError) and (
        error.has_error_label("TransientTransactionError")
        or isinstance(error, DuplicateKeyError)
        or (isinstance(error, OperationFailure) and error.code in _ABORTED_CODES)
    )


def is_mock(collection: Collection) -> bool:
    # mongomock_motor's classes pose as Motor's; only their bases tell.
    return any(base.__module__.startswith("mongomock") for base in type(collection).__mro__)


# Change feeds


async def open_change_feed(
    database: Database,
    pipeline: list[dict[str, Any]],
    begins: Callable[[Timestamp | None], None] = lambda _: None,
    *,
    secondary: bool = False,
) -> ChangeFeed:
    """Opens a change stream on ``database``.

    The stream holds every change that a majority read made from now on does not show yet. Without
    a start time the server would begin behind the last entry that it has applied, and skip what is
    applied but not yet majority-committed. Such a write would be neither in the stream nor in the
    read.

    Args:
        database: The database.
        pipeline: What to tell of each change.
        begins: Told the time behind which the stream begins; ``None`` if the server does not tell
            it, or does not take it for a read.
        secondary: Whether a secondary is asked, where there is one.

    Raises:
        PyMongoError: The server refused it or could not be reached.
    """
    committed = await committed_time(database)
    takes_time = await _takes_time(database, committed)
    # The tick behind it, as the server itself does where it is given no time: what is committed is
    # read, and a change that cannot be decoded is not delivered again.
    start = None if committed is None else Timestamp(committed.time, committed.inc + 1)
    # The server refuses to watch with the read concern "local", which a URI may ask for. Hints are
    # decoded leniently: what another application wrote must not end the stream.
    options: Any = {
        "read_concern": ReadConcern("majority"),
        "read_preference": (
            ReadPreference.SECONDARY_PREFERRED if secondary else ReadPreference.PRIMARY
        ),
        "codec_options": database.codec_options.with_options(
            datetime_conversion=DatetimeConversion.DATETIME_AUTO,
            unicode_decode_error_handler="replace",
        ),
    }
    feed: ChangeFeed = (
        ThreadFeed(database.delegate.with_options(**options), pipeline, start)
        if _BEANIE_SPEAKS_MOTOR
        else TaskFeed(database.with_options(**options), pipeline, start)
    )
    opening = asyncio.create_task(feed.open(), name="converse_mongo-open")
    try:
        # PyMongo leaves a socket behind when it is cancelled while it connects.
        await asyncio.shield(opening)
    except BaseException:
        await asyncio.wait({opening}, timeout=CLOSE_SECONDS)
        opening.cancel()
        await asyncio.shield(feed.aclose())
        raise
    begins(committed if takes_time else None)
    return feed


def _majority_find(**concern: Any) -> dict[str, Any]:
    """A command that reads as a majority read does, and finds little."""
    read = {"find": "messages", "limit": 1, "singleBatch": True, "projection": {"_id": 1}}
    return {**read, "readConcern": {"level": "majority", **concern}}


async def _takes_time(database: Database, time: Timestamp | None) -> bool:
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
