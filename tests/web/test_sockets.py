"""The WebSocket of a conversation: the same events as its stream, and nothing for strangers."""

import asyncio
import json
import tomllib
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from starlette.requests import HTTPConnection
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from converse_mongo import Conversation
from converse_mongo.web import Limits
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


@pytest.mark.parametrize(
    "origin",
    [
        *("", "null", "http://[", "http://", "://", "http://x:y", "\xff", "http://127.0.0.1:99999"),
        *("http://{host}@evil.example", "http://evil.example@{host}", "{host}", "//{host}"),
        *("https://{host}", "wss://{host}", "ftp://{host}", "http://{host}.evil.example"),
        *("http://{host}/", "http://{host}/path", "http://{host}#", "http://127.0.0.1"),
        "http://127.0.0.1:0",
    ],
)
async def test_socket__of_an_odd_origin_is_refused_and_logged(
    site: Site, origin: str, caplog: pytest.LogCaptureFixture
) -> None:
    conversation = await site.conversation()
    host = f"127.0.0.1:{site.port}"
    assert await status_of(site, conversation, {"origin": origin.format(host=host)}) == 404
    (record,) = [each for each in caplog.records if each.name == "converse_mongo"]
    assert record.levelname == "WARNING"
    assert host in record.getMessage()
    assert "origins=" in record.getMessage()


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://{host}"},
        {"origin": "HTTP://{host}"},
        {"origin": "http://chat.example", "host": "CHAT.example:80"},
        {"origin": "http://chat.example:80", "host": "chat.example"},
        {"origin": "http://[::1]:8000", "host": "[::1]:8000"},
        # Behind a proxy that ends TLS and that the server trusts.
        {"origin": "https://chat.example", "host": "chat.example", "x-forwarded-proto": "https"},
        {"origin": "https://FRIEND.example:443"},
        {"origin": "capacitor://localhost"},
    ],
)
async def test_socket__of_its_own_site_or_a_named_one_opens(
    make_site: MakeSite, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    site = await make_site(origins=["https://friend.example/", "capacitor://localhost"])
    conversation = await site.conversation()
    host = f"127.0.0.1:{site.port}"
    sent = {name: value.format(host=host) for name, value in headers.items()}
    assert await status_of(site, conversation, sent) == 101
    assert not [each for each in caplog.records if each.name == "converse_mongo"]


async def test_socket__of_a_page_without_tls_is_refused_where_there_is_tls(site: Site) -> None:
    conversation = await site.conversation()
    headers = {"host": "chat.example", "x-forwarded-proto": "https"}
    for origin, status in (("http://chat.example", 404), ("https://chat.example", 101)):
        assert await status_of(site, conversation, {"origin": origin, **headers}) == status


async def status_of(site: Site, conversation: Conversation, headers: dict[str, str]) -> int:
    """The status of an upgrade with just these headers, which no client library would send."""
    all_headers = {
        "host": f"127.0.0.1:{site.port}",
        **OWNER,
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        **headers,
    }
    lines = [f"GET /api/conversations/{conversation.id}/socket HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in all_headers.items()]
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    async with asyncio.timeout(20):
        line = await reader.readline()
    writer.transport.abort()
    await watchers_are_gone(site)
    return int(line.split()[1])


async def test_socket__that_takes_long_to_open_is_refused_for_now(make_site: MakeSite) -> None:
    async def authorize(request: HTTPConnection, conversation: Conversation) -> bool:
        await asyncio.Event().wait()
        return True

    site = await make_site(authorize=authorize, limits=Limits(request_seconds=0.2))
    status, body = await refusal(site, (await site.conversation()).id)
    assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")


@pytest.mark.parametrize("data", ["{}", b"\x00", "x" * 500_000])
async def test_socket__ends_at_a_message_of_its_client(site: Site, data: str | bytes) -> None:
    conversation = await site.conversation()
    async with open_socket(site, conversation.id) as socket:
        await socket.send(data)
        with pytest.raises(ConnectionClosed):
            await receive(socket)
        assert socket.close_code == 1008
    await watchers_are_gone(site)


async def test_socket__whose_client_does_not_read_is_dropped(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "converse_mongo")
    site = await make_site(send_timeout=0.2)
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    options: dict[str, Any] = {"max_queue": 1, "compression": None, "ping_interval": None}
    async with open_socket(site, conversation.id, **options) as socket:
        for _ in range(60):  # 12 MB: more than all buffers between the two hold
            await message.append_chunk("x" * 200_000)
        await watchers_are_gone(site)
        assert "did not read" in caplog.text
        socket.transport.abort()


def test_extra_web__has_what_a_server_needs_for_sockets() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(each.startswith("websockets") for each in project["optional-dependencies"]["web"])
