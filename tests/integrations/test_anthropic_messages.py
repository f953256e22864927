"""Streams of Anthropic's Messages, as its SDK reads them from a server on 127.0.0.1."""

import typing
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import AsyncAnthropic
from anthropic.lib.streaming import MessageStreamEvent
from anthropic.types import ContentBlock, RawContentBlockDelta, RawMessageStreamEvent
from anthropic.types.beta import (
    BetaContentBlock,
    BetaRawContentBlockDelta,
    BetaRawMessageStreamEvent,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from converse_mongo.integrations.anthropic import anthropic_messages, messages_for_anthropic
from converse_mongo.integrations.anthropic.blocks import THOUGHTS, is_result, is_use
from converse_mongo.integrations.anthropic.messages import MessagesTranslator
from tests.integrations import anthropic_events as events
from tests.integrations.anthropic_rules import check
from tests.integrations.playing import Player, assistant, collect, playing, reduced, user

THINKING = events.thinking("First this.")
CALLS = events.tool_use({"q": "mongo"}), events.tool_use({}, call_id="toolu_2")
ANSWER = (
    events.text("There "),
    events.text("are ", events.CITED, events.OF_PDF),
    events.text("three.", events.CITED),
)
SERVED = (
    *(*events.SEARCH, *events.FETCH, *events.CODE, *events.BASH, *events.FINDS_TOOLS),
    *(*events.MCP, *events.FAILED),
)
OTHERS = events.UPLOAD, events.COMPACTION, events.LISTING
EVERYTHING = (THINKING, events.REDACTED, *SERVED, *OTHERS, *ANSWER, *CALLS)


@asynccontextmanager
async def client(player: Player) -> AsyncIterator[AsyncAnthropic]:
    async with (
        playing(player) as url,
        AsyncAnthropic(
            base_url=url.removesuffix("/v1"), api_key="sk-test", max_retries=0
        ) as opened,
    ):
        yield opened


ASKED: Any = {
    "model": "claude-test",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "?"}],
}


async def ask(sdk: AsyncAnthropic, messages: Any = ()) -> Any:
    asked = {**ASKED, "messages": messages} if messages else ASKED
    return await sdk.beta.messages.create(**asked, stream=True)


async def parts_from(*blocks: events.Block, **options: Any) -> list[Part]:
    return await parts_of_stream(events.stream(*blocks, **options))


async def parts_of_stream(stream: Iterable[events.Event]) -> list[Part]:
    async with client(Player([[*stream]])) as sdk:
        return reduced(await collect(anthropic_messages(await ask(sdk))))


def only(parts: list[Part], kind: type[Any]) -> Any:
    [found] = [part for part in parts if isinstance(part, kind)]
    return found


def told(*parts: Part, **options: Any) -> list[Any]:
    return list(messages_for_anthropic([assistant(*parts)], **options))


# What the SDK knows

HELPERS = frozenset({"text", "citation", "thinking", "signature", "input_json", "compaction"})
"""What ``client.messages.stream()`` yields beside the events of the API, to say the same again."""


def members(union: Any) -> set[str]:
    found: set[str] = set()
    for each in typing.get_args(union):
        if hasattr(each, "model_fields"):
            found.add(typing.get_args(each.model_fields["type"].annotation)[0])
        elif typing.get_args(each):
            found |= members(each)
    return found


def test_events__of_the_sdk_are_all_handled_or_ignored() -> None:
    handled = set(MessagesTranslator.HANDLERS)
    raw = members(RawMessageStreamEvent) | members(BetaRawMessageStreamEvent)
    assert len(raw) == 6
    assert raw <= handled
    assert members(MessageStreamEvent) <= handled | HELPERS


def test_deltas__of_the_sdk_are_all_taken() -> None:
    known = members(RawContentBlockDelta) | members(BetaRawContentBlockDelta)
    assert len(known) > 4
    assert known <= set(MessagesTranslator.DELTAS)


def test_blocks__of_the_sdk_are_all_of_a_kind_that_is_known() -> None:
    known = members(ContentBlock) | members(BetaContentBlock)
    others = {each for each in known if each not in THOUGHTS and not is_use(each)}
    others = {each for each in others if not is_result(each)}
    assert others <= {"text", "container_upload", "compaction", "fallback", "mcp_tool_listing"}
    assert {each for each in known if is_use(each)} == {
        *("tool_use", "server_tool_use", "mcp_tool_use")
    }


