"""Bodies are bounded in bytes, in time and in the time that they take from others."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from starlette.requests import Request

from converse_mongo.web import BusyError, Limits
from converse_mongo.web.bodies import Parsing, Pending
from converse_mongo.web.errors import LimitError, TooLargeError
from converse_mongo.web.json_reader import ObjectReader
from tests.web.conftest import STRANGER, MakeSite, Site, owner, read_all
from tests.web.test_access import ABSENT

KIND = {"content-type": "application/json"}


def question(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "parts": [{"type": "text", "text": text}], **more}


@asynccontextmanager
async def sending(
    site: Site, path: str, *parts: bytes, length: int | None = None, user: str = "ada"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A POST whose body has only these parts so far."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    how = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    head = f"POST /api{path} HTTP/1.1\r\nhost: x\r\nauthorization: {user}\r\n"
    writer.write(f"{head}content-type: application/json\r\n{how}\r\n\r\n".encode())
    for part in parts:
        writer.write(b"%x\r\n%b\r\n" % (len(part), part) if length is None else part)
    try:
        yield reader, writer
    finally:
        writer.close()


async def status_of(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(20):
        return int((await reader.readline()).split()[1])


async def head_of(reader: asyncio.StreamReader) -> str:
    async with asyncio.timeout(20):
        return (await reader.readuntil(b"\r\n\r\n")).decode()


PATHS = [
    "/conversations/{c}/messages",
    "/conversations/{c}/stop",
    "/conversations/{c}/messages/{m}/stop",
    "/conversations/{c}/messages/{m}/retry",
    "/conversations/{c}/messages/{m}/answers",
    "/chat",
    "/chat/{c}/stop",
]


@pytest.mark.parametrize("path", PATHS)
async def test_body__that_does_not_end_is_given_up(make_site: MakeSite, path: str) -> None:
    site = await make_site(limits=Limits(body_seconds=0.3))
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    path = path.format(c=conversation.id, m=message.id)
    async with sending(site, path, b"{") as (reader, writer):

        async def trickle() -> None:
            while True:
                writer.write(b"1\r\n \r\n")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        try:
            assert await status_of(reader) == 408
        finally:
            trickling.cancel()


@pytest.mark.parametrize("path", PATHS)
async def test_body__is_not_read_before_the_request_is_authorized(
    make_site: MakeSite, path: str
) -> None:
    site = await make_site(owner=owner)
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    first = json.dumps({"id": str(conversation.id)})[:-1].encode()
    path = path.format(c=conversation.id, m=message.id)
    async with sending(site, path, first, user="eve") as (reader, _):
        assert await status_of(reader) == 404


async def test_chat__asks_for_the_owner_before_it_reads(make_site: MakeSite) -> None:
    site = await make_site(owner=lambda request: None)
    async with sending(site, "/chat") as (reader, _):
        assert await status_of(reader) == 404


async def test_chat__is_authorized_wherever_its_id_is(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("Hi", None, "Ho", None)
    for body in (
        {"id": str(conversation.id), "messages": [question("1")]},
        {"messages": [question("2")], "id": str(conversation.id)},
    ):
        refused = await site.http.post("/chat", json=body, headers=STRANGER)
        absent = await site.http.post("/chat", json={**body, "id": ABSENT}, headers=STRANGER)
        assert refused.status_code == absent.status_code == 404
        async with site.http.stream("POST", "/chat", json=body) as stream:
            assert stream.status_code == 200
            await read_all(stream)
    roles = [message.role.value for message in await conversation.messages()]
    assert roles == ["user", "assistant"] * 2


async def test_chat__takes_a_long_history_and_a_short_message(make_site: MakeSite) -> None:
    site = await make_site(max_body_bytes=20_000, max_message_bytes=100)
    conversation = await site.conversation()
    history = [question("é" * 30_000), question("x"), question("y" * 90_000)]
    site.model.say("Hi", None)
    body = {"id": str(conversation.id), "messages": [*history, question("Hello")]}
    async with site.http.stream("POST", "/chat", json=body) as stream:
        assert stream.status_code == 200
        await read_all(stream)
    assert (await conversation.messages())[0].content == "Hello"
    for last, word in ((question("y" * 90_000), "last message"), (question("y" * 101), "100")):
        answer = await site.http.post("/chat", json={**body, "messages": [*history, last]})
        assert answer.status_code == 413
        assert answer.json()["error"]["message"] == "The message is too long."
        assert word in answer.json()["error"]["detail"]


@pytest.mark.parametrize("announced", [False, True])
async def test_chat__has_a_limit_of_its_own(make_site: MakeSite, announced: bool) -> None:
    site = await make_site(limits=Limits(chat_bytes=10_000))
    body = b'{"id":"' + str((await site.conversation()).id).encode() + b'","messages":["'
    more = () if announced else (b"x" * 10_000,)
    async with sending(site, "/chat", body, *more, length=10_001 if announced else None) as (
        reader,
        _,
    ):
        assert await status_of(reader) == 413


async def test_chat__bytes_in_flight_are_bounded(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(pending_bytes=100_000, body_seconds=60))
    conversation = await site.conversation()
    begin = b'{"id":"' + str(conversation.id).encode() + b'","messages":["'
    half = b"x" * 60_000
    async with (
        sending(site, "/chat", begin, half) as (first, _),
        sending(site, "/chat", begin, half) as (second, _),
    ):
        heads = [asyncio.create_task(head_of(each)) for each in (first, second)]
        # Refused is the one that is read last.
        (refused,), (other,) = await asyncio.wait(
            heads, timeout=40, return_when=asyncio.FIRST_COMPLETED
        )
        assert (await refused).startswith("HTTP/1.1 503")
        assert "retry-after: " in await refused
        other.cancel()
    # A client that leaves frees what it held.
    site.model.say("Hi", None)
    large = {"id": str(conversation.id), "messages": [question("x" * 60_000), question("Hello")]}
    async with asyncio.timeout(20):
        while (await site.http.post("/chat", json=large)).status_code == 503:
            pass


HEAVY = {
    "parts": b'{"type":"text","text":"a"},' * 50_000,
    "numbers": b"1," * 700_000,
    "keys": b'{"a":{' + b'"b":1,' * 200_000 + b'"c":1}},',
    "nested": (b"[" * 60 + b"]" * 60 + b",") * 4000,
    "text": b'"' + b"\\u00e9" * 200_000 + b'",',
}


@pytest.mark.parametrize("kind", HEAVY)
async def test_chat__of_many_values_delays_nobody(
    site: Site, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two slices other tasks run; a slice takes some milliseconds at most."""
    conversation = await site.conversation()
    body = b'{"id":"%b","messages":[%b%b]}' % (
        str(conversation.id).encode(),
        HEAVY[kind],
        json.dumps(question("Hello")).encode(),
    )
    turns, busy = 0, True

    async def count() -> None:
        nonlocal turns
        while busy:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    site.model.say("Hi", None)
    async with site.http.stream("POST", "/chat", content=body, headers=KIND) as stream:
        assert stream.status_code == 200
        await read_all(stream)
    busy = False
    await counting
    assert turns > len(body) / 10_000
    assert (await conversation.messages())[0].content == "Hello"


