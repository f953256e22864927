"""Many clients: all complete on one change stream, slow ones alone, vanished ones forgotten."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest
from bson import ObjectId
from pymongo.errors import AutoReconnect
from starlette.requests import HTTPConnection
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from converse_mongo import (
    ChunkReceived,
    Conversation,
    ConversationDeleted,
    Message,
    MessageRole,
    PartChunk,
)
from converse_mongo.domain.events import Event
from converse_mongo.domain.validation import now
from converse_mongo.web import Limits, Streams, ui_messages
from converse_mongo.web.frames import KEPT_BYTES, Frames
from converse_mongo.web.presenter import Presenter
from tests.conftest import Facade
from tests.web.conftest import STRANGER, MakeSite, Sent, Site, owner, read_events
from tests.web.helpers import watchers_are_gone
from tests.web.test_sockets import open_socket

Reading: TypeAlias = AsyncIterator[Any] | ClientConnection

CLIENTS = 500
VANISHING = 400


@asynccontextmanager
async def raw_stream(
    port: int, path: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client that reads when it likes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
    writer.write(f"GET /api{path} HTTP/1.1\r\nhost: x\r\nauthorization: ada\r\n\r\n".encode())
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def test_500_clients__are_all_complete_on_one_change_stream(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(streams_per_key=None))
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    path = f"/conversations/{conversation.id}/messages/{message.id}/events"
    texts = [f"token {number} " for number in range(100)]
    open_ones = asyncio.Semaphore(50)  # connecting, not connected: a queue of the system is short

    async def view(ready: asyncio.Barrier) -> str:
        async with open_ones:
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(
                f"GET /api{path} HTTP/1.1\r\nhost: x\r\nauthorization: ada\r\n"
                "connection: close\r\n\r\n".encode()
            )
            await reader.readuntil(b"retry: ")
        await ready.wait()
        text = (await reader.read()).decode()
        writer.close()
        return text

    async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
        ready = asyncio.Barrier(CLIENTS + 1)
        viewing = [tasks.create_task(view(ready)) for _ in range(CLIENTS)]
        await ready.wait()
        statistics = site.converse.statistics()
        assert (statistics.watchers, statistics.topics) == (CLIENTS, 1)
        for first in range(0, len(texts), 10):
            await message.append_chunks(texts[first : first + 10])
        await message.complete_streaming()
    for viewed in viewing:
        text = viewed.result()
        assert text.count("event: chunk.received") == len(texts)
        assert text.count("event: message.completed") == 1
        assert all(text.count(f'"content":"{each}"') == 1 for each in texts)
    await watchers_are_gone(site)
    # That of the worker inside, and the one that took its place when the first client came.
    assert site.converse.statistics().streams_opened <= 2


async def test_slow_client__holds_up_nobody_and_nothing(site: Site) -> None:
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    path = f"/conversations/{conversation.id}/messages/{message.id}/events"
    large = "x" * 200_000
    async with raw_stream(site.port, path) as (slow, _), raw_stream(site.port, path) as (stuck, _):
        await slow.readuntil(b"retry: ")
        await stuck.readuntil(b"retry: ")  # and it reads no more before it goes
        async with site.http.stream("GET", path) as quick:
            events = read_events(quick)
            for _ in range(60):  # 12 MB: more than all buffers between the two hold
                await message.append_chunk(large)
                sent = await anext(events)
                assert len(sent.data["chunk"]["content"]) == len(large)
        await message.complete_streaming()
        # Later the slow one has all of it, from the database.
        received = 0
        async with asyncio.timeout(60):
            while b"event: message.completed" not in (part := await slow.read(2**16)):
                received += part.count(b"x")
        assert received >= 60 * len(large) - 2**16
    await watchers_are_gone(site)


async def test_clients_that_vanish__leave_nothing(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(streams_per_key=None))
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    paths = [
        f"/conversations/{conversation.id}/messages/{message.id}/events",
        f"/conversations/{conversation.id}/events",
        f"/chat/{conversation.id}/stream",
    ]
    before = len(asyncio.all_tasks())

    async def vanish(number: int) -> None:
        async with raw_stream(site.port, paths[number % len(paths)]) as (reader, _):
            if number % 2:
                await reader.readuntil(b"retry: ")
            await asyncio.sleep(0)

    for first in range(0, VANISHING, 50):
        await asyncio.gather(*(vanish(number) for number in range(first, first + 50)))
    await watchers_are_gone(site)
    async with asyncio.timeout(20):
        while len(asyncio.all_tasks()) > before + 5:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    assert site.converse.statistics().topics == 0
    # That of the worker inside, and the one that took its place when the first client came.
    assert site.converse.statistics().streams_opened <= 2


def paths_of(conversation: Conversation, message: Message) -> dict[str, str]:
    """All streams that end with the rights to a conversation."""
    one = f"/conversations/{conversation.id}"
    return {
        "conversation": f"{one}/events",
        "message": f"{one}/messages/{message.id}/events",
        "chat": f"/chat/{conversation.id}/stream",
        "owner": "/events",
    }


KINDS = ["conversation", "message", "chat", "owner"]


@pytest.mark.parametrize("kind", KINDS)
async def test_headers__keep_a_stream_from_caches_and_buffers(
    make_site: MakeSite, kind: str
) -> None:
    site = await make_site(owner=owner)
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    path = paths_of(conversation, message)[kind]
    async with site.http.stream("GET", path) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-store, no-transform"
        assert response.headers["vary"] == "authorization, cookie"
        assert response.headers["x-accel-buffering"] == "no"
    head = await site.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["cache-control"] == "no-store, no-transform"
    await watchers_are_gone(site)


async def test_heartbeat__comes_in_silence_and_loses_nothing(make_site: MakeSite) -> None:
    site = await make_site(heartbeat=0.05)
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    path = paths_of(conversation, message)["message"]
    async with asyncio.timeout(20), site.http.stream("GET", path) as response:
        lines = response.aiter_lines()
        for content in ("one", "two"):
            beats = 0
            async for line in lines:
                beats += line == ": ping"
                if beats == 2:
                    break
            await message.append_chunk(content)
            async for line in lines:
                if line.startswith("data: "):
                    assert json.loads(line[6:])["chunk"]["content"] == content
                    break
        await message.complete_streaming()
        assert [line async for line in lines if line.startswith("event: ")] == [
            "event: message.completed"
        ]


async def test_lifetime__ends_a_stream_in_order(make_site: MakeSite) -> None:
    site = await make_site(lifetime=0.1, owner=owner)
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    for kind, path in paths_of(conversation, message).items():
        async with asyncio.timeout(20), site.http.stream("GET", path) as response:
            # A stream that is cut off raises here.
            text = (await response.aread()).decode()
        assert text.startswith("retry: ")
        assert text.endswith("data: [DONE]\n\n") == (kind == "chat")


async def test_client_that_does_not_read__is_let_go_with_what_it_does_not_read(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "converse_mongo")
    site = await make_site(send_timeout=0.2)
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    path = paths_of(conversation, message)["conversation"]
    async with raw_stream(site.port, path) as (stuck, _):
        await stuck.readuntil(b"retry: ")
        for _ in range(60):  # 12 MB: more than all buffers between the two hold
            await message.append_chunk("x" * 200_000)
        await watchers_are_gone(site)
        assert caplog.text.count("did not read") == 1
        # The connection is closed now, and not once the client has read what waits for it.
        rest = b""
        with suppress(ConnectionResetError):
            async with asyncio.timeout(20):
                rest = await stuck.read()
        assert not rest.endswith(b"\r\n")
    assert "ASGI callable" not in caplog.text


# Rights


class Rights:
    """Answers for a site what a test says."""

    def __init__(self) -> None:
        self.answer: bool | Exception = True
        self.asked = 0
        self.was_asked = asyncio.Condition()

    async def ask(self) -> bool:
        async with self.was_asked:
            self.asked += 1
            self.was_asked.notify_all()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def authorize(self, request: HTTPConnection, conversation: Conversation) -> bool:
        return await self.ask() and conversation.title != "locked"

    async def owner(self, request: HTTPConnection) -> tuple[str, str] | None:
        return owner(request) if await self.ask() else None

    async def are_asked(self, times: int) -> None:
        async with asyncio.timeout(20), self.was_asked:
            goal = self.asked + times
            await self.was_asked.wait_for(lambda: self.asked >= goal)


@asynccontextmanager
async def opened(site: Site, kind: str) -> AsyncIterator[tuple[Conversation, Message, Reading]]:
    """A stream, or a socket, that is there."""
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    if kind == "socket":
        async with open_socket(site, conversation.id) as socket:
            await socket.recv()
            yield conversation, message, socket
    else:
        path = paths_of(conversation, message)[kind]
        async with site.http.stream("GET", path) as response:
            assert response.status_code == 200
            lines = response.aiter_lines()
            assert (await anext(lines)).startswith("retry: ")
            yield conversation, message, lines


async def ends(reading: Reading) -> None:
    """Waits for the end, which comes in order."""
    with suppress(ConnectionClosedError):
        async with asyncio.timeout(20):
            async for _ in reading:
                pass


async def site_with(make_site: MakeSite, rights: Rights, **options: Any) -> Site:
    return await make_site(authorize=rights.authorize, owner=rights.owner, **options)


@pytest.mark.parametrize("kind", [*KINDS, "socket"])
async def test_rights__are_asked_for_again_until_they_are_gone(
    make_site: MakeSite, kind: str
) -> None:
    rights = Rights()
    site = await site_with(make_site, rights, reauthorize=0.05)
    async with opened(site, kind) as (_, _, reading):
        await rights.are_asked(3)
        assert site.converse.statistics().watchers == 1
        rights.answer = False
        await ends(reading)
        if isinstance(reading, ClientConnection):
            assert reading.close_code == 1008
    await watchers_are_gone(site)


@pytest.mark.parametrize("kind", ["conversation", "message", "chat", "socket"])
@pytest.mark.parametrize("gone", ["locked", "deleted"])
async def test_rights__are_those_to_the_conversation_as_it_is_now(
    make_site: MakeSite, kind: str, gone: str
) -> None:
    site = await site_with(make_site, Rights(), reauthorize=0.05)
    async with opened(site, kind) as (conversation, _, reading):
        if gone == "locked":
            conversation.title = "locked"
            await conversation.save()
        else:
            await conversation.delete()
        await ends(reading)
    await watchers_are_gone(site)


@pytest.mark.parametrize("kind", [*KINDS, "socket"])
async def test_rights__that_nobody_can_tell_end_nothing(
    make_site: MakeSite, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    rights = Rights()
    site = await site_with(make_site, rights, reauthorize=0.05)
    async with opened(site, kind) as (conversation, message, reading):
        rights.answer = AutoReconnect("the database of rights is away")
        await rights.are_asked(3)
        rights.answer = True
        await rights.are_asked(2)
        assert "could not be authorized again" in caplog.text
        if kind == "owner":
            await conversation.start_streaming_assistant()
        else:
            await message.append_chunk("Hello")
        async with asyncio.timeout(20):
            if isinstance(reading, ClientConnection):
                assert json.loads(await reading.recv())["type"] == "chunk.received"
            else:
                while not (await anext(reading)).startswith("data: "):
                    pass
    await watchers_are_gone(site)


async def test_rights__of_an_owner_to_each_conversation_are_asked_for_again(
    make_site: MakeSite,
) -> None:
    site = await make_site(
        owner=owner, authorize=lambda _, found: found.title != "locked", reauthorize=0.05
    )
    conversation, other = await site.conversation(), await site.conversation()

    async def names(events: AsyncIterator[Sent]) -> str:
        async with asyncio.timeout(20):
            found: str = (await anext(events)).data["conversation_id"]
        return found

    async with site.http.stream("GET", "/events") as response:
        events = read_events(response)
        assert (await anext(events)).event == "stream.opened"
        await conversation.create_user_message("one")
        assert await names(events) == str(conversation.id)
        conversation.title = "locked"
        await conversation.save()
        seen = str(conversation.id)
        async with asyncio.timeout(20):
            while seen == str(conversation.id):  # what it may see for a little longer
                await conversation.create_user_message("two")
                await other.create_user_message("two")
                seen = await names(events)
            for _ in range(2):
                await asyncio.sleep(0.06)  # so that the answer is old
                await conversation.create_user_message("a secret")
                await other.create_user_message("three")
        found = {await names(events) for _ in range(2)}
    assert found == {str(other.id)}


# Ending them at once


class Name:
    """An id as an application has it, which an owner has as text."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        return self._name


