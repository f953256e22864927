"""Clients that misbehave: that do not read, talk out of turn, or come in numbers."""

import asyncio
from typing import Any

import pytest

from tests.hostile.conftest import BLOCKED, Site
from tests.hostile.site import SEND_SECONDS

UNREAD = [
    "/api/conversations/{c}/messages",
    "/api/conversations/{c}/messages/{m}",
    "/api/conversations/{c}/messages/{m}/events",
    "/api/chat/{c}",
]


@pytest.mark.parametrize("path", UNREAD)
async def test_client__that_does_not_read_is_let_go_of(library: Site, path: str) -> None:
    ids = await library.begin(large="1")
    quiet = (await library.state())["tasks"]
    before = await library.probe()
    connections = [await library.connect(f"GET {path.format(**ids)} HTTP/1.1") for _ in range(4)]
    try:
        await asyncio.sleep(SEND_SECONDS / 2)
        await library.settles("watchers", 0)
        await library.settles("tasks", quiet + 2)
        after = await library.probe()
        # A single message is loaded whole, whatever its size.
        assert after["blocked"] < (BLOCKED * 3 if path.endswith("{m}") else BLOCKED)
        assert after["peak"] - before["memory"] < 400
    finally:
        for _, writer in connections:
            writer.transport.abort()


FRAMES: dict[str, bytes] = {
    "a text": b"\x81\x85\x00\x00\x00\x00hello",
    "binary data": b"\x82\x85\x00\x00\x00\x00hello",
    "a large text": b"\x81\xff\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00" + b"x" * 2**20,
    "an unknown frame": b"\x83\x80\x00\x00\x00\x00",
    "no mask": b"\x81\x05hello",
    "an end": b"",
}


@pytest.mark.parametrize("name", FRAMES)
async def test_socket__ends_at_what_nobody_asked_for(library: Site, name: str) -> None:
    ids = await library.begin()
    reader, writer = await library.connect(
        f"GET /api/conversations/{ids['c']}/socket HTTP/1.1",
        *("upgrade: websocket", "connection: upgrade"),
        *("sec-websocket-version: 13", "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA=="),
    )
    async with asyncio.timeout(20):
        assert b" 101 " in await reader.readline()
        if FRAMES[name]:
            writer.write(FRAMES[name])
        else:
            writer.close()
        await reader.read()
    writer.close()
    await library.settles("watchers", 0)


async def test_streams__of_one_user_are_limited_and_leave_room_for_others(library: Site) -> None:
    ids, other = await library.begin(), await library.begin("eve" + library.user)
    statuses: list[Any] = []
    connections = []
    for _ in range(80):
        reader, writer = await library.connect(f"GET /api/conversations/{ids['c']}/events HTTP/1.1")
        async with asyncio.timeout(20):
            statuses.append((await reader.readline())[9:12])
        connections.append(writer)
    try:
        assert statuses.count(b"200") == 64
        assert statuses.count(b"429") == 16
        path = f"/api/conversations/{other['c']}/events"
        async with library.http.stream(
            "GET", path, headers={"authorization": "eve" + library.user}
        ) as answer:
            assert answer.status_code == 200
    finally:
        for writer in connections:
            writer.transport.abort()
    await library.settles("watchers", 0)


async def test_answers__of_one_user_are_limited_and_leave_room_for_others(library: Site) -> None:
    statuses, before = [], (await library.state())["running"]
    for _ in range(20):
        ids = await library.begin()
        path = f"/api/conversations/{ids['c']}/messages"
        for _ in range(2):
            answer = await library.http.post(path, json={"content": "x"}, headers=library.mine)
            statuses.append(answer.status_code)
    assert statuses.count(201) == 16
    assert statuses.count(409) + statuses.count(429) == 24
    assert statuses[-8:] == [429] * 8
    assert (await library.state())["running"] == before + 16
    ids = await library.begin("eve" + library.user)
    path = f"/api/conversations/{ids['c']}/messages"
    answer = await library.http.post(
        path, json={"content": "x"}, headers={"authorization": "eve" + library.user}
    )
    assert answer.status_code == 201


async def test_connections__that_send_no_head_keep_nobody_out(library: Site) -> None:
    ids = await library.begin()
    connections = []
    for _ in range(200):
        _, writer = await asyncio.open_connection("127.0.0.1", library.port)
        writer.write(b"GET /api HTTP/1.1\r\nx: ")
        connections.append(writer)
    answer = await library.http.get(f"/api/conversations/{ids['c']}", headers=library.mine)
    assert answer.status_code == 200
    for writer in connections:
        writer.transport.abort()