@pytest.mark.parametrize("kind", HEAVY)
async def test_question__of_many_values_is_read_without_making_them(site: Site, kind: str) -> None:
    conversation = await site.conversation()
    path = f"/conversations/{conversation.id}/messages"
    body = b'{"content":"Hello","more":[%b1]}' % HEAVY[kind]
    assert (await site.http.post(path, content=body, headers=KIND)).status_code == 201
    body = b'{"content":[%b1]}' % (HEAVY[kind])
    answer = await site.http.post(path, content=body, headers=KIND)
    assert answer.status_code == (400 if kind == "text" else 413)


@pytest.mark.parametrize("path", ["/conversations/{c}/messages", "/chat"])
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"{", b"[]", b"1", b'"x"', b"null", b"\xef\xbb\xbf{}", b"{}x", b"\xff"),
        *(b"[" * 10_000, b'{"a":' * 10_000, b'{"id":"x","content":NaN}', b'{"content":"\\ud800"}'),
        *(b'{"content":"\xff"}', b'{"content":1e400}', b'{"content":' + b"9" * 10_000 + b"}"),
        b'{"id":"{c}","messages":[{"role":"user","parts":[{"type":"text","text":"\\ud800"}]}]}',
        b'{"id":"{c}","messages":[{"role":"user","parts":[NaN]}]}',
        b'{"id":"{c}","id":"{c}","content":"x","content":"y"}',
        b'{"id":"{c}","messages":[1e400]}',
    ],
)
async def test_body__that_makes_no_sense_is_a_400(site: Site, path: str, body: bytes) -> None:
    conversation = await site.conversation()
    name = str(conversation.id)
    body = body.replace(b"{c}", name.encode())
    answer = await site.http.post(path.format(c=name), content=body, headers=KIND)
    expected = {400, 404} if path == "/chat" else {400}  # "x" is no conversation
    assert answer.status_code in expected
    assert await conversation.messages() == []


