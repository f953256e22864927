"""What a comparison of what is watched with the database reads, and what it finds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo import monitoring

from converse_mongo import (
    Conversation,
    Converse,
    MessageCreated,
    MessageUpdated,
)
from converse_mongo.documents import messages
from converse_mongo.driver.collections import collection_of
from tests.conftest import Facade
from tests.integration.helpers import soon
from tests.queries import is_covered
from tests.streams import SOON, until

POLLED = {"change_streams": False, "poll_interval": 0.02}


class Finds(monitoring.CommandListener):
    """Keeps the ``find`` commands of a client, and how many documents each brought."""

    def __init__(self) -> None:
        self.found: list[tuple[dict[str, Any], int]] = []
        self._sent: dict[int, dict[str, Any]] = {}

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name == "find":
            self._sent[event.request_id] = dict(event.command)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        if find := self._sent.pop(event.request_id, None):
            self.found.append((find, len(event.reply["cursor"]["firstBatch"])))

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        self._sent.pop(event.request_id, None)


@asynccontextmanager
async def watching(viewer: Converse, *conversations: Conversation) -> AsyncIterator[list[Any]]:
    """The watchers of conversations, from now on, attached and compared once."""
    async with AsyncExitStack() as stack:
        watchers = [
            await stack.enter_async_context(viewer.watch_conversation(each.id, "now"))
            for each in conversations
        ]
        checks = viewer.statistics().checks
        await until(lambda: viewer.statistics().checks > checks + 1)
        yield watchers


async def saved(conversation: Conversation, count: int) -> None:
    for number in range(count):
        message = await conversation.create_user_message(str(number))
        message.metadata["x"] = 1
        await message.save()


async def test_comparison__of_conversations_is_covered_however_many_saves_there_were(
    facade: Facade,
) -> None:
    writer, finds = await facade(), Finds()
    viewer = await facade(
        writer.database_name, **POLLED, client_options={"event_listeners": [finds]}
    )
    conversations = [await writer.start_conversation() for _ in range(5)]
    for length, conversation in enumerate(conversations, 3):
        await saved(conversation, length)
    await until_saves_are_old(writer)
    async with watching(viewer, *conversations):
        finds.found.clear()
        checks = viewer.statistics().checks
        await until(lambda: viewer.statistics().checks > checks + 2)
        found = list(finds.found)
    assert found
    for find, _ in found:
        assert is_covered(find), find
    assert sum(count for find, count in found if find["find"] == "messages") == 0


async def until_saves_are_old(converse: Converse) -> None:
    """Waits until no comparison need look at the saves so far any more: they are on their way."""

    async def moment() -> Any:
        return await converse._open_parts.hub._registry._reader.moment()

    begun = (await moment()).time
    async with asyncio.timeout(SOON):
        while (await moment()).time < begun + 3:
            await (await converse.start_conversation()).delete()  # the cluster's time moves on
            await asyncio.sleep(0.05)


async def test_comparison__hears_of_saves_whatever_the_clock_of_who_saves_says(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **POLLED)
    conversation = await writer.start_conversation()
    await saved(conversation, 2)
    message = (await conversation.messages())[0]
    async with watching(viewer, conversation) as [events]:
        for hours in (-48, 48, 0):
            monkeypatch.setattr(
                messages, "now", lambda hours=hours: datetime.now(UTC) + timedelta(hours=hours)
            )
            message.metadata["hours"] = hours
            await message.save()
            event = await soon(anext(events))
            assert isinstance(event, MessageUpdated)
            assert (event.message_id, event.revision) == (message.id, message.revision)


async def test_comparison__does_not_tell_of_what_was_saved_before(facade: Facade) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **POLLED)
    first, second = [await writer.start_conversation() for _ in range(2)]
    await saved(first, 3)
    async with watching(viewer, first) as [events]:
        await saved(second, 3)
        async with watching(viewer, second) as [later]:
            await second.add_user_message("new")
            assert isinstance(await soon(anext(later)), MessageCreated)
        await first.add_user_message("new")
        assert isinstance(await soon(anext(events)), MessageCreated)


async def test_comparison__knows_saves_of_an_earlier_version(facade: Facade) -> None:
    # Which kept no mark of them.
    writer = await facade()
    viewer = await facade(writer.database_name, **POLLED)
    conversation = await writer.start_conversation()
    await saved(conversation, 2)
    stored = collection_of(writer.message_model)
    await stored.update_many({}, {"$unset": {"save_mark": ""}, "$set": {"revision": 7}})
    message = (await conversation.messages())[1]
    async with watching(viewer, conversation) as [events]:
        message.metadata["y"] = 1
        await message.save()
        event = await soon(anext(events))
        assert isinstance(event, MessageUpdated)
        assert (event.message_id, event.revision) == (message.id, 8)


async def test_comparison__finds_a_message_whose_writer_died_before_it_counted_it(
    facade: Facade,
) -> None:
    writer = await facade()
    viewer = await facade(writer.database_name, **POLLED)
    conversations = [await writer.start_conversation() for _ in range(12)]
    for length, conversation in enumerate(conversations):
        for _ in range(length):  # more lengths than one comparison looks at
            await conversation.add_user_message("x")
    stored = collection_of(writer.message_model)
    async with watching(viewer, *conversations) as watchers:
        for events, conversation in zip(watchers, conversations, strict=True):
            position = (await writer.get_conversation(conversation.id)).next_position
            template = {"role": "user", "content": "y", "status": "completed"}
            await stored.insert_one(
                {
                    **template,
                    "_id": ObjectId(),
                    "conversation_id": conversation.id,
                    "position": position,
                    "created_at": datetime.now(UTC),
                }
            )
            event = await soon(anext(events))
            assert isinstance(event, MessageCreated)
            assert event.position == position
