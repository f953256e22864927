"""What the chat refuses: other sites, other names, nobody, and bodies that are too much for it."""

import asyncio
import json
import os
import signal
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from converse_mongo.embedded import EmbeddedServer
from converse_mongo.tools.chat import app as chat_app
from converse_mongo.tools.chat.prompts import MAX_TITLE
from converse_mongo.web import Limits
from tests.chat.conftest import Browser, Chat, MakeChat, making_chats

SECONDS = 20
ID = "0123456789abcdef01234567"
JSON = {"content-type": "application/json"}
SESSION = {"cookie": f"chat_session={'x' * 43}"}

ROUTES = [
    ("GET", "/api/conversations"),
    ("POST", "/api/conversations"),
    ("GET", "/api/events"),
    ("GET", f"/api/conversations/{ID}"),
    ("GET", f"/api/conversations/{ID}/messages"),
    ("GET", f"/api/conversations/{ID}/events"),
    ("POST", f"/api/conversations/{ID}/messages"),
    ("POST", f"/api/conversations/{ID}/messages/{ID}/stop"),
    ("POST", f"/api/conversations/{ID}/messages/{ID}/retry"),
    ("POST", "/api/chat"),
    ("GET", f"/api/chat/{ID}"),
    ("GET", f"/api/chat/{ID}/stream"),
    ("GET", "/api/nothing"),
]


# One chat serves all that it refuses: to start one takes most of the time of a test.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chat(server_uri: str) -> AsyncIterator[Chat]:
    async with making_chats(server_uri) as make:
        yield await make()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chat_with_names(server_uri: str) -> AsyncIterator[Chat]:
    async with making_chats(server_uri) as make:
        yield await make(hosts=HOSTS)


@pytest_asyncio.fixture(loop_scope="module")
async def make_chat(server_uri: str) -> AsyncIterator[MakeChat]:
    async with making_chats(server_uri) as make:
        yield make


@pytest_asyncio.fixture(loop_scope="module")
async def browser(chat: Chat) -> Browser:
    browser = await chat.open_browser()
    await browser.meet()
    return browser


def assert_refused(response: httpx.Response, status: int, code: str) -> None:
    """In the form of the library, and without a cookie."""
    assert response.status_code == status, response.text
    told = response.json()
    assert told.keys() == {"error"}
    assert told["error"].keys() - {"detail"} == {"code", "message"}
    assert told["error"]["code"] == code
    assert "set-cookie" not in response.headers
    assert "content-security-policy" in response.headers


async def opens(port: int, **headers: str) -> bool:
    address = f"ws://127.0.0.1:{port}/api/conversations/{ID}/socket"
    try:
        async with connect(address, additional_headers=headers):
            return True
    except InvalidStatus as refused:
        return refused.response.status_code != 403


# Sessions


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_nobody__is_refused_and_gets_no_session(chat: Chat, method: str, path: str) -> None:
    nobody = await chat.open_browser()
    for cookie in (b"", b"chat_session=short", b"chat_session=" + "ä".encode() * 43):
        headers = [(b"content-type", b"application/json"), (b"cookie", cookie)]
        refused = await nobody.http.request(
            method, path, headers=headers, content=b"{}" if method == "POST" else None
        )
        assert_refused(refused, 401, "no_session")


async def test_nobody__opens_no_socket(chat: Chat) -> None:
    assert not await opens(chat.port)


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},  # its address was typed, or is a bookmark
        {"origin": "http://evil.example"},
        {"origin": "null"},
    ],
)
async def test_session__begins_on_the_page_only(chat: Chat, headers: dict[str, str]) -> None:
    visitor = await chat.open_browser()
    assert_refused(await visitor.http.get("/api/me", headers=headers), 401, "no_session")
    begun = await visitor.http.get("/api/me", headers={"sec-fetch-site": "same-origin"})
    assert begun.status_code == 200
    assert "set-cookie" in begun.headers
    # Who has one is told so, wherever they come from, and keeps it.
    again = await visitor.http.get("/api/me", headers=headers)
    assert again.json() == begun.json()
    assert "set-cookie" not in again.headers


# Other sites

ORIGINS = [
    "null",
    "http://evil.example",
    "http://127.0.0.1",  # another port
    "https://127.0.0.1:{port}",  # another scheme
    "http://127.0.0.1:{port}@evil.example",
    "http://evil.example#127.0.0.1:{port}",
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}.evil.example",
    "http://[",
    "http://",
    "http://[::1",
    "http://127.0.0.1:99999999",
    "file://",
    "127.0.0.1:{port}",
    "",
]


@pytest.mark.parametrize("origin", ORIGINS)
async def test_page_of_another_site__changes_nothing(
    chat: Chat, browser: Browser, origin: str
) -> None:
    headers = {"origin": origin.format(port=chat.port)}
    cookie = browser.http.cookies["chat_session"]
    for path in ("/api/conversations", f"/api/conversations/{ID}/messages", "/api/chat"):
        refused = await browser.http.post(path, json={}, headers=headers)
        assert_refused(refused, 403, "forbidden")
    assert await browser.listed() == []
    assert browser.http.cookies["chat_session"] == cookie
    assert not await opens(chat.port, cookie=f"chat_session={cookie}", **headers)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none", "strange"])
