"""The example chat answers with the real SDK, keeps users apart, and lets nothing out."""

import json
import logging
import re
import socket

import httpx
import pytest

from converse_mongo import ConfigurationError, Converse
from converse_mongo.driver.collections import collection_of
from converse_mongo.embedded import EmbeddedServer
from converse_mongo.tools.chat.canned import CannedModel
from converse_mongo.tools.chat.prompts import title_for
from converse_mongo.tools.chat.server import serve
from converse_mongo.tools.chat.settings import Settings
from tests.chat.conftest import Browser, Chat, MakeChat
from tests.chat.fake_openai import ANSWER, KEY
from tests.web.conftest import Sent, read_events

TEXT = "".join(ANSWER)
USAGE = {"prompt_tokens": 21, "completion_tokens": len(ANSWER)}


# Answers


async def test_answer__comes_from_the_sdk_and_is_stored_with_its_metadata(
    chat: Chat, browser: Browser
) -> None:
    conversation = await browser.begin()
    answer = await browser.ask(conversation, "What is MongoDB?")

    assert (answer["status"], answer["content"]) == ("completed", TEXT)
    metadata = answer["metadata"]
    assert isinstance(metadata.pop("duration"), float)
    del metadata["chunks"]  # the library's own
    assert metadata == {"model": "small", "usage": USAGE, "finish_reason": "stop"}
    assert chat.fake.keys == [KEY]
    [asked] = chat.fake.asked
    assert (asked["model"], asked["stream"]) == ("small", True)
    assert [each["role"] for each in asked["messages"]] == ["system", "user"]
    async with Converse(chat.settings.uri, chat.settings.database) as converse:
        stored = await converse.get_message(answer["id"])
    assert (stored.content, stored.metadata["usage"]) == (TEXT, USAGE)


async def test_first_question__becomes_the_title(browser: Browser) -> None:
    conversation = await browser.begin()
    assert [each["title"] for each in await browser.listed()] == [None]
    await browser.ask(conversation, "  What is\nMongoDB? ")
    await browser.ask(conversation, "And what is a document?")
    assert [each["title"] for each in await browser.listed()] == ["What is MongoDB?"]


def test_title__is_cut_between_words() -> None:
    assert title_for("word " * 40) == "word " * 11 + "word…"
    assert title_for("x" * 100) == "x" * 59 + "…"
    for question, title in {
        "# A **bold** `title`\nof two lines": "A bold title of two lines",
        "```python\nprint(1)\n```\n- why?": "print(1) why?",
        "[a link](https://example.org) ![image](x.png) ~~gone~~": "a link image gone",
        "\u202eevil\u202c\x07 a\u2028b \u2066c": "evil a b c",
        "2 * 3 * 4 = snake_case_name": "2 * 3 * 4 = snake_case_name",
        "\U0001f469\u200d\U0001f467 family": "\U0001f469\u200d\U0001f467 family",
        "\u200b": "New conversation",
        "***": "New conversation",
    }.items():
        assert title_for(question) == title


async def test_model__is_told_what_was_said_and_not_what_failed(
    chat: Chat, browser: Browser
) -> None:
    conversation = await browser.begin()
    await browser.ask(conversation, "One")
    failed = await browser.ask(conversation, "Two: break off")
    assert failed["status"] == "failed"
    await browser.ask(conversation, "Three")
    assert [each["content"] for each in chat.fake.asked[-1]["messages"][1:]] == [
        *("One", TEXT, "Two: break off", "Three"),
    ]


async def stop_at_a_chunk(browser: Browser, conversation: str, message: str) -> None:
    """Stops an answer as soon as a chunk of it arrives, and waits for its end."""
    address = f"/api/conversations/{conversation}/messages/{message}/events"
    async with browser.http.stream("GET", address) as stream:
        async for sent in read_events(stream):
            if sent.event == "chunk.received":
                await browser.stop(conversation, message)


