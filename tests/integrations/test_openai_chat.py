"""Streams of Chat Completions, and of servers that are compatible in their own ways."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from converse_mongo import (
    MessageStatus,
    Part,
    ProviderError,
    ReasoningPart,
    SourceUrlPart,
    StepPart,
    ToolCallPart,
)
from converse_mongo.converse import Converse
from converse_mongo.integrations.openai import messages_for_openai_chat, openai_chat
from tests.integrations.playing import Player, assistant, collect, playing, reduced, user

Chunk = dict[str, Any]

USAGE = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
LAST: Chunk = {"choices": [], "usage": USAGE}


def chunk(delta: dict[str, Any] | None = None, finished: str | None = None, **more: Any) -> Chunk:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finished}
    kind = "chat.completion.chunk"
    named = {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "gpt-test"}
    return {**named, "choices": [choice], **more}


def tool(name: str | None = None, arguments: Any = None, **more: Any) -> Chunk:
    function = {"name": name, "arguments": arguments}
    return chunk({"tool_calls": [{"function": function, **more}]})


START = chunk({"role": "assistant", "content": ""})
TEXT = [chunk({"content": "There "}), chunk({"content": "are three."})]
STOP = chunk(finished="stop")
CALLED = chunk(finished="tool_calls")


@asynccontextmanager
async def client(player: Player) -> AsyncIterator[AsyncOpenAI]:
    async with (
        playing(player) as url,
        AsyncOpenAI(base_url=url, api_key="sk-test", max_retries=0) as opened,
    ):
        yield opened


async def ask(sdk: AsyncOpenAI) -> Any:
    said: Any = [{"role": "user", "content": "?"}]
    return await sdk.chat.completions.create(model="m", messages=said, stream=True)


async def parts_from(chunks: Sequence[Chunk], **options: Any) -> list[Part]:
    async with client(Player([chunks])) as sdk:
        return reduced(await collect(openai_chat(await ask(sdk), **options)))


def calls_in(parts: list[Part]) -> list[tuple[str, Any]]:
    return [(part.name, part.input) for part in parts if isinstance(part, ToolCallPart)]


def step_of(parts: list[Part]) -> StepPart:
    [step] = [part for part in parts if isinstance(part, StepPart)]
    return step


async def test_text__with_its_step() -> None:
    parts = await parts_from([START, *TEXT, STOP, LAST])
    assert [(part.kind, part.text) for part in parts] == [
        *(("step", ""), ("text", "There are three."))
    ]
    step = step_of(parts)
    assert (step.model, step.response_id) == ("gpt-test", "chatcmpl-1")
    assert step.finish_reason == "stop"
    assert step.usage == {"input_tokens": 12, "output_tokens": 34, "total_tokens": 46}


async def test_usage__may_be_absent_or_on_each_chunk() -> None:
    assert step_of(await parts_from([*TEXT, STOP])).usage is None
    counted = [{**each, "usage": {**USAGE, "total_tokens": n}} for n, each in enumerate(TEXT)]
    usage = step_of(await parts_from([*counted, STOP])).usage
    assert usage is not None
    assert usage["total_tokens"] == 1


async def test_usage__may_be_on_a_chunk_with_a_choice_behind_the_end() -> None:
    step = step_of(await parts_from([*TEXT, STOP, {**chunk(), "usage": USAGE}]))
    assert (step.finish_reason, step.usage is not None) == ("stop", True)


async def test_refusal__is_text_and_the_reason_of_the_end() -> None:
    parts = await parts_from([chunk({"refusal": "I "}), chunk({"refusal": "cannot."}), STOP])
    assert parts[1].text == "I cannot."
    assert step_of(parts).finish_reason == "refusal"


@pytest.mark.parametrize(
    "thoughts",
    [
        [{"reasoning_content": "So "}, {"reasoning_content": "it is."}],
        [{"reasoning": "So "}, {"reasoning": "it is.", "content": ""}],
        [{"reasoning": t, "reasoning_content": t} for t in ("So ", "it is.")],
    ],
)
async def test_reasoning__of_any_server_comes_before_the_text(thoughts: list[Any]) -> None:
    parts = await parts_from([*map(chunk, thoughts), *TEXT, STOP])
    assert [(part.kind, part.text) for part in parts[1:]] == [
        *(("reasoning", "So it is."), ("text", "There are three."))
    ]


WHOLE = [("a", {"x": 1}), ("b", {})]

ODD_CALLS: dict[str, list[Chunk]] = {
    "as OpenAI": [
        tool("a", "", index=0, id="c1", type="function"),
        tool(None, '{"x"', index=0),
        tool(None, ": 1}", index=0),
        tool("b", "", index=1, id="c2", type="function"),
        tool(None, "{}", index=1),
    ],
    "mixed": [
        tool("a", "", index=0, id="c1"),
        tool("b", "", index=1, id="c2"),
        tool(None, '{"x"', index=0),
        tool(None, "{}", index=1),
        tool(None, ": 1}", index=0),
    ],
    "ids repeated": [
        tool("a", '{"x"', index=0, id="c1"),
        tool(None, ": 1}", index=0, id="c1"),
        tool("b", "{}", index=1, id="c2"),
    ],
    "names repeated": [
        tool("a", '{"x"', index=0, id="c1"),
        tool("a", ": 1}", index=0, id="c1"),
        tool("b", "{}", index=1, id="c2"),
    ],
    "ids empty": [
        tool("a", '{"x"', index=0, id=""),
        tool(None, ": 1}", index=0, id=""),
        tool("b", "{}", index=1, id=""),
    ],
    "no ids": [tool("a", '{"x": 1}', index=0), tool("b", "", index=1)],
    "no index": [
        tool("a", '{"x"', id="c1"),
        tool(None, ": 1}"),
        tool("b", "{}", id="c2"),
    ],
    "no index, ids repeated": [
        tool("a", '{"x"', id="c1"),
        tool("b", "{}", id="c2"),
        tool(None, ": 1}", id="c1"),
    ],
    "no index and no id": [tool("a", '{"x": 1}'), tool("b", "{}")],
    "all at index 0": [
        tool("a", '{"x": 1}', index=0, id="c1"),
        tool("b", "{}", index=0, id="c2"),
    ],
    "all at index 0, no ids": [tool("a", '{"x": 1}', index=0), tool("b", "{}", index=0)],
    "one id for all": [
        tool("a", '{"x": 1}', index=0, id="c1"),
        tool("b", "{}", index=1, id="c1"),
    ],
    "objects": [tool("a", {"x": 1}, index=0, id="c1"), tool("b", {}, index=1, id="c2")],
    "null for nothing": [
        tool("a", '{"x": 1}', index=0, id="c1"),
        tool("b", None, index=1, id="c2"),
    ],
    "name behind the id": [
        tool(None, '{"x"', index=0, id="c1"),
        tool("a", ": 1}", index=0),
        tool("b", "{}", index=1, id="c2"),
    ],
    "in one chunk": [
        chunk(
            {
                "tool_calls": [
                    {"index": 0, "id": "c1", "function": {"name": "a", "arguments": '{"x": 1}'}},
                    {"index": 1, "id": "c2", "function": {"name": "b", "arguments": "{}"}},
                ]
            }
        )
    ],
}


@pytest.mark.parametrize("name", ODD_CALLS)
async def test_tool_calls__of_any_server(name: str) -> None:
    parts = await parts_from([START, *ODD_CALLS[name], CALLED, LAST])
    assert calls_in(parts) == WHOLE
    ids = [part.call_id for part in parts if isinstance(part, ToolCallPart)]
    assert all(ids)
    assert len({*ids}) == 2


async def test_tool_calls__behind_text_and_with_stop_as_their_reason() -> None:
    parts = await parts_from([*TEXT, tool("a", "{}", index=0, id="c1"), STOP])
    assert [part.kind for part in parts] == ["step", "text", "tool_call"]
    assert step_of(parts).finish_reason == "tool_calls"


async def test_tool_calls__with_invalid_arguments_have_an_error() -> None:
    parts = await parts_from([tool("a", '{"x', index=0, id="c1"), CALLED])
    [call] = [part for part in parts if isinstance(part, ToolCallPart)]
    assert (call.state, call.text) == ("output-error", '{"x')


async def test_function_call__of_former_versions() -> None:
    deltas: list[Any] = [
        *({"name": "a", "arguments": ""}, {"arguments": '{"x"'}, {"arguments": ": 1}"})
    ]
    chunks = [chunk({"function_call": each}) for each in deltas]
    parts = await parts_from([*chunks, chunk(finished="function_call")])
    assert calls_in(parts) == [("a", {"x": 1})]
    assert step_of(parts).finish_reason == "tool_calls"


async def test_choices__may_be_empty_and_only_the_first_counts() -> None:
    other = {"index": 1, "delta": {"content": "No."}, "finish_reason": "stop"}
    both = {**TEXT[0], "choices": [*TEXT[0]["choices"], other]}
    filters: Chunk = {"choices": [], "prompt_filter_results": []}
    parts = await parts_from([filters, both, TEXT[1], STOP])
    assert parts[1].text == "There are three."


async def test_content__may_be_a_list() -> None:
    parts = await parts_from([chunk({"content": [{"type": "text", "text": "Yes"}]}), STOP])
    assert parts[1].text == "Yes"


async def test_annotations__are_sources_behind_the_text() -> None:
    cited = {"type": "url_citation", "url_citation": {"url": "https://a", "title": "A"}}
    parts = await parts_from([TEXT[0], chunk({"annotations": [cited]}), TEXT[1], STOP])
    assert [part.kind for part in parts] == ["step", "text", "source_url"]
    [source] = [part for part in parts if isinstance(part, SourceUrlPart)]
    assert (source.url, source.title) == ("https://a", "A")


async def test_finish_reason__is_needed_unless_the_server_has_none() -> None:
    with pytest.raises(ProviderError, match="cut off"):
        await parts_from([START, *TEXT])
    parts = await parts_from([START, *TEXT], needs_finish_reason=False)
    assert (step_of(parts).finish_reason, step_of(parts).closed) == (None, True)


@pytest.mark.parametrize("hangs_up", [False, True])
async def test_cut__anywhere_is_an_error(hangs_up: bool) -> None:
    whole = [
        *(START, chunk({"reasoning": "So"}), chunk({"refusal": "No"}), *TEXT),
        *(*ODD_CALLS["as OpenAI"], CALLED, LAST),
    ]
    player = Player([whole], hangs_up=hangs_up)
    async with client(player) as sdk:
        for cut in range(len(whole) if hangs_up else len(whole) - 2):
            player.cut = cut
            contents: list[Any] = []
            with pytest.raises((openai.APIError, ProviderError, httpx.HTTPError)):
                async for content in openai_chat(await ask(sdk)):
                    contents.append(content)  # noqa: PERF401 - up to the error
            parts = reduced(contents, ended=False)
            assert all(not part.closed for part in parts if isinstance(part, StepPart))


@pytest.mark.parametrize(
    "told",
    [
        {"error": {"message": "Overloaded", "code": 503}},
        {"object": "error", "message": "Overloaded", "code": 503},
    ],
)
async def test_error__of_a_server_is_raised(told: Chunk) -> None:
    with pytest.raises((openai.APIError, ProviderError), match="Overloaded"):
        await parts_from([START, *TEXT, told])


async def test_reasoning__goes_back_in_its_field_to_its_provider_only() -> None:
    thinks = chunk({"reasoning_content": "So."})
    chunks = [thinks, tool("a", "{}", index=0, id="c1"), CALLED]
    parts = await parts_from(chunks, provider="deepseek")
    assert isinstance(parts[1], ReasoningPart)
    told: Any = messages_for_openai_chat([assistant(*parts)], provider="deepseek")
    assert told[0]["reasoning_content"] == "So."
    assert "reasoning_content" not in messages_for_openai_chat([assistant(*parts)])[0]


async def test_tool_loop__tells_the_model_its_calls_and_their_results(converse: Converse) -> None:
    player = Player([[*ODD_CALLS["as OpenAI"], CALLED], [*TEXT, STOP, LAST]])
    conversation = await converse.start_conversation()
    await conversation.add_user_message("How many?")
    message = await conversation.start_streaming_assistant()
    history = await conversation.history()
    async with client(player) as sdk, message.writer(interrupt=True) as writer:
        while True:
            prompt = messages_for_openai_chat(history, answer=message)
            stream = await sdk.chat.completions.create(model="m", messages=prompt, stream=True)
            await writer.pipe(openai_chat(stream))
            if not message.unfinished_calls:
                break
            for part in message.unfinished_calls:
                call = writer.continue_tool_call(part)
                async with call.execution():
                    await call.set_output(f"done {part.name}")
    read = await converse.get_message(message.id)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, "There are three.")
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "a", "arguments": '{"x": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "b", "arguments": "{}"}},
    ]
    assert player.asked[-1]["messages"] == [
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "done a"},
        {"role": "tool", "tool_call_id": "c2", "content": "done b"},
    ]


async def test_round_trip__is_what_the_sdk_collects() -> None:
    player = Player([[START, *TEXT, *ODD_CALLS["as OpenAI"], CALLED]])
    async with client(player) as sdk:
        parts = reduced(await collect(openai_chat(await ask(sdk))))
        said: Any = [{"role": "user", "content": "?"}]
        async with sdk.chat.completions.stream(model="m", messages=said) as stream:
            final = (await stream.get_final_completion()).choices[0].message
        async with sdk.chat.completions.stream(model="m", messages=said) as stream:
            helped = reduced(await collect(openai_chat(stream)))
    assert helped == parts
    [_, ours, *results] = messages_for_openai_chat([user("?"), assistant(*parts)])
    collected = final.model_dump(exclude_none=True)
    for call in collected["tool_calls"]:
        call["function"].pop("parsed_arguments", None)
        call.pop("index", None)
    assert ours == collected
    assert [each.get("content") for each in results] == ["interrupted", "interrupted"]
