"""Runs a worker from the command line, until a signal ends it."""

import asyncio
import importlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

from converse_mongo.converse import Converse
from converse_mongo.domain.errors import ConfigurationError


def load(target: str) -> Any:
    """Returns the function that ``module:name`` names.

    Modules are found from the working directory.

    Raises:
        ConfigurationError: There is none.
    """
    module, separator, name = target.partition(":")
    if not (module and separator and name):
        raise ConfigurationError(f"{target!r} names no function: pass module:function.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # of a module that it imports
        raise ConfigurationError(f"There is no module {module!r} here.") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigurationError(f"{name!r} in {module!r} is no function.")
    return found


def run(uri: str, database: str | None, respond: Any, queues: Sequence[str], **options: Any) -> int:
    """Generates the answers of queues until SIGTERM, which hands over what runs; returns 0."""
    return asyncio.run(_work(uri, database, respond, queues, options))


async def _work(
    uri: str, database: str | None, respond: Any, queues: Sequence[str], options: dict[str, Any]
) -> int:
    async with (
        Converse(uri, database) as converse,
        converse.worker(respond, queues=queues, **options) as worker,
    ):
        if sys.platform != "win32":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.close)
        await worker.run()
    return 0
