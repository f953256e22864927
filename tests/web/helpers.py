"""Shared by tests of the web edge."""

import asyncio
from typing import Any

from converse_mongo import Message
from tests.web.conftest import Site


async def say(site: Site, conversation: Any, text: str = "Hello", **more: Any) -> dict[str, Any]:
    answer = await site.http.post(
        f"/conversations/{conversation.id}/messages", json={"content": text, **more}
    )
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def wait_for_end(site: Site, message_id: str) -> Message:
    async with asyncio.timeout(20):
        async for _ in site.converse.watch_message(message_id):
            pass
    return await site.converse.get_message(message_id)


async def watchers_are_gone(site: Site) -> None:
    async with asyncio.timeout(20):
        while site.converse.statistics().watchers:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
