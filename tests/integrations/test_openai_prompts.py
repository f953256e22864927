"""Prompts for OpenAI: what of a conversation a model is told, and in which form."""

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
    Message,
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
from converse_mongo.integrations.openai import (
    load_values,
    messages_for_openai,
    messages_for_openai_chat,
)
from converse_mongo.integrations.openai.responses import ResponsesTranslator
from converse_mongo.web import prompt_messages
from tests.integrations import openai_events as events
from tests.integrations.playing import Said, assistant, reduced, user


def call(call_id: str = "c1", **fields: Any) -> ToolCallPart:
    part = ToolCallPart("search", call_id, input={"q": 1}, **fields)
    part.ended = True
    return part


def translated(*items: events.Item, provider: str = "openai", **more: Any) -> list[Part]:
    translator = ResponsesTranslator(provider)
    for event in events.stream(*items, **more):
        translator.feed(event)
    return reduced(translator.parts.take())


def results(items: Any) -> list[str]:
    return [each["output"] for each in items if each.get("type") == "function_call_output"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"output": "three"}, "three"),
        ({"output": {"hits": 3}}, '{"hits": 3}'),
        ({"output": None}, "null"),
        ({"error": "It is down."}, "It is down."),
        ({"approval": Approval("a", False)._asdict()}, "denied"),
        ({"approval": Approval("a", False, "no")._asdict()}, "denied: no"),
        ({"approval": {"id": "a"}}, "interrupted"),
        ({"started": True}, "interrupted"),
        ({"output": "half", "preliminary": True}, "interrupted"),
        ({"output": StoredValue(300_000, "h", "v")}, "(300000 bytes that are not shown here)"),
        ({"executor": "client"}, "interrupted"),
        ({}, "interrupted"),
    ],
)
def test_call__always_has_a_result(fields: dict[str, Any], told: str) -> None:
    history = [assistant(call(**fields))]
    items: Any = messages_for_openai(history)
    assert [each["type"] for each in items] == ["function_call", "function_call_output"]
    assert items[0]["arguments"] == '{"q": 1}'
    assert items[1] == {"type": "function_call_output", "call_id": "c1", "output": told}
    said: Any = messages_for_openai_chat(history)
    assert said[0]["tool_calls"][0]["id"] == "c1"
    assert said[1] == {"role": "tool", "tool_call_id": "c1", "content": told}


def test_call__that_the_model_did_not_finish_is_left_out() -> None:
    half = ToolCallPart("search", "c1")
    half.text = '{"q": '
    assert messages_for_openai([assistant(TextPart("Hm."), half)]) == [
        {"role": "assistant", "content": "Hm."}
    ]


def test_call__with_invalid_input_is_told_as_json() -> None:
    parts = translated(events.function_call('{"q": '))
    for provider in ("openai", "another"):
        items: Any = messages_for_openai([assistant(*parts)], provider=provider)
        assert items[-1]["output"] == "The input is not valid JSON."
    assert items[0]["arguments"] == '{"invalid_json": "{\\"q\\": "}'
    parts = translated(events.function_call('{"q": NaN}'))
    items = messages_for_openai([assistant(*parts)], provider="another")
    assert items[0]["arguments"] == '{"invalid_json": "{\\"q\\": NaN}"}'


def test_call__of_a_tool_that_takes_text_is_told_to_others_as_json() -> None:
    items: Any = messages_for_openai_chat([assistant(*translated(events.custom_call("print(1)")))])
    assert items[0]["tool_calls"][0]["function"]["arguments"] == '{"input": "print(1)"}'


def test_step__with_a_text_of_somebody_else_has_no_ids() -> None:
    parts = [*translated(events.reasoning("So."), CALL_ITEM), TextPart("By hand.")]
    assert [each.get("type") for each in told(parts)] == [
        *("function_call", "function_call_output", None)
    ]


def test_step__that_was_cut_behind_its_items_has_no_ids() -> None:
    translator = ResponsesTranslator("openai")
    for event in events.stream(events.reasoning("So."), events.message(events.said("Hi")))[:-1]:
        translator.feed(event)
    assert told(reduced(translator.parts.take())) == [{"role": "assistant", "content": "Hi"}]


