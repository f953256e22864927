"""Streams of OpenAI's Responses."""

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from converse_mongo.documents.messages import Message
from converse_mongo.domain.errors import ChunksNotLoadedError, ProviderError
from converse_mongo.domain.parts import (
    CustomPart,
    Part,
    ReasoningPart,
    StepPart,
    TextPart,
    ToolCallPart,
)
from converse_mongo.integrations.openai.items import (
    BUILT_IN,
    OUTPUTS,
    call_id_of,
    executor_of,
    outcome_of,
    sources_of,
)
from converse_mongo.integrations.streams import (
    STEP,
    Content,
    Parts,
    data_of,
    get,
    parsed,
    plain,
    text_at,
    translated,
)

if TYPE_CHECKING:
    from openai.types.responses import ResponseStreamEvent

OPENAI = "openai"

_TEXTS = "output_text", "refusal"


@dataclass(frozen=True, slots=True)
class UnfinishedResponse:
    """A response in the background whose stream was cut: OpenAI goes on with it.

    Attributes:
        response_id: Its id.
        starting_after: The number of the event behind which to go on.
        parts: The parts of it that are stored.
        provider: The name of the provider.
    """

    response_id: str
    starting_after: int
    parts: tuple[Part, ...]
    provider: str


def unfinished_response(message: Message, *, provider: str = OPENAI) -> UnfinishedResponse | None:
    """Returns the response in the background with which the text of a message ends.

    Get the rest of its stream with ``client.responses.retrieve(response_id, stream=True,
    starting_after=…)``, and pass this to :func:`openai_responses`.

    Args:
        message: The message, as a copy of it that has all that is stored.
        provider: As for :func:`openai_responses`.

    Returns:
        ``None`` if there is none: its last call of the model has ended, or was not made with
        ``background=True``.
    """
    try:
        parts = [part for part in message.parts if part.parent is None]
    except ChunksNotLoadedError:
        return None
    steps = [index for index, part in enumerate(parts) if isinstance(part, StepPart)]
    if not steps or not message.is_streaming:
        return None
    step, own = parts[steps[-1]], tuple(parts[steps[-1] :])
    data = data_of(step.provider, provider)
    if not isinstance(step, StepPart) or step.closed or data.get("background") is not True:
        return None
    if step.response_id is None:
        return None
    each = [data_of(part.provider, provider) for part in own[1:]]
    open_ones = [found["at"] for found in each if "at" in found and not found.get("done")]
    ended = [found["at"] for found in each if "at" in found]
    first = min(open_ones) if open_ones else max(ended, default=1)
    # Behind the event before the one that began the item.
    return UnfinishedResponse(step.response_id, max(first - 1, 0), own, provider)


def openai_responses(
    stream: "AsyncIterable[ResponseStreamEvent]",
    unfinished: UnfinishedResponse | None = None,
    *,
    provider: str = OPENAI,
) -> AsyncGenerator[Content, None]:
    """Turns a stream of OpenAI's Responses into what a message takes, and closes it in the end.

    Args:
        stream: What ``client.responses.create(…, stream=True)`` returns.
        unfinished: The response of which this is the rest; see :func:`unfinished_response`.
        provider: The name under which data for the provider are stored. They go back to a provider
            of this name only: give each compatible server one of its own.

    Raises:
        ProviderError: The response failed, or its stream ended too early.

    It also raises the errors of the stream.
    """
    return translated(stream, ResponsesTranslator(provider, unfinished))


@dataclass
class _Item:
    """An output item.

    Attributes:
        key: The key of its part, or the beginning of those of its parts.
        at: The number of the event that began it.
        fields: The item, as far as it is known.
        texts: The keys of its texts in order, with their content parts.
    """

    key: str
    at: int
    fields: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: bool = False


