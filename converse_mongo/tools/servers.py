"""Servers: checks whether MongoDB answers, listens on a port, and runs the embedded server."""

import socket
import sys
import warnings
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from converse_mongo.domain.errors import ConfigurationError, StoreUnavailableError
from converse_mongo.driver import clients, failures
from converse_mongo.embedded import REPLICA_SET, EmbeddedServer, EmbeddedServerError

SELECTION_SECONDS = 3.0
"""The time that MongoDB has to answer: a command that cannot start says so within 6 seconds."""
CONNECTION_SECONDS = 2.5
"""Less, so that the reason is known by then."""

PATIENCE: dict[str, Any] = {
    "serverSelectionTimeoutMS": int(SELECTION_SECONDS * 1000),
    "connectTimeoutMS": int(CONNECTION_SECONDS * 1000),
}
"""The options of a client that finds its server in this time."""


def check_scheme(uri: str) -> None:
    """Checks that a URI is one of MongoDB; the driver takes any other text for a host.

    Raises:
        ConfigurationError: It is not.
    """
    if not uri.startswith(("mongodb://", "mongodb+srv://")):
        raise ConfigurationError(
            "This URI is not valid: it must begin with mongodb:// or mongodb+srv://."
        )


def check_server(uri: str) -> None:
    """Checks that MongoDB answers, before more is imported and started.

    Raises:
        ConfigurationError: The URI is not valid, or MongoDB refuses its user.
        StoreUnavailableError: MongoDB does not answer within ``SELECTION_SECONDS``.
    """
    check_scheme(uri)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of options; the client of the command has them, too
            client: MongoClient[dict[str, object]] = MongoClient(
                uri,
                appname="converse-mongo",
                socketTimeoutMS=int(SELECTION_SECONDS * 1000),
                **PATIENCE,
            )
    except (PyMongoError, ValueError, TypeError) as error:
        reason = clients.safe_reason(error, uri)
        raise ConfigurationError(f"This URI or an option is not valid: {reason}") from error
    with client:
        try:
            client.admin.command("ping")
        except PyMongoError as error:
            if not failures.is_transient(error):
                raise
            raise StoreUnavailableError(
                f"MongoDB cannot be reached ({failures.reason(error)}): check that it runs, and "
                "the URI."
            ) from error


def location(uri: str | None, data: Path | None) -> str:
    """Returns where the data is: at the hosts of a URI, without its password, or in a directory."""
    if uri is None:
        return f"in {data}" if data else "in memory, gone when this ends; --data DIRECTORY keeps it"
    authority = uri.partition("://")[2].rpartition("@")[2]
    return f"at {authority.partition('/')[0].partition('?')[0]}"


def listen(host: str, port: int) -> list[socket.socket]:
    """Listens on all addresses of a host.

    Raises:
        ConfigurationError: The host is unknown, or the port cannot be used there.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((each[0], each[4]) for each in found):
            if port == 0 and sockets:  # one address: another one would get another port
                break
            sockets.append(socket.create_server(address, family=family, backlog=2048))
    except (OSError, UnicodeError) as error:
        for each in sockets:
            each.close()
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while ")[0]
        raise ConfigurationError(
            f"The port {port} of {host} cannot be used: {reason}. Pass another --port or --host."
        ) from error
    return sockets


def run_embedded(data: Path | None, port: int) -> int:
    """Runs the embedded server until a signal ends this command.

    Raises:
        EmbeddedServerError: It did not start, or ended by itself.
    """
    with EmbeddedServer(data, port=port or None) as server:
        sys.stdout.write(
            f"The embedded server is running on "
            f"mongodb://localhost:{server.port}/?replicaSet={REPLICA_SET}\n"
            f"Data: {location(None, data)}\n"
            "For trying and testing only. Press Ctrl-C to stop it.\n"
        )
        sys.stdout.flush()
        server.wait()
    raise EmbeddedServerError("The embedded server has ended.")