async def test_stop__closes_the_connection_to_the_model_and_keeps_the_text(
    chat: Chat, browser: Browser
) -> None:
    conversation = await browser.begin()
    answer = await browser.say(conversation, "Tell me slowly")
    assert [each["writing"] for each in await browser.listed()] == [[answer["id"]]]
    chat.fake.go_on.release()
    await stop_at_a_chunk(browser, conversation, answer["id"])
    await chat.fake.left.wait()
    assert [each["writing"] for each in await browser.listed()] == [[]]
    address = f"/api/conversations/{conversation}/messages/{answer['id']}"
    stopped = (await browser.http.get(address)).json()
    assert (stopped["status"], stopped["content"]) == ("cancelled", ANSWER[0])
    assert stopped["metadata"]["model"] == "small"


async def test_retry__is_not_told_the_answer_that_it_replaces(chat: Chat, browser: Browser) -> None:
    conversation = await browser.begin()
    answer = await browser.say(conversation, "Tell me slowly")
    chat.fake.go_on.release()
    await stop_at_a_chunk(browser, conversation, answer["id"])
    for _ in ANSWER:
        chat.fake.go_on.release()
    again = await browser.retry(conversation, answer["id"])
    assert (again["status"], again["content"]) == ("completed", TEXT)
    assert again["replaces"] == answer["id"]
    assert [each["content"] for each in chat.fake.asked[-1]["messages"][1:]] == ["Tell me slowly"]


async def test_second_reader__sees_the_same_events(browser: Browser) -> None:
    conversation = await browser.begin()
    answer = await browser.ask(conversation, "What is MongoDB?")

    async def read() -> tuple[str, Sent]:
        text = ""
        async with browser.http.stream(
            "GET", f"/api/conversations/{conversation}/events"
        ) as stream:
            async for sent in read_events(stream):
                if sent.event == "chunk.received":
                    text += sent.data["chunk"]["content"]
                if sent.event == "message.completed":
                    return text, sent
        raise AssertionError("the stream ended before the answer")

    first, second = await read(), await read()
    assert first == second
    assert (first[0], first[1].data["message_id"]) == (TEXT, answer["id"])


# Failures


@pytest.mark.parametrize(
    ("status", "error_type", "sentence"),
    [
        (401, "AuthenticationError", "rejected the credentials"),
        (429, "RateLimitError", "is overloaded"),
        (404, "NotFoundError", "is not available"),
        (400, "BadRequestError", "could not answer"),
        (500, "InternalServerError", "could not answer"),
    ],
)
async def test_refusal__is_told_in_a_safe_sentence_and_logged(
    make_chat: MakeChat,
    caplog: pytest.LogCaptureFixture,
    status: int,
    error_type: str,
    sentence: str,
) -> None:
    chat = await make_chat(model=f"status-{status}")
    browser = await chat.open_browser()
    await browser.meet()
    conversation = await browser.begin()
    answer = await browser.ask(conversation, "What is MongoDB?")
    assert (answer["status"], answer["content"]) == ("failed", "")
    assert sentence in answer["error"]
    assert answer["metadata"]["error_type"] == error_type
    assert answer["metadata"]["model"] == chat.settings.model
    assert isinstance(answer["metadata"]["duration"], float)
    await assert_nothing_leaks(chat, browser, conversation)
    assert_logged(caplog, error_type)


@pytest.mark.parametrize(
    ("words", "error_type", "sentence"),
    [
        ("break off", "APIError", "was cut off"),
        ("hang up", "AnswerError", "was cut off"),
        ("decline", "AnswerError", "declined"),
    ],
)
async def test_break__keeps_the_text_and_is_told_in_a_safe_sentence(
    chat: Chat,
    browser: Browser,
    caplog: pytest.LogCaptureFixture,
    words: str,
    error_type: str,
    sentence: str,
) -> None:
    conversation = await browser.begin()
    answer = await browser.ask(conversation, f"Now {words}")
    assert answer["status"] == "failed"
    assert answer["content"] == (TEXT if words == "decline" else "".join(ANSWER[:3]))
    assert sentence in answer["error"]
    assert answer["metadata"]["error_type"] == error_type
    await assert_nothing_leaks(chat, browser, conversation)
    assert_logged(caplog, error_type)


