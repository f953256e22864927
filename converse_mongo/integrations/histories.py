"""Histories: what the translators have in common while they turn messages into a prompt."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from converse_mongo.documents.listings import History
from converse_mongo.documents.messages import Message
from converse_mongo.documents.prompting import is_told, replaced_ids
from converse_mongo.domain.errors import ChunksNotLoadedError
from converse_mongo.domain.jsonable import jsonable
from converse_mongo.domain.parts import FilePart, Part, StepPart, ToolCallPart
from converse_mongo.domain.stored_values import StoredValue
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.integrations.streams import NOT_JSON, parsed

INTERRUPTED = "interrupted"
"""The result of a call that has none: providers refuse a prompt in which a call has no result."""


class Told(Protocol):
    """What a translator reads of a message: a :class:`Message`, or anything like it."""

    @property
    def id(self) -> Any:
        """The id of the message."""

    @property
    def role(self) -> MessageRole:
        """The speaker."""

    @property
    def status(self) -> MessageStatus:
        """The state."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata, of which ``replaces`` counts."""

    @property
    def parts(self) -> list[Part]:
        """The parts, in order."""


Values: TypeAlias = Mapping[StoredValue, Any]
"""Large values that were loaded; see :func:`load_values`."""
NO_VALUES: Values = MappingProxyType({})

FileUrl: TypeAlias = Callable[[FilePart], str | None]
"""Returns a URL under which the provider gets a file, or a ``data:`` URL; ``None`` for none.

A file that is stored in its message, as a ``data:`` URL, is told without asking for another URL."""


@dataclass
class Turn:
    """Parts that are told together: of one call of the model, or outside of any.

    Attributes:
        role: The speaker.
        step: The call of the model, or ``None``.
        parts: The parts, without those of sub-agents and those that were redacted.
        is_whole: False if a part was redacted.
        message: What it is a turn of.
    """

    role: MessageRole
    step: StepPart | None = None
    parts: list[Part] = field(default_factory=list)
    is_whole: bool = True
    message: Told | None = None


def turns_of(history: History | Iterable[Told], answer: Told | None) -> Iterator[Turn]:
    """Yields what a model is told, in order.

    Args:
        history: The messages, the oldest first.
        answer: The message that is being written. It takes the place of its copy in the history,
            and what is behind that is left out; without a copy, it comes last.
    """
    messages: list[Told] = list(history.messages if isinstance(history, History) else history)
    if answer is not None:
        ids = [message.id for message in messages]
        messages = [*messages[: ids.index(answer.id) if answer.id in ids else len(ids)], answer]
    replaced = replaced_ids(messages)
    for message in messages:
        try:
            parts = message.parts
        except ChunksNotLoadedError:
            continue  # larger than any prompt
        if str(message.id) in replaced or not is_told(message.role, message.status, parts):
            continue
        if message.status is MessageStatus.STREAMING and message is not answer:
            continue  # half an answer is told only to who goes on with it
        for turn in _turns(message.role, parts):
            turn.message = message
            yield turn


def _turns(role: MessageRole, parts: Iterable[Part]) -> Iterator[Turn]:
    turn = Turn(role)
    for part in parts:
        if part.parent is not None:
            continue
        if isinstance(part, StepPart):
            yield turn
            turn = Turn(role, part, is_whole=not part.redacted)
        elif part.redacted:
            turn.is_whole = False
        else:
            turn.parts.append(part)
    yield turn


def readable_url(file: FilePart, *, file_url: FileUrl | None, values: Values) -> str | None:
    """Returns a URL of a file that a provider can read; ``None`` if there is none.

    Args:
        file: The file.
        file_url: Returns that of a file which is not stored in its message, if the caller knows.
        values: Large values that were loaded: a ``data:`` URL may be one.
    """
    url = loaded(file.fields.get("url"), values)
    if isinstance(url, str) and url.startswith("data:"):
        return url
    if file_url is not None:
        return file_url(file)
    return file.url if file.url.startswith(("https://", "http://")) else None


def is_callable(part: ToolCallPart) -> bool:
    """Returns whether a call can be told: the model has written it to its end."""
    return bool(part.call_id and part.name) and "input" in part.fields


def arguments_of(part: ToolCallPart, values: Values) -> str:
    """Returns the input of a call as JSON: as the model wrote it, if that is JSON."""
    if part.text.strip():
        if "error" in parsed(part.text):
            # Of a tool that takes text, or what the model got wrong.
            return json.dumps({"invalid_json" if part.error == NOT_JSON else "input": part.text})
        return part.text
    return as_json(loaded(part.input, values))


def result_of(part: ToolCallPart, values: Values) -> str:
    """Returns what a model is told of the outcome of a call."""
    match part.state:
        case "output-available":
            output = loaded(part.output, values)
            return output if isinstance(output, str) else as_json(output)
        case "output-error":
            return part.error or "error"
        case "output-denied":
            reason = part.approval.reason if part.approval is not None else None
            return f"denied: {reason}" if reason else "denied"
    return INTERRUPTED


def loaded(value: Any, values: Values) -> Any:
    """Returns a value; in place of a large one that was not loaded, words that say so."""
    if not isinstance(value, StoredValue):
        return value
    if value in values:
        return values[value]
    return f"({value.size} bytes that are not shown here)"


def as_json(value: Any) -> str:
    """Returns a value of BSON as JSON."""
    return json.dumps(jsonable(value), ensure_ascii=False)


async def load_values(
    history: History | Iterable[Message], max_bytes: int = 1024 * 1024
) -> dict[StoredValue, Any]:
    """Loads the large values of tool calls and files, for ``values`` of a translator.

    Args:
        history: The messages; add the answer that is being written if it has tool calls.
        max_bytes: Larger values are left out.

    Raises:
        ValueNotFoundError: A value was deleted since.
        StoreUnavailableError: MongoDB did not answer.
    """
    found: dict[StoredValue, Any] = {}
    for message in history.messages if isinstance(history, History) else history:
        for part in message.parts:
            if not isinstance(part, ToolCallPart | FilePart):
                continue
            for value in part.fields.values():
                if isinstance(value, StoredValue) and value.size <= max_bytes:
                    found[value] = await message.load_value(value)
    return found