async def test_page_of_another_site__is_told_by_the_browser(browser: Browser, site: str) -> None:
    headers = {"sec-fetch-site": site}
    assert_refused(
        await browser.http.post("/api/conversations", json={}, headers=headers), 403, "forbidden"
    )


async def test_origin__twice_is_refused(chat: Chat, browser: Browser) -> None:
    origin = f"http://127.0.0.1:{chat.port}"
    headers = [("origin", origin), ("origin", "http://evil.example"), *JSON.items()]
    refused = await browser.http.post("/api/conversations", content=b"{}", headers=headers)
    assert_refused(refused, 403, "forbidden")


@pytest.mark.parametrize(
    "media_type",
    [
        None,
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "text/plain; application/json",
        "application/jsonp",
    ],
)
async def test_form__is_refused_with_and_without_a_session(
    chat: Chat, browser: Browser, media_type: str | None
) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    refused = await browser.http.post("/api/conversations", content=b"{}", headers=headers)
    assert_refused(refused, 415, "unsupported_media_type")
    nobody = await chat.open_browser()
    refused = await nobody.http.post("/api/conversations", content=b"", headers=headers)
    assert_refused(refused, 401, "no_session")
    assert await browser.listed() == []


async def test_page__may_do_all(chat: Chat, browser: Browser) -> None:
    for origin in (f"http://127.0.0.1:{chat.port}", f"HTTP://127.0.0.1:{chat.port}"):
        headers = {"origin": origin, "sec-fetch-site": "same-origin"}
        begun = await browser.http.post("/api/conversations", json={}, headers=headers)
        assert begun.status_code == 201
        cookie = f"chat_session={browser.http.cookies['chat_session']}"
        address = f"ws://127.0.0.1:{chat.port}/api/conversations/{begun.json()['id']}/socket"
        async with connect(address, additional_headers={"cookie": cookie, "origin": origin}):
            pass


# Other names

HOSTS = ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "chat.example.com")


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("localhost:8000", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("chat.example.com", True),
        ("chat.example.com:8443", True),
        ("localhost", False),
        ("localhost:8001", False),
        ("localhost.:8000", False),
        ("rebound.example:8000", False),
        ("127.0.0.1.rebound.example:8000", False),
        ("chat.example.com.rebound.example", False),
        ("x@localhost:8000", False),
        ("localhost:8000,rebound.example", False),
        ("[::1", False),
        ("", False),
    ],
)
async def test_host__must_be_one_of_those_that_are_allowed(
    chat_with_names: Chat, host: str, served: bool
) -> None:
    visitor = await chat_with_names.open_browser()
    for path in ("/", "/api/me"):
        response = await visitor.http.get(path, headers={"host": host})
        if served:
            assert response.status_code == 200
        else:
            assert_refused(response, 400, "unknown_host")
    # Its page is of the same origin for a browser, since the name is.
    same = {**SESSION, "host": host, "origin": f"http://{host}", **JSON}
    response = await visitor.http.post("/api/conversations", headers=same, content=b"{}")
    assert (response.status_code == 201) is served


async def test_host__is_looked_at_before_a_socket_opens(make_chat: MakeChat) -> None:
    chat = await make_chat(hosts=("localhost:1",))
    assert not await opens(chat.port, **SESSION)


async def test_host__is_not_looked_at_without_names(chat: Chat) -> None:
    visitor = await chat.open_browser()
    assert (await visitor.http.get("/", headers={"host": "any.example"})).status_code == 200


# Bodies


class Wire:
    """A connection that sends what no client would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def begin(self, method: str, path: str, *, cookie: str = "", **headers: str) -> None:
        """Sends a head, in whose names an underscore is a hyphen."""
        sent = {"host": "127.0.0.1", **JSON, **headers, "cookie": cookie}
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in sent.items() if value]
        await self.send("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode())

    async def answer(self) -> tuple[int, dict[str, Any]]:
        """The status and the JSON of an answer; the server then closes the connection."""
        async with asyncio.timeout(SECONDS):
            head = await self._reader.readuntil(b"\r\n\r\n")
            body = await self._reader.read()
        return int(head.split()[1]), json.loads(body)["error"]


@asynccontextmanager
async def wire(port: int) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies must be received in no time."""
    limits = partial(Limits, body_seconds=0.2, request_seconds=1.0)
    monkeypatch.setattr(chat_app, "Limits", limits)


PATHS = [
    "/api/conversations",
    f"/api/conversations/{ID}/messages",
    "/api/chat",
    "/api/nothing",
    "/",
]
OWN = "/api/conversations"


