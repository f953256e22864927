"""The endpoints that ``useChat`` of the AI SDK talks to."""

from collections.abc import AsyncGenerator
from typing import Any

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.domain.types import MessageRole
from converse_mongo.web.bodies import read_object, text_field
from converse_mongo.web.context import NO_STORE, WebContext
from converse_mongo.web.conversations import MAX_PAGE, number_of
from converse_mongo.web.errors import (
    BusyError,
    ConflictError,
    RequestError,
    TooLargeError,
    UnknownError,
    answer_errors,
)
from converse_mongo.web.presenter import Json, to_json
from converse_mongo.web.streams import EventStream
from converse_mongo.web.turns import without_replaced
from converse_mongo.web.ui_messages import DONE, STREAM_HEADERS, question_of, ui_message, ui_parts

__all__ = ["ChatEndpoints"]

MAX_ID_BYTES = 200
SUBMIT, REGENERATE = "submit-message", "regenerate-message"


class ChatEndpoints:
    """A chat of the AI SDK is a conversation; its id is that of the conversation."""

    def __init__(self, context: WebContext) -> None:
        self._context = context

    @answer_errors
    async def history(self, request: Request) -> Response:
        """GET: the messages to begin with; what streams is left to the resumed stream."""
        conversation = await self._conversation(request, request.path_params["conversation"])
        limit = number_of(request, "limit", MAX_PAGE)
        if not 1 <= limit <= MAX_PAGE:
            raise RequestError(f"limit must be from 1 to {MAX_PAGE}.")
        page = await conversation.history(limit)
        shown = [
            ui_message(message, self._context.presenter)
            for message in without_replaced(page.messages)
            if self._context.access.shows(message.role) and not message.is_streaming
        ]
        return Json(shown)

    @answer_errors
    async def chat(self, request: Request) -> Response:
        """POST: what a user said, or the wish for another answer; streams the answer.

        The client may go away: the answer is written to its end, and can be resumed.
        """
        body = await read_object(request, self._context.limits.body)
        chat_id = text_field(body, "id", MAX_ID_BYTES, required=True) or ""
        conversation = await self._conversation(request, chat_id)
        trigger = body.get("trigger", SUBMIT)
        message_id = text_field(body, "messageId", MAX_ID_BYTES)
        if trigger == SUBMIT:
            answer = await self._ask(conversation, body.get("messages"), message_id)
        elif trigger == REGENERATE:
            answer = await self._regenerate(conversation, message_id)
        else:
            raise RequestError(f"trigger must be {SUBMIT} or {REGENERATE}.")
        if answer is None:
            raise BusyError("Nobody answers in this process: pass generations to routes().")
        return self._stream(answer)

    async def _ask(
        self, conversation: Conversation, messages: object, message_id: str | None
    ) -> Message | None:
        if message_id is not None:
            raise RequestError("A message that was sent cannot be changed: send another one.")
        question = question_of(messages)
        if question is None or not question[0].strip():
            raise RequestError("The last of messages must be one of a user, with a text part.")
        content, name = question
        limit = self._context.limits.message
        if len(content.encode("utf-8", "surrogatepass")) > limit:
            raise TooLargeError(f"The message is larger than {limit} bytes.")
        if name is not None and len(name.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
            raise TooLargeError(f"The id of the message is larger than {MAX_ID_BYTES} bytes.")
        return (await self._context.turns.ask(conversation, content, name))[1]

    async def _regenerate(
        self, conversation: Conversation, message_id: str | None
    ) -> Message | None:
        turns = self._context.turns
        if message_id is None:
            listed = conversation.messages(newest_first=True)
            async for last in listed:
                if last.role is MessageRole.USER:  # it was not answered
                    return await turns.continue_(conversation, last)
                if last.role is MessageRole.ASSISTANT:
                    break
            else:
                raise ConflictError("Nothing was said yet.")
        else:
            last = await self._context.access.message(conversation, message_id)
        # One that is being written the client has let go of: its own stop only disconnects.
        return await turns.retry(conversation, last, stop=True)

    @answer_errors
    async def resume(self, request: Request) -> Response:
        """GET: the answer that is being written, from its start; 204 where there is none."""
        conversation = await self._conversation(request, request.path_params["conversation"])
        streaming = await self._context.turns.streaming(conversation)
        if not streaming:
            return Response(status_code=204, headers=NO_STORE)
        return self._stream(streaming[-1])

    @answer_errors
    async def stop(self, request: Request) -> Response:
        """POST: stops the answers that are being written."""
        conversation = await self._conversation(request, request.path_params["conversation"])
        await read_object(request, self._context.limits.body)
        stopped = [
            {"id": str(message.id), "status": status.value}
            for message, status in await self._context.turns.stop(conversation)
        ]
        return Json({"stopped": stopped})

    def _stream(self, message: Message) -> Response:
        watcher = self._context.converse.watch_message(message.id)

        async def events() -> AsyncGenerator[ServerSentEvent, None]:
            async for part in ui_parts(message, watcher, self._context.presenter):
                yield _sent(part)
            yield ServerSentEvent(DONE, sep="\n")

        return EventStream(watcher, events, self._context.streams, STREAM_HEADERS)

    async def _conversation(self, request: Request, conversation_id: str) -> Conversation:
        if not conversation_id:
            raise UnknownError
        return await self._context.access.conversation(request, conversation_id)


def _sent(part: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(to_json(part), sep="\n")