def test_large_value__is_told_once_it_was_loaded() -> None:
    value = StoredValue(300_000, "h", "v")
    parts = translated(events.FILE_SEARCH)
    found = parts[1].fields["provider"]
    parts[1].fields = {**parts[1].fields, "provider": value}
    assert told(parts) == []
    assert told(parts, values={value: found}) == [events.FILE_SEARCH]
    items = messages_for_openai([assistant(call(output=value))], values={value: {"big": 1}})
    assert results(items) == ['{"big": 1}']


def test_parts__that_a_model_does_not_know_are_left_out() -> None:
    nested = TextPart("below")
    nested.parent = 0
    parts: list[Part] = [
        *(StepPart(), DataPart("progress", 1), SourceUrlPart("https://a")),
        *(ReasoningPart("Hm."), nested, TextPart("Yes.")),
    ]
    assert messages_for_openai([assistant(*parts)]) == [{"role": "assistant", "content": "Yes."}]
    assert messages_for_openai_chat([assistant(*parts)]) == [
        {"role": "assistant", "content": "Yes."}
    ]


def test_redacted__parts_are_left_out_with_the_reasoning_that_knows_them() -> None:
    parts = translated(events.reasoning("So."), events.message(events.said("One.")), CALL_ITEM)
    assert [each["type"] for each in told(parts)][:2] == ["reasoning", "message"]
    [text] = [part for part in parts if part.kind == "text"]
    text.redacted, text.text = True, ""
    assert [each["type"] for each in told(parts)] == ["function_call", "function_call_output"]


CALL_ITEM = events.function_call("{}")


def told(parts: list[Part], **options: Any) -> list[Any]:
    return list(messages_for_openai([assistant(*parts)], **options))


def test_provider__gets_its_own_data_only() -> None:
    parts = translated(
        events.reasoning("So."), events.WEB_SEARCH, events.message(events.said("Hi"))
    )
    assert [each["type"] for each in told(parts)] == ["reasoning", "web_search_call", "message"]
    assert told(parts, provider="vllm") == [{"role": "assistant", "content": "Hi"}]
    assert "secret" not in str(messages_for_openai_chat([assistant(*parts)]))


def test_reasoning__that_is_not_encrypted_stays_with_the_ids_here() -> None:
    thought = events.reasoning("So.", encrypted=None)
    parts = translated(thought, CALL_ITEM, events.message(events.said("Hi")))
    items = told(parts)
    assert [each.get("type") for each in items] == [
        *("function_call", "function_call_output", None)
    ]
    assert not any("id" in each for each in items)


def test_step__that_was_cut_is_told_as_any_model_would_have_written_it() -> None:
    translator = ResponsesTranslator("openai")
    for event in events.stream(events.reasoning("So."), events.message(events.said("There are")))[
        :-4
    ]:
        translator.feed(event)
    parts = reduced(translator.parts.take())
    items = messages_for_openai([assistant(*parts, status=MessageStatus.CANCELLED)])
    assert items == [{"role": "assistant", "content": "There are"}]


def test_phase__of_a_text_stays() -> None:
    parts = translated({**events.message(events.said("Hm.")), "phase": "commentary"})
    assert told(parts)[0]["phase"] == "commentary"
    parts[0].fields = {**parts[0].fields, "provider": {"name": "openai", "data": {}}}
    assert told(parts) == [{"role": "assistant", "content": "Hm.", "phase": "commentary"}]


