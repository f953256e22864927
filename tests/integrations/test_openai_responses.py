"""Streams of OpenAI's Responses, as its SDK reads them from a server on 127.0.0.1."""

import typing
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import ResponseStreamEvent

from converse_mongo import (
    CustomPart,
    Message,
    MessageStatus,
    Part,
    ProviderError,
    ReasoningPart,
    SourceDocumentPart,
    SourceUrlPart,
    StepPart,
    TextPart,
    ToolCallPart,
)
from converse_mongo.converse import Converse
from converse_mongo.integrations.openai import (
    messages_for_openai,
    openai_responses,
    unfinished_response,
)
from converse_mongo.integrations.openai.responses import ResponsesTranslator
from tests.integrations import openai_events as events
from tests.integrations.playing import (
    Player,
    assistant,
    collect,
    playing,
    reduced,
    user,
)

THINKING = events.reasoning("First this. ", "Then that.")
CALLS = events.function_call('{"q": "mongo"}'), events.function_call("{}", call_id="call_2")
ANSWER = events.message(events.said("There are three.", events.CITED, events.OF_FILE))
PROVIDED = (
    *(events.WEB_SEARCH, events.FILE_SEARCH, events.CODE, events.IMAGE),
    *(events.MCP_TOOLS, events.MCP, events.COMPACTION),
)
OWN = (events.COMPUTER, events.LOCAL_SHELL, events.PATCH, events.custom_call("print(1)"))
EVERYTHING = (THINKING, *CALLS, *PROVIDED, *OWN, events.MCP_ASKS, ANSWER)


@asynccontextmanager
async def client(player: Player) -> AsyncIterator[AsyncOpenAI]:
    async with (
        playing(player) as url,
        AsyncOpenAI(base_url=url, api_key="sk-test", max_retries=0) as opened,
    ):
        yield opened


async def ask(sdk: AsyncOpenAI, **options: Any) -> Any:
    return await sdk.responses.create(model="gpt-test", input="?", stream=True, **options)


async def parts_from(*items: events.Item, **options: Any) -> list[Part]:
    player = Player([events.stream(*items, **options)])
    async with client(player) as sdk:
        return reduced(await collect(openai_responses(await ask(sdk))))


def only(parts: list[Part], kind: type[Any]) -> Any:
    [found] = [part for part in parts if isinstance(part, kind)]
    return found


IGNORED = frozenset(
    {
        # Sound is no part of a message.
        *("response.audio.delta", "response.audio.done"),
        *("response.audio.transcript.delta", "response.audio.transcript.done"),
        # The item has it, whole, when it is done; these say only how far it is.
        *("response.code_interpreter_call.completed", "response.file_search_call.completed"),
        *("response.image_generation_call.completed", "response.mcp_call.completed"),
        *("response.mcp_call.failed", "response.mcp_list_tools.completed"),
        *("response.mcp_list_tools.failed", "response.mcp_list_tools.in_progress"),
        *("response.shell_call_command.added", "response.shell_call_command.delta"),
        *("response.shell_call_command.done", "response.shell_call_output_content.delta"),
        *("response.shell_call_output_content.done", "response.web_search_call.completed"),
        "response.compaction.compacting",
        # Each may have megabytes.
        "response.image_generation_call.partial_image",
    }
)
"""The types of events that change nothing in a message, on purpose."""


def test_events__of_the_sdk_are_all_handled_or_ignored() -> None:
    union = typing.get_args(typing.get_args(ResponseStreamEvent)[0])
    known = {typing.get_args(each.model_fields["type"].annotation)[0] for each in union}
    assert len(known) > 50
    handled = set(ResponsesTranslator.HANDLERS)
    assert not handled & IGNORED
    assert known <= handled | IGNORED


async def test_text__with_its_sources_behind_it() -> None:
    parts = await parts_from(ANSWER)
    assert [part.kind for part in parts] == ["step", "text", "source_url", "source_document"]
    assert parts[1].text == "There are three."
    source, document = only(parts, SourceUrlPart), only(parts, SourceDocumentPart)
    assert (source.url, source.title) == ("https://example.com/a", "A page")
    assert (document.filename, document.media_type) == ("notes.pdf", "application/pdf")
    assert document.id == "file-1"


