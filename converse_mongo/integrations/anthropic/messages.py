"""Streams of Anthropic's Messages."""

import json
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from bson import ObjectId

from converse_mongo.domain.errors import ChunksNotLoadedError, ProviderError
from converse_mongo.domain.parts import (
    CustomPart,
    ReasoningPart,
    StepPart,
    TextPart,
    ToolCallPart,
)
from converse_mongo.integrations.anthropic.blocks import (
    THOUGHTS,
    Block,
    error_of,
    executor_of,
    is_result,
    is_use,
    sources_of,
)
from converse_mongo.integrations.histories import Told
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
    units,
)

if TYPE_CHECKING:
    from anthropic.lib.streaming import (
        BetaMessageStreamEvent,
        MessageStreamEvent,
        ParsedMessageStreamEvent,
    )
    from anthropic.types import RawMessageStreamEvent
    from anthropic.types.beta import BetaRawMessageStreamEvent

ANTHROPIC = "anthropic"

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
}
_SAID = frozenset({"stop_reason", "stop_sequence", "stop_details", "container"})
_GOES_ON = frozenset({"tool_calls", "pause_turn"})
"""Reasons behind which the model is asked again."""


def anthropic_messages(
    stream: "AsyncIterable[RawMessageStreamEvent | BetaRawMessageStreamEvent"
    " | MessageStreamEvent | ParsedMessageStreamEvent[Any] | BetaMessageStreamEvent]",
    answer: Told | None = None,
    *,
    provider: str = ANTHROPIC,
) -> AsyncGenerator[Content, None]:
    """Turns a stream of Anthropic's Messages into what a message takes, and closes it in the end.

    Args:
        stream: What ``client.messages.create(…, stream=True)`` returns, or the stream of
            ``client.messages.stream(…)``; also those of ``client.beta.messages``.
        answer: The message that is being written, as far as it is, if it has calls of tools that
            Anthropic runs: their outcome may come with the next response.
        provider: The name under which data for the provider are stored. They go back to a provider
            of this name only: give each compatible server one of its own.

    Raises:
        ProviderError: The stream reported an error, or ended too early.

    It also raises the errors of the stream.
    """
    return translated(stream, MessagesTranslator(provider, answer))


@dataclass
class _Run:
    """Text blocks without others between them, which are one part.

    Attributes:
        key: The key of the part.
        blocks: The blocks.
    """

    key: str
    blocks: list[Block] = field(default_factory=list)


class _Delta(NamedTuple):
    """What takes deltas of a type.

    Attributes:
        takes: Returns whether a block of some type can have such deltas.
        begins: The type of block that such a delta begins, if its start was left out.
        take: Takes one.
    """

    takes: Callable[[str], bool]
    begins: str
    take: Callable[..., None]


