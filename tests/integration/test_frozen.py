"""A MongoDB that accepts calls and does not answer: nothing waits for ever."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from converse_mongo import (
    Converse,
    StoreUnavailableError,
)
from converse_mongo.driver import change_streams, deadlines
from converse_mongo.driver.clients import close_client, open_client
from converse_mongo.embedded import EmbeddedServer
from converse_mongo.watching import hub, watcher
from tests.conftest import USES_MOTOR, Facade
from tests.streams import SOON, assert_exact, collect, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="freezes a process by a signal")


@contextmanager
def frozen(server: EmbeddedServer) -> Iterator[None]:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def test_calls__of_a_lent_client_end(
    start_server: Callable[..., EmbeddedServer],
) -> None:
    """A client of the application's has no ``socketTimeoutMS`` by default."""
    server = start_server()
    client = open_client(server.uri, {})
    try:
        async with Converse(client, database="frozen", retry_timeout=0.5) as converse:
            conversation = await converse.start_conversation(owner=("user", "ada"))
            message = await conversation.start_streaming_assistant()
            gone = await conversation.add_user_message("gone")
            (asked,) = await gone.messages(limit=1)
            empty = await converse.start_conversation()
            transaction = converse.transaction()
            calls: dict[str, Callable[[], Any]] = {
                "get_message": lambda: converse.get_message(message.id),
                "get_conversation": lambda: converse.get_conversation(conversation.id),
                "messages": conversation.messages,
                "refresh": message.refresh,
                "append": lambda: message.append_chunk("a"),
                "save": lambda: message.save(),
                "set": lambda: message.set({"metadata.a": 1}),
                "inc": lambda: message.inc({"metadata.n": 1}),
                "delete": asked.delete,
                "rename": lambda: conversation.set({"title": "new"}),
                "remove": empty.delete,
                "start": converse.start_conversation,
                "add": lambda: conversation.add_user_message("hi"),
                "recover": converse.recover_stale,
                "stop": lambda: converse.request_stop(message.id),
                "transaction": transaction.__aenter__,
            }
            message.metadata["changed"] = True
            with frozen(server):
                # Twice as many as Motor has threads: none may be behind one that never returns.
                many = [call for call in calls.values() for _ in range(3)]
                async with asyncio.timeout(SOON):
                    ends = await asyncio.gather(*[call() for call in many], return_exceptions=True)
            assert {type(end) for end in ends} == {StoreUnavailableError}
            async with asyncio.timeout(SOON):
                assert (await converse.get_message(message.id)).id == message.id
    finally:
        await close_client(client)


async def test_watcher__goes_on_after_a_freeze(
    start_server: Callable[..., EmbeddedServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module, name in (
        (watcher, "READ_SECONDS"),
        (hub, "CHECK_SECONDS"),
        (change_streams, "ANSWER_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.3)
    server = start_server()
    client = open_client(server.uri, {})
    try:
        async with Converse(client, database="frozen", check_interval=0.05) as converse:
            message = await (await converse.start_conversation()).start_streaming_assistant()
            watching_it = asyncio.create_task(collect(converse, message))
            await until(lambda: converse.statistics().streams_opened == 1)
            checks = converse.statistics().checks
            with frozen(server):
                # The comparison is given up and begun again, and so is the change stream.
                await until(lambda: converse.statistics().checks > checks + 3)
                await until(lambda: converse.watch_mode == "polling")
            await message.append_chunk("a")
            await message.complete_streaming()
            async with asyncio.timeout(SOON):
                assert_exact(await watching_it, await converse.get_message(message.id))
    finally:
        await close_client(client)


@pytest.mark.skipif(not USES_MOTOR, reason="PyMongo Async has no threads")
async def test_call__gives_up_when_no_thread_of_motor_is_free(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading
    from concurrent.futures import ThreadPoolExecutor

    from motor.frameworks import asyncio as framework

    monkeypatch.setattr(deadlines, "GRACE_SECONDS", 0.1)
    converse = await facade(retry_timeout=0.5)
    message = await (await converse.start_conversation()).start_streaming_assistant()
    pool, gate = ThreadPoolExecutor(max_workers=1), threading.Event()
    patch = pytest.MonkeyPatch()
    patch.setattr(framework, "_EXECUTOR", pool)
    try:
        blocked = pool.submit(gate.wait, SOON)
        async with asyncio.timeout(SOON):
            with pytest.raises(StoreUnavailableError, match="MOTOR_MAX_WORKERS"):
                await message.append_chunk("never sent")
        gate.set()
        await asyncio.to_thread(blocked.result)
        # What was given up has left the queue: it is not made late.
        assert (await converse.get_message(message.id)).content == ""
        await message.append_chunk("sent")
        assert (await converse.get_message(message.id)).content == "sent"
    finally:
        patch.undo()
        gate.set()
        pool.shutdown()


LEAVES = """
import asyncio, os, signal, sys
from converse_mongo import Converse

async def main():
    async with Converse(sys.argv[1], database="frozen") as converse:
        message = await (await converse.start_conversation()).start_streaming_assistant()
        os.kill(int(sys.argv[2]), signal.SIGSTOP)
        calls = [asyncio.create_task(converse.get_message(message.id)) for _ in range(40)]
        await asyncio.sleep(0.5)
        for call in calls:
            call.cancel()
    print("closed", flush=True)

asyncio.run(main())
"""


async def test_process__exits_soon_after_it_has_closed(
    start_server: Callable[..., EmbeddedServer],
) -> None:
    """The interpreter waits for the threads of Motor, and those wait for the server."""
    server = start_server()
    assert server.pid is not None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LEAVES, server.uri, str(server.pid)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(SOON):
            assert await process.stdout.readline() == b"closed\n"
        # A call that nobody interrupts takes ten seconds.
        async with asyncio.timeout(7):
            assert await process.wait() == 0
    finally:
        os.kill(server.pid, signal.SIGCONT)
        if process.returncode is None:
            process.kill()
            await process.wait()