async def test_step__has_what_the_response_says_of_itself() -> None:
    step = only(await parts_from(ANSWER), StepPart)
    assert (step.model, step.response_id) == ("gpt-test", "resp_1")
    assert step.usage == events.USAGE
    assert (step.finish_reason, step.closed) == ("stop", True)
    assert only(await parts_from(*CALLS), StepPart).finish_reason == "tool_calls"


async def test_refusal__is_text_and_the_reason_of_the_end() -> None:
    parts = await parts_from(events.message(events.refused("I cannot.")))
    assert parts[1].text == "I cannot."
    assert only(parts, StepPart).finish_reason == "refusal"


async def test_message__of_several_texts_has_a_part_of_each() -> None:
    parts = await parts_from(events.message(events.said("One."), events.said("Two.")))
    assert [part.text for part in parts if part.kind == "text"] == ["One.", "Two."]


@pytest.mark.parametrize(
    ("item", "texts"),
    [
        (THINKING, ["First this. ", "Then that."]),
        (events.reasoning(), [""]),
        (events.reasoning(content=["Openly."]), ["Openly."]),
    ],
)
async def test_reasoning__keeps_what_is_encrypted(item: events.Item, texts: list[str]) -> None:
    parts = [p for p in await parts_from(item, ANSWER) if isinstance(p, ReasoningPart)]
    assert [part.text for part in parts] == texts
    last = parts[-1].provider
    assert last is not None
    assert last["data"]["item"]["encrypted_content"] == "secret"


async def test_function__is_a_call_with_its_input() -> None:
    parts = await parts_from(*CALLS)
    first, second = [part for part in parts if isinstance(part, ToolCallPart)]
    assert (first.name, first.call_id, first.text) == ("search", "call_1", '{"q": "mongo"}')
    assert (first.input, second.input) == ({"q": "mongo"}, {})
    assert first.executor == "server"


@pytest.mark.parametrize("text", ['{"q": "mon', "{'q': 1}", '{"q": NaN}'])
async def test_function__with_invalid_arguments_has_an_error(text: str) -> None:
    call = only(await parts_from(events.function_call(text)), ToolCallPart)
    assert (call.state, call.input, call.text) == ("output-error", text, text)


async def test_function__with_a_number_that_is_too_large_is_stored() -> None:
    call = only(
        await parts_from(events.function_call('{"n": 123456789012345678901}')), ToolCallPart
    )
    assert call.input == {"n": "123456789012345678901"}


@pytest.mark.parametrize(
    ("item", "name", "given", "output"),
    [
        (
            events.WEB_SEARCH,
            "web_search",
            {"type": "search", "query": "mongo"},
            {"sources": [{"type": "url", "url": "https://a"}]},
        ),
        (
            events.FILE_SEARCH,
            "file_search",
            {"queries": ["mongo"]},
            {"results": events.FILE_SEARCH["results"]},
        ),
        (
            events.CODE,
            "code_interpreter",
            {"code": "print(1)", "container_id": "cntr_1"},
            {"outputs": [{"type": "logs", "logs": "1"}]},
        ),
        (
            events.IMAGE,
            "image_generation",
            {"revised_prompt": "A cat", "output_format": "png"},
            {"result": "aGVsbG8="},
        ),
        (events.MCP, "lookup", {"q": "mongo"}, "a database"),
    ],
)
async def test_built_in_tool__is_a_call_of_the_provider(
    item: events.Item, name: str, given: Any, output: Any
) -> None:
    call = only(await parts_from(item), ToolCallPart)
    assert (call.name, call.executor, call.started) == (name, "provider", True)
    assert (call.input, call.output, call.state) == (given, output, "output-available")


@pytest.mark.parametrize(
    ("item", "error"),
    [
        ({**events.WEB_SEARCH, "status": "failed"}, "failed"),
        ({**events.IMAGE, "status": "failed", "result": None}, "failed"),
        (
            {**events.MCP, "error": {"type": "http_error", "code": 500, "message": "Down"}},
            "Down",
        ),
    ],
)
async def test_built_in_tool__that_failed_has_its_error(item: events.Item, error: str) -> None:
    call = only(await parts_from(item), ToolCallPart)
    assert (call.state, call.error) == ("output-error", error)