# Blocks


async def test_texts__are_one_part_with_its_sources_behind_it() -> None:
    parts = await parts_from(*ANSWER)
    assert [part.kind for part in parts] == ["step", "text", "source_url", "source_document"]
    assert parts[1].text == "There are three."
    source, document = only(parts, SourceUrlPart), only(parts, SourceDocumentPart)
    assert (source.url, source.title) == ("https://example.com/a", "A page")
    assert (document.title, document.media_type) == ("Notes", "application/pdf")


@pytest.mark.parametrize(
    ("citation", "kind", "named"),
    [
        (
            {"type": "char_location", "document_index": 1, "document_title": None},
            "source_document",
            ("Document 2", "text/plain", None),
        ),
        (
            {"type": "content_block_location", "document_index": 0, "file_id": "file_1"},
            "source_document",
            ("Document 1", "application/octet-stream", "file_1"),
        ),
        (
            {"type": "search_result_location", "source": "notes/1", "title": "Notes"},
            "source_document",
            ("Notes", "application/octet-stream", "notes/1"),
        ),
        (
            {"type": "search_result_location", "source": "https://a", "title": ""},
            "source_url",
            ("https://a", None),
        ),
    ],
)
async def test_citations__of_all_types_are_sources(citation: Any, kind: str, named: Any) -> None:
    parts = await parts_from(events.text("Three.", citation, citation))
    [source] = [part for part in parts if part.kind not in ("step", "text")]
    assert source.kind == kind
    names = ("url", "title") if kind == "source_url" else ("title", "media_type", "id")
    assert tuple(source.fields.get(name) for name in names) == named


async def test_step__has_what_the_response_says_of_itself() -> None:
    said = {"container": {"id": "cntr_1", "expires_at": "2026-12-01T00:00:00Z"}}
    step = only(await parts_from(*ANSWER, **said), StepPart)
    assert (step.model, step.response_id) == ("claude-test", "msg_1")
    assert step.usage == {**events.USAGE, **events.TOTALS}
    assert (step.finish_reason, step.closed) == ("stop", True)
    assert step.provider["data"]["container"]["id"] == "cntr_1"
    assert step.provider["data"]["stop_reason"] == "end_turn"


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("pause_turn", "pause_turn"),
        ("refusal", "refusal"),
        ("compaction", "compaction"),
    ],
)
async def test_step__has_the_reason_of_its_end(stop: str, reason: str) -> None:
    assert only(await parts_from(ANSWER[0], stop=stop), StepPart).finish_reason == reason


async def test_thoughts__keep_their_signatures_and_what_is_encrypted() -> None:
    parts = await parts_from(THINKING, events.thinking("", "other"), events.REDACTED, *ANSWER)
    thoughts = [part for part in parts if isinstance(part, ReasoningPart)]
    assert [part.text for part in thoughts] == ["First this.", "", ""]
    blocks = [told(*parts)[0]["content"][number] for number in range(3)]
    assert blocks == [THINKING, events.thinking("", "other"), events.REDACTED]


async def test_tool__is_a_call_with_its_input() -> None:
    parts = await parts_from(*CALLS, stop="tool_use")
    first, second = [part for part in parts if isinstance(part, ToolCallPart)]
    assert (first.name, first.call_id, first.text) == ("search", "toolu_1", '{"q": "mongo"}')
    assert (first.input, second.input) == ({"q": "mongo"}, {})
    assert (first.executor, first.state) == ("server", "interrupted")


async def test_tool__may_come_with_its_input_at_once() -> None:
    whole = events.stream(events.tool_use({}), stop="tool_use")
    whole = [each for each in whole if each["type"] != "content_block_delta"]
    whole[2]["content_block"]["input"] = {"q": "mongo"}
    assert only(await parts_of_stream(whole), ToolCallPart).input == {"q": "mongo"}


@pytest.mark.parametrize(
    "text", ['{"q": "mon', "{'q': 1}", '{"q": NaN}', '{"q":' * 600 + "1" + "}" * 600]
)
async def test_tool__with_invalid_input_has_an_error(text: str) -> None:
    translator = MessagesTranslator("anthropic")  # the SDK's helper, too, gives up on some
    for event in events.stream(events.tool_use(text), stop="tool_use"):
        translator.feed(event)
    parts = reduced(translator.parts.take())
    call = only(parts, ToolCallPart)
    assert (call.state, call.input, call.text) == ("output-error", text, text)
    said, results = told(*parts)
    assert said["content"][0]["input"] == {"invalid_json": text}
    assert results["content"][0]["is_error"] is True
    check(told(*parts))