async def test_streams__end_by_key_at_once_from_any_thread(make_site: MakeSite) -> None:
    streams = Streams()
    site = await make_site(owner=owner, streams=streams, authorize=lambda *_: True, lifetime=1000.0)
    theirs = await site.conversation("eve")
    kinds = [*KINDS, "socket"]
    async with AsyncExitStack() as stack:
        mine = [await stack.enter_async_context(opened(site, kind)) for kind in kinds]
        path = f"/conversations/{theirs.id}/events"
        other = await stack.enter_async_context(site.http.stream("GET", path))
        events = read_events(other)
        assert streams.count == len(kinds) + 1
        assert streams.end(("user", "nobody")) == 0
        assert await asyncio.to_thread(streams.end, ("user", Name("ada"))) == len(kinds)
        for _, _, reading in mine:
            await ends(reading)
        async with asyncio.timeout(20):
            while streams.count > 1:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        await theirs.create_user_message("Hello")
        async with asyncio.timeout(20):
            assert (await anext(events)).event == "message.created"
        assert streams.end_all() == 1
        await ends(events)
    await watchers_are_gone(site)
    assert streams.count == 0


# Limits by key


async def test_limit__by_key_is_one_for_streams_and_sockets(make_site: MakeSite) -> None:
    site = await make_site(owner=owner, limits=Limits(streams_per_key=3))
    conversation, theirs = await site.conversation(), await site.conversation("eve")
    message = await conversation.start_streaming_assistant()
    paths = paths_of(conversation, message)
    async with AsyncExitStack() as stack:
        for path in (paths["conversation"], paths["owner"]):
            await stack.enter_async_context(site.http.stream("GET", path))
        last = AsyncExitStack()
        await last.enter_async_context(open_socket(site, conversation.id))
        for path in paths.values():
            refused = await site.http.get(path)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) > 0
            assert refused.json()["error"]["code"] == "too_many_requests"
        with pytest.raises(InvalidStatus) as denied:
            await stack.enter_async_context(open_socket(site, conversation.id))
        assert denied.value.response.status_code == 429
        assert int(denied.value.response.headers["retry-after"]) > 0
        path = f"/conversations/{theirs.id}/events"
        async with site.http.stream("GET", path, headers=STRANGER) as other:
            assert other.status_code == 200
        await last.aclose()
        async with asyncio.timeout(20):
            while True:  # the server learns of it a little later
                async with site.http.stream("GET", paths["chat"]) as again:
                    if again.status_code == 200:
                        break
    await watchers_are_gone(site)


