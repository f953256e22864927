"""Deletions, of which a writer learns as soon as of a stop."""

import asyncio
import logging

import pytest

from converse_mongo import (
    Converse,
    MessageNotFoundError,
    MessageStatus,
    StreamStoppedError,
    WriterFailedError,
)
from tests.conftest import Facade
from tests.streams import SOON, until

LONG = 60.0
"""Longer than any test: a writer must not learn by comparing."""


async def test_conversation__that_is_deleted_stops_what_is_written_in_it(facade: Facade) -> None:
    converse: Converse = await facade(check_interval=LONG)
    other: Converse = await facade(database=converse.database_name)
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    heard = await conversation.start_streaming_user()
    elsewhere = await other.get_conversation(conversation.id)
    async with asyncio.timeout(SOON):
        with pytest.raises(StreamStoppedError, match="The conversation was deleted"):
            async with message.writer(interrupt=True) as writer:
                await writer.write("Well")
                await writer.flush()
                await until(lambda: converse.statistics().streams_opened > 0)
                deleting = asyncio.create_task(elsewhere.delete())
                await asyncio.Event().wait()
        await deleting
    await message.refresh()
    assert (message.status, message.content) == (MessageStatus.CANCELLED, "Well")
    assert (await heard.refresh()).status is MessageStatus.CANCELLED


async def test_message__that_is_deleted_ends_its_writer_quietly(
    facade: Facade, caplog: pytest.LogCaptureFixture
) -> None:
    converse: Converse = await facade(check_interval=LONG)
    other: Converse = await facade(database=converse.database_name)
    message = await (await converse.start_conversation()).start_streaming_assistant()
    elsewhere = await other.get_message(message.id)
    caplog.set_level(logging.INFO)
    async with asyncio.timeout(SOON):
        with pytest.raises(WriterFailedError) as caught:
            async with message.writer(interrupt=True) as writer:
                await writer.write("Well")
                await writer.flush()
                await until(lambda: converse.statistics().streams_opened > 0)
                deleting = asyncio.create_task(elsewhere.delete())
                await asyncio.Event().wait()
        await deleting
    assert isinstance(caught.value.__cause__, MessageNotFoundError)
    assert [each for each in caplog.records if each.levelno > logging.INFO] == []