async def test_model_that_is_not_there__is_told_in_a_safe_sentence(
    make_chat: MakeChat, caplog: pytest.LogCaptureFixture
) -> None:
    # Port 1 of the loopback interface: nobody listens there.
    chat = await make_chat(base_url="http://127.0.0.1:1/v1")
    browser = await chat.open_browser()
    await browser.meet()
    conversation = await browser.begin()
    answer = await browser.ask(conversation, "What is MongoDB?")
    assert answer["error"] == "The model could not be reached. Try again."
    assert answer["metadata"]["error_type"] == "APIConnectionError"
    await assert_nothing_leaks(chat, browser, conversation)
    assert_logged(caplog, "APIConnectionError")


async def test_retry__after_a_failure_answers(chat: Chat, browser: Browser) -> None:
    chat.fake.statuses.append(500)
    conversation = await browser.begin()
    failed = await browser.ask(conversation, "What is MongoDB?")
    assert failed["status"] == "failed"
    again = await browser.retry(conversation, failed["id"])
    assert (again["status"], again["content"]) == ("completed", TEXT)
    assert again["replaces"] == failed["id"]


async def assert_nothing_leaks(chat: Chat, browser: Browser, conversation: str) -> None:
    """Looks at all that is stored and sent for the key, and for what only a trace or a log has."""
    found = [
        (await browser.http.get(f"/api/conversations/{conversation}/messages")).text,
        (await browser.http.get(f"/api/conversations/{conversation}")).text,
        (await browser.http.get(f"/api/chat/{conversation}")).text,
    ]
    async with Converse(chat.settings.uri, chat.settings.database) as converse:
        for model in (converse.message_model, converse.conversation_model, converse.page_model):
            found += [str(each) async for each in collection_of(model).find({})]
    assert any("failed" in each for each in found)
    for each in found:
        for secret in (KEY, "Traceback", 'File "', "127.0.0.1", "Refused", "Overloaded"):
            assert secret not in each


def assert_logged(caplog: pytest.LogCaptureFixture, error_type: str) -> None:
    [record] = [each for each in caplog.records if each.name == "converse_mongo.tools.chat.model"]
    assert record.levelno == logging.ERROR
    if error_type == "AnswerError":  # raised by the chat itself: its words say all
        assert not record.exc_info
        assert "The model" in record.getMessage()
    else:
        assert record.exc_info is not None
        assert record.exc_info[0] is not None
        assert record.exc_info[0].__name__ == error_type
        assert record.exc_info[2] is not None
    # One record says it: the library has nothing to add.
    assert not [each for each in caplog.records if each.name == "converse_mongo"]


def test_secrets__are_not_in_the_text_of_the_settings() -> None:
    settings = Settings(
        uri="mongodb://ada:hunter2@localhost", api_key=KEY, base_url="https://ada:hunter2@llm/v1"
    )
    assert KEY not in repr(settings)
    assert "hunter2" not in f"{settings!r} {settings}"


async def test_queue__has_answers_wait_for_workers(
    make_chat: MakeChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAT_QUEUE", "answers")
    chat = await make_chat(queue=Settings.from_environment("mongodb://localhost").queue)
    browser = await chat.open_browser()
    await browser.meet()
    answer = await browser.say(await browser.begin(), "Hello")
    assert answer["work"] == {"state": "queued", "attempt": 1}
    assert chat.fake.asked == []


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("CHAT_LEASE", "x", "a number of seconds above 0, got 'x'"),
        ("CHAT_LEASE", "-1", "a number of seconds above 0, got '-1'"),
        ("CHAT_HOSTS", "a b", "'a b' is not a host"),
    ],
)
def test_setting__that_is_invalid_is_told_before_a_server_starts(
    name: str, value: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(EmbeddedServer, "start", lambda _: pytest.fail("it started"))
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        pytest.raises(ConfigurationError, match=re.escape(complaint)),
    ):
        serve(None, [listening], "127.0.0.1", "in memory")


