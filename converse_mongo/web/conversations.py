"""The endpoints of conversations: history, streams, questions, stops and retries."""

from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.domain.errors import NotFoundError
from converse_mongo.domain.events import ConversationDeleted, ConversationEvent, OwnerEvent
from converse_mongo.watching.owner_watcher import OwnerWatcher
from converse_mongo.watching.watcher import Watcher
from converse_mongo.web import models
from converse_mongo.web.context import WebContext
from converse_mongo.web.cursors import check_conversation_cursor, event_cursor, parse_cursor
from converse_mongo.web.errors import UndecidedError, UnknownError
from converse_mongo.web.operations import Operations
from converse_mongo.web.responses import NO_STORE, frame
from converse_mongo.web.streams import EventStream, log_cut

ONE = "/conversations/{conversation}"
MESSAGE = f"{ONE}/messages/{{message}}"

MAX_KNOWN = 256

table = Operations()
owner_table = Operations()

# Reading


@table("GET", ONE, models.ConversationView)
async def get_conversation(context: WebContext, request: Request) -> Conversation:
    """Reads a conversation."""
    return await context.conversation(request)


@table("GET", f"{ONE}/messages", models.PageView, models.PageQuery)
async def get_history(context: WebContext, request: Request) -> dict[str, Any]:
    """Reads a page of messages."""
    query = context.checked(models.PageQuery, request.query_params)
    conversation = await context.conversation(request)
    page = await context.history(conversation, query.limit, query.before)
    shown = [each for each in page.messages if context.access.shows(each.role)]
    return {"messages": shown, "before": page.before, "cursor": page.cursor}


@table("GET", MESSAGE, models.MessageView)
async def get_message(context: WebContext, request: Request) -> Message:
    """Reads a message."""
    return await context.message(request, await context.conversation(request))


# Streams


@table("GET", f"{ONE}/events", models.ConversationEvent, models.StreamQuery, streams=True)
async def watch_conversation(context: WebContext, request: Request) -> Response:
    """Streams a conversation, without an end."""
    watcher = await watcher_of(context, request, await context.conversation(request))
    return EventStream(watcher, _frames(context, watcher), context.streams)


@table(
    *("GET", f"{MESSAGE}/events", models.MessageEvent, models.StreamQuery),
    streams=True,
    may_be_over=True,
)
async def watch_message(context: WebContext, request: Request) -> Response:
    """Streams a message to its end. The status is 204 for a client that has received the end."""
    conversation = await context.conversation(request)
    name = request.path_params["message"]
    message_id = await context.access.message_id(conversation, name)
    text = _after(context, request)
    after = None if text is None else parse_cursor(text, message_id)
    if isinstance(after, str):
        return Response(status_code=204, headers=NO_STORE)
    if after is not None:
        await context.access.check_sequence(conversation, message_id, after)
    watcher = context.converse.watch_message(message_id, after)
    await watcher.__aenter__()  # so that an error becomes the response
    return EventStream(watcher, _frames(context, watcher), context.streams)


async def _frames(context: WebContext, watcher: Watcher[Any]) -> AsyncGenerator[bytes, None]:
    shows, present = context.access.shows_event, context.presenter.event
    yield context.streams.opening
    with log_cut():
        async for event in watcher:
            if shows(event):
                yield frame(present(event), event=event.type, cursor=event_cursor(event))


@owner_table("GET", "/events", models.OwnerEvent, models.OwnerQuery, streams=True)
async def watch_owner(context: WebContext, request: Request) -> Response:
    """Streams the news of all conversations of the user, from now on."""
    context.checked(models.OwnerQuery, request.query_params)
    watcher = context.converse.watch_owner(await context.access.owner(request))
    await watcher.__aenter__()
    return EventStream(watcher, _owner_frames(context, request, watcher), context.streams)


async def _owner_frames(
    context: WebContext, request: Request, watcher: OwnerWatcher
) -> AsyncGenerator[bytes, None]:
    """Each conversation is authorized as well, once."""
    known: dict[Any, bool] = {}

    async def shows(event: OwnerEvent) -> bool:
        conversation_id = event.conversation_id
        if isinstance(event, ConversationDeleted):
            # It cannot be authorized any more. The event has nothing but its id.
            return known.pop(conversation_id, True)
        if conversation_id not in known:
            if len(known) >= MAX_KNOWN:
                del known[next(iter(known))]
            known[conversation_id] = False
            try:
                await context.access.conversation(request, str(conversation_id))
                known[conversation_id] = True
            except UndecidedError:
                raise  # left out, it would be missing for as long as the stream lasts
            except (UnknownError, NotFoundError):
                pass
        return known[conversation_id] and context.access.shows_event(event)

    # From here on nothing is missed: now is the time to list the conversations.
    opened = models.StreamOpened()
    yield context.streams.opening + frame(opened, event=opened.type)
    with log_cut():
        async for event in watcher:
            if await shows(event):
                yield frame(context.presenter.event(event), event=event.type)


async def watcher_of(
    context: WebContext, request: HTTPConnection, conversation: Conversation
) -> Watcher[ConversationEvent]:
    """A watcher of a conversation that has attached at the cursor of the request.

    Raises:
        UnknownError: The cursor is one of another conversation.
        RequestError: The cursor is not valid.
    """
    after = _after(context, request)
    check_conversation_cursor(after, conversation.id)
    watcher = context.converse.watch_conversation(conversation.id, after)
    return await watcher.__aenter__()


def _after(context: WebContext, request: HTTPConnection) -> str | None:
    """The cursor that a browser sends by itself, or the one in the address."""
    after = request.headers.get("last-event-id") or request.query_params.get("after") or None
    return context.checked(models.StreamQuery, {"after": after}).after


# Writing


@table("POST", f"{ONE}/messages", models.QuestionView, models.QuestionBody, 201)
async def add_question(context: WebContext, request: Request) -> dict[str, Any]:
    """Adds a user message and starts the answer."""
    conversation = await context.conversation(request)
    body = await context.body(request, models.QuestionBody)
    question, answer = await context.turns.ask(conversation, body.content, body.request_id)
    return {"message": question, "answer": answer}


@table("POST", f"{MESSAGE}/retry", models.RetryView, models.EmptyBody, 201)
async def retry_answer(context: WebContext, request: Request) -> dict[str, Any]:
    """Starts another answer in place of the last one."""
    conversation = await context.conversation(request)
    message = await context.message(request, conversation)
    await context.body(request, models.EmptyBody)
    return {"answer": await context.turns.retry(conversation, message)}


@table("POST", f"{MESSAGE}/stop", models.StatusView, models.StopBody)
async def stop_answer(context: WebContext, request: Request) -> dict[str, Any]:
    """Stops a message, in whatever process it is written."""
    conversation = await context.conversation(request)
    name = request.path_params["message"]
    message_id = await context.access.message_id(conversation, name)
    reason = (await context.body(request, models.StopBody)).reason
    return {"id": message_id, "status": await context.converse.request_stop(message_id, reason)}


@table("POST", f"{ONE}/stop", models.StoppedView, models.StopBody)
@table("POST", "/chat/{conversation}/stop", models.StoppedView, models.StopBody)
async def stop_answers(context: WebContext, request: Request) -> dict[str, Any]:
    """Stops all answers of a conversation that are being written."""
    conversation = await context.conversation(request)
    reason = (await context.body(request, models.StopBody)).reason
    stopped = await context.turns.stop(conversation, reason)
    return {"stopped": [{"id": message.id, "status": status} for message, status in stopped]}
