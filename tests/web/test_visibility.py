"""Which events browsers are shown, and how seldom the database is asked for that."""

import asyncio
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from converse_mongo import Conversation, Converse, Message, MessageRole, MessageUpdated
from converse_mongo.web.access import Access
from converse_mongo.web.visibility import Visibility
from tests.conftest import Commands, Facade
from tests.web.conftest import is_owner

SHOWN = frozenset({MessageRole.USER, MessageRole.ASSISTANT})


def visibility_of(converse: Converse) -> Visibility:
    return Visibility(Access(converse, is_owner, SHOWN))


async def start(facade: Facade, *listeners: Any) -> tuple[Converse, Conversation]:
    converse = await facade(client_options={"event_listeners": list(listeners)})
    return converse, await converse.start_conversation()


def saved(message: Message, revision: int) -> MessageUpdated:
    return MessageUpdated(
        conversation_id=message.conversation_id, message_id=message.id, revision=revision
    )


async def test_visibility__asks_once_for_all_streams(facade: Facade, commands: Commands) -> None:
    converse, conversation = await start(facade, commands)
    answer = await conversation.start_streaming_assistant()
    hidden = await conversation.create_system_message("Be kind.")
    visibility = visibility_of(converse)

    async def follow() -> list[str]:
        async with converse.watch_conversation(conversation.id, "now") as events:
            attached.release()
            shown = visibility.shown(conversation, events)
            return [(await anext(shown)).type for _ in range(3)]

    attached = asyncio.Semaphore(0)
    following = [asyncio.create_task(follow()) for _ in range(20)]
    for _ in following:
        await attached.acquire()
    commands.sent.clear()
    await answer.append_chunks(["a", "b"])
    await answer.complete_streaming()
    for seen in await asyncio.gather(*following):
        assert seen == ["chunk.received", "chunk.received", "message.completed"]
    asked = [each for each in commands.named("find") if each.get("projection") == {"role": 1}]
    assert len(asked) == 1
    assert await visibility.shows(conversation, saved(answer, 0))
    assert not await visibility.shows(conversation, saved(hidden, 0))


async def test_visibility__asks_again_when_a_message_was_saved(facade: Facade) -> None:
    converse, conversation = await start(facade)
    message = await conversation.create_user_message("Hello")
    visibility = visibility_of(converse)
    assert await visibility.shows(conversation, saved(message, 1))
    message.role = MessageRole.SYSTEM
    await message.save()
    assert await visibility.shows(conversation, saved(message, 1))
    assert not await visibility.shows(conversation, saved(message, 2))
    assert not await visibility.shows(conversation, saved(message, 2))


async def test_visibility__of_a_message_that_is_not_in_the_conversation(facade: Facade) -> None:
    converse, conversation = await start(facade)
    other = await converse.start_conversation()
    message = await other.create_user_message("a secret")
    assert not await visibility_of(converse).shows(conversation, saved(message, 0))


async def test_visibility__asks_again_after_trouble(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse, conversation = await start(facade)
    message = await conversation.create_user_message("Hello")
    visibility = visibility_of(converse)
    ask = Access.shows_message
    go = asyncio.Event()

    async def fail(*_: Any) -> bool:
        await go.wait()
        raise AutoReconnect("away")

    monkeypatch.setattr(Access, "shows_message", fail)
    several = [
        asyncio.create_task(visibility.shows(conversation, saved(message, 0))) for _ in range(3)
    ]
    await asyncio.sleep(0)
    several[0].cancel()  # whoever leaves takes nothing from the others
    go.set()
    found = await asyncio.gather(*several, return_exceptions=True)
    assert [type(each) for each in found] == [asyncio.CancelledError, AutoReconnect, AutoReconnect]
    monkeypatch.setattr(Access, "shows_message", ask)
    assert await visibility.shows(conversation, saved(message, 0))


async def test_visibility__keeps_not_more_than_so_many(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converse_mongo.web.visibility.MAX_KNOWN", 3)
    converse, conversation = await start(facade)
    visibility = visibility_of(converse)
    messages = [await conversation.create_user_message("Hello") for _ in range(6)]
    for message in messages:
        assert await visibility.shows(conversation, saved(messages[0], 0))
        assert await visibility.shows(conversation, saved(message, 0))
    assert list(visibility._known) == [messages[4].id, messages[0].id, messages[5].id]
