"""A running chat with a fake model behind it, and users of it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest_asyncio

from converse_mongo.tools.chat.app import create_app
from converse_mongo.tools.chat.settings import Settings
from tests.chat.fake_openai import KEY, Fake
from tests.conftest import drop_database
from tests.web.conftest import read_events, serving


class Browser:
    """A user of the chat, with cookies of their own."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def meet(self) -> dict[str, Any]:
        """Asks who the user is, as the page does first: the answer has the session."""
        met = await self.http.get("/api/me")
        assert met.status_code == 200
        return dict(met.json())

    async def begin(self) -> str:
        begun = await self.http.post("/api/conversations", json={})
        assert begun.status_code == 201
        return str(begun.json()["id"])

    async def say(self, conversation: str, content: str) -> dict[str, Any]:
        said = await self.http.post(
            f"/api/conversations/{conversation}/messages", json={"content": content}
        )
        assert said.status_code == 201
        return dict(said.json()["answer"])

    async def ask(self, conversation: str, content: str) -> dict[str, Any]:
        """Asks, and returns the answer when it has ended."""
        answer = await self.say(conversation, content)
        return await self.ended(conversation, answer["id"])

    async def ended(self, conversation: str, message: str) -> dict[str, Any]:
        return await self.read_until(None, conversation, message)

    async def read_until(self, name: str | None, conversation: str, message: str) -> dict[str, Any]:
        """Reads its stream up to an event, or to the end; returns the message."""
        address = f"/api/conversations/{conversation}/messages/{message}"
        async with self.http.stream("GET", f"{address}/events") as stream:
            async for sent in read_events(stream):
                if sent.event == name:
                    break
        return dict((await self.http.get(address)).json())

    async def stop(self, conversation: str, message: str) -> None:
        address = f"/api/conversations/{conversation}/messages/{message}/stop"
        assert (await self.http.post(address, json={})).status_code == 200

    async def retry(self, conversation: str, message: str) -> dict[str, Any]:
        address = f"/api/conversations/{conversation}/messages/{message}/retry"
        retried = await self.http.post(address, json={})
        assert retried.status_code == 201
        return await self.ended(conversation, retried.json()["answer"]["id"])

    async def answer(self, conversation: str, message: str, **answer: Any) -> dict[str, Any]:
        """Answers a tool call; returns the message once it has ended."""
        address = f"/api/conversations/{conversation}/messages/{message}/answers"
        answered = await self.http.post(address, json={"answers": [answer]})
        assert answered.status_code == 200, answered.text
        return await self.ended(conversation, message)

    async def listed(self) -> list[dict[str, Any]]:
        return list((await self.http.get("/api/conversations")).json()["conversations"])


@dataclass
class Chat:
    """A running chat with a fake model behind it."""

    fake: Fake
    settings: Settings
    open_browser: Callable[[], Awaitable[Browser]]
    port: int


MakeChat = Callable[..., Awaitable[Chat]]


@asynccontextmanager
async def making_chats(server_uri: str) -> AsyncIterator[MakeChat]:
    """Starts chats; its arguments are settings."""
    async with AsyncExitStack() as stack:

        async def make(**options: Any) -> Chat:
            database = f"test_{uuid4().hex[:16]}"
            stack.push_async_callback(drop_database, server_uri, database)
            fake = Fake()
            model_port = await stack.enter_async_context(serving(fake.app))
            options = {
                "api_key": KEY,
                "base_url": f"http://127.0.0.1:{model_port}/v1",
                "model": "small",
                "max_retries": 0,
                "canned_delay": 0.0,
                **options,
            }
            settings = Settings(**{"uri": server_uri, "database": database, **options})
            port = await stack.enter_async_context(serving(create_app(settings)))

            async def open_browser() -> Browser:
                base = f"http://127.0.0.1:{port}"
                http = httpx.AsyncClient(base_url=base, timeout=30)
                return Browser(await stack.enter_async_context(http))

            return Chat(fake, settings, open_browser, port)

        yield make


@pytest_asyncio.fixture
async def make_chat(server_uri: str) -> AsyncIterator[MakeChat]:
    async with making_chats(server_uri) as make:
        yield make


@pytest_asyncio.fixture
async def chat(make_chat: MakeChat) -> Chat:
    return await make_chat()


@pytest_asyncio.fixture
async def browser(chat: Chat) -> Browser:
    """A user who has a session."""
    browser = await chat.open_browser()
    await browser.meet()
    return browser
