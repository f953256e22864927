"""Events of agents as parts, and back as the messages that the agent itself would have."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from pydantic_ai import (
    Agent,
    CallDeferred,
    CustomEvent,
    DeferredToolRequests,
    ModelRetry,
    RunContext,
    ToolReturn,
)
from pydantic_ai.messages import (
    BinaryContent,
    Citation,
    CompactionPart,
    DocumentCitationSource,
    FilePart,
    ImageUrl,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    NativeToolCallPart,
    NativeToolReturnPart,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    RetryFeedbackPart,
    RetryInfo,
    SystemPromptPart,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
    ToolReturnPart,
    UserPromptPart,
    WebCitationSource,
    repair_messages,
)
from pydantic_ai.models.function import DeltaThinkingPart
from pydantic_ai.models.test import TestModel
from pydantic_ai.run import AgentRunResult, AgentRunResultEvent
from pydantic_ai.usage import RequestUsage

from converse_mongo import Part, PartStart, StepPart
from converse_mongo import ToolCallPart as Call
from converse_mongo.integrations.pydantic_ai import (
    messages_for_pydantic_ai,
    pydantic_ai_events,
    pydantic_ai_run,
)
from tests.integrations.playing import assistant, collect, reduced, user
from tests.integrations.pydantic_ai_agents import Script, Scripted, call, dumped, normal

SEARCH: Script = [
    [
        {0: DeltaThinkingPart(content="Let ")},
        {0: DeltaThinkingPart(content="me.", signature="signed")},
        "Look: ",
        call("search", '{"q": ', at=1),
        call("search", '{"q": 1}', "call_2", at=2),
        call(None, '"x"}', None, at=1),  # type: ignore[arg-type]
        call("search", '{"q": "fail"}', "call_3", at=3),
        call("unknown", "{", "call_4", at=4),
        call("rich", "", "call_5", at=5),
    ],
    ["bad"],
    ["go", "od"],
]


@dataclass(kw_only=True)
class HalfwayEvent(CustomEvent):
    percent: int


@dataclass(kw_only=True)
class SecretEvent(CustomEvent, ui=False):
    word: str


def searching() -> Agent[Any, Any]:
    agent = Scripted(SEARCH).agent(retries=5, system_prompt="S", instructions="I")

    @agent.tool
    async def search(ctx: RunContext[None], q: str) -> Any:
        if q == "fail":
            raise ModelRetry("again")
        await ctx.emit(HalfwayEvent(percent=50))
        await ctx.emit(SecretEvent(word="key"))
        return [1, {"a": BinaryContent(b"\x00png", media_type="image/png")}]

    @agent.tool_plain
    def rich() -> Any:
        content: Any = ["see", ImageUrl("https://a/b.png")]
        return ToolReturn(return_value="ok", content=content, metadata={"m": 1})

    @agent.output_validator
    def check(output: str) -> str:
        if output == "bad":
            raise ModelRetry("not bad")
        return output

    return agent


async def by_events(agent: Agent[Any, Any]) -> tuple[list[Any], list[ModelMessage]]:
    async with agent.run_stream_events("Hi") as events:
        contents = await collect(pydantic_ai_events(events))
        assert events.result is not None
        return contents, events.result.all_messages()


async def by_nodes(agent: Agent[Any, Any]) -> tuple[list[Any], list[ModelMessage]]:
    async with agent.iter("Hi") as run:
        contents = await collect(pydantic_ai_run(run))
        assert run.result is not None
        return contents, run.result.all_messages()


def back(parts: Sequence[Part]) -> list[ModelMessage]:
    return messages_for_pydantic_ai([user("Hi"), assistant(*parts)])


WAYS = pytest.mark.parametrize("play", [by_events, by_nodes])


# Runs


@WAYS
async def test_round_trip__is_what_the_agent_has(play: Any) -> None:
    contents, messages = await play(searching())
    parts = reduced(contents)
    assert normal(back(parts)) == normal(messages)
    assert [part.kind for part in parts] == [
        *("step", "reasoning", "text", *(["tool_call"] * 5), "data", "pydantic_ai_request"),
        *("step", "text", "pydantic_ai_request", "step", "text"),
    ]
    states = [part.state for part in parts if isinstance(part, Call)]
    assert states == ["output-available", *(["output-error"] * 3), "output-available"]
    [data] = [part for part in parts if part.kind == "data"]
    assert (data.fields["name"], data.fields["data"]) == ("halfway", {"percent": 50})


@WAYS
async def test_round_trip__of_an_agent_with_an_output_tool(play: Any) -> None:
    contents, messages = await play(Agent(TestModel(), output_type=dict[str, int]))
    parts = reduced(contents)
    assert normal(back(parts)) == normal(messages)
    assert parts[-1].fields["data"] == {"additionalProperty": 0}


async def test_round_trip__of_a_second_run() -> None:
    agent = searching()
    contents, messages = await by_events(agent)
    said = [user("Hi"), assistant(*reduced(contents)), user("And?")]
    async with agent.run_stream_events("And?", message_history=messages) as events:
        await collect(pydantic_ai_events(events))
        first = len(messages)
        theirs = events.all_messages()[: first + 1]
    assert normal(messages_for_pydantic_ai(said)) == normal(theirs)


@WAYS
async def test_step__has_what_the_provider_says(play: Any) -> None:
    parts = reduced((await play(searching()))[0])
    steps = [part for part in parts if isinstance(part, StepPart)]
    assert {step.model for step in steps} == {"function::Scripted"}
    assert all(step.usage and step.usage["input_tokens"] for step in steps)


@WAYS
async def test_cut__anywhere_leaves_messages_that_a_provider_takes(play: Any) -> None:
    contents, _ = await play(searching())
    for place in range(len(contents) + 1):
        told = back(reduced(contents[:place]))
        assert repair_messages(told) == told, place
        assert ModelMessagesTypeAdapter.validate_python(dumped(told)) == told, place
        thoughts = [part for each in told for part in each.parts if isinstance(part, ThinkingPart)]
        assert all(thought.signature for thought in thoughts), place


async def test_deferred__calls_wait_for_people() -> None:
    agent = Scripted([[call("erase"), call("fetch", "{}", "call_2", at=1)]]).agent(
        output_type=[str, DeferredToolRequests]
    )

    @agent.tool_plain(requires_approval=True)
    def erase() -> None: ...

    @agent.tool_plain
    def fetch() -> None:
        raise CallDeferred(metadata={"url": "https://a"})

    contents, _ = await by_events(agent)
    calls = [p for p in reduced(contents, ended=False) if isinstance(p, Call)]
    assert [(c.state, c.executor) for c in calls] == [
        *(("approval-requested", "server"), ("input-available", "client"))
    ]
    assert calls[1].provider is not None
    assert calls[1].provider["data"]["deferred"] == {"url": "https://a"}


# Streams of a model


@dataclass
class Stream:
    """Events of a response as a run gives them, with the messages of the run."""

    events: Sequence[Any]
    response: ModelResponse
    messages: list[ModelMessage] = field(default_factory=list)

    def all_messages(self) -> list[ModelMessage]:
        return self.messages

    async def __aiter__(self) -> AsyncIterator[Any]:
        self.messages.append(ModelRequest(parts=[UserPromptPart("Hi")]))
        for event in self.events:
            yield event
        self.messages.append(self.response)
        yield AgentRunResultEvent(AgentRunResult("done"))


async def streamed(
    *events: Any, parts: Sequence[Any], is_open: bool = False, **more: Any
) -> list[Part]:
    response = ModelResponse(parts=parts, **more)
    stream = Stream(events, response)
    found = reduced(await collect(pydantic_ai_events(stream)))
    told = back(found)
    assert normal(told[:-1] if is_open else told) == normal(stream.messages)
    return found


def start(index: int, part: Any) -> PartStartEvent:
    return PartStartEvent(index=index, part=part)


async def test_response__keeps_what_it_has() -> None:
    found = await streamed(
        start(0, TextPart("Hi")),
        parts=[TextPart("Hi")],
        usage=RequestUsage(input_tokens=3, output_tokens=4, details={"cached": 1}),
        model_name="m-2",
        provider_name="p",
        provider_url="https://p",
        provider_details={"finish_reason": "STOP"},
        provider_response_id="r1",
        finish_reason="tool_call",
        metadata={"x": 1},
        state="interrupted",
    )
    step = found[0]
    assert isinstance(step, StepPart)
    assert (step.model, step.response_id, step.finish_reason) == ("m-2", "r1", "tool_calls")
    assert step.usage == {"input_tokens": 3, "output_tokens": 4, "details": {"cached": 1}}


async def test_thinking__keeps_its_signature_for_its_provider() -> None:
    part = ThinkingPart("", id="t1", provider_name="p", provider_details={"a": 1})
    delta = ThinkingPartDelta(content_delta="So.", signature_delta="s", provider_name="p")
    found = await streamed(
        start(0, part),
        PartDeltaEvent(index=0, delta=delta),
        parts=[replace(part, content="So.", signature="s")],
    )
    assert (found[1].kind, found[1].text) == ("reasoning", "So.")
    assert "So." not in str(found[1].provider)


async def test_texts__that_are_mixed_go_on() -> None:
    called = ToolCallPart("a", '{"x": 1}', "c1")
    found = await streamed(
        start(0, TextPart("one ", id="m1", provider_name="p")),
        start(1, ToolCallPart("a", "", "c1")),
        PartEndEvent(index=0, part=TextPart("one ")),
        PartDeltaEvent(index=1, delta=ToolCallPartDelta(args_delta='{"x"')),
        PartDeltaEvent(index=0, delta=TextPartDelta("two")),
        PartDeltaEvent(index=1, delta=ToolCallPartDelta(args_delta=": 1}")),
        PartEndEvent(index=1, part=called),
        parts=[TextPart("one two", id="m1", provider_name="p"), called],
        is_open=True,
    )
    assert [(each.kind, each.text) for each in found[1:]] == [
        *(("text", "one "), ("tool_call", '{"x": 1}'), ("text", "two"))
    ]


@pytest.mark.parametrize("args", [None, "", {}, {"x": {"y": [1]}}, '{"x": 1}', '{"x"', "[1]"])
async def test_arguments__stay_as_they_came(args: Any) -> None:
    part = ToolCallPart("a", args, "c1", id="i1", provider_name="p")
    response = ModelResponse(parts=[part])
    stream = Stream([start(0, part), PartEndEvent(index=0, part=part)], response)
    found = reduced(await collect(pydantic_ai_events(stream)))
    told = back(found)
    assert told[1].parts == [part]
    [result] = told[2].parts
    assert isinstance(result, ToolReturnPart)
    assert result.outcome == "interrupted"


async def test_arguments__that_come_as_objects_are_merged() -> None:
    part = ToolCallPart("a", {"x": 1, "y": 2}, "c1")
    delta = ToolCallPartDelta(args_delta={"y": 2})
    stream = Stream(
        [start(0, ToolCallPart("a", {"x": 1}, "c1")), PartDeltaEvent(index=0, delta=delta)],
        ModelResponse(parts=[part]),
    )
    found = reduced(await collect(pydantic_ai_events(stream)))
    assert back(found)[1].parts == [part]


async def test_arguments__that_came_without_events_are_in_the_response() -> None:
    part = ToolCallPart("a", '{"x": 1}', "c1")
    stream = Stream([start(0, ToolCallPart("a", "", "c1"))], ModelResponse(parts=[part]))
    found = reduced(await collect(pydantic_ai_events(stream)))
    assert back(found)[1].parts == [part]


async def test_prompts__of_the_agent_are_not_stored() -> None:
    system = SystemPromptPart("secret")
    feedback = RetryFeedbackPart("no", retry=RetryInfo("no_output"))

    class TwoSteps(Stream):
        async def __aiter__(self) -> AsyncIterator[Any]:
            self.messages.append(ModelResponse(parts=[TextPart("one")]))
            self.messages.append(ModelRequest(parts=[system, feedback]))
            yield start(0, TextPart("two"))
            self.messages.append(self.response)

    first = Stream([start(0, TextPart("one"))], ModelResponse(parts=[TextPart("one")]))
    contents = await collect(pydantic_ai_events(first))
    answer = assistant(*stored(contents))
    second = TwoSteps([], ModelResponse(parts=[TextPart("two")]))
    contents += await collect(pydantic_ai_events(second, answer=answer))
    assert "secret" not in str(contents)
    assert "no_output" in str(contents)


def stored(contents: Sequence[Any]) -> list[Part]:
    return reduced(contents, ended=False)


@WAYS
async def test_content__of_a_tool_for_the_model_is_told_once(play: Any) -> None:
    contents, _ = await play(searching())
    place = [kind_of(each) for each in contents].index("pydantic_ai_request")
    for cut in (place, place + 1):
        parts = back(reduced(contents[:cut]))[-1].parts
        assert [part.part_kind for part in parts].count("user-prompt") == 1


def kind_of(content: Any) -> str | None:
    return content.part.kind if isinstance(content, PartStart) else None


async def test_native_tool__is_run_by_the_provider() -> None:
    called = NativeToolCallPart("web_search", {"q": "x"}, "c1", id="w1", provider_name="p")
    returned = NativeToolReturnPart(
        *("web_search", [{"url": "https://a"}], "c1"), provider_name="p", provider_details={"n": 1}
    )
    text = TextPart("It is.")
    found = await streamed(
        start(0, called),
        PartEndEvent(index=0, part=called),
        start(1, TextPart("")),
        PartDeltaEvent(index=1, delta=TextPartDelta("It is.")),
        start(2, returned),
        parts=[called, text, returned],
    )
    [part] = [each for each in found if isinstance(each, Call)]
    assert (part.executor, part.state, part.output) == (
        *("provider", "output-available", [{"url": "https://a"}]),
    )


async def test_file__is_stored_with_its_bytes() -> None:
    file = FilePart(BinaryContent(b"\x89PNG", media_type="image/png"), id="f", provider_name="p")
    found = await streamed(start(0, file), parts=[file])
    assert (found[1].kind, found[1].fields["media_type"]) == ("file", "image/png")


async def test_part__of_another_kind_goes_back() -> None:
    part = CompactionPart("Before: nothing.", id="k", provider_name="p")
    text = TextPart("Hi")
    found = await streamed(start(0, part), start(1, text), parts=[part, text])
    assert found[1].kind == "pydantic_ai_compaction"


async def test_citations__are_sources_behind_the_text() -> None:
    sources: list[Any] = [
        WebCitationSource("https://a", title="A"),
        DocumentCitationSource(title="B"),
    ]
    part = TextPart("It is.", citations=[Citation([each]) for each in [*sources, sources[0]]])
    found = await streamed(
        start(0, TextPart("It is.")), PartEndEvent(index=0, part=TextPart("It is.")), parts=[part]
    )
    assert [each.kind for each in found] == ["step", "text", "source_url", "source_document"]


async def test_events__without_messages_have_steps_all_the_same() -> None:
    async def plain() -> AsyncIterator[Any]:
        for text in ("one", "two"):
            yield start(0, TextPart(text))
            yield PartEndEvent(index=0, part=TextPart(text))

    found = reduced(await collect(pydantic_ai_events(plain())))
    assert [(part.kind, part.text) for part in found] == [
        *(("step", ""), ("text", "one"), ("step", ""), ("text", "two"))
    ]


async def test_unknown_events__pass() -> None:
    class Strange:
        event_kind = "strange"

    async def plain() -> AsyncIterator[Any]:
        yield Strange()
        yield start(0, TextPart("one"))

    assert len(reduced(await collect(pydantic_ai_events(plain())))) == 2


class BrokenError(Exception):
    """The model breaks."""


async def test_error__of_the_run_leaves_its_step_open() -> None:
    model = Scripted([["one ", "two"]])

    async def before(step: int, number: int) -> None:
        if number:
            raise BrokenError

    model.before = before
    contents = []
    with pytest.raises(BrokenError):
        async with model.agent().run_stream_events("Hi") as events:
            async for content in pydantic_ai_events(events):
                contents.append(content)  # noqa: PERF401 - to have those before the error
    parts = reduced(contents, ended=False)
    assert [(part.kind, part.closed) for part in parts] == [("step", False), ("text", False)]