async def test_mcp__asks_for_an_approval_and_tells_its_tools() -> None:
    parts = await parts_from(events.MCP_TOOLS, events.MCP_ASKS)
    assert only(parts, CustomPart).kind == "openai_mcp_list_tools"
    player = Player([events.stream(events.MCP_ASKS)])
    async with client(player) as sdk:
        contents = await collect(openai_responses(await ask(sdk)))
    call = only(reduced(contents, ended=False), ToolCallPart)
    assert (call.state, call.name, call.title) == ("approval-requested", "lookup", "wiki: lookup")


@pytest.mark.parametrize("item", OWN)
async def test_tool__that_the_application_runs_waits_for_its_output(item: events.Item) -> None:
    parts = await parts_from(item)
    call = only(parts, ToolCallPart)
    assert (call.executor, call.call_id) == ("server", item["call_id"])
    assert call.state == "interrupted"
    assert "input" in call.fields
    assert only(parts, StepPart).finish_reason == "tool_calls"


async def test_shell__in_a_container_has_its_output_from_the_provider() -> None:
    call = only(await parts_from(events.SHELL, events.SHELL_OUTPUT), ToolCallPart)
    assert (call.executor, call.output) == ("provider", events.SHELL_OUTPUT["output"])


async def test_incomplete__completes_with_its_reason() -> None:
    cut = events.message(events.said("There"), status="incomplete")
    details = {"incomplete_details": {"reason": "max_output_tokens"}}
    parts = await parts_from(cut, ends="incomplete", **details)
    assert parts[1].text == "There"
    assert only(parts, StepPart).finish_reason == "length"


@pytest.mark.parametrize("kind", ["error", "response.failed"])
async def test_error__of_the_stream_is_raised_behind_what_was_written(kind: str) -> None:
    error = {"code": "rate_limit_exceeded", "message": "Too many."}
    told: events.Event = {"type": "error", **error, "param": None}
    if kind == "response.failed":
        told = {"type": kind, "response": events.response("failed", error=error)}
    player = Player([[*events.stream(ANSWER)[:7], {**told, "sequence_number": 7}]])
    contents = []
    async with client(player) as sdk:
        with pytest.raises(ProviderError, match="Too many") as raised:
            async for content in openai_responses(await ask(sdk)):
                contents.append(content)  # noqa: PERF401 - up to the error
    assert (raised.value.code, raised.value.provider) == ("rate_limit_exceeded", "openai")
    parts = reduced(contents, ended=False)
    assert "".join(part.text for part in parts).startswith("Ther")
    assert not only(parts, StepPart).closed


def cuts() -> list[int]:
    return list(range(len(events.stream(*EVERYTHING))))


@pytest.mark.parametrize("hangs_up", [False, True])
async def test_cut__anywhere_is_an_error_and_leaves_the_step_open(hangs_up: bool) -> None:
    player = Player([events.stream(*EVERYTHING)], hangs_up=hangs_up)
    broken = openai.APIConnectionError, httpx.HTTPError  # the latter with version 2 of the SDK
    wanted = broken if hangs_up else (ProviderError,)
    async with client(player) as sdk:
        for cut in cuts():
            player.cut = cut
            contents: list[Any] = []
            with pytest.raises(wanted):
                async for content in openai_responses(await ask(sdk)):
                    contents.append(content)  # noqa: PERF401 - up to the error
            parts = reduced(contents, ended=False)
            assert all(not part.closed for part in parts if isinstance(part, StepPart))


async def test_unknown_events_and_items__pass() -> None:
    strange = {"type": "response.dream.delta", "delta": "zzz", "sequence_number": 1}
    item = {"id": "x_1", "type": "dream", "depth": 3}
    stream = events.stream(item, ANSWER)
    player = Player([[stream[0], strange, *stream[1:]]])
    async with client(player) as sdk:
        parts = reduced(await collect(openai_responses(await ask(sdk))))
    assert [part.kind for part in parts][:3] == ["step", "openai_dream", "text"]


