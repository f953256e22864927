"""Listings: ranges of messages, pages of history, and one message of a conversation."""

import asyncio
from typing import Any

import pytest

from converse_mongo import (
    ChunkReceived,
    Conversation,
    Converse,
    InvalidInputError,
    Message,
    MessageCompleted,
    MessageCreated,
    MessageNotFoundError,
    MessageRole,
)
from tests.streams import until


async def fill(conversation: Conversation, count: int) -> list[Message]:
    return [await conversation.create_user_message(str(number)) for number in range(count)]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, "01234"),
        ({"after": 1}, "234"),
        ({"before": 3}, "012"),
        ({"after": 0, "before": 4, "limit": 2}, "12"),
        ({"newest_first": True}, "43210"),
        ({"newest_first": True, "before": 4, "limit": 2}, "32"),
        ({"status": "completed", "limit": 1}, "0"),
        ({"status": "streaming"}, ""),
        ({"limit": 0}, ""),
    ],
)
async def test_messages__are_listed_in_a_range(
    converse: Converse, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, Any], expected: str
) -> None:
    monkeypatch.setattr("converse_mongo.documents.listings.MESSAGES_PER_READ", 2)
    conversation = await converse.start_conversation()
    await fill(conversation, 5)
    assert "".join([each.content async for each in conversation.messages(**wanted)]) == expected


async def test_messages__that_stream_are_found_among_others(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    await fill(conversation, 2)
    message = await conversation.start_streaming_assistant()
    await message.append_chunk("so far")
    await conversation.create_user_message("later")
    assert [
        (each.id, each.content) for each in await conversation.messages(status="streaming")
    ] == [(message.id, "so far")]


@pytest.mark.parametrize(
    "wanted", [{"status": "ended"}, {"before": -1}, {"before": "3"}, {"limit": -1}, {"after": -2}]
)
async def test_messages__of_no_range_are_refused(
    converse: Converse, wanted: dict[str, Any]
) -> None:
    conversation = await converse.start_conversation()
    with pytest.raises(InvalidInputError, match=next(iter(wanted))):
        conversation.messages(**wanted)


async def test_history__comes_in_pages(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    empty = await conversation.history()
    assert (empty.messages, empty.before) == ([], None)
    messages = await fill(conversation, 5)
    pages = [await conversation.history(limit=2)]
    while pages[-1].before is not None:
        pages.append(await conversation.history(limit=2, before=pages[-1].before))
    assert [[each.content for each in page.messages] for page in pages] == [
        ["3", "4"],
        ["1", "2"],
        ["0"],
    ]
    assert [page.cursor is None for page in pages] == [False, True, True]
    assert messages[0].id == pages[-1].messages[0].id
    with pytest.raises(InvalidInputError, match="limit"):
        await conversation.history(limit=0)


async def test_history__of_roles_passes_over_the_others_and_goes_on_exactly(
    converse: Converse,
) -> None:
    conversation = await converse.start_conversation()
    await conversation.create_user_message("question")
    tool = await conversation.start_streaming_message("tool_result")
    await tool.append_chunk("hidden")
    for number in range(5):
        await conversation.create_tool_call_message(str(number))
    answer = await conversation.start_streaming_assistant()
    await answer.append_chunk("a")
    await conversation.create_tool_call_message("last")

    roles = ("user", MessageRole.ASSISTANT)
    newest = await conversation.history(1, roles=roles)
    assert [each.content for each in newest.messages] == ["a"]
    assert newest.before == answer.position
    oldest = await conversation.history(1, newest.before, roles=roles)
    assert [each.content for each in oldest.messages] == ["question"]
    assert (oldest.before, oldest.cursor) == (None, None)

    await tool.append_chunk("more")
    await answer.append_chunk("b")
    await conversation.create_user_message("next")
    seen: list[str] = []
    async with asyncio.timeout(20):
        async for event in converse.watch_conversation(conversation.id, newest.cursor):
            assert isinstance(event, ChunkReceived | MessageCreated)
            seen.append(event.chunk.content if isinstance(event, ChunkReceived) else event.content)
            if len(seen) == 3:
                break
    assert sorted(seen) == ["b", "more", "next"]
    with pytest.raises(InvalidInputError, match="role"):
        await conversation.history(roles=["bot"])


async def test_history__goes_on_exactly_with_its_cursor(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    old = await conversation.start_streaming_assistant()
    await old.append_chunk("a")
    await fill(conversation, 3)
    new = await conversation.start_streaming_assistant()
    await new.append_chunks(["b", "c"])

    history = await conversation.history(limit=2)
    assert [each.content for each in history.messages] == ["2", "bc"]
    assert history.messages[-1].next_sequence == 2

    await old.append_chunk("d")
    await new.append_chunk("e")
    await new.complete_streaming()
    await conversation.create_user_message("next")
    await old.complete_streaming()
    chunks: dict[Any, list[str]] = {}
    seen: list[object] = []
    async with asyncio.timeout(20):
        async for event in converse.watch_conversation(conversation.id, history.cursor):
            if isinstance(event, ChunkReceived):
                chunks.setdefault(event.message_id, []).append(event.chunk.content)
            elif isinstance(event, MessageCreated):
                seen.append(event.content)
            else:
                assert isinstance(event, MessageCompleted)
                seen.append(event.message_id)
            if len(seen) == 3:
                break
    assert chunks == {old.id: ["d"], new.id: ["e"]}
    assert sorted(map(str, seen)) == sorted(map(str, [new.id, "next", old.id]))


async def test_history__and_its_cursor_fit_at_every_moment_of_a_stream(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    texts = [f"{number} " for number in range(200)]

    async def stream() -> None:
        for text in texts:
            await message.append_chunk(text)
        await message.complete_streaming()

    async def view() -> str:
        history = await conversation.history()
        shown = history.messages[0]
        text = shown.content
        if not shown.is_streaming:
            return text
        async for event in converse.watch_conversation(conversation.id, history.cursor):
            if isinstance(event, ChunkReceived):
                text += event.chunk.content
            else:
                break
        return text

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(stream())
        viewing = []
        while not writing.done():
            viewing.append(tasks.create_task(view()))
            # By the progress and not by the clock: a slow machine is not given more to do.
            then = message.next_sequence + 8
            await until(lambda then=then: writing.done() or message.next_sequence >= then)  # type: ignore[misc]
    assert len(viewing) > 5
    assert {task.result() for task in viewing} == {"".join(texts)}


async def test_message__is_found_only_in_its_own_conversation(converse: Converse) -> None:
    mine, other = await converse.start_conversation(), await converse.start_conversation()
    message = await mine.create_user_message("mine")
    assert (await mine.get_message(str(message.id))).content == "mine"
    with pytest.raises(MessageNotFoundError):
        await other.get_message(message.id)


async def test_whole_messages__with_one_generation_id_are_stored_once(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    added = await asyncio.gather(
        *(conversation.create_user_message("hello", generation_id="post-1") for _ in range(5))
    )
    assert len({each.id for each in added}) == 1
    assert [each.content for each in await conversation.messages()] == ["hello"]
    with pytest.raises(InvalidInputError, match="has the role user"):
        await conversation.create_assistant_message("no", generation_id="post-1")
