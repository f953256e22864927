"""Streams of Chat Completions: OpenAI's, and those of compatible servers with their oddities."""

import json
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from converse_mongo.domain.errors import ProviderError
from converse_mongo.domain.parts import ReasoningPart, StepPart, TextPart, ToolCallPart
from converse_mongo.integrations.openai.items import sources_of
from converse_mongo.integrations.openai.responses import OPENAI
from converse_mongo.integrations.streams import (
    NOT_JSON,
    STEP,
    Content,
    Parts,
    get,
    parsed,
    plain,
    text_at,
    translated,
)

if TYPE_CHECKING:
    from openai.lib.streaming.chat import ChatCompletionStreamEvent
    from openai.types.chat import ChatCompletionChunk

REASONING_FIELDS = "reasoning_content", "reasoning"
"""Where servers have the thoughts of a model: DeepSeek, LiteLLM and vLLM; Ollama and newer vLLM."""

_USAGE = {
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "prompt_tokens_details": "input_tokens_details",
    "completion_tokens_details": "output_tokens_details",
}


def openai_chat(
    stream: "AsyncIterable[ChatCompletionChunk | ChatCompletionStreamEvent[Any]]",
    *,
    provider: str = OPENAI,
    needs_finish_reason: bool = True,
) -> AsyncGenerator[Content, None]:
    """Turns a stream of Chat Completions into what a message takes, and closes it in the end.

    Of several choices the first is taken. The numbers of tokens come only with
    ``stream_options={"include_usage": True}``; the step has them under the names of the Responses.

    Args:
        stream: What ``client.chat.completions.create(…, stream=True)`` returns.
        provider: The name under which data for the provider are stored. They go back to a provider
            of this name only: give each compatible server one of its own.
        needs_finish_reason: False for a server that never says why it stopped. Its streams that
            were cut off cannot be told from whole ones.

    Raises:
        ProviderError: The server reported an error, or the stream ended without a finish reason.

    It also raises the errors of the stream.
    """
    return translated(stream, ChatTranslator(provider, needs_finish_reason))


@dataclass
class _Call:
    """A call that is being written; it begins once its name is known.

    Attributes:
        key: The key of its part.
        id: The id that the server gave, or an empty one.
        name: The name of the tool.
        text: The input so far.
    """

    key: str
    id: str = ""
    name: str = ""
    text: str = ""


