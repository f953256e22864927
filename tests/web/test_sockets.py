"""The WebSocket of a conversation: the same events as its stream, and nothing for strangers."""

import asyncio
import json
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from bson import ObjectId
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from converse_mongo import Conversation
from tests.web.conftest import OWNER, STRANGER, MakeSite, Site
from tests.web.helpers import say, wait_for_end, watchers_are_gone


def open_socket(
    site: Site, conversation_id: object, after: str | None = None, **options: Any
) -> AbstractAsyncContextManager[ClientConnection]:
    query = "" if after is None else f"?after={after}"
    uri = f"ws://127.0.0.1:{site.port}/api/conversations/{conversation_id}/socket{query}"
    return connect(uri, **{"additional_headers": OWNER, "proxy": None, **options})


async def receive(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(20):
        found: dict[str, Any] = json.loads(await socket.recv())
    return found


async def test_socket__has_the_events_and_resumes(site: Site) -> None:
    conversation = await site.conversation()
    answer = (await say(site, conversation))["answer"]
    site.model.say("one ")
    async with open_socket(site, conversation.id) as socket:
        events = [await receive(socket) for _ in range(3)]
        await socket.send("whatever a client sends is not looked at")
    assert [each["type"] for each in events] == [
        "message.created",
        "message.created",
        "chunk.received",
    ]
    site.model.say("two", None)
    await wait_for_end(site, answer["id"])
    rest: list[dict[str, Any]] = []
    async with open_socket(site, conversation.id, events[-1]["id"]) as socket:
        while not rest or rest[-1]["type"] != "message.completed":
            rest.append(await receive(socket))
    assert "".join(each["chunk"]["content"] for each in rest[:-1]) == "two"


async def test_socket__lets_go_when_its_client_does(site: Site) -> None:
    conversation = await site.conversation()
    async with open_socket(site, conversation.id):
        assert site.converse.statistics().watchers == 1
    await watchers_are_gone(site)
    async with open_socket(site, conversation.id) as socket:
        socket.transport.abort()
    await watchers_are_gone(site)


async def test_socket__ends_after_its_lifetime(make_site: MakeSite) -> None:
    site = await make_site(lifetime=0.1)
    conversation = await site.conversation()
    async with open_socket(site, conversation.id) as socket:
        with pytest.raises(ConnectionClosed):
            await receive(socket)
        assert socket.close_code == 1001
    await watchers_are_gone(site)


async def refusal(site: Site, conversation_id: object, **options: Any) -> tuple[int, bytes]:
    with pytest.raises(InvalidStatus) as refused:
        async with open_socket(site, conversation_id, **options):
            pass
    response = refused.value.response
    return response.status_code, bytes(response.body or b"")


async def test_socket__of_a_stranger_is_not_there(site: Site) -> None:
    conversation: Conversation = await site.conversation()
    absent = await refusal(site, ObjectId())
    assert absent[0] == 404
    assert json.loads(absent[1])["error"]["code"] == "not_found"
    assert await refusal(site, conversation.id, additional_headers=STRANGER) == absent
    assert await refusal(site, "none") == absent
    foreign = f"{ObjectId()}.0"
    assert await refusal(site, conversation.id, after=foreign) == absent
    assert (await refusal(site, conversation.id, after="x"))[0] == 400


async def test_socket__of_another_site_is_refused(make_site: MakeSite) -> None:
    site = await make_site(origins=["https://friend.example"])
    conversation = await site.conversation()
    for origin in (f"http://127.0.0.1:{site.port}", "https://friend.example"):
        async with open_socket(site, conversation.id, origin=origin):
            pass
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{site.port}.evil.example"):
        assert (await refusal(site, conversation.id, origin=origin))[0] == 404