@pytest.mark.parametrize(
    ("blocks", "name", "given", "output"),
    [
        (events.SEARCH, "web_search", {"query": "mongo"}, events.FOUND),
        (
            events.FETCH,
            "web_fetch",
            {"url": "https://example.com/a"},
            events.FETCH[1]["content"],
        ),
        (events.CODE, "code_execution", {"code": "print(3)"}, events.RAN),
        (events.BASH, "bash_code_execution", {"command": "ls"}, events.BASH[1]["content"]),
        (
            events.FINDS_TOOLS,
            "tool_search_tool_regex",
            {"pattern": "."},
            events.FINDS_TOOLS[1]["content"],
        ),
        (events.MCP, "lookup", {"q": "mongo"}, [{"type": "text", "text": "a database"}]),
    ],
)
async def test_tool_of_anthropic__is_a_call_of_the_provider(
    blocks: Any, name: str, given: Any, output: Any
) -> None:
    call = only(await parts_from(*blocks), ToolCallPart)
    assert (call.name, call.executor, call.started) == (name, "provider", True)
    assert (call.input, call.output, call.state) == (given, output, "output-available")
    assert call.title == ("wiki: lookup" if blocks is events.MCP else None)


@pytest.mark.parametrize(
    ("blocks", "error"),
    [
        (events.FAILED, "max_uses_exceeded"),
        ((events.MCP[0], {**events.MCP[1], "is_error": True}), "a database"),
        ((events.MCP[0], {**events.MCP[1], "is_error": True, "content": []}), "failed"),
        ((events.MCP[0], {**events.MCP[1], "is_error": True, "content": "Down"}), "Down"),
        ((events.MCP[0], {**events.MCP[1], "is_error": True, "content": ""}), "failed"),
    ],
)
async def test_tool_of_anthropic__that_failed_has_its_error(blocks: Any, error: str) -> None:
    parts = await parts_from(*blocks)
    call = only(parts, ToolCallPart)
    assert (call.state, call.error) == ("output-error", error)
    assert told(*parts)[0]["content"] == [*blocks]


async def test_others__are_custom_parts_that_go_back() -> None:
    parts = await parts_from(*OTHERS, events.text("Yes."))
    assert [part.kind for part in parts if isinstance(part, CustomPart)] == [
        *("anthropic_container_upload", "anthropic_compaction", "anthropic_mcp_tool_listing")
    ]
    assert told(*parts)[0]["content"] == [*OTHERS, events.text("Yes.")]


# Ends


async def test_max_tokens__within_an_input_leaves_no_call_to_run() -> None:
    cut = events.tool_use('{"q": "mon', call_id="toolu_2")
    parts = await parts_from(ANSWER[0], CALLS[0], cut, stop="max_tokens")
    first, second = [part for part in parts if isinstance(part, ToolCallPart)]
    assert (first.state, second.state) == ("output-error", "output-error")
    assert first.error == "The tool was not run: the model stopped (max_tokens)."
    assert second.error == "The input is not valid JSON."
    check(told(*parts))


async def test_input__that_cannot_be_stored_fails_its_call_alone(converse: Converse) -> None:
    deep = '{"q": ' * 90 + "1" + "}" * 90
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    turn = events.stream(events.tool_use(deep), events.tool_use({"q": 1}, call_id="toolu_2"))
    async with client(Player([[*turn]])) as sdk:
        await message.pipe(anthropic_messages(await ask(sdk)))
    first, second = [part for part in message.parts if isinstance(part, ToolCallPart)]
    assert (first.input, first.error) == (deep, "The input cannot be stored.")
    assert (second.input, second.error) == ({"q": 1}, None)
    check(messages_for_anthropic([message]))


@pytest.mark.parametrize("stop", ["max_tokens", "refusal", "model_context_window_exceeded", "new"])
async def test_end__before_an_input_is_no_call_without_one(stop: str) -> None:
    call = only(await parts_from(events.tool_use({}), stop=stop), ToolCallPart)
    assert (call.state, call.input) == ("output-error", {})


