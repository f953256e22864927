"""Server-sent events: a stream that ends with its client, with its server, and in good time."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from pymongo.errors import PyMongoError
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from converse_mongo.domain.errors import (
    ConverseClosedError,
    ConverseError,
    NotFoundError,
)
from converse_mongo.domain.events import Event
from converse_mongo.watching.owner_watcher import OwnerWatcher
from converse_mongo.watching.watcher import Watcher

__all__ = ["EventStream", "StreamOptions", "until_cut"]

logger = logging.getLogger("converse_mongo")

E = TypeVar("E", bound=Event)

SHUTDOWN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How streams are kept.

    Attributes:
        heartbeat: Seconds between two heartbeats, for proxies that close what is silent.
        retry: Seconds that a browser waits before it connects again.
        lifetime: Seconds after which a stream is ended, so that its client connects again and is
            authorized again. It misses nothing.
        send_timeout: Seconds that a client may take to read what it is sent, before it is dropped.
    """

    heartbeat: float
    retry: float
    lifetime: float
    send_timeout: float


class EventStream(EventSourceResponse):
    """Streams what is watched to one client.

    The watcher holds no queue, so that a client that reads slowly costs no memory. It is let go as
    soon as the client is gone.

    Args:
        watcher: What to watch.
        events: Makes the server-sent events of those of the watcher. Where that ends, they end.
        options: How the stream is kept.
        headers: More headers.
    """

    def __init__(
        self,
        watcher: Watcher[Any] | OwnerWatcher,
        events: Callable[[], AsyncGenerator[ServerSentEvent, None]],
        options: StreamOptions,
        headers: dict[str, str] | None = None,
    ) -> None:
        shutdown = anyio.Event()

        async def cut() -> None:
            """Ends the stream in order when the server shuts down, and after its lifetime."""
            with anyio.move_on_after(options.lifetime):
                await shutdown.wait()
            await watcher.aclose()

        async def body() -> AsyncIterator[ServerSentEvent]:
            try:
                yield ServerSentEvent(retry=round(options.retry * 1000), sep="\n")
                async with aclosing(events()) as sent:
                    async for event in sent:
                        yield event
            finally:
                await watcher.aclose()

        super().__init__(
            body(),
            # A proxy that compresses would hold events back until its buffer is full.
            headers={"cache-control": "no-cache, no-transform", **(headers or {})},
            ping=options.heartbeat,
            sep="\n",
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            data_sender_callable=cut,
            send_timeout=options.send_timeout,
            shutdown_event=shutdown,
            shutdown_grace_period=SHUTDOWN_SECONDS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves it."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info("A client that did not read its stream was dropped")


async def until_cut(watcher: AsyncIterator[E]) -> AsyncIterator[E]:
    """The events of a watcher, up to whatever ends it; errors are logged.

    A client that is cut off connects again, and is then told what there is to tell.
    """
    try:
        async for event in watcher:
            yield event
    except (NotFoundError, ConverseClosedError):
        pass
    except (ConverseError, PyMongoError):
        logger.exception("A stream to a client was cut off")