@pytest.mark.parametrize("path", PATHS)
async def test_body_of_nobody__is_not_awaited(chat: Chat, path: str) -> None:
    async with wire(chat.port) as nobody:
        await nobody.begin("POST", path, content_length="1000")
        status, told = await nobody.answer()
    assert (status, told["code"]) == (
        (401, "no_session") if path != "/" else (405, "method_not_allowed")
    )


async def test_body__that_is_announced_too_large_is_not_awaited(
    chat: Chat, browser: Browser
) -> None:
    async with wire(chat.port) as user:
        await user.begin("POST", OWN, content_length="65537", **cookie_of(browser))
        status, told = await user.answer()
    assert (status, told["code"]) == (413, "too_large")
    title = json.dumps({"title": "fits", "rest": "x" * 65_000})
    fits = await browser.http.post(OWN, content=title, headers=JSON)
    assert fits.status_code == 201


async def test_body__that_is_too_large_is_not_held(chat: Chat, browser: Browser) -> None:
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'{"rest": "'
        for _ in range(60):
            yield b"x" * 1024 * 1024
            sent += 1

    tracemalloc.start()
    try:
        with pytest.raises(httpx.TransportError):
            # The connection is closed while it sends.
            response = await browser.http.post(OWN, content=parts(), headers=JSON)
            assert_refused(response, 413, "too_large")
            raise httpx.WriteError("It read the answer first.")
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert sent < 60
    assert await browser.listed() == []


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("framing", ["content_length", "transfer_encoding"])
@pytest.mark.parametrize("trickles", [False, True])
async def test_body__that_is_too_slow_is_given_up(
    make_chat: MakeChat, framing: str, trickles: bool
) -> None:
    chat = await make_chat()
    header = {"content_length": "1000"}
    if framing == "transfer_encoding":
        header = {"transfer_encoding": "chunked"}
    async with wire(chat.port) as user:
        await user.begin("POST", OWN, **header, **SESSION)

        async def trickle() -> None:
            while trickles:
                await user.send(b" " if framing == "content_length" else b"1\r\n \r\n")
                await asyncio.sleep(0.02)

        sending = asyncio.create_task(trickle())
        try:
            status, told = await user.answer()
        except ConnectionResetError:
            assert trickles  # it was closed just when more was sent, so that the answer is lost
            return
        finally:
            sending.cancel()
    assert (status, told["code"]) == (408, "timeout")


@pytest.mark.parametrize("path", ["/api/me", OWN, f"/api/conversations/{ID}/events", "/"])
async def test_body__of_a_request_that_only_reads_is_refused(chat: Chat, path: str) -> None:
    async with wire(chat.port) as user:
        await user.begin("GET", path, content_length="1000", **SESSION)
        status, told = await user.answer()
    assert (status, told["code"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b'{"title": "\\ud800"}',
        b'{"title": "\\udfff\\ud800 x"}',
        b'{"title": NaN}',
        b'{"title": Infinity, "x": -Infinity}',
        b'{"title": null, "title": 1e999}',
        b'{"title": ' + b"9" * 60_000 + b"}",
        b'{"title": ' + b"[" * 60_000,
        b'{"title": {"\\ud800": "\\ud800"}}',
        b"NaN",
        b"[]",
        b'"\\ud800"',
        b"{",
        b"\xff\xfe",
        b"\x00",
        b'{"title": "' + "😀".encode() * 201 + b'"}',
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
async def test_body__that_is_invalid_is_never_a_server_error(
    browser: Browser, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    response = await browser.http.post(OWN, content=body, headers=JSON)
    assert response.status_code in (400, 422)
    assert_refused(response, response.status_code, "invalid_request")
    assert len(response.content) < 500
    assert "Exception in ASGI application" not in caplog.text
    assert await browser.listed() == []


@pytest.mark.parametrize(
    ("title", "line"),
    [
        *(("", None), (" ", None), ("\u2028", None), ("\x00", "New conversation")),
        *(("a\nb", "a b"), ("x" * 200, "x" * (MAX_TITLE - 1) + "…")),
    ],
)
async def test_title__that_is_text_becomes_one_line(
    browser: Browser, title: str, line: str | None
) -> None:
    begun = await browser.http.post(OWN, json={"title": title})
    assert begun.status_code == 201
    assert begun.json()["title"] == line


def cookie_of(browser: Browser) -> dict[str, str]:
    return {"cookie": f"chat_session={browser.http.cookies['chat_session']}"}


# A server that does not answer


@pytest.mark.usefixtures("hasty")
async def test_frozen_server__is_told_within_the_time_of_a_request(
    make_chat: MakeChat, start_server: Callable[..., EmbeddedServer]
) -> None:
    server = start_server()
    chat = await make_chat(uri=f"{server.uri}?retryWrites=false")
    browser = await chat.open_browser()
    await browser.meet()
    await browser.begin()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(SECONDS):
            answers = await asyncio.gather(
                *(browser.http.get(OWN) for _ in range(8)), browser.http.post(OWN, json={})
            )
    finally:
        os.kill(server.pid, signal.SIGCONT)
    for answer in answers:
        assert_refused(answer, 503, "unavailable")
