"""Views: the JSON of documents, which is what clients see of them.

A document dumped to JSON is its view, so that an endpoint may return it. The routes of the web edge
make the same views, with a :class:`Presentation` of their own as the validation context.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    WithJsonSchema,
    computed_field,
    model_serializer,
)

from converse_mongo.documents.part_views import PART_SCHEMA, shown_records
from converse_mongo.documents.presentation import Presentation
from converse_mongo.domain.cursors import message_cursor
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.domain.work import Wanted, Work, WorkState

_DEFAULT = Presentation()


def replaced_id(metadata: Any) -> str | None:
    """The id of the answer that the message with this metadata replaces."""
    found = metadata.get("replaces")
    return found if isinstance(found, str) else None


def _presented(method: Callable[[Presentation, Any], Any]) -> BeforeValidator:
    def present(value: Any, info: ValidationInfo) -> Any:
        return method(info.context or _DEFAULT, value)

    return BeforeValidator(present)


_OBJECT = WithJsonSchema({"type": "object"})
Count: TypeAlias = Annotated[int, Field(ge=0)]
Id: TypeAlias = Annotated[
    str, BeforeValidator(str), WithJsonSchema({"type": "string", "pattern": "^[0-9a-f]{24}$"})
]
Time: TypeAlias = Annotated[
    str,
    BeforeValidator(datetime.isoformat),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Metadata: TypeAlias = Annotated[
    Any, _presented(lambda presentation, value: presentation.metadata(value)), _OBJECT
]
ChunkMetadata: TypeAlias = Annotated[
    Any,
    _presented(lambda presentation, value: presentation.metadata(value) if value else {}),
    _OBJECT,
]
Error: TypeAlias = Annotated[str, _presented(lambda presentation, value: presentation.error(value))]
Reason: TypeAlias = Annotated[
    str | None, _presented(lambda presentation, value: presentation.reason(value))
]
_PARTS = WithJsonSchema({"type": "array", "items": PART_SCHEMA})
Parts: TypeAlias = Annotated[
    Any,
    _presented(lambda presentation, records: records and shown_records(records, presentation)),
    _PARTS,
]
SnapshotParts: TypeAlias = Annotated[
    Any,
    _presented(
        lambda presentation, parts: shown_records(
            [part.to_record() for part in parts], presentation
        )
    ),
    _PARTS,
]
Replaces: TypeAlias = Annotated[
    str | None, BeforeValidator(replaced_id), Field(validation_alias="metadata")
]


class View(BaseModel):
    """What clients see of an object, read from its attributes."""

    model_config = ConfigDict(from_attributes=True)


class ConversationView(View):
    """A conversation, without its owner, and without its context, which is for the model."""

    id: Id
    title: str | None
    metadata: Metadata
    created_at: Time
    updated_at: Time


class PendingCallView(View):
    """A tool call that waits for people, with ``expires_at`` if it does not wait for ever."""

    call_id: str
    wanted: Wanted
    expires_at: Time | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        return _without(handler(self), "expires_at")


class WorkView(View):
    """What a queued message waits for: a worker, nothing since it has one, or people.

    ``attempt`` is the number of the attempt that it is at, or of the next one. ``pending``, the
    calls that wait for people, is there only then.
    """

    state: Literal["queued", "running", "waiting"]
    attempt: Annotated[int, Field(ge=1)]
    pending: list[PendingCallView] | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        return _without(handler(self), "pending")


_STATES: dict[WorkState, Literal["queued", "running", "waiting"]] = {
    WorkState.RUNNING: "running",
    WorkState.WAITING: "waiting",
}


def work_view(
    work: Work | None, records: Sequence[Mapping[str, Any]] | None, presentation: Presentation
) -> WorkView | None:
    """Returns what clients see of the work of a message; ``None`` if it has ended, or had none.

    Args:
        work: The work.
        records: What they see of the parts of the message; ``None`` if it has none, or not here.
        presentation: Picks what they see.
    """
    if work is None or work.state is None:
        return None
    state = _STATES.get(work.state, "queued")
    pending = None
    if state == "waiting":
        pending = [
            PendingCallView.model_validate(call)
            for call in work.pending
            if presentation.shows_call(call, records)
        ]
    return WorkView(state=state, attempt=work.attempt, pending=pending)


def _work(work: Any, info: ValidationInfo) -> WorkView | None:
    return work_view(work, info.data.get("parts"), info.context or _DEFAULT)


def _without(found: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        if found.get(name) is None:
            found.pop(name, None)
    return found


class MessageView(View):
    """A message with its text so far. ``cursor`` is where its stream continues.

    ``parts`` are there if it has more than text; ``open_part``, the number of the part that the
    next text continues, while it streams; ``work`` while it streams, if it was queued for workers.
    """

    id: Id
    conversation_id: Id
    position: Count
    role: MessageRole
    status: MessageStatus
    content: str
    chunk_count: Annotated[Count, Field(validation_alias="next_sequence")]
    metadata: Metadata
    replaces: Replaces
    error: Error | None
    stop_reason: Reason
    created_at: Time
    completed_at: Time | None
    parts: Parts = Field(None, validation_alias="_records")
    open_part: Count | None = Field(None, validation_alias="_open_part")
    work: Annotated[WorkView | None, BeforeValidator(_work)] = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cursor(self) -> str | None:
        """The cursor to pass to the stream of the message; ``None`` for its start."""
        return message_cursor(self.id, self.chunk_count, ended=self.status.is_final)

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        # A return type would become the schema.
        if self.status.is_final:
            self.work = None  # this copy may be older than the end
        return _without(handler(self), "parts", "open_part", "work")
