"""The endpoints that ``useChat`` of the AI SDK calls. A chat has the id of its conversation."""

import logging

from starlette.requests import Request
from starlette.responses import Response

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.domain.types import MessageRole
from converse_mongo.web.context import WebContext
from converse_mongo.web.errors import BusyError, ConflictError, RequestError
from converse_mongo.web.models import ChatBody, ChatPageQuery, QuestionBody, UiMessage, UiPart
from converse_mongo.web.operations import Operations
from converse_mongo.web.responses import NO_STORE, Json
from converse_mongo.web.streams import EventStream
from converse_mongo.web.turns import without_replaced
from converse_mongo.web.ui_messages import STREAM_HEADERS, question_of, ui_frames, ui_message

ONE = "/chat/{conversation}"

table = Operations()

logger = logging.getLogger("converse_mongo")


@table("GET", ONE, list[UiMessage], ChatPageQuery)
async def get_chat(context: WebContext, request: Request) -> Response:
    """Reads the initial messages. The resumed stream has the one that is being written."""
    conversation = await context.conversation(request)
    query = context.checked(ChatPageQuery, request.query_params)
    page = await context.history(conversation, query.limit)
    shown = [
        ui_message(message, context.presenter)
        for message in without_replaced(page.messages)
        if context.access.shows(message.role) and not message.is_streaming
    ]
    return Json(shown, omit_none=True)


@table("POST", "/chat", UiPart, ChatBody, streams=True)
async def chat(context: WebContext, request: Request) -> Response:
    """Adds a user message, or starts another answer, and streams the answer.

    The client may leave: the answer is written to its end, and can be resumed.
    """
    conversation, body = await context.chat_body(request)
    if body.trigger == "submit-message":
        answer = await _ask(context, conversation, body)
    else:
        answer = await _regenerate(context, conversation, body.message_id)
    if answer is None:
        logger.error("A chat was not answered: pass generations= to routes()")
        raise BusyError
    return _stream(context, answer)


async def _ask(context: WebContext, conversation: Conversation, body: ChatBody) -> Message | None:
    if body.message_id is not None:
        raise RequestError("A message that was sent cannot be changed: send another one.")
    found = question_of(body.messages)
    if found is None or not found["content"].strip():
        raise RequestError("The last of messages must be a user message with a text part.")
    question = context.checked(QuestionBody, found)
    return (await context.turns.ask(conversation, question.content, question.request_id))[1]


async def _regenerate(
    context: WebContext, conversation: Conversation, message_id: str | None
) -> Message | None:
    if message_id is not None:
        last = await context.access.message(conversation, message_id)
    else:
        async for last in conversation.messages(newest_first=True):
            if last.role is MessageRole.USER:  # it was not answered
                return await context.turns.continue_(conversation, last)
            if last.role is MessageRole.ASSISTANT:
                break
        else:
            raise ConflictError("Nothing was said yet.")
    # The client has disconnected from an answer that is being written: its stop does only that.
    return await context.turns.retry(conversation, last, stop=True)


@table("GET", f"{ONE}/stream", UiPart, streams=True, may_be_over=True)
async def resume_chat(context: WebContext, request: Request) -> Response:
    """Streams the answer that is being written, from its start. Without one the status is 204."""
    streaming = await context.turns.streaming(await context.conversation(request))
    if not streaming:
        return Response(status_code=204, headers=NO_STORE)
    return _stream(context, streaming[-1])


def _stream(context: WebContext, message: Message) -> Response:
    watcher = context.converse.watch_message(message.id)
    frames = ui_frames(context, message, watcher)
    return EventStream(watcher, frames, context.streams, STREAM_HEADERS)
