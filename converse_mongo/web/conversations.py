"""The endpoints of conversations: history, streams, questions, stops and retries."""

import logging
from collections.abc import AsyncGenerator, Mapping
from time import monotonic
from typing import Any

from bson import ObjectId
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.documents.views import ConversationView, MessageView, work_view
from converse_mongo.domain.errors import (
    CallNotPendingError,
    InvalidInputError,
    MessageNotStreamingError,
    NotFoundError,
    StreamStoppedError,
    ValueNotFoundError,
)
from converse_mongo.domain.events import (
    ConversationDeleted,
    ConversationEvent,
    ConversationUpdated,
    MessageSuspended,
    OwnerEvent,
)
from converse_mongo.domain.generated_ids import generated_id
from converse_mongo.domain.stored_values import StoredValue
from converse_mongo.watching.owner_watcher import OwnerWatcher
from converse_mongo.watching.watcher import Watcher
from converse_mongo.web import models
from converse_mongo.web.context import WebContext
from converse_mongo.web.cursors import check_conversation_cursor, parse_cursor
from converse_mongo.web.errors import (
    ENDED,
    ConflictError,
    NotPendingError,
    RequestError,
    UndecidedError,
    UnknownError,
)
from converse_mongo.web.files import FILES, HEADERS, file_of, files_of, media_type_of
from converse_mongo.web.operations import Operations
from converse_mongo.web.responses import NO_STORE, Json, frame, in_turns
from converse_mongo.web.stream_parts import StreamParts, is_text
from converse_mongo.web.streams import EventStream, Grant, grant_of, is_outage, log_cut

ONE = "/conversations/{conversation}"
MESSAGE = f"{ONE}/messages/{{message}}"

MAX_KNOWN = 256
_MAX_DIGITS = 16

table = Operations()
owner_table = Operations()

logger = logging.getLogger("converse_mongo")

# Reading


@table("GET", ONE, ConversationView)
async def get_conversation(context: WebContext, request: Request) -> Conversation:
    """Reads a conversation."""
    return await context.conversation(request)


@table("GET", f"{ONE}/messages", models.PageView, models.PageQuery)
async def get_history(context: WebContext, request: Request) -> Response:
    """Reads a page of messages. Answers that were replaced come beside its ``limit``."""
    query = context.checked(models.PageQuery, request.query_params)
    conversation = await context.conversation(request)
    page = await context.history(conversation, query.limit, query.before)
    shown = [
        MessageView.model_validate(message, context=context.presenter)
        async for message in in_turns(page.messages)
    ]
    return Json({"messages": shown, "before": page.before, "cursor": page.cursor})


@table("GET", MESSAGE, MessageView)
async def get_message(context: WebContext, request: Request) -> Message:
    """Reads a message."""
    return await context.message(request, await context.conversation(request))


# Streams


@table("GET", f"{ONE}/events", models.ConversationEvent, models.StreamQuery, streams=True)
async def watch_conversation(context: WebContext, request: Request) -> Response:
    """Streams a conversation, without an end."""
    conversation = await context.conversation(request)
    grant = grant_of(context, request, conversation)
    watcher = await watcher_of(context, request, conversation)
    return EventStream(context, watcher, _frames(context, watcher), grant)


@table(
    *("GET", f"{MESSAGE}/events", models.MessageEvent, models.MessageStreamQuery),
    streams=True,
    may_be_over=True,
)
async def watch_message(context: WebContext, request: Request) -> Response:
    """Streams a message to its end. The status is 204 for a client that has received the end.

    With ``snapshot``, a client without a cursor first gets what the message has so far, as one
    event in place of all chunks.
    """
    conversation = await context.conversation(request)
    name = request.path_params["message"]
    message_id = await context.access.message_id(conversation, name)
    text = _after(context, request)
    after = None if text is None else parse_cursor(text, message_id)
    if isinstance(after, str):
        return Response(status_code=204, headers=NO_STORE)
    if after is not None:
        await context.access.check_sequence(conversation, message_id, after)
    grant = grant_of(context, request, conversation)
    query = context.checked(models.MessageStreamQuery, request.query_params)
    watcher: Watcher[Any]
    if query.snapshot and after is None:
        watcher = context.converse.watch_message(message_id, snapshot=True)
    else:
        watcher = context.converse.watch_message(message_id, after)
    await watcher.__aenter__()  # so that an error becomes the response
    return EventStream(context, watcher, _frames(context, watcher), grant)


