"""The AI SDK's UI messages and their stream, as ``useChat`` of npm's ``@ai-sdk/react`` has them.

Source: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol, read for ``ai`` 7.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from converse_mongo.documents.messages import Message
from converse_mongo.domain.events import (
    ChunkReceived,
    MessageCancelled,
    MessageCompleted,
    MessageFailed,
)
from converse_mongo.domain.types import MessageStatus
from converse_mongo.watching.watcher import Watcher
from converse_mongo.web.presenter import Presenter
from converse_mongo.web.streams import until_cut

__all__ = ["STREAM_HEADERS", "question_of", "ui_message", "ui_parts"]

STREAM_HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
DONE = "[DONE]"

CUT_OFF = "The connection was ended by the server. Reload to go on."

_TEXT_ID = "text"
_FINISH_REASONS = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content-filter",
    "content-filter": "content-filter",
    "tool_calls": "tool-calls",
    "tool-calls": "tool-calls",
    "error": "error",
}


async def ui_parts(
    message: Message, watcher: Watcher[Any], presenter: Presenter
) -> AsyncIterator[dict[str, Any]]:
    """Yields the parts of a message, from its start to its end.

    The client throws at a delta without a start and at an unknown key, so there are neither.
    """
    yield _with_metadata(
        {"type": "start", "messageId": str(message.id)}, presenter, message.metadata
    )
    text_is_open = False
    async for event in until_cut(watcher):
        if isinstance(event, ChunkReceived):
            if not text_is_open:
                text_is_open = True
                yield {"type": "text-start", "id": _TEXT_ID}
            yield {"type": "text-delta", "id": _TEXT_ID, "delta": event.chunk.content}
            continue
        if text_is_open:
            yield {"type": "text-end", "id": _TEXT_ID}
        if isinstance(event, MessageCompleted):
            finish: dict[str, Any] = {"type": "finish"}
            if (reason := event.metadata.get("finish_reason")) is not None:
                finish["finishReason"] = _FINISH_REASONS.get(str(reason), "other")
            yield _with_metadata(finish, presenter, event.metadata)
        elif isinstance(event, MessageFailed):
            if metadata := presenter.metadata(event.metadata):
                yield {"type": "message-metadata", "messageMetadata": metadata}
            yield {"type": "error", "errorText": presenter.error(event.error)}
        elif isinstance(event, MessageCancelled):
            if metadata := presenter.metadata(event.metadata):
                yield {"type": "message-metadata", "messageMetadata": metadata}
            yield {"type": "abort"} | ({"reason": event.reason} if event.reason else {})
        return
    if text_is_open:
        yield {"type": "text-end", "id": _TEXT_ID}
    yield {"type": "error", "errorText": CUT_OFF}


def _with_metadata(
    part: dict[str, Any], presenter: Presenter, metadata: Mapping[str, Any]
) -> dict[str, Any]:
    shown = presenter.metadata(metadata)
    return part | ({"messageMetadata": shown} if shown else {})


def ui_message(message: Message, presenter: Presenter) -> dict[str, Any]:
    """A stored message as ``useChat`` takes it for its initial messages.

    What the client shows of a failed one is an error, which UI messages do not have: their metadata
    says ``status`` and ``error`` where a message did not complete.
    """
    metadata = dict(presenter.metadata(message.metadata))
    if message.status is not MessageStatus.COMPLETED:
        metadata["status"] = message.status.value
    if message.status is MessageStatus.FAILED and message.error is not None:
        metadata["error"] = presenter.error(message.error)
    found: dict[str, Any] = {
        "id": str(message.id),
        "role": message.role.value,
        "parts": [{"type": "text", "text": message.content}] if message.content else [],
    }
    return found | ({"metadata": metadata} if metadata else {})


def question_of(messages: object) -> tuple[str, str | None] | None:
    """The text and the id of the last of some UI messages, if it is a user's and has text.

    The others are what the client believes was said, which the database knows better.
    """
    if not isinstance(messages, list) or not messages:
        return None
    last = messages[-1]
    if not isinstance(last, dict) or last.get("role") != "user":
        return None
    parts = last.get("parts")
    if not isinstance(parts, list):
        return None
    texts = [
        part["text"]
        for part in parts
        if isinstance(part, dict)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    ]
    name = last.get("id")
    return "\n".join(texts), name if isinstance(name, str) and name else None
