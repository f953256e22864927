"""Closing what may hang: bounded in time."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

__all__ = ["CLOSE_SECONDS", "in_thread"]

logger = logging.getLogger("converse_mongo")

CLOSE_SECONDS = 2.0
"""How long closing waits for a server that may hang."""


async def in_thread(function: Callable[[], object], seconds: float) -> None:
    """Calls a function that may block for ever, and waits for it no longer than ``seconds``.

    The thread is a daemon, which unlike those of an executor does not hold up the interpreter's
    exit; an error is of no interest to who closes.
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
