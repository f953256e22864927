"""Who may not see something cannot tell whether it is there, and writes nothing."""

import asyncio
import json
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from bson import ObjectId
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection

from converse_mongo import (
    Conversation,
    ConverseError,
    InvalidIdError,
    InvalidInputError,
    Message,
    MessageNotFoundError,
    StoreUnavailableError,
)
from converse_mongo.driver.collections import collection_of
from converse_mongo.web import Limits, RequestError
from converse_mongo.web.context import WebContext
from converse_mongo.web.errors import InternalError
from tests.conftest import Commands, Facade
from tests.web.conftest import OWNER, STRANGER, MakeSite, Site, is_owner, read_events
from tests.web.helpers import client_of, ui_question

ABSENT = str(ObjectId())
NOT_FOUND = {"error": {"code": "not_found", "message": "This does not exist, or it is not yours."}}

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
    ("POST", "/conversations/{c}/messages/{m}/answers"),
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
        "answers": [{"call_id": "c", "approved": True}],
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
        found += [each.model_dump() for each in stored]
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
        assert answer.json() == NOT_FOUND
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
            assert "after" in answer.json()["error"]["detail"]


@pytest.mark.parametrize("number", [1, 2**31 - 1, 2**31, 10**18 - 1])
async def test_cursor__that_was_made_up_is_a_400(
    site: Site, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    conversation, message = await talk(site)
    one = f"/conversations/{conversation.id}"
    for path, cursor in (
        (f"{one}/messages/{message.id}/events", f"{message.id}.{number}"),
        (f"{one}/events", f"{conversation.id}.{number + 2}"),
        (f"{one}/events", f"{conversation.id}.2.1-{number + 1}"),
        (f"{one}/events", f"{conversation.id}.{number + 2}.{number + 1}-0"),
    ):
        answer = await site.http.get(path, params={"after": cursor})
        assert answer.status_code == 400
        assert answer.json()["error"]["detail"].startswith("after: ")
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


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
    ("body", "detail"),
    [
        ("{}", "content: Text must not be empty."),
        ("[]", "body: Input should be an object."),
        ('{"content": "x"', "The body is not valid JSON."),
        ('{"content": 7}', "content: Input should be a valid string."),
        ('{"content": " "}', "content: Text must not be empty."),
        ('{"content": "x", "request_id": []}', "request_id: Input should be a valid string."),
    ],
)
async def test_body__that_is_invalid_is_explained(site: Site, body: str, detail: str) -> None:
    conversation = await site.conversation()
    path, json_sent = f"/conversations/{conversation.id}/messages", "application/json"
    answer = await site.http.post(path, content=body, headers={"content-type": json_sent})
    message = "The message is empty." if "empty" in detail else "The request is invalid."
    error = {"code": "invalid_request", "message": message, "detail": detail}
    assert answer.json() == {"error": error}


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=-1", "limit=x", "before=-1", "before=1e3", "limit=" + "9" * 50],
)
async def test_query__of_the_history_is_checked(site: Site, query: str) -> None:
    conversation = await site.conversation()
    answer = await site.http.get(f"/conversations/{conversation.id}/messages?{query}")
    assert answer.status_code == 400
    assert query.partition("=")[0] in answer.json()["error"]["detail"]


# Functions of the application


class User:
    """An object of the application, whose repr nobody should see."""

    def __repr__(self) -> str:
        return "User(password='hunter2')"


async def _says_yes() -> bool:
    await asyncio.sleep(0)
    return True


def raises(error: Exception) -> Any:
    def function(*_arguments: object, **_options: object) -> Any:
        raise error

    return function


def returns(value: Any) -> Any:
    return lambda *_arguments: value


RAISED = [
    HTTPException(403, "It exists, but is not yours: hunter2."),
    WebSocketException(1008, "hunter2"),
    PermissionError("user 7 of tenant db://u:hunter2@h may not"),
    InvalidInputError("hunter2"),
    InvalidIdError("hunter2"),
    RequestError("hunter2"),
    MessageNotFoundError(ObjectId()),
    StoreUnavailableError("hunter2"),
    KeyError("hunter2"),
]


def same_as_absent(answer: httpx.Response) -> bool:
    return answer.status_code == 404 and answer.json() == NOT_FOUND


