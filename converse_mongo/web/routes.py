"""The routes of the web edge, for Starlette and FastAPI."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from starlette.routing import BaseRoute, Route, WebSocketRoute

from converse_mongo.converse import Converse
from converse_mongo.domain.errors import ConfigurationError, InvalidInputError
from converse_mongo.domain.types import MessageRole
from converse_mongo.domain.validation import check_seconds
from converse_mongo.web.access import Access, Authorize
from converse_mongo.web.bodies import Limits
from converse_mongo.web.chat import ChatEndpoints
from converse_mongo.web.context import WebContext
from converse_mongo.web.conversations import ConversationEndpoints
from converse_mongo.web.generations import Generations
from converse_mongo.web.owners import OwnerEndpoint, OwnerOf
from converse_mongo.web.presenter import Presenter
from converse_mongo.web.sockets import ConversationSocket
from converse_mongo.web.streams import StreamOptions
from converse_mongo.web.turns import Turns

__all__ = ["routes"]

SHOWN_ROLES = (MessageRole.USER, MessageRole.ASSISTANT)


def routes(
    converse: Converse,
    *,
    authorize: Authorize,
    generations: Generations | None = None,
    owner: OwnerOf | None = None,
    roles: Collection[MessageRole | str] = SHOWN_ROLES,
    show_errors: bool = False,
    show_metadata: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    heartbeat: float = 15.0,
    retry: float = 2.0,
    lifetime: float = 3600.0,
    send_timeout: float = 60.0,
    max_body_bytes: int = 4 * 1024 * 1024,
    max_message_bytes: int = 256 * 1024,
    origins: Collection[str] = (),
) -> list[BaseRoute]:
    """Routes to conversations: streams, history, what users say and stop, and the AI SDK.

    Mount them: ``Mount("/api", routes=routes(...))`` among the routes of a Starlette application,
    or ``app.mount("/api", Router(routes(...)))`` on one of FastAPI.

    Args:
        converse: Where the conversations are; open by the time of the first request.
        authorize: Answers whether a request may read a conversation and write to it. It is asked
            for every request, and again when a stream has reached its ``lifetime``.
        generations: Writes the answers. ``None`` where another process does: then what users say is
            stored, and nothing is answered here.
        owner: Answers whose conversations a request may follow all at once, as the type and the id
            that they were started with; ``None`` for nobody's. Without it there is no stream of
            an owner. ``authorize`` is asked for each conversation all the same.
        roles: Whose messages browsers are shown. System prompts and the calls of tools are not
            among them by default.
        show_errors: Whether browsers are told the stored error of a failed message; by default they
            are told that it failed. Say ``True`` if all that you store as an error is for users.
        show_metadata: Picks what browsers are told of metadata; by default all of it.
        heartbeat: Seconds between two heartbeats on a stream.
        retry: Seconds that a browser's ``EventSource`` waits before it connects again.
        lifetime: Seconds after which a stream is ended, for its client to connect again.
        send_timeout: Seconds that a client may leave what it is sent unread.
        max_body_bytes: The largest body of a request. ``useChat`` sends all messages each time.
        max_message_bytes: The largest text of a message, in bytes of UTF-8.
        origins: Other sites whose pages may open a WebSocket.

    Raises:
        ConfigurationError: An option makes no sense.
    """
    if not isinstance(converse, Converse):
        raise ConfigurationError(f"routes() takes a Converse, not {type(converse).__name__}.")
    if generations is not None and not isinstance(generations, Generations):
        raise ConfigurationError(f"generations={generations!r}: pass Generations(respond).")
    if owner is not None and not callable(owner):
        raise ConfigurationError(
            f"owner={owner!r}: pass a function of a request that answers with a pair, such as "
            "('user', '42'), or with None."
        )
    try:
        shown = frozenset(MessageRole(role) for role in roles)
        options = StreamOptions(
            heartbeat=check_seconds(heartbeat, "heartbeat"),
            retry=check_seconds(retry, "retry"),
            lifetime=check_seconds(lifetime, "lifetime"),
            send_timeout=check_seconds(send_timeout, "send_timeout"),
        )
    except (InvalidInputError, ValueError) as error:
        raise ConfigurationError(str(error)) from error
    for name, size in (
        ("max_body_bytes", max_body_bytes),
        ("max_message_bytes", max_message_bytes),
    ):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigurationError(f"{name}={size!r}: pass a number of bytes from 1 on.")
    access = Access(converse, authorize, shown)
    context = WebContext(
        converse=converse,
        access=access,
        turns=Turns(generations),
        presenter=Presenter(show_errors, show_metadata or (lambda metadata: metadata)),
        streams=options,
        limits=Limits(max_body_bytes, max_message_bytes),
    )
    native, chat = ConversationEndpoints(context), ChatEndpoints(context)
    one = "/conversations/{conversation}"
    message = f"{one}/messages/{{message}}"
    made: list[BaseRoute] = [
        Route(one, native.conversation, methods=["GET"]),
        Route(f"{one}/events", native.conversation_events, methods=["GET"]),
        WebSocketRoute(f"{one}/socket", ConversationSocket(context, origins).__call__),
        Route(f"{one}/messages", native.history, methods=["GET"]),
        Route(f"{one}/messages", native.say, methods=["POST"]),
        Route(f"{one}/stop", native.stop_all, methods=["POST"]),
        Route(message, native.message, methods=["GET"]),
        Route(f"{message}/events", native.message_events, methods=["GET"]),
        Route(f"{message}/retry", native.retry, methods=["POST"]),
        Route(f"{message}/stop", native.stop, methods=["POST"]),
        Route("/chat", chat.chat, methods=["POST"]),
        Route("/chat/{conversation}", chat.history, methods=["GET"]),
        Route("/chat/{conversation}/stream", chat.resume, methods=["GET"]),
        Route("/chat/{conversation}/stop", chat.stop, methods=["POST"]),
    ]
    if owner is not None:
        made.append(Route("/events", OwnerEndpoint(context, owner).events, methods=["GET"]))
    return made