async def test_limit__has_the_key_that_the_application_names(make_site: MakeSite) -> None:
    def key(request: HTTPConnection, conversation: Conversation | None) -> str | None:
        return request.headers.get("tenant")

    site = await make_site(limits=Limits(streams_per_key=1, key=key))
    conversation = await site.conversation()
    path = f"/conversations/{conversation.id}/events"

    async def status(tenant: dict[str, str]) -> int:
        async with site.http.stream("GET", path, headers=tenant) as response:
            return response.status_code

    async with site.http.stream("GET", path, headers={"tenant": "a"}):
        assert await status({"tenant": "a"}) == 429
        assert await status({"tenant": "b"}) == 200
        async with site.http.stream("GET", path):
            assert await status({}) == 200


# Encoding


async def test_events__are_encoded_once_for_all_who_watch(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Event] = []
    deltas: list[Event] = []
    present, delta = Presenter.event, ui_messages._delta

    def counted(presenter: Presenter, event: Event, *lacking: Any) -> Any:
        made.append(event)
        return present(presenter, event, *lacking)

    def counted_delta(event: Any) -> bytes:
        deltas.append(event)
        return delta(event)

    monkeypatch.setattr(Presenter, "event", counted)
    monkeypatch.setattr(ui_messages, "_delta", counted_delta)
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    cursor = (await conversation.history()).cursor
    paths = paths_of(conversation, message)
    texts = [f"token {number} " for number in range(30)]
    async with AsyncExitStack() as stack:

        async def open_streams(path: str) -> list[httpx.Response]:
            opening = (site.http.stream("GET", path) for _ in range(20))
            return [await stack.enter_async_context(each) for each in opening]

        sse = await open_streams(f"{paths['conversation']}?after={cursor}")
        chats = await open_streams(paths["chat"])
        sockets = [
            await stack.enter_async_context(open_socket(site, conversation.id, cursor))
            for _ in range(5)
        ]
        for text in texts:
            await message.append_chunk(text)
        await message.complete_streaming()

        async def of_sse(response: httpx.Response) -> list[str]:
            events = read_events(response)
            return [(await anext(events)).data["chunk"]["content"] for _ in texts]

        async def of_socket(socket: ClientConnection) -> list[str]:
            return [json.loads(await socket.recv())["chunk"]["content"] for _ in texts]

        async def of_chat(response: httpx.Response) -> list[str]:
            return [
                each.data["delta"] async for each in read_events(response) if "delta" in each.data
            ]

        async with asyncio.timeout(60):
            for found in [
                *[await of_sse(each) for each in sse],
                *[await of_socket(each) for each in sockets],
                *[await of_chat(each) for each in chats],
            ]:
                assert found == texts
    chunks = [each for each in made if isinstance(each, ChunkReceived)]
    assert len(chunks) == len(texts)
    assert len(deltas) == len(texts)