@pytest.mark.parametrize(
    "left_out",
    [
        ("response.output_item.added", "response.content_part.added"),
        ("response.content_part.done", "response.output_text.done"),
        ("response.output_item.done",),
        ("response.created", "response.in_progress"),
        (
            *("response.output_text.delta", "response.function_call_arguments.delta"),
            "response.reasoning_summary_text.delta",
        ),
    ],
)
async def test_compatible_server__may_leave_out_events(left_out: tuple[str, ...]) -> None:
    whole = events.stream(THINKING, *CALLS, ANSWER)
    player = Player([[each for each in whole if each["type"] not in left_out]])
    async with client(player) as sdk:
        parts = reduced(await collect(openai_responses(await ask(sdk))))
    assert [(p.kind, p.text) for p in parts if p.kind in ("text", "tool_call")] == [
        ("tool_call", '{"q": "mongo"}'),
        ("tool_call", "{}"),
        ("text", "There are three."),
    ]
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    assert [call.input for call in calls] == [{"q": "mongo"}, {}]
    assert only(parts, SourceUrlPart).url == "https://example.com/a"
    prompt: Any = messages_for_openai([assistant(*parts)])
    assert prompt[0]["encrypted_content"] == "secret"
    assert [p.text for p in parts if p.kind == "reasoning"] == ["First this. ", "Then that."]


async def test_compatible_server__may_change_ids_with_each_event() -> None:
    changed = [
        {**each, "item_id": f"x{number}"} if "item_id" in each else each
        for number, each in enumerate(events.stream(ANSWER))
    ]
    async with client(Player([changed])) as sdk:
        parts = reduced(await collect(openai_responses(await ask(sdk))))
    assert [p.text for p in parts if p.kind == "text"] == ["There are three."]


async def test_helper_of_the_sdk__gives_the_same_events() -> None:
    async with (
        client(Player([events.stream(THINKING, *CALLS, ANSWER)])) as sdk,
        sdk.responses.stream(model="gpt-test", input="?") as stream,
    ):
        parts = reduced(await collect(openai_responses(stream)))
    assert parts == await parts_from(THINKING, *CALLS, ANSWER)


async def test_texts_that_are_mixed__go_on_in_parts_of_their_own() -> None:
    one, two = (events.message(events.said(t), name=n) for t, n in (("aaaabbbb", "a"), ("cc", "b")))
    whole = events.stream(one, two)
    first = [each for each in whole if each.get("output_index") == 0]
    second = [each for each in whole if each.get("output_index") == 1]
    player = Player([[whole[0], *first[:3], *second[:3], *first[3:], *second[3:], whole[-1]]])
    async with client(player) as sdk:
        parts = reduced(await collect(openai_responses(await ask(sdk))))
    assert [p.text for p in parts if p.kind == "text"] == ["aaaa", "cc", "bbbb"]


# A response in the background


async def go_on(sdk: AsyncOpenAI, message: Message) -> None:
    unfinished = unfinished_response(message)
    assert unfinished is not None
    stream = await sdk.responses.retrieve(
        unfinished.response_id, stream=True, starting_after=unfinished.starting_after
    )
    async with message.resume_writer() as writer:
        await writer.pipe(openai_responses(stream, unfinished))


def unnumbered(parts: list[Part]) -> list[Any]:
    return [{**part.to_record(), "part": None} for part in parts]


async def test_background__goes_on_behind_any_cut(converse: Converse) -> None:
    emoji = events.message(events.said("\ud83d\ude00 There are three.", events.CITED))
    whole = events.stream(THINKING, *CALLS, *PROVIDED, emoji, background=True)
    starts = await all_cuts(converse, whole)
    # What is done is not read again.
    assert all(cut - after < 16 for cut, after in enumerate(starts, 1))


@pytest.mark.parametrize("other", [events.message(events.said("cc"), name="b"), CALLS[0]])
async def test_background__goes_on_in_items_that_are_mixed(
    converse: Converse, other: events.Item
) -> None:
    whole = events.stream(events.message(events.said("aaaabbbb")), other, background=True)
    first = [each for each in whole if each.get("output_index") == 0]
    second = [each for each in whole if each.get("output_index") == 1]
    mixed = [whole[0], *first[:3], *second[:3], *first[3:], *second[3:], whole[-1]]
    await all_cuts(converse, [{**e, "sequence_number": n} for n, e in enumerate(mixed)])


async def all_cuts(converse: Converse, whole: list[events.Event]) -> list[int]:
    player, starts = Player([whole]), list[int]()
    conversation = await converse.start_conversation()
    async with client(player) as sdk:
        undisturbed = unnumbered(reduced(await collect(openai_responses(await ask(sdk)))))
        for cut in range(1, len(whole)):
            message = await conversation.start_streaming_assistant()
            player.cut = cut
            async with message.writer() as writer:
                with pytest.raises(ProviderError):
                    await writer.pipe(openai_responses(await ask(sdk, background=True)))
                await writer.detach()
            message = await converse.get_message(message.id)
            before = len(message.parts)
            await go_on(sdk, message)
            read = await converse.get_message(message.id)
            assert unnumbered(read.parts) == undisturbed, cut
            assert len(read.parts) >= before
            after = int(player.asked[-1]["starting_after"])
            assert after < cut
            starts.append(after)
    return starts


