"""The models of the wire: bodies, queries, responses and events, for validation and OpenAPI.

Views are read from the attributes of stored documents and of events. Their validation context is a
:class:`converse_mongo.web.presenter.Presenter`, which says what users may see. The views of the
documents themselves are in :mod:`converse_mongo.documents.views`.
"""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from converse_mongo.documents.part_views import CHUNK_SCHEMA
from converse_mongo.documents.views import (
    ChunkMetadata,
    Count,
    Error,
    Id,
    MessageView,
    Metadata,
    Parts,
    PendingCallView,
    Reason,
    Replaces,
    SnapshotParts,
    Time,
    View,
    WorkView,
)
from converse_mongo.domain.open_calls import ToolOutput
from converse_mongo.domain.parts import Approval
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.web.errors import TOO_LONG, TooLargeError

MAX_ID_BYTES = 200
MAX_CALL_ID_BYTES = 1000
MAX_REASON_BYTES = 1000
MAX_FAILURE_BYTES = 16 * 1024
MAX_ANSWERS = 100
MAX_PAGE = 200
MAX_CURSOR_LENGTH = 4096

BLANK = "blank"


# Requests


def _not_blank(value: str) -> str:
    if not value.strip():
        raise PydanticCustomError(BLANK, "Text must not be empty")
    return value


def _at_most(limit: int | None = None, name: str | None = None) -> AfterValidator:
    """Bounds a text in bytes of UTF-8; without a limit, by the context of the validation."""

    def check(value: str, info: ValidationInfo) -> str:
        largest: Any = info.context if limit is None else limit
        if len(value.encode()) > largest:
            detail = f"{name or info.field_name} is larger than {largest} bytes."
            raise TooLargeError(TOO_LONG if limit is None else None, detail=detail)
        return value

    return AfterValidator(check)


_Text: TypeAlias = Annotated[str, AfterValidator(_not_blank)]
_CallId: TypeAlias = Annotated[str, Field(min_length=1), _at_most(MAX_CALL_ID_BYTES)]
_RequestId: TypeAlias = Annotated[_Text, _at_most(MAX_ID_BYTES)]


_FILES: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "url": {"type": "string"},
            "media_type": {"type": "string"},
            "name": {"type": ["string", "null"]},
        },
        "required": ["url", "media_type"],
    },
}


class EmptyBody(BaseModel):
    """A body whose fields are ignored."""


class QuestionBody(BaseModel):
    """A user message. The same ``request_id`` again adds nothing."""

    content: Annotated[_Text, _at_most(name="The message")]
    request_id: _RequestId | None = None


class FilesBody(QuestionBody):
    """A user message with files, which needs no text. The same ``request_id`` again adds nothing.

    A file has a ``url``, a ``media_type``, and perhaps a ``name``. The ``url`` begins with
    ``https://``, ``http://`` or ``/``, or is a data URL in Base64.
    """

    content: Annotated[str, _at_most(name="The message")] = ""
    files: Annotated[list[dict[str, Any]], WithJsonSchema(_FILES)] = []


class StopBody(BaseModel):
    """A request to stop an answer."""

    reason: Annotated[_Text, _at_most(MAX_REASON_BYTES)] | None = None


class StopsBody(StopBody):
    """A request to stop answers: all, or that to the question of a ``request_id``.

    Clients of the AI SDK may name the id of the message as ``messageId``.
    """

    request_id: Annotated[
        _RequestId | None, Field(validation_alias=AliasChoices("request_id", "messageId"))
    ] = None


class ChatStopsBody(StopsBody):
    """A request to stop answers: all, or that to the message that a page names by its id."""

    request_id: Annotated[
        _RequestId | None, Field(validation_alias=AliasChoices("messageId", "request_id"))
    ] = None


class _CallAnswer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    call_id: _CallId