async def test_max_tokens__within_a_thought_leaves_it_out() -> None:
    whole = events.stream(THINKING, stop="max_tokens")
    unsigned = [each for each in whole if "signature_delta" not in str(each)]
    parts = await parts_of_stream(unsigned)
    assert only(parts, ReasoningPart).text == "First this."
    assert told(*parts) == []
    assert told(*(await parts_from(THINKING, stop="max_tokens"))) == []  # it may not be the last


async def test_refusal__is_the_reason_and_is_not_told() -> None:
    details = {"type": "refusal", "category": "bio", "explanation": "No."}
    parts = await parts_from(ANSWER[0], CALLS[0], stop="refusal", stop_details=details)
    step = only(parts, StepPart)
    assert step.finish_reason == "refusal"
    assert step.provider["data"]["stop_details"] == details
    assert only(parts, ToolCallPart).error == "The tool was not run: the model stopped (refusal)."
    assert told(*parts) == []
    assert told(*parts, provider="another")[0]["content"][0]["text"] == "There "


async def test_fallback__goes_back_without_the_calls_before_it() -> None:
    fallback = {
        "type": "fallback",
        "from": {"model": "claude-test"},
        "to": {"model": "claude-other"},
        "trigger": {"type": "refusal", "category": None},
    }
    last = events.tool_use({}, call_id="toolu_2")
    parts = await parts_from(THINKING, CALLS[0], fallback, *ANSWER, last, stop="tool_use")
    first, second = [part for part in parts if isinstance(part, ToolCallPart)]
    assert first.error == "The tool was not run: another model took over."
    assert second.error is None
    assert only(parts, StepPart).model == "claude-other"
    said, results = told(*parts)
    assert said["content"] == [THINKING, fallback, *ANSWER, last]
    assert [each["tool_use_id"] for each in results["content"]] == ["toolu_2"]
    parts = await parts_from(CALLS[0], fallback, *ANSWER)
    assert only(parts, StepPart).finish_reason == "stop"
    parts = await parts_from(CALLS[0], fallback, ANSWER[0], stop="max_tokens")
    assert only(parts, ToolCallPart).error == "The tool was not run: another model took over."


async def test_error__of_the_stream_is_raised_behind_what_was_written() -> None:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    broken = [*events.stream(*ANSWER)[:5], {"type": "error", "error": error}]
    contents = []
    async with client(Player([broken])) as sdk:
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            async for content in anthropic_messages(await ask(sdk)):
                contents.append(content)  # noqa: PERF401 - up to the error
    parts = reduced(contents, ended=False)
    assert "".join(part.text for part in parts) == "There "
    assert not only(parts, StepPart).closed

    async def unread() -> AsyncIterator[Any]:
        for event in broken:  # as from what does not read errors
            yield event

    with pytest.raises(ProviderError, match="Overloaded") as raised:
        await collect(anthropic_messages(unread()))
    assert (raised.value.code, raised.value.provider) == ("overloaded_error", "anthropic")


@pytest.mark.parametrize("hangs_up", [False, True])
async def test_cut__anywhere_is_an_error_and_leaves_the_step_open(hangs_up: bool) -> None:
    whole = events.stream(*EVERYTHING, stop="tool_use")
    player = Player([whole], hangs_up=hangs_up)
    wanted = (anthropic.APIConnectionError, httpx2.HTTPError) if hangs_up else (ProviderError,)
    async with client(player) as sdk:
        for cut in range(len(whole) if hangs_up else len(whole) - 1):
            player.cut = cut
            contents: list[Any] = []
            with pytest.raises(wanted):
                async for content in anthropic_messages(await ask(sdk)):
                    contents.append(content)  # noqa: PERF401 - up to the error
            parts = reduced(contents)
            assert not any(p.closed for p in reduced(contents, ended=False) if is_step(p))
            shown = assistant(*parts, status=MessageStatus.CANCELLED)
            check(messages_for_anthropic([USER, shown, USER]))
            check(messages_for_anthropic([USER, shown]))


USER = user("Hello")


def is_step(part: Part) -> bool:
    return isinstance(part, StepPart)


async def test_cut__behind_the_reason_of_the_end_is_none() -> None:
    player = Player([events.stream(*ANSWER)])
    player.cut = len(player.streams[0]) - 1
    async with client(player) as sdk:
        parts = reduced(await collect(anthropic_messages(await ask(sdk))), ended=False)
    assert only(parts, StepPart).closed
    assert parts == reduced(fed(events.stream(*ANSWER)), ended=False)


