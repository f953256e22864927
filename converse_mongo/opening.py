"""Opening: connects, wires the parts of a facade, and closes them."""

import asyncio
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from functools import partial
from typing import Any, Literal, get_args
from urllib.parse import parse_qs, urlsplit

from pymongo.errors import PyMongoError

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.documents.pages import MessageChunkPage
from converse_mongo.documents.values import MessageValue
from converse_mongo.domain.errors import (
    ConfigurationError,
    InvalidInputError,
    StoreUnavailableError,
)
from converse_mongo.domain.events import FinalEvent
from converse_mongo.domain.telemetry import Sources, Telemetry
from converse_mongo.domain.types import Retention
from converse_mongo.domain.validation import check_retention, check_seconds
from converse_mongo.driver import (
    change_streams,
    clients,
    closing,
    collections,
    failures,
    odm,
    servers,
)
from converse_mongo.driver.deadlines import bounded
from converse_mongo.store import Options, Store, Transaction, store_now
from converse_mongo.store.collections import PAGES
from converse_mongo.store.handlers import Handlers
from converse_mongo.store.indexes import build_missing
from converse_mongo.store.reads import Reader
from converse_mongo.watching import changes
from converse_mongo.watching.hub import Demand, Hub

SOCKET_TIMEOUT_MS = 30_000
OPEN_SECONDS = 30.0
"""The time limit of binding the documents, once a server was found."""
# PyMongo's words, and those of asyncio, which Motor leaves it to.
_OTHER_LOOP = re.compile("event loop|different loop", re.IGNORECASE)


