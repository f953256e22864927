"""The guard in front of all routes: hosts, origins, sessions, and the bodies of requests."""

import asyncio
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from converse_mongo.tools.chat.hosts import Hosts, is_same_origin
from converse_mongo.tools.chat.refusals import Refusal, refused
from converse_mongo.tools.chat.users import user_of
from converse_mongo.web.bodies import discard

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SESSION_PATH = "/api/me"
POLICY_VIOLATION = 1008


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of a body.

    Attributes:
        size: The most bytes.
        seconds: The time in which it must be received.
    """

    size: int
    seconds: float


class Guard:
    """Refuses requests before anything of their bodies is read, and bounds the bodies.

    - The ``Host`` must be one of ours; see :class:`Hosts`.
    - A request that may change something must come from a page of ours and be sent as JSON, which
      forms of other sites cannot do.
    - All paths below ``/api`` need a session, but the one that begins it.
    - A body that is too large or too slow ends the request. The connection of a body that was not
      read is closed, so that no client can hold it.

    Args:
        app: The application.
        hosts: The names under which it is served; ``None`` for any.
        own: The bounds of its own endpoints, by their paths.
        others: The bounds of all other paths.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Hosts | None, own: dict[str, Bounds], others: Bounds
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._own = own
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        if scope["type"] == "websocket":
            try:
                self._check(connection, changes=True)
            except Refusal:
                await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            else:
                await self._app(scope, receive, send)
            return
        body = Body(connection, receive, self._own.get(scope["path"], self._others))
        sending = body.closing(send)
        try:
            self._check(connection, changes=scope["method"] not in SAFE_METHODS)
            body.check()
        except Refusal as error:
            await body.discard()
            await refused(error)(scope, receive, sending)
        else:
            await self._app(scope, body.receive, sending)

    def _check(self, connection: HTTPConnection, *, changes: bool) -> None:
        """Checks where a request comes from.

        Raises:
            Refusal: It is not served.
        """
        if self._hosts is not None and not self._hosts.serve(connection):
            raise Refusal(400, "unknown_host", "The chat is not served at this address.")
        if changes and not is_same_origin(connection):
            raise Refusal(403, "forbidden", "The request comes from another site.")
        path = connection.scope["path"]
        needs_session = path.startswith("/api/") and path != SESSION_PATH
        if needs_session and user_of(connection) is None:
            raise Refusal(401, "no_session", "Your session has ended. Reload the page.")
        if changes and connection.scope["type"] == "http":
            media_type = connection.headers.get("content-type", "").partition(";")[0].strip()
            if media_type.lower() != "application/json":
                wanted = "Send JSON with the content type application/json."
                raise Refusal(415, "unsupported_media_type", explained=wanted)


class Body:
    """The body of a request while it is received. It is counted and timed, and never held.

    Attributes:
        transport: That of the server, where the library looks for it to drop a client.
    """

    def __init__(self, connection: HTTPConnection, receive: Receive, bounds: Bounds) -> None:
        headers = connection.headers
        length = headers.get("content-length", "0")
        self._announced = int(length) if length.isascii() and length.isdigit() else 0
        self._complete = not self._announced and "transfer-encoding" not in headers
        # It waits for a sign to send its body, which reading it would give.
        self._expects = "expect" in headers
        self._allowed = connection.scope["method"] not in SAFE_METHODS
        self._receive = receive
        self.transport = getattr(getattr(receive, "__self__", None), "transport", None)
        self._bounds = bounds
        self._size = 0
        self._deadline = asyncio.get_running_loop().time() + bounds.seconds

    def check(self) -> None:
        """Checks what its headers say.

        Raises:
            Refusal: It is too large, or there must be none.
        """
        if not (self._complete or self._allowed):
            raise Refusal(400, "invalid_request", explained="This request cannot have a body.")
        if self._announced > self._bounds.size:
            raise self._too_large()

    async def receive(self) -> Message:
        """Receives a part of it, and then what follows it.

        Raises:
            Refusal: It is too large, or was not received in time.
        """
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(408, "timeout", "The request was not received in time.") from None
        self._complete = not message.get("more_body", False)
        self._size += len(message.get("body", b""))
        if self._size > self._bounds.size:
            raise self._too_large()
        return message

    async def discard(self) -> None:
        """Drops what comes of it within a moment, so that its client sees why it is refused."""
        if not (self._complete or self._expects):
            self._complete = await discard(self._receive)

    def closing(self, send: Send) -> Send:
        """Returns a function that sends, and has the server close an unfinished request."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and not self._complete:
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        return sending

    def _too_large(self) -> Refusal:
        return Refusal(413, "too_large", "The request is too large.")
