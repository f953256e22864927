"""The feed of an owner: which counters it believes, and when it compares everything."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo.domain.events import MessageSuspended
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.types import MessageRole
from converse_mongo.domain.work import PendingCall, Work, WorkState
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
    assert not feed.find_changed({}, asked=[])
    assert not feed.find_changed({MESSAGE: Counters(2, False, Lease(), False)}, asked=[MESSAGE])
    assert list(feed.dirty) == []
    assert feed.find_changed({}, asked=[MESSAGE])
    assert list(feed.dirty) == [CONVERSATION]


CALLS = [PendingCall(part=part, call_id=f"c{part}", wanted="output") for part in range(2)]


def place_of(*calls: PendingCall) -> Place:
    waits = MessageSuspended(
        conversation_id=CONVERSATION,
        message_id=MESSAGE,
        role=MessageRole.ASSISTANT,
        attempt=1,
        pending=list(calls),
    )
    return Place(CONVERSATION, 1, waits)


def counters(state: WorkState, *calls: PendingCall) -> dict[ObjectId, Counters]:
    work = Work(queue="q", state=state, pending=calls)
    return {MESSAGE: Counters(2, False, Lease(), False, work)}


def test_counters__tell_who_waits_otherwise_than_was_reported() -> None:
    feed = feed_of(routes())
    for place, found, is_news in (
        (Place(CONVERSATION, 1), counters(WorkState.WAITING, *CALLS), True),
        (Place(CONVERSATION, 1), counters(WorkState.RUNNING, *CALLS), False),
        (place_of(*CALLS), counters(WorkState.WAITING, *CALLS), False),
        (place_of(*CALLS), counters(WorkState.WAITING, CALLS[1]), True),
        (place_of(*CALLS), counters(WorkState.WAITING), True),
        (place_of(), counters(WorkState.QUEUED), True),
        (place_of(*CALLS), {MESSAGE: Counters(2, False, Lease(), False)}, True),
    ):
        feed.dirty.clear()
        feed.open[MESSAGE] = place
        assert feed.find_changed(found, asked=[MESSAGE]) is is_news
        assert list(feed.dirty) == [CONVERSATION] * is_news


def test_hints__that_answers_go_on_are_for_those_that_are_known_to_wait() -> None:
    found = routes()
    feed = feed_of(found)
    feed.watchers = 1
    for place, is_news in ((Place(CONVERSATION, 1), False), (place_of(*CALLS), True)):
        feed.open[MESSAGE] = place
        found.lead(feed, [MESSAGE])
        found.receive(MESSAGE, goes_on=True)
        assert list(feed.dirty) == [CONVERSATION] * is_news
        feed.dirty.clear()
    found.receive(MESSAGE)
    assert list(feed.dirty) == [CONVERSATION]


@pytest.mark.parametrize("hinted", [[True], [False], [False, True], [True, False]])
@pytest.mark.parametrize("waits", [True, False])
async def test_hints__during_a_read_are_for_what_it_finds(
    monkeypatch: pytest.MonkeyPatch, hinted: list[bool], *, waits: bool
) -> None:
    """Nobody knew the message before."""
    found = routes()
    feed = feed_of(found)
    feed.watchers = 1
    feed.mark(CONVERSATION)

    async def read(key: ObjectId) -> None:
        for goes_on in hinted:
            found.receive(MESSAGE, goes_on=goes_on)
        feed.open[MESSAGE] = place_of(*CALLS) if waits else Place(CONVERSATION, 1)

    monkeypatch.setattr(feed, "_read", read)
    await feed.catch_up()
    assert list(feed.dirty) == [CONVERSATION] * (waits or False in hinted)


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
