"""The endpoints of conversations: history, streams, and what users say, stop and try again."""

import re
from collections.abc import AsyncGenerator
from typing import Any

from bson import ObjectId
from sse_starlette import ServerSentEvent
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.domain.cursors import NOW
from converse_mongo.domain.errors import InvalidCursorError, NotFoundError
from converse_mongo.domain.events import ConversationEvent, Event
from converse_mongo.watching.watcher import Watcher
from converse_mongo.web.bodies import read_object, text_field
from converse_mongo.web.context import NO_STORE, WebContext
from converse_mongo.web.errors import RequestError, UnknownError, answer_errors
from converse_mongo.web.presenter import ENDED, Json, event_id, parse_event_id, to_json
from converse_mongo.web.streams import EventStream, until_cut

__all__ = ["ConversationEndpoints", "cursor_of", "number_of", "watch_conversation"]

MAX_PAGE = 200
MAX_CURSOR_LENGTH = 4096
MAX_REQUEST_ID_BYTES = 200
MAX_REASON_BYTES = 1000

_NUMBER = re.compile(r"[0-9]{1,15}")


class ConversationEndpoints:
    """What a browser reads of a conversation and asks of it."""

    def __init__(self, context: WebContext) -> None:
        self._context = context

    # Reading

    @answer_errors
    async def conversation(self, request: Request) -> Response:
        """GET: the conversation itself."""
        conversation = await self._conversation(request)
        return Json(self._context.presenter.conversation(conversation))

    @answer_errors
    async def history(self, request: Request) -> Response:
        """GET: a page of messages, and on the newest page the cursor to stream on from."""
        limit = number_of(request, "limit", 50)
        if not 1 <= limit <= MAX_PAGE:
            raise RequestError(f"limit must be from 1 to {MAX_PAGE}.")
        before = number_of(request, "before", -1)
        conversation = await self._conversation(request)
        page = await conversation.history(limit, None if before < 0 else before)
        access, presenter = self._context.access, self._context.presenter
        shown = [presenter.message(each) for each in page.messages if access.shows(each.role)]
        found = {"messages": shown, "before": page.before, "cursor": page.cursor}
        return Json(found)

    @answer_errors
    async def message(self, request: Request) -> Response:
        """GET: one message."""
        message = await self._message(request, await self._conversation(request))
        return Json(self._context.presenter.message(message))

    # Streams

    @answer_errors
    async def conversation_events(self, request: Request) -> Response:
        """GET: the stream of a conversation, which has no end of its own."""
        conversation = await self._conversation(request)
        watcher = await watch_conversation(self._context, request, conversation)
        access, presenter = self._context.access, self._context.presenter

        async def events() -> AsyncGenerator[ServerSentEvent, None]:
            async for event in until_cut(watcher):
                if access.shows_event(event):
                    yield _sent(event, presenter.event(event))

        return EventStream(watcher, events, self._context.streams)

    @answer_errors
    async def message_events(self, request: Request) -> Response:
        """GET: the stream of a message, which ends with it; 204 for who has seen that end."""
        message_id = await self._message_id(request, await self._conversation(request))
        after = _message_cursor(request, message_id)
        if after == ENDED:
            return Response(status_code=204, headers=NO_STORE)
        watcher = self._context.converse.watch_message(message_id, after)
        await _enter(watcher)
        presenter = self._context.presenter

        async def events() -> AsyncGenerator[ServerSentEvent, None]:
            async for event in until_cut(watcher):
                yield _sent(event, presenter.event(event))

        return EventStream(watcher, events, self._context.streams)

    # What users do

    @answer_errors
    async def say(self, request: Request) -> Response:
        """POST: what a user says; starts the answer."""
        conversation = await self._conversation(request)
        body = await read_object(request, self._context.limits.body)
        content = text_field(body, "content", self._context.limits.message, required=True) or ""
        request_id = text_field(body, "request_id", MAX_REQUEST_ID_BYTES)
        question, answer = await self._context.turns.ask(conversation, content, request_id)
        presenter = self._context.presenter
        found = {
            "message": presenter.message(question),
            "answer": None if answer is None else presenter.message(answer),
        }
        return Json(found, 201)

    @answer_errors
    async def retry(self, request: Request) -> Response:
        """POST: another answer instead of the last one."""
        conversation = await self._conversation(request)
        message = await self._message(request, conversation)
        await read_object(request, self._context.limits.body)
        answer = await self._context.turns.retry(conversation, message)
        shown = None if answer is None else self._context.presenter.message(answer)
        return Json({"answer": shown}, 201)

    @answer_errors
    async def stop(self, request: Request) -> Response:
        """POST: stops the writing of a message, wherever it is written."""
        conversation = await self._conversation(request)
        message_id = await self._message_id(request, conversation)
        reason = await self._reason(request)
        status = await self._context.converse.request_stop(message_id, reason)
        return Json({"id": str(message_id), "status": status.value})

    @answer_errors
    async def stop_all(self, request: Request) -> Response:
        """POST: stops the writing of all answers of a conversation."""
        conversation = await self._conversation(request)
        reason = await self._reason(request)
        stopped = [
            {"id": str(message.id), "status": status.value}
            for message, status in await self._context.turns.stop(conversation, reason)
        ]
        return Json({"stopped": stopped})

    async def _reason(self, request: Request) -> str | None:
        body = await read_object(request, self._context.limits.body)
        return text_field(body, "reason", MAX_REASON_BYTES)

    async def _conversation(self, request: Request) -> Conversation:
        return await self._context.access.conversation(request, request.path_params["conversation"])

    async def _message(self, request: Request, conversation: Conversation) -> Message:
        return await self._context.access.message(conversation, request.path_params["message"])

    async def _message_id(self, request: Request, conversation: Conversation) -> ObjectId:
        return await self._context.access.message_id(conversation, request.path_params["message"])


