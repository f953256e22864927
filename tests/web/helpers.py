"""Shared by tests of the web edge."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.routing import Mount

from converse_mongo import Converse, Message
from converse_mongo.web import routes
from tests.web.conftest import OWNER, Site, is_owner, serving


@asynccontextmanager
async def client_of(converse: Converse, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a site of any facade, which generates nothing."""
    made = routes(converse, authorize=is_owner, **options)
    async with (
        serving(Starlette(routes=[Mount("/api", routes=made)])) as port,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}/api", headers=OWNER, timeout=60
        ) as http,
    ):
        yield http


async def say(site: Site, conversation: Any, text: str = "Hello", **more: Any) -> dict[str, Any]:
    answer = await site.http.post(
        f"/conversations/{conversation.id}/messages", json={"content": text, **more}
    )
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ui_question(text: str, name: str = "m1") -> dict[str, Any]:
    """A user message as the AI SDK sends it."""
    return {"id": name, "role": "user", "parts": [{"type": "text", "text": text}]}


async def wait_for_end(site: Site, message_id: str) -> Message:
    async with asyncio.timeout(20):
        async for _ in site.converse.watch_message(message_id):
            pass
    return await site.converse.get_message(message_id)


async def watchers_are_gone(site: Site) -> None:
    async with asyncio.timeout(20):
        while site.converse.statistics().watchers:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
