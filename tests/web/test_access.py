"""Who may not see something cannot tell whether it is there, and writes nothing."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from bson import ObjectId
from starlette.exceptions import HTTPException

from converse_mongo import Conversation, Message
from converse_mongo.driver.collections import collection_of
from tests.web.conftest import OWNER, STRANGER, MakeSite, Site

ABSENT = str(ObjectId())

REQUESTS = [
    ("GET", "/conversations/{c}"),
    ("GET", "/conversations/{c}/events"),
    ("GET", "/conversations/{c}/events?after=now"),
    ("GET", "/conversations/{c}/messages"),
    ("POST", "/conversations/{c}/messages"),
    ("POST", "/conversations/{c}/stop"),
    ("GET", "/conversations/{c}/messages/{m}"),
    ("GET", "/conversations/{c}/messages/{m}/events"),
    ("GET", "/conversations/{c}/messages/{m}/events?after={m}.end"),
    ("POST", "/conversations/{c}/messages/{m}/retry"),
    ("POST", "/conversations/{c}/messages/{m}/stop"),
    ("GET", "/chat/{c}"),
    ("GET", "/chat/{c}/stream"),
    ("POST", "/chat/{c}/stop"),
    ("POST", "/chat"),
]


async def talk(site: Site, user: str = "ada") -> tuple[Conversation, Message]:
    """A conversation with an answer that streams, and whose writer has died."""
    conversation = await site.conversation(user)
    await conversation.create_user_message("Hello")
    message = await conversation.start_streaming_assistant()
    await message.append_chunk("so far")
    # A look at an orphan ends it, which is a write: no look of a stranger may.
    lapsed = {"$set": {"lease.duration": 0.001}}
    messages = collection_of(site.converse.message_model)
    assert (await messages.update_one({"_id": message.id}, lapsed)).modified_count == 1
    return conversation, message


async def send(
    site: Site, method: str, path: str, conversation: object, message: object, user: dict[str, str]
) -> httpx.Response:
    body: Any = {
        "id": str(conversation),
        "content": "Let me in",
        "messages": [{"role": "user", "parts": [{"type": "text", "text": "Let me in"}]}],
    }
    address = path.format(c=conversation, m=message)
    if method == "GET":
        return await site.http.get(address, headers=user)
    return await site.http.post(address, headers=user, json=body)


async def everything(site: Site) -> str:
    """All that is stored, as text."""
    found: list[Any] = []
    for model in (site.converse.conversation_model, site.converse.message_model):
        stored = await model.find_all().to_list()
        found += [each.model_dump(mode="json") for each in stored]
    return json.dumps(found, sort_keys=True, default=str)


@pytest.mark.parametrize(("method", "path"), REQUESTS)
async def test_stranger__sees_what_is_not_there(site: Site, method: str, path: str) -> None:
    conversation, message = await talk(site)
    before = await everything(site)
    refused = await send(site, method, path, conversation.id, message.id, STRANGER)
    absent = await send(site, method, path, ABSENT, ABSENT, STRANGER)
    malformed = await send(site, method, path, "none", "none", STRANGER)
    for answer in (refused, absent, malformed):
        assert answer.status_code == 404
        assert answer.json() == {"error": {"code": "not_found", "message": "Not found."}}
        assert dict(answer.headers, date="") == dict(absent.headers, date="")
    assert await everything(site) == before
    assert site.converse.statistics().watchers == 0
    assert site.model.asked == []


@pytest.mark.parametrize(
    ("method", "path"), [each for each in REQUESTS if "{m}" in each[1] and "after" not in each[1]]
)
async def test_message__of_another_conversation_is_not_there(
    site: Site, method: str, path: str
) -> None:
    mine, _ = await talk(site)
    _, message = await talk(site, "eve")
    before = await everything(site)
    refused = await send(site, method, path, mine.id, message.id, OWNER)
    absent = await send(site, method, path, mine.id, ABSENT, OWNER)
    assert (refused.status_code, refused.content) == (404, absent.content)
    assert absent.status_code == 404
    assert await everything(site) == before


async def test_cursor__of_something_else_is_not_there(site: Site) -> None:
    mine, message = await talk(site)
    other, foreign = await talk(site, "eve")
    theirs = (await other.history()).cursor
    for path, cursor in (
        (f"/conversations/{mine.id}/events", theirs),
        (f"/conversations/{mine.id}/messages/{message.id}/events", f"{foreign.id}.0"),
        (f"/conversations/{mine.id}/messages/{message.id}/events", f"{foreign.id}.end"),
    ):
        for where in ({"params": {"after": cursor}}, {"headers": {"last-event-id": cursor}}):
            answer = await site.http.get(path, **where)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "cursor", ["x", "1.2.3", "9" * 5000, "☃", "{c}.1.5-9", "{m}.99999999999999999999"]
)
async def test_cursor__that_is_none_is_explained(site: Site, cursor: str) -> None:
    conversation, message = await talk(site)
    cursor = cursor.format(c=conversation.id, m=message.id)
    base = f"/conversations/{conversation.id}"
    for path in (f"{base}/events", f"{base}/messages/{message.id}/events"):
        answer = await site.http.get(path, params={"after": cursor})
        assert answer.status_code in (400, 404)
        if answer.status_code == 400:
            assert "after" in answer.json()["error"]["message"]


@pytest.mark.parametrize("answer", [None, "yes", 1])
async def test_authorize__has_to_answer_yes_or_no(
    make_site: MakeSite, answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    site = await make_site(authorize=lambda request, conversation: answer)
    conversation = await site.conversation()
    response = await site.http.get(f"/conversations/{conversation.id}")
    assert response.status_code == 500
    assert "True or False" in caplog.text
    assert "authorize" not in response.text


async def test_authorize__may_be_a_coroutine_or_raise(make_site: MakeSite) -> None:
    async def allow(request: object, conversation: object) -> bool:
        await asyncio.sleep(0)
        return True

    def refuse(request: object, conversation: object) -> bool:
        raise HTTPException(403, "It exists, but is not yours.")

    for authorize, status in ((allow, 200), (refuse, 404)):
        site = await make_site(authorize=authorize)
        conversation = await site.conversation()
        answer = await site.http.get(f"/conversations/{conversation.id}")
        assert answer.status_code == status


# Limits of what is sent


async def test_body__is_bounded_and_json(make_site: MakeSite) -> None:
    site = await make_site(max_body_bytes=2000, max_message_bytes=100)
    conversation = await site.conversation()
    path = f"/conversations/{conversation.id}/messages"

    async def status(content: bytes | str, kind: str = "application/json") -> int:
        response = await site.http.post(path, content=content, headers={"content-type": kind})
        return response.status_code

    assert await status(json.dumps({"content": "x" * 3000})) == 413
    assert await status(json.dumps({"content": "é" * 60})) == 413
    assert await status(json.dumps({"content": "x"}), "text/plain") == 415
    assert await status(b"content=x", "application/x-www-form-urlencoded") == 415
    assert await status("{") == 400
    assert await status("[]") == 400
    assert await status(b"\xff\xfe") == 400
    assert await status("[" * 1500) == 400
    assert await status('{"content": NaN}') == 400
    assert await status("{}") == 400
    assert await status(json.dumps({"content": "  "})) == 400
    assert await status(json.dumps({"content": ["x"]})) == 400
    assert await status('{"content": "\\ud800"}') == 400
    assert await status(json.dumps({"content": "x", "request_id": "r" * 300})) == 413
    assert await status(json.dumps({"content": "x", "request_id": 7})) == 400
    assert await conversation.messages() == []


async def test_body__without_an_end_is_read_up_to_the_limit(make_site: MakeSite) -> None:
    site = await make_site(max_body_bytes=1000)
    conversation = await site.conversation()
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    path = f"/api/conversations/{conversation.id}/messages"
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: ada\r\n"
    head += "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    writer.write(head.encode() + (b"3e8\r\n" + b" " * 1000 + b"\r\n") * 2)
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{}", "content: Field required."),
        ("[]", "body: Input should be an object."),
        ('{"content": "x"', "The body is not valid JSON."),
        ('{"content": 7}', "content: Input should be a valid string."),
        ('{"content": " "}', "content: Text must not be empty."),
        ('{"content": "x", "request_id": []}', "request_id: Input should be a valid string."),
    ],
)
async def test_body__that_is_invalid_is_explained(site: Site, body: str, message: str) -> None:
    conversation = await site.conversation()
    path, json_sent = f"/conversations/{conversation.id}/messages", "application/json"
    answer = await site.http.post(path, content=body, headers={"content-type": json_sent})
    assert answer.json() == {"error": {"code": "invalid_request", "message": message}}


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=-1", "limit=x", "before=-1", "before=1e3", "limit=" + "9" * 50],
)
async def test_query__of_the_history_is_checked(site: Site, query: str) -> None:
    conversation = await site.conversation()
    answer = await site.http.get(f"/conversations/{conversation.id}/messages?{query}")
    assert answer.status_code == 400
    assert query.partition("=")[0] in answer.json()["error"]["message"]
