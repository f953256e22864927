"""Event loops and processes: one facade for each, and a clear error where that is not so."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient

from converse_mongo import (
    ChunkReceived,
    ConfigurationError,
    Conversation,
    Converse,
    ConverseClosedError,
    Message,
)
from converse_mongo.driver.clients import close_client, open_client
from tests.conftest import USES_MOTOR
from tests.streams import SOON

# A client whose loop is dead cannot be closed in order.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed .*MongoClient:ResourceWarning")

FEED = "ThreadChangeStream" if USES_MOTOR else "TaskChangeStream"


@pytest.fixture
def name(server_uri: str) -> Iterator[str]:
    made = f"test_{uuid4().hex[:16]}"
    yield made
    with MongoClient[dict[str, Any]](server_uri) as client:
        client.drop_database(made)
    gc.collect()  # while its warnings are ignored


async def talk(converse: Converse) -> tuple[Conversation, Message]:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    async with message.writer() as writer:
        await writer.write("answer")
    async for event in converse.watch_message(message.id):
        assert not isinstance(event, ChunkReceived) or event.chunk.content == "answer"
    return conversation, message


def test_open__in_one_loop_after_the_other_four_at_once(server_uri: str, name: str) -> None:
    converse = Converse(server_uri, database=name)

    async def job() -> None:
        await asyncio.gather(*[converse.open() for _ in range(4)])
        await talk(converse)
        await asyncio.gather(*[converse.aclose() for _ in range(4)])
        assert converse.closed

    for _ in range(3):
        asyncio.run(job())


def test_close__a_second_time_in_another_loop(server_uri: str, name: str) -> None:
    converse = Converse(server_uri, database=name)

    async def job() -> None:
        async with converse:
            await talk(converse)

    asyncio.run(job())
    asyncio.run(converse.aclose())
    with pytest.raises(ConverseClosedError):
        asyncio.run(converse.start_conversation())


@pytest.mark.parametrize("when", ["opening", "reading", "comparing"])
def test_left_open__ends_with_its_loop_though_a_cancellation_is_swallowed(
    server_uri: str, name: str, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """On Python 3.11 ``asyncio.wait_for``, which PyMongo uses, may do so."""
    reached: list[asyncio.Event] = []

    async def swallow(*_: Any, **__: Any) -> Any:
        reached[-1].set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return SilentFeed() if when == "opening" else []

    async def job() -> None:
        reached.append(asyncio.Event())
        converse = await Converse(server_uri, database=name, check_interval=0.01).open()
        message = await (await converse.start_conversation()).start_streaming_assistant()
        the_hub = converse._open_parts.hub
        if when == "comparing":
            monkeypatch.setattr(the_hub._reconciler, "run", swallow)
        elif when == "opening":
            monkeypatch.setattr(the_hub, "_open_stream", swallow)
        else:
            monkeypatch.setattr(f"converse_mongo.driver.change_streams.{FEED}.next_batch", swallow)
        async with converse.watch_message(message.id):
            async with asyncio.timeout(SOON):
                await reached[-1].wait()

    thread = threading.Thread(target=asyncio.run, args=(job(),), daemon=True)
    thread.start()
    thread.join(SOON)
    assert not thread.is_alive()


class SilentFeed:
    """A change stream that brings nothing."""

    async def next_batch(self) -> list[Any]:
        await asyncio.Event().wait()
        return []

    async def aclose(self) -> None:
        pass


def leave_open(converse: Converse) -> tuple[Conversation, Message]:
    async def job() -> tuple[Conversation, Message]:
        await converse.open()
        return await talk(converse)

    return asyncio.run(job())


CALLS: dict[str, Callable[[Converse, Conversation, Message], Awaitable[Any]]] = {
    "open": lambda converse, _, __: converse.open(),
    "start": lambda converse, _, __: converse.start_conversation(),
    "get": lambda converse, _, message: converse.get_message(message.id),
    "messages": lambda _, conversation, __: conversation.messages(),
    "add": lambda _, conversation, __: conversation.add_user_message("x"),
    "append": lambda _, __, message: message.append_chunk("x"),
    "indexes": lambda converse, _, __: converse.create_indexes(),
}


async def in_this_loop(call: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(SOON):
        await call()


def test_left_open__in_a_loop_that_is_dead(server_uri: str, name: str) -> None:
    converse = Converse(server_uri, database=name)
    conversation, message = leave_open(converse)
    for call in CALLS.values():
        with pytest.raises(ConfigurationError, match="one Converse per event loop"):
            asyncio.run(in_this_loop(lambda call=call: call(converse, conversation, message)))  # type: ignore[misc]

    async def watch() -> None:
        async with converse.watch_message(message.id):
            pass

    with pytest.raises(ConfigurationError, match="loop that is closed"):
        asyncio.run(watch())

    async def let_go_and_open() -> None:
        await converse.aclose()
        assert converse.closed
        async with converse:
            await talk(converse)
            assert (await converse.get_message(message.id)).content == "answer"

    asyncio.run(let_go_and_open())


def test_open__elsewhere_and_alive(server_uri: str, name: str) -> None:
    converse = Converse(server_uri, database=name)
    opened, over = threading.Event(), threading.Event()

    async def job() -> None:
        async with converse:
            opened.set()
            await asyncio.to_thread(over.wait, SOON)
            await talk(converse)

    thread = threading.Thread(target=asyncio.run, args=(job(),))
    thread.start()
    try:
        assert opened.wait(SOON)
        for call in (converse.open, converse.start_conversation, converse.aclose):
            with pytest.raises(ConfigurationError, match="opened in another event loop"):
                asyncio.run(in_this_loop(call))
        assert converse.watch_mode in ("change_stream", "polling")  # asks for no loop
    finally:
        over.set()
        thread.join(SOON)
    assert converse.closed


def test_client__of_another_loop(server_uri: str, name: str) -> None:
    async def make() -> Any:
        client = open_client(server_uri, {})
        await client.admin.command("ping")
        return client

    def refuse(client: Any) -> None:
        with pytest.raises(ConfigurationError, match="belongs to another event loop"):
            asyncio.run(in_this_loop(lambda: Converse(client, database=name).open()))

    with asyncio.Runner() as loop_of_the_client:
        client = loop_of_the_client.run(make())
        try:
            refuse(client)
        finally:
            loop_of_the_client.run(close_client(client))
    refuse(asyncio.run(make()))


def test_fork__says_that_it_was_opened_before(
    server_uri: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = Converse(server_uri, database=name)

    async def job() -> None:
        async with converse:
            with monkeypatch.context() as patch:
                patch.setattr("converse_mongo.opening.os.getpid", lambda: -1)
                with pytest.raises(ConfigurationError, match="before a fork"):
                    await converse.start_conversation()
            await talk(converse)

    asyncio.run(job())