class Setup:
    """The checked options of a facade, and how it is opened with them: see ``Converse``.

    Attributes:
        handlers: The handlers of events.
        poll_interval: Seconds between two polls of the watched messages.

    Raises:
        ConfigurationError: An option is invalid.
    """

    def __init__(
        self,
        client: "str | clients.Client",
        database: str | None,
        models: tuple[type[Message], type[Conversation]],
        *,
        create_indexes: bool,
        change_streams: bool,
        poll_interval: float,
        check_interval: float,
        stream_from: Literal["primary", "secondary"],
        retry_timeout: float,
        lease: float,
        idle_timeout: float | None,
        retention: Retention,
        sweep_interval: float | None,
        client_options: Mapping[str, Any] | None,
        telemetry: Telemetry | None,
    ) -> None:
        try:
            self.poll_interval = check_seconds(poll_interval, "poll_interval")
            self._check_interval = check_seconds(check_interval, "check_interval")
            if sweep_interval is not None:
                check_seconds(sweep_interval, "sweep_interval")
            if idle_timeout is not None:
                check_seconds(idle_timeout, "idle_timeout")
            self._options = Options(
                retry_timeout=check_seconds(retry_timeout, "retry_timeout"),
                lease=check_seconds(lease, "lease"),
                idle_timeout=idle_timeout,
                retention=check_retention(retention),
            )
        except InvalidInputError as error:
            raise ConfigurationError(str(error)) from error
        for model, base in zip(models, (Message, Conversation), strict=True):
            if not (isinstance(model, type) and issubclass(model, base)):
                raise ConfigurationError(f"{model!r} is not a subclass of {base.__name__}.")
        if stream_from not in ("primary", "secondary"):
            raise ConfigurationError(
                f"stream_from must be 'primary' or 'secondary', got {stream_from!r}."
            )
        if not isinstance(telemetry, Telemetry | None):
            raise ConfigurationError(
                f"telemetry={telemetry!r}: pass a converse_mongo.telemetry.OpenTelemetry()."
            )
        self._telemetry = telemetry
        self._stream_from = stream_from
        self._given = client
        self._database_name = database
        self._models = models
        self._create_indexes = create_indexes
        self._change_streams = change_streams
        self._sweep_interval = sweep_interval
        self._client_options = dict(client_options or {})
        self.handlers = Handlers()

    async def open(self) -> "Parts":
        """Connects, binds the documents, builds the indexes and wires the parts.

        Raises:
            ConfigurationError: The client does not match the installed Beanie, no database was
                named, or it belongs to another event loop.
            StoreUnavailableError: MongoDB cannot be reached, or an index cannot be built now.
            PyMongoError: MongoDB refused an index, or the credentials.
        """
        owns_client = isinstance(self._given, str)
        client = self._open_client() if owns_client else self._given
        try:
            database = clients.open_database(client, self._database_name)
            message, conversation = (odm.bound_subclass(model) for model in self._models)
            page, value = map(odm.bound_subclass, (MessageChunkPage, MessageValue))
            message.conversation_model = conversation
            conversation.message_model = message
            models = [message, conversation, page, value]
            # This selects a server, with the timeout of the client.
            replicated = await servers.has_change_streams(database)
            sharded = replicated and await servers.is_sharded(database)
            await bounded(OPEN_SECONDS, odm.bind_documents, database, models)
            if self._create_indexes:
                await self.build_indexes(models)
        except BaseException as error:
            if owns_client:
                await clients.close_client(client)
            if isinstance(error, RuntimeError) and _OTHER_LOOP.search(str(error)):
                raise ConfigurationError(
                    f"This client belongs to another event loop ({error}): make one for each loop."
                ) from error
            if isinstance(error, PyMongoError) and failures.is_transient(error):
                raise StoreUnavailableError(
                    f"MongoDB cannot be reached ({failures.reason(error)}): check that it runs, "
                    "and the URI."
                ) from error
            raise
        # Watchers show only what no failover can roll back, as a change stream does (which has no
        # other read concern). A standalone server has no majority.
        store = Store(
            collections.collection_of(message),
            collections.collection_of(conversation),
            committed=collections.collection_of(message, majority=replicated),
            handlers=self.handlers,
            options=self._options,
        )
        message.bound_store = conversation.bound_store = store
        hub = self._wire_hub(store, conversation, replicated=replicated, sharded=sharded)
        if self._telemetry is not None:
            database_name = str(store.messages.database.name)
            store.probe = self._telemetry.attach(
                Sources(database_name, store.jobs.statistics, hub.statistics)
            )
        sweeping = None
        if self._sweep_interval is not None:
            sweep = store.recovery.sweep(self._sweep_interval)
            sweeping = asyncio.create_task(sweep, name="converse_mongo-sweep", context=Context())
        parts = Parts(client if owns_client else None, models, store, hub, sweeping)
        if store.probe is not None:
            ended = store.probe.ended
            parts.on_close = [self.handlers.on(each, ended) for each in get_args(FinalEvent)]
            parts.on_close.append(store.probe.close)
        store.check_home = parts.check_home
        return parts

    def _wire_hub(
        self, store: Store, conversation: type[Conversation], *, replicated: bool, sharded: bool
    ) -> Hub:
        messages = store.committed
        reader = Reader(
            messages,
            collections.collection_of(conversation, majority=replicated),
            collections.sibling(messages, PAGES),
            local=store.reader if replicated else None,
        )
        names = reader.messages.name, reader.conversations.name
        open_streams = {
            demand: partial(
                change_streams.open_change_stream,
                reader.messages.database,
                pipeline(*names),
                reader.begin_times,
                secondary=self._stream_from == "secondary",
            )
            for demand, pipeline in (
                (Demand.WRITERS, changes.writers_pipeline),
                (Demand.WORKERS, changes.workers_pipeline),
                (Demand.WATCHERS, changes.pipeline),
            )
        }
        streams = replicated and self._change_streams
        return Hub(
            reader,
            open_streams.pop(Demand.WATCHERS) if streams else None,
            store,
            poll_interval=self.poll_interval,
            check_interval=self._check_interval,
            narrow_streams=open_streams,
            sharded=sharded,
        )

    def _open_client(self) -> "clients.Client":
        # A silent connection would block forever: drivers have no limit by default.
        try:
            names = {*parse_qs(urlsplit(self._given).query), *self._client_options}
            bounded = not {"sockettimeoutms", "timeoutms"}.isdisjoint(map(str.lower, names))
            bound = {} if bounded else {"socketTimeoutMS": SOCKET_TIMEOUT_MS}
            return clients.open_client(
                self._given, {"appname": "converse_mongo", **bound, **self._client_options}
            )
        except (PyMongoError, ValueError, TypeError) as error:
            reason = clients.safe_reason(error, self._given)
            # The text of the error itself may have the password in it.
            cause = error if reason == str(error) else None
            raise ConfigurationError(f"This URI or an option is not valid: {reason}") from cause

    async def build_indexes(self, models: Sequence[type[Any]]) -> None:
        """Builds the indexes of the documents that are missing.

        Raises:
            StoreUnavailableError: MongoDB cannot be reached, or an index cannot be built now.
            PyMongoError: MongoDB refused.
        """
        for model in models:
            await build_missing(
                collections.collection_of(model),
                odm.indexes_of(model),
                retry_timeout=self._options.retry_timeout,
            )


