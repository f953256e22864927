"""Requests that schemathesis makes up from the description: none of them is a server error."""

import asyncio
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from converse_mongo import Conversation, Message
from converse_mongo.web import openapi_paths
from tests.web.conftest import MakeSite

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None,
    reason="needs schemathesis: python -m nox -s browser",
)

EXAMPLES = 40


def describe(conversation: Conversation, message: Message) -> dict[str, Any]:
    """The description, with ids that are there: others are a 404 before they are anything."""
    ids = {"conversation": str(conversation.id), "message": str(message.id)}
    paths = openapi_paths("/api", owner=True)
    for operations in paths.values():
        for operation in operations.values():
            for each in operation["parameters"]:
                if each["in"] == "path":
                    each["schema"] = {"type": "string", "enum": [ids[each["name"]]]}
    chat = paths["/api/chat"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    chat["properties"]["id"] = {"type": "string", "enum": [ids["conversation"]]}
    return {"openapi": "3.1.0", "info": {"title": "Chat", "version": "1"}, "paths": paths}


@pytest.mark.timeout(400)
async def test_requests__are_never_a_server_error(
    make_site: MakeSite, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = await make_site(lifetime=0.05, owner=lambda request: ("user", "ada"))
    conversation = await site.conversation()
    message = await conversation.create_assistant_message("Hello")
    description = tmp_path / "openapi.json"
    description.write_text(json.dumps(describe(conversation, message)), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", str(description)),
        *("--url", f"http://127.0.0.1:{site.port}", "--header", "authorization: ada"),
        *("--checks", "not_a_server_error", "--max-examples", str(EXAMPLES)),
        *("--phases", "examples,coverage,fuzzing", "--no-color"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        printed = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, printed
    assert "Traceback" not in caplog.text
