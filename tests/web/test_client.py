"""The client in JavaScript on the real routes: nothing missing and nothing twice, over restarts."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from converse_mongo import Converse
from converse_mongo.embedded import free_port
from converse_mongo.web import routes
from tests.web.conftest import Server, is_owner

FOLLOW = Path(__file__).parent / "client" / "follow.mjs"

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


async def test_client__follows_over_restarts_of_the_service(converse: Converse) -> None:
    conversation = await converse.start_conversation(owner=("user", "ada"))
    port = free_port()
    edge = routes(converse, authorize=is_owner, retry=0.02)
    app = Starlette(routes=[Mount("/api", routes=edge)])

    async def serve_until(over: asyncio.Event) -> None:
        config = uvicorn.Config(
            app, host="127.0.0.1", port=port, log_config=None, timeout_graceful_shutdown=1
        )
        server = Server(config)
        running = asyncio.create_task(server.serve())
        await over.wait()
        server.should_exit = True
        await running

    follower = await asyncio.create_subprocess_exec(
        *("node", str(FOLLOW), f"http://127.0.0.1:{port}/api", str(conversation.id)),
        stdout=subprocess.PIPE,
        limit=2**20,
    )
    assert follower.stdout is not None
    events: list[dict[str, Any]] = []

    async def read_until(wanted: str) -> None:
        assert follower.stdout is not None
        while not events or events[-1].get("type") != wanted:
            line = await follower.stdout.readline()
            assert line, "the client ended"
            found = json.loads(line)
            if "type" in found:
                events.append(found)

    try:
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for number in range(3):
                over = asyncio.Event()
                serving = tasks.create_task(serve_until(over))
                message = await conversation.start_streaming_assistant()
                await message.append_chunks([f"{number}.{part} " for part in range(50)])
                await read_until("chunk.received")
                over.set()  # in the middle of the message
                await serving
                await message.append_chunks([f"{number}.{part} " for part in range(50, 60)])
                await message.complete_streaming()
            over = asyncio.Event()
            serving = tasks.create_task(serve_until(over))
            await conversation.create_user_message("the end")
            while events[-1].get("content") != "the end":
                events.append({})
                await read_until("message.created")
            over.set()
            follower.kill()
    finally:
        if follower.returncode is None:
            follower.kill()
        await follower.wait()
    chunks = [each["chunk"]["content"] for each in events if each.get("type") == "chunk.received"]
    assert chunks == [f"{number}.{part} " for number in range(3) for part in range(60)]
    types = [each["type"] for each in events if each.get("type", "").startswith("message.")]
    assert types == ["message.created", "message.completed"] * 3 + ["message.created"]
