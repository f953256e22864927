"""Parts on the wire: live and in history the same, and nothing that is not for browsers."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo import (
    ChunkReceived,
    CustomPart,
    DataPart,
    FilePart,
    Message,
    MessageRole,
    PartIdentity,
    PartLog,
    ReasoningPart,
    SourceDocumentPart,
    SourceUrlPart,
    StoreUnavailableError,
    TextPart,
    ToolCallPart,
)
from converse_mongo.domain.chunks import PartChunk
from converse_mongo.domain.events import MessageCreated
from converse_mongo.domain.part_pieces import PartPiece, PartRef
from converse_mongo.domain.validation import now
from converse_mongo.web import Limits, stream_parts
from converse_mongo.web.stream_parts import StreamParts
from tests.web.conftest import MakeSite, Sent, Site, read_all, read_events
from tests.web.test_sockets import open_socket, receive

OWN = {"name": "a provider", "data": "for the provider only"}
THOUGHT, KEY, PRIVATE = "a thought", "a key of the vault", "an output that is not for users"
NEVER = ("for the provider only", THOUGHT, KEY, PRIVATE)

ALWAYS = {
    *("id", "conversation_id", "position", "role", "status", "content", "chunk_count"),
    *("metadata", "replaces", "error", "stop_reason", "created_at", "completed_at", "cursor"),
}


def show_parts(identity: PartIdentity) -> bool | Collection[str]:
    if identity.name == "broken":
        raise RuntimeError("a function of the application")
    if identity.kind == "reasoning" or identity.name == "vault":
        return False
    return ["text", "input"] if identity.name == "search" else True


async def agent(message: Message) -> AsyncIterator[None]:
    """Writes an answer with parts of all kinds; yields when a part of it is stored."""
    async with message.writer(granularity="token") as writer:

        async def stored(*parts: Any) -> None:
            for part in parts:
                await writer.write(part)
            await writer.flush()

        await stored("Let me ", "see. ", "")
        yield
        await writer.write_reasoning(THOUGHT)
        await stored(ReasoningPart(THOUGHT, provider=OWN))
        yield
        async with writer.step() as step:
            call = await writer.start_tool_call("search", call_id="c1", provider=OWN)
            vault = await writer.start_tool_call("vault", call_id="c2")
            await stored("Searching. ")
            yield
            await call.input_delta('{"q": ')
            await vault.input_delta(KEY)
            await writer.flush()
            yield
            await call.set_input({"q": "mongo"})
            await vault.set_input({"key": KEY})
            step.usage, step.provider = {"input_tokens": 3}, OWN
        inner, deep = call.nested(), vault.nested()
        await inner.write("A sub-agent ")
        await deep.write(KEY)
        await writer.flush()
        yield
        await inner.write_reasoning(THOUGHT)
        await inner.write("reads.")
        await deep.write(SourceUrlPart(f"https://{KEY}"))
        await stored("Between. ")
        yield
        async with call.execution(), vault.execution():
            await call.set_output(PRIVATE, preliminary=True)
            await stored(DataPart("weather", {"c": 20}, id="w"), DataPart("broken", KEY, id="b"))
            yield
            await vault.set_output(KEY)
            await call.set_error(PRIVATE)
        await stored(
            DataPart("weather", {"c": 21}, id="w"),
            DataPart("hint", 1, transient=True),
            SourceUrlPart("https://example.com", title="A page", provider=OWN),
            SourceDocumentPart("A paper", "application/pdf"),
            FilePart("gridfs://1", "image/png", name="a.png"),
            CustomPart("chart", points=[1, 2]),
            TextPart("Own ", id="t", provider=OWN),
            "text. ",
        )
        yield
        begun = len([chunk async for chunk in message.iter_chunks()])
        await stored(CustomPart("mark"), "In vain. ", ToolCallPart("lost", "c3", input=1))
        yield
        await writer.put([PartPiece("reset", fields={"from": begun})])
        await stored("Again. ")
        yield
        await writer.put([PartPiece("redact", PartRef(None, 0), {"reason": "a name"})])
        await stored("End.")
        yield


class Client:
    """What a page has: the state of a message, from a reading or from the start, and its stream."""

    def __init__(self, message: dict[str, Any] | None = None) -> None:
        self.log = PartLog()
        if message is not None:
            opened = message.get("open_part")
            parts = message.get("parts")
            if parts is None and opened is not None:
                text = message["content"]
                parts = [{"part": opened, "kind": "text", "fields": {}, "text": text}]
            state = {"next_sequence": message["chunk_count"], "parts": parts or []}
            self.log = PartLog.from_snapshot(state | {"open": opened})

    def take(self, data: dict[str, Any]) -> None:
        if data["type"] == "chunk.received":
            assert data["chunk"]["sequence"] == self.log.next_sequence
            self.log.add(data["chunk"])

    @property
    def shown(self) -> list[dict[str, Any]]:
        return [each for each in self.log.records() if each["kind"] != "hidden"]


async def test_parts__are_live_what_they_are_in_history_at_every_cut(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    site = await make_site(show_parts=show_parts)
    bodies: list[str] = []

    async def get(path: str, **query: Any) -> Any:
        answer = await site.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        bodies.append(answer.text)
        return answer.json()

    async def rest(path: str, **query: Any) -> list[Sent]:
        async with site.http.stream("GET", path, params=query) as stream:
            found = await read_all(stream)
        bodies.extend(json.dumps(each.data) for each in found)
        return found

    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    path = f"/conversations/{conversation.id}/messages/{message.id}"
    read: list[dict[str, Any]] = []
    live, socket_live = Client(), Client()
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        stream = await stack.enter_async_context(site.http.stream("GET", f"{path}/events"))
        events = read_events(stream)
        socket = await stack.enter_async_context(open_socket(site, conversation.id))
        await receive(socket)  # it was created
        async for _ in agent(message):
            read.append(await get(path))
            while live.log.next_sequence < read[-1]["chunk_count"]:
                live.take((await anext(events)).data)
                socket_live.take(await receive(socket))
            assert live.shown == Client(read[-1]).shown == socket_live.shown
            assert live.log.open == read[-1].get("open_part")
            [listed] = (await get(f"/conversations/{conversation.id}/messages"))["messages"]
            assert listed == read[-1]
            bodies.append(json.dumps(live.log.records()))
        assert (await anext(events)).event == "message.completed"
    ended = await get(path)
    assert "open_part" not in ended
    assert ended["parts"] == live.shown
    assert {part["kind"] for part in ended["parts"]} == {
        *("text", "step", "tool_call", "source_url", "source_document", "file", "data", "chart")
    }
    for late in [None, *read]:
        client = Client(late)
        query = {} if late is None else {"after": late["cursor"]}
        for sent in await rest(f"{path}/events", **query):
            client.take(sent.data)
        assert client.shown == live.shown
    first, end = await rest(f"{path}/events", snapshot="true")
    assert (first.event, end.event) == ("message.snapshot", "message.completed")
    assert (first.id, first.data["content"]) == (read[-1]["cursor"], live.log.text())
    shown = [{k: v for k, v in each.items() if k != "closed"} for each in first.data["parts"]]
    assert shown == [{k: v for k, v in each.items() if k != "closed"} for each in live.shown]
    dumped = (await site.converse.get_message(message.id)).model_dump_json()
    assert OWN["data"] not in dumped  # as an endpoint of the application returns it
    assert json.loads(dumped)["parts"]
    for each in NEVER:
        assert each not in "".join(bodies)
    assert len([each for each in caplog.records if "show_parts failed" in each.message]) == 1


async def test_snapshot__comes_in_place_of_the_chunks_to_who_has_none(site: Site) -> None:
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    await message.append_chunks(["a", ReasoningPart("b"), "c"])
    path = f"/conversations/{conversation.id}/messages/{message.id}/events"
    async with site.http.stream("GET", path, params={"snapshot": "true"}) as stream:
        events = read_events(stream)
        first = await anext(events)
        await message.append_chunk("d")
        await message.complete_streaming()
        behind = [first, *[each async for each in events]]
    assert [each.event for each in behind] == [
        *("message.snapshot", "chunk.received", "message.completed")
    ]
    client = Client(first.data)
    client.take(behind[1].data)
    assert client.log.text() == "acd"
    assert [part["kind"] for part in client.shown] == ["text", "reasoning", "text"]
    # As a browser connects again: with the cursor that it has.
    headers = {"last-event-id": str(first.id)}
    async with site.http.stream("GET", path, params={"snapshot": "true"}, headers=headers) as again:
        assert [each.data for each in await read_all(again)] == [each.data for each in behind[1:]]
    refused = await site.http.get(path, params={"snapshot": "perhaps"})
    assert refused.status_code == 400


async def test_message__of_text_alone_is_as_ever(site: Site) -> None:
    conversation = await site.conversation()
    path = f"/conversations/{conversation.id}"
    async with site.http.stream("GET", f"{path}/events") as stream:
        events = read_events(stream)
        whole = await conversation.create_user_message("Hi")
        created = (await anext(events)).data
        message = await conversation.start_streaming_assistant()
        await message.append_chunks(["", "a"])
        received = [(await anext(events)).data for _ in range(3)]
    assert "parts" not in created
    assert set(received[1]["chunk"]) == {"sequence", "content", "created_at", "metadata"}
    streaming = (await site.http.get(f"{path}/messages/{message.id}")).json()
    assert set(streaming) == ALWAYS | {"open_part"}
    assert streaming["open_part"] == 1
    await message.complete_streaming()
    for each in (whole, message):
        assert set((await site.http.get(f"{path}/messages/{each.id}")).json()) == ALWAYS


async def test_created__has_the_parts_of_a_message_that_was_added_whole(site: Site) -> None:
    conversation = await site.conversation()
    path = f"/conversations/{conversation.id}"
    file = FilePart("gridfs://1", "image/png", name="a.png", provider=OWN)
    async with site.http.stream("GET", f"{path}/events") as stream, asyncio.timeout(20):
        message = await conversation.create_user_message("Look", parts=[file])
        created = (await anext(read_events(stream))).data
    shown = {"url": "gridfs://1", "media_type": "image/png", "name": "a.png"}
    assert created["content"] == "Look"
    assert [part["fields"] for part in created["parts"]] == [{}, shown]
    read = (await site.http.get(f"{path}/messages/{message.id}")).json()
    assert created["parts"] == read["parts"]


async def test_page__ends_at_its_size_in_parts(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(page_bytes=3000))
    conversation = await site.conversation()
    for _ in range(3):
        await conversation.create_user_message("Look", parts=[DataPart("x", "y" * 2000)])
    message = await conversation.start_streaming_assistant()
    await message.append_chunks([DataPart("x", "y" * 2000)])
    page = (await site.http.get(f"/conversations/{conversation.id}/messages")).json()
    assert len(page["messages"]) == 1
    await message.complete_streaming()
    page = (await site.http.get(f"/conversations/{conversation.id}/messages")).json()
    assert len(page["messages"]) == 1


class Starts:
    """A class of messages whose parts are tool calls; each number is read when it is asked for."""

    def __init__(self, *failures: Exception) -> None:
        self.read: list[int] = []
        self.failures = list(failures)

    def store(self) -> "Starts":
        return self

    @property
    def reader(self) -> "Starts":
        return self

    async def call(self, function: Any, *arguments: Any, what: str) -> Any:
        return await function(*arguments)

    async def identity(self, message: ObjectId, conversation: ObjectId, part: int) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        self.read.append(part)
        return PartIdentity("tool_call", f"read {part}")


MESSAGE = ObjectId()
ABOUT: dict[str, Any] = {
    "conversation_id": ObjectId(),
    "message_id": MESSAGE,
    "role": MessageRole.ASSISTANT,
}


def received(sequence: int, **fields: Any) -> ChunkReceived:
    return ChunkReceived(**ABOUT, chunk=PartChunk(sequence, "", now(), **fields))


def start(sequence: int, name: str, parent: int | None = None) -> ChunkReceived:
    fields = {"kind": "tool_call", "name": name}
    return received(sequence, event="start", fields=fields, parent=parent)


async def test_identities__are_read_only_of_what_began_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = Starts()
    parts = StreamParts(model)
    assert await parts.of(received(7, part=3, delta="a")) == PartIdentity("tool_call", "read 3")
    await parts.of(received(8, part=3, delta="a"))
    seen = await parts.of(start(9, "f", parent=3))
    assert seen == PartIdentity("tool_call", "f", PartIdentity("tool_call", "read 3"))
    assert await parts.of(received(10, part=9, delta="a")) == seen
    assert await parts.of(received(11, part=11, delta="a")) is None
    assert await parts.of(received(12, part=99, delta="a")) is None
    assert model.read == [3]
    # The message is deleted and started anew: its parts are others.
    created: dict[str, Any] = {"position": 1, "streaming": True, "content": "", "metadata": {}}
    await parts.of(MessageCreated(**ABOUT, **created, created_at=now()))
    await parts.of(received(13, part=9, delta="a"))
    assert model.read == [3, 9]
    monkeypatch.setattr(stream_parts, "MAX_KNOWN", 2)
    for sequence in range(14, 18):
        await parts.of(start(sequence, "f"))
    await parts.of(received(18, part=17, delta="a"))
    await parts.of(received(19, part=14, delta="a"))
    assert model.read == [3, 9, 14]


async def test_identity__that_cannot_be_read_yet_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_parts, "PAUSES", (0.001,) * 3)
    model: Any = Starts(LookupError(), LookupError())
    found = await StreamParts(model).of(received(7, part=3, delta="a"))
    assert found == PartIdentity("tool_call", "read 3")
    model = Starts(*(LookupError() for _ in range(3)))
    with pytest.raises(StoreUnavailableError, match="Part 3"):
        await StreamParts(model).of(received(7, part=3, delta="a"))
