"""The endpoints that ``useChat`` of the AI SDK calls. A chat has the id of its conversation."""

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

from bson import ObjectId
from starlette.requests import Request
from starlette.responses import Response

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.listings import Range, read_headers
from converse_mongo.documents.messages import Message
from converse_mongo.documents.views import replaced_id
from converse_mongo.domain.cursors import NOW
from converse_mongo.domain.events import MessageCreated
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.types import MessageRole
from converse_mongo.domain.validation import now
from converse_mongo.domain.work import WorkState
from converse_mongo.web.chat_turns import ChatTurns
from converse_mongo.web.context import WebContext
from converse_mongo.web.conversations import stop_answers
from converse_mongo.web.errors import UnknownError
from converse_mongo.web.models import (
    ChatBody,
    ChatPageQuery,
    ChatStopsBody,
    ChatStreamQuery,
    StoppedView,
    UiMessage,
    UiPart,
)
from converse_mongo.web.operations import Operations
from converse_mongo.web.pages import replaced_behind
from converse_mongo.web.prompts import without_replaced
from converse_mongo.web.responses import NO_STORE, Json, in_turns
from converse_mongo.web.streams import EventStream, Grant, grant_of
from converse_mongo.web.ui_messages import (
    DONE_DATA,
    STREAM_HEADERS,
    UiSource,
    ui_frames,
    ui_message,
    ui_source,
    ui_tail,
)

ONE = "/chat/{conversation}"

BEFORE = "x-converse-before"
"""The ``before`` of the page before this one."""
RESUME = "x-converse-resume"
"""What the page lacks begins here: the ``resume`` of a resumed stream."""
RUN_ID = "x-workflow-run-id"
TAIL = "x-workflow-stream-tail-index"

PAGE_LOAD = timedelta(seconds=60)
"""The time in which a page resumes after it has read its messages, and a question is answered."""
BEGIN_SECONDS = 3.0
"""The time for which a resumed stream waits for the answer to a new question."""
MAX_ANSWERS = 32

_MAX_DIGITS = 16
_RUN = re.compile(r"run_([0-9a-f]{24})_([0-9a-f]{24})(?:_([1-9][0-9]{0,8}))?")
_STREAM_HEADERS = {
    **dict.fromkeys(STREAM_HEADERS, "The version of the protocol"),
    RUN_ID: "The run id of the answer, by which it can be resumed",
}
_TALK = frozenset({MessageRole.USER, MessageRole.ASSISTANT})

table = Operations()


@table(
    *("GET", ONE, list[UiMessage], ChatPageQuery),
    headers={
        BEFORE: "The `before` of the page before this one; without it there is none",
        RESUME: "The `resume` of the stream of what the newest page lacks",
    },
)
async def get_chat(context: WebContext, request: Request) -> Response:
    """Reads a page of messages, by default the newest.

    The newest page leaves out the last answer while it is being written: the resumed stream has it.
    Other answers that are being written, and one that waits for people, are as they are so far.
    """
    conversation = await context.conversation(request)
    query = context.checked(ChatPageQuery, request.query_params)
    page = await context.history(conversation, query.limit, query.before)
    messages = without_replaced(page.messages)
    headers = {} if page.before is None else {BEFORE: str(page.before)}
    lacking = False
    if query.before is None:
        end = cast(int, messages[-1].position) + 1 if messages else 0
        last = next((each for each in reversed(messages) if each.role in _TALK), None)
        if last is not None and last.role is MessageRole.ASSISTANT and is_being_written(last):
            messages = [each for each in messages if each is not last]
            end, lacking = cast(int, last.position), True
        elif last is not None and last.role is MessageRole.USER:
            lacking = _is_recent(last.created_at)
        headers[RESUME] = str(end)
    else:
        behind = await replaced_behind(conversation, context.access.roles, query.before)
        messages = [each for each in messages if str(each.id) not in behind]
    shown = [
        await ui_message(each, context.presenter, _files(request, conversation, each.id))
        async for each in in_turns(messages)
    ]
    response = Json(shown, omit_none=True)
    response.headers.update(headers)
    if query.before is None:
        _remember(request, response, conversation, headers[RESUME] if lacking else None)
    return response


