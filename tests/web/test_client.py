"""The client in JavaScript on the real routes: nothing missing and nothing twice, over restarts."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from converse_mongo import Converse
from converse_mongo.embedded import free_port
from converse_mongo.web import routes
from tests.web.conftest import Server, is_owner, owner

FOLLOW = Path(__file__).parent / "client" / "follow.mjs"
SECONDS = 60

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


class Service:
    """A service that can be stopped and started again at the same address."""

    def __init__(self, converse: Converse) -> None:
        self.port = free_port()
        edge = routes(converse, authorize=is_owner, owner=owner, retry=0.02)
        self._app = Starlette(routes=[Mount("/api", routes=edge)])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        config = uvicorn.Config(
            self._app,
            host="127.0.0.1",
            port=self.port,
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        server = Server(config)
        running = asyncio.create_task(server.serve())
        try:
            yield
        finally:
            server.should_exit = True
            await running


class Follower:
    """The client, and what it was told so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.events: list[dict[str, Any]] = []

    async def next(self, wanted: str) -> dict[str, Any]:
        """The next event of a type; those before it are noted, too."""
        assert self._process.stdout is not None
        async with asyncio.timeout(SECONDS):
            while True:
                line = await self._process.stdout.readline()
                assert line, "the client ended"
                found: dict[str, Any] = json.loads(line)
                if "type" in found:
                    self.events.append(found)
                    if found["type"] == wanted:
                        return found


@asynccontextmanager
async def following(*arguments: str) -> AsyncIterator[Follower]:
    process = await asyncio.create_subprocess_exec(
        *("node", str(FOLLOW), *arguments), stdout=subprocess.PIPE, limit=2**20
    )
    try:
        yield Follower(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_client__follows_over_restarts_of_the_service(converse: Converse) -> None:
    conversation = await converse.start_conversation(owner=("user", "ada"))
    service = Service(converse)
    async with following(service.url, str(conversation.id)) as follower:
        for number in range(3):
            async with service.running():
                message = await conversation.start_streaming_assistant()
                await message.append_chunks([f"{number}.{part} " for part in range(50)])
                await follower.next("chunk.received")
            # It was stopped in the middle of the message.
            await message.append_chunks([f"{number}.{part} " for part in range(50, 60)])
            await message.complete_streaming()
        async with service.running():
            await conversation.create_user_message("the end")
            while (await follower.next("message.created"))["content"] != "the end":
                pass
    events = follower.events
    chunks = [each["chunk"]["content"] for each in events if each["type"] == "chunk.received"]
    assert chunks == [f"{number}.{part} " for number in range(3) for part in range(60)]
    types = [each["type"] for each in events if each["type"].startswith("message.")]
    assert types == ["message.created", "message.completed"] * 3 + ["message.created"]


async def test_client__of_an_owner_is_told_when_to_list_again(converse: Converse) -> None:
    service = Service(converse)
    async with following(service.url) as follower:
        async with service.running():
            await follower.next("opened")
            first = await converse.start_conversation("first", owner=("user", "ada"))
            await converse.start_conversation("not theirs", owner=("user", "eve"))
            assert (await follower.next("conversation.created"))["title"] == "first"
        await converse.start_conversation("meanwhile", owner=("user", "ada"))
        async with service.running():
            await follower.next("opened")  # what happened meanwhile is in the list
            answer = await first.start_streaming_assistant()
            await answer.append_chunk("Hi")
            await answer.complete_streaming()
            last = await follower.next("message.completed")
            assert last["message_id"] == str(answer.id)
    assert [each["type"] for each in follower.events] == [
        "opened",
        "conversation.created",
        "opened",
        "message.created",
        "message.completed",
    ]