# Users


async def test_users__cannot_see_each_others_conversations(chat: Chat, browser: Browser) -> None:
    stranger = await chat.open_browser()
    mine = await browser.meet()
    assert mine["id"] != (await stranger.meet())["id"]
    assert mine == await browser.meet()
    conversation = await browser.begin()
    answer = await browser.ask(conversation, "What is MongoDB?")

    assert [each["id"] for each in await browser.listed()] == [conversation]
    assert await stranger.listed() == []
    one = f"/api/conversations/{conversation}"
    for method, path in [
        ("GET", one),
        ("GET", f"{one}/messages"),
        ("GET", f"{one}/events"),
        ("GET", f"{one}/messages/{answer['id']}"),
        ("POST", f"{one}/messages"),
        ("POST", f"{one}/messages/{answer['id']}/retry"),
        ("POST", f"{one}/messages/{answer['id']}/stop"),
        ("GET", f"/api/chat/{conversation}"),
    ]:
        content = {"content": "Mine!"} if method == "POST" else None
        refused = await stranger.http.request(method, path, json=content)
        assert refused.status_code == 404, path


async def test_session__is_a_cookie_that_scripts_cannot_read_and_the_database_does_not_have(
    chat: Chat,
) -> None:
    browser = await chat.open_browser()
    first = await browser.http.get("/api/me")
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "set-cookie" not in (await browser.http.get("/api/me")).headers
    conversation = await browser.begin()
    async with Converse(chat.settings.uri, chat.settings.database) as converse:
        owner = (await converse.get_conversation(conversation)).owner
    assert owner is not None
    assert owner.pair == ("user", first.json()["id"])
    assert browser.http.cookies["chat_session"] not in json.dumps(owner.pair)


@pytest.mark.parametrize("cookie", ["", "short", "x" * 44, "ä" * 43])
async def test_session__that_was_made_up_is_replaced(chat: Chat, cookie: str) -> None:
    browser = await chat.open_browser()
    response = await browser.http.get(
        "/api/me", headers=[(b"cookie", f"chat_session={cookie}".encode())]
    )
    assert "set-cookie" in response.headers


async def test_conversations__are_listed_the_newest_first(browser: Browser) -> None:
    first, second = await browser.begin(), await browser.begin()
    assert [each["id"] for each in await browser.listed()] == [second, first]
    await browser.ask(first, "What is MongoDB?")
    assert [each["id"] for each in await browser.listed()] == [first, second]


async def test_title__can_be_given_and_is_kept(browser: Browser) -> None:
    begun = await browser.http.post("/api/conversations", json={"title": " Databases "})
    await browser.ask(begun.json()["id"], "What is MongoDB?")
    assert [each["title"] for each in await browser.listed()] == ["Databases"]
    begun = await browser.http.post("/api/conversations", json={"title": "# A\u202e\n**b**\x07"})
    assert begun.json()["title"] == "A b"
    too_long = await browser.http.post("/api/conversations", json={"title": "x" * 201})
    assert too_long.status_code == 422


# The page


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/app.js", "text/javascript"),
        ("/messages.js", "text/javascript"),
        ("/text.js", "text/javascript"),
        ("/markdown.js", "text/javascript"),
        ("/vendor/markdown-it.js", "text/javascript"),
        ("/style.css", "text/css"),
        ("/icon.svg", "image/svg+xml"),
        ("/client/index.js", "text/javascript"),
        ("/client/events.js", "text/javascript"),
    ],
)
async def test_files__are_served_with_a_strict_policy(
    browser: Browser, path: str, kind: str
) -> None:
    response = await browser.http.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(kind)
    assert_strict(response)
    again = await browser.http.get(path, headers={"if-none-match": response.headers["etag"]})
    assert again.status_code == 304


