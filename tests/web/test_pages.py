"""Answers are bounded, made in slices, and private; nothing of the history is lost by it."""

import asyncio
import json
import logging
from typing import Any

import pytest
from pydantic import BaseModel

from converse_mongo import Conversation, Converse, History, InvalidInputError, MessageRole
from converse_mongo.web import Limits
from converse_mongo.web.pages import read_page
from converse_mongo.web.responses import SLICE_BYTES, Json, json_slices, one_line
from tests.conftest import Commands, Facade
from tests.web.conftest import STRANGER, MakeSite, Site
from tests.web.test_bodies import head_of

KIB = 1024


async def fill(conversation: Conversation, sizes: list[int]) -> list[str]:
    texts = [f"{number}:".ljust(size, "x") for number, size in enumerate(sizes)]
    for text in texts:
        await conversation.create_user_message(text)
    return texts


@pytest.mark.parametrize("limit", [2, 150])
async def test_history__ends_at_its_bytes_and_goes_on_exactly(
    converse: Converse, limit: int
) -> None:
    conversation = await converse.start_conversation()
    texts = await fill(conversation, [10, 5000, 10, 900, 101, 100, 3000, 50, 50, 50])
    streamed = await conversation.start_streaming_assistant()
    await streamed.append_chunks(["s" * 100] * 30)
    await streamed.complete_streaming()
    open_one = await conversation.start_streaming_assistant()
    await open_one.append_chunks(["o" * 100] * 12)
    texts += ["s" * 3000, "o" * 1200]
    seen: list[str] = []
    before: int | None = None
    while True:
        page = await conversation.history(limit, before, max_bytes=1000)
        found = [message.content for message in page.messages]
        assert found
        assert len(found) == 1 or sum(map(len, found)) <= 1000
        assert len(found) <= limit
        seen = found + seen
        assert (page.cursor is None) == (before is not None)
        before = page.before
        if before is None:
            break
    assert seen == texts
    with pytest.raises(InvalidInputError):
        await conversation.history(max_bytes=0)


