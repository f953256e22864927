"""Requests are answered in time, whatever MongoDB does, and the edge works at once afterwards."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable

import httpx
import pytest
from bson import ObjectId
from starlette.applications import Starlette
from starlette.routing import Mount

from converse_mongo import Converse
from converse_mongo.embedded import EmbeddedServer
from converse_mongo.web import Limits, routes
from tests.integration.test_frozen import frozen
from tests.web.conftest import MakeSite, is_owner, owner
from tests.web.helpers import client_of
from tests.web.test_bodies import sending, status_of

SECONDS = 1.0
SLACK = 5.0
"""For a busy machine; without a deadline it is half a minute."""


@pytest.mark.skipif(sys.platform == "win32", reason="freezes a process by a signal")
async def test_requests__to_a_frozen_mongodb_are_answered(
    start_server: Callable[..., EmbeddedServer],
) -> None:
    server = start_server()
    limits = Limits(request_seconds=SECONDS)
    async with (
        Converse(server.uri, database="frozen") as converse,
        client_of(converse, limits=limits, owner=owner) as http,
    ):
        conversation = await converse.start_conversation(owner=("user", "ada"))
        message = await conversation.start_streaming_assistant()
        one = f"/conversations/{conversation.id}"
        assert (await http.get(one)).status_code == 200
        began = time.monotonic()
        with frozen(server):
            ends = await asyncio.gather(
                *(http.get(one) for _ in range(40)),
                *(http.get(f"{one}/{path}") for path in ("messages", "events")),
                http.get(f"{one}/messages/{message.id}/events"),
                http.post(f"{one}/messages", json={"content": "Hello"}),
                http.post("/chat", json={"id": str(conversation.id)}),
            )
            assert time.monotonic() - began < SECONDS + SLACK
        assert {(end.status_code, end.headers["retry-after"]) for end in ends} == {(503, "2")}
        assert {end.json()["error"]["code"] for end in ends} == {"unavailable"}
        began = time.monotonic()
        assert (await http.get(f"{one}/messages")).status_code == 200
        assert time.monotonic() - began < SLACK


async def test_application__that_is_slow_has_the_same_deadline(make_site: MakeSite) -> None:
    async def authorize(request: object, conversation: object) -> bool:
        await asyncio.Event().wait()
        return True

    site = await make_site(authorize=authorize, limits=Limits(request_seconds=0.1))
    conversation = await site.conversation()
    answer = await site.http.get(f"/conversations/{conversation.id}")
    assert answer.status_code == 503


async def test_deadline__does_not_run_while_the_body_is_received(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(request_seconds=2, body_seconds=20))
    conversation = await site.conversation()
    path = f"/conversations/{conversation.id}/messages"
    async with sending(site, path, b'{"content":') as (reader, writer):
        await asyncio.sleep(2.5)  # longer than the deadline, on purpose
        writer.write(b'4\r\n"x"}\r\n0\r\n\r\n')
        assert await status_of(reader) == 201


async def test_stream__has_no_deadline(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(request_seconds=0.5))
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    path = f"/conversations/{conversation.id}/messages/{message.id}/events"
    async with site.http.stream("GET", path) as stream:
        await asyncio.sleep(0.8)  # longer than the deadline, on purpose
        await message.append_chunk("late")
        await message.complete_streaming()
        assert "late" in (await stream.aread()).decode()


async def test_converse__that_was_never_opened_is_an_error_in_the_log(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "converse_mongo")
    converse = Converse(server_uri, database="unopened")
    app = Starlette(routes=[Mount("/api", routes=routes(converse, authorize=is_owner))])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x/api") as http:
        path = f"/conversations/{ObjectId()}"
        answer = await http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        assert "retry-after" not in answer.headers
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert "open" in record.getMessage()
        caplog.clear()
        async with converse:
            assert (await http.get(path)).status_code == 404
        assert (await http.get(path)).status_code == 503  # it shuts down
        assert not caplog.records
