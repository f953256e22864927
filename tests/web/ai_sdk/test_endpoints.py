"""The endpoints of the AI SDK: the parts that useChat reads, and what it asks for."""

import asyncio
from typing import Any

import pytest

from converse_mongo import Conversation, MessageStatus
from tests.web.conftest import MakeSite, Site, read_all, read_events
from tests.web.helpers import wait_for_end


def question(text: str, name: str = "m1") -> dict[str, Any]:
    return {"id": name, "role": "user", "parts": [{"type": "text", "text": text}]}


async def ask(site: Site, conversation: Conversation, body: dict[str, Any]) -> list[Any]:
    request = {"id": str(conversation.id), **body}
    async with site.http.stream("POST", "/chat", json=request) as stream:
        assert stream.status_code == 200, await stream.aread()
        assert stream.headers["x-vercel-ai-ui-message-stream"] == "v1"
        assert stream.headers["cache-control"] == "no-store, no-transform"
        sent = await read_all(stream)
    assert {(each.event, each.id) for each in sent} == {("message", None)}
    assert sent[-1].data == "[DONE]"
    return [each.data for each in sent[:-1]]


def text_of(parts: list[Any]) -> str:
    return "".join(part["delta"] for part in parts if part["type"] == "text-delta")


def shape(parts: list[Any]) -> list[str]:
    """The types of the parts, runs of deltas as one."""
    types = [part["type"] for part in parts]
    return [each for number, each in enumerate(types) if number == 0 or types[number - 1] != each]


WHOLE = ["start", "text-start", "text-delta", "text-end"]