async def watch_conversation(
    context: WebContext, request: HTTPConnection, conversation: Conversation
) -> Watcher[ConversationEvent]:
    """A watcher that has begun where the request says that its client is.

    Raises:
        UnknownError: The cursor is one of another conversation.
        RequestError: It is no cursor.
    """
    after = cursor_of(request)
    if after not in (None, NOW) and not str(after).startswith(f"{conversation.id}."):
        parts = str(after).split(".")
        if len(parts) > 1 and re.fullmatch(r"[0-9a-f]{24}", parts[0]):
            raise UnknownError
    watcher = context.converse.watch_conversation(conversation.id, after)
    await _enter(watcher)
    return watcher


async def _enter(watcher: Watcher[Any]) -> None:
    """Begins to watch, so that what is wrong with that is the answer, and not a broken stream."""
    try:
        await watcher.__aenter__()
    except NotFoundError as error:
        raise UnknownError from error


def cursor_of(request: HTTPConnection) -> str | None:
    """Where a client is: what a browser sends by itself, or what the address says.

    Raises:
        InvalidCursorError: It is longer than any cursor.
    """
    after = request.headers.get("last-event-id") or request.query_params.get("after") or None
    if after is not None and len(after) > MAX_CURSOR_LENGTH:
        raise InvalidCursorError("after is longer than any cursor that was sent.")
    return after


def _message_cursor(request: Request, message_id: ObjectId) -> Any:
    text = cursor_of(request)
    if text is None:
        return None
    try:
        return parse_event_id(text, message_id)
    except LookupError as error:
        raise UnknownError from error


def number_of(request: Request, name: str, default: int) -> int:
    """A whole number from the query of a request.

    Raises:
        RequestError: It is none.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise RequestError(f"{name} must be a whole number from 0 on.")
    return int(text)


def _sent(event: Event, fields: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(to_json(fields), event=event.type, id=event_id(event), sep="\n")