@pytest.mark.parametrize(
    ("item", "output", "told_output"),
    [
        (
            events.COMPUTER,
            {"type": "computer_screenshot", "image_url": "data:x"},
            {
                "type": "computer_call_output",
                "call_id": "call_cu",
                "output": {"type": "computer_screenshot", "image_url": "data:x"},
                "acknowledged_safety_checks": events.COMPUTER["pending_safety_checks"],
            },
        ),
        (
            events.LOCAL_SHELL,
            "a.txt",
            {"type": "local_shell_call_output", "id": "call_ls", "output": "a.txt"},
        ),
        (
            events.PATCH,
            "done",
            {
                "type": "apply_patch_call_output",
                "call_id": "call_ap",
                "status": "completed",
                "output": "done",
            },
        ),
        (
            {**events.SHELL, "environment": {"type": "local"}},
            "a.txt",
            {
                "type": "shell_call_output",
                "call_id": "call_sh",
                "output": [
                    {"stdout": "a.txt", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}
                ],
            },
        ),
    ],
)
def test_output__of_a_tool_that_the_application_runs(
    item: events.Item, output: Any, told_output: Any
) -> None:
    [step, made] = translated(item)
    parts = [step, ToolCallPart.from_record(made.to_record(), ended=True)]
    parts[1].fields = {**made.fields, "output": output}
    assert told(parts) == [item, told_output]
    items = told([step, made])
    assert "interrupted" in str(items) or items == []  # a screenshot cannot be made up


