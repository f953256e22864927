"""The AI SDK's own client, from npm, on the endpoints: text, errors, stop, resume, another tab."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from converse_mongo import Conversation, Message, MessageStatus
from converse_mongo.web import Generations, Limits, prompt_messages, without_replaced
from tests.web.ai_sdk.node import PACKAGE, needs_node
from tests.web.ai_sdk.test_ui_stream import EVERY_PART
from tests.web.conftest import MakeSite, Site
from tests.web.helpers import wait_for_end

pytestmark = needs_node


class Client:
    """A process that drives the client of the AI SDK."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> Any:
        """What it prints next."""
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            line = await self._process.stdout.readline()
        assert line, "the client ended too early"
        return json.loads(line)

    async def waits(self) -> None:
        """Returns once it waits."""
        while "waits" not in await self.line():
            pass

    def go(self) -> None:
        """Has it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def text(self, wanted: str) -> None:
        """Waits until it shows a text."""
        while (await self.line()).get("text") != wanted:
            pass

    async def end(self) -> Any:
        """What it has in the end."""
        while "messages" not in (found := await self.line()):
            pass
        return found


@asynccontextmanager
async def client(
    site: Site, conversation: Conversation, *actions: str, transport: str = "default"
) -> AsyncIterator[Client]:
    base = f"http://127.0.0.1:{site.port}/api"
    process = await asyncio.create_subprocess_exec(
        *("node", str(PACKAGE / "drive.mjs"), base, str(conversation.id), transport, *actions),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=2**22,
    )
    try:
        yield Client(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def texts(found: Any) -> list[tuple[str, str]]:
    return [(each["role"], each["text"]) for each in found["messages"]]


async def test_client__sends_and_shows_the_answer(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("Use ", "open()", None)
    async with client(site, conversation, "send:How?") as page:
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    assert texts(found) == [("user", "How?"), ("assistant", "Use open()")]
    answer = (await conversation.messages())[-1]
    assert found["messages"][-1]["id"] == str(answer.id)
    assert found["messages"][-1]["metadata"]["finish_reason"] == "stop"


async def test_client__resumes_after_a_reload_and_in_a_second_tab(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("before ")
    async with client(site, conversation, "send:Hi") as page:
        await page.text("before ")
    async with (
        client(site, conversation, "resume") as reloaded,
        client(site, conversation, "resume") as second_tab,
    ):
        await asyncio.gather(reloaded.text("before "), second_tab.text("before "))
        site.model.say("after", None)
        for found in await asyncio.gather(reloaded.end(), second_tab.end()):
            assert (found["status"], found["error"]) == ("ready", None)
            assert texts(found) == [("user", "Hi"), ("assistant", "before after")]
    async with client(site, conversation, "resume") as later:
        assert texts(await later.end()) == [("user", "Hi"), ("assistant", "before after")]
    assert len(site.model.asked) == 1


async def test_client__shows_an_error_and_regenerates(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("part", RuntimeError("secret"))
    async with client(site, conversation, "send:Hi") as page:
        found = await page.end()
    assert (found["status"], found["error"]) == ("error", "The answer could not be completed.")
    assert texts(found)[-1] == ("assistant", "part")
    site.model.say("whole", None)
    async with client(site, conversation, "regenerate") as page:
        found = await page.end()
    assert found["error"] is None
    assert texts(found) == [("user", "Hi"), ("assistant", "whole")]
    async with client(site, conversation, "resume") as page:
        assert texts(await page.end()) == [("user", "Hi"), ("assistant", "whole")]


async def test_client__is_at_peace_with_a_stop(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("part")
    async with client(site, conversation, "send:Hi") as page:
        await page.text("part")
        await site.http.post(f"/chat/{conversation.id}/stop", json={})
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    assert texts(found)[-1] == ("assistant", "part")
    assert (await conversation.messages())[-1].status is MessageStatus.CANCELLED


OURS = pytest.mark.parametrize("transport", ["default", "converse"])
ALL = pytest.mark.parametrize("transport", ["default", "converse", "workflow"])


@OURS
async def test_page__has_what_ended_while_it_was_loading_and_nothing_twice(
    site: Site, transport: str
) -> None:
    conversation = await site.conversation()
    site.model.say("One", None)
    async with client(site, conversation, "send:First", transport=transport) as page:
        await page.end()
    site.model.say("Two ")
    async with client(site, conversation, "begin:Second", "settle") as page:
        await page.text("Two ")
    actions = "wait", "resume", "resume"
    async with client(site, conversation, *actions, transport=transport) as page:
        await page.waits()
        site.model.say("parts", None)
        await wait_for_end(site, str((await conversation.messages())[-1].id))
        page.go()
        found = await page.end()
    whole = [
        ("user", "First"),
        ("assistant", "One"),
        ("user", "Second"),
        ("assistant", "Two parts"),
    ]
    assert texts(found) == whole
    assert (found["status"], found["error"]) == ("ready", None)
    async with client(site, conversation, "resume", transport=transport) as page:
        assert texts(await page.end()) == whole
    assert len(site.model.asked) == 2


async def test_page__resumes_after_its_connection_broke_and_has_nothing_twice(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("One ")
    async with client(site, conversation, "cut:3", "send:Hi", "wait", "resume") as page:
        await page.text("One ")
        await page.waits()
        site.model.say("two ")
        page.go()
        await page.text("One two ")
        site.model.say("three", None)
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    assert texts(found) == [("user", "Hi"), ("assistant", "One two three")]


@pytest.mark.parametrize("transport", ["converse", "workflow"])
async def test_page__that_counts_parts_gets_the_rest_over_many_connections(
    site: Site, transport: str
) -> None:
    conversation = await site.conversation()
    site.model.say("One ")
    async with client(site, conversation, "cut:1,1,1", "send:Hi", transport=transport) as page:
        await page.text("One ")
        site.model.say("two ")
        await page.text("One two ")
        site.model.say(None)
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    assert texts(found) == [("user", "Hi"), ("assistant", "One two ")]
    assert len(site.model.asked) == 1


@pytest.mark.parametrize("transport", ["converse", "workflow"])
async def test_page__that_counts_parts_is_at_peace_with_a_stop_and_a_failure(
    site: Site, transport: str
) -> None:
    conversation = await site.conversation()
    site.model.say("part")
    async with client(site, conversation, "send:Hi", transport=transport) as page:
        await page.text("part")
        await site.http.post(f"/chat/{conversation.id}/stop", json={})
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    site.model.say("bad", RuntimeError("secret"))
    async with client(site, conversation, "send:Again", transport=transport) as page:
        found = await page.end()
    assert (found["status"], found["error"]) == ("error", "The answer could not be completed.")
    assert texts(found)[1::2] == [("assistant", "part"), ("assistant", "bad")]


@ALL
async def test_page__regenerates_what_it_means(site: Site, transport: str) -> None:
    conversation = await site.conversation()
    for text in ("About France", "About Spain", "Spain again"):
        site.model.say(text, None)
    actions = ["send:France", "lose:Spain", "regenerate", "regenerate", "edit:Italy", "regenerate"]
    async with client(site, conversation, *actions, transport=transport) as page:
        found = await page.end()
    assert found["status"] == "error"
    assert "was already sent with another text" in found["error"]
    assert texts(found)[:3] == [
        ("user", "France"),
        ("assistant", "About France"),
        ("user", "Italy"),
    ]
    stored = without_replaced(await conversation.messages())
    assert [each.content for each in stored] == ["France", "About France", "Spain", "Spain again"]
    assert len(site.model.asked) == 3


async def test_model__is_told_neither_what_was_replaced_nor_what_was_never_said(
    make_site: MakeSite,
) -> None:
    told: list[list[str]] = []

    async def respond(conversation: Conversation, message: Message) -> None:
        told.append([each.content for each in await prompt_messages(conversation, message)])
        async with message.writer() as writer:
            await writer.write(f"answer {len(told)}")

    async with Generations(respond) as generations:
        site = await make_site(generations=generations)
        conversation = await site.conversation()
        actions = "send:One", "regenerate", "lose:Never", "send:Two"
        async with client(site, conversation, *actions) as page:
            await page.end()
    assert told == [["One"], ["One"], ["One", "answer 2", "Two"]]


@OURS
async def test_page__reads_the_history_in_pages_that_hidden_messages_do_not_fill(
    site: Site, transport: str
) -> None:
    conversation = await site.conversation()
    wanted = []
    for number in range(4):
        await conversation.add_user_message(f"question {number}")
        for _ in range(5):
            await conversation.add_tool_result_message("hidden")
        old = await conversation.create_assistant_message("old")
        await conversation.add_assistant_message(f"answer {number}", {"replaces": str(old.id)})
        wanted += [("user", f"question {number}"), ("assistant", f"answer {number}")]
    async with client(site, conversation, "resume", transport=transport) as page:
        assert texts(await page.end()) == wanted[-4:]
    async with client(site, conversation, "older", "resume", transport=transport) as page:
        assert texts(await page.end()) == wanted


async def test_page__has_each_of_two_answers_at_once(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(answers_per_conversation=2))
    conversation = await site.conversation()
    for number in (1, 2):
        await conversation.add_user_message(f"question {number}")
        answer = await conversation.start_streaming_assistant()
        await answer.append_chunk(f"answer {number}")
    first, second = [each for each in await conversation.messages() if each.role == "assistant"]
    async with client(site, conversation, "wait", "resume") as page:
        await page.waits()
        await first.append_chunk(" goes on")
        page.go()
        await page.text("answer 2")
        await first.complete_streaming()
        await second.complete_streaming()
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    # The SDK follows one answer at a time: of the other the page has what it was loaded with.
    assert texts(found) == [
        *(("user", "question 1"), ("assistant", "answer 1")),
        *(("user", "question 2"), ("assistant", "answer 2")),
    ]
    async with client(site, conversation, "older") as page:
        assert ("assistant", "answer 1 goes on") in texts(await page.end())


async def test_page__asks_again_as_soon_as_an_answer_is_over_also_at_the_limit(
    make_site: MakeSite,
) -> None:
    site = await make_site(limit=1)
    conversation = await site.conversation()
    texts_said = [f"answer {number}" for number in range(8)]
    for text in texts_said:
        site.model.say(text, None)
    actions = [f"send:question {number}" for number in range(8)]
    async with client(site, conversation, *actions) as page:
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    assert [text for role, text in texts(found) if role == "assistant"] == texts_said


async def test_transport__asks_again_whether_its_message_arrived_also_at_the_limit(
    make_site: MakeSite,
) -> None:
    site = await make_site(limit=1)
    conversation = await site.conversation()
    site.model.say("part")
    async with client(site, conversation, "unheard:Hi", transport="converse") as page:
        await page.text("part")
        site.model.say(None)
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    assert texts(found) == [("user", "Hi"), ("assistant", "part")]
    assert len(site.model.asked) == 1


@pytest.mark.parametrize("transport", ["default", "converse"])
async def test_page__has_all_parts_as_a_reload_has_them(site: Site, transport: str) -> None:
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    async with client(site, conversation, "resume", transport=transport) as page:
        async with message.writer() as writer:
            for each in EVERY_PART[:20]:
                await writer.write(each)
            await page.text("I look. ")
            for each in EVERY_PART[20:]:
                await writer.write(each)
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    reloaded = (await site.http.get(f"/chat/{conversation.id}")).json()
    assert found["messages"][-1]["parts"] == reloaded[-1]["parts"]
    assert len(reloaded[-1]["parts"]) > 20


async def test_page__has_its_files_after_a_reload(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("I see", None)
    async with client(site, conversation, "file:Look") as page:
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    sent = found["messages"][0]["parts"]
    assert [part["type"] for part in sent] == ["file", "text"]
    async with client(site, conversation, "resume") as page:
        assert (await page.end())["messages"][0]["parts"] == sent


async def test_page__is_told_which_file_is_too_large(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(file_bytes=1))
    conversation = await site.conversation()
    async with client(site, conversation, "file:Look") as page:
        found = await page.end()
    assert found["status"] == "error"
    assert "This file is too large: notes.txt text/plain." in found["error"]
    assert await conversation.messages() == []


async def test_page__may_send_a_history_that_is_larger_than_a_message_may_be(
    make_site: MakeSite,
) -> None:
    site = await make_site(max_body_bytes=20_000)
    conversation = await site.conversation()
    await conversation.add_user_message("Tell me all")
    await conversation.add_assistant_message("all " * 10_000)
    site.model.say("Gladly", None)
    async with client(site, conversation, "send:More") as page:
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    assert texts(found)[-2:] == [("user", "More"), ("assistant", "Gladly")]


@OURS
async def test_page__is_at_peace_with_a_deletion(site: Site, transport: str) -> None:
    conversation = await site.conversation()
    site.model.say("part")
    async with client(site, conversation, "send:Hi", transport=transport) as page:
        await page.text("part")
        await conversation.delete()
        found = await page.end()
    assert found["status"] in {"ready", "error"}
    assert "Error" not in (found["error"] or "")
    async with asyncio.timeout(20):
        while site.generations.running:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def test_transport__stops_the_answer_itself(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("part")
    actions = "begin:Hi", "wait", "stop", "settle"
    async with client(site, conversation, *actions, transport="converse") as page:
        await page.text("part")
        page.go()
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    answer = await wait_for_end(site, found["messages"][-1]["id"])
    assert (answer.status, answer.content) == (MessageStatus.CANCELLED, "part")


async def test_transport__tells_users_in_a_sentence(site: Site) -> None:
    mine = await site.conversation()
    async with client(site, mine, "wait", "send:Hi", transport="converse") as page:
        await page.waits()
        await mine.delete()
        page.go()
        found = await page.end()
    assert (found["status"], found["error"]) == (
        "error",
        "This does not exist, or it is not yours.",
    )
