"""Conversations as the messages of an agent."""

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import (
    AudioUrl,
    BinaryImage,
    DocumentUrl,
    ImageUrl,
    ModelMessage,
    ModelResponse,
    UploadedFile,
    UserPromptPart,
    repair_messages,
)

from converse_mongo import (
    Converse,
    FilePart,
    MessageRole,
    MessageStatus,
    Part,
    ReasoningPart,
    SourceUrlPart,
    StepPart,
    TextPart,
    ToolCallPart,
)
from converse_mongo.integrations.pydantic_ai import load_values, messages_for_pydantic_ai
from tests.integrations.playing import Said, assistant, user
from tests.integrations.pydantic_ai_agents import dumped, results, told


def data(key: str, **more: Any) -> dict[str, Any]:
    return {"name": "pydantic_ai", "data": {"key": key, **more}}


def step(number: int = 0, **more: Any) -> StepPart:
    return StepPart(provider=data(f"step/{number}", done=True, **more))


def call(**fields: Any) -> ToolCallPart:
    fields = {"input": {"q": "x"}, **fields}
    return ToolCallPart("search", "call_1", **fields)


def redacted(part: Part) -> Part:
    part.redacted = True
    return part


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"output": {"hits": 3}}, ("success", {"hits": 3})),
        ({"output": None}, ("success", None)),
        ({"error": "no network"}, ("failed", "no network")),
        (
            {"approval": {"id": "a", "approved": False, "reason": "no"}},
            ("denied", "no"),
        ),
        ({"approval": {"id": "a", "approved": False}}, ("denied", "The tool call was denied.")),
        (
            {"started": True},
            ("interrupted", "The tool call was interrupted before a result was produced."),
        ),
    ],
)
def test_call__always_has_a_result(fields: dict[str, Any], expected: Any) -> None:
    for parts in ([call(**fields)], [step(), call(**fields, provider=data("0/0"))]):
        messages = messages_for_pydantic_ai([user("Hi"), assistant(*parts)])
        assert results(messages) == {"call_1": expected}
        assert repair_messages(messages) == messages


def test_answer__of_other_code_is_told_as_of_any_model() -> None:
    other = {"name": "openai", "data": {"key": "step", "done": True}}
    messages = messages_for_pydantic_ai(
        [
            user("Hi"),
            assistant(
                StepPart(provider=other),
                ReasoningPart("Hm."),
                TextPart("I look.", provider={"name": "openai", "data": {"key": "m/0"}}),
                call(output="three"),
                TextPart("Three."),
                SourceUrlPart("https://a"),
                ToolCallPart("web_search", "w1", executor="provider", input={}, output={}),
            ),
        ]
    )
    assert told(messages) == [
        ("user-prompt", "Hi"),
        ("text", "I look."),
        ("tool-call", '{"q": "x"}'),
        ("tool-return", "three"),
        ("text", "Three."),
    ]


def response_of(messages: list[ModelMessage]) -> ModelResponse:
    [found] = [message for message in messages if isinstance(message, ModelResponse)]
    return found


THOUGHT = {"signature": "s", "id": "t1", "provider_name": "p"}


def whole() -> list[Part]:
    return [
        step(response={"provider_name": "p", "provider_details": {"a": 1}}),
        ReasoningPart("Hm.", provider=data("0/0", item=THOUGHT)),
        TextPart("Hi.", provider=data("0/1", item={"id": "m1", "provider_name": "p"})),
    ]


def test_response__that_is_whole_goes_back_as_it_came() -> None:
    response = response_of(messages_for_pydantic_ai([assistant(*whole())]))
    assert [getattr(part, "id", None) for part in response.parts] == ["t1", "m1"]
    assert response.provider_details == {"a": 1}


