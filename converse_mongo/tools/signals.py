"""Signals: SIGTERM and SIGHUP end a command as Ctrl-C does, with everything cleaned up."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT


def end_at_once() -> None:
    """Makes Ctrl-C end the process at once and in silence, while there is nothing to clean up.

    A KeyboardInterrupt in an import prints a traceback, or becomes another error.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


@contextmanager
def terminable() -> Iterator[None]:
    """Lets SIGINT interrupt the block with a KeyboardInterrupt, and SIGTERM and SIGHUP as it does.

    Raises:
        SystemExit: SIGTERM or SIGHUP was received. The exit code is what shells show for it.
    """
    received = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        handler = signal.getsignal(signal.SIGINT)  # that of asyncio.run cancels the main task
        if not callable(handler):  # ignored, as in commands that a script starts with "&"
            handler = signal.default_int_handler
        handler(signal.SIGINT, frame)

    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: interrupt}
    if hasattr(signal, "SIGHUP"):  # not on Windows
        handlers[signal.SIGHUP] = interrupt
    before = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup, and "&" in a script
    }
    try:
        yield
    except KeyboardInterrupt:
        if not received:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received)
