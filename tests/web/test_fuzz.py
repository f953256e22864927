"""Requests that are made up from the description: none of them is a server error."""

import json
from pathlib import Path

import pytest

pytest.importorskip("schemathesis", reason="comes with python -m nox -s browser")

from converse_mongo.web import openapi_paths
from tests.web.conftest import MakeSite
from tests.web.fuzzing import find_server_errors, with_known_ids

EXAMPLES = 8


@pytest.mark.timeout(400)
async def test_requests__are_never_a_server_error(
    make_site: MakeSite, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = await make_site(lifetime=0.05, owner=lambda request: ("user", "ada"))
    conversation = await site.conversation()
    message = await conversation.create_assistant_message("Hello")
    ids = {"conversation": str(conversation.id), "message": str(message.id)}
    description = {
        "openapi": "3.1.0",
        "info": {"title": "Chat", "version": "1"},
        "paths": openapi_paths("/api", owner=True),
    }
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(with_known_ids(description, ids)), encoding="utf-8")
    url = f"http://127.0.0.1:{site.port}"
    assert await find_server_errors(path, url, "authorization: ada", EXAMPLES) == ""
    assert "Traceback" not in caplog.text
