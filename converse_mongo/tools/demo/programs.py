"""What the two child programs, writer and viewer, have in common."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from pymongo.errors import PyMongoError

from converse_mongo.converse import Converse
from converse_mongo.domain.errors import ConverseError
from converse_mongo.tools.demo.reports import Broken, tell

__all__ = ["URI_VARIABLE", "converse_from_environment", "run_program"]

URI_VARIABLE = "CONVERSE_URI"
"""The environment hands the URI on: it may hold a password, and every user sees command lines."""


def converse_from_environment(database: str) -> Converse:
    """A facade on the server that the parent chose, which has made the indexes."""
    return Converse(os.environ[URI_VARIABLE], database=database, create_indexes=False)


def run_program(main: Coroutine[Any, Any, None]) -> None:
    """Runs ``main`` as the whole of a child process, and ends it.

    SIGTERM cancels it, so that it can clean up. An error is reported to the parent. A parent that
    is gone takes its children with it: nothing can be told any more.
    """
    try:
        asyncio.run(_with_sigterm(main))
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
    except BrokenPipeError:
        os._exit(1)  # an orderly exit would try to flush what nobody reads
    except (ConverseError, PyMongoError) as error:
        with contextlib.suppress(BrokenPipeError):
            tell(Broken(" ".join(str(error).split())))
        sys.exit(1)


async def _with_sigterm(main: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(main)
    with contextlib.suppress(NotImplementedError):  # Windows ends a process without asking
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task
