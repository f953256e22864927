"""Clients of either driver: opened, checked and closed."""

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import Mapping
from contextvars import Context
from importlib.metadata import version
from typing import Any, TypeAlias

from pymongo import AsyncMongoClient, ReadPreference
from pymongo.errors import PyMongoError

from converse_mongo.domain.errors import ConfigurationError
from converse_mongo.driver.closing import CLOSE_SECONDS, in_thread
from converse_mongo.driver.installed import SPEAKS_MOTOR, install_command

logger = logging.getLogger("converse_mongo")

Client: TypeAlias = Any
"""A ``motor.motor_asyncio.AsyncIOMotorClient``, its mongomock twin, or an ``AsyncMongoClient``."""

Database: TypeAlias = Any

_SEPARATORS = re.compile(r"[:/?#@,&=%\[\]]+")
_SECRET_OPTION = re.compile("password|properties|token|secret", re.IGNORECASE)


def safe_reason(error: Exception, uri: str) -> str:
    """Returns the text of an error of a URI, unless it repeats what may be a password in it.

    A password that is not percent-encoded may be taken for a host, a port or a database.
    """
    text, head, query = str(error), *_authority_and_query(uri)
    secrets = _SEPARATORS.split(head.partition(":")[2])
    for option in query.split("&"):
        name, _, value = option.partition("=")
        if _SECRET_OPTION.search(name):
            secrets += [value, *_SEPARATORS.split(value)]
    if any(secret in text for secret in filter(None, secrets)):
        return f"{type(error).__name__}; a user name and a password must be percent-encoded"
    return text


def _authority_and_query(uri: str) -> tuple[str, str]:
    """Returns all that may be a user name and a password, and the options."""
    rest = uri.partition("://")[2] or uri
    head, at, tail = rest.rpartition("@")
    return head if at else rest.partition("?")[0], tail.partition("?")[2]


def open_client(uri: str, options: Mapping[str, Any]) -> Client:
    """Makes a client of the driver that the installed Beanie uses."""
    if SPEAKS_MOTOR:
        from motor.motor_asyncio import AsyncIOMotorClient

        return AsyncIOMotorClient(uri, **options)
    return AsyncMongoClient(uri, **options)


_closing: set[asyncio.Task[None]] = set()


def _closed(task: asyncio.Task[None]) -> None:
    _closing.discard(task)
    if not task.cancelled() and task.exception() is not None:
        logger.debug("Closing failed", exc_info=task.exception())


async def close_client(client: Client) -> None:
    """Closes a client of either driver, within a few seconds even if the server hangs."""
    if isinstance(client, AsyncMongoClient):
        # Not cancelled after the timeout: it frees connections once the server is back, or gone.
        closing = asyncio.create_task(
            client.close(), name="converse_mongo-close-client", context=Context()
        )
        _closing.add(closing)
        closing.add_done_callback(_closed)
        await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
    else:
        calls = _calls_in_flight(client)
        # Motor's close() ends its sessions on the server, and blocks until it has answered.
        await in_thread(client.close, CLOSE_SECONDS)
        _interrupt_later(calls)


def _calls_in_flight(client: Client) -> list[Any]:
    """Returns what can interrupt the calls that Motor's threads make right now.

    The driver has no public name for it. It uses them itself when a server stops to answer:
    https://github.com/mongodb/specifications/blob/master/source/connection-monitoring-and-pooling
    """
    topology = getattr(getattr(client, "delegate", None), "_topology", None)
    servers = list(getattr(topology, "_servers", {}).values())
    # As a list at once: other threads change the set.
    return [call for each in servers for call in list(getattr(each.pool, "active_contexts", ()))]


def _interrupt_later(calls: list[Any]) -> None:
    """Interrupts the calls that a server has still not answered when it was closed.

    The interpreter waits for the threads of Motor when it exits.
    """
    if not calls:
        return

    def interrupt() -> None:
        for call in calls:
            call.cancel()

    timer = threading.Timer(CLOSE_SECONDS, interrupt)
    timer.name, timer.daemon = "converse_mongo-interrupt", True
    timer.start()


async def abandon_client(client: Client) -> None:
    """Closes a client whose event loop is closed, as far as possible."""
    if not isinstance(client, AsyncMongoClient):
        await in_thread(client.close, CLOSE_SECONDS)
        return
    # Its locks and tasks belong to the other loop.
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_SECONDS):
            await client.close()


def open_database(client: Client, name: str | None) -> Database:
    """Returns the database ``name`` of ``client``, with reads from the primary and aware dates.

    From the primary, because a read that explains why a write did not match must see its state.

    Raises:
        ConfigurationError: The client is not a client, belongs to the other driver, does not
            acknowledge writes, or no database was named.
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
            "This client has the write concern w=0, under which MongoDB acknowledges no write, but "
            "converse_mongo guarantees that acknowledged text is stored. Use w='majority'."
        )
    return database


def _check_client(client: Client) -> None:
    speaks_pymongo = isinstance(client, AsyncMongoClient)
    if not speaks_pymongo and not hasattr(client, "get_io_loop"):
        raise ConfigurationError(
            f"Converse requires a MongoDB URI, a Motor client or an AsyncMongoClient, "
            f"not {type(client).__name__}."
        )
    if speaks_pymongo and SPEAKS_MOTOR:
        raise ConfigurationError(
            f"Beanie {version('beanie')} uses Motor, and this client is PyMongo's "
            "AsyncMongoClient: python -m pip install 'beanie>=2', or pass an AsyncIOMotorClient."
        )
    if not speaks_pymongo and not SPEAKS_MOTOR:
        raise ConfigurationError(
            f"Beanie {version('beanie')} uses PyMongo's AsyncMongoClient, and this client is "
            f"Motor's: {install_command('motor')}, or pass an AsyncMongoClient."
        )
