"""A generation that was deleted and started anew has the same id: nothing old changes the new one.

Contract 4, its last sentence.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from converse_mongo import (
    Conversation,
    Converse,
    Message,
    MessageNotFoundError,
    MessageNotStreamingError,
    MessageStatus,
    WriterFencedError,
)
from converse_mongo.domain.validation import PAGE_CHUNKS
from converse_mongo.web import Generations
from tests.conftest import Commands, Facade
from tests.integration.helpers import (
    Between,
    Call,
    Meanwhile,
    die,
    fill,
    pages_of,
    raw,
    soon,
    text_of,
)
from tests.streams import until

Use = Callable[[Message], Awaitable[Any]]


async def begin(converse: Converse) -> tuple[Conversation, Message]:
    conversation = await converse.start_conversation()
    return conversation, await conversation.start_streaming_assistant(generation_id="job")


async def restart(conversation: Conversation, old: Message, *words: str) -> Message:
    """Deletes a message elsewhere, and starts its generation anew."""
    copy = await conversation.get_message(old.id)
    await copy.delete()
    new = await conversation.start_streaming_assistant(generation_id="job")
    assert new.id == old.id
    if words:
        await new.append_chunks(words)
    return new


async def read_chunks(message: Message) -> None:
    async for _ in message.iter_chunks():
        pass


async def save(message: Message) -> None:
    message.metadata["by"] = "old"
    await message.save()


async def enter(message: Message) -> None:
    await message.writer().__aenter__()


async def enter_again(message: Message) -> None:
    await message.resume_writer().__aenter__()


USES: dict[str, Use] = {
    "append": lambda message: message.append_chunk("old"),
    "append more": lambda message: message.append_chunks(["old", "old"]),
    "complete": lambda message: message.complete_streaming({"by": "old"}),
    "fail": lambda message: message.fail_streaming("old"),
    "cancel": lambda message: message.cancel_streaming("old"),
    "stop": lambda message: message.request_stop("old"),
    "save": save,
    "update": lambda message: message.set({"metadata.by": "old"}),
    "read": read_chunks,
    "write": enter,
    "resume": enter_again,
}


async def test_restart__nothing_that_is_done_to_an_old_copy_reaches_the_new_message(
    facade: Facade,
) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    conversation, old = await begin(converse)
    await old.append_chunks(["a", "b", "c"])
    copies = {name: await converse.get_message(old.id) for name in (*USES, "delete", "refresh")}
    theirs = await other.get_conversation(conversation.id)
    new = await restart(theirs, old, "x", "y", "z")  # as many chunks as the old one has
    before = await raw(other, new)
    for name, use in USES.items():
        with pytest.raises(MessageNotFoundError):
            await use(copies[name])
        assert await raw(other, new) == before, name
    deleted = await copies["delete"].delete()
    assert deleted.deleted_count == 0
    assert await raw(other, new) == before

    renewed = await copies["refresh"].refresh()
    assert (renewed.log_id, renewed.content) == (new.log_id, "xyz")
    await renewed.append_chunk("!")
    await renewed.complete_streaming()
    assert (await other.get_message(new.id)).content == "xyz!"


async def test_restart__of_a_message_that_was_added_whole(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    old = await conversation.create_message("user", "old", generation_id="job")
    copy = await converse.get_message(old.id)
    await copy.delete()
    new = await conversation.create_message("user", "new", generation_id="job")
    assert new.id == old.id
    before = await raw(converse, new)
    for use in (save, USES["update"]):
        with pytest.raises(MessageNotFoundError):
            await use(old)
    await old.delete()
    assert await raw(converse, new) == before


async def test_restart__messages_without_a_log_id_are_written_as_before(
    converse: Converse,
) -> None:
    """An earlier version stored none for some messages."""
    conversation, message = await begin(converse)
    messages = message.store().messages
    await messages.update_one({"_id": message.id}, {"$unset": {"log_id": ""}})
    message = await converse.get_message(message.id)
    await fill(message, PAGE_CHUNKS + 1)
    message.metadata["a"] = 1
    await message.save()
    async with (await conversation.get_message(message.id)).writer() as writer:
        await writer.write("end")
    read = await converse.get_message(message.id)
    assert (read.content, read.metadata["a"]) == (text_of(PAGE_CHUNKS + 1) + "end", 1)
    await read.delete()
    assert not await pages_of(converse, message)


@pytest.mark.parametrize("then", ["write", "leave", "detach"])
async def test_restart__fences_the_writer_of_before(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    converse = await facade(check_interval=3600, lease=3600)  # only a hint can tell the writer
    other = await facade(converse.database_name)
    conversation, old = await begin(converse)
    theirs = await other.get_conversation(conversation.id)
    new: Message | None = None
    started = asyncio.Event()
    renew = old.store().leases.renew

    async def renew_later(*arguments: Any) -> Any:  # it hears of the deletion, too
        await soon(started.wait())
        return await renew(*arguments)

    monkeypatch.setattr(old.store().leases, "renew", renew_later)
    with pytest.raises(WriterFencedError, match="started"):
        async with old.writer() as writer:
            await writer.write("old ")
            await writer.flush()
            await until(lambda: converse.statistics().streams_opened > 0)
            new = await restart(theirs, old)
            started.set()
            async with new.writer() as successor:  # of the same epoch
                await successor.write("new ")
                await successor.flush()
                with pytest.raises(WriterFencedError, match="started"):
                    if then == "write":
                        await soon(writer.wait_stopping())  # it hears of the other one
                        await writer.write("old ")
                    elif then == "detach":
                        await writer.write("old ")
                        await writer.detach()
                    else:
                        await writer.__aexit__(None, None, None)
    assert new is not None
    read = await other.get_message(new.id)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, "new ")


async def test_restart__a_late_trim_leaves_the_new_message_and_no_page(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    conversation, old = await begin(converse)
    await fill(old, PAGE_CHUNKS - 1)
    theirs = await other.get_conversation(conversation.id)
    new: list[Message] = []

    class Late:
        def __getattr__(self, name: str) -> Any:
            return getattr(old.store().pages, name)

        async def insert_one(self, page: Any) -> Any:
            monkeypatch.undo()
            answer = await old.store().pages.insert_one(page)
            new.append(await restart(theirs, old, "the ", "new ", "answer"))
            return answer

    monkeypatch.setattr("converse_mongo.driver.collections.sibling", lambda *_, **__: Late())
    await old.append_chunk("last")
    [message] = new
    assert not await pages_of(converse, message)
    await message.complete_streaming()
    read = await other.get_message(message.id)
    assert (read.content, read.page_start) == ("the new answer", 0)


async def test_restart__a_late_delete_leaves_the_pages_of_the_new_message(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    conversation, old = await begin(converse)
    await fill(old, PAGE_CHUNKS + 1)
    theirs = await other.get_conversation(conversation.id)
    paging = old.store().paging
    real = paging.delete

    async def delete(key: Any) -> None:
        new = await theirs.start_streaming_assistant(generation_id="job")
        await fill(new, PAGE_CHUNKS + 2)
        await real(key)

    monkeypatch.setattr(paging, "delete", delete)
    await old.delete()
    read = await other.get_message(old.id)
    assert read.content == text_of(PAGE_CHUNKS + 2)
    assert len(await pages_of(other, old)) == 1


async def test_restart__a_late_compaction_leaves_the_new_message_due(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(retention=timedelta(hours=1))
    other = await facade(converse.database_name, retention=timedelta(hours=1))
    conversation, old = await begin(converse)
    await fill(old, 3)
    await old.complete_streaming()
    theirs = await other.get_conversation(conversation.id)
    paging = old.store().paging
    real = paging._delete_merged
    new: list[Message] = []

    async def meanwhile(*arguments: Any) -> bool:
        deleted = await real(*arguments)
        new.append(await restart(theirs, old, "new"))
        await new[0].complete_streaming()
        return deleted

    monkeypatch.setattr(paging, "_delete_merged", meanwhile)
    state = await old.store().reader.state(old.id, old.conversation_id)
    assert state is not None
    await paging.compact(state)
    assert (await raw(other, new[0])).get("compact_at") is not None


async def test_restart__an_end_does_not_take_the_text_of_the_new_message(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    conversation, old = await begin(converse)
    await old.append_chunks(["a", "b"])
    theirs = await other.get_conversation(conversation.id)
    listed = (await conversation.messages())[0]
    await (await other.get_message(old.id)).append_chunk("c")  # so that its text is read back

    async def find(call: Call, match: Any, *rest: Any) -> Any:
        answer = await call(match, *rest)
        if answer and answer.get("status") == "completed":
            await restart(theirs, old, "x", "y", "z")
        return answer

    Between(listed.store(), find_one=find)
    await listed.complete_streaming()
    assert "x" not in listed.content
    assert (await other.get_message(old.id)).is_streaming


async def test_restart__the_new_answer_is_written_while_the_old_one_still_is(
    converse: Converse,
) -> None:
    conversation, old = await begin(converse)
    asked: list[Message] = []
    first, both, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def respond(_: Conversation, message: Message) -> None:
        asked.append(message)
        first.set()
        if len(asked) == 2:
            both.set()
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue  # its message was deleted, and it does not let itself be stopped
        async with message.writer() as writer:
            await writer.write("answer")

    async with Generations(respond) as generations:
        generations.start(conversation, old)
        await soon(first.wait())
        new = await restart(conversation, old)
        generations.start(conversation, new)
        generations.start(conversation, new)
        await soon(both.wait())
        assert generations.writes(new)
        go.set()
    assert [message.log_id for message in asked] == [old.log_id, new.log_id]
    read = await converse.get_message(new.id)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, "answer")


# What a writer is shown when it enters


@pytest.mark.parametrize("completed", [True, False], ids=["completed", "streaming"])
@pytest.mark.parametrize("take_over", [True, False], ids=["resumed", "first"])
@pytest.mark.parametrize("moment", ["claimed", "looked"])
async def test_enter__by_a_writer_that_is_overtaken_meanwhile(
    facade: Facade, completed: bool, take_over: bool, moment: str
) -> None:
    if moment == "looked" and not take_over:
        return  # the first writer of a message goes on from nothing
    converse = await facade()
    other = await facade(converse.database_name)
    _, message = await begin(converse)
    await die(converse, message, "owed ") if take_over else None
    copy = await converse.get_message(message.id)

    async def overtake() -> None:
        theirs = await other.get_message(message.id)
        writer = await theirs.resume_writer().__aenter__()
        await writer.write("text of the successor")
        await writer.flush()
        if completed:
            await writer.__aexit__(None, None, None)

    meanwhile = Meanwhile(overtake)

    async def update(call: Call, match: Any, change: Any) -> Any:
        return await (meanwhile(call, match, change) if claims(change) else call(match, change))

    async def find(call: Call, match: Any, *rest: Any) -> Any:
        stored = await call(match, *rest)
        if stored["lease"]["epoch"] == 2 and not meanwhile.happened:
            meanwhile.happened = True
            await overtake()
        return stored

    between: dict[str, Call] = {"update_one": update} if moment == "claimed" else {"find_one": find}
    Between(copy.store(), **between)
    with pytest.raises(WriterFencedError):
        await (copy.resume_writer() if take_over else copy.writer()).__aenter__()
    assert meanwhile.happened
    assert "successor" not in copy.content


def claims(update: Any) -> bool:
    return "lease.holder" in update.get("$set", {})


async def test_enter__by_a_writer_whose_message_ends_before_it_is_loaded(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    _, message = await begin(converse)
    await die(converse, message, "owed ")
    ended = False

    async def find(call: Call, match: Any, *rest: Any) -> Any:
        nonlocal ended
        stored = await call(match, *rest)
        if stored["lease"]["epoch"] == 2 and not ended:
            ended = True
            theirs = await other.get_message(message.id)
            await theirs.append_chunk("by hand")
            await theirs.complete_streaming()
        return stored

    Between(message.store(), find_one=find)
    with pytest.raises(MessageNotStreamingError):
        await message.resume_writer().__aenter__()
    assert ended


# What it costs


async def test_costs__no_write_has_a_document_given_back(
    facade: Facade, commands: Commands
) -> None:
    converse = await facade(
        change_streams=False,
        poll_interval=3600,
        check_interval=3600,
        client_options={"event_listeners": [commands]},
    )
    conversation, message = await begin(converse)
    async with message.writer() as writer:
        await writer.write("text")
        await writer.flush()
        commands.sent.clear()
        renewed = await message.store().leases.renew(message._own_key(), writer._lease)
        assert renewed is None
        assert [name for name, _ in commands.sent] == ["update"]
    async with (await conversation.start_streaming_assistant()).writer() as writer:
        await writer.detach()
    stopped = await conversation.start_streaming_assistant()
    await stopped.request_stop("enough")
    message.metadata["a"] = 1
    await message.save()
    conversation.title = "A title"
    await conversation.save()
    assert (message.revision, conversation.revision) == (1, 1)
    assert not commands.named("findAndModify")
