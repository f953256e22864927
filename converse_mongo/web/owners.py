"""The stream of an owner: what happens in all conversations of the user who asks."""

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeAlias

from bson import ObjectId
from sse_starlette import ServerSentEvent
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from converse_mongo.domain.events import ConversationDeleted, OwnerEvent
from converse_mongo.web.context import WebContext
from converse_mongo.web.errors import RequestError, UnknownError, answer_errors
from converse_mongo.web.presenter import to_json
from converse_mongo.web.streams import EventStream, until_cut

__all__ = ["OwnerEndpoint", "OwnerOf"]

Named: TypeAlias = tuple[str, Any] | None
OwnerOf: TypeAlias = Callable[[HTTPConnection], Named | Awaitable[Named]]
"""Answers whose conversations a request may follow; ``None`` for nobody's."""

OPENED = "stream.opened"
MAX_KNOWN = 256


class OwnerEndpoint:
    """What a list of conversations follows."""

    def __init__(self, context: WebContext, owner: OwnerOf) -> None:
        self._context = context
        self._owner = owner

    @answer_errors
    async def events(self, request: Request) -> Response:
        """GET: the stream of the user, which has no end of its own and begins with what comes."""
        if request.query_params.get("chunks", "false") != "false":
            raise RequestError("This stream has no chunks: follow the stream of a conversation.")
        watcher = self._context.converse.watch_owner(await self._owner_of(request))
        await watcher.__aenter__()
        visibility, presenter = _OwnerVisibility(self._context, request), self._context.presenter

        async def shown() -> AsyncGenerator[OwnerEvent, None]:
            async for event in watcher:
                if await visibility.shows(event):
                    yield event

        async def events() -> AsyncGenerator[ServerSentEvent, None]:
            # From here on nothing is missed: now is the time to list.
            yield ServerSentEvent(to_json({"type": OPENED}), event=OPENED, sep="\n")
            async for event in until_cut(shown()):
                yield ServerSentEvent(to_json(presenter.event(event)), event=event.type, sep="\n")

        return EventStream(watcher, events, self._context.streams)

    async def _owner_of(self, request: Request) -> tuple[str, Any]:
        try:
            owner = self._owner(request)
            if inspect.isawaitable(owner):
                owner = await owner
        except HTTPException as error:
            raise UnknownError from error
        if owner is None:
            raise UnknownError
        return owner


class _OwnerVisibility:
    """Tells what a request may see of the conversations of an owner: each is authorized, too."""

    def __init__(self, context: WebContext, request: Request) -> None:
        self._access = context.access
        self._request = request
        self._known: dict[ObjectId, bool] = {}

    async def shows(self, event: OwnerEvent) -> bool:
        """Whether to send an event."""
        conversation_id = event.conversation_id
        if isinstance(event, ConversationDeleted):
            # It cannot be authorized any more. Its id is all that is told.
            return self._known.pop(conversation_id, True)
        if conversation_id not in self._known:
            if len(self._known) >= MAX_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[conversation_id] = await self._may_see(str(conversation_id))
        return self._known[conversation_id] and self._access.shows_event(event)

    async def _may_see(self, conversation_id: str) -> bool:
        try:
            await self._access.conversation(self._request, conversation_id)
        except UnknownError:
            return False
        return True
