"""What an observer finds wrong in documents that it reads one after the other. No I/O here.

No read of several documents is one of a moment. But a lease, once lost, never comes back, for its
holder is new each time, and so is the ticket of a place. So what is the same in two reads was so in
between: at the moment between them, all of these were held at once.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from converse_mongo.domain.work import places_id

__all__ = ["Shot", "held_throughout", "oddities"]

_HELD = ("queued", "running")
"""The states in which a message of a key has a place."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One read of all messages.

    Attributes:
        leases: The messages with a worker: their holders with their keys' places.
        places: The messages that hold a place: their tickets with their keys' places.
        limits: The limits of the keys.
    """

    leases: frozenset[tuple[str, str]]
    places: frozenset[tuple[str, str]]
    limits: Mapping[str, int]

    @classmethod
    def of(cls, messages: Iterable[Mapping[str, Any]]) -> Self:
        leases, places, limits = set(), set(), {}
        for message in messages:
            work = message["work"]
            if message["status"] != "streaming" or work.get("key") is None:
                continue
            of = places_id(work["queue"], work["key"])
            limits[of] = work["limit"]
            if work["state"] == "running":
                leases.add((str(message["lease"].get("holder")), of))
            if work["state"] in _HELD:
                places.add((str(work.get("ticket")), of))
        return cls(frozenset(leases), frozenset(places), limits)


def held_throughout(before: Shot, places: Sequence[Mapping[str, Any]], after: Shot) -> list[str]:
    """What is wrong between two reads; ``places`` are the documents that were read in between."""
    wrong = []
    running = Counter(of for _, of in before.leases & after.leases)
    for of, count in running.items():
        if count > after.limits[of]:
            wrong.append(f"{count} leases of {of} at once, with a limit of {after.limits[of]}")
    taken = {each["_id"]: [str(place["ticket"]) for place in each["running"]] for each in places}
    for of, tickets in taken.items():
        limit = after.limits.get(of)
        if limit is not None and len(tickets) > limit:
            wrong.append(f"{len(tickets)} places of {of} are taken, with a limit of {limit}")
    for ticket, of in before.places & after.places:
        if ticket not in taken.get(of, ()):
            wrong.append(f"a message holds the place {ticket} of {of}, which is given back")
    return wrong


def oddities(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """What no single document may say at any moment."""
    return [f"message {message['_id']}: {what}" for message in messages for what in _odd(message)]


def _odd(message: Mapping[str, Any]) -> list[str]:
    work, lease = message["work"], message.get("lease") or {}
    state, held = work.get("state"), lease.get("holder") is not None
    if message["status"] != "streaming":
        left = [name for name in ("state", "due", "pending") if name in work]
        return [f"it has ended, and still has {left}"] if left else []
    odd = []
    if state is None:
        odd.append("it streams without a state")
    if held != (state == "running"):
        odd.append(f"it is {state}, with a holder: {held}")
    if (lease.get("duration") is not None) != held:
        odd.append(f"it is {state}, with a lease of {lease.get('duration')} s")
    if message.get("stop_requested_at") is not None and not held:
        odd.append(f"it is {state} and is to stop, and nobody has it who would")
    if (work.get("due") is not None) != (
        state in ("queued", "delayed")
        or (state == "waiting" and work.get("available_at") is not None)
    ):
        odd.append(f"it is {state}, and due at {work.get('due')}")
    if state == "waiting" and not work.get("pending"):
        odd.append("it waits for nobody")
    if work.get("key") is not None and ("ticket" in work) != (state in ("blocked", *_HELD)):
        odd.append(f"it is {state}, and has the ticket {work.get('ticket')}")
    if work.get("crashes", 0) + work.get("retries", 0) >= work["max_attempts"]:
        odd.append(f"it streams after {work.get('crashes')} crashes, {work.get('retries')} retries")
    return odd
