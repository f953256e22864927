"""Runs a worker from the command line, until a signal ends it."""

import asyncio
import importlib
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converse_mongo.converse import Converse
from converse_mongo.domain.errors import ConfigurationError
from converse_mongo.domain.queues import names_of
from converse_mongo.domain.telemetry import Telemetry
from converse_mongo.tools import servers, terminal
from converse_mongo.tools.signals import terminable
from converse_mongo.tools.terminal import one_line
from converse_mongo.working.worker import Worker

THREAD_SECONDS = 3.0
"""The time that the interpreter has to end at last: it waits for threads, and ``respond`` may hang
in one."""


def load(target: str) -> Any:
    """Returns the function that ``module:name`` names.

    Modules are found from the working directory.

    Raises:
        ConfigurationError: There is none.
    """
    module, separator, name = target.partition(":")
    if not (module and separator and name):
        raise ConfigurationError(f"{target!r} names no function: pass MODULE:FUNCTION.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any = _import(module)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"There is no {name!r} in the module {module!r}.")
        found = getattr(found, part)
    if not callable(found):
        kind = type(found).__name__
        raise ConfigurationError(f"{name!r} in the module {module!r} is no function, but {kind}.")
    _check_parameters(target, found)
    return found


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            raise ConfigurationError(f"There is no module {module!r} in {Path.cwd()}.") from error
        raise ConfigurationError(
            f"The module {module!r} cannot be imported: {type(error).__name__}: {error}"
            f"{_place(error)}."
        ) from error


def _place(error: Exception) -> str:
    """Returns where an error of the application comes from."""
    if isinstance(error, SyntaxError):
        return ""  # its text says so
    frames = [
        each
        for each in traceback.extract_tb(error.__traceback__)
        if not each.filename.startswith("<frozen")
        and each.filename not in (__file__, importlib.__file__)
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _check_parameters(target: str, found: Any) -> None:
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return  # of a built-in one
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ConfigurationError(
            f"{target} cannot be called with a conversation and a message: {error}."
        ) from error


def run(
    uri: str,
    database: str | None,
    target: str,
    queues: Sequence[str],
    lease: float,
    options: Mapping[str, Any],
    *,
    telemetry: bool = False,
) -> int:
    """Generates the answers of queues until a signal, and hands over what runs then.

    Returns:
        0 after SIGTERM, and otherwise what shells show for the signal.

    Raises:
        ConverseError: It could not start.
    """
    names = names_of(queues)
    respond = load(target)
    measured = _telemetry() if telemetry else None
    terminal.log()
    ready = (
        f"Worker ready: {target} answers {' and '.join(names)}, up to {options['concurrency']} "
        f"messages at a time; data: {servers.location(uri, None)}. Ctrl-C hands over and ends it."
    )
    try:
        with terminable():
            return asyncio.run(
                _Running(ready).work(uri, database, respond, names, options, lease, measured)
            )
    except SystemExit as ended:
        # Before it was ready, or where loops do not take signals.
        return 0 if ended.code == 128 + signal.SIGTERM else int(ended.code or 0)


class _Running:
    """A worker, and the signals that it got."""

    def __init__(self, ready: str) -> None:
        self._ready = ready
        self._received: list[int] = []

    async def work(
        self,
        uri: str,
        database: str | None,
        respond: Any,
        queues: Sequence[str],
        options: Mapping[str, Any],
        lease: float,
        telemetry: Telemetry | None,
    ) -> int:
        """Generates until a signal, and returns the exit code."""
        try:
            async with (
                Converse(uri, database, lease=lease, telemetry=telemetry) as converse,
                converse.worker(respond, queues=queues, **options) as worker,
            ):
                self._listen(worker, options["grace"])
                _tell(self._ready)
                try:
                    await worker.run()
                except asyncio.CancelledError:
                    if len(self._received) > 1:  # the second one came as the first one closed it
                        await worker.drain(0)
                    raise
        except asyncio.CancelledError:
            if len(self._received) < 2:
                raise
        code = 128 + self._received[-1] if self._received else 0
        code = 0 if code == 128 + signal.SIGTERM else code
        timer = threading.Timer(THREAD_SECONDS, os._exit, (code,))
        timer.daemon = True  # it must not be waited for itself
        timer.start()
        return code

    def _listen(self, worker: Worker, grace: float) -> None:
        """Has a signal close the worker, and a second one end the grace."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def close(number: int) -> None:
            self._received.append(number)
            if len(self._received) == 1:
                count = worker.statistics().running
                if count:
                    what = "1 message" if count == 1 else f"{count} messages"
                    _tell(f"Handing over {what} within {grace:g} s.")
                worker.close()
            elif task is not None:
                task.cancel()

        if sys.platform == "win32":
            return  # the signals of "terminable" cancel it, which hands over as well
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, close, number)


def _telemetry() -> Telemetry:
    # Behind the import of the application, which may set the global providers.
    from converse_mongo.telemetry import OpenTelemetry

    return OpenTelemetry()


def _tell(line: str) -> None:
    sys.stderr.write(f"{one_line(line)}\n")
    sys.stderr.flush()
