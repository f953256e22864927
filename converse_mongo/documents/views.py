"""Views: the JSON of documents, which is what clients see of them.

A document dumped to JSON is its view, so that an endpoint may return it. The routes of the web edge
make the same views, with a :class:`Presentation` of their own as the validation context.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    computed_field,
)

from converse_mongo.domain.cursors import message_cursor
from converse_mongo.domain.jsonable import jsonable
from converse_mongo.domain.surrogates import mend_all
from converse_mongo.domain.types import MessageRole, MessageStatus

PRIVATE_ERROR = "The answer could not be completed."
SAFE_ERRORS = frozenset({"interrupted"})
"""Errors that the library itself stores, for an orphan."""
INTERNAL = frozenset({"error_type", "unstored"})
"""Keys of metadata that name classes of the application."""


class Presentation:
    """Picks what clients see of the fields that may hold what is not for them.

    By default: all metadata that names no classes, no stored error but the library's own, and no
    reason of a stop.
    """

    def metadata(self, metadata: Mapping[str, Any]) -> Any:
        """The metadata that clients see."""
        return as_json({key: value for key, value in metadata.items() if key not in INTERNAL})

    def error(self, error: str) -> str:
        """The error that clients see."""
        return error if error in SAFE_ERRORS else PRIVATE_ERROR

    def reason(self, reason: str | None) -> str | None:  # noqa: ARG002 - others show it
        """The reason of a stop that clients see."""
        return None


def as_json(metadata: Mapping[str, Any]) -> Any:
    """Returns metadata in the types and with the texts that JSON can have."""
    return mend_all(jsonable(metadata))


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


class MessageView(View):
    """A message with its text so far. ``cursor`` is where its stream continues."""

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

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cursor(self) -> str | None:
        """The cursor to pass to the stream of the message; ``None`` for its start."""
        return message_cursor(self.id, self.chunk_count, ended=self.status.is_final)
