"""The WebSocket of a conversation: the events of its stream, for clients that need a socket."""

import asyncio
from contextlib import aclosing, suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from converse_mongo.domain.errors import ConverseError
from converse_mongo.watching.watcher import Watcher
from converse_mongo.web.context import WebContext
from converse_mongo.web.conversations import watcher_of
from converse_mongo.web.cursors import event_cursor
from converse_mongo.web.errors import UnknownError
from converse_mongo.web.responses import error_response, one_line
from converse_mongo.web.streams import log_cut

GOING_AWAY = 1001


async def serve_socket(context: WebContext, websocket: WebSocket) -> None:
    """Sends the events of a conversation, one JSON text each, with the cursor as ``id``.

    An event is sent when the one before it was accepted, so that a slow client costs no memory.
    What clients send is ignored: they post.
    """
    try:
        if not _is_welcome(context, websocket):
            raise UnknownError
        name = websocket.path_params["conversation"]
        conversation = await context.access.conversation(websocket, name)
        watcher = await watcher_of(context, websocket, conversation)
    except ConverseError as error:
        await websocket.send_denial_response(error_response(error))
        return
    async with aclosing(watcher):
        await websocket.accept()
        await _serve(context, websocket, watcher)


def _is_welcome(context: WebContext, websocket: WebSocket) -> bool:
    """Checks the origin: a browser lets any page open a socket to any site, with its cookies."""
    origin = websocket.headers.get("origin")
    if origin is None or origin in context.origins:
        return True  # not a browser, or a site that was named
    return urlsplit(origin).netloc == websocket.headers.get("host")


async def _serve(context: WebContext, websocket: WebSocket, watcher: Watcher[Any]) -> None:
    def close(_: object = None) -> "asyncio.Future[None]":
        return asyncio.ensure_future(watcher.aclose())

    listening = asyncio.create_task(_listen(websocket), name="converse_mongo-socket")
    # A client that leaves ends the watching, and the end of the watching ends the listening.
    listening.add_done_callback(close)
    cutting = asyncio.get_running_loop().call_later(context.streams.lifetime, close)
    try:
        with log_cut():
            async for event in watcher:
                if context.access.shows_event(event):
                    shown = dict(context.presenter.event(event))
                    text = one_line({"id": event_cursor(event), **shown})
                    await websocket.send_text(text.decode())
        if websocket.application_state is WebSocketState.CONNECTED and not listening.done():
            await websocket.close(GOING_AWAY)
    except WebSocketDisconnect:
        pass
    finally:
        cutting.cancel()
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening


async def _listen(websocket: WebSocket) -> None:
    """Returns when the client has left."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
