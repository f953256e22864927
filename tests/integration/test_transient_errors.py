"""Errors that pass by themselves: a call is tried again, and a writer does not end its message."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pymongo import MongoClient

from converse_mongo import StoreUnavailableError, WriterFailedError
from converse_mongo.embedded import EmbeddedServer
from tests.conftest import Facade
from tests.streams import SOON

ERRORS: dict[str, dict[str, Any]] = {
    "no primary behind a router": {"errorCode": 133},
    "a cache under pressure": {"errorCode": 365},
    "a write conflict": {"errorCode": 112},
    "overload": {"errorCode": 1, "errorLabels": ["SystemOverloadedError", "RetryableError"]},
}


@contextmanager
def failing(
    server: EmbeddedServer, commands: list[str], mode: Any = "alwaysOn", **how: Any
) -> Iterator[None]:
    with MongoClient[dict[str, Any]](server.uri) as admin:

        def configure(mode: Any, **data: Any) -> None:
            admin.admin.command("configureFailPoint", "failCommand", mode=mode, **data)

        configure(mode, data={"failCommands": commands, **how})
        try:
            yield
        finally:
            configure("off")


@pytest.mark.parametrize("why", ERRORS)
async def test_writer__goes_on_after_an_error_that_passes(
    start_server: Callable[..., EmbeddedServer], facade: Facade, why: str
) -> None:
    server = start_server("--enable-test-commands")
    converse = await facade("transient", server.uri)
    message = await (await converse.start_conversation()).start_streaming_assistant()
    async with message.writer() as writer:
        await writer.write("a")
        await writer.flush()
        # More often than a driver tries again by itself.
        with failing(server, ["update"], {"times": 4}, **ERRORS[why]):
            await writer.write("b")
            async with asyncio.timeout(SOON):
                await writer.flush()
        with failing(server, ["find", "aggregate"], {"times": 4}, **ERRORS[why]):
            assert (await converse.get_message(message.id)).content == "ab"
    assert (await converse.get_message(message.id)).is_completed


@pytest.mark.parametrize("why", ["a cache under pressure", "overload"])
async def test_writer__that_gives_up_leaves_its_message_streaming(
    start_server: Callable[..., EmbeddedServer], facade: Facade, why: str
) -> None:
    server = start_server("--enable-test-commands")
    converse = await facade("transient", server.uri, retry_timeout=0.3)
    message = await (await converse.start_conversation()).start_streaming_assistant()
    with pytest.raises(WriterFailedError) as caught:
        async with message.writer() as writer:
            with failing(server, ["update"], **ERRORS[why]):
                await writer.write("lost")
                async with asyncio.timeout(SOON):
                    await writer.flush()
    assert isinstance(caught.value.__cause__, StoreUnavailableError)
    assert caught.value.text == "lost"
    assert (await converse.get_message(message.id)).is_streaming
