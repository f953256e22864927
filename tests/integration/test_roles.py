"""Each event of a message says who speaks, however the watcher has heard of it."""

from typing import Any

import pytest

from converse_mongo import (
    ChunkReceived,
    Event,
    MessageCompleted,
    MessageCreated,
    MessageRole,
    MessageUpdated,
    ProtectedFieldError,
)
from converse_mongo.driver.collections import collection_of
from converse_mongo.watching import hub
from tests.conftest import Facade
from tests.integration.helpers import NEVER, OFTEN, soon
from tests.streams import until


@pytest.fixture(params=["change_stream", "comparison", "polling"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The ways to hear of news: told, found beside a silent stream, found without one."""
    if request.param == "change_stream":
        return NEVER
    if request.param == "comparison":
        monkeypatch.setattr(hub.Hub, "_take", lambda _self, _change: None)
        return OFTEN
    return {**OFTEN, "change_streams": False}


async def test_role__is_in_each_event_of_a_watcher(facade: Facade, how: dict[str, Any]) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    conversation = await writer.start_conversation()
    old = await conversation.create_system_message("Be kind.")
    streaming = await conversation.start_streaming_message(MessageRole.TOOL_RESULT)
    async with (
        viewer.watch_conversation(conversation.id, "now") as events,
        viewer.watch_message(streaming.id) as own,
    ):
        checks = viewer.statistics().checks
        if how is NEVER:
            await until(lambda: viewer.statistics().streams_opened > 0)
        else:
            await until(lambda: viewer.statistics().checks > checks + 1)
        await streaming.append_chunk("a")
        for each in (events, own):
            chunk = await soon(anext(each))
            assert (type(chunk), chunk.role) == (ChunkReceived, MessageRole.TOOL_RESULT)
        old.metadata["x"] = 1
        await old.save()
        updated = await soon(anext(events))
        assert (type(updated), updated.role) == (MessageUpdated, MessageRole.SYSTEM)
        await streaming.complete_streaming()
        for each in (events, own):
            ended = await soon(anext(each))
            assert (type(ended), ended.role) == (MessageCompleted, MessageRole.TOOL_RESULT)
        call = await conversation.start_streaming_message(MessageRole.TOOL_CALL)
        await soon(anext(events))
        await call.append_chunk("f()")
        told = await soon(anext(events))
        assert (told.role, told.to_dict()["role"]) == (MessageRole.TOOL_CALL, "tool_call")


async def test_role__is_in_each_event_of_a_handler(facade: Facade) -> None:
    converse = await facade()
    heard: list[Any] = []
    converse.on(Event, heard.append)
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_message(MessageRole.TOOL_CALL)
    await message.append_chunk("f()")
    async with message.writer() as writer:
        await writer.write("g()")
    message.metadata["x"] = 1
    await message.save()
    kinds = [MessageCreated, ChunkReceived, ChunkReceived, MessageCompleted, MessageUpdated]
    of_message = [each for each in heard if hasattr(each, "message_id")]
    assert [type(each) for each in of_message] == kinds
    assert {each.role for each in of_message} == {MessageRole.TOOL_CALL}


async def test_role__is_written_once(facade: Facade) -> None:
    converse = await facade()
    message = await (await converse.start_conversation()).create_user_message("Hello")
    message.role = MessageRole.SYSTEM
    with pytest.raises(ProtectedFieldError, match="role"):
        await message.save()


async def test_role__of_a_save_of_an_earlier_version_is_found(facade: Facade) -> None:
    converse = await facade(check_interval=0.05)
    conversation = await converse.start_conversation()
    message = await conversation.create_user_message("Hello")
    async with converse.watch_conversation(conversation.id, "now") as events:
        await until(lambda: converse.statistics().streams_opened > 0)
        last_save = {"conversation_id": conversation.id, "at": message.created_at}
        await collection_of(converse.message_model).update_one(
            {"_id": message.id},
            {
                "$set": {"last_save": last_save},
                "$inc": {"revision": 1},
                "$currentDate": {"save_mark": {"$type": "timestamp"}},
            },
        )
        updated = await soon(anext(events))
        assert (type(updated), updated.role) == (MessageUpdated, MessageRole.USER)


async def test_saves__of_an_unknown_role_are_not_in_the_way_of_others(
    facade: Facade, how: dict[str, Any]
) -> None:
    """Another application, or a later version, may store roles that this one does not know."""
    writer = await facade()
    viewer = await facade(writer.database_name, **how)
    conversation = await writer.start_conversation()
    alien = await conversation.create_user_message("Hello")
    known = await conversation.create_user_message("Hi")
    await collection_of(writer.message_model).update_one(
        {"_id": alien.id}, {"$set": {"role": "developer"}}
    )
    alien.metadata["x"] = 1
    await alien.save()  # before it is watched
    async with viewer.watch_conversation(conversation.id, "now") as events:
        checks = viewer.statistics().checks
        if how is NEVER:
            await until(lambda: viewer.statistics().streams_opened > 0)
        else:
            await until(lambda: viewer.statistics().checks > checks + 1)
        alien.metadata["x"] = 2
        await alien.save()
        known.metadata["x"] = 1
        await known.save()
        updated = [await soon(anext(events))]
        if updated[0].message_id == alien.id:  # its copy here has the role that it was given
            updated.append(await soon(anext(events)))
    assert updated[-1].message_id == known.id


async def test_role__given_as_text_is_saved_and_told(converse: Any) -> None:
    told: list[MessageUpdated] = []
    converse.on(MessageUpdated, told.append)
    message = await (await converse.start_conversation()).create_user_message("Hello")
    message.role = "user"
    message.metadata["x"] = 1
    await message.save()
    assert [event.role for event in told] == [MessageRole.USER]
