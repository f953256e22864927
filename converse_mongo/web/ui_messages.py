"""The AI SDK's UI messages and their stream, as ``useChat`` of npm's ``@ai-sdk/react`` reads them.

Source: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol, read for ``ai`` 7.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from bson import ObjectId

from converse_mongo.documents.messages import Message
from converse_mongo.domain.chunks import PartChunk
from converse_mongo.domain.events import (
    ChunkReceived,
    FinalEvent,
    MessageCancelled,
    MessageCompleted,
    MessageFailed,
    WorkEvent,
)
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.types import MessageStatus
from converse_mongo.watching.watcher import Watcher
from converse_mongo.web.context import WebContext
from converse_mongo.web.errors import EMPTY, RequestError
from converse_mongo.web.models import UiMessage, UiPart
from converse_mongo.web.presenter import Presenter
from converse_mongo.web.responses import frame
from converse_mongo.web.streams import log_cut

STREAM_HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
DONE_DATA = "[DONE]"
DONE = f"data: {DONE_DATA}\n\n".encode()

CUT_OFF = "The connection was ended by the server. Reload the page to continue."

_TEXT_ID = "text"
_FIRST_DELTA = 2
_LAST = UiPart(type="finish")
_MAX_NAME = 100
_NO_TEXT = "The last of messages must be a user message with a text part."
_FINISH_REASONS = frozenset({"stop", "length", "content-filter", "tool-calls", "error"})


async def ui_frames(
    context: WebContext,
    message_id: ObjectId,
    metadata: Mapping[str, Any],
    watcher: Watcher[Any],
    *,
    text: str = "",
    since: int | None = None,
) -> AsyncGenerator[bytes, None]:
    """The stream of a message, to its end.

    The client throws at a delta without a start and at an unknown key, so there are neither.

    Parts are counted, so that a client that has some gets the rest: the start is 0, the start of
    the text 1, and the chunk with the sequence n is n + 2. The parts of the end follow. A chunk
    that is no text of the answer is metadata without a value, which changes nothing.

    Args:
        context: The context.
        message_id: The id of the message.
        metadata: Its metadata.
        watcher: Watches it, from the chunk before :func:`first_chunk`.
        text: The text of a message that was added whole, which has no chunks.
        since: The index of the first part to send. ``None`` for a client that does not count: it
            cannot continue, and learns that it was cut off.
    """
    first, presenter = since or 0, context.presenter.streaming
    if first == 0:
        shown = presenter.metadata(metadata) or None
        start = UiPart(type="start", message_id=str(message_id), message_metadata=shown)
        yield context.streams.opening + _frame(start)
    else:
        yield context.streams.opening
    text_is_open = False
    end = None
    with log_cut():
        async for event in watcher:
            if isinstance(event, WorkEvent):
                continue  # the protocol has no part for what an answer waits for
            if not isinstance(event, ChunkReceived):
                end = event
                break
            text_is_open = True
            delta = context.frames.once(_delta_of, event)
            yield delta if event.chunk.sequence else _begun(delta, first)
    if end is None:
        if since is None:
            parts = [UiPart(type="error", error_text=CUT_OFF)]
            if text_is_open:
                parts.insert(0, UiPart(type="text-end", id=_TEXT_ID))
            yield b"".join(map(_frame, parts)) + DONE
        return
    if text and first <= _FIRST_DELTA:
        yield _begun(_delta(text), first)
    parts = _closing(end, presenter, has_text=bool(text), counts=since is not None)
    behind = _count(end.chunk_count or len(text[:1]))
    yield b"".join(map(_frame, parts[max(first - behind, 0) :] or [_LAST])) + DONE


def first_chunk(since: int) -> int:
    """The sequence of the first chunk that a client lacks, which has the parts before an index."""
    return max(since - _FIRST_DELTA, 0)


def ui_tail(header: MessageHeader, presenter: Presenter, text: str = "") -> int:
    """The index of the last part that a message has, for clients that count."""
    behind = _count(header.next_sequence or len(text[:1]))
    if not header.status.is_final:
        return behind - 1
    end = _closing(header.ended(), presenter.streaming, has_text=bool(text), counts=True)
    return behind + len(end) - 1


def _count(chunks: int) -> int:
    """The number of parts that come before the end."""
    return chunks + _FIRST_DELTA if chunks else 1


def _begun(delta: bytes, first: int) -> bytes:
    """The first delta, behind the start of the text if a client lacks that."""
    return _TEXT_START + delta if first < _FIRST_DELTA else delta


def _delta_of(event: ChunkReceived) -> bytes:
    return _NOTHING if isinstance(event.chunk, PartChunk) else _delta(event.chunk.content)


def _delta(content: str) -> bytes:
    return _frame(UiPart(type="text-delta", id=_TEXT_ID, delta=content))


def _frame(part: UiPart) -> bytes:
    return frame(part, omit_none=True)


_NOTHING = frame({"type": "message-metadata", "messageMetadata": None})
_TEXT_START = _frame(UiPart(type="text-start", id=_TEXT_ID))


def _closing(
    event: FinalEvent, presenter: Presenter, *, has_text: bool, counts: bool
) -> list[UiPart]:
    """The parts of an end.

    A client that counts asks for more until it has a ``finish``.
    """
    parts = list(_end_parts(event, presenter))
    if has_text or event.chunk_count:
        parts.insert(0, UiPart(type="text-end", id=_TEXT_ID))
    if counts and isinstance(event, MessageCancelled):
        parts.append(_LAST)
    return parts


def _end_parts(event: FinalEvent, presenter: Presenter) -> Iterator[UiPart]:
    if isinstance(event, MessageCompleted):
        reason = event.metadata.get("finish_reason")
        if reason is not None:
            reason = str(reason).replace("_", "-")
            reason = reason if reason in _FINISH_REASONS else "other"
        metadata = _metadata(event.metadata, MessageStatus.COMPLETED, None, presenter)
        yield UiPart(type="finish", finish_reason=reason, message_metadata=metadata)
    elif isinstance(event, MessageFailed):
        metadata = _metadata(event.metadata, MessageStatus.FAILED, event.error, presenter)
        yield UiPart(type="message-metadata", message_metadata=metadata)
        yield UiPart(type="error", error_text=presenter.error(event.error))
    elif isinstance(event, MessageCancelled):
        metadata = _metadata(event.metadata, MessageStatus.CANCELLED, None, presenter)
        yield UiPart(type="message-metadata", message_metadata=metadata)
        yield UiPart(type="abort", reason=presenter.reason(event.reason) or None)


def _metadata(
    metadata: Mapping[str, Any], status: MessageStatus, error: str | None, presenter: Presenter
) -> dict[str, Any] | None:
    """The metadata of a UI message, which has no place for a status and an error of its own."""
    shown = dict(presenter.metadata(metadata))
    if status is not MessageStatus.COMPLETED:
        shown["status"] = status.value
    if error is not None:
        shown["error"] = presenter.error(error)
    return shown or None


def ui_message(message: Message, presenter: Presenter) -> UiMessage:
    """A stored message as ``useChat`` accepts it among its initial messages.

    UI messages have no errors: the metadata of a message that did not complete has its ``status``,
    and its ``error`` if it failed.
    """
    return UiMessage(
        id=str(message.id),
        role=message.role,
        parts=[{"type": "text", "text": message.content}] if message.content else [],
        metadata=_metadata(message.metadata, message.status, message.error, presenter),
    )


def question_of(messages: list[Any]) -> dict[str, Any]:
    """The text of the last of some UI messages as ``content``, and its id as ``request_id``.

    The others are the client's copy of what the database has.

    Raises:
        RequestError: It is not a user message with a text, or has what cannot be stored.
    """
    last = messages[-1] if messages else None
    if not isinstance(last, dict) or last.get("role") != "user":
        raise RequestError(EMPTY, detail=_NO_TEXT)
    parts, name = last.get("parts"), last.get("id")
    if not isinstance(parts, list):
        raise RequestError(EMPTY, detail=_NO_TEXT)
    content = "\n".join(text for text in map(_text_of, parts) if text)
    if not content.strip():
        raise RequestError(EMPTY, detail=_NO_TEXT)
    return {"content": content, "request_id": name if isinstance(name, str) and name else None}


def _text_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    if kind == "step-start":
        return ""
    name = str(kind)
    if kind == "file":
        name = " ".join(str(part[key]) for key in ("filename", "mediaType") if part.get(key))
        name = f"file {name}".rstrip()
    if len(name) > _MAX_NAME:
        name = f"{name[:_MAX_NAME]}…"
    raise RequestError(f"Only text can be sent in messages. Remove this part: {name}.")
