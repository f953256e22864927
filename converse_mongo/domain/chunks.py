"""Chunks: the immutable pieces of a streaming message, and the log of them in a document."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeAlias, overload

import bson
from pydantic import AfterValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from converse_mongo.domain.errors import ChunksNotLoadedError
from converse_mongo.domain.jsonable import jsonable
from converse_mongo.domain.metadata import restored, storable
from converse_mongo.domain.validation import CHUNK_OVERHEAD, utf8_size

__all__ = [
    "NO_METADATA",
    "ChunkLog",
    "MessageChunk",
    "Piece",
    "StoredChunk",
    "UtcDatetime",
    "aware",
    "stored_size",
    "text_of",
]

StoredChunk: TypeAlias = dict[str, Any]
"""A chunk as BSON holds it: sequence, content, created_at, and where it has them, metadata and,
on the first chunk of each append, append_id."""

NO_METADATA: Mapping[str, Any] = MappingProxyType({})


def aware(moment: datetime) -> datetime:
    """``moment`` in UTC with a time zone: BSON dates have none, and drivers differ in adding it."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


UtcDatetime = Annotated[datetime, AfterValidator(aware)]


def stored_size(content_size: int, metadata: Mapping[str, Any]) -> int:
    """What a chunk takes in a document, in bytes; at the most, and closely."""
    extra = len(bson.encode(storable(metadata))) if metadata else 0
    return CHUNK_OVERHEAD + content_size + extra


def text_of(chunks: Iterable[StoredChunk]) -> str:
    """The contents of chunks, joined."""
    return "".join([chunk["content"] for chunk in chunks])


class Piece(NamedTuple):
    """What becomes a chunk.

    Attributes:
        content: The text.
        metadata: What is said of it.
        text_size: The size of the text, in bytes of UTF-8.
    """

    content: str
    metadata: Mapping[str, Any]
    text_size: int


@dataclass(frozen=True, slots=True)
class MessageChunk:
    """One appended piece of a streaming message.

    Attributes:
        sequence: Its place in the message: 0, 1, 2, … without a gap.
        content: The text.
        created_at: When the writer made it: UTC, aware, in whole milliseconds as BSON has them.
        metadata: What the writer said of it; a read-only mapping, empty by default.
    """

    sequence: int
    content: str
    created_at: datetime
    metadata: Mapping[str, Any] = field(default_factory=lambda: NO_METADATA, hash=False)

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> "MessageChunk":
        """The chunk that ``stored`` describes."""
        metadata = stored.get("metadata")
        return cls(
            stored["sequence"],
            stored["content"],
            aware(stored["created_at"]),
            MappingProxyType(restored(metadata)) if metadata else NO_METADATA,
        )

    def to_stored(self) -> StoredChunk:
        """The chunk as BSON holds it."""
        stored: StoredChunk = {
            "sequence": self.sequence,
            "content": self.content,
            "created_at": self.created_at,
        }
        if self.metadata:
            stored["metadata"] = storable(self.metadata)
        return stored

    @property
    def content_size(self) -> int:
        """The size of the text, in bytes of UTF-8."""
        return utf8_size(self.content)

    @property
    def stored_size(self) -> int:
        """What it takes in a document, in bytes; at the most, and closely."""
        return stored_size(self.content_size, self.metadata)

    def to_dict(self) -> dict[str, Any]:
        """The chunk in types that JSON has."""
        return {
            "sequence": self.sequence,
            "content": self.content,
            "created_at": self.created_at.isoformat(),
            "metadata": jsonable(self.metadata),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy can be neither copied nor pickled.
        return _rebuild, (self.sequence, self.content, self.created_at, dict(self.metadata))


def _to_stored(chunk: object) -> StoredChunk:
    if isinstance(chunk, MessageChunk):
        return chunk.to_stored()
    if not isinstance(chunk, dict) or not {"sequence", "content", "created_at"} <= chunk.keys():
        raise ValueError(f"a chunk needs sequence, content and created_at, unlike {chunk!r}")
    if isinstance(chunk["created_at"], str):  # from JSON
        return {**chunk, "created_at": datetime.fromisoformat(chunk["created_at"])}
    return chunk


def _rebuild(
    sequence: int, content: str, created_at: datetime, metadata: dict[str, Any]
) -> MessageChunk:
    return MessageChunk(
        sequence,
        content,
        created_at,
        MappingProxyType(metadata) if metadata else NO_METADATA,
    )


class ChunkLog(Sequence[MessageChunk]):
    """The chunks of a loaded message, in order: a read-only sequence of :class:`MessageChunk`.

    It keeps what BSON gave and makes a chunk only when one is asked for, since most readers of a
    message want its text. A log that a listing left out raises :class:`ChunksNotLoadedError`
    instead of pretending to be empty.
    """

    __slots__ = ("_stored",)

    def __init__(self, stored: Iterable[StoredChunk] | None = ()) -> None:
        self._stored = None if stored is None else list(stored)

    @classmethod
    def not_loaded(cls) -> "ChunkLog":
        """A log that was left in the database."""
        return cls(None)

    @property
    def is_loaded(self) -> bool:
        """Whether the chunks are here."""
        return self._stored is not None

    @property
    def stored(self) -> list[StoredChunk]:
        """The chunks as BSON holds them.

        Raises:
            ChunksNotLoadedError: They were left in the database.
        """
        if self._stored is None:
            raise ChunksNotLoadedError
        return self._stored

    def copy(self) -> "ChunkLog":
        """A log of its own with the same chunks."""
        return ChunkLog(self._stored)

    def text(self) -> str:
        """The contents, joined."""
        return text_of(self.stored)

    @overload
    def __getitem__(self, index: int) -> MessageChunk: ...
    @overload
    def __getitem__(self, index: slice) -> list[MessageChunk]: ...
    def __getitem__(self, index: int | slice) -> MessageChunk | list[MessageChunk]:
        if isinstance(index, slice):
            return [MessageChunk.from_stored(chunk) for chunk in self.stored[index]]
        return MessageChunk.from_stored(self.stored[index])

    def __iter__(self) -> Iterator[MessageChunk]:
        return map(MessageChunk.from_stored, self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ChunkLog) and not (self.is_loaded and other.is_loaded):
            return self.is_loaded == other.is_loaded
        if isinstance(other, ChunkLog | list | tuple):
            return list(self) == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        if self._stored is None:
            return "<ChunkLog, not loaded>"
        return f"<ChunkLog of {len(self._stored)} chunks>"

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def validate(value: object) -> ChunkLog:
            if isinstance(value, ChunkLog):
                return value
            if isinstance(value, list | tuple):
                return cls([_to_stored(chunk) for chunk in value])
            if value is None:  # the dump of a log that was not loaded
                return cls.not_loaded()
            raise ValueError(f"chunks must be a list, not {type(value).__name__}")

        def dump(log: ChunkLog) -> list[dict[str, Any]] | None:
            return [chunk.to_dict() for chunk in log] if log.is_loaded else None

        return core_schema.no_info_plain_validator_function(
            validate,
            json_schema_input_schema=core_schema.list_schema(core_schema.dict_schema()),
            serialization=core_schema.plain_serializer_function_ser_schema(
                dump,
                return_schema=core_schema.nullable_schema(
                    core_schema.list_schema(core_schema.dict_schema())
                ),
            ),
        )