def test_frames__keep_a_bounded_number_of_bytes() -> None:
    frames = Frames(Presenter(show_errors=False, show_metadata=dict))
    events = [ConversationDeleted(conversation_id=ObjectId()) for _ in range(50)]
    made: list[Event] = []

    def make(event: Event) -> bytes:
        made.append(event)
        return b"x" * (KEPT_BYTES // 10)

    for event in [*events, *events[-5:]]:
        frames.once(make, event)
    assert made == events
    frames.once(make, events[0])
    assert len(made) == len(events) + 1


def test_part__shows_browsers_only_that_it_is_there() -> None:
    said: dict[str, Any] = {"fields": {"output": "a secret"}, "delta": "a secret"}
    chunk = PartChunk(3, "", now(), part=1, event="set", **said)
    received = ChunkReceived(
        conversation_id=ObjectId(), message_id=ObjectId(), role=MessageRole.ASSISTANT, chunk=chunk
    )
    text = Frames(Presenter(show_errors=True, show_metadata=None)).text(received)
    assert "secret" not in text
    assert json.loads(text)["chunk"].keys() == {"sequence", "content", "created_at", "metadata"}


PROGRAM = """
import sys
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from converse_mongo import Converse
from converse_mongo.web import Generations, routes

converse = Converse(sys.argv[1], database=sys.argv[2])


async def respond(conversation, message):
    async with message.writer() as writer:
        await writer.write("begun")
        await __import__("asyncio").Event().wait()


generations = Generations(respond, grace=0.2)


@asynccontextmanager
async def lifespan(app):
    async with converse, generations:
        yield


edge = routes(converse, authorize=lambda request, conversation: True, generations=generations)
app = Starlette(routes=[Mount("/api", routes=edge)], lifespan=lifespan)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), log_level="warning")
"""


async def test_shutdown__ends_streams_in_order_whatever_clients_do_and_keeps_the_text(
    facade: Facade, server_uri: str, tmp_path: Path
) -> None:
    from converse_mongo.embedded import free_port

    converse = await facade()
    conversation, large = await converse.start_conversation(), await converse.start_conversation()
    for _ in range(60):  # 12 MB: more than all buffers between the two hold
        await large.create_user_message("x" * 200_000)
    program, port = tmp_path / "program.py", free_port()
    program.write_text(PROGRAM, encoding="utf-8")
    process = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, str(program), server_uri, converse.database_name, str(port)],
        stderr=subprocess.PIPE,
    )
    place = f"127.0.0.1:{port}/api/conversations"
    base = f"http://{place}/{conversation.id}"
    try:
        async with asyncio.timeout(60), httpx.AsyncClient(timeout=30) as http:
            while True:
                try:
                    await http.get(base)
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)
            said = await http.post(f"{base}/messages", json={"content": "Hello"})
            answer_id = said.json()["answer"]["id"]
            async with (
                raw_stream(port, f"/conversations/{large.id}/events") as (stuck, _),
                connect(f"ws://{place}/{conversation.id}/socket", proxy=None) as socket,
                http.stream("GET", f"{base}/events") as stream,
            ):
                await stuck.readuntil(b"retry: ")
                types = []
                async for sent in read_events(stream):
                    types.append(sent.event)
                    if sent.event == "chunk.received":
                        os.kill(process.pid, signal.SIGTERM)
                # The stream came to its end in order: a broken one raises here.
                await ends(socket)
                code = await asyncio.to_thread(process.wait, 30)
            assert types[:3] == ["message.created", "message.created", "chunk.received"]
            assert code in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        errors = process.stderr.read().decode()
        process.stderr.close()
    assert "Traceback" not in errors, errors
    message = await converse.get_message(answer_id)
    assert (message.status.value, message.content) == ("streaming", "begun")
    assert message.work is not None
    assert message.work.state == "queued"  # for the next process
