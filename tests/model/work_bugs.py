"""Planted bugs in the work on queued messages: each breaks one rule, and the model must notice.

The numbers are those of the rules that a first draft of the protocol broke.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo.domain.leases import Lease
from converse_mongo.domain.open_calls import may_change_more
from converse_mongo.domain.types import MessageStatus
from converse_mongo.domain.work import PendingCall, Work, WorkState
from converse_mongo.store import appends, queues, updates, work_updates
from converse_mongo.store.appends import Appends
from converse_mongo.store.calls import Calls
from converse_mongo.store.ends import Ends
from converse_mongo.store.leases import Leases
from converse_mongo.store.places import Places
from converse_mongo.store.queues import Queues
from converse_mongo.store.updates import End
from tests.model import work as world

__all__ = ["BUGS", "Bug"]

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """A bug.

    Attributes:
        name: What is wrong.
        plant: Makes it so.
        moves: What happens where it is looked for; empty for everything.
    """

    name: str
    plant: Plant
    moves: tuple[str, ...] = ()


BUGS: list[Bug] = []


def bug(moves: str = "") -> Callable[[Plant], Plant]:
    """Adds a bug that is named as its function is."""

    def add(plant: Plant) -> Plant:
        BUGS.append(Bug(plant.__name__, plant, tuple(moves.split())))
        return plant

    return add


def named(name: str, plant: Plant, moves: str = "") -> None:
    BUGS.append(Bug(name, plant, tuple(moves.split())))


def rewrite(owner: Any, name: str, change: Callable[[Any, Any], None]) -> Plant:
    """Has ``change`` spoil the filter and the update that a builder builds."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        build = getattr(owner, name)

        def spoiled(*arguments: Any, **options: Any) -> Any:
            built = build(*arguments, **options)
            change(*built)
            return built

        patch.setattr(owner, name, spoiled)

    return plant


def forget(name: str, *conditions: str, owner: Any = work_updates) -> Plant:
    """A builder that leaves out conditions."""

    def change(match: dict[str, Any], _update: Any) -> None:
        for condition in conditions:
            match.pop(condition, None)

    return rewrite(owner, name, change)


STOP, HOLDER = "stop_requested_at", "lease.holder"


# Places


@bug("enqueue work sweep")
def sweep_that_takes_the_place_of_a_blocked_message(patch: pytest.MonkeyPatch) -> None:
    """1. It pulls what another process is about to promote."""
    patch.setattr(
        Places,
        "_sweep",
        _sweep_by(
            lambda work, place: work.holds(place["ticket"]) and work.state != WorkState.BLOCKED
        ),
    )


def _sweep_by(lives: Callable[[Work, Mapping[str, Any]], bool]) -> Any:
    async def sweep(self: Places, taken: Mapping[str, Any]) -> None:
        states = await self._states(taken["running"])
        dead = []
        for place in taken["running"]:
            state = states.get(place["message_id"])
            if state is None or state.work is None or not lives(state.work, place):
                dead.append(place["ticket"])
        places = self._collections.places
        if dead:
            await self._collections.call(
                places.update_one, *work_updates.give_back(taken["_id"], dead), what="sweep"
            )

    return sweep


@bug("enqueue work answer")
def place_of_the_id_of_the_message(patch: pytest.MonkeyPatch) -> None:
    """2. A late pull takes the new place of a message that was blocked again."""
    answer = work_updates.answer

    def spoiled(match: Any, update: Any, seen: Work, left: Any, _ticket: Any) -> None:
        answer(match, update, seen, left, match["_id"])

    patch.setattr(work_updates, "answer", spoiled)
    undelay = work_updates.undelay
    patch.setattr(work_updates, "undelay", lambda key, at, _ticket: undelay(key, at, key["_id"]))
    patch.setattr(world, "new_ticket", lambda log_id: log_id)


@bug("enqueue work delete sweep")
def insert_again_with_the_same_ticket(patch: pytest.MonkeyPatch) -> None:
    """2. A late insert after a delete has a ticket whose place may be given back."""
    patch.setattr(world, "new_ticket", lambda log_id: log_id)


@bug("enqueue work recover")
def fenced_worker_that_gives_back_the_place(patch: pytest.MonkeyPatch) -> None:
    """3. Its successor runs on it."""
    retry = Queues.retry

    async def spoiled(self: Queues, key: Any, lease: Any, *arguments: Any) -> Any:
        stored = await self._look_at_any(key)
        try:
            return await retry(self, key, lease, *arguments)
        except Exception:
            assert stored.work is not None
            await self._places.release(stored.work)
            raise

    patch.setattr(Queues, "retry", spoiled)


@bug("enqueue work")
def enqueue_as_queued(patch: pytest.MonkeyPatch) -> None:
    """4. The place is asked for once it is queued."""
    of = Work.of

    def spoiled(*job: Any) -> Work:
        work = of(*job)
        if work.state is not WorkState.BLOCKED:
            return work
        return work.model_copy(
            update={"state": WorkState.QUEUED, "due": job[1], "ticket": ObjectId()}
        )

    patch.setattr(Work, "of", spoiled)


