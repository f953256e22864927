"""Streams: connections that end with their client, their server, their lifetime or their rights."""

import asyncio
import logging
import random
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Hashable,
    Iterator,
    Mapping,
)
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from pymongo.errors import PyMongoError
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from converse_mongo.documents.conversations import Conversation
from converse_mongo.domain.errors import (
    ConverseClosedError,
    ConverseError,
    NotFoundError,
    StoreUnavailableError,
)
from converse_mongo.watching.owner_watcher import OwnerWatcher
from converse_mongo.watching.watcher import Watcher
from converse_mongo.web.context import WebContext
from converse_mongo.web.errors import LimitError
from converse_mongo.web.responses import abort, drain, error_response

logger = logging.getLogger("converse_mongo")

END_SECONDS = 2.0
"""Seconds that a client has to take the end of its stream."""
GOING_AWAY, NOT_ALLOWED = 1001, 1008
"""Codes of RFC 6455, section 7.4.1, with which a socket closes."""

HEADERS = {
    # A proxy that compresses would hold events back until its buffer is full.
    "cache-control": "no-store, no-transform",
    "vary": "authorization, cookie",
    "x-accel-buffering": "no",
}
HEARTBEAT: Message = {"type": "http.response.body", "body": b": ping\n\n", "more_body": True}


@dataclass(frozen=True, slots=True)
class Grant:
    """The right to a stream.

    Attributes:
        key: Who takes it.
        ask: Asks for it again; raises :class:`UnknownError` or :class:`NotFoundError` if it is
            gone.
    """

    key: Hashable
    ask: Callable[[], Awaitable[object]]


def grant_of(context: WebContext, request: HTTPConnection, conversation: Conversation) -> Grant:
    """The right of a request to a stream of a conversation, which it may see.

    Raises:
        LimitError: Its key has the most streams that it may have.
    """
    key = context.key(request, conversation)
    context.stream_slots.check(key)
    return Grant(key, partial(context.access.conversation, request, str(conversation.id)))


