"""Streams: what the translators have in common while they turn events into parts."""

import inspect
import json
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from typing import Any, Protocol, TypeAlias

from converse_mongo.domain.errors import InvalidMetadataError, ProviderError
from converse_mongo.domain.metadata import made_plain
from converse_mongo.domain.part_events import PartDelta, PartEnd, PartEvent, PartSet, PartStart
from converse_mongo.domain.parts import Part, ReasoningPart, TextPart
from converse_mongo.domain.surrogates import mend_all

Content: TypeAlias = str | Part | PartEvent
"""What a message takes: text of the answer, a part, or an event of one."""

STEP = "step"
"""The key of the step, which is one call of the model."""
NOT_JSON = "The input is not valid JSON."
UNSTORABLE = "The input cannot be stored."


class Parts:
    """The parts that a translator writes, by keys that it makes of the ids of the provider.

    The data that are given back to the provider have the key, so that a translator of the rest of
    the stream finds the parts that are stored: it then writes only what they do not have yet. Those
    of a part to which nothing is to come have ``done``.

    Args:
        provider: The name of the provider.
        stored: The parts of this stream that a writer before has stored.
    """

    def __init__(self, provider: str, stored: Iterable[Part] = ()) -> None:
        self.provider = provider
        self._contents: list[Content] = []
        self._stored: dict[str, Part] = {}
        self._stored_units: dict[str, int] = {}
        for part in stored:
            if (key := key_of(part, provider)) is not None:
                self._stored[key] = part
                self._stored_units[key] = self._stored_units.get(key, 0) + units(part.text)
        self._targets: dict[str, str | int] = {}
        self._texts: dict[str, Mapping[str, Any] | None] = {}  # with their data
        self._received: dict[str, int] = {}
        self._unread: dict[str, int] = {}
        self._closed: set[str] = set()
        self._open_text: str | None = None

    def data(self, key: str, **data: Any) -> dict[str, Any]:
        """Returns data of the provider, to be given back to it."""
        return {"name": self.provider, "data": {"key": key, **data}}

    def has(self, key: str) -> bool:
        """Returns whether a part was begun."""
        return key in self._targets

    def begin(self, key: str, part: Part) -> None:
        """Begins a part that grows, unless it was begun."""
        if key in self._targets:
            return
        self._received[key] = 0
        stored = self._stored.get(key)
        if stored is not None and stored.number is not None:
            self._targets[key] = stored.number
            self._unread[key] = self._stored_units[key]
            if data_of(stored.provider, self.provider).get("done") is True:
                self._closed.add(key)
        else:
            self._start(key, part)
        if isinstance(part, TextPart) and not isinstance(part, ReasoningPart):
            self._texts[key] = part.provider
            if stored is None or not stored.closed:
                self._open_text = key

    def delta(self, key: str, text: str) -> None:
        """Adds text to a part that was begun."""
        if key not in self._targets:
            return
        self._received[key] += len(text)
        text = self._behind_stored(key, text)
        if not text or key in self._closed:
            return
        if key in self._texts and self._open_text != key:
            # Another part has closed it in the log: its text goes on in a new one.
            self._start(key, TextPart("", provider=self._texts[key]))
            self._open_text = key
        target = self._targets[key]
        if key in self._texts and isinstance(target, int):
            self._contents.append(text)  # text of the answer continues the part that is open
        else:
            self._contents.append(PartDelta(target, text))

    def complete(self, key: str, text: str) -> None:
        """Adds what is missing of the whole text of a part."""
        if key in self._targets and self._received[key] < len(text):
            self.delta(key, text[self._received[key] :])

    def set(self, key: str, **fields: Any) -> None:
        """Sets fields of a part that was begun."""
        if key in self._targets and key not in self._closed:
            self._contents.append(PartSet(self._targets[key], fields))

    def end(self, key: str, **fields: Any) -> None:
        """Ends a part that was begun, once; for a tool call, its input."""
        if key in self._targets and key not in self._closed:
            self._contents.append(PartEnd(self._targets[key], fields))
            self._closed.add(key)

    def after_input(self, key: str, **fields: Any) -> None:
        """Sets fields of a tool call whose input has ended."""
        if key in self._targets:
            self._contents.append(PartSet(self._targets[key], fields))

    def adopt(self, key: str, number: int) -> None:
        """Takes a part of the message that an earlier stream has written, for fields to be set."""
        self._targets[key] = number

    def add(self, part: Part) -> None:
        """Adds a whole part, unless it is stored."""
        key = key_of(part, self.provider)
        if key is None or key not in self._stored:
            self._contents.append(part)
            self._open_text = None

    def take(self) -> list[Content]:
        """Returns what was written since the last call."""
        contents, self._contents = self._contents, []
        return contents

    def _start(self, key: str, part: Part) -> None:
        self._contents.append(PartStart(part, key))
        self._targets[key] = key
        self._open_text = None

    def _behind_stored(self, key: str, text: str) -> str:
        unread = self._unread.get(key, 0)
        if not unread:
            return text
        self._unread[key] = max(unread - units(text), 0)
        return text.encode("utf-16-le", "surrogatepass")[2 * unread :].decode(
            "utf-16-le", "surrogatepass"
        )


