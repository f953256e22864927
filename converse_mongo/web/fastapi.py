"""The routes as a router of FastAPI, with a dependency of the application as authentication.

It needs FastAPI. No other module of the library but the chat imports FastAPI.
"""

import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, Unpack, cast

from fastapi import APIRouter, Depends, Request, Response, WebSocket
from fastapi.params import Depends as Dependency
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.routing import Route
from starlette.types import Message as ASGIMessage
from starlette.types import Receive, Scope, Send

from converse_mongo.converse import Converse
from converse_mongo.documents.conversations import Conversation
from converse_mongo.domain.errors import ConfigurationError, StoreUnavailableError
from converse_mongo.domain.queues import AnyQueue
from converse_mongo.domain.types import MessageRole
from converse_mongo.web.access import Named
from converse_mongo.web.bodies import close_unread, drop_unread
from converse_mongo.web.generations import Generations
from converse_mongo.web.limits import Limits
from converse_mongo.web.models import ErrorBody
from converse_mongo.web.open_streams import Streams
from converse_mongo.web.openapi import NOTHING_LEFT, all_operations, answer_content, request_of
from converse_mongo.web.operations import Operation
from converse_mongo.web.presenter import ShowParts
from converse_mongo.web.routes import routes

__all__ = ["RouteOptions", "api_router"]

_USER = "converse_mongo.user"
_SCHEMES = {"ws": "http", "wss": "https"}
_SERVER_ERROR = 500


class RouteOptions(TypedDict, total=False):
    """The other options of :func:`converse_mongo.web.routes`."""

    generations: Generations | AnyQueue | None
    roles: Collection[MessageRole | str]
    show_errors: bool
    show_metadata: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None
    show_parts: ShowParts | None
    heartbeat: float
    retry: float
    lifetime: float
    send_timeout: float
    reauthorize: float
    streams: Streams | None
    max_body_bytes: int
    max_message_bytes: int
    limits: Limits | None
    origins: Collection[str]


def api_router(
    converse: Converse,
    *,
    user: Callable[..., Any],
    authorize: Callable[[Any, Conversation], bool | Awaitable[bool]],
    owner: Callable[[Any], Named | Awaitable[Named]] | None = None,
    **options: Unpack[RouteOptions],
) -> APIRouter:
    """The routes of :func:`converse_mongo.web.routes`, as a router of FastAPI.

    Include it: ``app.include_router(api_router(...), prefix="/api", tags=["chat"])``. Its paths are
    in the OpenAPI description of the application, with their models.

    Args:
        converse: The facade; open by the time of the first request.
        user: A dependency that returns the user of a request, as for ``Depends``. What it raises is
            answered by the application. It is called again for streams that stay open, and must not
            read the body.
        authorize: Answers whether a user may read a conversation and write to it, as that of
            ``routes`` does for a request. Its first argument is what ``user`` returned.
        owner: Answers whose conversations a user may follow all at once, as that of ``routes``
            does for a request.
        options: The other options of ``routes``.

    Raises:
        ConfigurationError: An option is invalid.
    """
    for name, function in {"user": user, "authorize": authorize}.items():
        if not callable(function) and not (name == "user" and isinstance(function, Dependency)):
            raise ConfigurationError(f"{name}={function!r}: pass a function.")
    depends: Any = user if isinstance(user, Dependency) else Depends(user)
    users = _Users(depends)

    async def may(connection: HTTPConnection, conversation: Conversation) -> Any:
        known = await users.find(connection)
        return False if known is None else await _result(authorize(known.user, conversation))

    async def owner_of(connection: HTTPConnection) -> Any:
        known = await users.find(connection)
        return None if known is None or owner is None else await _result(owner(known.user))

    owners = {} if owner is None else {"owner": owner_of}
    *made, socket = routes(converse, authorize=may, **owners, **options)
    router = APIRouter(route_class=_Route)
    for operation, route in zip(all_operations(owner=owner is not None), made, strict=True):
        _add(router, operation, _endpoint(cast(Route, route).endpoint, depends))
    if any(route.body_field for route in router.routes if isinstance(route, APIRoute)):
        raise ConfigurationError(
            "The dependency user reads the body of requests: take what it needs from cookies or "
            "headers."
        )

    async def serve(websocket: WebSocket) -> None:
        await cast(Any, socket).app(websocket.scope, websocket._receive, websocket._send)  # noqa: SLF001

    router.add_api_websocket_route(cast(Any, socket).path, serve, name="socket")
    return router


def _add(router: APIRouter, operation: Operation, endpoint: Callable[..., Any]) -> None:
    summary, description = operation.summary
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": meaning}
        for status, meaning in operation.errors.items()
    }
    told = answer_content(operation)
    is_json = not operation.streams and operation.media_type is None
    if is_json:
        del told["content"]  # FastAPI makes it of the model
    responses[operation.status] = {"description": summary, **told}
    if operation.may_be_over:
        responses[204] = {"description": NOTHING_LEFT}
    streams: dict[str, Any] = {"response_model": None, "response_class": Response}
    router.add_api_route(
        operation.path,
        endpoint,
        methods=[operation.method],
        name=operation.name,
        status_code=operation.status,
        summary=summary,
        description=description,
        responses=responses,
        openapi_extra=request_of(operation),
        **({"response_model": operation.answer} if is_json else streams),
    )


def _endpoint(serve: Callable[..., Awaitable[Response]], depends: Any) -> Callable[..., Any]:
    async def endpoint(
        request: Request, response: Response, user: Annotated[Any, depends]
    ) -> Response:
        request.scope[_USER] = _Known(user)
        served = await serve(request)
        request.scope[_USER] = None  # an open stream asks anew
        served.raw_headers.extend(response.raw_headers)  # those of dependencies
        return served

    return endpoint


class _Route(APIRoute):
    """A route that lets no client hold a connection whose request a dependency refused."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""

        async def sending(message: ASGIMessage) -> None:
            if message["type"] == "http.response.start" and _USER not in scope:
                refused, request = Response(), Request(scope, receive)
                await drop_unread(request)
                close_unread(request, refused)
                if "connection" in refused.headers:
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await super().handle(scope, receive, sending)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the dependency returned."""

    user: Any


class _Users:
    """Finds the user of a connection, now: for a socket, and again for each that stays open.

    Args:
        depends: The dependency.
    """

    def __init__(self, depends: Any) -> None:
        async def endpoint(request: Request, user: Annotated[Any, depends]) -> Response:
            request.scope[_USER] = _Known(user)
            return Response()

        self._endpoint = endpoint

    async def find(self, connection: HTTPConnection) -> _Known | None:
        """The user; ``None`` if the dependency refuses the connection.

        Raises:
            StoreUnavailableError: The dependency could not tell.
        """
        if known := connection.scope.get(_USER):
            return cast(_Known, known)
        # Dependencies may be written for requests only.
        scope = {"method": "GET", **connection.scope, "type": "http", _USER: None}
        scope["scheme"] = _SCHEMES.get(scope["scheme"], scope["scheme"])
        status = 0

        async def receive() -> ASGIMessage:
            return {"type": "http.disconnect"}

        async def send(message: ASGIMessage) -> None:
            nonlocal status
            status = message.get("status", status)

        overrides = connection.scope["app"]
        route = APIRoute("/", self._endpoint, dependency_overrides_provider=overrides)
        await route.app(scope, receive, send)
        if status >= _SERVER_ERROR:
            raise StoreUnavailableError(f"The dependency of the user answered with {status}.")
        found: _Known | None = scope[_USER]
        return found


async def _result(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer
