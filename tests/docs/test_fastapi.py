"""The page on FastAPI is true: its service runs as printed, under uvicorn."""

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx

from converse_mongo import Converse
from converse_mongo.embedded import free_port
from tests.docs.blocks import DOCS, Runner, find_program
from tests.web.conftest import read_events


async def test_service__of_the_page_answers(runner: Runner, tmp_path: Path) -> None:
    runner.write(find_program(DOCS / "howto" / "fastapi.md", "chat_service.py"))
    port = free_port()
    service = await asyncio.to_thread(
        subprocess.Popen,
        [
            *(sys.executable, "-m", "uvicorn", "chat_service:app", "--host", "127.0.0.1"),
            *("--port", str(port), "--log-level", "warning"),
        ],
        cwd=tmp_path,
        env=runner.environment,
    )
    try:
        async with (
            asyncio.timeout(60),
            Converse(runner.uri, database=f"{runner.prefix}chat") as converse,
            httpx.AsyncClient(headers={"authorization": "ada"}, timeout=30) as http,
        ):
            conversation = await converse.start_conversation(owner=("user", "ada"))
            base = f"http://127.0.0.1:{port}/api/conversations/{conversation.id}"
            while True:
                try:
                    assert (await http.get(base)).status_code == 200
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)
            await http.post(f"{base}/messages", json={"content": "Hello"})
            text = ""
            async with http.stream("GET", f"{base}/events") as stream:
                async for sent in read_events(stream):
                    if sent.event == "chunk.received":
                        text += sent.data["chunk"]["content"]
                    if sent.event == "message.completed":
                        break
            assert text == "You said: Hello"
            stranger = await http.get(base, headers={"authorization": "eve"})
            assert stranger.status_code == 404
    finally:
        service.terminate()
        assert await asyncio.to_thread(service.wait, 30) in (0, -15)
