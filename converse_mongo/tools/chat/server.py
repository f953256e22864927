"""Serves the chat, with an embedded server if no MongoDB is given."""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

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


def serve(
    uri: str | None,
    sockets: list[socket.socket],
    host: str,
    location: str,
    *,
    database: str | None = None,
    data: Path | None = None,
    allowed_hosts: Sequence[str] = (),
) -> int:
    """Serves the chat until it is interrupted; then it ends within ``EXIT_SECONDS``.

    Args:
        uri: The MongoDB replica set; without one, an embedded server runs for as long as this does.
        sockets: The sockets to listen on.
        host: The address of these sockets, as the operator named it.
        location: The place of the data, for the banner.
        database: The name of the database; by default CONVERSE_DATABASE.
        data: The data directory of the embedded server; by default its data is in memory.
        allowed_hosts: The names under which it is served, beside those of the loopback interface
            and those in CHAT_HOSTS. On other interfaces, without any, it is served under all.

    Returns:
        The exit code, which tells the signal that ended it.

    Raises:
        ConverseError: The embedded server did not start, MongoDB cannot be reached, or a setting is
            invalid.
        PyMongoError: MongoDB refused something.
    """
    with ExitStack() as stack:
        last_resort = LastResort()
        stack.callback(last_resort.hasten)
        for each in sockets:
            stack.callback(each.close)
        port = sockets[0].getsockname()[1]
        hosts = *loopback_hosts(host, port), *allowed_hosts
        settings = Settings.from_environment(uri or "", database, hosts)
        if not uri:
            server = stack.enter_context(EmbeddedServer(data))
            last_resort.clean_up = server.kill
            # Retryable writes slow SecantusDB down after some thousands of them. The library
            # retries by itself.
            settings = replace(settings, uri=f"{server.uri}?retryWrites=false")
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        model = f"{settings.model} of {settings.base_url or 'OpenAI'}"
        if not settings.api_key:
            model = "a built-in text; set OPENAI_API_KEY for a real one"
        banner = (
            f"The chat is running on {address}\n"
            f"Model: {model}\n"
            f"Data: {location}\n"
            "Press Ctrl-C to stop it.\n"
        )
        try:
            return asyncio.run(_serve(create_app(settings), sockets, last_resort, banner))
        except KeyboardInterrupt:
            last_resort.begin(128 + signal.SIGINT)
            raise


async def _serve(
    app: FastAPI, sockets: list[socket.socket], last_resort: "LastResort", banner: str
) -> int:
    config = uvicorn.Config(
        app,
        lifespan="off",  # opened here, where its errors are ours
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=CLIENT_SECONDS,
        workers=1,
    )
    server = Server(config, last_resort, banner)
    logging.getLogger("uvicorn.error").addFilter(is_no_cancellation)
    async with app.router.lifespan_context(app):
        await server.serve(sockets)
    return last_resort.code or 0


def is_no_cancellation(record: logging.LogRecord) -> bool:
    """Returns whether a record is more than the traceback of a request that was cut off."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError)


class LastResort:
    """Ends the process if it does not end by itself in time.

    The interpreter waits for threads, and those of Motor wait for a server that hangs.

    Attributes:
        clean_up: Called before that.
        code: The exit code, once it is about to end.
    """

    def __init__(self) -> None:
        self.clean_up: Callable[[], None] = lambda: None
        self.code: int | None = None

    def begin(self, code: int) -> None:
        """Gives the process ``EXIT_SECONDS`` from the first call on.

        Args:
            code: The exit code.
        """
        if self.code is None:
            self.code = code
            self._exit_after(EXIT_SECONDS)

    def hasten(self) -> None:
        """Gives it ``THREAD_SECONDS``, if it is about to end."""
        if self.code is not None:
            self._exit_after(THREAD_SECONDS)

    def _exit_after(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._exit)
        timer.daemon = True  # it must not be waited for itself
        timer.start()

    def _exit(self) -> None:
        with suppress(Exception):
            self.clean_up()
        os._exit(self.code or 0)


class Server(uvicorn.Server):
    """Shows a banner when it listens, and ends in time."""

    def __init__(self, config: uvicorn.Config, last_resort: LastResort, banner: str) -> None:
        super().__init__(config)
        self._last_resort = last_resort
        self._banner = banner

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens."""
        await super().startup(sockets)
        sys.stderr.write(self._banner)
        sys.stderr.flush()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals while it serves. Raised again later, they would cut off the closing."""
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to end."""
        self._last_resort.begin(128 + sig)
        super().handle_exit(sig, frame)
