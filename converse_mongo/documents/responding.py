"""Responding: the function of an application that generates an answer, in any of its forms."""

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeAlias

from converse_mongo.documents.conversations import Conversation, load_conversation
from converse_mongo.documents.loading import load_message
from converse_mongo.documents.messages import Message
from converse_mongo.domain.errors import ConfigurationError, InvalidInputError
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.part_events import PartEvent
from converse_mongo.domain.parts import Part
from converse_mongo.domain.queues import AnyQueue, names_of
from converse_mongo.domain.retries import RetryPolicy
from converse_mongo.domain.validation import check_int, check_seconds
from converse_mongo.domain.work import check_delay
from converse_mongo.store import Store
from converse_mongo.working.attempt import Attempt, Limits, Loaded
from converse_mongo.working.worker import Worker, WorkerOptions

Content: TypeAlias = str | Part | PartEvent

Respond: TypeAlias = Callable[
    [Conversation, Message],
    Awaitable[None] | AsyncIterator[Content] | Iterator[Content],
]
"""Writes the answer of the model into a streaming message.

A coroutine function writes it itself, for example with ``async with message.writer()``. What an
asynchronous generator function yields is written as ``Message.pipe`` does. A plain function runs in
a thread, and returns an iterator, or is a generator function: what it yields is written as well. A
thread cannot be killed: one that hangs goes on when its attempt is ended, and what it yields then
is dropped."""

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
        found: Any = respond(conversation, message)
    else:
        found = await asyncio.to_thread(respond, conversation, message)
    if isinstance(found, Awaitable):
        await found
    elif isinstance(found, AsyncIterable):
        await message.pipe(found)
    elif isinstance(found, Iterator):
        await message.pipe(_in_a_thread(found))
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


async def _in_a_thread(contents: Iterator[Content]) -> AsyncIterator[Content]:
    """Yields what an iterator yields, which may block."""
    while (content := await asyncio.to_thread(next, contents, _END)) is not _END:
        yield content  # type: ignore[misc]


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
    message._attempt = attempt  # noqa: SLF001 - between the documents
    return Loaded(
        respond=partial(have_respond, respond, conversation, message),
        is_streaming=lambda: message.is_streaming,
        end=message._end,  # noqa: SLF001 - between the documents
        has_chunks=message.next_sequence > 0,
    )


def make_worker(
    store: Store,
    model: type[Message],
    respond: Respond,
    *,
    queues: Iterable[AnyQueue],
    concurrency: int,
    retry: RetryPolicy,
    timeout: float | None,
    silence: float | None,
    start_over: bool,
    grace: float,
    poll_interval: float,
    poll_interval_without_stream: float,
    hears: Callable[[], bool],
) -> Worker:
    """Makes a worker that has ``respond`` generate answers: see ``Converse.worker``.

    Raises:
        InvalidInputError: An option is out of range.
        ConfigurationError: ``respond`` is no function.
    """
    if not isinstance(retry, RetryPolicy):
        raise InvalidInputError(f"retry must be a RetryPolicy, got {retry!r}.")
    for name, seconds in (("timeout", timeout), ("silence", silence)):
        if seconds is not None:
            check_seconds(seconds, name)
    options = WorkerOptions(
        queues=names_of(queues),
        concurrency=check_int(concurrency, "concurrency", 1),
        limits=Limits(timeout, silence, retry, start_over),
        grace=check_delay(grace),
        poll_interval=check_seconds(poll_interval, "poll_interval"),
        poll_interval_without_stream=min(poll_interval, poll_interval_without_stream),
    )
    load = partial(load_attempt, model, check_respond(respond))
    return Worker(store, load, options, hears)