async def test_end__is_the_end() -> None:
    whole = events.stream(*ANSWER)
    error = {"type": "error", "error": {"type": "api_error", "message": "Late."}}

    async def unread() -> AsyncIterator[Any]:
        for event in [*whole, *events.stream(*ANSWER, THINKING), error]:
            yield event

    parts = reduced(await collect(anthropic_messages(unread())))
    assert parts == reduced(fed(whole))


def fed(stream: Iterable[events.Event], answer: Any = None) -> list[Any]:
    translator = MessagesTranslator("anthropic", answer)
    for event in stream:
        translator.feed(event)
    translator.finish()
    return translator.parts.take()


# Other servers


async def test_unknown_events_and_blocks__pass() -> None:
    strange = {"type": "dream", "index": 0, "delta": "zzz"}
    block = {"type": "dream", "depth": 3}
    stream = events.stream(block, *ANSWER)
    parts = await parts_of_stream([stream[0], strange, *stream[1:]])
    assert [part.kind for part in parts][:3] == ["step", "anthropic_dream", "text"]
    assert told(*parts)[0]["content"] == [block, *ANSWER]


async def test_unknown_deltas__make_a_response_go_back_as_any_models() -> None:
    stream = events.stream(THINKING, events.text("Yes."))
    stream.insert(3, {"type": "content_block_delta", "index": 0, "delta": {"type": "dream"}})
    parts = await parts_of_stream(stream)
    assert [part.text for part in parts] == ["", "First this.", "Yes."]
    assert told(*parts)[0]["content"] == [events.text("Yes.")]


@pytest.mark.parametrize(
    ("place", "delta"),
    [
        (5, {"type": "thinking_delta", "thinking": "Late."}),  # behind the stop of its block
        (3, {"type": "text_delta", "text": "Odd."}),
        (3, {"type": "input_json_delta", "partial_json": "{}"}),
    ],
)
def test_deltas__that_a_block_cannot_have_do_not_pass_for_what_it_said(
    place: int, delta: Any
) -> None:
    stream = events.stream(events.thinking("So."), events.text("Yes."))
    assert stream[5]["type"] == "content_block_stop"
    stream.insert(place + 1, {"type": "content_block_delta", "index": 0, "delta": delta})
    parts = reduced(fed(stream))
    assert [part.text for part in parts] == ["", "So.", "Yes."]
    assert told(*parts)[0]["content"] == [events.text("Yes.")]


@pytest.mark.parametrize(
    "left_out",
    [
        ("content_block_stop",),
        ("message_stop", "ping"),
        ("message_start",),
        ("content_block_stop", "message_stop", "ping"),
    ],
)
async def test_compatible_server__may_leave_out_events(left_out: tuple[str, ...]) -> None:
    blocks = THINKING, *ANSWER, *CALLS
    whole = events.stream(*blocks, stop="tool_use")
    parts = reduced(fed(each for each in whole if each["type"] not in left_out))
    assert told(*parts)[0]["content"] == [*blocks]
    assert only(parts, StepPart).finish_reason == "tool_calls"


async def test_compatible_server__may_leave_out_starts_indices_and_ids() -> None:
    whole = events.stream(THINKING, events.text("Yes."))
    no_starts = [each for each in whole if each["type"] != "content_block_start"]
    assert told(*reduced(fed(no_starts)))[0]["content"] == [THINKING, events.text("Yes.")]
    no_indices = [{n: v for n, v in each.items() if n != "index"} for each in whole]
    assert told(*reduced(fed(no_indices)))[0]["content"] == [THINKING, events.text("Yes.")]
    for name in ("", "toolu_1"):
        calls = [events.tool_use({"q": n}, call_id=name) for n in range(2)]
        parts = reduced(fed(events.stream(*calls)))
        ids = [part.call_id for part in parts if isinstance(part, ToolCallPart)]
        assert all(ids)
        assert len({*ids}) == 2
        assert only(parts, StepPart).finish_reason == "tool_calls"  # although it said "end_turn"
        check(told(*parts))