class ApprovalBody(_CallAnswer):
    """Allows a tool call that asks for it, or does not. A ``reason`` may say why."""

    approved: StrictBool
    reason: Annotated[_Text, _at_most(MAX_REASON_BYTES)] | None = None

    def answer(self) -> Approval:
        """What the library takes."""
        return Approval(self.call_id, approved=self.approved, reason=self.reason)


class OutputBody(_CallAnswer):
    """The output of a tool that the client ran."""

    output: Any

    def answer(self) -> ToolOutput:
        """What the library takes."""
        return ToolOutput(self.call_id, self.output)


class FailureBody(_CallAnswer):
    """Why a tool that the client ran has no output."""

    error: Annotated[_Text, _at_most(MAX_FAILURE_BYTES)]

    def answer(self) -> ToolOutput:
        """What the library takes."""
        return ToolOutput(self.call_id, error=self.error)


class AnswersBody(BaseModel):
    """Answers to tool calls that wait. The same ``request_id`` again changes nothing."""

    answers: Annotated[
        list[ApprovalBody | OutputBody | FailureBody], Field(min_length=1, max_length=MAX_ANSWERS)
    ]
    request_id: _RequestId | None = None


class PageQuery(BaseModel):
    """A page of history: the newest, or the one before a position."""

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 50
    before: Annotated[int, Field(ge=0, lt=10**15)] | None = None


class ChatPageQuery(PageQuery):
    """A page of the messages of a chat: the newest, or the one before a position."""

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = MAX_PAGE


class ChatStreamQuery(BaseModel):
    """Where a stream of a chat continues."""

    resume: Annotated[int, Field(ge=0, lt=10**15)] | None = None
    start_index: Annotated[int | None, Field(alias="startIndex", gt=-(10**9), lt=10**9)] = None


class StreamQuery(BaseModel):
    """The cursor that a client received last."""

    after: Annotated[str, Field(max_length=MAX_CURSOR_LENGTH)] | None = None


class MessageStreamQuery(StreamQuery):
    """The cursor that a client received last, and how the stream begins without one."""

    snapshot: bool = False


class OwnerQuery(BaseModel):
    """The query of the stream of an owner, which has no chunks."""

    chunks: Annotated[Literal["false"], Field(deprecated=True)] = "false"


# Responses and events


class PageView(View):
    """A page of history. Only the newest has a cursor, where the stream continues."""

    messages: list[MessageView]
    before: int | None
    cursor: str | None


class RetryView(View):
    """The new answer, if this process generates one."""

    answer: MessageView | None


class QuestionView(RetryView):
    """The user message that was added, and its answer if this process generates one."""

    message: MessageView


class AnsweredView(View):
    """What a message waits for once tool calls were answered; ``null`` if it has ended."""

    work: WorkView | None


class StatusView(View):
    """The status of a message after a stop was requested."""

    id: Id
    status: MessageStatus


class StoppedView(View):
    """The answers that were asked to stop."""

    stopped: list[StatusView]


class ErrorView(View):
    """An error: a code for programs, a sentence for users, and a detail for developers."""

    code: str
    message: str
    detail: str | None = None


class ErrorBody(View):
    """The body of a response that reports an error."""

    error: ErrorView


class _OfConversation(View):
    conversation_id: Id


class _OfMessage(_OfConversation):
    message_id: Id
    role: MessageRole


class _Chunk(View):
    sequence: Count
    content: str
    created_at: Time
    metadata: ChunkMetadata


class _ConversationCreated(_OfConversation):
    type: Literal["conversation.created"]
    title: str | None
    metadata: Metadata
    created_at: Time


class _ConversationUpdated(_OfConversation):
    type: Literal["conversation.updated"]
    title: str | None
    metadata: Metadata
    revision: int


class _ConversationDeleted(_OfConversation):
    type: Literal["conversation.deleted"]


class _MessageCreated(_OfMessage):
    type: Literal["message.created"]
    position: Count
    streaming: bool
    content: str
    metadata: Metadata
    replaces: Replaces
    created_at: Time