async def test_answers_of_the_service__have_a_strict_policy(browser: Browser) -> None:
    for path in ("/api/me", "/api/conversations", "/api/nothing", "/nothing", "/docs"):
        assert_strict(await browser.http.get(path))


async def test_page__has_no_inline_script_or_style(browser: Browser) -> None:
    page = (await browser.http.get("/")).text
    assert "<style" not in page
    assert "style=" not in page
    assert page.count("<script") == page.count('<script type="module" src=') == 1
    for path in ("/app.js", "/messages.js", "/text.js", "/markdown.js"):
        assert "innerHTML" not in (await browser.http.get(path)).text


def assert_strict(response: httpx.Response) -> None:
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'; trusted-types dompurify" in policy
    assert response.headers["x-content-type-options"] == "nosniff"


# Without a model


async def test_without_a_key__a_built_in_text_answers(make_chat: MakeChat) -> None:
    chat = await make_chat(api_key=None)
    browser = await chat.open_browser()
    assert (await browser.http.get("/api/me")).json()["canned"] is True
    conversation = await browser.begin()
    answer = await browser.ask(conversation, "Is anybody there?")
    assert answer["status"] == "completed"
    assert "Is anybody there?" in answer["content"]
    assert answer["metadata"]["model"] == CannedModel.name
    assert answer["metadata"]["usage"]["completion_tokens"] > 10
    assert chat.fake.asked == []


async def test_without_a_key__tools_shows_a_thought_tool_calls_and_a_source(
    make_chat: MakeChat,
) -> None:
    chat = await make_chat(api_key=None)
    browser = await chat.open_browser()
    await browser.meet()
    answer = await browser.ask(await browser.begin(), "/tools")
    assert answer["status"] == "completed"
    assert answer["content"].startswith("Two tools ran at once.")
    kinds = [each["kind"] for each in answer["parts"]]
    assert kinds == ["step", "reasoning", "tool_call", "tool_call", "text", "source_url"]
    assert [each["fields"]["output"] for each in answer["parts"][2:4]][1] == "12:00"


@pytest.mark.parametrize(
    ("approved", "state", "text"),
    [
        (True, "output-available", "You agreed, so the tool ran."),
        (False, "output-denied", "You declined, so the tool did not run."),
    ],
)
async def test_without_a_key__ask_waits_for_the_user_and_goes_on(
    make_chat: MakeChat, approved: bool, state: str, text: str
) -> None:
    chat = await make_chat(api_key=None)
    browser = await chat.open_browser()
    await browser.meet()
    conversation = await browser.begin()
    said = await browser.say(conversation, "/ask")
    waiting = await browser.read_until("message.suspended", conversation, said["id"])
    assert [each["kind"] for each in waiting["parts"]] == ["step", "tool_call"]
    assert not waiting["content"]
    answer = await browser.answer(conversation, waiting["id"], call_id="call_1", approved=approved)
    assert answer["status"] == "completed"
    assert answer["content"].startswith(text)
    assert [each["kind"] for each in answer["parts"]] == ["step", "tool_call", "text"]
    assert answer["parts"][1]["fields"].get("output") == ("sent" if approved else None)


async def test_without_a_key__fail_fails_midway(make_chat: MakeChat) -> None:
    chat = await make_chat(api_key=None)
    browser = await chat.open_browser()
    await browser.meet()
    conversation = await browser.begin()
    answer = await browser.ask(conversation, "/fail")
    assert answer["status"] == "failed"
    assert "cut off" in answer["content"]
    assert "Try again" in answer["error"]
    again = await browser.retry(conversation, answer["id"])
    assert again["replaces"] == answer["id"]
