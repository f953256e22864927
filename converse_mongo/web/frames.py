"""The frames of events: each is made once for all clients that watch the same conversation."""

from collections.abc import Callable
from typing import TypeVar

from converse_mongo.domain.events import Event
from converse_mongo.web.cursors import event_cursor
from converse_mongo.web.presenter import Presenter
from converse_mongo.web.responses import one_line, sse_frame

KEPT_FRAMES = 4096
KEPT_BYTES = 4 * 1024 * 1024

E = TypeVar("E", bound=Event)


class Frames:
    """Keeps the frames of recent events, since all watchers of a conversation get the same ones.

    What browsers may see of an event is the same for all of them.

    Args:
        presenter: Turns events into what browsers may see.
    """

    def __init__(self, presenter: Presenter) -> None:
        self._presenter = presenter
        # The event is kept as well: while it is, no other one has its id.
        self._kept: dict[tuple[Callable[..., bytes], int], tuple[Event, bytes]] = {}
        self._bytes = 0

    def once(self, make: Callable[[E], bytes], event: E) -> bytes:
        """Returns ``make(event)``, from memory if it was made before.

        Args:
            make: The same object each time.
        """
        key = (make, id(event))
        kept = self._kept.get(key)
        if kept is not None:
            return kept[1]
        data = make(event)
        self._kept[key] = event, data
        self._bytes += len(data)
        while len(self._kept) > KEPT_FRAMES or self._bytes > KEPT_BYTES:
            self._bytes -= len(self._kept.pop(next(iter(self._kept)))[1])
        return data

    def sse(self, event: Event) -> bytes:
        """An event as a server-sent event."""
        return self.once(self._sse, event)

    def text(self, event: Event) -> str:
        """An event as the text of a WebSocket, with its cursor as ``id``."""
        return self.once(self._text, event).decode()

    def _sse(self, event: Event) -> bytes:
        return sse_frame(self._json(event), event=event.type, cursor=event_cursor(event))

    def _text(self, event: Event) -> bytes:
        return b'{"id":%b,%b' % (one_line(event_cursor(event)), self._json(event)[1:])

    def _json(self, event: Event) -> bytes:
        return self.once(self._made, event)

    def _made(self, event: Event) -> bytes:
        return one_line(self._presenter.event(event))
