"""Serves the chat, with an embedded server if no MongoDB is given."""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

import uvicorn

from converse_mongo.embedded import EmbeddedServer
from converse_mongo.tools.chat.app import CLOSE_SECONDS, GRACE_SECONDS, create_app
from converse_mongo.tools.chat.hosts import loopback_hosts
from converse_mongo.tools.chat.settings import Settings

CLIENT_SECONDS = 3
"""The time that open connections have when it ends."""
EXIT_SECONDS = CLIENT_SECONDS + GRACE_SECONDS + CLOSE_SECONDS + 2
"""The time from the signal after which the process has ended, whatever it waits for."""
THREAD_SECONDS = 1
"""The time that threads have when all is closed. Those of Motor wait for a server that hangs."""

logger = logging.getLogger(__name__)


def serve(
    uri: str | None,
    host: str,
    port: int,
    *,
    database: str | None = None,
    data: Path | None = None,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """Serves the chat until it is interrupted; then it ends within ``EXIT_SECONDS``.

    Args:
        uri: The MongoDB replica set; without one, an embedded server runs for as long as this does.
        host: The address to listen on.
        port: The port to listen on.
        database: The name of the database; by default CONVERSE_DATABASE.
        data: The data directory of the embedded server; by default its data is in memory.
        allowed_hosts: The names under which it is served, beside those of the loopback interface
            and those in CHAT_HOSTS. On other interfaces, without any, it is served under all.

    Raises:
        ConverseError: The embedded server is not installed or did not start, or a name is invalid.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s:     %(name)s: %(message)s")
    with ExitStack() as stack:
        last_resort = LastResort()
        stack.callback(last_resort.hasten)
        if not uri:
            server = stack.enter_context(EmbeddedServer(data))
            last_resort.clean_up = server.kill
            # Retryable writes slow SecantusDB down after some thousands of them. The library
            # retries by itself.
            uri = f"{server.uri}?retryWrites=false"
        hosts = *loopback_hosts(host, port), *allowed_hosts
        config = uvicorn.Config(
            create_app(Settings.from_environment(uri, database, hosts)),
            host=host,
            port=port,
            log_level="info",
            access_log=False,
            timeout_graceful_shutdown=CLIENT_SECONDS,
        )
        Server(config, last_resort).run()


class LastResort:
    """Ends the process if it does not end by itself in time.

    The interpreter waits for threads, and those of Motor wait for a server that hangs.

    Attributes:
        clean_up: Called before that.
    """

    def __init__(self) -> None:
        self.clean_up: Callable[[], None] = lambda: None
        self._code: int | None = None

    def begin(self, code: int) -> None:
        """Gives the process ``EXIT_SECONDS`` from the first call on.

        Args:
            code: The exit code.
        """
        if self._code is None:
            self._code = code
            self._exit_after(EXIT_SECONDS)

    def hasten(self) -> None:
        """Gives it ``THREAD_SECONDS``, if it is about to end."""
        if self._code is not None:
            self._exit_after(THREAD_SECONDS)

    def _exit_after(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._exit)
        timer.daemon = True  # it must not be waited for itself
        timer.start()

    def _exit(self) -> None:
        with suppress(Exception):
            self.clean_up()
        os._exit(self._code or 0)


class Server(uvicorn.Server):
    """Ends in time."""

    def __init__(self, config: uvicorn.Config, last_resort: LastResort) -> None:
        super().__init__(config)
        self._last_resort = last_resort

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to end."""
        self._last_resort.begin(128 + sig)
        super().handle_exit(sig, frame)