async def test_background__needs_the_word_of_the_provider(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    for background, provider in ((False, "openai"), (True, "vllm")):
        whole = events.stream(ANSWER, background=background)
        message = await conversation.start_streaming_assistant()
        async with client(Player([whole], cut=6)) as sdk, message.writer() as writer:
            with pytest.raises(ProviderError):
                await writer.pipe(openai_responses(await ask(sdk), provider=provider))
            await writer.flush()
            assert unfinished_response(message) is None
            await writer.reset()
            assert [part.kind for part in message.parts] == ["step"]


# And back


async def test_round_trip__is_what_the_sdk_would_send() -> None:
    items = (THINKING, *CALLS, *PROVIDED, events.custom_call("print(1)"), ANSWER)
    player = Player([events.stream(*items)])
    async with client(player) as sdk:
        parts = reduced(await collect(openai_responses(await ask(sdk))))
        final = await sdk.responses.create(model="m", input="?", stream=True)
        async for event in final:
            if event.type == "response.completed":
                output = event.response.output
        prompt = messages_for_openai([user("Hello"), assistant(*parts), user("Go on")])
        await sdk.responses.create(model="m", input=prompt, stream=True)
        ours = player.asked[-1]["input"]
        results = [
            {"type": "function_call_output", "call_id": "call_1", "output": "interrupted"},
            {"type": "function_call_output", "call_id": "call_2", "output": "interrupted"},
            {"type": "custom_tool_call_output", "call_id": "call_9", "output": "interrupted"},
        ]
        given: Any = [
            {"role": "user", "content": "Hello"},
            *output,
            *results,
            {"role": "user", "content": "Go on"},
        ]
        await sdk.responses.create(model="m", input=given, stream=True)
        assert ours == player.asked[-1]["input"]


async def test_tool_loop__tells_the_model_its_calls_and_their_results(converse: Converse) -> None:
    player = Player([events.stream(THINKING, *CALLS), events.stream(ANSWER)])
    conversation = await converse.start_conversation()
    await conversation.add_user_message("How many?")
    message = await conversation.start_streaming_assistant()
    history = await conversation.history()
    async with client(player) as sdk, message.writer(interrupt=True) as writer:
        while True:
            prompt = messages_for_openai(history, answer=message)
            stream = await sdk.responses.create(model="m", input=prompt, stream=True)
            await writer.pipe(openai_responses(stream))
            calls = message.unfinished_calls
            if not calls:
                break
            for part in calls:
                call = writer.continue_tool_call(part)
                async with call.execution():
                    await call.set_output({"hits": 3})
    read = await converse.get_message(message.id)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, "There are three.")
    assert [p.finish_reason for p in read.parts if isinstance(p, StepPart)] == [
        *("tool_calls", "stop")
    ]
    told = player.asked[-1]["input"]
    assert [each.get("type", each.get("role")) for each in told] == [
        *("user", "reasoning", "function_call", "function_call"),
        *("function_call_output", "function_call_output"),
    ]
    assert told[-1]["output"] == '{"hits": 3}'


async def test_nested__writes_below_its_call(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    async with client(Player([events.stream(THINKING, ANSWER)])) as sdk, message.writer() as writer:
        call = await writer.start_tool_call("research")
        await call.set_input({})
        await call.nested().pipe(openai_responses(await ask(sdk)))
        await call.set_output("three")
    read = await converse.get_message(message.id)
    assert read.content == ""
    assert [p.text for p in read.parts if isinstance(p, TextPart) and p.kind == "text"] == [
        "There are three."
    ]
    assert all(part.parent == 0 for part in read.parts[1:])


async def test_stream__is_closed_with_its_contents() -> None:
    async with client(Player([events.stream(ANSWER)])) as sdk:
        stream = await ask(sdk)
        contents = openai_responses(stream)
        await anext(contents)
        await contents.aclose()
        assert stream.response.is_closed