async def test_blocks_that_are_mixed__go_on_in_parts_of_their_own() -> None:
    one, call, two = events.text("aaaabbbb"), events.tool_use({"q": 1}), events.text("cccc")
    whole = events.stream(one, call, two, stop="tool_use")
    first, second, third = ([e for e in whole if e.get("index") == n] for n in range(3))
    mixed = [*whole[:2], *first[:2], *second[:2], *third[:2], *first[2:], *second[2:], *third[2:]]
    parts = reduced(fed([*mixed, *whole[-2:]]))
    assert [p.text for p in parts if p.kind == "text"] == ["aaaa", "cccc", "bbbb"]
    check(told(*parts))


WHOLE = events.stream(*EVERYTHING, stop="tool_use")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.sampled_from(["drop", "twice", "swap", "index"]), st.integers(0, 500)),
        max_size=12,
    ),
    st.integers(0, len(WHOLE)),
    st.sampled_from(["tool_use", "pause_turn", "refusal", "max_tokens", "end_turn"]),
)
def test_stream__of_any_kind_makes_parts_and_a_prompt_that_is_taken(
    harms: list[tuple[str, int]], cut: int, stop: str
) -> None:
    stream = [*events.stream(*EVERYTHING, stop=stop)]
    for harm, where in harms:
        at = where % len(stream)
        match harm:
            case "drop":
                stream.pop(at)
            case "twice":
                stream.insert(at, stream[at])
            case "swap":
                stream[at], stream[at - 1] = stream[at - 1], stream[at]
            case _ if "index" in stream[at]:
                stream[at] = {**stream[at], "index": where % 7}
    parts = reduced(fed(stream[:cut]))
    check(messages_for_anthropic([USER, assistant(*parts), USER]))
    check(messages_for_anthropic([USER], answer=assistant(*parts)))
    check(messages_for_anthropic([USER], answer=assistant(*parts), provider="another"))


def test_bodies__of_other_shapes_than_the_api_has_raise_nothing() -> None:
    odd: list[Any] = [None, "x", 7, [], {}, [{}], {"type": 3}, {"type": "text"}]
    ours = {"key": 1, "name": 2, "type": 3, "done": False, "units": "x", "of": 5, "self": 6}
    for event in WHOLE:
        inner = next((name for name in ("delta", "content_block") if name in event), "none")
        changed = {**event, inner: {**ours, **event.get(inner, {})}}
        check(messages_for_anthropic([USER, assistant(*reduced(fed([*WHOLE[:3], changed])))]))
        check(messages_for_anthropic([assistant(*reduced(fed([changed, *WHOLE[-1:]]))), USER]))
    for event in events.stream(*EVERYTHING):
        for name in event:
            for value in odd:
                reduced(fed([WHOLE[0], {**event, name: value}, *WHOLE[-2:]]))
    for name in ("content_block", "delta"):
        for event in [each for each in events.stream(*EVERYTHING) if name in each]:
            for inner in event[name]:
                for value in odd:
                    changed = {**event, name: {**event[name], inner: value}}
                    parts = reduced(fed([*WHOLE[:3], changed, *WHOLE[-2:]]))
                    check(messages_for_anthropic([USER, assistant(*parts), USER]))


@pytest.mark.parametrize("api", ["messages", "beta"])
async def test_helper_of_the_sdk__gives_the_same_parts(api: str) -> None:
    async with client(Player([events.stream(THINKING, *ANSWER, *CALLS)])) as sdk:
        messages = sdk.messages if api == "messages" else sdk.beta.messages
        async with messages.stream(**ASKED) as stream:
            parts = reduced(await collect(anthropic_messages(stream)))
    assert parts == await parts_from(THINKING, *ANSWER, *CALLS)


# What Anthropic goes on with

PAUSED = (THINKING, *events.SEARCH, events.CODE[0])
GOES_ON = (events.CODE[1], events.thinking("Then that."), *ANSWER)


def test_pause__goes_back_as_it_came_and_its_outcome_is_that_of_the_call() -> None:
    first = reduced(fed(events.stream(*PAUSED, stop="pause_turn")), ended=False)
    assert first[0].fields["finish_reason"] == "pause_turn"
    history = messages_for_anthropic([USER], answer=assistant(*first))
    assert history[-1] == {"role": "assistant", "content": [*PAUSED]}
    check(history)