async def test_page__of_several_reads_continues_behind_all_of_them(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind what was written between two reads into an older message."""
    conversation = await converse.start_conversation()
    older = await conversation.start_streaming_assistant()
    await older.append_chunk("one ")
    ended = await conversation.start_streaming_assistant()
    await ended.append_chunk("whole")
    first = await conversation.create_assistant_message("bad")
    for _ in range(3):
        replaces = {"replaces": str(first.id)}
        first = await conversation.create_assistant_message("good", metadata=replaces)
    history, reads = Conversation.history, 0

    async def growing(self: Conversation, *arguments: Any, **more: Any) -> History:
        nonlocal reads
        page = await history(self, *arguments, **more)
        reads += 1
        if reads == 1:
            await older.append_chunk("two ")
            await ended.complete_streaming()
        return page

    monkeypatch.setattr(Conversation, "history", growing)
    page = await read_page(conversation, frozenset(MessageRole), 3, None, KIB * KIB)
    assert reads > 1
    assert [message.content for message in page.messages][:2] == ["one two ", "whole"]
    async with converse.watch_conversation(conversation.id, page.cursor) as watcher:
        await older.append_chunk("three")
        event = await anext(watcher)
    assert getattr(event, "chunk").content == "three"  # noqa: B009 - of one kind of event


async def test_chat__shows_no_replaced_answer_on_an_older_page(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(page_bytes=3000))
    conversation = await site.conversation()
    await conversation.create_user_message("Hi")
    first = await conversation.create_assistant_message("a" * 2000)
    replaces = {"replaces": str(first.id)}
    await conversation.create_assistant_message("b" * 2000, metadata=replaces)
    path, texts = f"/chat/{conversation.id}", []
    before: str | None = None
    while True:
        query = {} if before is None else {"before": before}
        page = await site.http.get(path, params=query)
        texts += [part["text"][:2] for each in page.json() for part in each["parts"]]
        before = page.headers.get("x-converse-before")
        if before is None:
            break
    assert texts == ["bb", "Hi"]


async def test_pages__end_at_their_size_also_by_metadata(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(page_bytes=3000))
    conversation = await site.conversation()
    for number in range(4):
        await conversation.create_user_message(f"{number}", {"sources": ["x" * 1000]})
    for path in (f"/conversations/{conversation.id}/messages", f"/chat/{conversation.id}"):
        page = (await site.http.get(path)).json()
        messages = page["messages"] if isinstance(page, dict) else page
        assert len(messages) == 2


async def test_history__that_was_cut_has_a_cursor_for_older_streams(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    older = await conversation.start_streaming_assistant()
    await older.append_chunks(["a", "b"])
    await fill(conversation, [2000, 900])
    page = await conversation.history(max_bytes=1000)
    assert len(page.messages) == 1
    async with converse.watch_conversation(conversation.id, page.cursor) as watcher:
        await older.append_chunk("c")
        event = await anext(watcher)
    assert getattr(event, "chunk").content == "c"  # noqa: B009 - of one kind of event


async def test_history__reads_no_more_than_it_shows(facade: Facade, commands: Commands) -> None:
    converse = await facade(client_options={"event_listeners": [commands]})
    conversation = await converse.start_conversation()
    messages = []
    for _ in range(5):
        message = await conversation.start_streaming_assistant()
        await message.append_chunks(["x" * 100] * 10)
        messages.append(message)
    commands.sent.clear()
    page = await conversation.history(max_bytes=2500)
    assert [message.id for message in page.messages] == [each.id for each in messages[-2:]]
    loaded = [each["filter"]["_id"] for each in commands.named("find") if "_id" in each["filter"]]
    assert sorted(loaded[0]["$in"]) == sorted(each.id for each in messages[-2:])
    texts = [each for each in commands.named("find") if "projection" not in each]
    assert len(texts) == 1


async def test_pages__of_the_edge_are_bounded(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(page_bytes=1000))
    conversation = await site.conversation()
    texts = await fill(conversation, [600, 600, 5000, 300, 300])
    path = f"/conversations/{conversation.id}/messages"
    pages, query = [], ""
    while True:
        page = (await site.http.get(path + query)).json()
        pages.append([message["content"] for message in page["messages"]])
        if page["before"] is None:
            break
        query = f"?before={page['before']}"
    assert pages == [texts[3:], texts[2:3], texts[1:2], texts[:1]]
    chat = (await site.http.get(f"/chat/{conversation.id}")).json()
    assert [message["parts"][0]["text"] for message in chat] == texts[3:]


# JSON in slices


class Part(BaseModel):
    text: str
    more: Any = None


NASTY = 'é\u2028\x85"\\\n☃😀</script>\x00'

VALUES: list[Any] = [
    *(None, 1, [], {}, "", "x", [[]], {"a": {}}),
    NASTY * 50_000,
    {"a": NASTY * 30_000, "b": [NASTY * 30_000, 1, {"c": NASTY}]},
    [Part(text=NASTY, more={"deep": [{"er": "y" * 70_000}]}), Part(text="z" * 200_000)] * 2,
    {"float": [float("inf"), float("nan"), 0.5], "long": "x" * 2000},
    {NASTY: {NASTY: "x" * 3000}},
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
@pytest.mark.parametrize("omit_none", [False, True])
def test_slices__are_the_same_json_in_bounded_pieces(value: Any, omit_none: bool) -> None:
    slices = list(json_slices(value, omit_none=omit_none))
    assert b"".join(slices) == one_line(value, omit_none=omit_none)
    assert all(len(each) < 14 * SLICE_BYTES for each in slices)


@pytest.mark.parametrize("value", ["\ud800", "x" * 100_000 + "\udc00", {"a": ["\udfff" * 9]}])
def test_json__of_half_characters_is_mended(value: Any) -> None:
    made = b"".join(json_slices(value))
    assert b"\\ud" not in made
    assert "\ufffd" in json.dumps(json.loads(made), ensure_ascii=False)
    assert json.loads(one_line(value))


async def test_metadata__of_any_kind_is_shown(make_site: MakeSite) -> None:
    odd = {"half": "\ud800", "nan": float("nan"), "inf": float("inf"), "set": {1}, "\udc00": 1}
    site = await make_site(show_metadata=lambda metadata: odd)
    conversation = await site.conversation()
    await conversation.create_user_message("Hello", {"a": 1})
    for path in ("", "/messages"):
        answer = await site.http.get(f"/conversations/{conversation.id}{path}")
        assert answer.status_code == 200
        found = answer.json()
        shown = (found["messages"][0] if path else found)["metadata"]
        assert shown == {"half": "\ufffd", "nan": None, "inf": None, "set": [1], "\ufffd": 1}
    assert (await site.http.get(f"/chat/{conversation.id}")).status_code == 200


async def test_large_message__is_sent_while_others_have_their_turn(site: Site) -> None:
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    for _ in range(3):
        await message.append_chunks(["é" * 250_000] * 8)
    await message.complete_streaming()
    path = f"/conversations/{conversation.id}/messages/{message.id}"
    async with site.http.stream("GET", path) as answer:
        assert answer.headers.get("transfer-encoding") == "chunked"
        assert len(json.loads(await answer.aread())["content"]) == 6_000_000


async def test_response__that_is_not_read_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "converse_mongo")
    response = Json("x" * 1_000_000)
    response.send_timeout = 0.05
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) > 3:
            await asyncio.Event().wait()

    async def receive() -> Any:
        raise AssertionError

    async with asyncio.timeout(20):
        await response({"type": "http"}, receive, send)
    assert len(sent) == 4
    assert "did not read" in caplog.text


async def test_client__that_does_not_read_is_let_go_of(make_site: MakeSite) -> None:
    site = await make_site(send_timeout=0.2)
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    for _ in range(4):
        await message.append_chunks(["x" * 1_000_000] * 8)
    await message.complete_streaming()
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=1024)
    path = f"/api/conversations/{conversation.id}/messages/{message.id}"
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: ada\r\n\r\n".encode())
    assert (await head_of(reader)).startswith("HTTP/1.1 200")

    def requests() -> int:
        names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
        return sum("run_asgi" in name for name in names)

    async with asyncio.timeout(20):
        while requests():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)
    writer.close()


# Headers


async def test_responses__are_private(site: Site) -> None:
    conversation = await site.conversation()
    one = f"/conversations/{conversation.id}"
    for answer in (
        await site.http.get(one),
        await site.http.get(f"{one}/messages"),
        await site.http.get(one, headers=STRANGER),
        await site.http.get(f"{one}/messages?limit=x"),
        await site.http.post(f"{one}/stop", json={}),
        await site.http.get(f"/chat/{conversation.id}"),
        await site.http.get(f"/chat/{conversation.id}/stream"),
    ):
        assert answer.headers["cache-control"] == "no-store"
        vary = {each.strip().lower() for each in answer.headers["vary"].split(",")}
        assert vary >= {"authorization", "cookie"}