@bug("enqueue work")
def place_without_a_limit(patch: pytest.MonkeyPatch) -> None:
    def change(match: dict[str, Any], _update: Any) -> None:
        for name in [each for each in match if each not in ("_id", "running.ticket")]:
            del match[name]

    rewrite(work_updates, "take_place", change)(patch)


@bug("enqueue work")
def place_taken_twice(patch: pytest.MonkeyPatch) -> None:
    forget("take_place", "running.ticket")(patch)


@bug("enqueue work delete")
def sweep_that_leaves_the_dead(patch: pytest.MonkeyPatch) -> None:
    """10. A crash between an end and the release of its place."""
    patch.setattr(Places, "_sweep", _sweep_by(lambda work, place: True))


@bug("enqueue work")
def sweep_that_finds_nobody_blocked(patch: pytest.MonkeyPatch) -> None:
    """10. A crash between an insert and the question for a place."""

    async def best(self: Places, queue: Any, key: Any) -> None:
        return None

    patch.setattr(Places, "_best", best)


named("promote_with_another_ticket", forget("promote", "work.ticket"), "enqueue work answer sweep")
named("promote_what_is_not_blocked", forget("promote", "work.state"))


@bug("enqueue work")
def retry_later_that_keeps_its_place(patch: pytest.MonkeyPatch) -> None:
    rewrite(work_updates, "retry", lambda match, update: update.pop("$unset", None))(patch)


# Claims and leases

named("claim_what_is_not_queued", forget("claim", "work.state", "lease.epoch"))
named("claim_whatever_the_epoch", forget("claim", "lease.epoch"), "enqueue work")
named("enlist_what_is_queued", forget("enlist", "work"), "enqueue enlist work")
named("enlist_what_has_a_writer", forget("enlist", "lease.epoch"), "start enlist take")


@bug("begin work recover")
def born_for_ever(patch: pytest.MonkeyPatch) -> None:
    """Nobody takes it over if its process dies at once."""
    born = Lease.born

    def spoiled(holder: Any, moment: Any, _duration: Any) -> Lease:
        return born(holder, moment, 1e9)

    patch.setattr(Lease, "born", staticmethod(spoiled))


named(
    "acquire_what_is_queued",
    forget("acquire_lease", "work.state", owner=updates),
    "enqueue work take",
)
"""12. Past the queue and the limit."""


@bug("enqueue work take")
def take_over_what_is_queued(patch: pytest.MonkeyPatch) -> None:
    forget("take_over", "work.state", owner=updates)(patch)
    patch.setattr(Leases, "_refuse_overtaken", lambda self, state, holder, claimed: None)


@bug("enqueue work")
def claim_before_its_time(patch: pytest.MonkeyPatch) -> None:
    async def is_due(self: Queues, work: Work) -> bool:
        return True

    due = work_updates.due

    def early(names: Any, moment: Any) -> Any:
        return due(names, moment.replace(year=2100))

    patch.setattr(Queues, "is_due", is_due)
    patch.setattr(work_updates, "due", early)


@bug("enqueue work recover")
def fence_by_the_epoch_alone(patch: pytest.MonkeyPatch) -> None:
    """11. A message that goes back to its queue keeps its epoch."""
    for owner, name in (
        (updates, "append"),
        (updates, "end"),
        (updates, "renew_lease"),
        (work_updates, "hand_over"),
        (work_updates, "retry"),
        (work_updates, "suspend"),
    ):
        forget(name, HOLDER, owner=owner)(patch)


@bug("enqueue work recover")
def recover_whatever_the_lease(patch: pytest.MonkeyPatch) -> None:
    forget("recover", "lease.renewed_at", "lease.epoch", HOLDER)(patch)


@bug("enqueue work recover")
def recover_what_was_given_back(patch: pytest.MonkeyPatch) -> None:
    forget("recover", "work.state", "lease.renewed_at", "lease.epoch", HOLDER)(patch)


@bug("enqueue work recover")
def recover_without_an_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Work, "is_last_attempt", property(lambda self: False))


@bug("enqueue work recover")
def recover_at_once(patch: pytest.MonkeyPatch) -> None:
    async def expired(self: Leases, lease: Any) -> bool:
        return True

    patch.setattr(Leases, "_has_expired", expired)


@bug("enqueue work recover")
def recover_that_forgets_to_count(patch: pytest.MonkeyPatch) -> None:
    rewrite(work_updates, "recover", lambda match, update: update.pop("$inc"))(patch)


@bug("enqueue work")
def hand_over_that_keeps_the_lease(patch: pytest.MonkeyPatch) -> None:
    rewrite(work_updates, "hand_over", lambda match, update: update["$set"].pop("lease.duration"))(
        patch
    )


@bug("enqueue work")
def hand_over_that_is_not_due(patch: pytest.MonkeyPatch) -> None:
    rewrite(work_updates, "hand_over", lambda match, update: update.pop("$currentDate"))(patch)