async def test_chat__streams_the_answer_as_parts(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("Use ", "open()", None)
    parts = await ask(site, conversation, {"messages": [question("How?")]})
    assert shape(parts) == [*WHOLE, "finish"]
    assert text_of(parts) == "Use open()"
    question_stored, answer = await conversation.messages()
    assert (question_stored.content, answer.content) == ("How?", "Use open()")
    assert parts[0] == {"type": "start", "messageId": str(answer.id)}
    assert parts[-1]["finishReason"] == "stop"
    assert parts[-1]["messageMetadata"]["finish_reason"] == "stop"


async def test_chat__repeated_is_answered_once(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("Once", None)
    first = await ask(site, conversation, {"messages": [question("Hi", "same")]})
    again = await ask(site, conversation, {"messages": [question("Hi", "same")]})
    assert text_of(first) == text_of(again) == "Once"
    assert len(site.model.asked) == 1


async def test_chat__failure_is_an_error_part(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("part", RuntimeError("secret"))
    parts = await ask(site, conversation, {"messages": [question("Hi")]})
    assert shape(parts) in ([*WHOLE, "error"], [*WHOLE, "message-metadata", "error"])
    assert parts[-1] == {"type": "error", "errorText": "The answer could not be completed."}


async def test_chat__stop_closes_the_text_first(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("part")
    request = {"id": str(conversation.id), "messages": [question("Hi")]}
    parts = []
    async with site.http.stream("POST", "/chat", json=request) as stream:
        async for sent in read_events(stream):
            parts.append(sent.data)
            if sent.data != "[DONE]" and sent.data["type"] == "text-delta":
                stopped = await site.http.post(f"/chat/{conversation.id}/stop", json={})
                assert len(stopped.json()["stopped"]) == 1
    assert [part["type"] for part in parts[:4]] == WHOLE
    assert parts[-2]["type"] == "abort"
    assert parts[-1] == "[DONE]"
    assert (await conversation.messages())[-1].status is MessageStatus.CANCELLED


async def test_resume__replays_from_the_start_and_goes_on(site: Site) -> None:
    conversation = await site.conversation()
    path = f"/chat/{conversation.id}/stream"
    nothing = await site.http.get(path)
    assert (nothing.status_code, nothing.content) == (204, b"")

    site.model.say("before ")
    request = {"id": str(conversation.id), "messages": [question("Hi")]}
    async with site.http.stream("POST", "/chat", json=request) as stream:
        start = (await anext(read_events(stream))).data
    async with site.http.stream("GET", path) as first, site.http.stream("GET", path) as second:
        site.model.say("after", None)
        replayed = [[each.data for each in await read_all(stream)] for stream in (first, second)]
    assert replayed[0][0]["messageId"] == replayed[1][0]["messageId"] == start["messageId"]
    assert text_of(replayed[0][:-1]) == text_of(replayed[1][:-1]) == "before after"
    assert (await site.http.get(path)).status_code == 204


async def test_history__leaves_out_what_the_resumed_stream_will_say(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("One", None)
    await ask(site, conversation, {"messages": [question("First")]})
    site.model.say("Two")
    request = {"id": str(conversation.id), "messages": [question("Second", "m2")]}
    async with site.http.stream("POST", "/chat", json=request) as stream:
        await anext(read_events(stream))
    listed = (await site.http.get(f"/chat/{conversation.id}")).json()
    assert [(each["role"], each["parts"][0]["text"]) for each in listed] == [
        ("user", "First"),
        ("assistant", "One"),
        ("user", "Second"),
    ]
    assert listed[1]["metadata"]["finish_reason"] == "stop"


async def test_regenerate__replaces_the_answer(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("bad", RuntimeError("no"))
    first = await ask(site, conversation, {"messages": [question("Hi")]})
    history = (await site.http.get(f"/chat/{conversation.id}")).json()
    assert history[-1]["metadata"]["status"] == "failed"
    site.model.say("good", None)
    body = {"trigger": "regenerate-message", "messageId": first[0]["messageId"], "messages": []}
    assert text_of(await ask(site, conversation, body)) == "good"
    site.model.say("better", None)
    assert text_of(await ask(site, conversation, {"trigger": "regenerate-message"})) == "better"
    history = (await site.http.get(f"/chat/{conversation.id}")).json()
    assert [each["parts"][0]["text"] for each in history] == ["Hi", "better"]


async def test_regenerate__of_an_answer_that_is_being_written_stops_it(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("slow")
    request = {"id": str(conversation.id), "messages": [question("Hi")]}
    async with site.http.stream("POST", "/chat", json=request) as stream:
        start = (await anext(read_events(stream))).data
    async for _ in site.converse.watch_message(start["messageId"]):
        break
    body = {"trigger": "regenerate-message", "messageId": start["messageId"]}
    site.model.was_asked.clear()
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(ask(site, conversation, body))
        await site.model.was_asked.wait()
        await wait_for_end(site, start["messageId"])  # it has let go of the model
        site.model.say("quick", None)
    assert text_of(asking.result()) == "quick"
    old = await wait_for_end(site, start["messageId"])
    assert old.status is MessageStatus.CANCELLED


async def test_regenerate__of_a_question_that_was_not_answered(site: Site) -> None:
    conversation = await site.conversation()
    await conversation.create_user_message("Anybody?")
    site.model.say("Yes", None)
    body = {"trigger": "regenerate-message", "messages": [question("Anybody?")]}
    assert text_of(await ask(site, conversation, body)) == "Yes"


async def test_chat__that_nobody_answers_is_told_to_the_developer_in_the_log(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    site = await make_site(generations=None)
    conversation = await site.conversation()
    body = {"id": str(conversation.id), "messages": [question("Hi")]}
    answer = await site.http.post("/chat", json=body)
    assert answer.status_code == 501
    assert answer.json()["error"] == {
        "code": "not_answered",
        "message": "Answers are not available here.",
    }
    assert "Pass generations=" in caplog.text
    assert await conversation.messages() == []


async def test_chat__what_makes_no_sense_is_explained(site: Site) -> None:
    conversation = await site.conversation()
    good = [question("Hi")]
    for body, status, word in (
        ({"messages": []}, 400, "messages"),
        ({"messages": "x"}, 400, "messages"),
        ({"messages": [{"role": "assistant", "parts": []}]}, 400, "messages"),
        ({"messages": [{"role": "user", "parts": [{"type": "file"}]}]}, 400, "messages"),
        ({"messages": [{"role": "user", "parts": "x"}]}, 400, "messages"),
        ({"messages": good, "trigger": "explode"}, 400, "trigger"),
        ({"messages": good, "messageId": "m1"}, 400, "sent"),
        ({"messages": [question("x" * 300_000)]}, 413, "The message is larger"),
        ({"messages": [question("Hi", "n" * 300)]}, 413, "id"),
        ({"trigger": "regenerate-message"}, 409, "said"),
        ({"id": "", "messages": good}, 400, "id"),
        ({"id": ["x"], "messages": good}, 400, "id"),
    ):
        answer = await site.http.post("/chat", json={"id": str(conversation.id), **body})
        assert answer.status_code == status, body
        assert word in answer.json()["error"]["message"]
    assert await conversation.messages() == []