async def answer_of(converse: Converse, player: Player) -> Message:
    """The answer of a loop as in the documentation."""
    conversation = await converse.start_conversation()
    await conversation.add_user_message("How many?")
    message = await conversation.start_streaming_assistant()
    history = await conversation.history()
    async with client(player) as sdk, message.writer(interrupt=True) as writer:
        while True:
            for part in message.unfinished_calls:
                if part.executor == "server":
                    call = writer.continue_tool_call(part)
                    async with call.execution():
                        await call.set_output({"hits": 3})
            prompt = messages_for_anthropic(history, answer=message)
            check(prompt)
            await writer.pipe(anthropic_messages(await ask(sdk, prompt), message))
            step = [part for part in message.parts if isinstance(part, StepPart)][-1]
            if step.finish_reason not in ("tool_calls", "pause_turn"):
                break
    return await converse.get_message(message.id)


async def test_pause__is_gone_on_with(converse: Converse) -> None:
    player = Player(
        [
            events.stream(*PAUSED, stop="pause_turn", name="msg_1"),
            events.stream(*GOES_ON, name="msg_2"),
        ]
    )
    read = await answer_of(converse, player)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, "There are three.")
    assert [part.kind for part in read.parts] == [
        *("step", "reasoning", "tool_call", "tool_call", "step", "reasoning", "text"),
        *("source_url", "source_document"),
    ]
    search, code = [part for part in read.parts if isinstance(part, ToolCallPart)]
    assert (search.state, code.state) == ("output-available", "output-available")
    assert code.output == events.RAN
    prompt = messages_for_anthropic([read, USER])
    assert prompt[0] == {"role": "assistant", "content": [*PAUSED, *GOES_ON]}


MIXED = (THINKING, events.CODE[0], CALLS[0])


async def test_mixed_calls__have_their_outcomes_in_the_next_response(converse: Converse) -> None:
    player = Player(
        [
            events.stream(*MIXED, stop="tool_use", name="msg_1"),
            events.stream(*GOES_ON, name="msg_2"),
        ]
    )
    read = await answer_of(converse, player)
    asked = player.asked[-1]["messages"]
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": '{"hits": 3}'}
    assert asked[1:] == [
        {"role": "assistant", "content": [*MIXED]},
        {"role": "user", "content": [result]},
    ]
    prompt: Any = messages_for_anthropic([read, USER])
    assert prompt[2] == {"role": "assistant", "content": [*GOES_ON]}
    check(prompt)


async def test_reset__leaves_the_call_for_anthropic_to_run_again(converse: Converse) -> None:
    player = Player([events.stream(*MIXED, stop="tool_use", name="msg_1")])
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    async with client(player) as sdk, message.writer(interrupt=True) as writer:
        await writer.pipe(anthropic_messages(await ask(sdk), message))
        [call] = [part for part in message.unfinished_calls if part.executor == "server"]
        async with writer.continue_tool_call(call).execution():
            await writer.continue_tool_call(call).set_output("3")
        player.streams, player.cut = [events.stream(*GOES_ON, name="msg_2")], 9
        with pytest.raises(ProviderError):
            await writer.pipe(anthropic_messages(await ask(sdk), message))
        await writer.reset()
        prompt: Any = messages_for_anthropic([USER], answer=message)
        check(prompt)
        assert prompt[1]["content"] == [*MIXED]
        player.streams = [events.stream(*GOES_ON, name="msg_3")]
        await writer.pipe(anthropic_messages(await ask(sdk), message))
    prompt = messages_for_anthropic([await converse.get_message(message.id), USER])
    assert prompt[2]["content"] == [*GOES_ON]
    check(prompt)


def test_outcome__without_its_message_is_a_part_that_goes_back() -> None:
    first = reduced(fed(events.stream(*PAUSED, stop="pause_turn", name="msg_1")))
    second = reduced(fed(events.stream(*GOES_ON, name="msg_2")))
    assert second[1].kind == "anthropic_code_execution_tool_result"
    assert told(*first, *second)[0]["content"] == [*PAUSED, *GOES_ON]


def test_outcome__is_never_that_of_a_call_which_the_application_runs() -> None:
    odd = events.result("web_search", "toolu_1", events.FOUND)
    parts = reduced(fed(events.stream(CALLS[0], odd, stop="tool_use")), ended=False)
    assert only(parts, ToolCallPart).state == "input-available"
    assert parts[2].kind == "anthropic_web_search_tool_result"
    parts = reduced(fed(events.stream(odd, ANSWER[0]), assistant(*parts)))
    assert parts[1].kind == "anthropic_web_search_tool_result"