# Stops


@bug("enqueue work stop recover")
def stop_in_two_writes(patch: pytest.MonkeyPatch) -> None:
    """5. A claim slips in between, or the process dies."""
    forget("request_stop", HOLDER, owner=updates)(patch)


named("hand_over_despite_a_stop", forget("hand_over", STOP), "enqueue work stop")
named("retry_despite_a_stop", forget("retry", STOP), "enqueue work stop")
named("suspend_despite_a_stop", forget("suspend", STOP), "enqueue work work stop")
named("recover_despite_a_stop", forget("recover", STOP), "enqueue work stop recover")


@bug("enqueue work stop")
def complete_despite_a_stop(patch: pytest.MonkeyPatch) -> None:
    forget("end", STOP, owner=updates)(patch)


@bug("enqueue work stop")
def stop_of_what_was_claimed_since(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(updates, "unheld", lambda *, stopped: {})


# Calls that wait for people


@bug("enqueue work answer")
def suspend_whatever_was_answered(patch: pytest.MonkeyPatch) -> None:
    """7. The person is faster than another tool."""
    forget("suspend", "next_sequence", "work.pending.0")(patch)


@bug("enqueue work answer")
def answer_that_leaves_the_message_waiting(patch: pytest.MonkeyPatch) -> None:
    """8. Another write is to have it go on."""
    answer = work_updates.answer

    def spoiled(match: Any, update: Any, seen: Work, *rest: Any) -> None:
        answer(match, update, seen.model_copy(update={"state": WorkState.RUNNING}), *rest)
        match["work.state"] = None if seen.state is None else seen.state.value

    patch.setattr(work_updates, "answer", spoiled)


@bug("enqueue work")
def reset_that_leaves_voided_calls(patch: pytest.MonkeyPatch) -> None:
    """9. A message waits for a button that nobody sees."""
    more = may_change_more

    def spoiled(pieces: Any) -> bool:
        return more([each for each in pieces if getattr(each, "event", None) != "reset"])

    patch.setattr(appends, "may_change_more", spoiled)


@bug("enqueue work")
def append_that_does_not_say_what_opens(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(appends, "may_change_more", lambda pieces: False)


@bug("enqueue work")
def append_that_does_not_say_what_closes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(appends, "closed_by", lambda chunks: [])


@bug("enqueue work answer")
def append_that_guesses_what_waits(patch: pytest.MonkeyPatch) -> None:
    read = Appends._read_pending

    async def spoiled(self: Appends, wanted: Any) -> None:
        if wanted.pending is None:
            await read(self, wanted)

    patch.setattr(Appends, "_read_pending", spoiled)


@bug("enqueue work answer")
def answer_for_the_second_time(patch: pytest.MonkeyPatch) -> None:
    def find(self: Calls, state: Any, answers: Any, expiring: Any) -> list[PendingCall]:
        seen.update({each.call_id: each for each in state.work.pending if state.work})
        return [seen[each.call_id] for each in answers]

    seen: dict[str, PendingCall] = {}
    patch.setattr(Calls, "_find", find)
    answer = work_updates.answer

    def spoiled(match: Any, *rest: Any) -> None:
        answer(match, *rest)
        match.pop("work.state")

    patch.setattr(work_updates, "answer", spoiled)


@bug("enqueue work answer")
def answer_whatever_the_state(patch: pytest.MonkeyPatch) -> None:
    answer = work_updates.answer

    def spoiled(match: Any, *rest: Any) -> None:
        answer(match, *rest)
        match.pop("work.state")

    patch.setattr(work_updates, "answer", spoiled)


@bug("enqueue work answer stop")
def answer_despite_a_stop(patch: pytest.MonkeyPatch) -> None:
    answer = work_updates.answer

    def spoiled(match: Any, *rest: Any) -> None:
        answer(match, *rest)
        match.pop(STOP)

    patch.setattr(work_updates, "answer", spoiled)


@bug("enqueue work")
def expiry_that_is_not_due(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(queues, "first_expiry", lambda pending: None)


@bug("enqueue work answer")
def answer_that_forgets_the_next_expiry(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(work_updates, "_first", lambda pending: None)


# Ends


@bug("enqueue work stop")
def end_that_leaves_something_to_do(patch: pytest.MonkeyPatch) -> None:
    rewrite(updates, "end", lambda match, update: update.pop("$unset"))(patch)


@bug("enqueue work recover")
def last_attempt_that_is_tried_again(patch: pytest.MonkeyPatch) -> None:
    settle = Ends.settle

    async def spoiled(self: Ends, state: Any, end: End, condition: Any) -> Any:
        if end.status is MessageStatus.FAILED:
            await self._collections.call(
                self._collections.messages.update_one,
                *work_updates.recover(state.key, state.lease),
                what="recover",
            )
            return state
        return await settle(self, state, end, condition)

    patch.setattr(Ends, "settle", spoiled)
