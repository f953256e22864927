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
from tests.web.conftest import Site

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
    site: Site, conversation: Conversation, action: str, text: str = ""
) -> AsyncIterator[Client]:
    base = f"http://127.0.0.1:{site.port}/api"
    process = await asyncio.create_subprocess_exec(
        *("node", str(PACKAGE / "drive.mjs"), base, str(conversation.id), action, text),
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
    async with client(site, conversation, "send", "How?") as page:
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    assert texts(found) == [("user", "How?"), ("assistant", "Use open()")]
    answer = (await conversation.messages())[-1]
    assert found["messages"][-1]["id"] == str(answer.id)
    assert found["messages"][-1]["metadata"]["finish_reason"] == "stop"


async def test_client__resumes_after_a_reload_and_in_a_second_tab(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("before ")
    async with client(site, conversation, "send", "Hi") as page:
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
    async with client(site, conversation, "send", "Hi") as page:
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
    async with client(site, conversation, "send", "Hi") as page:
        await page.text("part")
        await site.http.post(f"/chat/{conversation.id}/stop", json={})
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    assert texts(found)[-1] == ("assistant", "part")
    assert (await conversation.messages())[-1].status is MessageStatus.CANCELLED