@pytest.mark.parametrize(
    ("approval", "answer"),
    [
        ({"approved": True}, {"approve": True}),
        ({"approved": False, "reason": "no"}, {"approve": False, "reason": "no"}),
        ({}, {"approve": False, "reason": "interrupted"}),
    ],
)
def test_approval__of_an_mcp_call_is_answered(approval: Any, answer: Any) -> None:
    [step, made] = translated(events.MCP_ASKS)
    made.fields = {**made.fields, "approval": {"id": "mcpr_1", **approval}}
    assert told([step, made]) == [
        events.MCP_ASKS,
        {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", **answer},
    ]


def test_image__goes_back_with_its_bytes_if_they_are_here() -> None:
    parts = translated(events.IMAGE)
    assert told(parts) == [events.IMAGE]
    value = StoredValue(2_000_000, "h", "v")
    parts[1].fields = {**parts[1].fields, "output": value}
    assert told(parts) == []
    assert told(parts, values={value: {"result": "aGVsbG8="}}) == [events.IMAGE]


def test_files__of_users_by_reference() -> None:
    image = FilePart("https://a/cat.png", "image/png")
    document = FilePart("https://a/a.pdf", "application/pdf", name="a.pdf")
    inline = FilePart("data:application/pdf;base64,AA==", "application/pdf", name="b.pdf")
    known = {"name": "openai", "data": {"file_id": "file-1"}}
    uploaded = FilePart("gridfs://1", "application/pdf", provider=known)
    unknown = FilePart("gridfs://2", "image/png")
    history = [user("Look", image, document, inline, uploaded, unknown)]
    items: Any = messages_for_openai(history)
    assert items[0]["content"] == [
        {"type": "input_text", "text": "Look"},
        {"type": "input_image", "detail": "auto", "image_url": "https://a/cat.png"},
        {"type": "input_file", "file_url": "https://a/a.pdf"},
        {"type": "input_file", "file_data": inline.url, "filename": "b.pdf"},
        {"type": "input_file", "file_id": "file-1"},
    ]
    chat: Any = messages_for_openai_chat(history)
    assert chat[0]["content"] == [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": "https://a/cat.png"}},
        {"type": "file", "file": {"file_data": inline.url, "filename": "b.pdf"}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ]
    resolved: Any = messages_for_openai(
        [user(unknown)], file_url=lambda file: f"https://f/{file.url}"
    )
    assert resolved[0]["content"][0]["image_url"] == "https://f/gridfs://2"
    assert messages_for_openai([user(unknown)]) == []


def test_file__that_is_large_is_told_once_it_was_loaded() -> None:
    value, url = StoredValue(300_000, "h", "v"), "data:application/pdf;base64,AA=="
    file = FilePart(url, "application/pdf", name="b.pdf")
    file.fields = {**file.fields, "url": value}
    for tell in (messages_for_openai, messages_for_openai_chat):
        assert tell([user(file)]) == []
        told: Any = tell([user(file)], values={value: url}, file_url=lambda _: "https://f/1")
        assert url in str(told[0]["content"])


# Which messages


def texts(items: Any) -> list[str]:
    return [each["content"] for each in items if "content" in each]


def failed(*parts: Part) -> Said:
    return assistant(*parts, status=MessageStatus.FAILED)


def test_history__leaves_out_what_failed_unless_a_tool_ran() -> None:
    history = [
        *(user("one"), failed(TextPart("broken"))),
        *(user("two"), failed(TextPart("I sent it."), call(started=True))),
        *(user("three"), assistant(TextPart("half a "), status=MessageStatus.CANCELLED)),
        Said(MessageRole.TOOL_CALL, [TextPart("search()")]),
        assistant(TextPart(" \n")),
    ]
    items = messages_for_openai(history)
    assert texts(items) == ["one", "two", "I sent it.", "three", "half a "]
    assert results(items) == ["interrupted"]


def test_history__leaves_out_what_was_replaced() -> None:
    first = assistant(TextPart("bad"))
    second = failed(TextPart("worse"))
    second.metadata = {"replaces": str(first.id)}
    answer = assistant(status=MessageStatus.STREAMING, metadata={"replaces": str(second.id)})
    assert texts(messages_for_openai([user("one"), first, second], answer=answer)) == ["one"]


def test_answer__takes_the_place_of_its_copy_and_nothing_is_behind_it() -> None:
    old = assistant(status=MessageStatus.STREAMING)
    answer = assistant(TextPart("I have"), status=MessageStatus.STREAMING)
    answer.id = old.id
    other = assistant(TextPart("elsewhere"), status=MessageStatus.STREAMING)
    history = [user("one"), other, old, user("later")]
    assert texts(messages_for_openai(history, answer=answer)) == ["one", "I have"]
    assert texts(messages_for_openai(history[:1], answer=answer)) == ["one", "I have"]
    assert texts(messages_for_openai(history)) == ["one", "later"]


def test_chat__has_a_message_for_each_call_of_the_model() -> None:
    parts: list[Part] = [
        *(StepPart(), TextPart("Let me look."), call("c1", output="1"), call("c2", output="2")),
        *(StepPart(), call("c3", output="3"), StepPart(), TextPart("Three.")),
    ]
    said: Any = messages_for_openai_chat([assistant(*parts)])
    assert [each["role"] for each in said] == [
        *("assistant", "tool", "tool", "assistant", "tool", "assistant")
    ]
    assert [each["id"] for each in said[0]["tool_calls"]] == ["c1", "c2"]


def test_chat__has_a_message_behind_the_results_of_calls_without_steps() -> None:
    parts: list[Part] = [TextPart("Let me look."), call("c1", output="1"), TextPart("One.")]
    said: Any = messages_for_openai_chat([assistant(*parts)])
    assert [(each["role"], each["content"]) for each in said] == [
        *(("assistant", "Let me look."), ("tool", "1"), ("assistant", "One."))
    ]
    items: Any = messages_for_openai([assistant(*parts)])
    assert [each.get("type") for each in items] == [
        *(None, "function_call", "function_call_output", None)
    ]


async def test_prompt_messages__keeps_those_with_parts_alone_if_asked(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    await conversation.create_user_message("", parts=[FilePart("https://a/a.png", "image/png")])
    await conversation.create_assistant_message("", parts=[call(output={"big": "x" * 300_000})])
    message: Message = await conversation.start_streaming_assistant()
    assert await prompt_messages(conversation, message) == []
    listed = await prompt_messages(conversation, message, parts=True)
    assert [str(each.role) for each in listed] == ["user", "assistant"]
    items: Any = messages_for_openai(listed, answer=message)
    assert "bytes that are not shown" in items[-1]["output"]
    items = messages_for_openai(listed, answer=message, values=await load_values(listed))
    assert len(items[-1]["output"]) > 300_000
    assert await load_values(listed, max_bytes=1000) == {}


def test_room__needs_no_framework_and_its_extras_no_driver() -> None:
    code = (
        "import sys; sys.modules['openai'] = None; sys.modules['httpx2'] = None; "
        "import converse_mongo.integrations.openai"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    project = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    assert extras["openai"] == ["openai>=2,<4"]
