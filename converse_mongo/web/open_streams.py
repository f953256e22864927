"""The streams and sockets that are open in this process, which can be ended at once."""

import asyncio
import signal
from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Protocol
from weakref import WeakSet

from converse_mongo.domain.validation import check_seconds

LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """The options of all streams and sockets.

    Attributes:
        heartbeat: Seconds of silence after which a stream sends a heartbeat, since proxies close
            silent connections.
        retry: Seconds that a browser waits before it connects again.
        lifetime: Seconds after which one ends, so that its client connects again. It misses
            nothing.
        send_timeout: Seconds that a client may leave data unread before it is dropped.
        reauthorize: The most seconds between two times that one is authorized.
    """

    heartbeat: float
    retry: float
    lifetime: float
    send_timeout: float
    reauthorize: float = 60.0

    def __post_init__(self) -> None:
        for each in fields(self):
            check_seconds(getattr(self, each.name), each.name)

    @property
    def opening(self) -> bytes:
        """The frame that each stream begins with."""
        return b"retry: %d\n\n" % round(self.retry * 1000)


class Endable(Protocol):
    """A stream or a socket, as far as it has to be known here."""

    key: Hashable
    loop: asyncio.AbstractEventLoop

    def end(self) -> None:
        """Ends it in order."""


class Streams:
    """The streams and sockets of :func:`converse_mongo.web.routes` that are open in this process.

    Pass one to ``routes(streams=...)`` to end them at once, for example when a user logs out or
    loses a right. Their clients connect again and are authorized again. Those that still may
    continue where they were, and miss nothing. All methods may be called from any thread.

    They end by themselves when uvicorn is told to stop. Before another server stops, call
    :meth:`end_all`.
    """

    def __init__(self) -> None:
        self._open: set[Endable] = set()
        self._looking: WeakSet[asyncio.AbstractEventLoop] = WeakSet()

    @property
    def count(self) -> int:
        """The number of streams and sockets that are open."""
        return len(self._open)

    def end(self, key: Hashable) -> int:
        """Ends those of a key: see ``Limits.key``. By default that is the owner.

        Args:
            key: Such as ``("user", "42")``. The id of an owner is a text; one that is not is taken
                as text, too.

        Returns:
            How many are ended.
        """
        keys = {key}
        if isinstance(key, tuple) and len(key) == 2:
            keys.add((key[0], str(key[1])))
        return self._end([each for each in self._open.copy() if each.key in keys])

    def end_all(self) -> int:
        """Ends all of them. Returns how many."""
        return self._end([*self._open.copy()])

    def _end(self, found: list[Endable]) -> int:
        for each in found:
            if not each.loop.is_closed():
                each.loop.call_soon_threadsafe(each.end)
        return len(found)

    def add(self, one: Endable) -> None:
        """Takes in one that was opened."""
        self._open.add(one)
        if one.loop not in self._looking:
            self._looking.add(one.loop)
            one.loop.call_later(LOOK_SECONDS, self._look, one.loop)

    def remove(self, one: Endable) -> None:
        """Forgets one that has ended."""
        self._open.discard(one)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._open:
            self._looking.discard(loop)
            return
        if server_stops():
            self._end([each for each in self._open.copy() if each.loop is loop])
        loop.call_later(LOOK_SECONDS, self._look, loop)


def server_stops() -> bool:
    """Reports whether uvicorn is stopping, which waits for open streams and does not tell them.

    No request refers to its server. The server's handler of signals does: it is a method of it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        server = getattr(signal.getsignal(number), "__self__", None)
        if getattr(server, "should_exit", False) is True:
            return True
        listening = getattr(server, "servers", None)
        if isinstance(listening, list) and listening:  # --limit-max-requests was reached
            return not any(each.is_serving() for each in listening)
    return False