class ResponsesTranslator:
    """Turns the events of one response into parts; see :func:`openai_responses`."""

    def __init__(self, provider: str, unfinished: UnfinishedResponse | None = None) -> None:
        self.parts = Parts(provider, () if unfinished is None else unfinished.parts)
        self.failure: ProviderError | None = None
        self._unfinished = unfinished
        self._items: dict[str, _Item] = {}
        self._names: dict[int, str] = {}
        self._calls: dict[str, str] = {}
        self._at = 0
        self._ended = self._called = self._refused = False

    def feed(self, event: Any) -> None:
        """Takes the next event. Those of unknown types are ignored."""
        take = self.HANDLERS.get(text_at(event, "type"))
        if take is None:
            return
        number = get(event, "sequence_number")
        self._at = number if isinstance(number, int) else self._at + 1
        if not self.parts.has(STEP):
            self._begin_step(get(event, "response"))
        take(self, event)

    def finish(self) -> None:
        """Takes the end of the stream."""
        if not self._ended and self.failure is None:
            self._fail("The stream of the response ended too early.", "stream_ended")

    # The response

    def _begin_step(self, response: Any) -> None:
        data = {"background": True} if get(response, "background") is True else {}
        response_id = text_at(response, "id") or None
        if self._unfinished is not None:
            data, response_id = {"background": True}, self._unfinished.response_id
        step = StepPart(response_id=response_id, provider=self.parts.data(STEP, **data))
        self.parts.begin(STEP, step)

    def _completed(self, event: Any) -> None:
        response = get(event, "response")
        for index, item in enumerate(get(response, "output") or []):
            self._item_done({"item": item, "output_index": index})
        status = text_at(response, "status")
        reason = text_at(get(response, "incomplete_details"), "reason")
        if text_at(event, "type") == "response.incomplete" or status == "incomplete":
            finished = {"max_output_tokens": "length"}.get(reason, reason or "incomplete")
        else:
            finished = "tool_calls" if self._called else "refusal" if self._refused else "stop"
        said = {"model": text_at(response, "model"), "response_id": text_at(response, "id")}
        usage = get(response, "usage")
        self.parts.end(
            STEP,
            **{name: value for name, value in said.items() if value},
            **({} if usage is None else {"usage": plain(usage)}),
            finish_reason=finished,
            provider=self.parts.data(STEP, done=True),
        )
        self._ended = True

    def _failed(self, event: Any) -> None:
        error = get(get(event, "response"), "error")
        self._fail(text_at(error, "message") or "The response failed.", text_at(error, "code"))

    def _error(self, event: Any) -> None:
        message = text_at(event, "message") or "The response failed."
        self._fail(message, text_at(event, "code"))

    def _fail(self, message: str, code: str) -> None:
        self.failure = ProviderError(message, code=code or None, provider=self.parts.provider)

    def _progress(self, event: Any) -> None:
        """A response was created, or is in progress: its step has begun."""

    # Items

    def _item(self, event: Any) -> _Item:
        """Returns the item of an event: by its index, as some servers change the id."""
        index = get(event, "output_index")
        own = text_at(event, "item_id") or text_at(get(event, "item"), "id")
        name = self._names.get(index) if isinstance(index, int) else None
        if name is None:
            name = own or f"item_{index}"
            if isinstance(index, int):
                self._names[index] = name
        if name not in self._items:
            self._items[name] = _Item(name, self._at)
        return self._items[name]

    def _item_added(self, event: Any) -> None:
        item = self._item(event)
        item.fields = self._of_event(event)
        kind = item.fields.get("type")
        if kind in ("function_call", "custom_tool_call") or kind in BUILT_IN:
            self._begin_call(item)

    def _of_event(self, event: Any) -> dict[str, Any]:
        found = plain(get(event, "item"))
        return dict(found) if isinstance(found, Mapping) else {}

    def _item_done(self, event: Any) -> None:
        item = self._item(event)
        if item.done:
            return
        item.done, item.fields = True, {**item.fields, **self._of_event(event)}
        kind = item.fields.get("type")
        if kind == "message":
            self._message_done(item)
        elif kind == "reasoning":
            self._reasoning_done(item)
        elif kind in ("function_call", "custom_tool_call"):
            self._function_done(item)
        elif kind in BUILT_IN:
            self._built_in_done(item)
        elif kind in OUTPUTS:
            self._output_done(item)
        elif isinstance(kind, str):
            data = self._data(item, item.key, item=item.fields, done=True)
            self.parts.add(CustomPart(f"openai_{kind}", provider=data))

    def _data(self, item: _Item, key: str, /, **data: Any) -> dict[str, Any]:
        return self.parts.data(key, at=item.at, **data)

    # Text

    def _text_key(self, event: Any) -> tuple[_Item, str]:
        item = self._item(event)
        key = f"{item.key}/{get(event, 'content_index') or 0}"
        if not self.parts.has(key):
            if item.texts:
                self._end_text(item, next(reversed(item.texts)), "completed")
            item.texts[key] = {"type": "output_text", "annotations": []}
            self.parts.begin(key, TextPart("", provider=self._data(item, key)))
        return item, key

    def _content_added(self, event: Any) -> None:
        part = get(event, "part")
        if text_at(part, "type") in _TEXTS:
            item, key = self._text_key(event)
            item.texts[key]["type"] = text_at(part, "type")
            self.parts.complete(key, text_at(part, "text") or text_at(part, "refusal"))

    def _text_delta(self, event: Any) -> None:
        item, key = self._text_key(event)
        if text_at(event, "type") == "response.refusal.delta":
            item.texts[key]["type"] = "refusal"
        self.parts.delta(key, text_at(event, "delta"))

    def _text_done(self, event: Any) -> None:
        item, key = self._text_key(event)
        if text_at(event, "type") == "response.refusal.done":
            item.texts[key]["type"] = "refusal"
        self.parts.complete(key, text_at(event, "text") or text_at(event, "refusal"))

    def _annotated(self, event: Any) -> None:
        item, key = self._text_key(event)
        annotation = get(event, "annotation")
        if annotation is not None:
            item.texts[key]["annotations"].append(plain(annotation))

    def _content_done(self, event: Any) -> None:
        part = get(event, "part")
        kind = text_at(part, "type")
        if kind in _TEXTS:
            item, key = self._text_key(event)
            self._take_content(item, key, plain(part))

    def _take_content(self, item: _Item, key: str, content: Mapping[str, Any]) -> None:
        found = item.texts[key]
        found["type"] = content.get("type") or found["type"]
        found["annotations"] = content.get("annotations") or found["annotations"]
        self.parts.complete(key, text_at(content, "text") or text_at(content, "refusal"))

    def _message_done(self, item: _Item) -> None:
        for index, content in enumerate(item.fields.get("content") or []):
            if text_at(content, "type") in _TEXTS:
                named = {"item_id": item.key, "content_index": index}
                _, key = self._text_key(named)
                self._take_content(item, key, content)
        if item.texts:
            last = next(reversed(item.texts))
            self._end_text(item, last, text_at(item.fields, "status") or "completed")

    def _end_text(self, item: _Item, key: str, status: str) -> None:
        content = item.texts[key]
        self._refused = self._refused or content["type"] == "refusal"
        kept = {name: item.fields[name] for name in ("id", "phase") if item.fields.get(name)}
        told = {"type": "message", **kept, "status": status}
        annotations = content["annotations"]
        shown = content if content["type"] == "output_text" else {"type": "refusal"}
        data = self._data(item, key, item=told, content=shown, done=True)
        self.parts.end(key, provider=data)
        for source in sources_of(key, annotations, self.parts):
            self.parts.add(source)
        item.texts[key] = {**content, "annotations": []}

    # Reasoning

    def _reasoning_key(self, event: Any) -> tuple[_Item, str]:
        item = self._item(event)
        index, letter = get(event, "summary_index"), "s"
        if index is None:
            index, letter = get(event, "content_index") or 0, "c"
        key = f"{item.key}/{letter}{index}"
        if not self.parts.has(key):
            if item.texts:
                last = next(reversed(item.texts))
                self.parts.end(last, provider=self._reasoning_data(item, last, done=True))
            item.texts[key] = {"of": item.key, "as": letter}
            self.parts.begin(key, ReasoningPart("", provider=self._reasoning_data(item, key)))
        return item, key

    def _reasoning_data(self, item: _Item, key: str, /, **more: Any) -> dict[str, Any]:
        return self._data(item, key, **item.texts[key], **more)

    def _reasoning_delta(self, event: Any) -> None:
        _, key = self._reasoning_key(event)
        self.parts.delta(key, text_at(event, "delta"))

    def _reasoning_text(self, event: Any) -> None:
        _, key = self._reasoning_key(event)
        self.parts.complete(key, text_at(event, "text") or text_at(get(event, "part"), "text"))

    def _reasoning_done(self, item: _Item) -> None:
        for name, index in (("summary", "summary_index"), ("content", "content_index")):
            for number, each in enumerate(item.fields.get(name) or []):
                self._reasoning_text({"item_id": item.key, index: number, "part": each})
        if not item.texts:  # only what is encrypted
            self._reasoning_key({"item_id": item.key, "summary_index": 0})
            item.texts[f"{item.key}/s0"]["as"] = "none"
        last = next(reversed(item.texts))
        told = {n: v for n, v in item.fields.items() if n not in ("summary", "content")}
        data = self._reasoning_data(item, last, item=told, done=True)
        if "content" in item.fields:
            data["data"]["has_content"] = True
        self.parts.end(last, provider=data)

    # Tools

    def _begin_call(self, item: _Item) -> None:
        kind, found = item.fields["type"], item.fields
        if kind in BUILT_IN:
            name, executor = text_at(found, "name") or BUILT_IN[kind][0], executor_of(found)
        else:
            name, executor = text_at(found, "name"), "server"
        if not name or self.parts.has(item.key):
            return
        call_id, label = call_id_of(found), text_at(found, "server_label")
        self._calls[call_id] = item.key
        self.parts.begin(
            item.key,
            ToolCallPart(
                name,
                call_id,
                title=f"{label}: {name}" if label else None,
                executor=executor,
                provider=self._data(item, item.key),
            ),
        )

    def _input_delta(self, event: Any) -> None:
        self.parts.delta(self._item(event).key, text_at(event, "delta"))

    def _input_done(self, event: Any) -> None:
        texts = (text_at(event, name) for name in ("arguments", "input", "code"))
        self.parts.complete(self._item(event).key, next(filter(None, texts), ""))

    def _started(self, event: Any) -> None:
        item = self._item(event)
        if not item.fields.get("started"):
            item.fields["started"] = True
            self.parts.set(item.key, started=True)

    def _function_done(self, item: _Item) -> None:
        self._begin_call(item)
        self._called = True
        is_custom = item.fields["type"] == "custom_tool_call"
        text = text_at(item.fields, "input" if is_custom else "arguments")
        self.parts.complete(item.key, text)
        fields = {"input": text} if is_custom else parsed(text)
        hidden = ("name", "call_id", "arguments", "input")
        told = {n: v for n, v in item.fields.items() if n not in hidden}
        data = self._data(item, item.key, item=told, done=True)
        self.parts.end(item.key, **fields, provider=data)

    def _built_in_done(self, item: _Item) -> None:
        item.fields.pop("started", None)
        self._begin_call(item)
        if item.fields["type"] == "mcp_call":
            self.parts.complete(item.key, text_at(item.fields, "arguments"))
        fields, told = outcome_of(item.fields), dict(item.fields)
        if executor_of(item.fields) == "server":
            self._called = True
        if item.fields["type"] == "image_generation_call":
            told.pop("result", None)  # it is in the output
        data = self._data(item, item.key, item=told, done=True)
        self.parts.end(item.key, **fields, provider=data)

    def _output_done(self, item: _Item) -> None:
        key = self._calls.get(text_at(item.fields, "call_id"))
        if key is None:
            return
        data = self._data(item, item.key, item=item.fields)
        self.parts.after_input(key, output=item.fields.get("output"), result_provider=data)

    # Types of events

    HANDLERS: ClassVar[Mapping[str, Callable[..., None]]] = {
        "error": _error,
        "response.code_interpreter_call.in_progress": _started,
        "response.code_interpreter_call.interpreting": _started,
        "response.code_interpreter_call_code.delta": _input_delta,
        "response.code_interpreter_call_code.done": _input_done,
        "response.completed": _completed,
        "response.content_part.added": _content_added,
        "response.content_part.done": _content_done,
        "response.created": _progress,
        "response.custom_tool_call_input.delta": _input_delta,
        "response.custom_tool_call_input.done": _input_done,
        "response.failed": _failed,
        "response.file_search_call.in_progress": _started,
        "response.file_search_call.searching": _started,
        "response.function_call_arguments.delta": _input_delta,
        "response.function_call_arguments.done": _input_done,
        "response.image_generation_call.generating": _started,
        "response.image_generation_call.in_progress": _started,
        "response.in_progress": _progress,
        "response.incomplete": _completed,
        "response.mcp_call.in_progress": _started,
        "response.mcp_call_arguments.delta": _input_delta,
        "response.mcp_call_arguments.done": _input_done,
        "response.output_item.added": _item_added,
        "response.output_item.done": _item_done,
        "response.output_text.annotation.added": _annotated,
        "response.output_text.delta": _text_delta,
        "response.output_text.done": _text_done,
        "response.queued": _progress,
        "response.reasoning_summary_part.added": _reasoning_text,
        "response.reasoning_summary_part.done": _reasoning_text,
        "response.reasoning_summary_text.delta": _reasoning_delta,
        "response.reasoning_summary_text.done": _reasoning_text,
        "response.reasoning_text.delta": _reasoning_delta,
        "response.reasoning_text.done": _reasoning_text,
        "response.refusal.delta": _text_delta,
        "response.refusal.done": _text_done,
        "response.web_search_call.in_progress": _started,
        "response.web_search_call.searching": _started,
    }
    """What takes the events of each type; those of other types are ignored."""
