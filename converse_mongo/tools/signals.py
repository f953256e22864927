"""Signals: SIGTERM and SIGHUP end a command as Ctrl-C does, with everything cleaned up."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def terminable() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP interrupt the block as SIGINT does.

    Raises:
        SystemExit: One of them was received. The exit code is the one that shells show for it.
    """
    received = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        handler = signal.getsignal(signal.SIGINT)  # that of asyncio.run cancels the main task
        if not callable(handler):  # ignored, as in commands that a script starts with "&"
            handler = signal.default_int_handler
        handler(signal.SIGINT, frame)

    numbers = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):  # not on Windows
        numbers.append(signal.SIGHUP)
    before = {
        number: signal.signal(number, interrupt)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup
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
