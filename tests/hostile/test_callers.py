"""Requests and callers: the owner, somebody else, nobody, another site, and what is not there."""

from typing import Any

import httpx
import pytest

from tests.hostile.conftest import Site, error_of

ABSENT = "f" * 24

QUESTION = {"content": "Let me in"}
CHAT = {"messages": [{"role": "user", "parts": [{"type": "text", "text": "Let me in"}]}]}
AGAIN = {"trigger": "regenerate-message", "messages": []}

ANSWERS = {"answers": [{"call_id": "c", "approved": True}]}

REQUESTS: list[tuple[str, str, Any]] = [
    ("GET", "/conversations/{c}", None),
    ("GET", "/conversations/{c}/messages", None),
    ("GET", "/conversations/{c}/messages?limit=1&before=1", None),
    ("GET", "/conversations/{c}/messages/{m}", None),
    ("GET", "/conversations/{c}/events", None),
    ("GET", "/conversations/{c}/events?after=now", None),
    ("GET", "/conversations/{c}/messages/{m}/events", None),
    ("GET", "/conversations/{c}/messages/{m}/events?after={m}.end", None),
    ("GET", "/chat/{c}", None),
    ("GET", "/chat/{c}/stream", None),
    ("POST", "/conversations/{c}/messages", QUESTION),
    ("POST", "/conversations/{c}/stop", {}),
    ("POST", "/conversations/{c}/messages/{m}/stop", {}),
    ("POST", "/conversations/{c}/messages/{m}/retry", {}),
    ("POST", "/conversations/{c}/messages/{m}/answers", ANSWERS),
    ("POST", "/chat/{c}/stop", {}),
    ("POST", "/chat", {"id": "{c}", **CHAT}),
    ("POST", "/chat", {**CHAT, "id": "{c}"}),
    ("POST", "/chat", {"id": "{c}", **AGAIN}),
]

IDS = [ABSENT, "none", "..", "%2e%2e", "{c}", "☃", "0" * 24, "g" * 24, "a" * 5000]


async def send(
    http: httpx.AsyncClient, method: str, path: str, body: Any, ids: dict[str, str], **more: Any
) -> httpx.Response:
    if body is not None:
        more["json"] = {
            key: value.format(**ids) if isinstance(value, str) else value
            for key, value in body.items()
        }
    return await http.request(method, "/api" + path.format(**ids), **more)


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
async def test_callers__who_may_not_see_it_cannot_tell_whether_it_is_there(
    library: Site, method: str, path: str, body: Any
) -> None:
    ids, before = await library.begin(), await library.state()
    answers = []
    for caller in ({"authorization": "eve"}, {}):
        for named in (ids, dict.fromkeys(ids, ABSENT), dict.fromkeys(ids, "none")):
            answer = await send(library.http, method, path, body, named, headers=caller)
            shown = {key: value for key, value in answer.headers.items() if key != "date"}
            answers.append((answer.status_code, shown, answer.content))
    assert answers == [answers[0]] * len(answers)
    assert answers[0][0] == 404
    after = await library.state()
    assert [after[key] for key in ("watchers", "running")] == [
        before[key] for key in ("watchers", "running")
    ]


@pytest.mark.parametrize("name", IDS)
async def test_ids__that_are_none_are_not_there(library: Site, name: str) -> None:
    for method, path, body in REQUESTS:
        if method == "POST" or "/events" not in path:
            answer = await send(
                library.http, method, path, body, {"c": name, "m": name}, headers=library.mine
            )
            assert answer.status_code in (307, 400, 404, 405, 413), (path, answer.status_code)
            assert "Traceback" not in answer.text


OWN = [
    ("GET", "/conversations", None),
    ("POST", "/conversations", {}),
    ("POST", "/conversations", {"title": "Mine"}),
    ("GET", "/events", None),
]


@pytest.mark.parametrize(("method", "path", "body"), [*OWN, *REQUESTS])
async def test_nobody__gets_no_cookie_and_no_conversation(
    chat: Site, method: str, path: str, body: Any
) -> None:
    answer = await send(chat.http, method, path, body, {"c": ABSENT, "m": ABSENT})
    assert answer.status_code in (401, 404)
    assert "set-cookie" not in answer.headers
    error_of(answer)


OTHER_SITES: list[dict[str, str]] = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://["},
    {"origin": ""},
    {"origin": "http://127.0.0.1@evil.example"},
    {"origin": "http://127.0.0.1.evil.example"},
    {"origin": "https://127.0.0.1:{port}"},
    {"origin": "http://127.0.0.1:1"},
    {"sec-fetch-site": "cross-site"},
    {"host": "evil.example:{port}"},
    {"host": "127.0.0.1.evil.example"},
]


@pytest.mark.parametrize("headers", OTHER_SITES)
async def test_another_site__changes_nothing_with_the_cookie_of_a_user(
    chat: Site, headers: dict[str, str]
) -> None:
    http = chat.http
    await http.get("/api/me")
    cookie = dict(http.cookies)
    assert len(cookie) == 1
    begun = await http.post("/api/conversations", json={})
    assert begun.status_code == 201
    ids = {"c": begun.json()["id"], "m": ABSENT}
    sent = {key: value.format(port=chat.port) for key, value in headers.items()}
    for method, path, body in [*OWN, *REQUESTS]:
        if method == "POST":
            answer = await send(http, method, path, body, ids, headers=sent)
            assert 400 <= answer.status_code < 500, (path, answer.status_code)
            assert "set-cookie" not in answer.headers
    assert dict(http.cookies) == cookie
    listed = (await http.get("/api/conversations")).json()["conversations"]
    assert [each["id"] for each in listed] == [ids["c"]]
    page = (await http.get(f"/api/conversations/{ids['c']}/messages")).json()
    assert page["messages"] == []


FORMS = ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", ""]


@pytest.mark.parametrize("kind", FORMS)
async def test_form__of_another_site_changes_nothing(chat: Site, kind: str) -> None:
    await chat.http.get("/api/me")
    headers = {"content-type": kind} if kind else {}
    for content in (b"", b"{}", b"title=x"):
        answer = await chat.http.post("/api/conversations", content=content, headers=headers)
        assert 400 <= answer.status_code < 500
    assert (await chat.http.get("/api/conversations")).json()["conversations"] == []
