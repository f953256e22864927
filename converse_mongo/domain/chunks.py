"""Chunks: the immutable pieces of a streaming message, and their log in a document."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeAlias, overload

import bson
from pydantic import AfterValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from converse_mongo.domain.errors import ChunksNotLoadedError
from converse_mongo.domain.jsonable import jsonable
from converse_mongo.domain.metadata import aware, restored, storable
from converse_mongo.domain.validation import CHUNK_OVERHEAD, utf8_size

PART_OVERHEAD = 96
"""The size of the fields that tell a chunk of a part, without their values, in bytes."""

StoredChunk: TypeAlias = dict[str, Any]
"""A chunk as stored: sequence, content, created_at, metadata if it has some, append_id on the first
chunk of each append, and the fields of a :class:`PartChunk`."""

NO_METADATA: Mapping[str, Any] = MappingProxyType({})


UtcDatetime = Annotated[datetime, AfterValidator(aware)]


def stored_size(content_size: int, metadata: Mapping[str, Any]) -> int:
    """Returns a close upper bound of the size of a chunk in a document, in bytes."""
    extra = len(bson.encode(storable(metadata))) if metadata else 0
    return CHUNK_OVERHEAD + content_size + extra


def text_of(chunks: Iterable[StoredChunk]) -> str:
    """Joins the contents of chunks: the text of a message without parts."""
    return "".join([chunk["content"] for chunk in chunks])


class Piece(NamedTuple):
    """A text that becomes a chunk.

    Attributes:
        content: The text.
        metadata: The metadata of the chunk.
        text_size: The size of the text, in bytes of UTF-8.
    """

    content: str
    metadata: Mapping[str, Any]
    text_size: int

    @property
    def stored_size(self) -> int:
        """A close upper bound of the size of the chunk in a document, in bytes."""
        return stored_size(self.text_size, self.metadata)


@dataclass(frozen=True, slots=True)
class MessageChunk:
    """One appended piece of a streaming message.

    Attributes:
        sequence: Its place in the message: 0, 1, 2, … without a gap.
        content: The text.
        created_at: When the writer made it: UTC, aware, in whole milliseconds as in BSON.
        metadata: The writer's metadata; a read-only mapping, empty by default.
    """

    sequence: int
    content: str
    created_at: datetime
    metadata: Mapping[str, Any] = field(default_factory=lambda: NO_METADATA, hash=False)

    @staticmethod
    def from_stored(stored: Mapping[str, Any]) -> "MessageChunk":
        """Returns the chunk in a stored document, which may be a :class:`PartChunk`."""
        if stored.get("part") is not None or stored.get("event") is not None:
            return PartChunk.from_stored_part(stored)
        metadata = stored.get("metadata")
        return MessageChunk(
            stored["sequence"],
            stored["content"],
            aware(stored["created_at"]),
            MappingProxyType(restored(metadata)) if metadata else NO_METADATA,
        )

    def to_stored(self) -> StoredChunk:
        """Returns the chunk as it is stored."""
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
        """A close upper bound of its size in a document, in bytes."""
        return stored_size(self.content_size, self.metadata)

    def to_dict(self) -> dict[str, Any]:
        """Returns the chunk in JSON types."""
        return {
            "sequence": self.sequence,
            "content": self.content,
            "created_at": self.created_at.isoformat(),
            "metadata": jsonable(self.metadata),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy can be neither copied nor pickled.
        return _chunk, (self.sequence, self.content, self.created_at, dict(self.metadata))


def _chunk(
    sequence: int, content: str, created_at: datetime, metadata: dict[str, Any]
) -> MessageChunk:
    read_only = MappingProxyType(metadata) if metadata else NO_METADATA
    return MessageChunk(sequence, content, created_at, read_only)


@dataclass(frozen=True, slots=True)
class PartChunk(MessageChunk):
    """A chunk that is no text of the answer: an event of a part, or a delta of its text.

    Its ``content`` is empty, so that a reader that knows only text does not take it for the answer.

    Attributes:
        part: The number of the part: the sequence of the chunk that began it. ``None`` for a
            ``start``, whose own sequence is the number, and for events of the whole message.
        event: ``start``, ``set``, ``end``, ``redact``, ``reset`` or ``metadata``; ``None`` for a
            delta.
        fields: The fields of an event; read-only.
        delta: The text of a delta.
        parent: For a ``start``, the number of the tool call whose sub-agent began the part.
    """

    part: int | None = None
    event: str | None = None
    fields: Mapping[str, Any] = field(default_factory=lambda: NO_METADATA, hash=False)
    delta: str = ""
    parent: int | None = None

    @classmethod
    def from_stored_part(cls, stored: Mapping[str, Any]) -> "PartChunk":
        """Returns the chunk in a stored document."""
        metadata, fields, delta = (stored.get(each) for each in ("metadata", "fields", "delta"))
        return cls(
            stored["sequence"],
            stored["content"],
            aware(stored["created_at"]),
            MappingProxyType(restored(metadata)) if metadata else NO_METADATA,
            stored.get("part"),
            stored.get("event"),
            MappingProxyType(restored(fields)) if isinstance(fields, Mapping) else NO_METADATA,
            delta if isinstance(delta, str) else "",
            stored.get("parent"),
        )

    def to_stored(self) -> StoredChunk:
        """Returns the chunk as it is stored."""
        stored = MessageChunk.to_stored(self)
        if self.part is not None:
            stored["part"] = self.part
        if self.event is not None:
            stored["event"] = self.event
        if self.fields:
            stored["fields"] = storable(self.fields)
        if self.delta:
            stored["delta"] = self.delta
        if self.parent is not None:
            stored["parent"] = self.parent
        return stored

    @property
    def stored_size(self) -> int:
        """A close upper bound of its size in a document, in bytes."""
        size = stored_size(self.content_size, self.metadata) + PART_OVERHEAD
        fields = len(bson.encode(storable(self.fields))) if self.fields else 0
        return size + utf8_size(self.delta) + fields

    def to_dict(self) -> dict[str, Any]:
        """Returns the chunk in JSON types."""
        found = MessageChunk.to_dict(self)
        stored = self.to_stored()
        for name in ("part", "event", "delta", "parent"):
            if name in stored:
                found[name] = stored[name]
        if self.fields:
            found["fields"] = jsonable(self.fields)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _part_chunk, (self.to_stored(),)


def _part_chunk(stored: StoredChunk) -> PartChunk:
    return PartChunk.from_stored_part(stored)


def _to_stored(chunk: object) -> StoredChunk:
    if isinstance(chunk, MessageChunk):
        return chunk.to_stored()
    if not isinstance(chunk, dict) or not {"sequence", "content", "created_at"} <= chunk.keys():
        raise ValueError(f"a chunk needs sequence, content and created_at, unlike {chunk!r}")
    if isinstance(chunk["created_at"], str):  # from JSON
        return {**chunk, "created_at": datetime.fromisoformat(chunk["created_at"])}
    return chunk


class ChunkLog(Sequence[MessageChunk]):
    """The chunks of a loaded message, in order: a read-only sequence of :class:`MessageChunk`.

    It keeps the stored form and makes a chunk only on access, since most readers of a message want
    its text. A log that a listing left out raises :class:`ChunksNotLoadedError` instead of
    appearing empty.
    """

    __slots__ = ("_stored",)

    def __init__(self, stored: Iterable[StoredChunk] | None = ()) -> None:
        self._stored = None if stored is None else list(stored)

    @classmethod
    def not_loaded(cls) -> "ChunkLog":
        """Returns a log whose chunks were left in the database."""
        return cls(None)

    @property
    def is_loaded(self) -> bool:
        """True if the chunks were loaded."""
        return self._stored is not None

    @property
    def stored(self) -> list[StoredChunk]:
        """The chunks as they are stored.

        Raises:
            ChunksNotLoadedError: The chunks were left in the database.
        """
        if self._stored is None:
            raise ChunksNotLoadedError
        return self._stored

    def copy(self) -> "ChunkLog":
        """Returns a separate log with the same chunks."""
        return ChunkLog(self._stored)

    def text(self) -> str:
        """Joins the contents."""
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

        chunks = core_schema.list_schema(core_schema.dict_schema())
        return core_schema.no_info_plain_validator_function(
            validate,
            json_schema_input_schema=chunks,
            serialization=core_schema.plain_serializer_function_ser_schema(
                dump, return_schema=core_schema.nullable_schema(chunks)
            ),
        )