class Connection:
    """A stream or a socket while it is open.

    Two tasks serve it: the one of the server, which sends, and one that waits for the client to
    leave. One timer does the rest. It has no queue, so that a slow client costs no memory.

    Args:
        context: The parts of the web edge.
        watcher: Its events come from this watcher. Closing it ends the connection in order.
        grant: The right to it.
        receive: Receives what the client sends, by ASGI.
        send: Sends to it.
        heartbeat: Is sent when nothing else was sent for long; ``None`` if the server does such.

    Attributes:
        key: Who takes it.
        loop: The loop that it is served in.
        code: Why it ends, as a code of a WebSocket.
        gone: Whether the client has left.
        patience: Seconds that the client has to take the end.
    """

    __slots__ = (
        "_ask",
        "_ask_at",
        "_beating",
        "_cancelled",
        "_context",
        "_end_at",
        "_end_by",
        "_finishing",
        "_heartbeat",
        "_helpers",
        "_receive",
        "_send",
        "_sending",
        "_sent_at",
        "_task",
        "_timer",
        "_watcher",
        "code",
        "gone",
        "key",
        "loop",
        "patience",
    )

    def __init__(
        self,
        context: WebContext,
        watcher: Watcher[Any] | OwnerWatcher,
        grant: Grant,
        receive: Receive,
        send: Send,
        heartbeat: Message | None = None,
    ) -> None:
        self.key = grant.key
        self.loop = asyncio.get_running_loop()
        self.code = GOING_AWAY
        self.gone = False
        self._ask = grant.ask
        self._context = context
        self._watcher = watcher
        self._heartbeat = heartbeat
        self._receive, self._send = receive, send
        self._helpers: set[asyncio.Task[None]] = set()
        self._beating: asyncio.Task[None] | None = None
        self._sending = False
        self._cancelled = 0
        self._finishing = False
        self.patience = END_SECONDS
        self._sent_at = self.loop.time()
        self._end_at = self._sent_at + context.streams.lifetime
        self._end_by = inf
        self._ask_at = self._next_ask()

    async def run(
        self, serve: Callable[[], Awaitable[None]], finish: Callable[[], Awaitable[None]]
    ) -> None:
        """Serves it to its end.

        Args:
            serve: Sends what the watcher has.
            finish: Sends the end.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a server has called this in one
        self._task = task
        self._context.open_streams.add(self)
        self._start(self._listen())
        self._timer = self.loop.call_at(self._next(), self._look)
        try:
            try:
                await serve()
            except asyncio.CancelledError:
                if not self._was_dropped():
                    raise
            if self._end_by == inf:  # it has come to its end by itself
                self.patience = self._context.streams.send_timeout
            if not (self.gone or self._sending):
                # Also if the watcher did not come to its end in time, since it waits for MongoDB.
                self._finishing = True
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.patience):
                        await finish()
        except OSError:
            if not self.gone:
                raise
        finally:
            self._end_by = 0.0  # it has ended: nothing ends it any more
            self._timer.cancel()
            self._context.open_streams.remove(self)
            for helper in self._helpers:
                helper.cancel()
            await self._watcher.aclose()

    async def send(self, message: Message) -> None:
        """Sends something, and waits until the server takes more."""
        if self._beating is not None:
            await asyncio.wait((self._beating,))
        await self._send_now(message)

    async def _send_now(self, message: Message) -> None:
        self._sent_at, self._sending = self.loop.time(), True
        try:
            await self._send(message)
        except OSError:  # by ASGI, the client has left
            self.gone = True
            raise
        self._sending = False

    def end(self, code: int = GOING_AWAY) -> None:
        """Ends it in order. A client that does not take the end in time is dropped."""
        if self._end_by < inf:
            return
        self.code = code
        self._end_by = self.loop.time() + END_SECONDS
        self._start(self._watcher.aclose())
        self._set_timer()

    async def _listen(self) -> None:
        """Ends it when the client leaves, or sends something, which nobody reads."""
        while (kind := (await self._receive())["type"]) == "http.request":
            pass
        self.gone = kind != "websocket.receive"
        self.end(NOT_ALLOWED)

    # The timer

    def _look(self) -> None:
        if self._finishing:
            return
        now = self.loop.time()
        options = self._context.streams
        if now >= self._end_by or (self._sending and now >= self._sent_at + options.send_timeout):
            self._drop()
            self._end_by = now + END_SECONDS
        elif now >= self._end_at:
            self.end()
        if now >= self._ask_at:
            self._ask_at = inf
            self._start(self._ask_again())
        silent = not self._sending and now >= self._sent_at + options.heartbeat
        if self._heartbeat is not None and silent and not self._beating and self._end_by == inf:
            self._beating = self._start(self._beat(self._heartbeat))
        self._set_timer()

    def _set_timer(self) -> None:
        self._timer.cancel()
        self._timer = self.loop.call_at(self._next(), self._look)

    def _next(self) -> float:
        """When to look next."""
        options = self._context.streams
        if self._sending:
            silence = self._sent_at + options.send_timeout
        else:
            silence = self.loop.time() + options.send_timeout
            if self._heartbeat is not None and self._end_by == inf:
                silence = min(silence, self._sent_at + options.heartbeat)
        end = self._end_at if self._end_by == inf else self._end_by
        return min(silence, end, self._ask_at)

    async def _beat(self, heartbeat: Message) -> None:
        try:
            await self._send_now(heartbeat)
        except OSError:
            self.end()
        finally:
            self._beating = None

    async def _ask_again(self) -> None:
        try:
            async with asyncio.timeout(self._context.limits.request_seconds):
                await self._ask()
        except Exception as error:  # noqa: BLE001 - whatever the application raises refuses
            if not is_outage(error):
                logger.info("A stream was ended: it is not authorized any more")
                self.end(NOT_ALLOWED)
                return
            logger.warning("A stream could not be authorized again: %r", error)
        self._ask_at = self._next_ask()
        self._set_timer()

    def _next_ask(self) -> float:
        # Not all at once, although many clients may have come at once.
        return self.loop.time() + self._context.streams.reauthorize * random.uniform(0.5, 1)

    # Clients that do not read

    def _drop(self) -> None:
        if self._sending and not self._cancelled:
            logger.info("A client that did not read its stream was dropped")
            abort(self._receive)
        self._cancelled += 1
        self._task.cancel()

    def _was_dropped(self) -> bool:
        """Reports whether nobody else has cancelled the task of the server."""
        left = [self._task.uncancel() for _ in range(self._cancelled)]
        return bool(left) and not left[-1]

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self.loop.create_task(work, name="converse_mongo-stream")
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)
        return task


def is_outage(error: Exception) -> bool:
    """Reports whether the database could not be asked, which answers nothing."""
    kinds = PyMongoError, StoreUnavailableError, ConverseClosedError, TimeoutError
    return isinstance(error, kinds) or isinstance(error.__cause__, kinds)


class EventStream(Response):
    """Streams the events of a watcher to one client, as server-sent events.

    Args:
        context: The parts of the web edge.
        watcher: The watcher that ``frames`` iterates; closing it ends the stream in order.
        frames: The stream as bytes.
        grant: The right to it.
        headers: More headers.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        context: WebContext,
        watcher: Watcher[Any] | OwnerWatcher,
        frames: AsyncGenerator[bytes, None],
        grant: Grant,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._context = context
        self._watcher = watcher
        self._frames = frames
        self._grant = grant
        self.init_headers({**HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves it; with the status 429 if its key has the most streams that it may have."""
        head: Message = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        end: Message = {"type": "http.response.body", "body": b"", "more_body": False}
        if scope["method"] == "HEAD":
            await self._watcher.aclose()
            await send(head)
            await send(end)
            return
        try:
            with self._context.stream_slots.hold(self._grant.key):
                connection = Connection(
                    *(self._context, self._watcher, self._grant, receive, send), HEARTBEAT
                )

                async def serve() -> None:
                    await connection.send(head)
                    async for data in self._frames:
                        body = {"type": "http.response.body", "body": data, "more_body": True}
                        await connection.send(body)

                await connection.run(serve, lambda: connection.send(end))
            if not connection.gone:
                await drain(receive, connection.patience)
        except LimitError as error:
            await self._watcher.aclose()
            await error_response(error)(scope, receive, send)
        finally:
            await self._frames.aclose()
        if self.background is not None:  # of a dependency of FastAPI
            await self.background()


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
