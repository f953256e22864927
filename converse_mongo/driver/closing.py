"""Closing: bounded in time, since a server may hang."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("converse_mongo")

CLOSE_SECONDS = 2.0
"""The time for which closing waits for a server that may hang."""


async def in_thread(function: Callable[[], object], seconds: float) -> None:
    """Calls a function that may block forever, and waits for it for at most ``seconds``.

    The thread is a daemon, which does not delay the exit of the interpreter, unlike those of an
    executor. An error is only logged.
    """
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def call() -> None:
        try:
            function()
        except Exception:
            logger.debug("Closing failed", exc_info=True)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=call, name="converse_mongo-close", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await done.wait()
