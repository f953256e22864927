"""The routes of the web edge, for Starlette and FastAPI."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from converse_mongo.converse import Converse
from converse_mongo.domain.errors import ConfigurationError, InvalidInputError
from converse_mongo.domain.queues import AnyQueue
from converse_mongo.domain.types import MessageRole
from converse_mongo.web.access import Access, Authorize, OwnerOf
from converse_mongo.web.answering import Answering, queued_answers
from converse_mongo.web.bodies import Parsing, Pending, close_unread, drop_unread
from converse_mongo.web.context import WebContext
from converse_mongo.web.conversations import ONE
from converse_mongo.web.deadlines import Deadline
from converse_mongo.web.frames import Frames
from converse_mongo.web.generations import Generations
from converse_mongo.web.limits import MIB, Limits, Slots
from converse_mongo.web.open_streams import StreamOptions, Streams
from converse_mongo.web.openapi import all_operations
from converse_mongo.web.operations import Operation
from converse_mongo.web.presenter import PartChoice, Presenter, ShowParts
from converse_mongo.web.responses import Json, error_response
from converse_mongo.web.sockets import Socket
from converse_mongo.web.turns import Turns

SHOWN_ROLES = (MessageRole.USER, MessageRole.ASSISTANT)

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@*\s]+/?", re.IGNORECASE)


def routes(
    converse: Converse,
    *,
    authorize: Authorize,
    generations: Generations | AnyQueue | None = None,
    owner: OwnerOf | None = None,
    roles: Collection[MessageRole | str] = SHOWN_ROLES,
    show_errors: bool = False,
    show_metadata: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    show_parts: ShowParts | None = None,
    heartbeat: float = 15.0,
    retry: float = 2.0,
    lifetime: float = 3600.0,
    send_timeout: float = 60.0,
    reauthorize: float = 60.0,
    streams: Streams | None = None,
    max_body_bytes: int = 2 * MIB,
    max_message_bytes: int = 256 * 1024,
    limits: Limits | None = None,
    origins: Collection[str] = (),
) -> list[BaseRoute]:
    """Routes for conversations: streams, history, questions, stops, retries, and the AI SDK.

    Mount them: ``Mount("/api", routes=routes(...))`` among the routes of a Starlette application,
    or ``app.mount("/api", Router(routes(...)))`` on a FastAPI application.

    Args:
        converse: The facade; open by the time of the first request.
        authorize: Answers whether a request may read a conversation and write to it. It is called
            for every request, and again and again for what is open: see ``reauthorize``. Only
            ``True`` allows. ``False`` is a 404. So is any other value, and whatever it raises;
            these are logged. The ``context`` of the conversation is not loaded: ``await
            conversation.refresh()`` loads it.
        generations: Writes the answers. A :class:`Queue`, or the name of one, has workers write
            them: see ``Converse.worker``. The key of a message is then that of ``Limits``, as
            texts. ``None``: user messages are stored, and nothing is answered here.
        owner: Answers whose conversations a request may follow all at once, as the type and the id
            that they were started with; ``None`` for nobody's. Without it there is no stream of
            an owner. ``authorize`` is called for each conversation all the same.
        roles: The roles whose messages browsers see; by default neither system prompts nor the
            calls and results of tools.
        show_errors: Whether browsers see the stored error of a failed message and the reason of a
            stop; by default they learn only that it failed or was stopped. Pass ``True`` if all
            that you store is for users.
        show_metadata: Picks what browsers see of metadata; by default all of it, but without
            ``show_errors`` neither ``error_type`` nor ``unstored``.
        show_parts: Picks what browsers see of a part, by its kind, its name and the tool call that
            it belongs to: ``True`` for all of it, ``False`` for nothing, or the names of the fields
            that they see, ``"text"`` for its text. By default they see all. Whatever it returns,
            they see the text of the answer, and never the data of the provider. It is asked once
            for each kind, name and tool call above, and must always answer the same. Parts of a
            sub-agent are asked for separately: only ``False`` for the call hides them, too. A part
            for which it raises is hidden. See :class:`PartIdentity`.
        heartbeat: Seconds of silence after which a stream sends a heartbeat.
        retry: Seconds that a browser's ``EventSource`` waits before it connects again.
        lifetime: Seconds after which a stream ends, for its client to connect again.
        send_timeout: Seconds that a client may leave data unread.
        reauthorize: The most seconds between two times that an open stream or socket is authorized,
            by ``authorize`` or ``owner`` with the request that opened it, and the conversation as
            it is then. It ends if it is refused. While the database cannot be read it goes on.
        streams: Ends open streams at once, if you pass a ``Streams()``.
        max_body_bytes: The largest body of a request; of a POST of the AI SDK, the largest last
            message.
        max_message_bytes: The largest text of a message, in bytes of UTF-8.
        limits: How much clients may take; by default ``Limits()``.
        origins: Other sites whose pages may open a WebSocket, such as
            ``https://chat.example.com``.

    Raises:
        ConfigurationError: An option is invalid.
    """
    if not isinstance(converse, Converse):
        raise ConfigurationError(f"routes() requires a Converse, not {type(converse).__name__}.")
    answering: Answering | None
    if generations is None or isinstance(generations, Generations):
        answering = generations
    else:
        answering = queued_answers(generations)
    if limits is not None and not isinstance(limits, Limits):
        raise ConfigurationError(f"limits={limits!r}: pass Limits(...).")
    if show_metadata is not None and not callable(show_metadata):
        raise ConfigurationError(f"show_metadata={show_metadata!r}: pass a function, or None.")
    if show_parts is not None and not callable(show_parts):
        raise ConfigurationError(f"show_parts={show_parts!r}: pass a function, or None.")
    try:
        options = StreamOptions(heartbeat, retry, lifetime, send_timeout, reauthorize)
    except InvalidInputError as error:
        raise ConfigurationError(str(error)) from error
    sizes = {"max_body_bytes": max_body_bytes, "max_message_bytes": max_message_bytes}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigurationError(f"{name}={size!r}: pass a number of bytes, at least 1.")
    if streams is not None and not isinstance(streams, Streams):
        raise ConfigurationError(f"streams={streams!r}: pass Streams().")
    if isinstance(origins, str) or not all(map(_is_origin, origins)):
        raise ConfigurationError(
            f"origins={origins!r}: pass a list of origins, such as ['https://chat.example.com']."
        )
    if isinstance(generations, Generations):
        generations.serve(converse)
    limits = limits or Limits()
    presenter = Presenter(
        show_errors, show_metadata, None if show_parts is None else PartChoice(show_parts)
    )
    context = WebContext(
        converse=converse,
        access=Access(converse, authorize, owner, _roles(roles)),
        turns=Turns(answering, limits),
        answering=answering,
        presenter=presenter,
        streams=options,
        open_streams=streams or Streams(),
        stream_slots=Slots(limits.streams_per_key),
        frames=Frames(presenter.streaming),
        limits=limits,
        # No key takes all of it, and nobody without access takes any.
        pending=Pending(limits.pending_bytes, max(limits.pending_bytes // 8, max_body_bytes)),
        unnamed=Pending(limits.pending_bytes // 4),
        parsing=Parsing(),
        origins=frozenset(each.rstrip("/") for each in origins),
        **sizes,
    )
    return [
        *(_route(context, each) for each in all_operations(owner=owner is not None)),
        WebSocketRoute(f"{ONE}/socket", Socket(context), name="socket"),
    ]


def _roles(roles: Collection[MessageRole | str]) -> frozenset[MessageRole]:
    try:
        # The characters of a text are no roles.
        return frozenset(MessageRole(role) for role in roles)
    except (TypeError, ValueError) as error:
        names = ", ".join(repr(role.value) for role in MessageRole)
        raise ConfigurationError(f"roles={roles!r}: pass a list of some of {names}.") from error


def _is_origin(origin: object) -> bool:
    return isinstance(origin, str) and bool(_ORIGIN.fullmatch(origin))


def _route(context: WebContext, operation: Operation) -> Route:
    view: TypeAdapter[Any] = TypeAdapter(operation.answer)

    async def answer(request: Request) -> Response:
        async with Deadline(context.limits.request_seconds, request):
            if context.answering is not None:
                context.answering.look_after()
            found = await operation.endpoint(context, request)
        if isinstance(found, Response):
            return found
        return Json(view.validate_python(found, context=context.presenter), operation.status)

    async def endpoint(request: Request) -> Response:
        try:
            response = await answer(request)
        except HTTPException:
            raise  # by middleware, such as one that bounds bodies
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody reads it
        except Exception as error:  # noqa: BLE001 - it is logged there
            response = error_response(error)
            await drop_unread(request)
        close_unread(request, response)
        if isinstance(response, Json):
            response.send_timeout = context.streams.send_timeout
        return response

    return Route(operation.path, endpoint, methods=[operation.method], name=operation.name)
