"""The AI SDK's own client, from npm, on the endpoints: text, errors, stop, resume, another tab."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from converse_mongo import Conversation, MessageStatus
from converse_mongo.web import without_replaced
from tests.web.conftest import Site
from tests.web.helpers import wait_for_end

PACKAGE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    not (PACKAGE / "node_modules").is_dir(),
    reason="needs node and packages from npm: python -m nox -s browser",
)


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
    assert (found["status"], found["error"]) == ("error", "Not found.")
