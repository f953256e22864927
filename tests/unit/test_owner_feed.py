"""The feed of an owner: which counters it believes, and when it compares everything."""

import asyncio
from types import SimpleNamespace
from typing import Any

from bson import ObjectId

from converse_mongo.domain.leases import Lease
from converse_mongo.store.reads import Counters
from converse_mongo.watching.owner_feed import CHECKS_PER_FULL_CHECK, OwnerFeed, OwnerRoutes
from converse_mongo.watching.owner_reader import OwnerReader, Place

OWNER = ("user", "1")
CONVERSATION, MESSAGE = ObjectId(), ObjectId()


def routes() -> OwnerRoutes:
    reader: Any = SimpleNamespace(turns=asyncio.Semaphore())
    return OwnerRoutes(OwnerReader(reader))


def feed_of(found: OwnerRoutes) -> OwnerFeed:
    feed = OwnerFeed(OWNER, found)
    feed.ready = True
    feed.dirty.clear()
    return feed


def test_counters__say_nothing_of_messages_that_were_not_asked_for() -> None:
    feed = feed_of(routes())
    feed.open[MESSAGE] = Place(CONVERSATION, 1)
    assert not feed.find_ended({}, asked=[])
    assert not feed.find_ended({MESSAGE: Counters(2, False, Lease(), False)}, asked=[MESSAGE])
    assert list(feed.dirty) == []
    assert feed.find_ended({}, asked=[MESSAGE])
    assert list(feed.dirty) == [CONVERSATION]


def test_full_checks__of_all_watchers_of_an_owner_are_at_the_same_time() -> None:
    found = routes()
    feeds = [feed_of(found) for _ in range(20)]
    full: list[int] = []
    for _ in range(2 * CHECKS_PER_FULL_CHECK):
        found.checks += 1
        for feed in feeds:
            feed.dirty.clear()
        full.append(sum(feed.due() is None for feed in feeds))
    assert sorted(full) == [0] * (2 * CHECKS_PER_FULL_CHECK - 2) + [20, 20]
