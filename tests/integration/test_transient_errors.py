"""Errors that pass by themselves: a call is tried again, and a writer does not end its message."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from beanie import Update, after_event, before_event
from pymongo.errors import PyMongoError

from converse_mongo import (
    ConversationNotFoundError,
    Message,
    MessageNotFoundError,
    StoreUnavailableError,
    WriterFailedError,
)
from converse_mongo.driver.sessions import start_transaction
from converse_mongo.embedded import EmbeddedServer
from tests.conftest import Facade
from tests.integration.helpers import failing
from tests.streams import SOON

ERRORS: dict[str, dict[str, Any]] = {
    "no primary behind a router": {"errorCode": 133},
    "a cache under pressure": {"errorCode": 365},
    "a write conflict": {"errorCode": 112},
    "overload": {"errorCode": 1, "errorLabels": ["SystemOverloadedError", "RetryableError"]},
}


@pytest.mark.parametrize("why", ERRORS)
async def test_writer__goes_on_after_an_error_that_passes(
    failing_server: EmbeddedServer, facade: Facade, why: str
) -> None:
    converse = await facade(uri=failing_server.uri)
    message = await (await converse.start_conversation()).start_streaming_assistant()
    async with message.writer() as writer:
        await writer.write("a")
        await writer.flush()
        # More often than a driver tries again by itself.
        with failing(failing_server, ["update"], {"times": 4}, **ERRORS[why]):
            await writer.write("b")
            async with asyncio.timeout(SOON):
                await writer.flush()
        with failing(failing_server, ["find", "aggregate"], {"times": 4}, **ERRORS[why]):
            assert (await converse.get_message(message.id)).content == "ab"
    assert (await converse.get_message(message.id)).is_completed


@pytest.mark.parametrize("why", ["a cache under pressure", "overload"])
async def test_writer__that_gives_up_leaves_its_message_streaming(
    failing_server: EmbeddedServer, facade: Facade, why: str
) -> None:
    converse = await facade(uri=failing_server.uri, retry_timeout=0.3)
    message = await (await converse.start_conversation()).start_streaming_assistant()
    with pytest.raises(WriterFailedError) as caught:
        async with message.writer() as writer:
            with failing(failing_server, ["update"], **ERRORS[why]):
                await writer.write("lost")
                async with asyncio.timeout(SOON):
                    await writer.flush()
    assert isinstance(caught.value.__cause__, StoreUnavailableError)
    assert caught.value.text == "lost"
    assert (await converse.get_message(message.id)).is_streaming


class Hooked(Message):
    """Counts the hooks of its updates."""

    @before_event(Update)
    def before(self) -> None:
        HOOKS.append("before")

    @after_event(Update)
    def after(self) -> None:
        HOOKS.append("after")


HOOKS: list[str] = []


@pytest.mark.parametrize("why", ERRORS)
async def test_update__is_made_again_where_that_is_safe(
    failing_server: EmbeddedServer, facade: Facade, why: str
) -> None:
    converse = await facade(uri=failing_server.uri, message_model=Hooked)
    conversation = await converse.start_conversation("Files")
    message = await conversation.create_user_message("hi", {"n": 1})
    HOOKS.clear()
    bounds = {"$max": {"metadata.n": 2}, "$unset": {"metadata.gone": ""}}
    updates: list[Callable[[], Awaitable[Any]]] = [
        lambda: message.set({"metadata.a": 1}),
        lambda: message.update(bounds),
        lambda: conversation.set({"title": "Folders"}),
    ]
    async with asyncio.timeout(SOON):
        for update in updates:
            # More often than a driver tries again by itself.
            with failing(failing_server, ["findAndModify"], {"times": 4}, **ERRORS[why]):
                await update()
    assert message.metadata == {"n": 2, "a": 1}
    assert HOOKS == ["before", "after"] * 2
    assert (await converse.get_message(message.id)).metadata == message.metadata
    assert (await converse.get_conversation(conversation.id)).title == "Folders"
    async with asyncio.timeout(SOON):
        for gone in (message, conversation):
            with failing(failing_server, ["delete"], {"times": 4}, **ERRORS[why]):
                await gone.delete()
    with pytest.raises(MessageNotFoundError):
        await converse.get_message(message.id)
    with pytest.raises(ConversationNotFoundError):
        await converse.get_conversation(conversation.id)


@pytest.mark.parametrize("operator", ["$inc", "$push", "$mul"])
async def test_update__that_might_be_applied_twice_is_made_once(
    failing_server: EmbeddedServer, facade: Facade, operator: str
) -> None:
    converse = await facade(uri=failing_server.uri)
    conversation = await converse.start_conversation()
    message = await conversation.create_user_message("hi", {"n": [] if operator == "$push" else 1})
    update = {operator: {"metadata.n": 2}, "$set": {"metadata.a": 1}}
    with (
        failing(
            failing_server, ["findAndModify"], {"times": 4}, **ERRORS["a cache under pressure"]
        ),
        pytest.raises(StoreUnavailableError, match=f"update message {message.id}.*not retried"),
    ):
        await message.update(update)
    await message.update(update)
    assert message.metadata == {"n": {"$inc": 3, "$push": [2], "$mul": 2}[operator], "a": 1}


async def test_update__in_a_transaction_of_the_application_is_its_own_to_try_again(
    failing_server: EmbeddedServer, facade: Facade
) -> None:
    converse = await facade(uri=failing_server.uri)
    message = await (await converse.start_conversation()).create_user_message("hi")
    session = await start_transaction(message.store().messages.database)
    with failing(failing_server, ["findAndModify", "delete"], **ERRORS["a write conflict"]):
        for write in (
            message.set({"metadata.a": 1}, session=session),
            message.delete(session=session),
        ):
            with pytest.raises(PyMongoError):
                await write
    await session.end_session()
