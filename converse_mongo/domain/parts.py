"""Parts: the typed pieces of a message.

A part is a view of a record of the reducer: its ``fields`` are those that the log has set, whatever
their types. A property returns the value of a field if it has the right type, and else the default,
so that reading never raises.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeAlias

from converse_mongo.domain.jsonable import jsonable
from converse_mongo.domain.part_log import (
    DATA,
    REASONING,
    STEP,
    TEXT,
    TOOL_CALL,
    Record,
    fields_of,
    has_outcome,
)
from converse_mongo.domain.stored_values import parted

ToolCallState: TypeAlias = Literal[
    "input-streaming",
    "input-available",
    "approval-requested",
    "approval-responded",
    "running",
    "output-available",
    "output-error",
    "output-denied",
    "interrupted",
]
"""How far a tool call is. ``interrupted``: its message ended, or the call was redacted, before it
had an outcome."""

Executor: TypeAlias = Literal["server", "client", "provider"]
"""Who runs a tool: a process of the application, the browser, or the provider of the model."""


class Part:
    """A typed piece of a message.

    Attributes:
        kind: The kind.
        number: The sequence of the chunk that began it, by which events name it; in a message that
            was added whole, its place. ``None`` for a part that is not stored.
        parent: The number of the tool call whose sub-agent made it, or ``None``.
        fields: Its fields as they are stored, by name; read-only. A large value is a
            :class:`StoredValue` here.
        text: The text of a text, of reasoning, and of the input of a tool call; else empty.
        closed: True if nothing follows.
        redacted: True, or the reason, if its content was removed: then it has no text, and no
            fields but those that tell it from others.
    """

    __slots__ = ("closed", "fields", "kind", "number", "parent", "redacted", "text")

    KIND: ClassVar[str] = "custom"

    kind: str
    number: int | None
    parent: int | None
    fields: Mapping[str, Any]
    text: str
    closed: bool
    redacted: str | bool

    def __init__(self, text: str = "", **fields: Any) -> None:
        self.kind = self.KIND
        self.number = self.parent = None
        self.text = text
        self.fields = MappingProxyType({n: v for n, v in fields.items() if v is not None})
        self.closed = self.redacted = False

    @property
    def id(self) -> str | None:
        """An id of the application or the provider, or ``None``."""
        return self._text("id")

    @property
    def provider(self) -> Mapping[str, Any] | None:
        """Data of the provider of the model, meant for it only: ``{"name": …, "data": …}``.

        ``None`` also if they are so large that :attr:`fields` has a :class:`StoredValue` of them.
        """
        return self._mapping("provider")

    def to_record(self) -> Record:
        """Returns the part in BSON types, as the reducer has it."""
        fields, values = parted(self.fields)
        record: Record = {"part": self.number, "kind": self.kind, "fields": fields}
        if values:
            record["values"] = values
        if self.text or isinstance(self, TextPart | ToolCallPart):
            record["text"] = self.text
        for name in ("parent", "closed", "redacted"):
            value = getattr(self, name)
            if value is not None and value is not False:  # 0 is a number of a call
                record[name] = value
        return record

    def to_dict(self) -> dict[str, Any]:
        """Returns the part in JSON types."""
        record: dict[str, Any] = jsonable(self.to_record())
        return record

    @classmethod
    def from_record(cls, record: Record, *, ended: bool) -> Self:
        """Returns the part of a record; ``ended`` is true if its message has ended."""
        part = cls.__new__(cls)
        part.kind = record["kind"]
        part.number, part.parent = record["part"], record.get("parent")
        part.fields = MappingProxyType(dict(fields_of(record)))
        part.text = record.get("text", "")
        part.closed, part.redacted = ended or "closed" in record, record.get("redacted", False)
        return part

    def _text(self, name: str) -> str | None:
        value = self.fields.get(name)
        return value if isinstance(value, str) else None

    def _mapping(self, name: str) -> Mapping[str, Any] | None:
        value = self.fields.get(name)
        return value if isinstance(value, Mapping) else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and self.to_record() == other.to_record()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = {"number": self.number, "text": self.text, **self.fields}
        listed = ", ".join(f"{n}={v!r}" for n, v in shown.items() if v not in (None, ""))
        return f"{type(self).__name__}({listed})"


class TextPart(Part):
    """Text of the answer; under a tool call, words of its sub-agent.

    Args:
        text: The text.
        id: An id, or ``None``.
        provider: Data of the provider.
    """

    __slots__ = ()
    KIND = TEXT

    def __init__(
        self, text: str, *, id: str | None = None, provider: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(text, id=id, provider=provider)


class ReasoningPart(TextPart):
    """Thoughts of the model. Their signature, or encrypted value, is data of the provider."""

    __slots__ = ()
    KIND = REASONING


class Approval(NamedTuple):
    """The consent to a tool call.

    As an answer, in ``Converse.answer_tool_calls``, it names the call.

    Attributes:
        id: The id of the request; in an answer, that of the call.
        approved: The answer; ``None`` until there is one.
        reason: The reason of the answer, or ``None``.
        automatic: True if no person was asked.
    """

    id: str
    approved: bool | None = None
    reason: str | None = None
    automatic: bool = False


class ToolCallPart(Part):
    """A call of a tool, with its input and its outcome. ``text`` is the input as it was streamed.

    Args:
        name: The name of the tool.
        call_id: The id of the call, which tells it from others of the message.
        title: A name for people.
        executor: Who runs the tool.
        dynamic: True if the application did not know the tool when it was built, such as one of an
            MCP server. The AI SDK types its part ``dynamic-tool``.
        fields: Any of ``input``, ``output``, ``error``, ``started``, ``approval`` and
            ``result_provider``; a value of ``None`` counts as given.
        provider: Data of the provider that belong to the call.
    """

    __slots__ = ("ended",)
    KIND = TOOL_CALL

    ended: bool

    def __init__(
        self,
        name: str,
        call_id: str,
        *,
        title: str | None = None,
        executor: Executor = "server",
        dynamic: bool = False,
        provider: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        who, kind = None if executor == "server" else executor, dynamic or None
        named: Any = {"name": name, "call_id": call_id, "title": title, "executor": who}
        super().__init__(**named, dynamic=kind, provider=provider)
        self.fields = MappingProxyType({**self.fields, **fields})
        self.ended = False

    @classmethod
    def from_record(cls, record: Record, *, ended: bool) -> Self:
        """Returns the call of a record; without an outcome it is interrupted by the end."""
        part = super().from_record(record, ended=ended)
        part.ended = ended
        return part

    @property
    def name(self) -> str:
        """The name of the tool."""
        return self._text("name") or ""

    @property
    def call_id(self) -> str:
        """The id of the call."""
        return self._text("call_id") or ""

    @property
    def title(self) -> str | None:
        """A name of the tool for people, or ``None``."""
        return self._text("title")

    @property
    def executor(self) -> Executor:
        """Who runs the tool."""
        who = self.fields.get("executor")
        return who if who in ("client", "provider") else "server"

    @property
    def dynamic(self) -> bool:
        """True if the application did not know the tool when it was built."""
        return self.fields.get("dynamic") is True

    @property
    def input(self) -> Any:
        """The input once it is complete; see :attr:`state`."""
        return self.fields.get("input")

    @property
    def started(self) -> bool:
        """True once the tool may have had an effect."""
        return self.fields.get("started") is True

    @property
    def approval(self) -> Approval | None:
        """The consent that the call needs, or ``None``."""
        found = self._mapping("approval")
        if found is None or not isinstance(found.get("id"), str):
            return None
        approved, reason = found.get("approved"), found.get("reason")
        return Approval(
            found["id"],
            approved if isinstance(approved, bool) else None,
            reason if isinstance(reason, str) else None,
            found.get("automatic") is True,
        )

    @property
    def output(self) -> Any:
        """The output, or what is known of it so far; see :attr:`is_preliminary`.

        A large one is a :class:`StoredValue`, as input may be, too.
        """
        return self.fields.get("output")

    @property
    def is_preliminary(self) -> bool:
        """True while the output may still change."""
        return "output" in self.fields and self.fields.get("preliminary") is True

    @property
    def error(self) -> str | None:
        """The error in place of an output, or ``None``."""
        return self._text("error")

    @property
    def result_provider(self) -> Mapping[str, Any] | None:
        """Data of the provider that belong to the result."""
        return self._mapping("result_provider")

    @property
    def is_finished(self) -> bool:
        """True if it has its outcome, was denied or was redacted: nothing is to be done for it."""
        return bool(self.redacted) or self.state in (
            *("output-available", "output-error", "output-denied"),
        )

    @property
    def state(self) -> ToolCallState:
        """How far it is."""
        approval = self.approval
        if has_outcome(self.fields):
            return "output-error" if "error" in self.fields else "output-available"
        if approval is not None and approval.approved is False:
            return "output-denied"
        if self.ended or self.redacted:
            return "interrupted"
        if self.started:
            return "running"
        if approval is not None:
            return "approval-requested" if approval.approved is None else "approval-responded"
        return "input-available" if "input" in self.fields else "input-streaming"


class SourceUrlPart(Part):
    """A page that the answer rests on.

    Args:
        url: Its address.
        title: Its title.
        id: An id, or ``None``.
        provider: Data of the provider.
    """

    __slots__ = ()
    KIND = "source_url"

    def __init__(
        self,
        url: str,
        *,
        title: str | None = None,
        id: str | None = None,
        provider: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(url=url, title=title, id=id, provider=provider)

    @property
    def url(self) -> str:
        """Its address."""
        return self._text("url") or ""

    @property
    def title(self) -> str | None:
        """Its title, or ``None``."""
        return self._text("title")


class SourceDocumentPart(Part):
    """A document that the answer rests on.

    Args:
        title: Its title.
        media_type: Its type, such as ``application/pdf``.
        filename: Its name as a file.
        id: An id, or ``None``.
        provider: Data of the provider.
    """

    __slots__ = ()
    KIND = "source_document"

    def __init__(
        self,
        title: str,
        media_type: str,
        *,
        filename: str | None = None,
        id: str | None = None,
        provider: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            title=title, media_type=media_type, filename=filename, id=id, provider=provider
        )

    @property
    def title(self) -> str:
        """Its title."""
        return self._text("title") or ""

    @property
    def media_type(self) -> str:
        """Its type."""
        return self._text("media_type") or ""

    @property
    def filename(self) -> str | None:
        """Its name as a file, or ``None``."""
        return self._text("filename")


class FilePart(Part):
    """A file, by reference. Keep its bytes elsewhere, such as in GridFS.

    Args:
        url: A URL, ``gridfs://`` with an id, or a path that your application resolves.
        media_type: Its type, such as ``image/png``.
        name: Its name.
        size: Its size in bytes.
        id: An id, or ``None``.
        provider: Data of the provider.
    """

    __slots__ = ()
    KIND = "file"

    def __init__(
        self,
        url: str,
        media_type: str,
        *,
        name: str | None = None,
        size: int | None = None,
        id: str | None = None,
        provider: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            url=url, media_type=media_type, name=name, size=size, id=id, provider=provider
        )

    @property
    def url(self) -> str:
        """Its reference."""
        return self._text("url") or ""

    @property
    def media_type(self) -> str:
        """Its type."""
        return self._text("media_type") or ""

    @property
    def name(self) -> str | None:
        """Its name, or ``None``."""
        return self._text("name")

    @property
    def size(self) -> int | None:
        """Its size in bytes, or ``None``."""
        size = self.fields.get("size")
        return size if isinstance(size, int) else None


class DataPart(Part):
    """Data of the application, for its viewers.

    Args:
        name: What they are, such as ``weather``.
        data: The data, in types that BSON can hold.
        id: Later data with the same name and id replace these, in their place.
        transient: True for data that only those see who watch right now: they are no part of the
            message.
        provider: Data of the provider.
    """

    __slots__ = ()
    KIND = DATA

    def __init__(
        self,
        name: str,
        data: Any,
        *,
        id: str | None = None,
        transient: bool = False,
        provider: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name=name, id=id, provider=provider, transient=transient or None)
        self.fields = MappingProxyType({**self.fields, "data": data})

    @property
    def name(self) -> str:
        """What they are."""
        return self._text("name") or ""

    @property
    def data(self) -> Any:
        """The data."""
        return self.fields.get("data")


class StepPart(Part):
    """One call of a model: at its end, what the provider says of it."""

    __slots__ = ()
    KIND = STEP

    @property
    def model(self) -> str | None:
        """The name of the model, or ``None``."""
        return self._text("model")

    @property
    def response_id(self) -> str | None:
        """The provider's id of the response, or ``None``."""
        return self._text("response_id")

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """The numbers of tokens, as the application gave them."""
        return self._mapping("usage")

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped, or ``None``."""
        return self._text("finish_reason")


class CustomPart(Part):
    """A part of a kind that this version does not know: its fields are passed through.

    Args:
        kind: The kind; not ``hidden``, by which clients know the parts that they may not see.
        fields: The fields, with values that BSON can hold.
    """

    __slots__ = ()

    def __init__(self, kind: str, **fields: Any) -> None:
        super().__init__(**fields)
        self.kind = kind


_KINDS: dict[str, type[Part]] = {
    each.KIND: each
    for each in (
        *(TextPart, ReasoningPart, ToolCallPart, SourceUrlPart, SourceDocumentPart),
        *(FilePart, DataPart, StepPart),
    )
}


def parts_of(records: Iterable[Record], *, ended: bool = False) -> list[Part]:
    """Makes parts of the records of a log.

    Args:
        records: The records.
        ended: True if the message has ended, so that a call without an outcome is interrupted.
    """
    return [_part_of(record, ended=ended) for record in records]


def _part_of(record: Record, *, ended: bool) -> Part:
    return _KINDS.get(record["kind"], CustomPart).from_record(record, ended=ended)
