"""Server-sent events: streams that end with their client, their server, or their lifetime."""

import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import anyio
from pymongo.errors import PyMongoError
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from converse_mongo.domain.errors import ConverseClosedError, ConverseError, NotFoundError
from converse_mongo.domain.validation import check_seconds
from converse_mongo.watching.owner_watcher import OwnerWatcher
from converse_mongo.watching.watcher import Watcher

logger = logging.getLogger("converse_mongo")

SHUTDOWN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """The options of all streams.

    Attributes:
        heartbeat: Seconds between two heartbeats, since proxies close silent connections.
        retry: Seconds that a browser waits before it connects again.
        lifetime: Seconds after which a stream ends, so that its client connects again and is
            authorized again. It misses nothing.
        send_timeout: Seconds that a client may leave data unread before it is dropped.
    """

    heartbeat: float
    retry: float
    lifetime: float
    send_timeout: float

    def __post_init__(self) -> None:
        for each in fields(self):
            check_seconds(getattr(self, each.name), each.name)

    @property
    def opening(self) -> bytes:
        """The frame that each stream begins with."""
        return b"retry: %d\n\n" % round(self.retry * 1000)


class EventStream(EventSourceResponse):
    """Streams the events of a watcher to one client.

    A token passes one generator on its way from the watcher to the server, and no queue, so that a
    slow client costs no memory. The watcher is closed when the client leaves.

    Args:
        watcher: The watcher that ``frames`` iterates; closing it ends the stream in order.
        frames: The stream as bytes.
        options: The options of the stream.
        headers: More headers.
    """

    def __init__(
        self,
        watcher: Watcher[Any] | OwnerWatcher,
        frames: AsyncGenerator[bytes, None],
        options: StreamOptions,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._watcher = watcher
        self._lifetime = options.lifetime
        self._shutdown = anyio.Event()
        super().__init__(
            frames,
            # A proxy that compresses would hold events back until its buffer is full.
            headers={"cache-control": "no-cache, no-transform", **(headers or {})},
            ping=options.heartbeat,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            data_sender_callable=self._cut,
            send_timeout=options.send_timeout,
            shutdown_event=self._shutdown,
            shutdown_grace_period=SHUTDOWN_SECONDS,
        )

    async def _cut(self) -> None:
        """Ends the stream in order when the server shuts down, and after its lifetime."""
        with anyio.move_on_after(self._lifetime):
            await self._shutdown.wait()
        await self._watcher.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves it."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info("A client that did not read its stream was dropped")
        finally:
            await self._watcher.aclose()


@contextmanager
def log_cut() -> Iterator[None]:
    """Ends the iteration of a watcher at any error of the library or of MongoDB, and logs it.

    The client connects again, and continues behind what it has, or receives the error.
    """
    try:
        yield
    except (NotFoundError, ConverseClosedError):
        pass
    except (ConverseError, PyMongoError):
        logger.exception("A stream to a client was cut off")
