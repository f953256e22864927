"""Work updates: where each step of a queued message leads from, and what it changes."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo.domain.chunks import PartChunk
from converse_mongo.domain.headers import FORMATS, MessageHeader, message_key
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.work import PendingCall, Work, WorkState
from converse_mongo.store import updates, work_updates

AT = datetime(2026, 1, 1, tzinfo=UTC)
LATER = AT + timedelta(seconds=5)
HOLDER, TICKET = ObjectId(), ObjectId()
KEY = message_key(ObjectId(), ObjectId(), ObjectId())
LEASE = Lease(epoch=2, holder=HOLDER, renewed_at=AT, duration=30.0)
KNOWN = {"format": {"$in": list(FORMATS)}}
STREAMING = {**KEY, **KNOWN, "status": "streaming"}
HELD = {"lease.epoch": 2, "lease.holder": HOLDER}
GOES_ON = {"stop_requested_at": None}
MINE = {**STREAMING, **HELD, **GOES_ON}
DETACHED = {"lease.holder": None, "lease.duration": None}
QUEUED = {**DETACHED, "work.state": "queued"}
DUE = {"$currentDate": {"work.due": True}}
CALLS = [
    PendingCall(part=1, call_id="c", wanted="output"),
    PendingCall(part=4, call_id="d", wanted="approval", approval_id="a", expires_at=LATER),
]
STORED_CALLS = [each.to_stored() for each in CALLS]
NO_DUE = {"work.available_at": "", "work.due": ""}

CHANGES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "undelay": (
        work_updates.undelay(KEY, AT, TICKET),
        {**STREAMING, "work.state": "delayed", "work.available_at": AT},
        {"$set": {"work.state": "blocked", "work.ticket": TICKET}, "$unset": NO_DUE},
    ),
    "promote": (
        work_updates.promote(KEY, TICKET),
        {**STREAMING, "work.state": "blocked", "work.ticket": TICKET},
        {"$set": {"work.state": "queued"}, **DUE},
    ),
    "claim": (
        work_updates.claim(KEY, 2, HOLDER, 9.0),
        {**STREAMING, "work.state": "queued", **GOES_ON, "lease.epoch": 2},
        {
            "$set": {
                "work.state": "running",
                "lease.holder": HOLDER,
                "lease.duration": 9.0,
                "lease.epoch": 3,
                "taken_over_by": HOLDER,
            },
            "$unset": NO_DUE,
            "$currentDate": {"lease.renewed_at": True},
        },
    ),
    "hand over": (work_updates.hand_over(KEY, LEASE), MINE, {"$set": QUEUED, **DUE}),
    "hand over with a checkpoint": (
        work_updates.hand_over(KEY, LEASE, {"x": 1}),
        MINE,
        {"$set": {**QUEUED, "checkpoint": {"x": 1}}, **DUE},
    ),
    "retry": (
        work_updates.retry(KEY, LEASE, None, leaves_place=False),
        MINE,
        {"$set": QUEUED, "$inc": {"work.retries": 1}, **DUE},
    ),
    "retry later": (
        work_updates.retry(KEY, LEASE, LATER, leaves_place=False),
        MINE,
        {
            "$set": {**QUEUED, "work.available_at": LATER, "work.due": LATER},
            "$inc": {"work.retries": 1},
        },
    ),
    "retry later with a key": (
        work_updates.retry(KEY, LEASE, LATER, leaves_place=True),
        MINE,
        {
            "$set": {
                **QUEUED,
                "work.available_at": LATER,
                "work.due": LATER,
                "work.state": "delayed",
            },
            "$inc": {"work.retries": 1},
            "$unset": {"work.ticket": ""},
        },
    ),
    "suspend": (
        work_updates.suspend(KEY, LEASE, 7, CALLS, None),
        {**MINE, "next_sequence": 7, "work.pending.0": {"$exists": True}},
        {
            "$set": {**DETACHED, "work.state": "waiting", "work.pending": STORED_CALLS},
            "$unset": {"work.ticket": "", **NO_DUE},
        },
    ),
    "suspend that expires": (
        work_updates.suspend(KEY, LEASE, 7, CALLS, LATER, {"x": 1}),
        {**MINE, "next_sequence": 7, "work.pending.0": {"$exists": True}},
        {
            "$set": {
                **DETACHED,
                "checkpoint": {"x": 1},
                "work.state": "waiting",
                "work.pending": STORED_CALLS,
                "work.available_at": LATER,
                "work.due": LATER,
            },
            "$unset": {"work.ticket": ""},
        },
    ),
    "recover": (
        work_updates.recover(KEY, LEASE),
        {
            **STREAMING,
            "work.state": "running",
            **HELD,
            **GOES_ON,
            "lease.renewed_at": {"$lt": AT + timedelta(milliseconds=1)},
        },
        {"$set": QUEUED, "$inc": {"work.crashes": 1}, **DUE},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_step__leads_from_a_state(name: str) -> None:
    change, match, update = CHANGES[name]
    assert change == (match, update)


def test_claim__of_a_message_that_had_no_worker() -> None:
    match, update = work_updates.claim(KEY, 0, HOLDER, 9.0)
    assert match["lease.epoch"] == {"$in": [0, None]}
    assert update["$set"]["lease.epoch"] == 1


SET = PartChunk(7, "", AT, part=1, event="set", fields={"output": 1})


def answered(seen: Work, left: list[PendingCall]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an answer adds to the append, and the update without what every append has."""
    plain = updates.append(KEY, [SET], ObjectId(), 100, 0, has_parts=True, part_size=100)
    match, update = updates.append(KEY, [SET], ObjectId(), 100, 0, has_parts=True, part_size=100)
    work_updates.answer(match, update, seen, left, TICKET)
    assert match.items() >= plain[0].items()
    assert update["$inc"] == plain[1]["$inc"]
    added = {name: match[name] for name in match.keys() - plain[0].keys()}
    return added, {name: update[name] for name in update.keys() - {"$inc", "$push", "$max"}}


