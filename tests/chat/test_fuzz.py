"""Requests made up from the description that the chat itself gives: none is a server error."""

import json
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

pytest.importorskip("schemathesis", reason="comes with python -m nox -s browser")

from tests.chat.conftest import Browser, MakeChat
from tests.web.fuzzing import find_server_errors, with_known_ids

EXAMPLES = 8


@pytest_asyncio.fixture
async def browser(make_chat: MakeChat) -> Browser:
    chat = await make_chat(lifetime=0.05)
    browser = await chat.open_browser()
    await browser.meet()
    return browser


@pytest.mark.timeout(400)
async def test_requests__are_never_a_server_error(
    browser: Browser, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    described: dict[str, Any] = (await browser.http.get("/openapi.json")).json()
    assert {"/api/me", "/api/conversations", "/api/events"} < described["paths"].keys()
    conversation = await browser.begin()
    answer = await browser.ask(conversation, "What is MongoDB?")
    path = tmp_path / "openapi.json"
    ids = {"conversation": conversation, "message": answer["id"]}
    path.write_text(json.dumps(with_known_ids(described, ids)), encoding="utf-8")
    cookie = "; ".join(f"{name}={value}" for name, value in browser.http.cookies.items())
    printed = await find_server_errors(
        path, str(browser.http.base_url), f"cookie: {cookie}", EXAMPLES
    )
    assert printed == ""
    # What is logged of answers is about the model; of requests, nothing is.
    assert "Exception in ASGI application" not in caplog.text
    listed = await browser.listed()
    assert conversation in [each["id"] for each in listed]
