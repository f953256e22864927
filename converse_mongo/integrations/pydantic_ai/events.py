"""Events of an agent's run, as text and parts of a message."""

import json
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic_ai import Agent
from pydantic_ai.messages import (
    BaseToolCallPart,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    UserPromptPart,
)
from pydantic_ai.run import AgentRun
from pydantic_ai.tools import DeferredToolRequests
from pydantic_core import to_jsonable_python

from converse_mongo.domain.errors import ProviderError
from converse_mongo.domain.parts import (
    CustomPart,
    DataPart,
    FilePart,
    Part,
    ReasoningPart,
    SourceDocumentPart,
    SourceUrlPart,
    StepPart,
    TextPart,
    ToolCallPart,
)
from converse_mongo.integrations.histories import Told
from converse_mongo.integrations.streams import (
    Content,
    Parts,
    data_of,
    get,
    key_of,
    parsed,
    storable_json,
    text_at,
    translated,
)

PYDANTIC_AI = "pydantic_ai"
"""The name under which data are stored that go back to Pydantic AI; it knows whose they are."""

REQUEST = "pydantic_ai_request"
"""The kind of a part with what a request told the model beside the results of tools."""
OUTPUT = "output"
"""The name of the data that are the output of a run, if it is no text."""

_TO_STORE: Mapping[str, str] = MappingProxyType({"tool_call": "tool_calls"})
_OF_STEPS = frozenset(
    {"kind", "parts", "usage", "model_name", "provider_response_id", "finish_reason"}
)
_OF_PARTS = frozenset({"part_kind", "content", "tool_name", "tool_call_id", "args"})
_OF_AGENTS = ("system-prompt", "instruction-delta", "instruction-baseline")
"""What an agent tells by itself in each run."""


def pydantic_ai_events(
    events: AsyncIterable[Any], *, answer: Told | None = None
) -> AsyncGenerator[Content, None]:
    """Turns the events of a run into what a message takes.

    Args:
        events: What ``async with agent.run_stream_events(…)`` gives, or other events of an agent.
            Only with the former, steps have what the provider says of them.
        answer: The message, if tools that an attempt before has called may get their results.

    It raises the errors of the run.
    """
    messages: Callable[[], Sequence[ModelMessage]] | None = getattr(events, "all_messages", None)
    return translated(events, AgentTranslator(stored_of(answer), messages))


async def pydantic_ai_run(
    run: AgentRun[Any, Any], *, answer: Told | None = None
) -> AsyncGenerator[Content, None]:
    """Runs the nodes of ``async with agent.iter(…)``, and yields what a message takes.

    Args:
        run: The run; its result is there when all is yielded.
        answer: As for :func:`pydantic_ai_events`.

    It raises the errors of the run.
    """
    translator = AgentTranslator(stored_of(answer), run.all_messages)
    node: Any = run.next_node
    while not Agent.is_end_node(node):
        translator.begin_node(node)
        for content in translator.parts.take():
            yield content
        if Agent.is_model_request_node(node) or Agent.is_call_tools_node(node):
            stream: Any
            async with node.stream(run.ctx) as stream:
                async for event in stream:
                    translator.feed(event)
                    for content in translator.parts.take():
                        yield content
        node = await run.next(node)
    translator.end_run(run.result)
    for content in translator.parts.take():
        yield content


def stored_of(answer: Told | None) -> list[Part]:
    """Returns the parts of an answer that are its own."""
    return [] if answer is None else [part for part in answer.parts if part.parent is None]