def test_outcome__that_comes_twice_is_not_told() -> None:
    parts = reduced(fed(events.stream(*events.SEARCH, events.SEARCH[1], events.text("Hi"))))
    assert only(parts, ToolCallPart).output == events.FOUND
    assert parts[2].kind == "anthropic_web_search_tool_result"
    assert told(*parts)[0]["content"] == [events.text("Hi")]


def test_call__of_anthropic_that_nobody_goes_on_with_is_not_told() -> None:
    first = reduced(fed(events.stream(ANSWER[0], *PAUSED, stop="pause_turn", name="msg_1")))
    prompt: Any = messages_for_anthropic([assistant(*first), USER])
    assert prompt[0]["content"] == [events.text("There ")]
    more = events.stream(events.CODE[1], events.BASH[0], stop="pause_turn", name="msg_2")
    prompt = messages_for_anthropic([assistant(*first, *reduced(fed(more))), USER])
    check(prompt)
    assert prompt[0]["content"] == [events.text("There ")]
    second = reduced(fed(events.stream(*GOES_ON, name="msg_2")))
    alone: Any = messages_for_anthropic([assistant(*second), USER])
    assert alone[0]["content"] == [events.text("There are three.")]


# And back


async def test_round_trip__is_what_the_sdk_would_send() -> None:
    player = Player([events.stream(*EVERYTHING, stop="tool_use")])
    async with client(player) as sdk:
        parts = reduced(await collect(anthropic_messages(await ask(sdk))))
        async with sdk.beta.messages.stream(**ASKED) as stream:
            final = await stream.get_final_message()
        prompt = messages_for_anthropic([user("Hello"), assistant(*parts), user("Go on")])
        check(prompt)
        await ask(sdk, prompt)
        ours = player.asked[-1]["messages"]
        results = [
            {"type": "tool_result", "tool_use_id": name, "content": "interrupted", "is_error": True}
            for name in ("toolu_1", "toolu_2")
        ]
        given: Any = [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": final.content},
            {"role": "user", "content": [*results, {"type": "text", "text": "Go on"}]},
        ]
        # The SDK passes what the server gave, also what it left out.
        await ask(sdk, given)
        assert ours == player.asked[-1]["messages"]
        assert ours[1]["content"] == [*EVERYTHING]


async def test_tool_loop__tells_the_model_its_calls_and_their_results(converse: Converse) -> None:
    player = Player(
        [
            events.stream(THINKING, *CALLS, stop="tool_use", name="msg_1"),
            events.stream(*ANSWER, name="msg_2"),
        ]
    )
    read = await answer_of(converse, player)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, "There are three.")
    assert [p.finish_reason for p in read.parts if isinstance(p, StepPart)] == [
        *("tool_calls", "stop")
    ]
    results = [
        {"type": "tool_result", "tool_use_id": name, "content": '{"hits": 3}'}
        for name in ("toolu_1", "toolu_2")
    ]
    assert player.asked[-1]["messages"] == [
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": [THINKING, *CALLS]},
        {"role": "user", "content": results},
    ]


async def test_tool_loop__goes_on_behind_an_input_that_is_no_json(converse: Converse) -> None:
    player = Player(
        [
            events.stream(events.tool_use("{'q': 1}"), stop="tool_use", name="msg_1"),
            events.stream(*ANSWER, name="msg_2"),
        ]
    )
    assert (await answer_of(converse, player)).content == "There are three."


async def test_nested__writes_below_its_call(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    player = Player([events.stream(THINKING, *events.SEARCH, *ANSWER)])
    async with client(player) as sdk, message.writer() as writer:
        call = await writer.start_tool_call("research")
        await call.set_input({})
        await call.nested().pipe(anthropic_messages(await ask(sdk)))
        await call.set_output("three")
    read = await converse.get_message(message.id)
    assert read.content == ""
    assert [p.text for p in read.parts if isinstance(p, TextPart) and p.kind == "text"] == [
        "There are three."
    ]
    assert all(part.parent == 0 for part in read.parts[1:])


async def test_stream__is_closed_with_its_contents() -> None:
    async with client(Player([events.stream(*ANSWER)])) as sdk:
        stream = await ask(sdk)
        contents = anthropic_messages(stream)
        await anext(contents)
        await contents.aclose()
        assert stream.response.is_closed
