"""The endpoints of the AI SDK: the parts that useChat reads, and what it asks for."""

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from beanie import Insert, before_event

from converse_mongo import Conversation, Message, MessageStatus, ReasoningPart, ToolCallPart
from converse_mongo.web import chat, without_replaced
from tests.conftest import Facade
from tests.web.ai_sdk.test_ui_stream import EVERY_PART, RESETS, REWRITTEN, Live
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
    assert shape(parts) == [*WHOLE, "message-metadata", "error"]
    words = "The answer could not be completed."
    assert parts[-2]["messageMetadata"] == {"status": "failed", "error": words, "chunks": 1}
    page = (await site.http.get(f"/chat/{conversation.id}")).json()
    assert page[-1]["metadata"] == parts[-2]["messageMetadata"]
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
    assert parts[-3]["messageMetadata"]["status"] == "cancelled"
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
        ({"messages": [{"role": "user", "parts": [{"type": "file"}]}]}, 400, "mediaType"),
        ({"messages": [{"role": "user", "parts": "x"}]}, 400, "messages"),
        ({"messages": good, "trigger": "explode"}, 400, "trigger"),
        ({"messages": [question("x" * 300_000)]}, 413, "The message is larger"),
        ({"messages": [question("Hi", "n" * 300)]}, 413, "id"),
        ({"trigger": "regenerate-message"}, 409, "said"),
        ({"id": "", "messages": good}, 400, "id"),
        ({"id": ["x"], "messages": good}, 400, "id"),
    ):
        answer = await site.http.post("/chat", json={"id": str(conversation.id), **body})
        assert answer.status_code == status, body
        error = answer.json()["error"]
        assert word in error.get("detail", error["message"])
    assert await conversation.messages() == []


async def test_chat__of_a_stored_question_only_answers_it(site: Site) -> None:
    conversation = await site.conversation()
    stored = await conversation.create_user_message("Hi")
    site.model.say("Hello", None)
    name = str(stored.id)
    for more in ({}, {}, {"messageId": name}):
        body = {"messages": [question("Hi", name)], **more}
        assert text_of(await ask(site, conversation, body)) == "Hello"
    site.model.say("Indeed", None)
    assert text_of(await ask(site, conversation, {"messages": [question("Ho", "m2")]})) == "Indeed"
    # The same again, long after; but not as an edit, which would drop what came since.
    again = {"messages": [question("Hi", name)]}
    assert text_of(await ask(site, conversation, again)) == "Hello"
    edit = {"id": str(conversation.id), **again, "messageId": name}
    assert (await site.http.post("/chat", json=edit)).status_code == 409
    assert await contents(conversation) == ["Hi", "Hello", "Ho", "Indeed"]


