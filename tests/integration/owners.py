"""Shared by tests of the watchers of owners."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bson import ObjectId

from converse_mongo import (
    Converse,
    OwnerEvent,
    OwnerWatcher,
)
from converse_mongo.watching import owner_feed
from tests.integration.helpers import soon
from tests.streams import until

ADA = ("user", "ada")
EVE = ("user", "eve")


async def end(owner: tuple[str, str], converse: Converse) -> ObjectId:
    """Marks the end of what a test does: the last conversation that is started."""
    return (await converse.start_conversation("the end", owner=owner)).id


def feed_of(watcher: OwnerWatcher) -> owner_feed.OwnerFeed:
    return watcher._feed


async def take(watcher: OwnerWatcher, last: type[OwnerEvent], count: int = 1) -> list[OwnerEvent]:
    """Events up to the ``count``-th of a kind."""
    events: list[OwnerEvent] = []
    while count:
        events.append(await soon(anext(watcher)))
        count -= isinstance(events[-1], last)
    return events


@asynccontextmanager
async def watching(
    converse: Converse, owner: tuple[str, str] = ADA, **options: Any
) -> AsyncIterator[OwnerWatcher]:
    """A watcher over a change stream that is open."""
    async with converse.watch_owner(owner, **options) as watcher:
        if converse.watch_mode == "change_stream":
            await until(lambda: converse.statistics().streams_opened > 0)
        yield watcher
