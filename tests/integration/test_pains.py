"""What users of chat back ends report most: each once, with the parts working together."""

import asyncio
import gc
import multiprocessing
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from converse_mongo import (
    ChunkReceived,
    Converse,
    Event,
    InvalidCursorError,
    Message,
    MessageFailed,
    MessageNotStreamingError,
    MessageStatus,
    StreamStoppedError,
    WriterExistsError,
)
from tests.conftest import Facade
from tests.integration.helpers import start
from tests.streams import assert_exact, collect, collect_restlessly, text, until


async def model(words: int, pause: float = 0.001) -> AsyncIterator[str]:
    for number in range(words):
        yield f"word-{number} "
        await asyncio.sleep(pause)


async def test_pain_1__stop_stops(facade: Facade) -> None:
    worker = await facade()
    web = await facade(worker.database_name)
    message = await start(worker)
    called, closed = asyncio.Event(), asyncio.Event()

    async def silent_model() -> AsyncIterator[str]:
        try:
            yield "some text"
            called.set()
            await asyncio.sleep(3600)
        finally:
            closed.set()

    generating = asyncio.create_task(message.pipe(silent_model()))
    await called.wait()
    await web.request_stop(message.id, "user")
    with pytest.raises(StreamStoppedError):
        await generating
    assert closed.is_set()  # nobody pays for what nobody reads
    assert (await web.get_message(message.id)).content == "some text"


async def test_pain_2__a_reload_loses_nothing(facade: Facade) -> None:
    worker = await facade()
    web = await facade(worker.database_name)
    message = await start(worker)
    randomly = random.Random(2)

    async def reload() -> str:
        """A page that is loaded again and again: the text so far, and what follows it."""
        while True:
            page = await web.get_message(message.id)
            shown: str = page.content
            last = page.next_sequence - 1
            async for event in web.watch_message(message.id, last):
                if not isinstance(event, ChunkReceived):
                    return shown
                shown += event.chunk.content
                if randomly.random() < 0.2:
                    break

    reloading = [asyncio.create_task(reload()) for _ in range(5)]
    await message.pipe(model(200))
    assert set(await asyncio.gather(*reloading)) == {message.content}


def be_killed(uri: str, database: str, message_id: str, pipe: Any) -> None:
    async def write() -> None:
        async with Converse(uri, database=database, create_indexes=False, lease=0.5) as converse:
            message = await converse.get_message(message_id)
            async with message.writer() as writer:
                async for word in model(1_000_000):
                    await writer.write(word)
                    await writer.flush()
                    pipe.send(word)

    asyncio.run(write())


async def test_pain_3__a_crash_leaves_no_message_streaming(facade: Facade, server_uri: str) -> None:
    web = await facade(check_interval=0.2)
    message = await start(web)
    watching = asyncio.create_task(collect(web, message))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=be_killed, args=(server_uri, web.database_name, str(message.id), theirs)
    )
    process.start()
    try:
        acknowledged = [await asyncio.to_thread(ours.recv) for _ in range(10)]
    finally:
        process.kill()
        process.join()
    events = await watching
    stored = await web.get_message(message.id)
    assert isinstance(events[-1], MessageFailed)
    assert (stored.status, stored.error) == (MessageStatus.FAILED, "interrupted")
    assert stored.content.startswith("".join(acknowledged))
    assert_exact(events, stored)


async def test_pain_4__order_across_replicas(facade: Facade) -> None:
    worker = await facade()
    replicas = [worker, *[await facade(worker.database_name) for _ in range(3)]]
    message = await start(worker)
    randomly = random.Random(4)

    async def attach(replica: Converse) -> list[Event]:
        await asyncio.sleep(randomly.uniform(0, 0.4))
        if randomly.random() < 0.5:
            return await collect_restlessly(replica, message, random.Random(randomly.random()))
        return await collect(replica, message)

    attaching = [asyncio.create_task(attach(replica)) for replica in replicas for _ in range(5)]
    await message.pipe(model(300), granularity="token")
    stored = await worker.get_message(message.id)
    for events in await asyncio.gather(*attaching):
        assert_exact(events, stored)


async def test_pain_5__the_database_does_not_slow_the_generation(facade: Facade) -> None:
    worker = await facade()
    message = await start(worker)
    store = worker.message_model.store()
    real, answer = store.messages, asyncio.Event()

    class Stalled:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        async def update_one(self, *arguments: Any) -> Any:
            await answer.wait()
            return await real.update_one(*arguments)

    async with message.writer() as writer:
        store.messages = Stalled()
        async for word in model(500, 0):
            await writer.write(word)  # not one of them waits for the answer
        assert writer.statistics().writes == 0
        answer.set()
    assert message.content == "".join([word async for word in model(500, 0)])