class AgentTranslator:
    """Turns the events of a run into parts; see :func:`pydantic_ai_events`.

    Args:
        stored: The parts that attempts before have stored.
        messages: Returns the messages of the run so far.

    Attributes:
        messages: It, or ``None``: then a step does not have what the provider says of it.
    """

    def __init__(
        self,
        stored: Iterable[Part] = (),
        messages: Callable[[], Sequence[ModelMessage]] | None = None,
    ) -> None:
        stored = list(stored)
        self.parts = Parts(PYDANTIC_AI, stored)
        self.failure: ProviderError | None = None
        self.messages = messages
        self._step = -1
        self._is_open = False
        self._responses = 0
        self._begun: dict[int, Any] = {}
        self._ended: dict[int, Any] = {}
        self._data: dict[str, dict[str, Any]] = {}
        self._calls: dict[str, str] = {}
        self._finished: set[str] = set()
        self._started: set[str] = set()
        self._sources: set[str] = set()
        for part in stored:
            self._take_stored(part)

    def _take_stored(self, part: Part) -> None:
        key = key_of(part, PYDANTIC_AI)
        if key is None:
            return
        if isinstance(part, StepPart):
            self._step = max(self._step, index_of(key))
        elif isinstance(part, ToolCallPart):
            self.parts.begin(key, part)
            self._calls[part.call_id] = key
            self._data[key] = dict(data_of(part.provider, PYDANTIC_AI))
            if part.is_finished:
                self._finished.add(key)

    def feed(self, event: Any) -> None:
        """Takes the next event."""
        handler = self.HANDLERS.get(text_at(event, "event_kind"))
        if handler is not None:
            handler(self, event)

    def finish(self) -> None:
        """Takes the end of the events."""
        self._end_step()

    def begin_node(self, node: Any) -> None:
        """Takes the node that is to run."""
        self._end_step()
        if Agent.is_model_request_node(node):
            self._add_request([node.request])

    def end_run(self, result: Any) -> None:
        """Takes the result of the run."""
        self._end_step()
        output = get(result, "output")
        if isinstance(output, DeferredToolRequests):
            self._defer(output)
        elif output is not None and not isinstance(output, str):
            data = storable_json(to_jsonable_python(output, serialize_unknown=True))
            self.parts.add(DataPart(OUTPUT, data, id=OUTPUT))

    def part_of(self, call_id: str) -> str | None:
        """Returns the key of a call."""
        return self._calls.get(call_id)

    def start(self, call_id: str) -> bool:
        """Notes that a tool is about to run; false if its call is not one of this answer."""
        key = self._calls.get(call_id)
        if key is None or key in self._finished:
            return False
        self._started.add(key)
        self.parts.after_input(key, started=True)
        return True

    # Requests

    def _add_request(self, requests: Sequence[ModelRequest]) -> None:
        """Adds what the model is told beside the results of its calls."""
        if self._step < 0:
            return  # it is told the conversation
        told: list[dict[str, Any]] = []
        is_more = False
        for part in (part for request in requests for part in request.parts):
            kind = part.part_kind
            if kind in _OF_AGENTS:
                continue
            call_id = getattr(part, "tool_call_id", None)
            if kind == "tool-return" and call_id in self._calls:
                told.append({"tool_call_id": call_id})
            else:
                is_more = True
                told.append(_dumped([ModelRequest(parts=[part])])[0]["parts"][0])
        key = f"request/{self._step}"
        if is_more and not self.parts.has(key):
            self.parts.begin(key, CustomPart(REQUEST, provider=self.parts.data(key, request=told)))

    # Steps

    def _live(self) -> Sequence[ModelMessage]:
        return () if self.messages is None else self.messages()

    def _count(self) -> int:
        return sum(isinstance(message, ModelResponse) for message in self._live())

    def _begin_step(self) -> None:
        if self.messages is not None:
            requests: list[ModelRequest] = []
            for message in reversed(self.messages()):
                if not isinstance(message, ModelRequest):
                    break
                requests.insert(0, message)
            self._add_request(requests)
        self._is_open, self._responses = True, self._count()
        self._step += 1
        self._begun, self._ended = {}, {}
        key = f"step/{self._step}"
        self.parts.begin(key, StepPart(provider=self.parts.data(key)))

    def _end_step(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        response = next((m for m in reversed(self._live()) if isinstance(m, ModelResponse)), None)
        if response is not None and self._count() <= self._responses:
            response = None  # it was rejected
        late: dict[str, Any] = {}
        for index, part in self._final(response).items():
            self._end_part(index, part, late)
        key = f"step/{self._step}"
        if response is None:
            self.parts.end(key, provider=self.parts.data(key, done=True))
            return
        dumped = _dumped([response])[0]
        kept = {n: v for n, v in dumped.items() if n not in _OF_STEPS and v is not None}
        if response.state == "complete":
            del kept["state"]
        said = {"model": response.model_name, "response_id": response.provider_response_id}
        if response.finish_reason is not None:
            said["finish_reason"] = _TO_STORE.get(response.finish_reason, response.finish_reason)
        usage = {n: v for n, v in dumped["usage"].items() if v}
        self.parts.end(
            key,
            **{name: value for name, value in said.items() if value},
            **({"usage": usage} if usage else {}),
            provider=self.parts.data(key, done=True, response=kept, **late),
        )

    def _final(self, response: ModelResponse | None) -> dict[int, Any]:
        """Returns the parts of a response, by their indices, as they are at its end."""
        parts = {**self._begun, **self._ended}
        given = () if response is None else response.parts
        if len(given) == len(parts):
            for index, part in zip(sorted(parts), given, strict=True):
                if part.part_kind == parts[index].part_kind:
                    parts[index] = part
        return parts

    def _end_part(self, index: int, part: Any, late: dict[str, Any]) -> None:
        key = self._key(index)
        kind, item = part.part_kind, _item_of(part)
        if kind == "text":
            if item != self._data[key].get("item", {}):
                late.setdefault("items", {})[str(index)] = item
            self._add_sources(part)
            return
        if kind not in ("thinking", "tool-call", "builtin-tool-call"):
            return
        data: dict[str, Any] = {"item": item} if item else {}
        fields: dict[str, Any] = {}
        if isinstance(part, BaseToolCallPart):
            if "native" in self._data[key]:
                data["native"] = self._data[key]["native"]
            if part.args is None or part.args == "":
                data["args"] = part.args
            if isinstance(part.args, str):
                self.parts.complete(key, part.args)
            fields = _input_of(part)
            self._data[key] = data
        self.parts.end(key, **fields, provider=self.parts.data(key, **data))

    def _key(self, index: int) -> str:
        return f"{self._step}/{index}"

    # Parts of a response

    def _part_started(self, event: Any) -> None:
        index, part = event.index, event.part
        if self._is_open and self._is_next(index):
            self._end_step()
        if not self._is_open:
            self._begin_step()
        self._begun[index] = part
        key, kind, item = self._key(index), part.part_kind, _item_of(part)
        data: dict[str, Any] = {"item": item} if item else {}
        self._data.setdefault(key, data)
        provider = self.parts.data(key, **data)
        if kind in ("text", "thinking"):
            made = TextPart if kind == "text" else ReasoningPart
            self.parts.begin(key, made("", provider=provider))
            self.parts.complete(key, part.content)
        elif kind in ("tool-call", "builtin-tool-call"):
            self._begin_call(key, part)
        elif kind == "builtin-tool-return" and part.tool_call_id in self._calls:
            self._add_native_result(key, part)
        elif kind == "file":
            content = part.content
            self.parts.add(
                FilePart(
                    content.data_uri, content.media_type, size=len(content.data), provider=provider
                )
            )
        else:
            dumped = _dumped([ModelResponse(parts=[part])])[0]["parts"][0]
            name = f"pydantic_ai_{kind.replace('-', '_')}"
            self.parts.add(CustomPart(name, provider=self.parts.data(key, part=dumped)))

    def _is_next(self, index: int) -> bool:
        """Returns whether a part belongs to the next response."""
        if self.messages is not None:
            return self._count() > self._responses
        return index == 0 and 0 in self._ended

    def _part_changed(self, event: Any) -> None:
        delta, key = event.delta, self._key(event.index)
        if delta.part_delta_kind == "tool_call":
            if isinstance(delta.args_delta, str):
                self.parts.delta(key, delta.args_delta)
        elif text := text_at(delta, "content_delta"):
            self.parts.delta(key, text)

    def _part_ended(self, event: Any) -> None:
        self._ended[event.index] = event.part

    def _begin_call(self, key: str, part: Any) -> None:
        if self.parts.has(key):
            return
        is_native = part.part_kind == "builtin-tool-call"
        if is_native:
            self._data[key]["native"] = True
        self._calls[part.tool_call_id] = key
        self.parts.begin(
            key,
            ToolCallPart(
                part.tool_name,
                part.tool_call_id,
                executor="provider" if is_native else "server",
                provider=self.parts.data(key, **self._data[key]),
            ),
        )
        if isinstance(part.args, str):
            self.parts.delta(key, part.args)

    def _add_native_result(self, key: str, part: Any) -> None:
        call = self._calls[part.tool_call_id]
        index = index_of(call)
        if call == self._key(index):  # the output comes behind the input
            called = self._ended.get(index, self._begun[index])
            self.parts.after_input(call, **_input_of(called))
        dumped = _dumped([ModelResponse(parts=[part])])[0]["parts"][0]
        rest = {n: v for n, v in dumped.items() if n not in _OF_PARTS and v is not None}
        data = self.parts.data(key, result=rest)
        output = storable_json(dumped["content"])
        self.parts.after_input(call, output=output, result_provider=data)
        self._finished.add(call)

    def _add_sources(self, part: Any) -> None:
        for citation in part.citations or ():
            for source in citation.sources:
                name = get(source, "url") or get(source, "document_id") or get(source, "title")
                key = f"source/{self._step}/{name}"
                if not name or key in self._sources:
                    continue
                self._sources.add(key)
                data = self.parts.data(key)
                if url := get(source, "url"):
                    self.parts.add(SourceUrlPart(url, title=source.title, provider=data))
                else:
                    title = source.title or str(name)
                    self.parts.add(SourceDocumentPart(title, "text/plain", provider=data))

    # Tools

    def _called(self, _: Any) -> None:
        self._end_step()

    def _result(self, event: Any) -> None:
        self._end_step()
        part = event.part
        key = self._calls.get(part.tool_call_id)
        if key is None:
            return
        dumped = _dumped([ModelRequest(parts=[part])])[0]["parts"][0]
        rest = {n: v for n, v in dumped.items() if n not in _OF_PARTS and v is not None}
        content, outcome = storable_json(dumped["content"]), part.outcome
        if outcome == "success":
            del rest["outcome"]
            fields: dict[str, Any] = {"output": content}
        else:
            words = part.model_response_str(wrap_if_error=False)
            if content != words:
                rest["content"] = content
            fields = {"error": words or outcome}
            if outcome == "denied":
                name = f"approval_{part.tool_call_id}"
                asked = {"id": name, "approved": False, "reason": words, "automatic": True}
                fields = {"approval": asked}
        if key in self._finished:  # by people, or in the browser
            fields = {}
            if outcome == "success":
                rest.pop("content", None)
        data: dict[str, Any] = {"result": rest}
        if told := get(event, "content"):
            prompt = ModelRequest(parts=[UserPromptPart(told)])
            data["user"] = _dumped([prompt])[0]["parts"][0]
        self.parts.after_input(key, **fields, result_provider=self.parts.data(key, **data))
        self._finished.add(key)

    def _defer(self, requests: DeferredToolRequests) -> None:
        """Marks the calls that wait for people, or for somebody who runs their tool."""
        for call in [*requests.approvals, *requests.calls]:
            key = self._calls.get(call.tool_call_id)
            if key is None:
                continue
            fields: dict[str, Any] = {"executor": "client"}
            if call in requests.approvals:
                fields = {"approval": {"id": f"approval_{call.tool_call_id}"}}
            if key in self._started:
                fields["started"] = False  # it asked before it did anything
            if metadata := requests.metadata.get(call.tool_call_id):
                told = storable_json(to_jsonable_python(metadata, serialize_unknown=True))
                self._data[key]["deferred"] = told
                own = {n: v for n, v in self._data[key].items() if n != "key"}
                fields["provider"] = self.parts.data(key, **own)
            self.parts.after_input(key, **fields)

    # Others

    def _custom(self, event: Any) -> None:
        if event.ui:
            data = to_jsonable_python(event.to_payload(), serialize_unknown=True)
            self.parts.add(DataPart(event.name, storable_json(data)))

    def _run_ended(self, event: Any) -> None:
        self.end_run(event.result)

    HANDLERS: ClassVar[Mapping[str, Callable[..., None]]] = {
        "agent_run_result": _run_ended,
        "custom": _custom,
        "deferred_tool_requests": _called,
        "function_tool_call": _called,
        "function_tool_result": _result,
        "output_tool_call": _called,
        "output_tool_result": _result,
        "part_delta": _part_changed,
        "part_end": _part_ended,
        "part_start": _part_started,
    }
    """What takes the events of each kind; those of other kinds are ignored."""


def index_of(key: str) -> int:
    """Returns the number at the end of a key; -1 without one."""
    last = key.rpartition("/")[2]
    return int(last) if last.isdecimal() else -1


def _dumped(messages: list[ModelMessage]) -> list[dict[str, Any]]:
    """Returns messages in JSON types."""
    # Of unions like theirs, the oldest versions of Pydantic warn without a reason.
    dumped: list[dict[str, Any]] = ModelMessagesTypeAdapter.dump_python(
        messages, mode="json", warnings=False
    )
    return dumped


def _item_of(part: Any) -> dict[str, Any]:
    """Returns what a part of ours does not express of a part of a response."""
    if part.part_kind not in ("text", "thinking", "tool-call", "builtin-tool-call", "file"):
        return {}
    if part.part_kind == "file":
        names = ("id", "provider_name", "provider_details")
        found = {name: getattr(part, name) for name in names}
        return storable_json({n: v for n, v in found.items() if v is not None})  # type: ignore[no-any-return]
    dumped = _dumped([ModelResponse(parts=[part])])[0]["parts"][0]
    kept = {n: v for n, v in dumped.items() if n not in _OF_PARTS and v is not None}
    return storable_json(kept)  # type: ignore[no-any-return]


def _input_of(part: Any) -> dict[str, Any]:
    """Returns the fields that the arguments of a call set."""
    args = part.args
    if not isinstance(args, str):
        args = json.dumps(to_jsonable_python(args or {}, serialize_unknown=True))
    return {"input": parsed(args)["input"]}  # the agent says what is wrong with it
