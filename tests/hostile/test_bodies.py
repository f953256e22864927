"""Bodies: too large, too deep, too many, too slow, and no JSON. None stalls a site or fills it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.hostile.conftest import BLOCKED, Site, error_of
from tests.hostile.site import BODY_SECONDS, CHAT_BYTES

JSON = {"content-type": "application/json"}
MEMORY = 4.0
"""Times the size of a body by which memory may grow while it is read."""
MIB = 1024 * 1024


def question(content: str) -> bytes:
    return json.dumps({"content": content}).encode()


BODIES: dict[str, bytes] = {
    "empty": b"",
    "nothing": b"null",
    "a list": b"[]",
    "a number": b"1",
    "cut off": b'{"content": "x',
    "two": b'{"content": "x"}{"content": "y"}',
    "a mark of byte order": b"\xef\xbb\xbf{}",
    "no UTF-8": b'{"content": "\xff"}',
    "half a character": b'{"content": "\\ud800"}',
    "NaN": b'{"content": NaN}',
    "a huge number": b'{"content": 1e999}',
    "many digits": b'{"content": ' + b"9" * 100_000 + b"}",
    "a wrong type": b'{"content": ["x"]}',
    "too much text": question("x" * (300 * 1024)),
    "deep lists": b'{"content": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "small parts": b'{"content": [' + b",".join([b"{}"] * 500_000) + b"]}",
    "many keys": b"{" + b",".join(b'"%d":0' % each for each in range(150_000)) + b"}",
    "megabytes": question("x" * (60 * MIB)),
    "megabytes of parts": b'{"content": [' + b",".join([b"{}"] * (8 * MIB)) + b"]}",
}


@pytest.mark.parametrize("name", BODIES)
async def test_body__that_is_invalid_is_refused_and_stalls_nobody(library: Site, name: str) -> None:
    ids = await library.begin()
    path = f"/api/conversations/{ids['c']}/messages"
    await library.http.get(path, headers=library.mine)
    before = await library.probe()
    answer = await library.http.post(path, content=BODIES[name], headers=library.mine)
    after = await library.probe()
    assert answer.status_code in (400, 413), answer.text
    assert "Traceback" not in answer.text
    error_of(answer)
    assert after["blocked"] < BLOCKED
    assert after["peak"] - before["memory"] < 16
    page = (await library.http.get(path, headers=library.mine)).json()
    assert [each["content"] for each in page["messages"]] == ["Hello", "x"]


def chat_body(chat: str, messages: bytes, *, first: bool = True) -> bytes:
    name = b'"id": "%b"' % chat.encode()
    parts = [name, b'"messages": ' + messages] if first else [b'"messages": ' + messages, name]
    return b"{" + b", ".join(parts) + b"}"


LAST = b'{"id": "page-1", "role": "user", "parts": [{"type": "text", "text": "And now?"}]}'


def history(size: int, message: Callable[[int], bytes]) -> bytes:
    """A list of messages of about ``size`` bytes, and the last one."""
    found, length, number = [], 0, 0
    while length < size:
        found.append(message(number))
        length += len(found[-1]) + 1
        number += 1
    return b"[" + b",".join([*found, LAST]) + b"]"


def small(number: int) -> bytes:
    return b'{"id": "%d", "role": "user", "parts": [{"type": "text", "text": "x"}]}' % number


def wide(number: int) -> bytes:
    parts = b",".join([b'{"type":"text"}'] * 10_000)
    return b'{"id": "%d", "role": "assistant", "parts": [%b]}' % (number, parts)


def long(number: int) -> bytes:
    return b'{"id": "%d", "role": "assistant", "parts": [{"text": "%b"}]}' % (number, b"x" * MIB)


HISTORIES = {"small": small, "wide": wide, "long": long}


@pytest.mark.parametrize("id_first", [True, False])
@pytest.mark.parametrize("name", HISTORIES)
async def test_history__that_is_large_stalls_nobody(
    library: Site, name: str, id_first: bool
) -> None:
    ids = await library.begin()
    body = chat_body(ids["c"], history(CHAT_BYTES - 2 * MIB, HISTORIES[name]), first=id_first)
    before = await library.probe()
    async with library.http.stream(
        "POST", "/api/chat", content=body, headers=library.mine
    ) as answer:
        assert answer.status_code == 200
    after = await library.probe()
    assert after["blocked"] < BLOCKED
    assert after["peak"] - before["memory"] < MEMORY * len(body) / MIB
    stored = await library.http.get(f"/api/conversations/{ids['c']}/messages", headers=library.mine)
    assert "And now?" in [each["content"] for each in stored.json()["messages"]]


BAD_CHATS: dict[str, Any] = {
    "too large": lambda chat: chat_body(chat, history(CHAT_BYTES + MIB, small)),
    "deep": lambda chat: chat_body(chat, b"[" * 200_000 + b"]" * 200_000),
    "deep in a message": lambda chat: chat_body(
        chat, b'[{"role": "user", "parts": ' + b"[" * 200_000 + b"]" * 200_000 + b"}]"
    ),
    "deep before the last": lambda chat: chat_body(
        chat, b"[" + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"," + LAST + b"]"
    ),
    "cut off": lambda chat: chat_body(chat, b"[" + LAST + b"]")[:-9],
    "two": lambda chat: chat_body(chat, b"[" + LAST + b"]") * 2,
    "no list": lambda chat: chat_body(chat, LAST),
    "two ids": lambda chat: chat_body(chat, b'[], "id": "' + b"f" * 24 + b'"'),
    "no UTF-8": lambda chat: chat_body(chat, b'["\xff",' + LAST + b"]"),
    "a wide last message": lambda chat: chat_body(
        chat,
        b'[{"id": "x", "role": "user", "parts": ['
        + b",".join([b'{"type":"text","text":"x"}'] * 100_000)
        + b"]}]",
    ),
    "half a character": lambda chat: chat_body(
        chat, b"[" + LAST.replace(b"now", b"\\ud800") + b"]"
    ),
}


@pytest.mark.parametrize("name", BAD_CHATS)
async def test_chat__that_is_invalid_is_refused_and_stalls_nobody(library: Site, name: str) -> None:
    ids, running = await library.begin(), (await library.state())["running"]
    before = await library.probe()
    body = BAD_CHATS[name](ids["c"])
    answer = await library.http.post("/api/chat", content=body, headers=library.mine)
    after = await library.probe()
    assert answer.status_code in (400, 404, 413), answer.text
    error_of(answer)
    assert after["blocked"] < BLOCKED
    assert after["peak"] - before["memory"] < MEMORY * max(len(body) / MIB, 4)
    assert (await library.state())["running"] == running


CHAT_BODIES: dict[str, bytes] = {
    "megabytes": b'{"title": "' + b"x" * (60 * MIB) + b'"}',
    "small parts": b'{"title": [' + b",".join([b"{}"] * 1_000_000) + b"]}",
    "deep": b"[" * 1_000_000,
    "half a character": b'{"title": "\\ud800"}',
    "NaN": b'{"title": NaN}',
    "control characters": b'{"title": "\x00"}',
    "many digits": b'{"title": ' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("name", CHAT_BODIES)
async def test_chat_application__refuses_bodies_and_stalls_nobody(chat: Site, name: str) -> None:
    await chat.http.get("/api/me")
    await chat.http.post("/api/conversations", json={})
    before = await chat.probe()
    try:
        body = CHAT_BODIES[name]
        answer = await chat.http.post("/api/conversations", content=body, headers=JSON)
    except httpx.TransportError:  # cut off while it still sends
        assert name == "megabytes"
        answer = httpx.Response(413)
    after = await chat.probe()
    assert answer.status_code in (400, 413, 422), answer.text
    assert after["blocked"] < BLOCKED
    assert after["peak"] - before["memory"] < 16
    assert len((await chat.http.get("/api/conversations")).json()["conversations"]) == 1


SLOW = [
    "/api/chat",
    "/api/conversations/{c}/messages",
    "/api/conversations/{c}/stop",
    "/api/conversations/{c}/messages/{m}/stop",
    "/api/conversations/{c}/messages/{m}/retry",
    "/api/conversations/{c}/messages/{m}/answers",
    "/api/chat/{c}/stop",
]


@pytest.mark.parametrize("path", SLOW)
@pytest.mark.parametrize("trickles", [True, False])
async def test_slow_body__is_let_go_of(library: Site, path: str, trickles: bool) -> None:
    ids, quiet = await library.begin(), (await library.state())["tasks"]

    async def attack() -> bytes:
        reader, writer = await library.connect(
            f"POST {path.format(**ids)} HTTP/1.1",
            "content-type: application/json",
            "content-length: 100000",
        )
        writer.write(b'{"a": "' + b"x" * 1000)
        try:
            async with asyncio.timeout(BODY_SECONDS * 15):
                reading = asyncio.create_task(reader.read(100))
                while trickles and not reading.done():
                    writer.write(b"x")
                    await asyncio.wait([reading], timeout=0.1)
                return await reading
        finally:
            writer.close()

    answers = await asyncio.gather(*(attack() for _ in range(20)))
    for answer in answers:
        assert answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 503")) or answer == b"", answer
    assert any(answers)
    await library.settles("tasks", quiet + 5)


async def test_bodies__of_chats_in_flight_are_bounded(library: Site) -> None:
    await library.begin()
    before = await library.probe()
    connections = []
    for _ in range(40):
        reader, writer = await library.connect(
            "POST /api/chat HTTP/1.1",
            "content-type: application/json",
            f"content-length: {CHAT_BYTES}",
        )
        writer.write(b'{"messages": ["' + b"x" * (CHAT_BYTES - 1000))
        connections.append((reader, writer))
    await asyncio.sleep(BODY_SECONDS / 2)
    after = await library.probe()
    assert after["peak"] - before["memory"] < 100
    statuses = []
    for reader, writer in connections:
        async with asyncio.timeout(30):
            statuses.append((await reader.read(100))[9:12])
        writer.close()
    assert set(statuses) <= {b"408", b"413", b"429", b"503", b""}


async def test_body__in_pieces_of_a_byte_is_read(library: Site) -> None:
    ids = await library.begin()

    async def pieces() -> AsyncIterator[bytes]:
        for each in question("Piece by piece"):
            yield bytes([each])

    answer = await library.http.post(
        f"/api/conversations/{ids['c']}/messages", content=pieces(), headers=library.mine
    )
    assert answer.status_code == 201