async def _frames(context: WebContext, watcher: Watcher[Any]) -> AsyncGenerator[bytes, None]:
    shows, frame_of = context.access.shows_event, context.frames.sse
    parts = StreamParts(context.converse.message_model)
    yield context.streams.opening
    with log_cut():
        async for event in watcher:
            if shows(event):
                yield frame_of(event, None if is_text(event) else await parts.of(event))


@owner_table("GET", "/events", models.OwnerEvent, models.OwnerQuery, streams=True)
async def watch_owner(context: WebContext, request: Request) -> Response:
    """Streams the news of all conversations of the user, from now on."""
    context.checked(models.OwnerQuery, request.query_params)
    owner = await context.access.owner(request)

    async def ask() -> None:
        if await context.access.owner(request) != owner:
            raise UnknownError

    watcher = context.converse.watch_owner(owner)
    key = context.key(request, None, owner)
    context.stream_slots.check(key)
    await watcher.__aenter__()
    return EventStream(context, watcher, _owner_frames(context, request, watcher), Grant(key, ask))


async def _owner_frames(
    context: WebContext, request: Request, watcher: OwnerWatcher
) -> AsyncGenerator[bytes, None]:
    known, presenter = _Known(context, request), context.presenter.streaming

    async def shown(event: OwnerEvent) -> Any:
        if not (context.access.shows_event(event) and await known.shows(event)):
            return None
        lacking = None
        if isinstance(event, MessageSuspended) and presenter.show_parts is not None:
            # Nothing is remembered: it may be of a message that was deleted and is started anew.
            lacking = await StreamParts(context.converse.message_model).of(event)
        return presenter.event(event, lacking)

    yield context.streams.opening
    with log_cut():
        waiting = [view for each in watcher.waiting if (view := await shown(each))]
        # From here on nothing is missed: now is the time to list the conversations.
        opened = models.StreamOpened(waiting=waiting)
        yield frame(opened, event=opened.type)
        async for event in watcher:
            if view := await shown(event):
                yield frame(view, event=event.type)


class _Known:
    """Which conversations of an owner a request may see.

    Each is authorized when there is news of it, again when it was saved, and now and then.

    Args:
        context: The parts of the web edge.
        request: The request that follows them.
    """

    def __init__(self, context: WebContext, request: Request) -> None:
        self._context = context
        self._request = request
        self._answers: dict[Any, tuple[bool, float]] = {}

    async def shows(self, event: OwnerEvent) -> bool:
        """Reports whether the request may see an event."""
        conversation_id, now = event.conversation_id, monotonic()
        answer, until = self._answers.pop(conversation_id, (None, now))
        if isinstance(event, ConversationDeleted):
            # It cannot be authorized any more. The event has nothing but its id.
            return answer is not False
        # Whoever saves a conversation may have changed whom it is shared with.
        if until <= now or isinstance(event, ConversationUpdated):
            until = now + self._context.streams.reauthorize
            answer = await self._ask(str(conversation_id), answer)
        if len(self._answers) >= MAX_KNOWN:
            del self._answers[next(iter(self._answers))]
        self._answers[conversation_id] = bool(answer), until
        return bool(answer)

    async def _ask(self, conversation_id: str, before: bool | None) -> bool:
        try:
            await self._context.access.conversation(self._request, conversation_id)
        except Exception as error:
            if before is not None and is_outage(error):
                logger.warning("A conversation could not be authorized again: %r", error)
                return before
            if isinstance(error, UndecidedError):
                raise  # left out, it would be missing for as long as the stream lasts
            if isinstance(error, UnknownError | NotFoundError):
                return False
            raise
        return True


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


@table("POST", f"{ONE}/messages", models.QuestionView, models.FilesBody, 201)
async def add_question(context: WebContext, request: Request) -> dict[str, Any]:
    """Adds a user message and starts the answer."""
    conversation = await context.conversation(request)
    body = await context.body(request, models.FilesBody)
    files = files_of(body.files, context.limits.file_bytes)
    if not files:
        context.checked(models.QuestionBody, {"content": body.content})
    question, answer = await context.turns.ask(
        conversation,
        body.content,
        body.request_id,
        key=context.key(request, conversation),
        files=files,
    )
    return {"message": question, "answer": answer}


@table("POST", f"{MESSAGE}/retry", models.RetryView, models.EmptyBody, 201)
async def retry_answer(context: WebContext, request: Request) -> dict[str, Any]:
    """Starts another answer in place of the last one."""
    conversation = await context.conversation(request)
    answer = await context.access.message_id(conversation, request.path_params["message"])
    await context.body(request, models.EmptyBody)
    key = context.key(request, conversation)
    return {"answer": await context.turns.retry(conversation, answer, key=key)}


