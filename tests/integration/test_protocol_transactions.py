"""Transactions beside other tasks, with all of Beanie's calls, and after an abort."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import pytest
from beanie import Insert, before_event

from converse_mongo import (
    Conversation,
    ConversationCreated,
    Converse,
    Message,
    MessageCreated,
    TransactionAbortedError,
)
from tests.conftest import Commands, Facade
from tests.integration.helpers import raw, soon, start
from tests.streams import until


class Abort(Exception):  # noqa: N818 - it is no error
    """Leaves a transaction without a commit."""


async def test_transaction__beside_another_task_of_its_process(
    facade: Facade, commands: Commands
) -> None:
    converse = await facade(client_options={"event_listeners": [commands]})
    conversation = await converse.start_conversation()
    theirs = await converse.get_conversation(conversation.id)
    begun = asyncio.Event()
    commands.sent.clear()

    async def outside() -> None:
        await begun.wait()
        await theirs.add_user_message("outside")

    async def inside() -> None:
        try:
            async with converse.transaction():
                await conversation.add_user_message("one")
                begun.set()
                # MongoDB lets it wait until the transaction is over.
                await until(lambda: len(commands.named("insert")) == 2)
                await conversation.add_user_message("two")
        except TransactionAbortedError:
            await inside()

    await soon(asyncio.gather(asyncio.create_task(outside()), asyncio.create_task(inside())))
    messages = await conversation.messages()
    assert [message.position for message in messages] == [0, 1, 2]
    assert [message.content for message in messages] == ["one", "two", "outside"]


async def test_transaction__holds_updates_and_deletions(converse: Converse) -> None:
    conversation = await converse.start_conversation("Files")
    gone = await conversation.create_user_message("one")
    kept = await conversation.create_user_message("two", {"a": 1})
    with pytest.raises(Abort):
        async with converse.transaction():
            await kept.update({"$set": {"metadata.b": 2}})
            await kept.set({"metadata.a": 3})
            await kept.inc({"metadata.a": 4})
            await conversation.set({"title": "Folders"})
            await gone.delete()
            raise Abort
    assert (await converse.get_message(gone.id)).content == "one"
    assert (await converse.get_message(kept.id)).metadata == {"a": 1}
    assert (await converse.get_conversation(conversation.id)).title == "Files"
    with pytest.raises(Abort):
        async with converse.transaction():
            await conversation.delete()
            raise Abort
    assert (await converse.get_conversation(conversation.id)).title == "Files"


@pytest.mark.parametrize("loaded", [False, True], ids=["same", "loaded again"])
async def test_transaction__that_was_aborted_leaves_no_text(
    converse: Converse, loaded: bool
) -> None:
    message = await start(converse)
    with pytest.raises(Abort):
        async with converse.transaction():
            await message.append_chunks(["draft ", "text"])
            raise Abort
    if loaded:
        await message.refresh()
        assert message.content == ""
    await message.append_chunks(["final ", "words"])
    await message.complete_streaming()
    assert (await raw(converse, message))["content"] == "final words"
    assert (await converse.get_message(message.id)).content == "final words"


class Hooked(Message):
    """Looks at its conversation before it is inserted."""

    hook: ClassVar[Callable[[Any], Awaitable[None]]]

    @before_event(Insert)
    async def look(self) -> None:
        await type(self).hook(self.conversation_id)


async def test_transaction__lets_hooks_read(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[Any] = []

    async def read_title(conversation_id: Any) -> None:
        titles.append((await converse.get_conversation(conversation_id)).title)

    monkeypatch.setattr(Hooked, "hook", staticmethod(read_title), raising=False)
    converse: Converse = await facade(message_model=Hooked)
    conversation = await converse.start_conversation("Files")
    async with asyncio.timeout(20), converse.transaction():
        await conversation.add_user_message("one")
    assert titles == ["Files"]
    assert len(await conversation.messages()) == 1


async def test_transaction__that_is_left_in_another_context(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    transaction = converse.transaction()

    async def enter() -> None:
        await transaction.__aenter__()
        await conversation.add_user_message("gone")

    await asyncio.create_task(enter())
    await transaction.__aexit__(Abort, Abort(), None)
    assert not transaction.is_open
    await soon(conversation.add_user_message("one"))  # which a transaction would keep waiting
    assert [message.content for message in await conversation.messages()] == ["one"]


class Stamped(Conversation):
    """Gives itself a title when it is inserted."""

    @before_event(Insert)
    def stamp(self) -> None:
        self.title = "from a hook"


class Growing(Message):
    """Gets metadata when it is inserted."""

    @before_event(Insert)
    def grow(self) -> None:
        self.metadata["grown"] = True


async def test_hooks__are_seen_by_handlers(facade: Facade) -> None:
    converse: Converse = await facade(conversation_model=Stamped, message_model=Growing)
    told: list[Any] = []
    converse.on(ConversationCreated, told.append)
    converse.on(MessageCreated, told.append)
    conversation = await converse.start_conversation("given")
    message = await conversation.create_user_message("one")
    assert told[0].title == conversation.title == "from a hook"
    assert told[1].metadata == message.metadata == {"grown": True}
    assert (told[1].content, told[1].position) == ("one", message.position)
