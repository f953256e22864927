"""Serves the chat, with an embedded server if no MongoDB is given."""

import logging
from contextlib import ExitStack
from pathlib import Path

import uvicorn

from converse_mongo.embedded import EmbeddedServer
from converse_mongo.tools.chat.app import create_app
from converse_mongo.tools.chat.settings import Settings

SHUTDOWN_SECONDS = 10


def serve(
    uri: str | None, host: str, port: int, *, database: str | None = None, data: Path | None = None
) -> None:
    """Serves the chat until it is interrupted.

    Args:
        uri: The MongoDB replica set; without one, an embedded server runs for as long as this does.
        host: The address to listen on.
        port: The port to listen on.
        database: The name of the database; by default CONVERSE_DATABASE.
        data: The data directory of the embedded server; by default its data is in memory.

    Raises:
        ConverseError: The embedded server is not installed or did not start.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s:     %(name)s: %(message)s")
    with ExitStack() as stack:
        if not uri:
            if data is not None:
                data.mkdir(parents=True, exist_ok=True)
            server = stack.enter_context(EmbeddedServer(data))
            # Retryable writes slow SecantusDB down after some thousands of them. The library
            # retries by itself.
            uri = f"{server.uri}?retryWrites=false"
        uvicorn.run(
            create_app(Settings.from_environment(uri, database)),
            host=host,
            port=port,
            log_level="info",
            access_log=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
