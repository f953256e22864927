"""Failovers to a primary whose majority snapshot is behind: watchers stay exact meanwhile.

``python -m tests.faults --failovers 200`` runs many. There is one server, and ``tests.majority``
plays what the majority of a replica set has of it.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest

from converse_mongo import (
    ChunkReceived,
    Conversation,
    Converse,
    Event,
    FinalEvent,
    Message,
    MessageUpdated,
)
from converse_mongo.driver.clients import close_client, open_client
from tests.majority import Majority, behind
from tests.streams import assert_conversation_exact, assert_exact, last_sequence

__all__ = ["run_failovers"]

DEADLINE_SECONDS = 60.0


async def run_failovers(seed: int, uri: str) -> int:
    """Runs the schedule of a seed; returns how many events the watchers had.

    Raises:
        AssertionError: A watcher was not exact.
    """
    drawn = random.Random(seed)
    name = f"failover_{seed}_{uuid4().hex[:8]}"
    with pytest.MonkeyPatch.context() as patch:
        lags = drawn.choice([0.0, 0.05]), drawn.uniform(0.2, 0.6)
        with behind(patch, uri, lags[0], sum(lags)) as majorities:
            try:
                async with asyncio.timeout(DEADLINE_SECONDS):
                    return await _run(drawn, uri, name, lambda: majorities[name])
            finally:
                client = open_client(uri, {})
                await client.drop_database(name)
                await close_client(client)


async def _run(drawn: random.Random, uri: str, name: str, majority: Callable[[], Majority]) -> int:
    streams = drawn.random() < 0.7
    options: dict[str, Any] = {
        "change_streams": streams,
        "poll_interval": 0.05,
        "check_interval": 0.3,
    }
    async with AsyncExitStack() as stack:
        writer, *viewers = [
            await stack.enter_async_context(Converse(uri, database=name, **options))
            for _ in range(3)
        ]
        conversation = await writer.start_conversation()
        answers = drawn.randint(2, 4)
        tasks = [asyncio.create_task(_collect(viewer, conversation, answers)) for viewer in viewers]
        tasks += [
            asyncio.create_task(
                _collect_restlessly(viewers, conversation, answers, random.Random(drawn.random()))
            )
            for _ in range(2)
        ]
        failing = asyncio.create_task(_fail_over(majority(), random.Random(drawn.random())))
        messages: list[Message] = []
        of_messages: list[tuple[Message, asyncio.Task[list[Event]]]] = []
        for number in range(answers):
            if drawn.random() < 0.5:
                messages.append(await conversation.create_user_message(f"question {number}"))
            message = await conversation.start_streaming_assistant()
            messages.append(message)
            viewer = drawn.choice(viewers)
            watching = asyncio.create_task(_watch_restlessly(viewer, message, drawn.random()))
            of_messages.append((message, watching))
            tasks.append(watching)
            for chunk in range(drawn.randint(3, 25)):
                await message.append_chunk(f"{number}.{chunk} ")
                await asyncio.sleep(drawn.choice([0, 0, 0.01, 0.05]))
            if drawn.random() < 0.3:
                await message.fail_streaming("lost")
            else:
                await message.complete_streaming()
        try:
            seen = await asyncio.gather(*tasks)
        finally:
            failing.cancel()
            await asyncio.gather(failing, *tasks, return_exceptions=True)
        stored = {message.id: await writer.get_message(message.id) for message in messages}
        for events in seen[: len(tasks) - len(of_messages)]:
            assert_conversation_exact(events, [stored[message.id] for message in messages])
        for message, watching in of_messages:
            assert_exact(watching.result(), stored[message.id])
        return sum(map(len, seen))


async def _fail_over(majority: Majority, drawn: random.Random) -> None:
    """Has majority reads go back in time, and come forward again, as long as it is let."""
    while True:
        await asyncio.sleep(drawn.uniform(0.3, 1.5))
        majority.failing_over = True
        await asyncio.sleep(drawn.uniform(0.1, 1.0))
        majority.failing_over = False


async def _collect(converse: Converse, conversation: Conversation, ends: int) -> list[Event]:
    seen: list[Event] = []
    async for event in converse.watch_conversation(conversation.id):
        if not isinstance(event, MessageUpdated):
            seen.append(event)
        ends -= isinstance(event, FinalEvent)
        if not ends:
            break
    return seen


async def _collect_restlessly(
    viewers: list[Converse], conversation: Conversation, ends: int, drawn: random.Random
) -> list[Event]:
    """The same by somebody who keeps coming back, with a cursor, to any process."""
    seen: list[Event] = []
    while ends:
        after = seen[-1].cursor if seen else None
        events = drawn.choice(viewers).watch_conversation(conversation.id, after)
        async for event in _some(events, drawn):
            seen.append(event)
            ends -= isinstance(event, FinalEvent)
    return seen


async def _watch_restlessly(viewer: Converse, message: Message, seed: float) -> list[Event]:
    drawn, seen = random.Random(seed), list[Event]()
    while not seen or isinstance(seen[-1], ChunkReceived):
        events = viewer.watch_message(message.id, last_sequence(seen))
        seen += [event async for event in _some(events, drawn)]
    return seen


async def _some(events: AsyncIterator[Event], drawn: random.Random) -> AsyncIterator[Event]:
    """Events until the viewer has had enough, or waited for long."""
    for _ in range(drawn.randint(1, 20)):
        try:
            async with asyncio.timeout(drawn.uniform(0.1, 2.0)):
                yield await anext(events)
        except (TimeoutError, StopAsyncIteration):
            return