@table(
    *("GET", f"{MESSAGE}/files/{{part}}", str),
    media_type="application/octet-stream",
    patterns={"part": "^[0-9]{1,15}$"},
)
async def get_file(context: WebContext, request: Request) -> Response:
    """Reads a file that a message has itself, and not only its address, by the number of its part.

    Clients may show it in an image, or save it. Nothing in it can run.
    """
    conversation = await context.conversation(request)
    message = await context.message(request, conversation)
    name = request.path_params["part"]
    number = int(name) if name.isdecimal() and len(name) < _MAX_DIGITS else None
    shown = MessageView.model_validate(message, context=context.presenter).parts or []
    if not any(each["part"] == number and _has_file(each) for each in shown):
        raise UnknownError
    [part] = [each for each in message.parts if each.number == number]
    url = part.fields["url"]
    if isinstance(url, StoredValue):
        try:
            url = await message.load_value(url)
        except ValueNotFoundError as error:
            raise UnknownError from error
    found = file_of(url)
    if found is None:
        raise UnknownError
    return Response(found, media_type=media_type_of(part.fields.get("media_type")), headers=HEADERS)


def _has_file(record: Mapping[str, Any]) -> bool:
    return record["kind"] in FILES and (
        "url" in record["fields"] or "url" in record.get("values", ())
    )


@table("POST", f"{MESSAGE}/stop", models.StatusView, models.StopBody)
async def stop_answer(context: WebContext, request: Request) -> dict[str, Any]:
    """Stops a message, in whatever process it is written."""
    conversation = await context.conversation(request)
    name = request.path_params["message"]
    message_id = await context.access.message_id(conversation, name)
    reason = (await context.body(request, models.StopBody)).reason
    return {"id": message_id, "status": await context.converse.request_stop(message_id, reason)}


@table("POST", f"{MESSAGE}/answers", models.AnsweredView, models.AnswersBody)
async def answer_calls(context: WebContext, request: Request) -> dict[str, Any]:
    """Answers tool calls that wait for people: all of them, or none.

    The first answer to a call wins; another one gets the status 409 and the code ``not_pending``.
    Once no call waits any more, the message goes on.
    """
    conversation = await context.conversation(request)
    name = request.path_params["message"]
    message_id = await context.access.message_id(conversation, name)
    body = await context.body(request, models.AnswersBody)
    message = await context.access.message(conversation, name)
    shown = MessageView.model_validate(message, context=context.presenter).parts
    if message.work is not None:
        hidden = {
            call.call_id
            for call in message.work.pending
            if not context.presenter.shows_call(call, shown)
        }
        if hidden.intersection(each.call_id for each in body.answers):
            raise NotPendingError
    await store_answers(context, message_id, body, once=body.request_id is not None)
    state = await conversation.store().answers.state(conversation.id, message_id)
    work = None if state is None else state.work
    return {"work": work_view(work, shown, context.presenter)}


async def store_answers(
    context: WebContext, message_id: ObjectId, body: models.AnswersBody, *, once: bool
) -> None:
    """Stores the answers to tool calls that wait: all of them, or none.

    Args:
        context: The context.
        message_id: The id of the message.
        body: The answers.
        once: Whether the same again changes nothing.

    Raises:
        NotPendingError: A call does not wait.
        ConflictError: The message has ended.
        RequestError: An answer cannot be stored.
    """
    append_id = generated_id(message_id, f"answers:{body.model_dump_json()}") if once else None
    answers = [each.answer() for each in body.answers]
    try:
        await context.converse.answer_tool_calls(message_id, answers, append_id=append_id)
    except CallNotPendingError as error:
        raise NotPendingError(detail=f"The call is {error.call_id!r}.") from error
    except (StreamStoppedError, MessageNotStreamingError) as error:
        raise ConflictError(ENDED) from error
    except InvalidInputError as error:
        raise RequestError(detail=str(error)) from error


@table("POST", f"{ONE}/stop", models.StoppedView, models.StopsBody)
async def stop_answers(context: WebContext, request: Request) -> dict[str, Any]:
    """Stops answers that are being written: all of a conversation, or that to one question."""
    conversation = await context.conversation(request)
    body = await context.body(request, models.StopsBody)
    stopped = await context.turns.stop(conversation, body.reason, body.request_id)
    return {"stopped": [{"id": message_id, "status": status} for message_id, status in stopped]}
