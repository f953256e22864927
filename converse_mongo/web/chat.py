"""The endpoints that ``useChat`` of the AI SDK calls. A chat has the id of its conversation."""

from collections.abc import Hashable

from starlette.requests import Request
from starlette.responses import Response

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.types import MessageRole
from converse_mongo.web.context import WebContext
from converse_mongo.web.errors import ConflictError, NotAnsweredError, RequestError
from converse_mongo.web.models import ChatBody, ChatPageQuery, QuestionBody, UiMessage, UiPart
from converse_mongo.web.operations import Operations
from converse_mongo.web.prompts import without_replaced
from converse_mongo.web.responses import NO_STORE, Json
from converse_mongo.web.streams import EventStream, Grant, grant_of
from converse_mongo.web.ui_messages import STREAM_HEADERS, question_of, ui_frames, ui_message

ONE = "/chat/{conversation}"

table = Operations()


@table("GET", ONE, list[UiMessage], ChatPageQuery)
async def get_chat(context: WebContext, request: Request) -> Response:
    """Reads the initial messages. The resumed stream has the one that is being written."""
    conversation = await context.conversation(request)
    query = context.checked(ChatPageQuery, request.query_params)
    page = await conversation.history(query.limit)
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
    body = await context.body(request, ChatBody)
    conversation = await context.access.conversation(request, body.id)
    context.turns.check_answers()
    grant = grant_of(context, request, conversation)
    key = context.key(request, conversation)
    if body.trigger == "submit-message":
        answer = await _ask(context, conversation, body, key)
    else:
        answer = await _regenerate(context, conversation, body.message_id, key)
    return _stream(context, answer, grant)


async def _ask(
    context: WebContext, conversation: Conversation, body: ChatBody, key: Hashable
) -> Message:
    if body.message_id is not None:
        raise RequestError("A message that was sent cannot be changed: send another one.")
    found = question_of(body.messages)
    if found is None or not found["content"].strip():
        raise RequestError("The last of messages must be a user message with a text part.")
    question = context.checked(QuestionBody, found)
    _, answer = await context.turns.ask(
        conversation, question.content, question.request_id, key=key, meanwhile="stop"
    )
    if answer is None:
        raise NotAnsweredError
    return answer


async def _regenerate(
    context: WebContext, conversation: Conversation, message_id: str | None, key: Hashable
) -> Message:
    turns = context.turns
    if message_id is not None:
        last = await context.access.message_id(conversation, message_id)
    else:
        found = await turns.last(conversation)
        if found is None:
            raise ConflictError("Nothing was said yet.")
        last = found.message_id
        if found.role is MessageRole.USER:  # it was not answered
            return await turns.answer(conversation, last, key=key, meanwhile="stop")
    # The client has disconnected from an answer that is being written: its stop does only that.
    return await turns.retry(conversation, last, key=key, meanwhile="stop")


@table("GET", f"{ONE}/stream", UiPart, streams=True, may_be_over=True)
async def resume_chat(context: WebContext, request: Request) -> Response:
    """Streams the answer that is being written, from its start. Without one the status is 204."""
    conversation = await context.conversation(request)
    streaming = await context.turns.streaming(conversation)
    if not streaming:
        return Response(status_code=204, headers=NO_STORE)
    return _stream(context, streaming[-1], grant_of(context, request, conversation))


def _stream(context: WebContext, message: Message | MessageHeader, grant: Grant) -> Response:
    message_id = message.id if isinstance(message, Message) else message.message_id
    watcher = context.converse.watch_message(message_id)
    frames = ui_frames(context, message_id, message.metadata, watcher)
    return EventStream(context, watcher, frames, grant, STREAM_HEADERS)
