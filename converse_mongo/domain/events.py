"""Events: yielded by watchers, and passed to handlers."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, TypeAlias

from bson import ObjectId

from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.jsonable import jsonable
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.parts import Part, parts_of
from converse_mongo.domain.types import MessageRole
from converse_mongo.domain.work import PendingCall, Work, WorkState


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a conversation, after it was stored.

    Attributes:
        conversation_id: The conversation it happened in.
        cursor: The place of ``watch_conversation`` behind this event: pass it as ``after`` to
            continue from there, in any process. ``None`` in handlers, in ``watch_owner``, and in
            ``watch_message``, where the cursor is the sequence of the chunk.
    """

    type: ClassVar[str] = "event"

    conversation_id: ObjectId
    cursor: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the event in JSON types, with its kind under ``"type"``."""
        fields: dict[str, Any] = {"type": self.type}
        for name in (each.name for each in dataclasses.fields(self)):
            value = getattr(self, name)
            fields[name] = _to_json(value)
        return fields


def _to_json(value: Any) -> Any:
    if isinstance(value, MessageChunk | Part):
        return value.to_dict()
    if isinstance(value, PendingCall):
        return jsonable(value.to_stored())
    if isinstance(value, list):
        return [_to_json(each) for each in value]
    return jsonable(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationCreated(Event):
    """A conversation was started."""

    type: ClassVar[str] = "conversation.created"

    title: str | None
    owner: tuple[str, str] | None
    metadata: Mapping[str, Any] = field(hash=False)
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationUpdated(Event):
    """Fields of a conversation were saved: its title, its metadata or others.

    Attributes:
        revision: The number of saves so far; several saves may come as one event.
    """

    type: ClassVar[str] = "conversation.updated"

    title: str | None
    owner: tuple[str, str] | None
    metadata: Mapping[str, Any] = field(hash=False)
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationDeleted(Event):
    """A conversation was deleted, or now belongs to another owner.

    Only ``watch_owner`` yields it; handlers are not called with it.
    """

    type: ClassVar[str] = "conversation.deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageCreated(Event):
    """A message was added, whole or as the start of a stream.

    Attributes:
        content: The text of a message added whole; empty for a stream, whose text follows in
            :class:`ChunkReceived`.
        has_parts: True if a message added whole has more than text: load it to see its parts.
    """

    type: ClassVar[str] = "message.created"

    message_id: ObjectId
    position: int
    role: MessageRole
    streaming: bool
    content: str
    metadata: Mapping[str, Any] = field(hash=False)
    created_at: datetime
    has_parts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _StreamEvent(Event):
    """An event of a message that was created before."""

    message_id: ObjectId
    role: MessageRole


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkReceived(_StreamEvent):
    """A chunk was appended to a streaming message."""

    type: ClassVar[str] = "chunk.received"

    chunk: MessageChunk


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSnapshot(_StreamEvent):
    """The parts of a message so far, in place of the chunks that made them.

    Only ``watch_message`` with ``snapshot=True`` yields it, as the first event.

    Attributes:
        chunk_count: The number of chunks in it: the sequence of the next one.
        content: The text of the answer; empty if ``kinds`` leaves out text.
        parts: The parts, in order; a message of text alone has one text. Those of kinds that were
            not asked for have no text and no fields.
        open_part: The number of the text part that the next text continues, or ``None``.
        metadata: The metadata of the message.
    """

    type: ClassVar[str] = "message.snapshot"

    chunk_count: int
    content: str
    parts: list[Part] = field(hash=False)
    open_part: int | None
    metadata: Mapping[str, Any] = field(hash=False)

    @classmethod
    def of(cls, log: PartLog, *, ended: bool, **about: Any) -> "MessageSnapshot":
        """Makes the event of a log; ``about`` are the fields of a message."""
        return cls(
            chunk_count=log.next_sequence,
            content=log.text(),
            parts=parts_of(log.records(), ended=ended),
            open_part=None if ended else log.open,
            **about,
        )

    def log(self) -> PartLog:
        """Returns the state, to add the chunks that follow."""
        state: dict[str, Any] = {"next_sequence": self.chunk_count}
        state["parts"] = [part.to_record() for part in self.parts]
        return PartLog.from_snapshot(state | {"open": self.open_part})


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageUpdated(_StreamEvent):
    """Fields of a message other than its chunks and its state were saved; load it to see them.

    Attributes:
        revision: The number of saves so far; several saves may come as one event.
    """

    type: ClassVar[str] = "message.updated"

    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _WorkChanged(_StreamEvent):
    """News of a message that was queued for workers; see ``conversation.start_streaming_message``.

    Watchers get the latest state: one that another followed at once may be left out.

    Attributes:
        attempt: The number of the attempt, from 1 on.
    """

    attempt: int

    @property
    def is_usual(self) -> bool:
        """True if it says only that the first attempt runs."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageQueued(_WorkChanged):
    """A message waits for a worker, for the attempt of this number."""

    type: ClassVar[str] = "message.queued"


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageStarted(_WorkChanged):
    """A worker has begun to write a message, in the attempt of this number.

    It is left out for the first attempt, unless watchers were told that the message was queued.
    """

    type: ClassVar[str] = "message.started"

    @property
    def is_usual(self) -> bool:
        """True if it says only that the first attempt runs."""
        return self.attempt == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSuspended(_WorkChanged):
    """A message waits for people to answer tool calls, however long that takes.

    Attributes:
        pending: The calls that wait.
    """

    type: ClassVar[str] = "message.suspended"

    pending: list[PendingCall] = field(hash=False)


WorkEvent: TypeAlias = MessageQueued | MessageStarted | MessageSuspended


def work_event(
    message_id: ObjectId, conversation_id: ObjectId, role: MessageRole, work: Work
) -> WorkEvent:
    """Makes the event that says what a queued message waits for."""
    common: dict[str, Any] = {
        "conversation_id": conversation_id,
        "message_id": message_id,
        "role": role,
        "attempt": work.attempt,
    }
    if work.state is WorkState.RUNNING:
        return MessageStarted(**common)
    if work.state is WorkState.WAITING:
        return MessageSuspended(**common, pending=list(work.pending))
    return MessageQueued(**common)


@dataclass(frozen=True, slots=True, kw_only=True)
class _MessageEnded(_StreamEvent):
    """A streaming message ended. No chunk follows."""

    chunk_count: int
    metadata: Mapping[str, Any] = field(hash=False)
    completed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageCompleted(_MessageEnded):
    """A streaming message ended without an error. No chunk follows."""

    type: ClassVar[str] = "message.completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFailed(_MessageEnded):
    """A streaming message ended with an error; its text so far is kept. No chunk follows."""

    type: ClassVar[str] = "message.failed"

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageCancelled(_MessageEnded):
    """A streaming message was stopped; its text so far is kept. No chunk follows."""

    type: ClassVar[str] = "message.cancelled"

    reason: str | None


FinalEvent: TypeAlias = MessageCompleted | MessageFailed | MessageCancelled
MessageEvent: TypeAlias = ChunkReceived | WorkEvent | FinalEvent
"""The events of ``watch_message``, behind a :class:`MessageSnapshot` if one was asked for."""
ConversationEvent: TypeAlias = (
    MessageCreated | ChunkReceived | MessageUpdated | WorkEvent | FinalEvent
)
"""The events of ``watch_conversation``."""
OwnerEvent: TypeAlias = (
    ConversationCreated
    | ConversationUpdated
    | ConversationDeleted
    | MessageCreated
    | WorkEvent
    | FinalEvent
)
"""The events of ``watch_owner``."""
