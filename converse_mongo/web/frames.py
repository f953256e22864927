"""The frames of events: each is made once for all clients that watch the same conversation."""

from collections.abc import Callable

from converse_mongo.domain.events import Event
from converse_mongo.web.cursors import event_cursor
from converse_mongo.web.presenter import Lacking, Presenter
from converse_mongo.web.responses import one_line, sse_frame

KEPT_FRAMES = 4096
KEPT_BYTES = 4 * 1024 * 1024


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

    def once(self, make: Callable[..., bytes], event: Event, lacking: Lacking = None) -> bytes:
        """Returns ``make(event)``, from memory if it was made before.

        Args:
            make: The same object each time.
            event: The event.
            lacking: What it lacks, which ``make`` then gets as well.
        """
        key = (make, id(event))
        kept = self._kept.get(key)
        if kept is not None:
            return kept[1]
        data = make(event) if lacking is None else make(event, lacking)
        if len(data) > KEPT_BYTES // 4:
            return data  # such as a snapshot: it would push out the frames of others
        self._kept[key] = event, data
        self._bytes += len(data)
        while len(self._kept) > KEPT_FRAMES or self._bytes > KEPT_BYTES:
            self._bytes -= len(self._kept.pop(next(iter(self._kept)))[1])
        return data

    def sse(self, event: Event, lacking: Lacking = None) -> bytes:
        """An event as a server-sent event.

        Args:
            event: The event.
            lacking: What :class:`StreamParts` found for it; without it, a part is hidden.
        """
        return self.once(self._sse, event, lacking)

    def text(self, event: Event, lacking: Lacking = None) -> str:
        """An event as the text of a WebSocket, with its cursor as ``id``; see :meth:`sse`."""
        return self.once(self._text, event, lacking).decode()

    def _sse(self, event: Event, lacking: Lacking = None) -> bytes:
        return sse_frame(self._json(event, lacking), event=event.type, cursor=event_cursor(event))

    def _text(self, event: Event, lacking: Lacking = None) -> bytes:
        return b'{"id":%b,%b' % (one_line(event_cursor(event)), self._json(event, lacking)[1:])

    def _json(self, event: Event, lacking: Lacking = None) -> bytes:
        return self.once(self._made, event, lacking)

    def _made(self, event: Event, lacking: Lacking = None) -> bytes:
        return one_line(self._presenter.event(event, lacking))