class MessageWithPartsCreated(_MessageCreated):
    """A message with more than text was added whole."""

    parts: Parts


class _ChunkReceived(_OfMessage):
    type: Literal["chunk.received"]
    chunk: _Chunk


class PartChunkReceived(_OfMessage):
    """A chunk was appended that is no text of the answer."""

    type: Literal["chunk.received"]
    chunk: Annotated[Any, WithJsonSchema(CHUNK_SCHEMA)]


class _MessageSnapshot(_OfMessage):
    type: Literal["message.snapshot"]
    chunk_count: Count
    content: str
    parts: SnapshotParts
    open_part: Count | None
    metadata: Metadata


class _MessageUpdated(_OfMessage):
    type: Literal["message.updated"]
    revision: int


class _MessageQueued(_OfMessage):
    type: Literal["message.queued"]
    attempt: Annotated[int, Field(ge=1)]


class _MessageStarted(_OfMessage):
    type: Literal["message.started"]
    attempt: Annotated[int, Field(ge=1)]


class _MessageSuspended(_OfMessage):
    type: Literal["message.suspended"]
    attempt: Annotated[int, Field(ge=1)]
    pending: list[PendingCallView]


class _MessageEnded(_OfMessage):
    chunk_count: Count
    metadata: Metadata
    completed_at: Time


class _MessageCompleted(_MessageEnded):
    type: Literal["message.completed"]


class _MessageFailed(_MessageEnded):
    type: Literal["message.failed"]
    error: Error


class _MessageCancelled(_MessageEnded):
    type: Literal["message.cancelled"]
    reason: Reason


class StreamOpened(View):
    """The first event of the stream of an owner: from here on nothing is missed.

    ``waiting`` has a ``message.suspended`` of each answer that waits for people.
    """

    type: Literal["stream.opened"] = "stream.opened"
    waiting: list[_MessageSuspended]


_Final: TypeAlias = _MessageCompleted | _MessageFailed | _MessageCancelled
_Listed: TypeAlias = _ConversationCreated | _ConversationUpdated | _ConversationDeleted
_Received: TypeAlias = _ChunkReceived | PartChunkReceived
_WorkChanged: TypeAlias = _MessageQueued | _MessageStarted | _MessageSuspended
MessageEvent: TypeAlias = _MessageSnapshot | _Received | _WorkChanged | _Final
ConversationEvent: TypeAlias = (
    _MessageCreated | MessageWithPartsCreated | _MessageUpdated | _Received | _WorkChanged | _Final
)
OwnerEvent: TypeAlias = StreamOpened | _Listed | _MessageCreated | _WorkChanged | _Final
EventView: TypeAlias = Annotated[
    _Listed
    | _MessageCreated
    | _MessageUpdated
    | _MessageSnapshot
    | _ChunkReceived
    | _WorkChanged
    | _Final,
    Field(discriminator="type"),
]
"""The events that have all that they show."""


# The AI SDK, whose keys are in camel case; keys without a value are left out


class _UiModel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)


class ChatId(_UiModel):
    """The conversation of a request of ``useChat``."""

    id: _RequestId


class ChatBody(ChatId):
    """A request of ``useChat``. Only the last of the messages is read."""

    messages: Annotated[
        list[Any], WithJsonSchema({"type": "array", "items": {"type": "object"}})
    ] = []
    trigger: Literal["submit-message", "regenerate-message"] = "submit-message"
    message_id: _RequestId | None = None


class UiMessage(_UiModel):
    """A stored message as ``useChat`` accepts it among its initial messages."""

    id: str
    role: MessageRole
    parts: list[dict[str, Any]]
    metadata: dict[str, Any] | None = None


class UiPart(_UiModel):
    """A part of the stream of an answer: the other fields are those of the AI SDK for its type."""

    model_config = ConfigDict(extra="allow")

    type: str
