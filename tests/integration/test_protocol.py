"""What becomes of a message in the gaps between two calls, two processes or two transactions."""

from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import AutoReconnect

from converse_mongo import (
    Converse,
    InvalidInputError,
    MessageCompleted,
    MessageNotStreamingError,
    MessageStatus,
    StoreUnavailableError,
    WatchError,
)
from converse_mongo.domain.validation import PAGE_CHUNKS
from tests.conftest import Commands, Facade
from tests.integration.helpers import (
    Between,
    Call,
    Meanwhile,
    die,
    fill,
    gone,
    pages_of,
    raw,
    start,
    stored,
    text_of,
)
from tests.streams import assert_exact, collect

# The same id again


async def test_generation__that_is_started_again_finds_no_pages_of_before(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    conversation = await converse.start_conversation()
    before = await conversation.start_streaming_assistant(generation_id="job")
    await before.append_chunks(["old"] * PAGE_CHUNKS)
    await converse.message_model.find({"_id": before.id}).delete()  # its pages stay
    assert await pages_of(converse, before)
    theirs = await other.get_conversation(conversation.id)
    again = await theirs.start_streaming_assistant(generation_id="job")
    assert again.id == before.id
    await fill(again, PAGE_CHUNKS + 5)
    assert len(await pages_of(other, again)) == 2
    assert (await stored(converse, again)).content == text_of(PAGE_CHUNKS + 5)
    await again.complete_streaming()
    read = await stored(converse, again)
    assert read.content == text_of(PAGE_CHUNKS + 5)
    assert_exact(await collect(converse, again), read)


# Stops and take-overs


async def test_stop__of_a_message_that_is_appended_to_by_hand(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await start(converse)
    theirs = await stored(other, message)
    await theirs.append_chunk("some ")
    Between(
        message.store(),
        update_one=Meanwhile(lambda: theirs.append_chunk("text")),
    )
    assert await message.request_stop("enough") is MessageStatus.CANCELLED
    with pytest.raises(MessageNotStreamingError):
        await theirs.append_chunk("more")
    assert (await stored(other, message)).content == "some text"


async def test_stop__of_a_message_that_its_writer_let_go_of(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer() as writer:
        await writer.write("text")
        await writer.detach()
    assert await message.request_stop("enough") is MessageStatus.CANCELLED
    read = await stored(converse, message)
    assert (read.content, read.stop_reason) == ("text", "enough")


@pytest.mark.parametrize("further", [False, True], ids=["at once", "after another"])
async def test_take_over__that_arrives_again_late_changes_nothing(
    facade: Facade, further: bool
) -> None:
    converse = await facade()
    message = await start(converse)
    await die(converse, message, "some ")
    sent: list[Any] = []

    async def note(call: Call, *arguments: Any, **options: Any) -> Any:
        sent.append((call, *arguments))
        return await call(*arguments, **options)

    Between(message.store(), update_one=note)
    writer = await message.resume_writer().__aenter__()
    call, *arguments = sent[0]
    if further:
        await writer.detach()
        await writer.__aexit__(None, None, None)
        writer = await message.resume_writer().__aenter__()
    assert not (await call(*arguments)).matched_count
    await writer.write("text")
    await writer.__aexit__(None, None, None)
    read = await stored(converse, message)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, "some text")


async def test_take_over__that_cannot_load_the_message_lets_go_of_it(facade: Facade) -> None:
    converse = await facade(retry_timeout=0.1)
    other = await facade(converse.database_name)
    message = await start(converse)
    await die(converse, message, "some ")
    taken = False

    async def take(call: Call, *arguments: Any, **options: Any) -> Any:
        nonlocal taken
        taken = True
        return await call(*arguments, **options)

    async def find(call: Call, *arguments: Any, **options: Any) -> Any:
        if taken:
            raise AutoReconnect("the network is down")
        return await call(*arguments, **options)

    Between(message.store(), update_one=take, find_one=find)
    with pytest.raises(StoreUnavailableError):
        await message.resume_writer().__aenter__()
    read = await stored(other, message)
    assert read.lease is not None
    assert (read.lease.holder, read.lease.duration) == (None, 600)
    assert await read.request_stop() is MessageStatus.CANCELLED


@pytest.mark.parametrize("take_over", [False, True], ids=["first", "resumed"])
async def test_open__of_a_message_that_ended_before_the_answer_came(
    facade: Facade, take_over: bool
) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await start(converse)
    theirs = await stored(other, message)
    end = Meanwhile(theirs.complete_streaming, lost=True)
    Between(message.store(), update_one=end)
    with pytest.raises(MessageNotStreamingError):
        await (message.resume_writer() if take_over else message.writer()).__aenter__()
    assert end.happened


# Appends whose answer was lost


@pytest.mark.parametrize("by_writer", [False, True], ids=["by hand", "by a writer"])
async def test_append__is_recognised_after_its_message_was_merged(
    facade: Facade, by_writer: bool
) -> None:
    converse = await facade(retention="compact")
    other = await facade(converse.database_name)
    message = await start(converse)
    theirs = await stored(other, message)
    Between(message.store(), append=Meanwhile(theirs.complete_streaming, lost=True))
    if by_writer:
        with pytest.raises(MessageNotStreamingError):  # and not that text may not be stored
            async with message.writer() as writer:
                await writer.write("text")
                await writer.flush()
        assert writer.statistics().chunks == 1
    else:
        chunk = await message.append_chunk("text")
        assert (chunk.sequence, chunk.content) == (0, "text")
    assert await gone(other, message)
    assert (await stored(other, message)).content == "text"


async def test_append__is_recognised_by_its_id_after_its_message_was_merged(
    facade: Facade,
) -> None:
    converse = await facade(retention="compact", retry_timeout=0.1)
    other = await facade(converse.database_name)
    message = await start(converse)

    async def lose(call: Call, *arguments: Any) -> Any:
        await call(*arguments)
        raise AutoReconnect("the answer is lost")

    Between(message.store(), update_one=lose)
    with pytest.raises(StoreUnavailableError) as lost:
        await message.append_chunks(["a", "b"])
    theirs = await stored(other, message)
    await theirs.append_chunk("c")
    await theirs.complete_streaming()
    assert await gone(other, message)
    chunks = await theirs.append_chunks(["a", "b"], append_id=lost.value.append_id)
    assert [(chunk.sequence, chunk.content) for chunk in chunks] == [(0, "a"), (1, "b")]
    assert (await stored(other, message)).content == "abc"


async def test_append__is_not_taken_for_another_with_its_id(converse: Converse) -> None:
    message, append_id = await start(converse), ObjectId()
    await message.append_chunks(["a", "b"], append_id=append_id)
    for contents in (["a", "c"], ["a", "b", "c"], ["ab"]):
        with pytest.raises(InvalidInputError, match="another append"):
            await message.append_chunks(contents, append_id=append_id)
    await message.append_chunks(["a", "b"], append_id=append_id)
    assert (await stored(converse, message)).content == "ab"


async def test_append__is_recognised_though_its_lane_was_ahead(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await start(converse)
    await fill(message, PAGE_CHUNKS - 1)
    theirs = await stored(other, message)
    tries = 0

    async def lose(call: Call, *arguments: Any) -> Any:
        nonlocal tries
        answer = await call(*arguments)
        tries += 1
        if tries == 2:  # the first expected a sequence that is not there yet
            assert answer.matched_count
            await theirs.append_chunk("end")
            assert await pages_of(other, message)
            raise AutoReconnect("the answer is lost")
        return answer

    store = message.store()
    store.queue(
        (message.id, message.log_id)
    ).next_sequence += PAGE_CHUNKS  # as a failover leaves it
    Between(store, update_one=lose)
    chunk = await message.append_chunk("once ")
    assert chunk.sequence == PAGE_CHUNKS - 1
    assert (await stored(other, message)).content == text_of(PAGE_CHUNKS - 1) + "once end"


# Pages and merges


async def test_merged__is_read_in_few_pieces_by_who_watches_its_conversation(
    facade: Facade, commands: Commands
) -> None:
    converse = await facade(retention="compact")
    message = await start(converse)
    await fill(message, 5000)
    await message.complete_streaming()
    viewer = await facade(
        converse.database_name, client_options={"event_listeners": [commands]}, check_interval=3600
    )
    events = []
    async for event in viewer.watch_conversation(message.conversation_id):
        events.append(event)
        if isinstance(event, MessageCompleted):
            break
    assert len(events) == 5002
    # Each of these gives the whole text.
    reads = [find for find in commands.named("find") if "chunk_lengths" in find["projection"]]
    assert len(reads) == 1


async def test_hole__is_told_and_not_taken_for_the_end(converse: Converse) -> None:
    message = await start(converse)
    await fill(message, 4 * PAGE_CHUNKS)
    found = await converse.message_model.get(message.id)  # without its moved chunks
    assert found is not None
    await message.store().pages.delete_one(
        {"message_id": message.id, "first_sequence": PAGE_CHUNKS}
    )
    await found.complete_streaming()
    assert (await raw(converse, message))["content"] == ""  # rather than a text with a hole
    chunks = found.iter_chunks()
    for sequence in range(PAGE_CHUNKS):
        assert (await anext(chunks)).sequence == sequence
    with pytest.raises(WatchError, match=f"Chunk {PAGE_CHUNKS} "):
        await anext(chunks)


async def test_get__while_a_message_ends_and_is_merged(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(retention="compact")
    other = await facade(converse.database_name)
    message = await start(converse)
    await fill(message, PAGE_CHUNKS + 5)
    reader = other.message_model.store().reader
    real = reader.add_moved_chunks

    async def add_moved_chunks(document: dict[str, Any]) -> None:
        if message.is_streaming:
            await message.append_chunk("end")
            await message.complete_streaming()
        await real(document)

    monkeypatch.setattr(reader, "add_moved_chunks", add_moved_chunks)
    read = await stored(other, message)
    assert read.status is MessageStatus.COMPLETED
    assert read.content == text_of(PAGE_CHUNKS + 5) + "end"
    assert len(read.chunks) == read.next_sequence == PAGE_CHUNKS + 6


async def test_page__that_comes_after_the_merge_is_taken_away(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(retention="compact")
    other = await facade(converse.database_name)
    message = await start(converse)
    await fill(message, PAGE_CHUNKS - 1)
    theirs = await stored(other, message)

    class Late:
        def __getattr__(self, name: str) -> Any:
            return getattr(message.store().pages, name)

        async def insert_one(self, page: Any) -> Any:
            monkeypatch.undo()
            await theirs.complete_streaming()
            return await message.store().pages.insert_one(page)

    monkeypatch.setattr("converse_mongo.driver.collections.sibling", lambda *_, **__: Late())
    await message.append_chunk("end")
    assert theirs.is_completed
    assert await gone(other, message)
    assert (await stored(other, message)).content == text_of(PAGE_CHUNKS - 1) + "end"
