"""The AI SDK's UI messages and their stream, as ``useChat`` of npm's ``@ai-sdk/react`` reads them.

Source: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol, read for ``ai`` 7.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from bson import ObjectId

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.loading import load_message
from converse_mongo.documents.messages import Message
from converse_mongo.documents.part_views import shown_chunk, shown_chunks, shown_records
from converse_mongo.documents.presentation import as_json
from converse_mongo.documents.views import MessageView
from converse_mongo.domain.chunks import PartChunk
from converse_mongo.domain.events import (
    ChunkReceived,
    FinalEvent,
    MessageCompleted,
    MessageFailed,
    MessageSuspended,
)
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.part_identity import PartIdentity
from converse_mongo.domain.part_log import TEXT, PartLog, Record
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.domain.work import WorkState
from converse_mongo.watching.watcher import Watcher
from converse_mongo.web.context import WebContext
from converse_mongo.web.models import UiMessage
from converse_mongo.web.presenter import Presenter
from converse_mongo.web.responses import frame
from converse_mongo.web.stream_parts import StreamParts, is_text
from converse_mongo.web.streams import log_cut
from converse_mongo.web.ui_parts import UiPart, has_agents_at_work, readable, ui_parts
from converse_mongo.web.ui_stream import UiStream, text_delta

STREAM_HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
DONE_DATA = "[DONE]"
DONE = f"data: {DONE_DATA}\n\n".encode()

CUT_OFF = "The connection was ended by the server. Reload the page to continue."

_FIRST_DELTA = 2
_TURN = 64
_LAST: UiPart = {"type": "finish"}
_WAITS: UiPart = {"type": "finish", "finishReason": "tool-calls"}
_FINISH_REASONS = frozenset({"stop", "length", "content-filter", "tool-calls", "error"})


@dataclass(frozen=True)
class UiSource:
    """A message, as a stream of it is made.

    Attributes:
        message_id: Its id.
        metadata: Its metadata.
        base: The sequence of the first chunk that the page lacks, which has the message before it;
            0 for a page that begins with the message.
        since: The index of the first part to send. ``None`` for a client that does not count: it
            cannot continue, and learns that it was cut off.
        skipped: The number of chunks that are not read, since their parts are known: each is text.
        files: The path of its large files.
        whole: The message, if it was added whole, which has no chunks.
    """

    message_id: ObjectId
    metadata: Mapping[str, Any]
    base: int = 0
    since: int | None = None
    skipped: int = 0
    whole: Message | None = None
    files: str = ""


async def ui_source(
    conversation: Conversation,
    header: MessageHeader,
    files: str,
    *,
    base: int = 0,
    since: int | None = None,
) -> UiSource:
    """Reads what a stream of a message is made of, from an index on."""
    source = UiSource(header.message_id, header.metadata, base, since, files=files)
    if not header.streamed:
        return replace(source, whole=await conversation.get_message(header.message_id))
    skipped = (since or 0) - _FIRST_DELTA
    if 0 < skipped <= header.next_sequence and not base and not header.has_parts:
        read = conversation.store().reader.identity
        with suppress(LookupError):
            if await read(header.message_id, header.conversation_id, 0) is not None:
                return replace(source, skipped=skipped)
    return source  # it may begin with an empty text, which is no part


async def ui_frames(
    context: WebContext, conversation: Conversation, source: UiSource, watcher: Watcher[Any]
) -> AsyncGenerator[bytes, None]:
    """The stream of a message, to its end, or until it waits for people.

    Parts are counted, so that a client that has some gets the rest. They are made of the log alone:
    :class:`UiStream` has the rules.

    Args:
        context: The context.
        conversation: The conversation of the message.
        source: The message.
        watcher: Watches it, behind the chunks that are skipped.
    """
    presenter = context.presenter.streaming
    made = _Parts(conversation, source, presenter)
    stream = made.stream
    first, count = source.since or 0, 0

    def lacking(parts: list[UiPart]) -> bytes:
        """Those of the next parts that the client lacks."""
        nonlocal count
        lacking = parts[max(first - count, 0) :]
        count += len(parts)
        return b"".join(map(frame, lacking))

    lacks_start = not source.base and not source.skipped
    yield context.streams.opening + (lacking([made.start]) if lacks_start else b"")
    if source.skipped:
        stream.skip_text(source.skipped)
        count = source.skipped + _FIRST_DELTA
    if source.whole is not None:
        yield lacking(stream.whole(ui_records(source.whole, presenter)))
    end: FinalEvent | None = None
    waits = False
    with log_cut():
        async for event in watcher:
            if isinstance(event, ChunkReceived):
                parts = await made.of(event)
                data = lacking(parts[:-1])
                if is_text(event) and parts[-1:] == [_delta_part(event)] and count >= first:
                    data += context.frames.once(_delta, event)
                    count += 1
                else:
                    data += lacking(parts[-1:])
                if data:
                    yield data
            elif isinstance(event, FinalEvent):
                end = event
                break
            if isinstance(event, MessageSuspended) or waits:
                # It may be the news of a moment ago, or come before the last chunks.
                reached = await _reached(conversation, source, stream)
                if reached:
                    yield (lacking([*stream.close(ended=False), _WAITS]) or frame(_LAST)) + DONE
                    return
                waits = reached is not None
    if end is None:
        if source.since is None:
            cut: UiPart = {"type": "error", "errorText": CUT_OFF}
            yield b"".join(map(frame, [*stream.close(ended=False), cut])) + DONE
        return
    parts = [*stream.close(), *_end_parts(end, presenter, counts=source.since is not None)]
    yield (lacking(parts) or frame(_LAST)) + DONE


def _delta_part(event: ChunkReceived) -> UiPart:
    return text_delta(0, as_json(event.chunk.content))


def _delta(event: ChunkReceived) -> bytes:
    """The part of a text that is the first of its message, as most are."""
    return frame(_delta_part(event))


class _Parts:
    """The parts of a message for a page, and what is read to make them.

    Args:
        conversation: The conversation of the message.
        source: The message.
        presenter: Picks what browsers see.

    Attributes:
        stream: Makes them.
        start: The first one.
    """

    def __init__(self, conversation: Conversation, source: UiSource, presenter: Presenter) -> None:
        self._conversation = conversation
        self._source = source
        self._presenter = presenter
        self._known = StreamParts(conversation.message_model)
        self.stream = UiStream(source.files)
        self.start: UiPart = {"type": "start", "messageId": str(source.message_id)}
        if metadata := readable(presenter.metadata(source.metadata)):
            self.start["messageMetadata"] = metadata

    async def of(self, event: ChunkReceived) -> list[UiPart]:
        """Returns the parts of the next chunk that the page lacks.

        The start comes behind the chunks that it has. What may go on is open here then, but not on
        the page, whose stream has ended: so the step is shown anew.
        """
        base, stream = self._source.base, self.stream
        parts = stream.add(await self._shown(event))
        starts = stream.next_sequence == base
        if starts and not stream.is_open:
            return [self.start]
        if starts or parts is None:
            parts = stream.rewrite(await self._records(stream.next_sequence))
        if stream.next_sequence < base:
            return []
        return [self.start, *parts] if starts else parts

    async def _shown(self, event: ChunkReceived) -> Mapping[str, Any]:
        """A chunk as browsers see it."""
        chunk = event.chunk
        if not isinstance(chunk, PartChunk):
            return {"sequence": chunk.sequence, "content": as_json(chunk.content)}
        found = await self._known.of(event)
        identity = found if isinstance(found, PartIdentity) else None
        return shown_chunk(chunk, identity, self._presenter)

    async def _records(self, stop: int) -> list[Record]:
        """The records behind some chunks of the message, as browsers see them."""
        key = {"_id": self._source.message_id, "conversation_id": self._conversation.id}
        message = await load_message(self._conversation.message_model, key)
        return shown_records(PartLog.of(message.chunks.stored[:stop]).records(), self._presenter)


async def _reached(conversation: Conversation, source: UiSource, stream: UiStream) -> bool | None:
    """Whether the client has all of a message that waits for people; ``None`` if it does not wait.

    A stream that was cut off by an outage learns of it by its watcher.
    """
    state = await conversation.store().answers.state(conversation.id, source.message_id)
    if state is None or state.work is None or state.work.state is not WorkState.WAITING:
        return None
    return stream.next_sequence >= state.next_sequence


async def ui_tail(
    context: WebContext,
    conversation: Conversation,
    header: MessageHeader,
    files: str,
    *,
    base: int = 0,
) -> int:
    """The index of the last part that a message has, for clients that count."""
    presenter = context.presenter.streaming
    source = UiSource(header.message_id, header.metadata, base, files=files)
    made = _Parts(conversation, source, presenter)
    count = 0 if base else 1
    if not header.streamed:
        message = await conversation.get_message(header.message_id)
        count += len(made.stream.whole(ui_records(message, presenter)))
    else:
        key = {"_id": header.message_id, "conversation_id": header.conversation_id}
        message = await load_message(conversation.message_model, key)
        for chunk in message.chunks:
            event = ChunkReceived(
                conversation_id=header.conversation_id,
                message_id=header.message_id,
                role=header.role,
                chunk=chunk,
            )
            count += len(await made.of(event))
    if not header.status.is_final:
        return count - 1
    end = _end_parts(header.ended(), presenter, counts=True)
    return count + len(made.stream.close()) + len(end) - 1


def ui_records(message: Message, presenter: Presenter) -> list[Record]:
    """The records of a message that was loaded, as browsers see them."""
    found: list[Record] | None = MessageView.model_validate(message, context=presenter).parts
    if found is not None:
        return found
    record: Record = {"part": 0, "kind": TEXT, "fields": {}, "text": as_json(message.content)}
    return [record] if message.content else []


def _end_parts(event: FinalEvent, presenter: Presenter, *, counts: bool) -> list[UiPart]:
    """The parts of an end. A client that counts asks for more until it has a ``finish``."""
    if isinstance(event, MessageCompleted):
        part = dict(_LAST)
        reason = event.metadata.get("finish_reason")
        if reason is not None:
            reason = str(reason).replace("_", "-")
            part["finishReason"] = reason if reason in _FINISH_REASONS else "other"
        metadata = _metadata(event.metadata, MessageStatus.COMPLETED, None, presenter)
        return [{**part, "messageMetadata": metadata} if metadata else part]
    if isinstance(event, MessageFailed):
        metadata = _metadata(event.metadata, MessageStatus.FAILED, event.error, presenter)
        error = {"type": "error", "errorText": presenter.error(event.error)}
        return [{"type": "message-metadata", "messageMetadata": metadata}, error]
    metadata = _metadata(event.metadata, MessageStatus.CANCELLED, None, presenter)
    abort: UiPart = {"type": "abort"}
    if reason := presenter.reason(event.reason):
        abort["reason"] = reason
    shown = [{"type": "message-metadata", "messageMetadata": metadata}, abort]
    return [*shown, _LAST] if counts else shown


def _metadata(
    metadata: Mapping[str, Any], status: MessageStatus, error: str | None, presenter: Presenter
) -> dict[str, Any] | None:
    """The metadata of a UI message, which has no place for a status and an error of its own."""
    shown = dict(readable(presenter.metadata(metadata)))
    if status is not MessageStatus.COMPLETED:
        shown["status"] = status.value
    if error is not None:
        shown["error"] = presenter.error(error)
    return shown or None


async def ui_message(message: Message, presenter: Presenter, files: str) -> UiMessage:
    """A stored message as ``useChat`` accepts it among its initial messages.

    UI messages have no errors: the metadata of a message that did not complete has its ``status``,
    and its ``error`` if it failed.
    """
    of_user = message.role is MessageRole.USER
    records, ended = ui_records(message, presenter), not message.is_streaming
    outputs: dict[int, UiPart] = {}
    if not ended and has_agents_at_work(records):
        outputs = await _agent_outputs(message, presenter, files)
    return UiMessage(
        id=str(message.id),
        role=message.role,
        parts=ui_parts(records, ended=ended, of_user=of_user, files=files, outputs=outputs),
        metadata=_metadata(message.metadata, message.status, message.error, presenter),
    )


async def _agent_outputs(message: Message, presenter: Presenter, files: str) -> dict[int, UiPart]:
    """The outputs of sub-agents at work that a page has which follows the message."""
    stream = UiStream(files)
    for chunk in shown_chunks(message.chunks, presenter):
        if chunk["sequence"] % _TURN == 0:
            await asyncio.sleep(0)  # others have their turn
        stream.add(chunk)
    return stream.agent_outputs
