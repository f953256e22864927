"""The WebSocket of a conversation: the events of its stream, for clients that need a socket."""

import asyncio
import logging
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from converse_mongo.domain.errors import ConverseError
from converse_mongo.watching.watcher import Watcher
from converse_mongo.web.context import WebContext
from converse_mongo.web.conversations import watcher_of
from converse_mongo.web.errors import BusyError, UnknownError
from converse_mongo.web.responses import error_response
from converse_mongo.web.stream_parts import StreamParts, is_text
from converse_mongo.web.streams import NOT_ALLOWED, Connection, Grant, grant_of, log_cut

logger = logging.getLogger("converse_mongo")

PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


class Socket:
    """Sends the events of a conversation, one JSON text each, with the cursor as ``id``.

    An event is sent when the one before it was accepted, so that a slow client costs no memory.
    Clients have nothing to send, since they post: a message of theirs ends the socket.

    Args:
        context: The parts of the web edge.
    """

    def __init__(self, context: WebContext) -> None:
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one socket, or refuses it."""
        websocket, context = WebSocket(scope, receive, send), self._context
        try:
            try:
                async with asyncio.timeout(context.limits.request_seconds):
                    watcher, grant = await _open(context, websocket)
            except TimeoutError as error:
                raise BusyError from error
            async with watcher:
                with context.stream_slots.hold(grant.key):
                    await websocket.accept()
                    await _serve(context, watcher, grant, receive, send)
        except ConverseError as error:
            await _refuse(websocket, error)


async def _open(context: WebContext, websocket: WebSocket) -> tuple[Watcher[Any], Grant]:
    if not _is_welcome(context, websocket):
        raise UnknownError
    name = websocket.path_params["conversation"]
    conversation = await context.access.conversation(websocket, name)
    grant = grant_of(context, websocket, conversation)
    return await watcher_of(context, websocket, conversation), grant


async def _refuse(websocket: WebSocket, error: ConverseError) -> None:
    response = error_response(error)
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(response)
    else:
        await websocket.close(NOT_ALLOWED)  # which is a 403


async def _serve(
    context: WebContext, watcher: Watcher[Any], grant: Grant, receive: Receive, send: Send
) -> None:
    connection = Connection(context, watcher, grant, receive, send)

    async def serve() -> None:
        shows, text_of = context.access.shows_event, context.frames.text
        parts = StreamParts(context.converse.message_model)
        with log_cut():
            async for event in watcher:
                if shows(event):
                    lacking = None if is_text(event) else await parts.of(event)
                    text = text_of(event, lacking)
                    await connection.send({"type": "websocket.send", "text": text})

    async def finish() -> None:
        close: Message = {"type": "websocket.close", "code": connection.code, "reason": ""}
        await connection.send(close)

    await connection.run(serve, finish)


class Site(NamedTuple):
    """A site, as browsers tell sites apart.

    Attributes:
        secure: Whether its pages come over TLS.
        host: Its name, in lower case.
        port: Its port.
    """

    secure: bool
    host: str
    port: int


def _site(scheme: str, place: str) -> Site | None:
    """The site at a host and port; ``None`` if they are not valid."""
    try:
        found = urlsplit(f"//{place}")
        port = found.port
    except ValueError:
        return None
    default = PORTS.get(scheme)
    if default is None or not found.hostname or "@" in place or found.netloc != place:
        return None
    return Site(default == PORTS["https"], found.hostname, default if port is None else port)


def _site_of(origin: str) -> Site | None:
    scheme, found, place = origin.partition("://")
    return _site(scheme.lower(), place) if found else None


def _is_welcome(context: WebContext, websocket: WebSocket) -> bool:
    """Checks the origin: a browser lets any page open a socket to any site, with its cookies."""
    origin = websocket.headers.get("origin")
    if origin is None or origin in context.origins:
        return True  # not a browser, or a site that was named
    site, host = _site_of(origin), websocket.headers.get("host", "")
    if site is not None:
        own = _site(websocket.scope.get("scheme", "ws"), host)
        if site == own or site in map(_site_of, context.origins):
            return True
    logger.warning(
        "A WebSocket was refused: a page of %.200r opened it on host %.200r over %s. If that page "
        "may, pass origins=[...] with its origin to routes(). If a proxy ends TLS, have the server "
        "trust its X-Forwarded-Proto and have it keep the host.",
        *(origin, host, websocket.scope.get("scheme", "ws")),
    )
    return False