async def test_authorize__may_be_a_coroutine(make_site: MakeSite) -> None:
    site = await make_site(authorize=lambda request, conversation: _says_yes())
    conversation = await site.conversation()
    assert (await site.http.get(f"/conversations/{conversation.id}")).status_code == 200


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("later", [False, True])
async def test_authorize__that_raises_refuses_and_is_logged(
    make_site: MakeSite, error: Exception, later: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def coroutine(*_arguments: object) -> bool:
        await asyncio.sleep(0)
        raise error

    site = await make_site(authorize=coroutine if later else raises(error))
    conversation = await site.conversation()
    answer = await site.http.get(f"/conversations/{conversation.id}")
    assert same_as_absent(answer)
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    answer = await site.http.post("/chat", json={"id": str(conversation.id)})
    assert same_as_absent(answer)


@pytest.mark.parametrize("answer", [None, "yes", 1, User(), [True], _says_yes])
async def test_authorize__has_to_answer_with_a_bool(
    make_site: MakeSite, answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    site = await make_site(authorize=returns(answer))
    conversation = await site.conversation()
    assert same_as_absent(await site.http.get(f"/conversations/{conversation.id}"))
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert type(answer).__name__ in record.getMessage()
    assert "hunter2" not in caplog.text


async def test_authorize__that_says_no_is_not_logged(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    conversation = await site.conversation()
    answer = await site.http.get(f"/conversations/{conversation.id}", headers=STRANGER)
    assert same_as_absent(answer)
    assert not caplog.records


@pytest.mark.parametrize(
    "function",
    [*map(raises, RAISED), *map(returns, ["user", ("user", User()), ("user",), User(), 7, True])],
)
async def test_owner__that_makes_no_sense_is_nobody_and_is_logged(
    make_site: MakeSite, function: Any, caplog: pytest.LogCaptureFixture
) -> None:
    site = await make_site(owner=function)
    assert same_as_absent(await site.http.get("/events"))
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert record.exc_info is not None or "hunter2" not in caplog.text
    conversation = await site.conversation()
    assert same_as_absent(await site.http.post("/chat", json={"id": str(conversation.id)}))


@pytest.mark.parametrize(
    "show", [raises(ValueError("hunter2")), raises(InvalidInputError("hunter2")), returns(None)]
)
async def test_show_metadata__that_fails_is_an_error_of_ours(
    make_site: MakeSite, show: Any, caplog: pytest.LogCaptureFixture
) -> None:
    site = await make_site(show_metadata=show)
    conversation = await site.conversation()
    await conversation.create_user_message("Hello", {"a": 1})
    for path in (f"/conversations/{conversation.id}/messages", f"/chat/{conversation.id}"):
        answer = await site.http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        assert "hunter2" not in answer.text
    assert "show_metadata failed" in caplog.text
    # A stream goes on without it.
    async with site.http.stream("GET", f"/conversations/{conversation.id}/events") as stream:
        assert stream.status_code == 200
        await conversation.create_user_message("Hello", {"a": 1})
        event = await anext(read_events(stream))
    assert (event.data["content"], event.data["metadata"]) == ("Hello", {})
    site.model.say("Yes", None)
    body = {"id": str(conversation.id), "messages": [ui_question("Hi")]}
    answer = await site.http.post("/chat", json=body)
    assert answer.status_code == 200
    assert '"finish"' in answer.text
    assert "[DONE]" in answer.text
    run = answer.headers["x-workflow-run-id"]
    answer = await site.http.get(f"/chat/{run}/stream", params={"startIndex": 2})
    assert '"finish"' in answer.text
    assert "hunter2" not in answer.text


@pytest.mark.parametrize("error", [InvalidInputError("hunter2"), ValueError("hunter2")])
async def test_error__that_is_not_of_the_request_is_logged_and_explains_nothing(
    make_site: MakeSite,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = await make_site()
    conversation = await site.conversation()
    monkeypatch.setattr(site.converse.conversation_model, "history", raises(error))
    answer = await site.http.get(f"/conversations/{conversation.id}/messages")
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "code": "internal",
        "message": "Something went wrong. Try again later.",
    }
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("key", [raises(ValueError("hunter2")), returns(["unhashable"])])
def test_key__that_fails_is_an_error_of_ours(key: Any, caplog: pytest.LogCaptureFixture) -> None:
    context: Any = SimpleNamespace(limits=Limits(key=key))
    request: Any = None
    with pytest.raises(InternalError):
        WebContext.key(context, request, None)
    assert "Limits.key failed" in caplog.text


# What a refusal costs


async def test_context__is_not_read_before_the_request_is_authorized(
    make_site: MakeSite,
) -> None:
    seen: list[Any] = []

    async def authorize(request: HTTPConnection, conversation: Conversation) -> bool:
        reads: list[Callable[[Any], object]] = [
            *(dict, len, lambda context: context["banned"], lambda context: context.copy()),
            *(lambda context: context != {"banned": True}, lambda context: context == {}),
        ]
        for read in reads:
            with pytest.raises(ConverseError, match="not loaded"):
                read(conversation.context)
        conversation.title = "seen"
        await conversation.save()
        if "load" in request.query_params:
            await conversation.refresh()
            seen.append(conversation.context)
        return is_owner(request, conversation)

    site = await make_site(authorize=authorize)
    context = {"large": "x" * 1000}
    conversation = await site.converse.start_conversation(owner=("user", "ada"), context=context)
    path = f"/conversations/{conversation.id}/messages"
    assert (await site.http.get(f"{path}?load=1")).status_code == 200
    assert seen == [context]
    assert (await site.http.post(path, json={"content": "Hello"})).status_code == 201
    await site.model.was_asked.wait()
    assert site.model.conversations[0].context == context
    site.model.say(None)
    stored = await site.converse.get_conversation(conversation.id)
    assert (stored.title, stored.context) == ("seen", context)


async def test_refusal__reads_no_context(facade: Facade, commands: Commands) -> None:
    converse = await facade(client_options={"event_listeners": [commands]})
    conversation = await converse.start_conversation(owner=("user", "ada"), context={"a": 1})
    async with client_of(converse) as http:
        commands.sent.clear()
        for method, path in REQUESTS:
            address = path.format(c=conversation.id, m=ABSENT)
            body = {"id": str(conversation.id)} if method == "POST" else None
            answer = await http.request(method, address, headers=STRANGER, json=body)
            assert answer.status_code == 404
    finds = [each for each in commands.named("find") if each["find"] == "conversations"]
    assert len(finds) == len(REQUESTS)
    assert {str(each.get("projection")) for each in finds} == {"{'context': 0}"}


async def test_authorize__that_awaits_a_cancelled_task_refuses(make_site: MakeSite) -> None:
    async def authorize(request: Any, conversation: Conversation) -> bool:
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await task
        return True

    site = await make_site(authorize=authorize)
    conversation = await site.conversation()
    for name in (conversation.id, ABSENT):
        answer = await site.http.get(f"/conversations/{name}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