def test_told__is_a_mark_of_its_own_each_time() -> None:
    marks = []
    for at in (None, LATER):
        match, update = work_updates.told(work_updates.promote(KEY, TICKET), "q", at)
        assert (match, update["$currentDate"]) == (
            work_updates.promote(KEY, TICKET)[0],
            {"work.due": True},
        )
        marks.append(update["$set"]["queued"])
    assert marks[0]["mark"] != marks[1]["mark"]
    assert (marks[0]["queue"], marks[1]["at"]) == ("q", LATER)
    assert "at" not in marks[0]


@pytest.mark.parametrize("state", ["running", "queued", "blocked", "delayed"])
def test_answer__to_a_message_that_does_not_wait_changes_its_calls_only(state: str) -> None:
    seen = Work(queue="q", key='"k"', state=WorkState(state), pending=tuple(CALLS))
    assert answered(seen, []) == (
        {**GOES_ON, "work.state": state},
        {"$set": {"work.pending": []}},
    )


def test_answer__to_the_last_call_has_the_message_go_on() -> None:
    seen = Work(queue="q", state=WorkState.WAITING, pending=tuple(CALLS))
    _, update = answered(seen, [])
    assert update["$set"].pop("queued")["queue"] == "q"
    assert update == {
        "$set": {"work.pending": [], "work.state": "queued"},
        "$currentDate": {"work.due": True},
        "$unset": {"work.available_at": ""},
    }
    _, update = answered(seen.model_copy(update={"key": '"k"'}), [])
    assert update == {
        "$set": {"work.pending": [], "work.state": "blocked", "work.ticket": TICKET},
        "$unset": NO_DUE,
    }


def test_answer__to_another_call_leaves_the_message_waiting_for_the_rest() -> None:
    seen = Work(queue="q", state=WorkState.WAITING, pending=tuple(CALLS))
    _, update = answered(seen, CALLS[1:])
    assert update == {
        "$set": {
            "work.pending": STORED_CALLS[1:],
            "work.available_at": LATER,
            "work.due": LATER,
        }
    }
    never = [CALLS[1].model_copy(update={"expires_at": None})]
    _, update = answered(seen, never)
    assert update == {
        "$set": {"work.pending": [each.to_stored() for each in never]},
        "$unset": NO_DUE,
    }


def test_append__says_what_waits_in_the_same_update() -> None:
    update: dict[str, Any] = {"$push": {}}
    work_updates.keep_pending(update, None, [])
    assert update == {"$push": {}}
    work_updates.keep_pending(update, None, [3])
    assert update == {"$push": {}, "$pull": {"work.pending": {"part": {"$in": [3]}}}}
    update = {"$set": {"compact_at": AT}}
    work_updates.keep_pending(update, CALLS, [3])
    assert update == {"$set": {"compact_at": AT, "work.pending": STORED_CALLS}}


def test_place__is_taken_by_a_ticket_once_while_there_is_one() -> None:
    header: dict[str, Any] = {
        **KEY,
        "position": 0,
        "role": "assistant",
        "status": "streaming",
        "created_at": AT,
        "work": {"queue": "q", "key": '"k"', "limit": 3, "ticket": TICKET, "state": "blocked"},
    }
    state = MessageHeader.from_stored(header)
    assert state.work is not None
    match, update = work_updates.take_place(state, state.work)
    assert match == {
        "_id": '["q","k"]',
        "running.2": {"$exists": False},
        "running.ticket": {"$ne": TICKET},
    }
    ids = {"message_id": KEY["_id"], "conversation_id": KEY["conversation_id"]}
    place = {"ticket": TICKET, **ids, "log_id": KEY["log_id"]}
    assert update["$push"] == {"running": place}


def test_query__of_what_is_due_names_its_queue_and_a_known_format() -> None:
    assert work_updates.due(["q"], AT)["work.queue"] == "q"
    match = work_updates.due(["q", "r"], AT)
    assert match["work.queue"] == {"$in": ["q", "r"]}
    assert match["format"] == KNOWN["format"]
