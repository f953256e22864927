"""What tests of streams have in common: collecting events, and comparing them with the truth."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

from converse_mongo import ChunkReceived, Converse, Event, Message, MessageCreated

SOON = 20.0
"""Seconds until something that must come counts as missing."""


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that nothing announces."""
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def collect(converse: Converse, message: Message, after: int | None = None) -> list[Event]:
    """All events of a message from behind ``after`` to its end."""
    return [event async for event in converse.watch_message(message.id, after)]


async def collect_restlessly(
    converse: Converse, message: Message, randomly: random.Random
) -> list[Event]:
    """The same by a viewer who goes away and comes back: waits are cancelled, watchers dropped."""
    seen: list[Event] = []
    longest = 0.5
    while True:
        patience = randomly.randint(1, 400)
        events = converse.watch_message(message.id, last_sequence(seen))
        for _ in range(patience):
            try:
                async with asyncio.timeout(randomly.uniform(0.0005, longest)):
                    seen.append(await anext(events))
                longest = 0.5
            except TimeoutError:
                longest = min(longest * 1.2, 5.0)  # a slow machine needs longer for a read
                break
            if not isinstance(seen[-1], ChunkReceived):
                return [*seen, *[event async for event in events]]  # none follows the end


def last_sequence(events: Sequence[Event]) -> int | None:
    """What to pass as ``after`` behind ``events``."""
    chunks = [event for event in events if isinstance(event, ChunkReceived)]
    return chunks[-1].chunk.sequence if chunks else None


def sequences(events: Sequence[Event]) -> list[int]:
    """The sequences of the chunks in ``events``."""
    return [event.chunk.sequence for event in events if isinstance(event, ChunkReceived)]


def text(events: Sequence[Event]) -> str:
    """The text that ``events`` bring."""
    return "".join(event.chunk.content for event in events if isinstance(event, ChunkReceived))


def assert_exact(events: Sequence[Event], stored: Message, after: int | None = None) -> None:
    """Asserts that a watcher of a message had each chunk once, in order, and one end."""
    start = 0 if after is None else after + 1
    assert sequences(events) == list(range(start, stored.next_sequence))
    assert text(events) == "".join(chunk.content for chunk in stored.chunks[start:])
    ends = [event for event in events if not isinstance(event, ChunkReceived)]
    assert [event.type for event in ends] == [f"message.{stored.status.value}"]
    assert events[-1] is ends[0]


def assert_conversation_exact(events: Sequence[Event], messages: Sequence[Message]) -> None:
    """Asserts the same of a watcher of a conversation that saw ``messages`` from their start."""
    seen: dict[Any, list[Event]] = {}
    for event in events:
        seen.setdefault(event.message_id, []).append(event)  # type: ignore[attr-defined]
    assert list(seen) == [message.id for message in messages]
    for message in messages:
        created, *rest = seen[message.id]
        assert isinstance(created, MessageCreated)
        assert created.position == message.position
        if created.streaming:
            assert_exact(rest, message)
        else:
            assert rest == []
            assert created.content == message.content
