"""Serves the chat, with a MongoDB of its own where there is none."""

import logging
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import uvicorn

from converse_mongo.embedded import EmbeddedServer

from .app import create_app
from .settings import Settings

__all__ = ["serve"]

TERMINATED = 128 + signal.SIGTERM
SHUTDOWN_SECONDS = 10


def serve(
    uri: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    database: str | None = None,
    data: Path | None = None,
) -> None:
    """Serves the chat until it is interrupted.

    Args:
        uri: The MongoDB replica set; by default CONVERSE_URI. Without either an embedded server
            runs for as long as this does.
        host: The address to listen on.
        port: The port to listen on.
        database: The name of the database; by default CONVERSE_DATABASE.
        data: Where the embedded server keeps what it stores; by default it is gone at the end.

    Raises:
        ConverseError: There is no URI, and the embedded server is not installed or did not start.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s:     %(name)s: %(message)s")
    # Uvicorn passes the signal on when it has shut down; this lets the embedded server end, too.
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        with ExitStack() as stack:
            found = uri or os.environ.get("CONVERSE_URI")
            if not found:
                if data is not None:
                    data.mkdir(parents=True, exist_ok=True)
                server = stack.enter_context(EmbeddedServer(data))
                # With retryable writes it gets slow after some thousand of them; the library
                # tries again by itself.
                found = f"{server.uri}?retryWrites=false"
            app = create_app(Settings.from_environment(found, database))
            uvicorn.run(
                app,
                host=host,
                port=port,
                log_level="info",
                access_log=False,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(TERMINATED)