class MessagesTranslator:
    """Turns the events of one response into parts; see :func:`anthropic_messages`."""

    def __init__(self, provider: str, answer: Told | None = None) -> None:
        self.parts = Parts(provider)
        self.failure: ProviderError | None = None
        self._earlier = {} if answer is None else _open_calls(answer, provider)
        self._blocks: dict[int, Block] = {}
        self._run: _Run | None = None
        self._count_of_mixed = 0
        self._calls: dict[str, Block] = {}  # by the ids that the provider gave
        self._own: list[Block] = []  # calls that the application runs
        self._answered: set[str] = set()
        self._id = self._model = ""
        self._said: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._is_whole = True
        self._ended = False

    def feed(self, event: Any) -> None:
        """Takes the next event. Those of unknown types are ignored."""
        take = self.HANDLERS.get(text_at(event, "type"))
        if take is None or self._ended or self.failure is not None:
            return
        if not self.parts.has(STEP) and take is not MessagesTranslator._error:
            self._begin_step(get(event, "message"))
        take(self, event)

    def finish(self) -> None:
        """Takes the end of the stream."""
        if self._ended or self.failure is not None:
            return
        if "stop_reason" in self._said:
            self._end(None)
            return
        self._fail("The stream of the response ended too early.", "stream_ended")

    # The response

    def _begin_step(self, message: Any) -> None:
        self._id = text_at(message, "id") or f"msg_{ObjectId()}"
        step = StepPart(response_id=self._id, provider=self.parts.data(STEP))
        self.parts.begin(STEP, step)

    def _message_started(self, event: Any) -> None:
        message = get(event, "message")
        self._model = text_at(message, "model")
        self._count(get(message, "usage"))

    def _message_changed(self, event: Any) -> None:
        found = plain(get(event, "delta"))
        if isinstance(found, Mapping):
            self._said |= {n: v for n, v in found.items() if n in _SAID and v is not None}
        self._count(get(event, "usage"))

    def _count(self, usage: Any) -> None:
        found = plain(usage)
        if isinstance(found, Mapping):  # its numbers are totals so far
            self._usage |= {n: v for n, v in found.items() if v is not None}

    def _end(self, event: Any) -> None:  # noqa: ARG002 - as all that take events
        for block in self._blocks.values():
            self._close(block)
        self._end_run()
        stop = text_at(self._said, "stop_reason")
        reason = _REASONS.get(stop, stop)
        if self._own and reason in ("", "stop"):
            reason = "tool_calls"  # of servers that say nothing of calls
        if reason not in _GOES_ON:
            self._leave(f"The tool was not run: the model stopped ({stop}).")
        done = {"done": True} if self._is_whole else {}
        usage = {"usage": self._usage} if self._usage else {}
        self.parts.end(
            STEP,
            **({"model": self._model} if self._model else {}),
            **usage,
            **({"finish_reason": reason} if reason else {}),
            provider=self.parts.data(STEP, **self._said, **done),
        )
        self._ended = True

    def _leave(self, error: str) -> None:
        """Tells that the calls so far are not run, except those that have an error already."""
        for block in self._own:
            self._close(block)
            if not block.failed:
                self.parts.after_input(block.key, error=error)
        self._own = []

    def _error(self, event: Any) -> None:
        error = get(event, "error")
        self._fail(text_at(error, "message") or "The response failed.", text_at(error, "type"))

    def _fail(self, message: str, code: str) -> None:
        self.failure = ProviderError(message, code=code or None, provider=self.parts.provider)

    # Blocks

    def _started(self, event: Any) -> None:
        index = get(event, "index")
        if not isinstance(index, int):
            index = max(self._blocks, default=-1) + 1  # some servers leave it out
        found = plain(get(event, "content_block"))
        if index in self._blocks or not isinstance(found, Mapping) or not text_at(found, "type"):
            self._is_whole = False
            return
        block = self._blocks[index] = Block(str(index), dict(found))
        if block.kind == "text":
            self._begin_text(index, block)
            return
        self._end_run()
        if block.kind in THOUGHTS:
            self.parts.begin(block.key, ReasoningPart(""))
            self.parts.delta(block.key, text_at(block.fields, "thinking"))
        elif is_use(block.kind):
            self._begin_call(block)
        elif is_result(block.kind):
            self._take_result(block)
        elif block.kind == "fallback":
            self._model = text_at(block.fields.get("to"), "model") or self._model
            self._leave("The tool was not run: another model took over.")

    def _changed(self, event: Any) -> None:
        index, delta = self._index(event), get(event, "delta")
        found = self.DELTAS.get(text_at(delta, "type"))
        if found is not None and found.begins and index not in self._blocks:
            # Of servers that leave out the start of a block.
            self._started({"index": index, "content_block": {"type": found.begins}})
        block = self._blocks.get(index)
        if found is None or block is None or block.done or not found.takes(block.kind):
            self._is_whole = False
            return
        found.take(self, block, delta)

    def _stopped(self, event: Any) -> None:
        block = self._blocks.get(self._index(event))
        if block is not None:
            self._close(block)

    def _index(self, event: Any) -> int:
        """Returns the index of the block of an event; some servers leave it out."""
        index = get(event, "index")
        return index if isinstance(index, int) else max(self._blocks, default=0)

    def _close(self, block: Block) -> None:
        if block.done:
            return
        block.done = True
        kind = block.kind
        if kind in THOUGHTS:
            data = self._data(block, block=block.rest("thinking"))
            self.parts.end(block.key, provider=data)
        elif is_use(kind):
            self._end_call(block)
        elif kind != "text" and not is_result(kind):
            data = self._data(block, block=block.rest())
            self.parts.add(CustomPart(f"anthropic_{kind}", provider=data))

    def _data(self, of: Block, /, **data: Any) -> dict[str, Any]:
        return self.parts.data(of.key, type=of.kind, **data)

    # Text

    def _begin_text(self, index: int, block: Block) -> None:
        if self._run is None or index != int(self._run.blocks[0].key) + len(self._run.blocks):
            self._end_run()
            self._run = _Run(block.key)
        self._run.blocks.append(block)
        self._text_delta(block, block.fields)

    def _text_delta(self, block: Block, delta: Any) -> None:
        text = text_at(delta, "text")
        if not text:
            return
        if self._run is None or block is not self._run.blocks[-1]:
            # Of blocks that are mixed: its text goes on in a part with a key that is no index.
            self._end_run()
            self._count_of_mixed += 1
            self._run = _Run(f"{block.key}/{self._count_of_mixed}", [block])
        block.units += units(text)
        self.parts.begin(self._run.key, TextPart(""))
        self.parts.delta(self._run.key, text)

    def _citation_delta(self, block: Block, delta: Any) -> None:
        citation = plain(get(delta, "citation"))
        block.fields["citations"] = [*block.citations, citation]

    def _end_run(self) -> None:
        if (run := self._run) is None:
            return
        self._run = None
        blocks = [{**each.rest("text"), "units": each.units} for each in run.blocks]
        self.parts.end(run.key, provider=self.parts.data(run.key, type="text", blocks=blocks))
        for source in sources_of([each for block in run.blocks for each in block.citations]):
            self.parts.add(source)

    # Thoughts

    def _thinking_delta(self, block: Block, delta: Any) -> None:
        self.parts.delta(block.key, text_at(delta, "thinking"))

    def _signature_delta(self, block: Block, delta: Any) -> None:
        block.fields["signature"] = text_at(delta, "signature")

    # Tools

    def _begin_call(self, block: Block) -> None:
        name, own_id = text_at(block.fields, "name"), text_at(block.fields, "id")
        server = text_at(block.fields, "server_name")
        call_id = own_id if own_id and own_id not in self._calls else f"toolu_{ObjectId()}"
        self._calls[call_id] = block
        executor = executor_of(block.kind)
        if executor == "server":
            self._own.append(block)
        title = f"{server}: {name}" if server else None
        self.parts.begin(block.key, ToolCallPart(name, call_id, title=title, executor=executor))

    def _input_delta(self, block: Block, delta: Any) -> None:
        text = text_at(delta, "partial_json")
        block.pieces.append(text)
        self.parts.delta(block.key, text)

    def _end_call(self, block: Block) -> None:
        given = block.fields.get("input")
        if given and not block.text:  # of servers that give it at once
            self._input_delta(block, {"partial_json": json.dumps(given, ensure_ascii=False)})
        fields = parsed(block.text)
        block.failed = "error" in fields
        if executor_of(block.kind) == "provider":
            fields["started"] = True
        data = self._data(block, block=block.rest("id", "name", "input"))
        self.parts.end(block.key, **fields, provider=data)

    def _take_result(self, block: Block) -> None:
        call_id, content = text_at(block.fields, "tool_use_id"), block.fields.get("content")
        key = self._call(call_id)
        if key is None:
            data = self._data(block, block=block.rest())
            self.parts.add(CustomPart(f"anthropic_{block.kind}", provider=data))
            return
        error = error_of(block.fields, content)
        # Of an error, the call keeps only what people read.
        rest = block.rest("tool_use_id", *(("content",) if error is None else ()))
        outcome = {"output": content} if error is None else {"error": error}
        data = self._data(block, of=self._id, block=rest)
        self.parts.after_input(key, **outcome, result_provider=data)

    def _call(self, call_id: str) -> str | None:
        """Returns the key of the call of an outcome, unless that is not its first."""
        if call_id in self._answered:
            return None
        block = self._calls.get(call_id)
        if block is not None and executor_of(block.kind) == "provider":
            self._close(block)
            key = block.key
        elif call_id in self._earlier:
            key = f"earlier/{call_id}"
            self.parts.adopt(key, self._earlier[call_id])
        else:
            return None
        self._answered.add(call_id)
        return key

    # Others

    def _compaction_delta(self, block: Block, delta: Any) -> None:
        found = plain(delta)
        block.fields |= {name: value for name, value in found.items() if name != "type"}

    HANDLERS: ClassVar[Mapping[str, Callable[..., None]]] = {
        "content_block_delta": _changed,
        "content_block_start": _started,
        "content_block_stop": _stopped,
        "error": _error,
        "message_delta": _message_changed,
        "message_start": _message_started,
        "message_stop": _end,
    }
    """What takes the events of each type; those of other types are ignored."""

    DELTAS: ClassVar[Mapping[str, "_Delta"]] = {
        "citations_delta": _Delta("text".__eq__, "text", _citation_delta),
        "compaction_delta": _Delta("compaction".__eq__, "compaction", _compaction_delta),
        "input_json_delta": _Delta(is_use, "", _input_delta),
        "signature_delta": _Delta("thinking".__eq__, "thinking", _signature_delta),
        "text_delta": _Delta("text".__eq__, "text", _text_delta),
        "thinking_delta": _Delta("thinking".__eq__, "thinking", _thinking_delta),
    }
    """What takes the deltas of each type."""


def _open_calls(answer: Told, provider: str) -> dict[str, int]:
    """Returns the numbers of the calls of a provider whose outcome is to come, by their ids."""
    try:
        parts = answer.parts
    except ChunksNotLoadedError:
        return {}
    found = {}
    for part in parts:
        if not isinstance(part, ToolCallPart) or part.number is None or part.executor != "provider":
            continue
        if is_use(text_at(data_of(part.provider, provider), "type")):
            found[part.call_id] = part.number
    return found
