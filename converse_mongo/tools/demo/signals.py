"""SIGTERM and SIGHUP end the demonstration as Ctrl-C does: in order, leaving no process behind."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["TERMINATED", "cancelling_the_task", "exiting"]

TERMINATED = 128 + signal.SIGTERM
"""The exit code that a shell shows for a program that SIGTERM ended."""

_NAMES = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP


@contextmanager
def exiting() -> Iterator[None]:
    """Where no event loop runs: the signals raise :class:`SystemExit`."""

    def leave() -> None:
        raise SystemExit(TERMINATED)

    with _handled(leave):
        yield


@contextmanager
def cancelling_the_task() -> Iterator[None]:
    """Within a task: the signals cancel it."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - what calls this is a coroutine
    with _handled(lambda: loop.call_soon_threadsafe(task.cancel)):
        yield


@contextmanager
def _handled(act: Callable[[], object]) -> Iterator[None]:
    present = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    # A signal that the caller ignores, as nohup does, stays ignored.
    heeded = [one for one in present if signal.getsignal(one) is not signal.SIG_IGN]
    before = [(one, signal.signal(one, lambda *_: act())) for one in heeded]
    try:
        yield
    finally:
        for one, handler in before:
            signal.signal(one, handler)
