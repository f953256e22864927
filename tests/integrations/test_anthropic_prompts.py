"""Prompts for Anthropic: what of a conversation a model is told, and in which form."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from converse_mongo import (
    Approval,
    DataPart,
    FilePart,
    MessageRole,
    MessageStatus,
    Part,
    ReasoningPart,
    SourceUrlPart,
    StepPart,
    StoredValue,
    TextPart,
    ToolCallPart,
)
from converse_mongo.converse import Converse
from converse_mongo.integrations.anthropic import (
    load_values,
    messages_for_anthropic,
    system_for_anthropic,
)
from converse_mongo.integrations.anthropic.messages import MessagesTranslator
from converse_mongo.integrations.openai import messages_for_openai, messages_for_openai_chat
from converse_mongo.integrations.openai.responses import ResponsesTranslator
from tests.integrations import anthropic_events as events
from tests.integrations import openai_events
from tests.integrations.anthropic_rules import check
from tests.integrations.playing import Said, assistant, reduced, user

USER = user("Hello")
HELLO = {"role": "user", "content": "Hello"}


def call(call_id: str = "c1", name: str = "search", **fields: Any) -> ToolCallPart:
    part = ToolCallPart(name, call_id, **{"input": {"q": 1}, **fields})
    part.ended = True
    return part


def translated(*blocks: events.Block, provider: str = "anthropic", **more: Any) -> list[Part]:
    translator = MessagesTranslator(provider)
    for event in events.stream(*blocks, **more):
        translator.feed(event)
    return reduced(translator.parts.take())


def prompt(*history: Said, **options: Any) -> list[Any]:
    made: list[Any] = messages_for_anthropic(history, **options)
    check(made)
    return made


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


@pytest.mark.parametrize(
    ("fields", "told", "is_error"),
    [
        ({"output": "three"}, "three", False),
        ({"output": {"hits": 3}}, '{"hits": 3}', False),
        ({"output": [{"hits": 3}]}, '[{"hits": 3}]', False),
        ({"output": None}, "null", False),
        ({"output": ""}, None, False),
        ({"output": " \n"}, None, False),
        ({"output": []}, "[]", False),
        ({"error": "It is down."}, "It is down.", True),
        ({"error": " "}, "error", True),
        ({"approval": Approval("a", False)._asdict()}, "denied", True),
        ({"approval": Approval("a", False, "no")._asdict()}, "denied: no", True),
        ({"approval": {"id": "a"}}, "interrupted", True),
        ({"started": True}, "interrupted", True),
        ({"output": "half", "preliminary": True}, "interrupted", True),
        ({"output": StoredValue(9, "h", "v")}, "(9 bytes that are not shown here)", False),
        ({"executor": "client"}, "interrupted", True),
        ({}, "interrupted", True),
    ],
)
def test_call__always_has_a_result(fields: dict[str, Any], told: Any, is_error: bool) -> None:
    answer, results, again = [*prompt(USER, assistant(call(**fields)), USER)[1:], None][:3]
    assert again is None
    assert answer["content"] == [
        {"type": "tool_use", "id": "c1", "name": "search", "input": {"q": 1}}
    ]
    result, more = results["content"]
    assert (result.get("content"), result.get("is_error", False)) == (told, is_error)
    assert more == {"type": "text", "text": "Hello"}


BLOCKS: list[dict[str, Any]] = [
    {"type": "text", "text": "three"},
    {"type": "image", "source": {"type": "url", "url": "https://a/a.png"}},
    {"type": "document", "source": {"type": "url", "url": "https://a/a.pdf"}},
    {"type": "search_result", "source": "https://a", "title": "A", "content": []},
    {"type": "tool_reference", "tool_name": "search"},
    {"type": "browser_state", "tabs": []},
]


def test_result__of_blocks_is_told_as_blocks() -> None:
    blank = {"type": "text", "text": " "}
    [_, results] = prompt(assistant(call(output=[*BLOCKS, blank])))
    assert results["content"][0]["content"] == BLOCKS
    for odd in (
        {"type": "image", "data": "AA==", "mimeType": "image/png"},  # as MCP has them
        {"type": "text"},
        {"type": "dream", "source": {}},
        {"text": "x"},
        "x",
    ):
        [_, results] = prompt(assistant(call(output=[*BLOCKS, odd])))
        assert results["content"][0]["content"].startswith('[{"type": "text"')
    [_, results] = prompt(assistant(call(output=[blank])))
    assert "content" not in results["content"][0]


def test_results__come_before_what_the_user_says_and_each_behind_its_calls() -> None:
    parts: list[Part] = [
        *(StepPart(), TextPart("Let me look."), call("c1", output="1"), call("c2", output="2")),
        *(StepPart(), call("c3", output="3"), StepPart(), TextPart("Three.")),
    ]
    told = prompt(USER, assistant(*parts), USER)
    assert [each["role"] for each in told] == ["user", "assistant"] * 3 + ["user"]
    assert [each["tool_use_id"] for each in told[2]["content"]] == ["c1", "c2"]
    assert told[-2] == said("Three.")
    without_steps = prompt(assistant(TextPart("One."), call(output="1"), TextPart("Two.")))
    assert [each["role"] for each in without_steps] == ["assistant", "user", "assistant"]


def test_calls__with_ids_and_names_that_the_api_refuses_get_others() -> None:
    parts = [call("c:1", "a.b", output="1"), call("c2", output="2"), call("c2", output="3")]
    history = assistant(*parts), assistant(call("c2", output="4"), call("call_0", output="5"))
    first, results, second, more = prompt(*history)
    assert first["content"][0]["name"] == "a_b"
    ids = [each["id"] for each in (*first["content"], *second["content"])]
    assert ids == ["call_0", "c2", "call_2", "call_3", "call_4"]
    told = [each["content"] for each in (*results["content"], *more["content"])]
    assert told == ["1", "2", "3", "4", "5"]
    assert prompt(*history) == [first, results, second, more]  # for the cache


@pytest.mark.parametrize(
    ("given", "told"),
    [([1], {"input": [1]}), ("x", {"input": "x"}), (None, {"input": None}), ({}, {})],
)
def test_input__is_always_an_object(given: Any, told: Any) -> None:
    [answer, _] = prompt(assistant(call(input=given)))
    assert answer["content"][0]["input"] == told


@pytest.mark.parametrize("text", ["", "  ", '{"n": 123456789012345678901}', '{"s": "\\ud800"}'])
def test_input__goes_back_as_the_model_wrote_it(text: str) -> None:
    parts = translated(events.tool_use(text), stop="tool_use")
    [answer, _] = prompt(assistant(*parts))
    given = {"n": 123456789012345678901} if "n" in text else {"s": "\ufffd"} if "s" in text else {}
    assert answer["content"][0]["input"] == given


def test_call__that_the_model_did_not_finish_is_left_out() -> None:
    half = ToolCallPart("search", "c1")
    half.text = '{"q": '
    assert prompt(USER, assistant(TextPart("Hm."), half)) == [HELLO, said("Hm.")]


def test_call__of_a_tool_that_takes_text_is_told_as_an_object() -> None:
    translator = ResponsesTranslator("openai")
    for event in openai_events.stream(openai_events.custom_call("print(1)")):
        translator.feed(event)
    [answer, _] = prompt(assistant(*reduced(translator.parts.take())))
    assert answer["content"][0]["input"] == {"input": "print(1)"}


def test_blank_texts__and_messages_without_content_are_left_out() -> None:
    history = [user(" \n"), USER, assistant(TextPart(""), TextPart(" ")), user("", "Go on")]
    texts = [{"type": "text", "text": text} for text in ("Hello", "Go on")]
    assert prompt(*history) == [{"role": "user", "content": texts}]
    parts = translated(
        events.text(" \n"), events.thinking("So."), events.text(""), stop="max_tokens"
    )
    assert prompt(USER, assistant(*parts)) == [HELLO]


def test_roles__alternate_whatever_is_between() -> None:
    history = [USER, USER, assistant(TextPart("One.")), assistant(TextPart("Two.")), USER]
    told = prompt(*history)
    assert [each["role"] for each in told] == ["user", "assistant", "user"]
    assert [each["text"] for each in told[1]["content"]] == ["One.", "Two."]


def test_answer__that_is_gone_on_with_ends_without_a_space() -> None:
    answer = assistant(TextPart("There are \n"), status=MessageStatus.STREAMING)
    assert prompt(USER, answer=answer) == [HELLO, said("There are")]
    assert prompt(USER, assistant(TextPart("There are \n")), USER)[1] == said("There are \n")


def test_system__is_apart_from_the_messages() -> None:
    one, two = (Said(MessageRole.SYSTEM, [TextPart(text)]) for text in ("Be kind.", "Be brief."))
    blank = Said(MessageRole.SYSTEM, [TextPart(" "), FilePart("https://a/a.png", "image/png")])
    history = [one, USER, blank, two]
    assert prompt(*history) == [HELLO]
    assert system_for_anthropic(history) == "Be kind.\n\nBe brief."
    assert system_for_anthropic([USER]) == ""
    answer = assistant(status=MessageStatus.STREAMING)
    assert system_for_anthropic([one, answer, two], answer=answer) == "Be kind."


# As it came

THOUGHT, REDACTED = events.thinking("So."), events.REDACTED
OWN = events.tool_use({"q": "mongo"}, caller={"type": "direct"})


def blocks_of(parts: list[Part], **options: Any) -> list[Any]:
    return [
        block
        for message in prompt(USER, assistant(*parts), **options)
        if message["role"] == "assistant"
        for block in message["content"]
    ]


def test_thoughts__go_back_to_their_provider_only() -> None:
    parts = translated(THOUGHT, REDACTED, *events.SEARCH, events.text("Hi"), OWN)
    assert blocks_of(parts) == [THOUGHT, REDACTED, *events.SEARCH, events.text("Hi"), OWN]
    bare = {name: value for name, value in OWN.items() if name != "caller"}
    assert blocks_of(parts, provider="another") == [events.text("Hi"), bare]
    history = [assistant(*parts)]
    for made in (messages_for_openai(history), messages_for_openai_chat(history)):
        assert not any(word in str(made) for word in ("So.", "secret", "signed", "encrypted"))
    foreign = translated(THOUGHT, events.text("Hi"), provider="another")
    assert blocks_of(foreign) == [events.text("Hi")]


def test_thoughts__of_openai_stay_there() -> None:
    translator = ResponsesTranslator("openai")
    items = openai_events.reasoning("So."), openai_events.message(openai_events.said("Hi"))
    for event in openai_events.stream(*items):
        translator.feed(event)
    assert blocks_of(reduced(translator.parts.take())) == [events.text("Hi")]


@pytest.mark.parametrize("kind", ["text", "reasoning", "tool_call"])
def test_redacted__parts_are_left_out_with_the_thoughts_that_know_them(kind: str) -> None:
    parts = translated(THOUGHT, events.text("One."), OWN)
    assert len(blocks_of(parts)) == 3
    [part] = [part for part in parts if part.kind == kind]
    part.redacted, part.text = True, ""
    left = blocks_of(parts)
    assert len(left) == (2 if kind == "reasoning" else 1)
    assert all(block["type"] != "thinking" for block in left)


def test_step__with_a_text_of_somebody_else_or_a_changed_one_has_no_thoughts() -> None:
    parts = translated(THOUGHT, events.text("One."), events.text("Two."))
    assert len(blocks_of([*parts, TextPart("By hand.")])) == 2
    assert len(blocks_of([*parts, TextPart(" ")])) == 3
    for text in ("One.", "One.Two.Three."):
        parts[-1].text = text
        assert blocks_of(parts) == [events.text(text)]


def test_step__that_was_cut_is_told_as_any_model_would_have_written_it() -> None:
    translator = MessagesTranslator("anthropic")
    for event in events.stream(THOUGHT, *events.SEARCH, events.text("There are"))[:-3]:
        translator.feed(event)
    parts = reduced(translator.parts.take())
    assert blocks_of(parts) == [events.text("There are")]


def test_texts__are_cut_where_they_were_whatever_their_characters() -> None:
    blocks = [events.text("\U0001f600 a"), events.text("\u00e9\U0001f600", events.CITED)]
    assert blocks_of(translated(*blocks)) == blocks


def test_toolset__of_a_call_is_that_of_its_result() -> None:
    parts = translated(events.tool_use({}, toolset_name="browser"), stop="tool_use")
    [_, results] = prompt(assistant(*parts))
    assert results["content"][0]["toolset_name"] == "browser"


def test_large_value__of_a_tool_of_anthropic_is_told_once_it_was_loaded() -> None:
    value = StoredValue(300_000, "h", "v")
    parts = translated(*events.SEARCH, events.text("Hi"))
    found = parts[1].fields["output"]
    parts[1].fields = {**parts[1].fields, "output": value}
    assert blocks_of(parts) == [events.text("Hi")]
    assert blocks_of(parts, values={value: found}) == [*events.SEARCH, events.text("Hi")]
    cited = parts[2].fields["provider"]
    parts[2].fields = {**parts[2].fields, "provider": value}
    assert blocks_of(parts) == [events.text("Hi")]
    parts[1].fields = {**parts[1].fields, "output": found}
    assert blocks_of(parts, values={value: cited}) == [*events.SEARCH, events.text("Hi")]


def test_file__that_is_large_is_told_once_it_was_loaded() -> None:
    value, url = StoredValue(300_000, "h", "v"), "data:image/png;base64,AA=="
    file = FilePart(url, "image/png")
    whole = messages_for_anthropic([user("Look", file)])
    file.fields = {**file.fields, "url": value}
    assert messages_for_anthropic([user("Look", file)]) != whole
    assert messages_for_anthropic([user("Look", file)], values={value: url}) == whole


async def test_large_value__is_loaded_of_what_is_stored(converse: Converse) -> None:
    page = [{**events.FOUND[0], "encrypted_content": "x" * 300_000}]
    blocks = events.SEARCH[0], {**events.SEARCH[1], "content": page}, events.text("Hi")
    translator = MessagesTranslator("anthropic")
    for event in events.stream(*blocks):
        translator.feed(event)
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    async with message.writer() as writer:
        for content in translator.parts.take():
            await writer.write(content)
    history = await conversation.history()
    told: Any = messages_for_anthropic(history, values=await load_values(history))
    assert told == [{"role": "assistant", "content": [*blocks]}]
    assert messages_for_anthropic(history) == [said("Hi")]


def test_parts__that_a_model_does_not_know_are_left_out() -> None:
    nested = TextPart("below")
    nested.parent = 0
    parts: list[Part] = [
        *(StepPart(), DataPart("progress", 1), SourceUrlPart("https://a")),
        *(ReasoningPart("Hm."), nested, TextPart("Yes.")),
    ]
    assert blocks_of(parts) == [events.text("Yes.")]
    shown = FilePart("https://a/a.png", "image/png")
    assert len(blocks_of([*translated(THOUGHT, events.text("Yes.")), DataPart("x", 1), shown])) == 2


def test_history__leaves_out_what_failed_unless_a_tool_ran() -> None:
    history = [
        *(user("one"), assistant(TextPart("broken"), status=MessageStatus.FAILED)),
        assistant(TextPart("I sent it."), call(started=True), status=MessageStatus.FAILED),
        Said(MessageRole.TOOL_CALL, [TextPart("search()")]),
        assistant(TextPart("elsewhere"), status=MessageStatus.STREAMING),
    ]
    told = prompt(*history)
    assert [each["role"] for each in told] == ["user", "assistant", "user"]
    assert told[1]["content"][0]["text"] == "I sent it."


# Files


@pytest.mark.parametrize(
    ("url", "media_type", "block"),
    [
        (
            "https://a/cat.png",
            "image/png",
            {"type": "image", "source": {"type": "url", "url": "https://a/cat.png"}},
        ),
        (
            "data:image/jpg;base64,AA%3D%3D",
            "image/jpg",
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/jpeg", "data": "AA=="},
            },
        ),
        (
            "https://a/a.pdf",
            "application/pdf",
            {"type": "document", "source": {"type": "url", "url": "https://a/a.pdf"}},
        ),
        (
            "data:application/pdf,%25PDF",
            "application/pdf",
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
            },
        ),
        (
            "data:text/markdown;base64,IyBUd28=",
            "text/markdown; charset=utf-8",
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "# Two"},
            },
        ),
        (
            "data:text/csv,a%20b",
            "text/csv",
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "a b"},
            },
        ),
        (
            "https://a/a.pdf",
            "Application/PDF; version=1.7",
            {"type": "document", "source": {"type": "url", "url": "https://a/a.pdf"}},
        ),
        ("data:text/plain;base64,A", "text/plain", None),
        ("data:text/plain,", "text/plain", None),
        ("data:image/png;base64,", "image/png", None),
        ("https://a/a.svg", "image/svg+xml", None),
        ("https://a/a.txt", "text/plain", None),
        ("data:application/zip;base64,AA==", "application/zip", None),
        ("gridfs://1", "image/png", None),
    ],
)
def test_file__of_a_user_is_a_block_if_the_api_takes_it(
    url: str, media_type: str, block: Any
) -> None:
    told = prompt(user("Look", FilePart(url, media_type)))
    wanted = [events.text("Look"), block] if block else "Look"
    assert told == [{"role": "user", "content": wanted}]


def test_file__by_an_id_a_function_and_with_a_title() -> None:
    known = {"name": "anthropic", "data": {"file_id": "file_1"}}
    uploaded = FilePart("gridfs://1", "text/csv", name="a.csv", provider=known)
    unknown = FilePart("gridfs://2", "image/png", name="b.png")
    history = [user(uploaded, unknown)]
    by_id = {"type": "document", "source": {"type": "file", "file_id": "file_1"}, "title": "a.csv"}
    assert prompt(*history) == [{"role": "user", "content": [by_id]}]
    assert prompt(*history, provider="another") == []
    told = prompt(*history, file_url=lambda file: f"https://f/{file.url[-1]}")
    assert told[0]["content"][1] == {
        "type": "image",
        "source": {"type": "url", "url": "https://f/2"},
    }


def test_room__needs_no_framework_and_its_extras_no_driver() -> None:
    code = (
        "import sys; sys.modules['anthropic'] = None; sys.modules['httpx2'] = None; "
        "import converse_mongo.integrations.anthropic"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    project = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    assert extras["anthropic"] == ["anthropic>=1,<3"]
