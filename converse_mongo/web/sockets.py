"""The WebSocket of a conversation: the same events as its stream, for who needs a socket."""

import asyncio
import contextlib
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from converse_mongo.domain.errors import ConverseError
from converse_mongo.watching.watcher import Watcher
from converse_mongo.web.context import WebContext
from converse_mongo.web.conversations import watch_conversation
from converse_mongo.web.errors import UnknownError, error_response
from converse_mongo.web.presenter import event_id, to_json
from converse_mongo.web.streams import until_cut

__all__ = ["ConversationSocket"]

GOING_AWAY = 1001


class ConversationSocket:
    """Sends the events of a conversation, one JSON text each, with the ``id`` to resume behind.

    An event is sent once the one before it was taken, so a slow client gets what it can read, and
    costs no memory. What clients send is not looked at: they post.

    Args:
        edge: The parts.
        origins: Other sites whose pages may open one, such as ``https://chat.example.com``. A
            browser lets every page open a socket to any site, with the cookies of the user.
    """

    def __init__(self, context: WebContext, origins: Collection[str]) -> None:
        self._context = context
        self._origins = frozenset(origins)

    async def __call__(self, websocket: WebSocket) -> None:
        """Serves a socket."""
        try:
            if not self._may_come_from(websocket):
                raise UnknownError
            conversation = await self._context.access.conversation(
                websocket, websocket.path_params["conversation"]
            )
            watcher = await watch_conversation(self._context, websocket, conversation)
        except ConverseError as error:
            await websocket.send_denial_response(error_response(error))
            return
        async with contextlib.aclosing(watcher):
            await websocket.accept()
            await self._serve(websocket, watcher)

    def _may_come_from(self, websocket: WebSocket) -> bool:
        origin = websocket.headers.get("origin")
        if origin is None or origin in self._origins:
            return True  # no browser, or a site that was named
        return urlsplit(origin).netloc == websocket.headers.get("host")

    async def _serve(self, websocket: WebSocket, watcher: Watcher[Any]) -> None:
        listening = asyncio.create_task(_listen(websocket), name="converse_mongo-socket")
        # Whoever comes to an end first ends the other: a client that leaves, or the watching.
        listening.add_done_callback(lambda _: asyncio.ensure_future(watcher.aclose()))
        cutting = asyncio.get_running_loop().call_later(
            self._context.streams.lifetime, lambda: asyncio.ensure_future(watcher.aclose())
        )
        try:
            async for event in until_cut(watcher):
                if not self._context.access.shows_event(event):
                    continue
                fields = {"id": event_id(event), **self._context.presenter.event(event)}
                await websocket.send_text(to_json(fields))
            if websocket.application_state is WebSocketState.CONNECTED and not listening.done():
                await websocket.close(GOING_AWAY)
        except WebSocketDisconnect:
            pass
        finally:
            cutting.cancel()
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening


async def _listen(websocket: WebSocket) -> None:
    """Returns once the client is gone."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