@pytest.mark.parametrize("harm", ["redacted", "cut", "other text"])
def test_response__that_is_not_whole_has_its_text_alone(harm: str) -> None:
    parts = whole()
    if harm == "redacted":
        redacted(parts[1])
    elif harm == "cut":
        parts[0] = StepPart(provider=data("step/0"))
    else:
        parts.append(TextPart("Hi."))
    response = response_of(messages_for_pydantic_ai([assistant(*parts)]))
    assert {part.part_kind for part in response.parts} == {"text"}
    assert {getattr(part, "id", None) for part in response.parts} == {None}
    assert response.provider_name is None


def test_files__of_users() -> None:
    uploaded = {"name": "pydantic_ai", "data": {"file_id": "f1", "provider_name": "openai"}}
    said = user(
        "Look:",
        FilePart("https://a/a.png", "image/png"),
        FilePart("https://a/a.mp3", "audio/mpeg"),
        FilePart("https://a/a", "application/pdf"),
        FilePart("data:image/png;base64,iVBORw0K", "image/png"),
        FilePart("data:text/plain,a%20b", "text/plain"),
        FilePart("gridfs://1", "image/png", provider=uploaded),
        FilePart("gridfs://2", "image/png"),
    )
    [request] = messages_for_pydantic_ai([said])
    [part] = request.parts
    assert isinstance(part, UserPromptPart)
    kinds = [type(each) for each in part.content if not isinstance(each, str)]
    assert kinds[:4] == [ImageUrl, AudioUrl, DocumentUrl, BinaryImage]
    assert (part.content[0], getattr(part.content[5], "data", None)) == ("Look:", b"a b")
    assert kinds[5:] == [UploadedFile]
    [request] = messages_for_pydantic_ai([said], file_url=lambda file: f"https://f/{file.url[-1]}")
    assert isinstance(request.parts[0], UserPromptPart)
    assert isinstance(request.parts[0].content[-1], ImageUrl)


def test_system__messages_are_told() -> None:
    system = Said(MessageRole.SYSTEM, [TextPart("You talk to Anna.")])
    messages = messages_for_pydantic_ai([system, user("Hi")])
    assert told(messages) == [("system-prompt", "You talk to Anna."), ("user-prompt", "Hi")]


def test_answer__takes_the_place_of_its_copy_and_nothing_is_behind_it() -> None:
    answer = assistant(*whole(), status=MessageStatus.STREAMING)
    copy = assistant(TextPart("H"), id=answer.id, status=MessageStatus.STREAMING)
    messages = messages_for_pydantic_ai([user("Hi"), copy, user("And?")], answer=answer)
    assert [kind for kind, _ in told(messages)] == ["user-prompt", "thinking", "text"]


async def test_messages__of_a_conversation_are_the_same_each_time(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    await conversation.add_user_message("Hi")
    await conversation.create_assistant_message("Hello.", parts=[call()])
    history = await conversation.history()
    first = dumped(messages_for_pydantic_ai(history))
    again = messages_for_pydantic_ai(await conversation.history())
    assert dumped(again) == first
    [part] = again[0].parts
    assert isinstance(part, UserPromptPart)
    assert part.timestamp == history.messages[0].created_at.replace(tzinfo=UTC)
    assert part.timestamp < datetime.now(UTC)


async def test_large_values__are_told_once_they_were_loaded(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    image = "data:image/png;base64," + "iVBORw0K" * 50_000
    await conversation.create_user_message("Look", parts=[FilePart(image, "image/png")])
    await conversation.create_assistant_message("", parts=[call(output={"big": "x" * 300_000})])
    history = await conversation.history()
    messages = messages_for_pydantic_ai(history)
    assert told(messages)[0] == ("user-prompt", "Look")
    assert "bytes that are not shown" in str(results(messages))
    messages = messages_for_pydantic_ai(history, values=await load_values(history))
    assert len(str(results(messages))) > 300_000
    [prompt] = messages[0].parts
    assert isinstance(prompt, UserPromptPart)
    assert isinstance(prompt.content[1], BinaryImage)


def test_extra__names_the_framework_alone() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    assert extras["pydantic-ai"] == ["pydantic-ai-slim>=2.62,<3"]
