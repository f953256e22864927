"""The page about workers is true: a web process and a worker, pasted, see an answer through."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from converse_mongo.embedded import free_port
from tests.docs.blocks import DOCS, Runner, find_program

PAGE = DOCS / "howto" / "workers.md"
SECONDS = 60


@asynccontextmanager
async def running(runner: Runner, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments),
        cwd=runner.directory,
        env=runner.environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def working(runner: Runner) -> AsyncIterator[asyncio.subprocess.Process]:
    to = ("--uri", runner.uri, "--database", f"{runner.prefix}chat", "--lease", "1")
    command = ("converse_mongo", "worker", "app:respond", "--queue", "default", *to)
    async with running(runner, *command) as process:
        assert process.stderr is not None
        async with asyncio.timeout(SECONDS):
            assert (await process.stderr.readline()).startswith(b"Worker ready")
        yield process


async def test_page__pasted_is_a_service_whose_answers_outlive_workers(runner: Runner) -> None:
    for name in ("app.py", "web.py"):
        runner.write(find_program(PAGE, name))
    port = str(free_port())
    web = ("uvicorn", "web:app", "--host", "127.0.0.1", "--port", port, "--log-level", "warning")
    async with (
        asyncio.timeout(2 * SECONDS),
        running(runner, *web),
        working(runner) as first,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as http,
    ):
        while True:
            try:
                asked = await http.post("/ask", json={"question": "How do I read a file?"})
                break
            except httpx.ConnectError:
                await asyncio.sleep(0.05)
        text = ""
        async with http.stream("GET", f"/answers/{asked.json()['answer']}") as stream:
            async for some in stream.aiter_text():
                text += some
                if "open()" in text:
                    break
            first.send_signal(signal.SIGTERM)
            assert await first.wait() == 0
        async with working(runner) as second:
            shown = ""
            async with http.stream("GET", f"/answers/{asked.json()['answer']}") as stream:
                async for some in stream.aiter_text():
                    shown += some
                    if "then" in shown and second.returncode is None:
                        second.kill()
                        await second.wait()
                        break
        async with working(runner):
            shown = (await http.get(f"/answers/{asked.json()['answer']}")).text
    *_, last = shown.splitlines()
    assert last.endswith("[message.completed]")
    for news in ("[message.queued]\n", "[message.started]\n", "[message.completed]\n"):
        shown = shown.replace(news, "")
    assert shown == "Use open(), then read()."
