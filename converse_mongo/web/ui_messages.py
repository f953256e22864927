"""The AI SDK's UI messages and their stream, as ``useChat`` of npm's ``@ai-sdk/react`` reads them.

Source: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol, read for ``ai`` 7.
"""

from collections.abc import AsyncGenerator, Iterator
from typing import Any

from converse_mongo.documents.messages import Message
from converse_mongo.domain.events import (
    ChunkReceived,
    FinalEvent,
    MessageCancelled,
    MessageCompleted,
    MessageFailed,
)
from converse_mongo.domain.types import MessageStatus
from converse_mongo.watching.watcher import Watcher
from converse_mongo.web.context import WebContext
from converse_mongo.web.models import UiMessage, UiPart
from converse_mongo.web.presenter import Presenter
from converse_mongo.web.responses import frame
from converse_mongo.web.streams import log_cut

STREAM_HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
DONE = b"data: [DONE]\n\n"

CUT_OFF = "The connection was ended by the server. Reload to go on."

_TEXT_ID = "text"
_FINISH_REASONS = frozenset({"stop", "length", "content-filter", "tool-calls", "error"})


async def ui_frames(
    context: WebContext, message: Message, watcher: Watcher[Any]
) -> AsyncGenerator[bytes, None]:
    """The stream of a message, from its start to its end.

    The client throws at a delta without a start and at an unknown key, so there are neither.
    """
    presenter = context.presenter
    metadata = presenter.metadata(message.metadata) or None
    start = UiPart(type="start", message_id=str(message.id), message_metadata=metadata)
    yield context.streams.opening + _frame(start)
    text_is_open = False
    end = [UiPart(type="error", error_text=CUT_OFF)]
    with log_cut():
        async for event in watcher:
            if not isinstance(event, ChunkReceived):
                end = list(_end_parts(event, presenter))
                break
            delta = _frame(UiPart(type="text-delta", id=_TEXT_ID, delta=event.chunk.content))
            if not text_is_open:
                text_is_open = True
                delta = _frame(UiPart(type="text-start", id=_TEXT_ID)) + delta
            yield delta
    if text_is_open:
        end.insert(0, UiPart(type="text-end", id=_TEXT_ID))
    yield b"".join(map(_frame, end)) + DONE


def _frame(part: UiPart) -> bytes:
    return frame(part, omit_none=True)


def _end_parts(event: FinalEvent, presenter: Presenter) -> Iterator[UiPart]:
    metadata = presenter.metadata(event.metadata) or None
    if isinstance(event, MessageCompleted):
        reason = event.metadata.get("finish_reason")
        if reason is not None:
            reason = str(reason).replace("_", "-")
            reason = reason if reason in _FINISH_REASONS else "other"
        yield UiPart(type="finish", finish_reason=reason, message_metadata=metadata)
        return
    if metadata:
        yield UiPart(type="message-metadata", message_metadata=metadata)
    if isinstance(event, MessageFailed):
        yield UiPart(type="error", error_text=presenter.error(event.error))
    elif isinstance(event, MessageCancelled):
        yield UiPart(type="abort", reason=presenter.reason(event.reason) or None)


def ui_message(message: Message, presenter: Presenter) -> UiMessage:
    """A stored message as ``useChat`` accepts it among its initial messages.

    UI messages have no errors: the metadata of a message that did not complete has its ``status``,
    and its ``error`` if it failed.
    """
    metadata = dict(presenter.metadata(message.metadata))
    if message.status is not MessageStatus.COMPLETED:
        metadata["status"] = message.status.value
    if message.error is not None:
        metadata["error"] = presenter.error(message.error)
    return UiMessage(
        id=str(message.id),
        role=message.role,
        parts=[{"type": "text", "text": message.content}] if message.content else [],
        metadata=metadata or None,
    )


def question_of(messages: list[Any]) -> dict[str, Any] | None:
    """The text of the last of some UI messages as ``content``, and its id as ``request_id``.

    ``None`` if that is not a user message with parts. The others are the client's copy of what the
    database has.
    """
    last = messages[-1] if messages else None
    if not isinstance(last, dict) or last.get("role") != "user":
        return None
    parts, name = last.get("parts"), last.get("id")
    if not isinstance(parts, list):
        return None
    texts = [
        part["text"]
        for part in parts
        if isinstance(part, dict)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    ]
    return {
        "content": "\n".join(texts),
        "request_id": name if isinstance(name, str) and name else None,
    }