class Parts:
    """The parts of an open facade."""

    def __init__(
        self,
        own_client: "clients.Client | None",
        models: list[type[Any]],
        store: Store,
        hub: Hub,
        sweeping: asyncio.Task[None] | None,
    ) -> None:
        self.own_client = own_client
        self.models = models
        self.message: type[Message] = models[0]
        self.conversation: type[Conversation] = models[1]
        self.page: type[MessageChunkPage] = models[2]
        self.value: type[MessageValue] = models[3]
        self._store = store
        self.hub = hub
        self.sweeping = sweeping
        self.on_close: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()

    @property
    def is_lost(self) -> bool:
        """True if it cannot run any more: its loop is closed, or this is a forked process."""
        return self._process != os.getpid() or self._loop.is_closed()

    def check_home(self) -> None:
        """Checks that this is the event loop that it was opened in.

        Raises:
            ConfigurationError: It is not.
        """
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:  # synchronous code
            here = True
        if here and self._process == os.getpid():
            return
        where = "in another event loop"
        if self._process != os.getpid():
            where = "in another process, before a fork"
        elif self._loop.is_closed():
            where = "in an event loop that is closed"
        raise ConfigurationError(
            f"This Converse was opened {where}. Use one Converse per event loop: open it in the "
            "loop that uses it, and await aclose() before that loop ends. If it was left open, "
            "await aclose() here; then open() works again."
        )

    async def abandon(self) -> None:
        """Releases the parts, which can neither run nor be closed properly."""
        self._call_on_close()
        odm.release_documents(self.models)
        if self.own_client is not None and self._process == os.getpid():
            await clients.abandon_client(self.own_client)

    def _call_on_close(self) -> None:
        for call in self.on_close:
            call()

    @property
    def own_store(self) -> Store:
        """The store, also in a transaction."""
        return self._store

    @property
    def store(self) -> Store:
        """The store, or that of the transaction of the caller."""
        return store_now(self._store)

    def transaction(self) -> Transaction:
        """Makes a transaction of this store."""
        return Transaction(self._store)

    async def aclose(self, timeout: float) -> None:  # noqa: ASYNC109 - writers then give up
        """Ends what runs in the background, then the writers and the watchers, and lets go.

        Args:
            timeout: Seconds for running writers to store their text.
        """
        self._store.closing = True
        background = self.sweeping, self._store.recovery.tending, *self._store.background
        tasks = {task for task in background if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=closing.CLOSE_SECONDS)
        try:
            try:
                await self._store.aclose(timeout)
            finally:
                await self.hub.aclose()
        finally:
            self._call_on_close()
            if self.own_client is not None:
                await clients.close_client(self.own_client)
            odm.release_documents(self.models)
