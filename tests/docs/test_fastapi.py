"""The pages on FastAPI and on browsers are true: pasted in order, they are a service and a page."""

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx

from converse_mongo.embedded import free_port
from examples.fastapi_chat import create_app
from tests.docs.blocks import Runner
from tests.docs.service import CHAT_SERVICE, PAGE, paste_service
from tests.web.conftest import read_events, serving


async def test_pages__pasted_in_order_are_a_service(runner: Runner, tmp_path: Path) -> None:
    paste_service(runner)
    port = free_port()
    service = await asyncio.to_thread(
        subprocess.Popen,
        [
            *(sys.executable, "-m", "uvicorn", f"{CHAT_SERVICE.removesuffix('.py')}:app"),
            *("--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"),
        ],
        cwd=tmp_path,
        env=runner.environment,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        async with (
            asyncio.timeout(60),
            httpx.AsyncClient(base_url=address, timeout=30) as http,
            httpx.AsyncClient(base_url=address, timeout=30) as eve,
        ):
            while True:
                try:
                    assert (await http.get("/conversations")).status_code == 401
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)
            await http.post("/login", json={"name": "ada"})
            await eve.post("/login", json={"name": "eve"})
            begun = (await http.post("/conversations")).json()
            assert (await http.get("/conversations")).json() == [begun]
            assert (await eve.get("/conversations")).json() == []
            path = f"/conversations/{begun['id']}"
            for prefix in ("/api", "/mounted", "/queued", "/revocable", "/all"):
                assert (await http.get(prefix + path)).json() == begun
                assert (await eve.get(prefix + path)).status_code == 404
            await http.post(f"/api{path}/messages", json={"content": "Hello"})
            text = ""
            async with http.stream("GET", f"/api{path}/events") as stream:
                async for sent in read_events(stream):
                    if sent.event == "chunk.received":
                        text += sent.data["chunk"]["content"]
                    if sent.event == "message.completed":
                        break
            assert text == "You said: Hello"
            async with http.stream("GET", "/all/events") as stream:
                assert (await anext(read_events(stream))).event == "stream.opened"
            async with http.stream("GET", f"/revocable{path}/events") as stream:
                assert (await http.post("/logout")).status_code == 204
                async for _ in read_events(stream):
                    pass  # it ends
            assert (await http.get(f"/api{path}")).status_code == 401
            assert (await http.get("/")).text == PAGE
            assert (await http.get("/client/index.js")).status_code == 200
            paths = (await http.get("/openapi.json")).json()["paths"]
            assert "/api/conversations/{conversation}/messages" in paths
    finally:
        service.terminate()
        assert await asyncio.to_thread(service.wait, 30) in (0, -15)


async def test_example__serves_a_page_and_what_it_asks_for(runner: Runner) -> None:
    app = create_app(runner.uri)
    async with (
        asyncio.timeout(60),
        serving(app) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
    ):
        assert "/client/index.js" in (await http.get("/")).text
        assert (await http.get("/api/conversations")).status_code == 401
        assert (await http.post("/api/login", json={"name": "ada"})).status_code == 204
        begun = (await http.post("/api/conversations", json={"title": "Hello"})).json()
        assert begun["title"] == "Hello"
        assert begun in (await http.get("/api/conversations")).json()
        path = f"/api/conversations/{begun['id']}"
        answer = (await http.post(f"{path}/messages", json={"content": "Hi"})).json()["answer"]
        async with http.stream("GET", f"{path}/messages/{answer['id']}/events") as stream:
            events = [each async for each in read_events(stream)]
        assert events[-1].event == "message.completed"
        chunks = [each.data["chunk"] for each in events if each.event == "chunk.received"]
        text = "".join(chunk["content"] for chunk in chunks)
        assert text == "You said: Hi "