async def test_refusal__closes_a_connection_whose_body_does_not_end(site: Site) -> None:
    """Also of whoever may not see the conversation, whose body nobody reads."""
    conversation = await site.conversation("eve")
    for path in (f"/conversations/{conversation.id}/stop", "/chat"):
        begin = b'{"id":"' + str(conversation.id).encode() + b'","x":"'
        async with sending(site, path, begin, b"x" * 1000) as (reader, writer):
            async with asyncio.timeout(20):
                head = await head_of(reader)
                assert head.startswith("HTTP/1.1 404")
                assert "connection: close" in head
                while await reader.read(1000):  # until it is closed
                    writer.write(b"x")


async def test_refusal__keeps_a_connection_whose_body_has_ended(site: Site) -> None:
    conversation = await site.conversation("eve")
    for path in (f"/conversations/{conversation.id}/stop", "/chat"):
        body = {"id": str(conversation.id), "x": "x" * 100_000}
        answer = await site.http.post(path, json=body)
        assert answer.status_code == 404
        assert "connection" not in answer.headers


def test_pending__counts_what_is_kept() -> None:
    pending = Pending(100)
    with pending.body() as one, pending.body() as other:
        one(60, None)
        one(30, None)
        other(70, None)
        with pytest.raises(BusyError):
            one(31, None)
        assert pending.held == 100
    assert pending.held == 0


def test_pending__gives_a_key_its_share_alone() -> None:
    pending = Pending(100, 50)
    with pending.body() as one, pending.body() as other, pending.body() as theirs:
        one(30, "ada")
        other(20, "ada")
        for more in (one, other):
            with pytest.raises(LimitError):
                more(31, "ada")
        theirs(50, "eve")
        assert pending.held == 100
    with pending.body() as again:
        again(50, "ada")
    assert pending.held == 0


async def test_strangers__take_nothing_from_those_with_access(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(pending_bytes=100_000, body_seconds=60))
    conversation = await site.conversation()
    nameless = b'{"messages":["'
    async with AsyncExitStack() as stack:
        begun = [
            await stack.enter_async_context(
                sending(site, "/chat", nameless, b"x" * 20_000, user="nobody")
            )
            for _ in range(2)
        ]
        # They fill what there is for them, so that one is refused.
        heads = [asyncio.create_task(head_of(reader)) for reader, _ in begun]
        (refused,), (other,) = await asyncio.wait(
            heads, timeout=40, return_when=asyncio.FIRST_COMPLETED
        )
        assert (await refused).startswith("HTTP/1.1 503")
        other.cancel()
        site.model.say("Hello", None)
        body = {"id": str(conversation.id), "messages": [question("x" * 30_000)]}
        assert (await site.http.post("/chat", json=body)).status_code == 200


async def test_chat__that_does_not_begin_with_its_id_is_soon_refused(site: Site) -> None:
    nameless = b'{"messages":[' + b'"x",' * 300_000
    async with sending(site, "/chat", nameless, user="nobody") as (reader, _):
        async with asyncio.timeout(20):
            answer = (await reader.read()).decode()
    assert answer.startswith("HTTP/1.1 413")
    assert "send it before the messages" in answer
    conversation = await site.conversation()
    site.model.say("Hello", None)
    late = {"messages": [question("x" * 20_000)], "id": str(conversation.id)}
    assert (await site.http.post("/chat", json=late)).status_code == 200


async def test_success__closes_a_connection_whose_body_does_not_end(site: Site) -> None:
    path = f"/api/conversations/{(await site.conversation()).id}"
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    head = f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: ada\r\n"
    writer.write(f"{head}content-length: 1000\r\n\r\nx".encode())
    async with asyncio.timeout(20):
        assert (await head_of(reader)).startswith("HTTP/1.1 200")
        await reader.read()  # until it is closed
    writer.close()


class Slow:
    """A reader, each of whose slices takes the processor a while."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds = 0.0

    def feed(self, part: bytes) -> None:
        self.now += len(part) / 1000


async def test_parsing__leaves_half_of_the_time_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    slow: Any = Slow()
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(time, "thread_time", lambda: slow.now)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    parsing, request = Parsing(), Request({"type": "http"})
    for size in (2, 2, 2, 10, 1):
        await parsing.feed(request, slow, b"x" * size)
    assert pauses == pytest.approx([0, 0, 0.006, 0.01, 0])
    with pytest.raises(TooLargeError):
        await parsing.feed(request, slow, b"x" * 5000)


def test_reader__holds_only_what_may_be_the_last_message() -> None:
    reader = ObjectReader({"id", "messages"}, 10_000, last_of="messages")
    reader.feed(b'{"id": "x", "messages": [')
    for _ in range(100):
        reader.feed(b'"' + b"x" * 1000 + b'",')
        assert reader.held < 2100
