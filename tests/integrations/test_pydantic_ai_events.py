"""Events of agents as parts, and back as the messages that the agent itself would have."""

from typing import Any
from pydantic_ai import Agent, ModelRetry, ToolReturn
from pydantic_ai.messages import *
from pydantic_ai.models.function import FunctionModel, DeltaToolCall, DeltaThinkingPart
from pydantic_ai.models.test import TestModel

from converse_mongo.integrations.pydantic_ai import *
from tests.integrations.playing import assistant, collect, reduced, user

def norm(messages):
    found = ModelMessagesTypeAdapter.dump_python(messages, mode="json")
    for m in found:
        for n in ("run_id","conversation_id","instructions"): m.pop(n, None)
        if m["kind"]=="request":
            m.pop("timestamp", None)
            m["parts"]=[p for p in m["parts"] if p["part_kind"]!="system-prompt"]
            for p in m["parts"]:
                if p["part_kind"]=="user-prompt": p.pop("timestamp")
    return found

async def rt(agent, prompt="Hi", **kw):
    async with agent.run_stream_events(prompt, **kw) as ev:
        contents = await collect(pydantic_ai_events(ev))
        result = ev.result
    a = reduced(contents)
    for p in a: print("  ", p)
    back = messages_for_pydantic_ai([user(prompt), assistant(*a)])
    assert norm(back) == norm(result.all_messages())
    async with agent.iter(prompt, **kw) as run:
        contents = await collect(pydantic_ai_run(run))
    b = reduced(contents)
    back = messages_for_pydantic_ai([user(prompt), assistant(*b)])
    assert norm(back) == norm(run.result.all_messages())
    assert [p.kind for p in a]==[p.kind for p in b]
    return a

async def test_test_model():
    agent = Agent(TestModel(), system_prompt="S", instructions="I")
    @agent.tool_plain
    def search(q: str) -> dict: return {"hits": 3}
    @agent.tool_plain
    def rich(q: str) -> Any: return ToolReturn(return_value="ok", content=["see", ImageUrl("https://a/b.png")], metadata={"m": 1})
    await rt(agent)

async def test_function():
    n = 0
    async def stream(messages, info):
        nonlocal n
        n += 1
        if n % 3 == 1:
            yield {0: DeltaThinkingPart(content="Let ", signature=None)}
            yield {0: DeltaThinkingPart(content="me", signature="sig")}
            yield "Look: "
            yield {1: DeltaToolCall("search", '{"q": ', tool_call_id="c1")}
            yield {1: DeltaToolCall(None, '"x"}')}
            yield {2: DeltaToolCall("search", '{"q": 1}', tool_call_id="c2")}
            yield {3: DeltaToolCall("search", '{"q": "fail"}', tool_call_id="c3")}
            yield {4: DeltaToolCall("nope", '{', tool_call_id="c4")}
        elif n % 3 == 2:
            yield "bad"
        else:
            yield "good"
    agent = Agent(FunctionModel(stream_function=stream), retries=5)
    @agent.tool_plain
    def search(q: str) -> list:
        if q == "fail": raise ModelRetry("again")
        return [1]
    @agent.output_validator
    def check(o: str) -> str:
        if o == "bad": raise ModelRetry("not bad")
        return o
    await rt(agent)

async def test_output_tool():
    agent = Agent(TestModel(), output_type=dict[str,int])
    await rt(agent)