def _files(request: Request, conversation: Conversation, message_id: ObjectId) -> str:
    """The path of the files of a message, which is beside that of chats."""
    root = request.url.path.rpartition("/chat")[0]
    return f"{root}/conversations/{conversation.id}/messages/{message_id}/files/"


def is_being_written(message: Message) -> bool:
    """Reports whether a message is streaming, and does not wait for people."""
    work = message.work
    return message.is_streaming and not (work is not None and work.state is WorkState.WAITING)


def _remember(
    request: Request, response: Response, conversation: Conversation, resume: str | None
) -> None:
    """Has a browser send ``resume`` by itself while its page loads, or no longer.

    The default transport of the SDK does not know what its page has. Without this it would miss an
    answer that ends while the page loads; replaying such an answer to each page would have a page
    that has it show it twice, with ``ai`` before 7.0.61.
    """
    name = _cookie(conversation)
    if resume is not None:
        response.set_cookie(
            *(name, resume, int(PAGE_LOAD.total_seconds())),
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
    elif name in request.cookies:
        response.delete_cookie(name)


def _remembered(request: Request, conversation: Conversation) -> int | None:
    found = request.cookies.get(_cookie(conversation), "")
    return int(found) if found.isdecimal() and len(found) < _MAX_DIGITS else None


def _cookie(conversation: Conversation) -> str:
    return f"converse-resume-{conversation.id}"


@table(
    *("POST", "/chat", UiPart, ChatBody),
    streams=True,
    last_data=DONE_DATA,
    headers=_STREAM_HEADERS,
)
async def chat(context: WebContext, request: Request) -> Response:
    """Adds a user message, or starts another answer, and streams the answer.

    If the last message is an answer that waits for people, what it says of its tool calls that wait
    is taken: approvals, and the outputs of tools that the page runs. The answer goes on, under its
    id.

    The client may leave: the answer is written to its end, and can be resumed.
    """
    conversation, body = await context.chat_body(request)
    context.turns.check_answers()
    grant = grant_of(context, request, conversation)  # before anything is written
    files_of = partial(_files, request, conversation)
    turns = ChatTurns(context, conversation, grant.key, files_of)
    base = 0
    if body.trigger != "submit-message":
        answer = await turns.regenerate(body)
    elif turns.answers_calls(body):
        answer, base = await turns.answer_calls(body)
    else:
        answer = await turns.submit(body)
    files = _files(request, conversation, answer.id)
    source = UiSource(answer.id, answer.metadata, base, files=files)
    response = _stream(context, grant, conversation, source)
    _remember(request, response, conversation, None)
    return response


@table(
    *("GET", f"{ONE}/stream", UiPart, ChatStreamQuery),
    streams=True,
    may_be_over=True,
    last_data=DONE_DATA,
    patterns={"conversation": f"^([0-9a-f]{{24}}|{_RUN.pattern})$"},
    headers={**_STREAM_HEADERS, TAIL: "The index of the last part, if `startIndex` is negative"},
)
async def resume_chat(context: WebContext, request: Request) -> Response:
    """Streams the answer that a page lacks, from its start. Without one the status is 204.

    That is the last answer, while it is being written. With ``resume`` it is the first answer
    behind what the page has, also if it has ended.

    In the place of the id of a chat may be a run id of the AI SDK's workflows: that of an answer.
    With ``startIndex`` the stream begins with that part; a negative one counts from the end. The
    parts of an answer are the same each time, until some of it is redacted.
    """
    query = context.checked(ChatStreamQuery, request.query_params)
    run, base = _RUN.fullmatch(request.path_params["conversation"]), 0
    if run is None:
        conversation = await context.conversation(request)
        since = _remembered(request, conversation) if query.resume is None else query.resume
        found = await _lacking(context, conversation, since)
        if found is None:
            return Response(status_code=204, headers=NO_STORE)
    else:
        conversation = await context.access.conversation(request, run[1])
        message_id, base = await context.access.message_id(conversation, run[2]), int(run[3] or 0)
        found = await conversation.store().answers.state(conversation.id, message_id)
        if found is None or found.role is not MessageRole.ASSISTANT:
            raise UnknownError
    grant = grant_of(context, request, conversation)
    files = _files(request, conversation, found.message_id)
    first, headers = query.start_index, {}
    if first is not None and first < 0:
        tail = await ui_tail(context, conversation, found, files, base=base)
        headers[TAIL] = str(tail)
        first = max(tail + 1 + first, 0)
    source = await ui_source(conversation, found, files, base=base, since=first)
    return _stream(context, grant, conversation, source, headers)


@table("POST", f"{ONE}/stop", StoppedView, ChatStopsBody)
async def stop_chat(context: WebContext, request: Request) -> dict[str, Any]:
    """Stops answers that are being written: all of a chat, or that to the message ``messageId``."""
    stopped: dict[str, Any] = await stop_answers(context, request)
    return stopped


async def _lacking(
    context: WebContext, conversation: Conversation, since: int | None
) -> MessageHeader | None:
    """The answer that a page lacks.

    Args:
        context: The context.
        conversation: The conversation.
        since: The position before which the page has everything; ``None`` if that is not known.
    """
    roles = context.access.roles & _TALK
    if since is not None:
        wanted = Range(start=since, limit=MAX_ANSWERS, roles=roles)
        listed = await _headers(conversation, wanted)
        replaced = {replaced_id(each.metadata) for each in listed}
        following = [each for each in listed if str(each.message_id) not in replaced]
        if following:
            # Without its question an answer is not for this page.
            return following[0] if following[0].role is MessageRole.ASSISTANT else None
    newest = await _headers(
        conversation, Range(stop=since, limit=1, roles=roles, newest_first=True)
    )
    if not newest:
        return None
    [last] = newest
    if last.role is MessageRole.USER:
        return await _begun(context, conversation, last)
    return last if since is None and not last.status.is_final else None


async def _begun(
    context: WebContext, conversation: Conversation, question: MessageHeader
) -> MessageHeader | None:
    """The answer to a question that was asked a moment ago, for which it waits."""
    if not _is_recent(question.created_at):
        return None
    answers = Range(start=question.position + 1, limit=1, roles=frozenset({MessageRole.ASSISTANT}))
    watcher = context.converse.watch_conversation(conversation.id, NOW)
    with suppress(TimeoutError):
        async with watcher, asyncio.timeout(BEGIN_SECONDS):
            found = await _headers(conversation, answers)
            while not found:
                event = await anext(watcher)
                if isinstance(event, MessageCreated) and event.role is MessageRole.ASSISTANT:
                    found = await _headers(conversation, answers)
            return found[0]
    return None


def _is_recent(moment: datetime) -> bool:
    return now() - moment < PAGE_LOAD


async def _headers(conversation: Conversation, wanted: Range) -> list[MessageHeader]:
    return await read_headers(conversation.store(), conversation.id, wanted)


def _stream(
    context: WebContext,
    grant: Grant,
    conversation: Conversation,
    source: UiSource,
    headers: Mapping[str, str] | None = None,
) -> Response:
    after = source.skipped - 1 if source.skipped else None
    watcher = context.converse.watch_message(source.message_id, after)
    frames = ui_frames(context, conversation, source, watcher)
    run = f"run_{conversation.id}_{source.message_id}"
    if source.base:
        run += f"_{source.base}"
    return EventStream(
        context, watcher, frames, grant, {**STREAM_HEADERS, RUN_ID: run, **(headers or {})}
    )