async def test_chat__a_message_that_was_sent_is_not_changed(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("Yes", None)
    first = {"messages": [question("Hi", "m1")], "messageId": "m1"}
    parts = await ask(site, conversation, first)  # it never arrived before
    assert text_of(await ask(site, conversation, first)) == text_of(parts)  # the same again
    stored = [each.content for each in await conversation.messages()]
    for messages, name in (([question("Ho", "m1")], "m1"), ([question("Ho", "m2")], "m1")):
        body = {"id": str(conversation.id), "messages": messages, "messageId": name}
        answer = await site.http.post("/chat", json=body)
        assert answer.status_code == 409
        assert "cannot be changed" in answer.json()["error"]["message"]
    assert [each.content for each in await conversation.messages()] == stored


async def test_chat__what_is_not_text_is_refused_by_its_name(site: Site) -> None:
    conversation = await site.conversation()
    text = {"type": "text", "text": "What is this?"}
    for part, name in (
        ({"type": "file", "mediaType": "image/png", "url": "data:,"}, "image/png"),
        ({"type": "file", "filename": "a.pdf", "mediaType": "x/y"}, "a.pdf x/y"),
        ({"type": "file"}, "without a name"),
        ({"type": "data-place", "data": {}}, "data-place"),
        ({"type": "tool-search", "toolCallId": "1", "output": {}}, "tool-search"),
        ({"type": "reasoning", "text": "Hm"}, "reasoning"),
        ({"type": "text", "text": 7}, "text"),
        ({"type": "x" * 500}, "x" * 100 + "…"),
        ({}, "None"),
        ("text", "None"),
    ):
        for trigger in ("submit-message", "regenerate-message"):
            message = {"id": "q", "role": "user", "parts": [text, part]}
            body = {"id": str(conversation.id), "messages": [message], "trigger": trigger}
            answer = await site.http.post("/chat", json=body)
            assert answer.status_code == 400, part
            assert answer.json()["error"]["message"].endswith(f" {name}.")
    assert await conversation.messages() == []
    site.model.say("Yes", None)
    harmless = [{"type": "step-start"}, text, {"type": "text", "text": ""}]
    await ask(site, conversation, {"messages": [{"id": "q", "role": "user", "parts": harmless}]})
    assert (await conversation.messages())[0].content == "What is this?"


# Resuming what a page lacks


async def started(site: Site, conversation: Conversation, text: str, name: str = "m1") -> str:
    """Asks, and leaves; returns the id of the answer."""
    request = {"id": str(conversation.id), "messages": [question(text, name)]}
    async with site.http.stream("POST", "/chat", json=request) as stream:
        start = (await anext(read_events(stream))).data
    site.model.was_asked.clear()
    found: str = start["messageId"]
    return found


async def resumed(site: Site, conversation: Conversation, **query: Any) -> str | None:
    """The text of a resumed stream; ``None`` if there is nothing."""
    async with site.http.stream("GET", f"/chat/{conversation.id}/stream", params=query) as stream:
        if stream.status_code == 204:
            return None
        assert stream.status_code == 200, await stream.aread()
        sent = await read_all(stream)
    return text_of([each.data for each in sent[:-1]])


def shown(history: httpx.Response) -> list[str]:
    return ["".join(part["text"] for part in each["parts"]) for each in history.json()]


async def test_resume__has_what_ended_while_the_page_was_loading(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("One ")
    answer = await started(site, conversation, "Hi")
    page = await site.http.get(f"/chat/{conversation.id}")
    assert shown(page) == ["Hi"]
    assert page.headers["x-converse-resume"] == "1"
    site.model.say("two", None)
    await wait_for_end(site, answer)
    assert await resumed(site, conversation) == "One two"  # as a browser asks, by its cookie
    page = await site.http.get(f"/chat/{conversation.id}")
    assert shown(page) == ["Hi", "One two"]
    assert await resumed(site, conversation) is None  # the page has it: nothing twice

    site.http.cookies.clear()
    assert await resumed(site, conversation) is None  # nobody knows what the page has
    assert await resumed(site, conversation, resume=1) == "One two"
    assert await resumed(site, conversation, resume=page.headers["x-converse-resume"]) is None

    site.model.say("New")
    answer = await started(site, conversation, "Next", "m2")
    await site.http.get(f"/chat/{conversation.id}")
    [name] = site.http.cookies
    site.model.say(None, "Newer", None)
    await wait_for_end(site, answer)
    await ask(site, conversation, {"messages": [question("Next", "m3")]})
    assert not site.http.cookies  # what the page lacks is not that answer any more
    for forged in ("x", "-1", "9" * 5000):
        site.http.cookies.set(name, forged)
        assert await resumed(site, conversation) is None


async def test_resume__waits_for_the_answer_to_a_new_question(site: Site) -> None:
    conversation = await site.conversation()
    asked = await conversation.create_user_message("Hi")
    page = await site.http.get(f"/chat/{conversation.id}")
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        for query in ({}, {"resume": page.headers["x-converse-resume"]}):
            tasks.create_task(check(resumed(site, conversation, **query), "Hello"))
        while site.converse.statistics().watchers < 2:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        answer = await conversation.start_streaming_assistant()
        await answer.append_chunk("Hello")
        await answer.complete_streaming()
    assert await resumed(site, conversation, resume=asked.position) is None  # it lacks the question


async def check(found: Awaitable[Any], wanted: Any) -> None:
    assert await found == wanted


async def test_resume__of_a_question_that_nobody_answers_ends(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "BEGIN_SECONDS", 0.05)
    conversation = await site.conversation()
    await conversation.create_user_message("Hi")
    assert await resumed(site, conversation) is None
    monkeypatch.setattr(chat, "PAGE_LOAD", timedelta(0))
    monkeypatch.setattr(chat, "BEGIN_SECONDS", 3600.0)
    assert await resumed(site, conversation) is None


async def test_resume__has_the_new_answer_in_place_of_a_replaced_one(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("bad")
    old = await started(site, conversation, "Hi")
    page = await site.http.get(f"/chat/{conversation.id}")
    site.model.say(None)
    await wait_for_end(site, old)
    whole = await site.http.get(f"/chat/{conversation.id}")
    site.model.say("good", None)
    await ask(site, conversation, {"trigger": "regenerate-message", "messageId": old})
    for each in (page, whole):
        resume = each.headers["x-converse-resume"]
        assert await resumed(site, conversation, resume=resume) == "good"


async def test_two_answers__are_each_in_the_history_or_in_the_stream(site: Site) -> None:
    conversation = await site.conversation()
    answers = []
    for name in ("first", "second"):
        await conversation.add_user_message(f"{name}?")
        answers.append(await conversation.start_streaming_assistant())
        await answers[-1].append_chunk(name)
    page = await site.http.get(f"/chat/{conversation.id}")
    assert shown(page) == ["first?", "first", "second?"]
    assert page.json()[1]["metadata"]["status"] == "streaming"
    for answer in answers:
        await answer.complete_streaming()
    assert await resumed(site, conversation) == "second"


async def test_history__of_a_chat_comes_in_pages(site: Site) -> None:
    conversation = await site.conversation()
    for number in range(3):
        await conversation.add_user_message(f"question {number}")
        for _ in range(4):
            await conversation.add_tool_result_message("hidden")
        old = await conversation.create_assistant_message("old")
        await conversation.add_assistant_message(f"answer {number}", {"replaces": str(old.id)})
    path, pages, before = f"/chat/{conversation.id}", [], None
    while True:
        query = {"limit": 4} | ({} if before is None else {"before": before})
        page = await site.http.get(path, params=query)
        pages.append(shown(page))
        assert ("x-converse-resume" in page.headers) == (before is None)
        before = page.headers.get("x-converse-before")
        if before is None:
            break
    assert pages == [
        ["question 1", "answer 1", "question 2", "answer 2"],
        ["question 0", "answer 0"],
    ]


# Regenerating means what the page means


async def regenerate(site: Site, conversation: Conversation, **body: Any) -> httpx.Response:
    request = {"id": str(conversation.id), "trigger": "regenerate-message", **body}
    return await site.http.post("/chat", json=request)


async def talk(site: Site, conversation: Conversation, *texts: str) -> list[dict[str, Any]]:
    """Asks and answers; returns the messages as the page that asked has them."""
    page: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        site.model.say(f"About {text}", None)
        page.append(question(text, f"q{number}"))
        parts = await ask(site, conversation, {"messages": page})
        page.append({"id": parts[0]["messageId"], "role": "assistant", "parts": []})
    return page


async def contents(conversation: Conversation) -> list[str]:
    return [message.content for message in without_replaced(await conversation.messages())]


async def test_regenerate__of_a_question_that_never_arrived_asks_it(site: Site) -> None:
    conversation = await site.conversation()
    page = await talk(site, conversation, "France")
    for number, name in enumerate((None, "q8")):
        site.model.say("About Spain", None)
        lost = question("Spain", f"q{7 + number}")
        body = {"messages": [*page, lost]} | ({} if name is None else {"messageId": name})
        answer = await regenerate(site, conversation, **body)
        assert "About Spain" in answer.text, answer.text
    assert await contents(conversation) == [
        *("France", "About France"),
        *("Spain", "About Spain") * 2,
    ]


async def test_regenerate__of_what_the_page_names_replaces_its_answer(site: Site) -> None:
    conversation = await site.conversation()
    page = await talk(site, conversation, "France", "Spain")
    history = (await site.http.get(f"/chat/{conversation.id}")).json()
    for number, body in enumerate(
        (
            {"messages": page[:3]},
            {"messages": page[:3], "messageId": page[3]["id"]},
            {"messages": page[:3], "messageId": "q1"},
            {"messages": history[:3]},
            {"messages": history[:3], "messageId": history[2]["id"]},
            {"messages": page[:3], "messageId": history[2]["id"]},
            {"messages": [page[2]]},  # as a transport does that sends the last one only
            {"messageId": "q1"},
        )
    ):
        site.model.say(f"Again {number}", None)
        answer = await regenerate(site, conversation, **body)
        expected = number if number != 1 else 0  # that answer was replaced before
        assert f"Again {expected}" in answer.text, (body, answer.text)
        if number == 1:
            site.model.tokens = asyncio.Queue()
    assert await contents(conversation) == ["France", "About France", "Spain", "Again 7"]


class Redacted(Message):
    """Is stored without numbers."""

    @before_event(Insert)
    def redact(self) -> None:
        self.content = self.content.replace("4711", "****")


async def test_regenerate__knows_a_text_that_a_hook_changed(
    facade: Facade, make_site: MakeSite
) -> None:
    site = await make_site(converse=await facade(message_model=Redacted))
    conversation = await site.conversation()
    page = await talk(site, conversation, "My PIN is 4711")
    history = (await site.http.get(f"/chat/{conversation.id}")).json()
    for number, messages in enumerate((page[:1], history[:1])):
        site.model.say(f"Again {number}", None)
        answer = await regenerate(site, conversation, messages=messages)
        assert f"Again {number}" in answer.text, answer.text
    sent = await ask(site, conversation, {"messages": page[:1], "messageId": "q0"})
    assert text_of(sent) == "Again 1"
    other = [question("My PIN is 4712", "q0")]
    assert (await regenerate(site, conversation, messages=other)).status_code == 409
    assert await contents(conversation) == ["My PIN is ****", "Again 1"]


async def test_regenerate__replaces_no_good_answer_for_what_was_not_asked(site: Site) -> None:
    conversation = await site.conversation()
    page = await talk(site, conversation, "France", "Spain")
    tool = await conversation.create_tool_result_message("secret")
    edited = question("Italy", "q1")
    for body, status in (
        ({"messages": [*page[:2], edited]}, 409),
        ({"messages": [*page[:2], edited], "messageId": "q1"}, 409),
        ({"messages": [*page[:2], edited], "messageId": page[3]["id"]}, 409),
        ({"messages": page[:1]}, 409),  # later questions were asked
        ({"messages": page[:1], "messageId": page[1]["id"]}, 409),
        ({"messages": page[:1], "messageId": page[3]["id"]}, 409),
        ({"messages": page[:2], "messageId": page[1]["id"]}, 409),
        ({"messages": page[:3], "messageId": page[1]["id"]}, 409),
        ({"messages": page[:3], "messageId": "q0"}, 409),
        ({"messages": page[:3], "messageId": "made-up"}, 409),
        ({"messages": page[:3], "messageId": str(tool.id)}, 404),
        ({"messages": [question("Italy", "q9")], "messageId": "made-up"}, 404),
        ({"messages": [{"id": "made-up", "role": "assistant", "parts": []}]}, 409),
        ({"messages": [{"role": "system", "parts": []}]}, 409),
        ({"messages": ["x"]}, 409),
        ({"messageId": "made-up"}, 404),
        ({"messageId": "q0"}, 409),
        ({"messageId": page[1]["id"]}, 409),
    ):
        answer = await regenerate(site, conversation, **body)
        assert answer.status_code == status, (body, answer.text)
    assert len(site.model.asked) == 2
    assert await contents(conversation) == [
        *("France", "About France", "Spain", "About Spain"),
        "secret",
    ]


# The contract of the SDK's workflow transport


async def run_of(site: Site, run: str, first: int) -> tuple[list[Any], int | None]:
    """The parts of a run from an index on, and the index of its last part."""
    path = f"/chat/{run}/stream"
    async with site.http.stream("GET", path, params={"startIndex": first}) as stream:
        assert stream.status_code == 200, await stream.aread()
        assert stream.headers["x-workflow-run-id"] == run
        tail = stream.headers.get("x-workflow-stream-tail-index")
        parts = [each.data for each in (await read_all(stream))[:-1]]
        return parts, None if tail is None else int(tail)


@pytest.mark.parametrize("how", ["completed", "empty", "failed", "cancelled", "whole", "parts"])
async def test_run__has_the_rest_from_every_part_on(site: Site, how: str) -> None:
    conversation = await site.conversation()
    await conversation.create_user_message("Hi")
    if how == "whole":
        message = await conversation.create_assistant_message("text")
    else:
        message = await conversation.start_streaming_assistant()
    if how in ("completed", "failed", "cancelled"):
        for chunk in ("a", "", "b", "c"):
            await message.append_chunk(chunk)
    elif how == "parts":
        call = ToolCallPart("search", "c1", input={"q": "secret"})
        await message.append_chunks([ReasoningPart("secret"), "a", call, "b"])
    if how == "failed":
        await message.fail_streaming("no")
    elif how == "cancelled":
        await message.cancel_streaming("enough")
    elif how != "whole":
        await message.complete_streaming()
    run = f"run_{conversation.id}_{message.id}"
    whole, _ = await run_of(site, run, 0)
    assert whole[0] == {"type": "start", "messageId": str(message.id)} | (
        {"messageMetadata": whole[0]["messageMetadata"]} if "messageMetadata" in whole[0] else {}
    )
    assert whole[-1]["type"] == ("error" if how == "failed" else "finish")
    if how == "parts":
        assert [each["delta"] for each in whole if each["type"] == "text-delta"] == ["a", "b"]
    for first in range(1, len(whole)):
        assert (await run_of(site, run, first))[0] == whole[first:]
        assert await run_of(site, run, -first) == (whole[-first:], len(whole) - 1)
    for first in (len(whole), len(whole) + 1, 10**6):  # a client that has it all learns so
        assert [each["type"] for each in (await run_of(site, run, first))[0]] == ["finish"]
    assert (await run_of(site, run, -(10**6)))[0] == whole
    by_chat = await site.http.get(f"/chat/{conversation.id}/stream?startIndex=2&resume=1")
    assert by_chat.headers["x-workflow-run-id"] == run


async def test_run__goes_on_while_it_is_written(site: Site) -> None:
    conversation = await site.conversation()
    request = {"id": str(conversation.id), "messages": [question("Hi")]}
    site.model.say("one")
    async with site.http.stream("POST", "/chat", json=request) as stream:
        run = stream.headers["x-workflow-run-id"]
        parts: list[Any] = []
        async for each in read_events(stream):
            parts.append(each.data)
            if each.data["type"] == "text-delta":
                break
    path = f"/chat/{run}/stream"
    async with site.http.stream("GET", path, params={"startIndex": len(parts)}) as stream:
        site.model.say("two", None)
        parts += [each.data for each in (await read_all(stream))[:-1]]
    assert (await run_of(site, run, 0))[0][1:] == parts[1:]
    assert text_of(parts) == "onetwo"


async def test_run__counts_all_parts_exactly_while_it_is_written(site: Site) -> None:
    """Also those that show a step anew, for which the log is read again."""
    conversation = await site.conversation()
    for contents in (EVERY_PART, *REWRITTEN, *RESETS):
        message = await conversation.start_streaming_assistant()
        await message.append_chunks(contents)
        live = Live((await conversation.get_message(message.id)).chunks.stored)
        wanted = [part for parts in live.sent for part in parts]
        run = f"run_{conversation.id}_{message.id}"
        step = 1 if contents is not EVERY_PART else 7
        for first in range(0, len(wanted) + 1, step):
            path = f"/chat/{run}/stream?startIndex={first}"
            parts: list[Any] = []
            async with site.http.stream("GET", path) as stream:
                events = read_events(stream)
                while len(parts) < len(wanted) + 1 - first:
                    parts.append((await anext(events)).data)
            assert parts[-1:] == wanted[-1:]
            assert (parts if first else parts[1:]) == wanted[max(first - 1, 0) :]
        await message.complete_streaming()
        ended = (await run_of(site, run, 0))[0]
        assert ended[1 : len(wanted) + 1] == wanted
        assert await run_of(site, run, -3) == (ended[-3:], len(ended) - 1)


async def test_run__of_others_and_of_nobody_is_not_found(site: Site) -> None:
    theirs, mine = await site.conversation("eve"), await site.conversation()
    answer = await theirs.create_assistant_message("secret")
    hidden = await mine.create_tool_result_message("secret")
    asked = await mine.create_user_message("Hi")
    for run in (
        f"run_{theirs.id}_{answer.id}",
        f"run_{mine.id}_{answer.id}",
        f"run_{mine.id}_{hidden.id}",
        f"run_{mine.id}_{asked.id}",
        f"run_{mine.id}",
        "run_x_y",
    ):
        answered = await site.http.get(f"/chat/{run}/stream", params={"startIndex": 0})
        assert answered.status_code == 404, run
    for index in ("x", "1.5", str(10**12)):
        answered = await site.http.get(f"/chat/{mine.id}/stream", params={"startIndex": index})
        assert answered.status_code == 400, index