class Translator(Protocol):
    """Turns the events of one stream into parts.

    Attributes:
        parts: What it writes.
        failure: The error that the stream reported; it is raised behind what was written.
    """

    parts: Parts
    failure: ProviderError | None

    def feed(self, event: Any) -> None:
        """Takes the next event."""

    def finish(self) -> None:
        """Takes the end of the stream."""


async def translated(
    stream: AsyncIterable[Any], translator: Translator
) -> AsyncGenerator[Content, None]:
    """Yields what a translator makes of a stream, and closes the stream.

    Raises:
        ProviderError: The stream reported an error, or ended too early.
    """
    try:
        async for event in stream:
            translator.feed(event)
            for content in translator.parts.take():
                yield content
            if translator.failure is not None:
                raise translator.failure
        translator.finish()
        for content in translator.parts.take():
            yield content
        if translator.failure is not None:
            raise translator.failure
    finally:
        close = getattr(stream, "aclose", None) or getattr(stream, "close", None)
        closing = None if close is None else close()
        if inspect.isawaitable(closing):
            await closing


def data_of(provider: Any, name: str) -> Mapping[str, Any]:
    """Returns the data that a provider is to get back; empty if they are of another one."""
    if not isinstance(provider, Mapping) or provider.get("name") != name:
        return {}
    data = provider.get("data")
    return data if isinstance(data, Mapping) else {}


def key_of(part: Part, provider: str) -> str | None:
    """Returns the key that a translator gave to a part."""
    key = data_of(part.provider, provider).get("key")
    return key if isinstance(key, str) else None


def get(found: Any, name: str) -> Any:
    """Returns an attribute, or a key, that compatible servers may leave out."""
    return found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)


def text_at(found: Any, name: str) -> str:
    """Returns a text, or an empty one where there is none."""
    value = get(found, name)
    return value if isinstance(value, str) else ""


def plain(value: Any) -> Any:
    """Returns an object of a framework in JSON types, without what was not set."""
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        value = dump(mode="json", by_alias=True, exclude_unset=True, warnings=False)
    return storable_json(value)


def storable_json(value: Any) -> Any:
    """Returns a value of JSON that BSON can hold: whole characters, and numbers that fit."""
    return _fitting(mend_all(value))


def parsed(text: str) -> dict[str, Any]:
    """Returns the fields that the whole input of a call sets.

    No text is an empty object, as models write it for tools without parameters. If it is no JSON,
    or JSON that cannot be stored, such as with too many levels, the fields are the text and an
    error: the model is told, and the answer goes on.
    """
    if not text.strip():
        return {"input": {}}
    try:
        value = storable_json(json.loads(text, parse_constant=_refuse))
        return made_plain({"input": value}, "input")
    except InvalidMetadataError:
        return {"input": mend_all(text), "error": UNSTORABLE}
    except (ValueError, RecursionError):
        return {"input": mend_all(text), "error": NOT_JSON}


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _fitting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _fitting(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_fitting(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(2**63) <= value < 2**63 else str(value)
    return value


def units(text: str) -> int:
    """The length in UTF-16, which joining halves of characters does not change."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