class ChatTranslator:
    """Turns the chunks of one completion into parts; see :func:`openai_chat`."""

    def __init__(self, provider: str, needs_finish_reason: bool = True) -> None:
        self.parts = Parts(provider)
        self.failure: ProviderError | None = None
        self._needs_finish_reason = needs_finish_reason
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._ids: set[str] = set()
        self._open: str | None = None
        self._texts = 0
        self._annotations: list[Any] = []
        self._said: dict[str, str] = {}
        self._usage: Any = None
        self._finished = ""
        self._refused = False

    def feed(self, event: Any) -> None:
        """Takes the next chunk."""
        chunk = get(event, "chunk") or event  # of client.chat.completions.stream()
        choices = get(chunk, "choices")
        error = get(chunk, "error")
        if error or text_at(chunk, "object") == "error":
            self._fail(error or chunk)
            return
        if choices is None and get(chunk, "usage") is None:
            return
        if not self.parts.has(STEP):
            self.parts.begin(STEP, StepPart(provider=self.parts.data(STEP)))
        for name, field in (("model", "model"), ("response_id", "id")):
            if text := text_at(chunk, field):
                self._said[name] = text
        self._usage = get(chunk, "usage") or self._usage
        for choice in choices or ():
            if (get(choice, "index") or 0) == 0:
                self._take(get(choice, "delta") or get(choice, "message"))
                self._finished = text_at(choice, "finish_reason") or self._finished

    def finish(self) -> None:
        """Takes the end of the stream."""
        if self.failure is not None:
            return
        if not self._finished and self._needs_finish_reason:
            self._fail(
                {
                    "message": "The stream ended without a finish reason: it may be cut off.",
                    "code": "stream_ended",
                }
            )
            return
        self._end_open()
        for call in self._calls:
            if self.parts.has(call.key):
                self.parts.end(call.key, **parsed(call.text))
        for source in sources_of("annotations", self._annotations, self.parts):
            self.parts.add(source)
        reason = self._finished
        if self._refused and reason == "stop":
            reason = "refusal"
        if self._calls and reason in ("stop", "function_call"):
            reason = "tool_calls"  # Ollama, and the calls of former versions
        if not self.parts.has(STEP):
            self.parts.begin(STEP, StepPart(provider=self.parts.data(STEP)))
        usage = {} if self._usage is None else {"usage": _usage(self._usage)}
        ended = {"finish_reason": reason} if reason else {}
        self.parts.end(STEP, **self._said, **usage, **ended)

    def _fail(self, error: Any) -> None:
        message = error if isinstance(error, str) else text_at(error, "message")
        code = get(error, "code")
        self.failure = ProviderError(
            message or "The completion failed.",
            code=None if code is None else str(code),
            provider=self.parts.provider,
        )

    def _take(self, delta: Any) -> None:
        for name in REASONING_FIELDS:
            if text := text_at(delta, name):
                self._write("reasoning", text, {"field": name})
                break  # some servers send both
        if text := _content(get(delta, "content")):
            self._write("text", text, {})
        if text := text_at(delta, "refusal"):
            self._refused = True
            self._write("refusal", text, {"refusal": True})
        for annotation in get(delta, "annotations") or ():
            self._annotations.append(plain(annotation))
        for call in get(delta, "tool_calls") or ():
            self._take_call(call)
        if (called := get(delta, "function_call")) is not None:
            self._take_call({"index": 0, "function": called})

    def _write(self, kind: str, text: str, data: Mapping[str, Any]) -> None:
        if self._open is None or not self._open.startswith(kind):
            self._end_open()
            self._texts += 1
            self._open = f"{kind}/{self._texts}"
            part = ReasoningPart if kind == "reasoning" else TextPart
            made = part("", provider=self.parts.data(self._open, **data) if data else None)
            self.parts.begin(self._open, made)
        self.parts.delta(self._open, text)

    def _end_open(self) -> None:
        if self._open is not None:
            self.parts.end(self._open)
            self._open = None

    # Tool calls

    def _take_call(self, delta: Any) -> None:
        function = get(delta, "function")
        call = self._call_of(delta, text_at(function, "name"))
        call.name = call.name or text_at(function, "name")
        arguments = get(function, "arguments")
        if arguments is not None and not isinstance(arguments, str):
            arguments = json.dumps(plain(arguments), ensure_ascii=False)
        text = arguments or ""
        call.text += text
        if not call.name:
            return
        if not self.parts.has(call.key):
            self._end_open()
            call_id = call.id if call.id and call.id not in self._ids else f"call_{ObjectId()}"
            self._ids.add(call_id)
            self.parts.begin(call.key, ToolCallPart(call.name, call_id))
            text = call.text
        self.parts.delta(call.key, text)

    def _call_of(self, delta: Any, name: str) -> _Call:
        """Returns the call that a delta belongs to.

        Its index tells, unless it has another id than the call there, as with servers that give
        all calls the index 0. Without an index its id tells, and without both its name begins one.
        """
        index, own_id = get(delta, "index"), text_at(delta, "id")
        call: _Call | None = None
        if isinstance(index, int):
            call = self._by_index.get(index)
            if call is not None and name and _is_another(call, own_id):
                call = None
        elif own_id:
            call = next((each for each in self._calls if each.id == own_id), None)
            if call is None and not name and self._calls and not self._calls[-1].id:
                call = self._calls[-1]
        elif not name and self._calls:
            call = self._calls[-1]
        if call is None:
            call = _Call(f"call/{len(self._calls)}")
            self._calls.append(call)
            if isinstance(index, int):
                self._by_index[index] = call
        call.id = call.id or own_id
        return call


def _is_another(call: _Call, own_id: str) -> bool:
    """Returns whether a delta with a name begins another call than the one at its index."""
    if own_id and call.id:
        return own_id != call.id
    return bool(call.text) and parsed(call.text).get("error") != NOT_JSON


def _content(content: Any) -> str:
    """Returns the text of a content, which is a list of parts with some servers."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join([text_at(each, "text") for each in content])
    return ""


def _usage(usage: Any) -> dict[str, Any]:
    found: dict[str, Any] = plain(usage)
    return {_USAGE.get(name, name): value for name, value in found.items()}
