"""Many clients: all complete on one change stream, slow ones alone, vanished ones forgotten."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.conftest import Facade
from tests.web.conftest import Site, read_events
from tests.web.helpers import watchers_are_gone

CLIENTS = 500
VANISHING = 400


@asynccontextmanager
async def raw_stream(
    site: Site, path: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client that reads when it likes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=2**16)
    writer.write(f"GET /api{path} HTTP/1.1\r\nhost: x\r\nauthorization: ada\r\n\r\n".encode())
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def test_500_clients__are_all_complete_on_one_change_stream(site: Site) -> None:
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    path = f"/conversations/{conversation.id}/messages/{message.id}/events"
    texts = [f"token {number} " for number in range(100)]
    open_ones = asyncio.Semaphore(50)  # connecting, not connected: a queue of the system is short

    async def view(ready: asyncio.Barrier) -> str:
        async with open_ones:
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(
                f"GET /api{path} HTTP/1.1\r\nhost: x\r\nauthorization: ada\r\n"
                "connection: close\r\n\r\n".encode()
            )
            await reader.readuntil(b"retry: ")
        await ready.wait()
        text = (await reader.read()).decode()
        writer.close()
        return text

    async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
        ready = asyncio.Barrier(CLIENTS + 1)
        viewing = [tasks.create_task(view(ready)) for _ in range(CLIENTS)]
        await ready.wait()
        statistics = site.converse.statistics()
        assert (statistics.watchers, statistics.topics) == (CLIENTS, 1)
        for first in range(0, len(texts), 10):
            await message.append_chunks(texts[first : first + 10])
        await message.complete_streaming()
    for viewed in viewing:
        text = viewed.result()
        assert text.count("event: chunk.received") == len(texts)
        assert text.count("event: message.completed") == 1
        assert all(text.count(f'"content":"{each}"') == 1 for each in texts)
    await watchers_are_gone(site)
    assert site.converse.statistics().streams_opened <= 1


async def test_slow_client__holds_up_nobody_and_nothing(site: Site) -> None:
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    path = f"/conversations/{conversation.id}/messages/{message.id}/events"
    large = "x" * 200_000
    async with raw_stream(site, path) as (slow, _), raw_stream(site, path) as (stuck, _):
        await slow.readuntil(b"retry: ")
        await stuck.readuntil(b"retry: ")  # and it reads no more before it goes
        async with site.http.stream("GET", path) as quick:
            events = read_events(quick)
            for _ in range(60):  # 12 MB: more than all buffers between the two hold
                await message.append_chunk(large)
                sent = await anext(events)
                assert len(sent.data["chunk"]["content"]) == len(large)
        await message.complete_streaming()
        # Later the slow one has all of it, from the database.
        received = 0
        async with asyncio.timeout(60):
            while b"event: message.completed" not in (part := await slow.read(2**16)):
                received += part.count(b"x")
        assert received >= 60 * len(large) - 2**16
    await watchers_are_gone(site)


async def test_clients_that_vanish__leave_nothing(site: Site) -> None:
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    paths = [
        f"/conversations/{conversation.id}/messages/{message.id}/events",
        f"/conversations/{conversation.id}/events",
        f"/chat/{conversation.id}/stream",
    ]
    before = len(asyncio.all_tasks())

    async def vanish(number: int) -> None:
        async with raw_stream(site, paths[number % len(paths)]) as (reader, _):
            if number % 2:
                await reader.readuntil(b"retry: ")
            await asyncio.sleep(0)

    for first in range(0, VANISHING, 50):
        await asyncio.gather(*(vanish(number) for number in range(first, first + 50)))
    await watchers_are_gone(site)
    async with asyncio.timeout(20):
        while len(asyncio.all_tasks()) > before + 5:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    assert site.converse.statistics().topics == 0
    assert site.converse.statistics().streams_opened <= 1


PROGRAM = """
import sys
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from converse_mongo import Converse
from converse_mongo.web import Generations, routes

converse = Converse(sys.argv[1], database=sys.argv[2])


async def respond(conversation, message):
    async with message.writer() as writer:
        await writer.write("begun")
        await __import__("asyncio").Event().wait()


generations = Generations(respond, grace=0.2)


@asynccontextmanager
async def lifespan(app):
    async with converse, generations:
        yield


edge = routes(converse, authorize=lambda request, conversation: True, generations=generations)
app = Starlette(routes=[Mount("/api", routes=edge)], lifespan=lifespan)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), log_level="warning")
"""


async def test_shutdown__ends_streams_in_order_and_keeps_the_text(
    facade: Facade, server_uri: str, tmp_path: Path
) -> None:
    from converse_mongo.embedded import free_port

    converse = await facade()
    conversation = await converse.start_conversation()
    program, port = tmp_path / "program.py", free_port()
    program.write_text(PROGRAM, encoding="utf-8")
    process = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, str(program), server_uri, converse.database_name, str(port)],
        stderr=subprocess.PIPE,
    )
    base = f"http://127.0.0.1:{port}/api/conversations/{conversation.id}"
    try:
        async with asyncio.timeout(60), httpx.AsyncClient(timeout=30) as http:
            while True:
                try:
                    await http.get(base)
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)
            said = await http.post(f"{base}/messages", json={"content": "Hello"})
            answer_id = said.json()["answer"]["id"]
            async with http.stream("GET", f"{base}/events") as stream:
                types = []
                async for sent in read_events(stream):
                    types.append(sent.event)
                    if sent.event == "chunk.received":
                        os.kill(process.pid, signal.SIGTERM)
                # The stream came to its end in order: a broken one raises here.
            assert types[:3] == ["message.created", "message.created", "chunk.received"]
            code = await asyncio.to_thread(process.wait, 30)
            assert code in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        errors = process.stderr.read().decode()
        process.stderr.close()
    assert "Traceback" not in errors, errors
    message = await converse.get_message(answer_id)
    assert (message.status.value, message.content) == ("cancelled", "begun")
