"""Responding: the function of an application that generates an answer, in any of its forms."""

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, TypeAlias

from bson import ObjectId

from converse_mongo.documents.conversations import (
    Conversation,
    load_context,
    load_conversation,
)
from converse_mongo.documents.loading import load_message
from converse_mongo.documents.messages import Message
from converse_mongo.domain.errors import ConfigurationError
from converse_mongo.domain.headers import HEADER, MessageHeader
from converse_mongo.domain.part_events import PartEvent
from converse_mongo.domain.parts import Part
from converse_mongo.domain.types import MessageRole, Metadata
from converse_mongo.domain.work import Job
from converse_mongo.working.attempt import Attempt, Loaded
from converse_mongo.writing.attempt import current

Content: TypeAlias = str | Part | PartEvent

Respond: TypeAlias = Callable[
    [Conversation, Message],
    Awaitable[None] | AsyncIterator[Content] | Iterator[Content],
]
"""Writes the answer of the model into a streaming message.

A coroutine function writes it itself, for example with ``async with message.writer()``. What an
asynchronous generator function yields is written as ``Message.pipe`` does. A plain function runs in
a thread of its own, and returns an iterator, or is a generator function: what it yields is written
as well. A thread cannot be killed: one that hangs goes on when its attempt is ended, and what it
yields then is dropped."""

_END = object()


def check_respond(respond: object) -> Respond:
    """Checks that something can be called.

    Raises:
        ConfigurationError: It cannot.
    """
    if not callable(respond):
        raise ConfigurationError(f"respond={respond!r}: pass a function.")
    return respond


async def have_respond(respond: Respond, conversation: Conversation, message: Message) -> None:
    """Has the application write an answer.

    Raises:
        TypeError: What it returned is none of the forms of :data:`Respond`.
        Exception: What the application raised.
    """
    if _runs_in_the_loop(respond):
        await _write(respond(conversation, message), message)
        return
    # Not in those of the loop, which are few: one that hangs would be missing there, also for
    # other answers.
    thread = ThreadPoolExecutor(1, "converse_mongo-respond")
    try:
        await _write(await _call(thread, respond, conversation, message), message, thread)
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


async def _write(found: Any, message: Message, thread: ThreadPoolExecutor | None = None) -> None:
    """Writes what the application has returned.

    Args:
        found: What it is.
        message: The message.
        thread: The thread in which a function ran that is none for the loop.
    """
    if isinstance(found, Awaitable):
        await found
    elif isinstance(found, AsyncIterable):
        await message.pipe(found)
    elif isinstance(found, Iterator):
        await message.pipe(_in_a_thread(thread, found))
    else:
        raise TypeError(
            f"respond returned {type(found).__name__}: it must be a coroutine function, or yield "
            "the answer"
        )


def _runs_in_the_loop(respond: Respond) -> bool:
    call = getattr(type(respond), "__call__", None)  # noqa: B004 - of an object that is callable
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (respond, call)
    )


async def _in_a_thread(
    thread: ThreadPoolExecutor | None, contents: Iterator[Content]
) -> AsyncIterator[Content]:
    """Yields what an iterator yields, which may block."""
    while (content := await _call(thread, next, contents, _END)) is not _END:
        yield content


async def _call(
    thread: ThreadPoolExecutor | None, function: Callable[..., Any], *arguments: Any
) -> Any:
    """Calls a function in a thread, as ``asyncio.to_thread`` does."""

    def run() -> Any:
        try:
            return function(*arguments)
        except StopIteration as error:
            # On Python 3.11 no future takes it, and who waits for that would wait for ever.
            raise RuntimeError("respond raised StopIteration") from error

    call = partial(copy_context().run, run)
    return await asyncio.get_running_loop().run_in_executor(thread, call)


async def load_attempt(
    model: type[Message],
    respond: Respond,
    state: MessageHeader,
    attempt: Attempt,
) -> Loaded:
    """Loads what an attempt of a worker is given.

    Raises:
        MessageNotFoundError: The message was deleted.
        ConversationNotFoundError: Its conversation was.
        StoreUnavailableError: MongoDB did not answer.
    """
    conversation_model: Any = model.conversation_model
    conversation, message = await asyncio.gather(
        load_conversation(conversation_model, state.conversation_id),
        load_message(model, state.key),
    )
    return _loaded(respond, conversation, message, attempt)


async def start_claimed(
    conversation: Conversation,
    job: Job,
    holder: ObjectId,
    metadata: Metadata | None = None,
    generation_id: str | None = None,
) -> Message:
    """Adds the message of an answer that is claimed already, or finds it.

    So its worker, which is here, needs no write to claim it, and no other worker hears of it. If
    this process dies before it has begun, the message is one whose worker died.

    Args:
        conversation: The conversation.
        job: How it is queued if it ever goes back to its queue, without a delay and a key.
        holder: The holder of its lease.
        metadata: Its metadata.
        generation_id: Its name.

    It raises what ``start_streaming_assistant`` does.
    """
    return await conversation._start(  # noqa: SLF001 - between the documents
        *(MessageRole.ASSISTANT, metadata, generation_id, None, {}, job, holder)
    )


def header_of(message: Message) -> MessageHeader:
    """Returns the header of a message that was just added, as far as its copy knows it."""
    stored = {name: message.__dict__.get(name) for name in HEADER}
    stored |= {"_id": message.id, "lease": dict(message.lease or {})}
    if message.work is not None:
        stored["work"] = message.work.to_stored()
    return MessageHeader.from_stored(stored)


async def load_started(
    conversation: Conversation, message: Message, respond: Respond, attempt: Attempt
) -> Loaded:
    """Makes what :func:`load_attempt` loads of what was just added.

    It raises what :func:`load_attempt` does.
    """
    await load_context(conversation)
    return _loaded(respond, conversation, message, attempt)


def _loaded(
    respond: Respond, conversation: Conversation, message: Message, attempt: Attempt
) -> Loaded:
    async def generate() -> None:
        current.set(attempt)  # for other copies of the message
        await have_respond(respond, conversation, message)

    message._attempt = attempt  # noqa: SLF001 - between the documents
    return Loaded(
        respond=generate,
        is_streaming=lambda: message.is_streaming,
        end=message._end,  # noqa: SLF001 - between the documents
        has_chunks=message.next_sequence > 0,
        checkpoint=message.checkpoint,
    )