async def test_pain_6__sixteen_megabytes_are_no_limit(facade: Facade) -> None:
    worker = await facade()
    web = await facade(worker.database_name)
    message = await start(worker)
    size = 0
    watching = web.watch_message(message.id)
    async with message.writer(max_buffered=4 * 1024 * 1024) as writer:
        for _ in range(40):
            await writer.write("x" * 500_000)
    async for event in watching:
        size += len(event.chunk.content) if isinstance(event, ChunkReceived) else 0
    assert size == message.content_bytes == 20_000_000
    assert message.is_completed


async def test_pain_7__nothing_grows(facade: Facade) -> None:
    worker = await facade(retention="compact")
    conversation = await worker.start_conversation()
    store = worker.message_model.store()

    async def generate() -> None:
        message = await conversation.start_streaming_assistant()
        watching = asyncio.create_task(collect(worker, message))
        await message.pipe(model(300, 0), granularity="token")
        await watching

    def tasks() -> list[str]:
        names = [task.get_name() for task in asyncio.all_tasks()]
        return sorted(name for name in names if name.startswith("converse_mongo"))

    await generate()
    before = tasks()
    for _ in range(3):
        await asyncio.gather(*[generate() for _ in range(5)])
    gc.collect()
    assert tasks() == before
    assert worker.statistics().topics == worker.statistics().watchers == 0
    assert not store.writers
    assert not store.notices.messages
    assert len(store.queues) <= 1
    assert await store.pages.count_documents({}) == 0
    assert await store.messages.count_documents({"chunks.0": {"$exists": True}}) == 0


async def test_pain_8__a_retry_starts_no_second_generation(facade: Facade) -> None:
    workers = [first := await facade(), *[await facade(first.database_name) for _ in range(3)]]
    conversation = await first.start_conversation()
    billed = 0

    async def job(worker: Converse) -> str:
        """What a queue delivers more than once, to several workers at the same moment."""
        nonlocal billed
        own = await worker.get_conversation(conversation.id)
        message = await own.start_streaming_assistant(generation_id="request-42")
        try:
            async with message.writer() as writer:
                billed += 1
                async for word in model(20):
                    await writer.write(word)
        except (WriterExistsError, MessageNotStreamingError):
            pass  # another worker generates it, or did: show that
        return text(await collect(worker, message))

    shown = await asyncio.gather(*[job(worker) for worker in workers for _ in range(3)])
    assert billed == 1
    assert len(set(shown)) == 1
    assert len(await conversation.messages()) == 1


@pytest.mark.parametrize("seed", range(5))
async def test_pain_9__what_is_shown_is_what_is_stored(facade: Facade, seed: int) -> None:
    worker = await facade()
    web = await facade(worker.database_name)
    message = await start(worker)
    randomly = random.Random(seed)
    watching = [asyncio.create_task(collect(web, message)) for _ in range(3)]
    copies = [await web.get_message(message.id) for _ in range(4)]

    async def end(copy: Message, how: int) -> None:
        await asyncio.sleep(randomly.uniform(0, 0.1))
        try:
            if how == 0:
                await copy.fail_streaming("error")
            elif how == 1:
                await copy.cancel_streaming("stop")
            elif how == 2:
                await copy.request_stop("stop")
            else:
                await copy.complete_streaming()
        except MessageNotStreamingError:
            pass

    async def write() -> None:
        try:
            for number in range(1000):
                await message.append_chunk(f"{number} ")
        except MessageNotStreamingError:
            pass

    await asyncio.gather(write(), *[end(copy, how) for how, copy in enumerate(copies)])
    stored = await web.get_message(message.id)
    assert stored.status.is_final
    for events in await asyncio.gather(*watching):
        assert_exact(events, stored)
    listed = (await (await web.get_conversation(message.conversation_id)).messages())[0]
    assert (listed.content, listed.status) == (stored.content, stored.status)


async def test_pain_10__what_is_anothers_stays_anothers(converse: Converse) -> None:
    mine = await converse.start_conversation(owner=("user", "me"))
    theirs = await converse.start_conversation(owner=("user", "them"))
    their_message = await theirs.start_streaming_assistant(generation_id="job")
    my_message = await mine.start_streaming_assistant(generation_id="job")
    assert my_message.id != their_message.id
    assert [found.id async for found in converse.conversations(("user", "me"))] == [mine.id]
    assert [message.id for message in await mine.messages()] == [my_message.id]
    async with converse.watch_conversation(theirs.id) as events:
        cursor = (await anext(events)).cursor
    with pytest.raises(InvalidCursorError):
        converse.watch_conversation(mine.id, cursor)
    async with their_message.writer() as writer:
        await my_message.request_stop()
        await writer.write("undisturbed")
    assert their_message.is_completed
    await until(lambda: not converse.message_model.store().notices.messages)
