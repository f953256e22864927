"""Work updates: the filters and updates of queued messages. Pure: nothing here does I/O.

Each step is one update of one document. Its filter has the state that it leads from, so that of two
who try one succeeds, and what comes late changes nothing. All that comes from a worker has the
holder of its lease, since an epoch stays as it was where a message goes back to its queue. All but
an end as cancelled refuse a message that is to stop.

How many messages of a key run at once is decided in one document of ``message_places``, which has
an entry for each that may: its ticket. A message gets a new ticket each time it is blocked. So an
entry is dead once its message has another ticket, or none, or has ended, or is gone; and it stays
dead: nobody can take it for the place of what runs. The id of the message would not do, nor that of
its log: an insert that comes late brings a deleted message back.

The order is: blocked first, then the place, then queued. So whatever dies in between leaves a
message without a place, or a place without a message, and never two messages in one place.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from bson import ObjectId

from converse_mongo.domain.headers import FORMATS, WORK_FORMAT, MessageHeader
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.metadata import storable
from converse_mongo.domain.validation import EPOCH
from converse_mongo.domain.work import PendingCall, Work, WorkState
from converse_mongo.store.updates import (
    Document,
    held_by,
    streaming,
    unchanged_lease,
)

Change = tuple[Document, Document]

NOT_STOPPED: Document = {"stop_requested_at": None}

_DETACHED: Document = {"lease.holder": None, "lease.duration": None}
"""Nobody writes to the message, and nobody takes it for an orphan."""


def _in(key: Mapping[str, Any], state: WorkState) -> Document:
    return streaming(key) | {"work.state": state.value}


def _mine(key: Mapping[str, Any], lease: Lease) -> Document:
    return streaming(key) | held_by(lease) | NOT_STOPPED


# From the queue to a worker, and back


def undelay(key: Mapping[str, Any], available_at: datetime, ticket: ObjectId) -> Change:
    """Has a message whose delay is over wait for a place of its key."""
    return (
        _in(key, WorkState.DELAYED) | {"work.available_at": available_at},
        {
            "$set": {"work.state": WorkState.BLOCKED.value, "work.ticket": ticket},
            "$unset": {"work.available_at": "", "work.due": ""},
        },
    )


def hasten(key: Mapping[str, Any], due: datetime) -> Change:
    """Lets workers take a queued message now that they may take later."""
    return (
        _in(key, WorkState.QUEUED) | {"work.due": due},
        {"$unset": {"work.available_at": ""}, "$currentDate": {"work.due": True}},
    )


def postpone(state: MessageHeader, work: Work, due: datetime) -> Change:
    """Has workers look at a message at ``due`` that they would look at now, and no earlier."""
    assert work.state is not None  # noqa: S101 - they look at what has not ended
    return (
        _in(state.key, work.state) | {"work.due": work.due},
        {"$set": {"work.due": due}},
    )


def promote(key: Mapping[str, Any], ticket: ObjectId) -> Change:
    """Puts a message that has a place into its queue."""
    return (
        _in(key, WorkState.BLOCKED) | {"work.ticket": ticket},
        {"$set": {"work.state": WorkState.QUEUED.value}, "$currentDate": {"work.due": True}},
    )


def claim(key: Mapping[str, Any], epoch: int, holder: ObjectId, duration: float) -> Change:
    """Makes ``holder`` the writer of a queued message that had ``epoch`` writers so far."""
    return (
        _in(key, WorkState.QUEUED) | NOT_STOPPED | {"lease.epoch": epoch or {"$in": [0, None]}},
        {
            "$set": {
                "work.state": WorkState.RUNNING.value,
                "lease.holder": holder,
                "lease.duration": duration,
                "lease.epoch": epoch + 1,
                "taken_over_by": holder,
            },
            "$unset": {"work.available_at": "", "work.due": ""},
            "$currentDate": {"lease.renewed_at": True},
        },
    )


def enlist(key: Mapping[str, Any], work: Work, holder: ObjectId, duration: float) -> Change:
    """Makes ``holder`` the worker of a message without a queue that nobody has written to."""
    return (
        streaming(key)
        | NOT_STOPPED
        | {"work": None, "lease.epoch": {"$in": [0, None]}, "next_sequence": 0},
        {
            "$set": {
                "work": work.to_stored(),
                "format": WORK_FORMAT,
                "lease.holder": holder,
                "lease.duration": duration,
                "lease.epoch": 1,
                "taken_over_by": holder,
            },
            "$currentDate": {"lease.renewed_at": True},
        },
    )


def hand_over(
    key: Mapping[str, Any], lease: Lease, checkpoint: Mapping[str, Any] | None = None
) -> Change:
    """Gives a message back to its queue, with its place."""
    return (
        _mine(key, lease),
        {
            "$set": _queued(checkpoint),
            "$currentDate": {"work.due": True},
        },
    )


def retry(
    key: Mapping[str, Any],
    lease: Lease,
    available_at: datetime | None,
    checkpoint: Mapping[str, Any] | None = None,
    *,
    leaves_place: bool,
) -> Change:
    """Gives a message back to its queue for another attempt.

    Args:
        key: The message.
        lease: The lease of the worker.
        available_at: When it may be taken; ``None`` for at once.
        checkpoint: What the next worker is to know; ``None`` leaves what is stored.
        leaves_place: True if it gives its place back meanwhile: it has a key, and has to wait.
    """
    update: Document = {"$set": _queued(checkpoint), "$inc": {"work.retries": 1}}
    if available_at is None:
        update["$currentDate"] = {"work.due": True}
        return _mine(key, lease), update
    update["$set"] |= {"work.available_at": available_at, "work.due": available_at}
    if leaves_place:
        update["$set"]["work.state"] = WorkState.DELAYED.value
        update["$unset"] = {"work.ticket": ""}
    return _mine(key, lease), update


def suspend(
    key: Mapping[str, Any],
    lease: Lease,
    next_sequence: int,
    pending: Sequence[PendingCall],
    expires_at: datetime | None,
    checkpoint: Mapping[str, Any] | None = None,
) -> Change:
    """Has a message wait for people, without a worker and without a place.

    Args:
        key: The message.
        lease: The lease of the worker.
        next_sequence: The next sequence as it was read: the calls change with it only.
        pending: The calls that wait.
        expires_at: When the first of them expires.
        checkpoint: What the next worker is to know; ``None`` leaves what is stored.
    """
    gone = ["work.ticket"]
    fields = {**_detached(checkpoint), "work.state": WorkState.WAITING.value, **_pending(pending)}
    gone += _set_expiry(fields, expires_at)
    return (
        _mine(key, lease) | {"next_sequence": next_sequence, "work.pending.0": {"$exists": True}},
        {"$set": fields, "$unset": dict.fromkeys(gone, "")},
    )


def recover(key: Mapping[str, Any], lease: Lease) -> Change:
    """Gives a message whose worker died back to its queue, with its place."""
    return (
        _in(key, WorkState.RUNNING) | unchanged_lease(lease) | NOT_STOPPED,
        {
            "$set": _queued(None),
            "$inc": {"work.crashes": 1},
            "$currentDate": {"work.due": True},
        },
    )


def _queued(checkpoint: Mapping[str, Any] | None) -> Document:
    return {**_detached(checkpoint), "work.state": WorkState.QUEUED.value}


def _detached(checkpoint: Mapping[str, Any] | None) -> Document:
    kept = {} if checkpoint is None else {"checkpoint": storable(checkpoint)}
    return {**_DETACHED, **kept}


def told(change: Change, queue: str, at: datetime | None = None) -> Change:
    """Has a change tell the workers of a queue that a message waits for one.

    Args:
        change: The change.
        queue: The name of the queue.
        at: When the message can be claimed; ``None`` for at once.
    """
    tell(change[1], queue, at)
    return change


def tell(update: Document, queue: str, at: datetime | None = None) -> None:
    """Does what :func:`told` does, for an update.

    It is a field of its own, with a value of its own each time: a change stream cannot filter on an
    updated field with a dot in its path, and does not have what an update left as it was.
    """
    mark: Document = {"queue": queue, "mark": ObjectId()}
    if at is not None:
        mark["at"] = at
    update.setdefault("$set", {})["queued"] = mark


# Calls that wait for people


def keep_pending(
    update: Document, pending: Sequence[PendingCall] | None, closed: Sequence[int]
) -> None:
    """Has an append that opens or closes calls say which ones wait behind it.

    Args:
        update: The update of the append.
        pending: All calls that wait behind it, if that is known.
        closed: Else, the parts that it closes.
    """
    if pending is not None:
        update.setdefault("$set", {}).update(_pending(pending))
    elif closed:
        update["$pull"] = {"work.pending": {"part": {"$in": list(closed)}}}


def answer(
    match: Document,
    update: Document,
    seen: Work,
    left: Sequence[PendingCall],
    ticket: ObjectId,
) -> None:
    """Has an append be the answer to calls; see :func:`change_pending`."""
    match |= NOT_STOPPED
    change_pending(match, update, seen, left, ticket)


def change_pending(
    match: Document,
    update: Document,
    seen: Work,
    left: Sequence[PendingCall],
    ticket: ObjectId,
) -> None:
    """Has an append by no worker open or close calls, and the message go on if none is left.

    Args:
        match: The filter of the append. With the next sequence as it was read, all calls still
            wait that did then: what opens or closes one is an append.
        update: Its update.
        seen: The work of the message as it was read.
        left: Those that then wait.
        ticket: The ticket of the message if it is blocked.
    """
    match["work.state"] = None if seen.state is None else seen.state.value
    update.setdefault("$set", {}).update(_pending(left))
    del update["$currentDate"]  # it is no sign of life of the worker
    if seen.state is not WorkState.WAITING:
        return
    gone: list[str] = []
    if left:
        gone += _set_expiry(update["$set"], _first(left))
    elif seen.key is None:
        update["$set"]["work.state"] = WorkState.QUEUED.value
        update["$currentDate"] = {"work.due": True}
        tell(update, seen.queue)
        gone.append("work.available_at")
    else:
        update["$set"] |= {"work.state": WorkState.BLOCKED.value, "work.ticket": ticket}
        gone += ["work.available_at", "work.due"]
    if gone:
        update["$unset"] = dict.fromkeys(gone, "")


def expires(match: Document, available_at: datetime | None) -> None:
    """Has an answer match only while what was read still is when the first call expires."""
    match["work.available_at"] = available_at


def _first(pending: Iterable[PendingCall]) -> datetime | None:
    return min([each.expires_at for each in pending if each.expires_at], default=None)


def _pending(calls: Iterable[PendingCall]) -> Document:
    return {"work.pending": [each.to_stored() for each in calls]}


def _set_expiry(fields: Document, expires_at: datetime | None) -> list[str]:
    """Sets when a waiting message is to be looked at; returns the names of fields that go."""
    names = ["work.available_at", "work.due"]
    if expires_at is None:
        return names
    fields.update(dict.fromkeys(names, expires_at))
    return []


# Queries

_KNOWN: Document = {"format": {"$in": list(FORMATS)}}

DUE_ORDER = [("work.priority", -1), ("work.due", 1), ("_id", 1)]
"""The highest priority first, then what is due longest."""

BLOCKED_ORDER = [("work.queue", 1), ("work.key", 1), ("work.priority", -1), ("work.ticket", 1)]
"""By key; of a key the highest priority first, then what is blocked longest: tickets rise."""


def due(queues: Sequence[str], moment: datetime) -> Document:
    """Matches what workers of some queues have to look at, at a moment."""
    which: Any = queues[0] if len(queues) == 1 else {"$in": list(queues)}
    return {"work.queue": which, "work.due": {"$gt": EPOCH, "$lte": moment}, **_KNOWN}


_ATTEMPT: Document = {"$add": ["$work.crashes", "$work.retries", 1]}

BUT_LAST_LIVES: Document = {
    "$expr": {
        "$or": [
            {"$ne": ["$work.state", WorkState.QUEUED.value]},
            {"$lte": ["$work.crashes", 0]},
            {"$lt": [_ATTEMPT, "$work.max_attempts"]},
        ]
    }
}
"""Matches all but what can be claimed and is on its last life; see ``Work.is_last_life``."""


def blocked(queue: str | Document, key: str | Document) -> Document:
    """Matches messages that wait for a place of some keys."""
    state = WorkState.BLOCKED.value
    return {"work.state": state, "work.queue": queue, "work.key": key, **_KNOWN}


def in_queues(queues: Sequence[str] | None, states: Iterable[WorkState] = WorkState) -> Document:
    """Matches the messages of queues that have not ended; of all queues without names."""
    match: Document = {"work.state": {"$in": [each.value for each in states]}}
    if queues is not None:
        match["work.queue"] = {"$in": list(queues)}
    return match


def count_states(queues: Sequence[str] | None) -> list[Document]:
    """Counts the messages of queues by state."""
    by = {"queue": "$work.queue", "state": "$work.state"}
    return [{"$match": in_queues(queues)}, {"$group": {"_id": by, "count": {"$sum": 1}}}]


def find_oldest(queues: Sequence[str], moment: datetime) -> list[Document]:
    """Finds since when something in queues is due, at a moment."""
    match = {"work.queue": {"$in": list(queues)}, "work.due": {"$gt": EPOCH, "$lte": moment}}
    oldest = {"_id": "$work.queue", "due": {"$min": "$work.due"}}
    return [{"$match": match}, {"$group": oldest}]


def count_later(queues: Sequence[str], moment: datetime) -> list[Document]:
    """Counts the messages of queues that are queued, and due behind a moment only."""
    match: Document = {"work.queue": {"$in": list(queues)}, "work.due": {"$gt": moment}}
    match["work.state"] = WorkState.QUEUED.value
    return [{"$match": match}, {"$group": {"_id": "$work.queue", "count": {"$sum": 1}}}]


# Places

SWEEP = "sweep"
"""The id of the document in ``message_places`` that says when they were last swept."""


def take_place(state: MessageHeader, work: Work) -> Change:
    """Takes a place for a message if there is one; for an update that inserts what is missing.

    If it is a duplicate key, there is no place, or the message has one.
    """
    place = {
        "ticket": work.ticket,
        "message_id": state.message_id,
        "conversation_id": state.conversation_id,
        "log_id": state.log_id,
    }
    last = (work.limit or 1) - 1
    return (
        {
            "_id": work.places_id,
            f"running.{last}": {"$exists": False},
            "running.ticket": {"$ne": work.ticket},
        },
        {"$push": {"running": place}, "$setOnInsert": {"queue": work.queue, "key": work.key}},
    )


def alone(places_id: str, ticket: ObjectId) -> Document:
    """Matches places of which one is taken, by a ticket."""
    return {"_id": places_id, "running": {"$size": 1}, "running.0.ticket": ticket}


def give_back(places_id: str, tickets: Sequence[ObjectId]) -> Change:
    """Gives back the places of some tickets."""
    return {"_id": places_id}, {"$pull": {"running": {"ticket": {"$in": list(tickets)}}}}


def free(places_id: str) -> Document:
    """Matches places of which none is taken."""
    return {"_id": places_id, "running": {"$size": 0}}


def begin_sweep(before: datetime, latest: datetime) -> Change:
    """Has one process sweep the places; for an update that inserts what is missing.

    If it is a duplicate key, another one has done so since ``before``. A time behind ``latest`` is
    by a clock that has gone back since, such as that of an earlier primary.
    """
    return (
        {"_id": SWEEP, "swept_at": {"$not": {"$gt": before, "$lte": latest}}},
        {"$currentDate": {"swept_at": True}},
    )
