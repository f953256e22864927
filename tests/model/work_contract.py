"""The contract of queued messages, as a judge: it sees every write, and knows what it may change.

It reads the documents by itself. What waits for people it derives from the log of a message.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId

from converse_mongo.domain.metadata import aware
from converse_mongo.domain.open_calls import open_calls
from converse_mongo.domain.part_log import PartLog
from tests.model.contract import broken
from tests.model.server import CLOCK, MESSAGES, Operation, Server, documents

__all__ = ["PLACES", "PLAIN", "Step", "View", "WorkContract"]

PLACES = "message_places"
PLAIN = "plain"
"""The state of a message that has no queue."""

WRITERS = frozenset({"work", "begin", "enlist"})
STARTS = frozenset({"enqueue", "start", "begin"})

MOVES: dict[tuple[str | None, str | None], frozenset[str]] = {
    (None, "queued"): frozenset({"enqueue"}),
    (None, "blocked"): frozenset({"enqueue"}),
    (None, "delayed"): frozenset({"enqueue"}),
    (None, "running"): frozenset({"begin"}),
    (None, PLAIN): frozenset({"start"}),
    (PLAIN, "running"): frozenset({"enlist"}),
    ("delayed", "blocked"): frozenset({"work"}),
    ("queued", "running"): frozenset({"work"}),
    ("running", "queued"): WRITERS | {"recover", "take"},
    ("running", "delayed"): WRITERS,
    ("running", "waiting"): WRITERS,
    ("waiting", "queued"): frozenset({"answer", "work"}),
    ("waiting", "blocked"): frozenset({"answer", "work"}),
}
"""Who may lead a message from a state to another. Whoever comes by gives a blocked one a place."""


@dataclass(eq=False)
class Step(Operation):
    """One thing that a process does.

    Attributes:
        holder: The lease of the worker, once it has one.
        message_id: The message that it is about.
        appended: What it has appended, by its own account.
    """

    holder: ObjectId | None = None
    message_id: ObjectId | None = None
    appended: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class View:
    """What the database says of a message."""

    log_id: ObjectId
    status: str
    holder: ObjectId | None
    epoch: int
    renewed_at: datetime | None
    duration: float | None
    stopped: bool
    work: dict[str, Any]
    chunks: Sequence[dict[str, Any]]
    said: tuple[str, ...]
    end: tuple[Any, ...]

    @property
    def streams(self) -> bool:
        return self.status == "streaming"

    @property
    def state(self) -> str | None:
        if not self.work:
            return PLAIN
        return str(self.work["state"]) if "state" in self.work else None

    @property
    def key(self) -> Any:
        return self.work["queue"], self.work.get("key")

    @property
    def expired(self) -> bool:
        if self.renewed_at is None or self.duration is None:
            return False
        return CLOCK.now > self.renewed_at + timedelta(seconds=self.duration)


def look(stored: dict[str, Any]) -> View:
    lease, chunks = stored["lease"], stored["chunks"]
    if [chunk["sequence"] for chunk in chunks] != list(range(stored["next_sequence"])):
        broken("Sequences are 0, 1, 2, … without gap or repeat", stored)
    renewed_at = lease.get("renewed_at")
    return View(
        log_id=stored["log_id"],
        status=stored["status"],
        holder=lease.get("holder"),
        epoch=lease.get("epoch") or 0,
        renewed_at=None if renewed_at is None else aware(renewed_at),
        duration=lease.get("duration"),
        stopped=stored.get("stop_requested_at") is not None,
        work={name: value for name, value in stored.get("work", {}).items() if value is not None},
        chunks=tuple(chunks),
        said=tuple(
            chunk["content"] or f"{chunk['event']} {chunk.get('part')} {chunk.get('fields')}"
            for chunk in chunks
        ),
        end=tuple(stored.get(name) for name in ("status", "end_id", "error", "completed_at")),
    )


def has_attempts_left(work: dict[str, Any]) -> bool:
    if not work:
        return False  # a message that has no queue
    return bool(work["crashes"] + work["retries"] + 1 < work["max_attempts"])


class WorkContract:
    """Judges what happens to queued messages."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.now: dict[ObjectId, View] = {}
        self.acknowledged: dict[ObjectId, set[str]] = defaultdict(set)
        self.stops: set[ObjectId] = set()
        """The logs of which a stop was asked for with success."""
        self.moves: set[tuple[str | None, str | None, str]] = set()
        """What has happened in all runs."""
        self._waits: dict[tuple[str, ...], list[tuple[int, str]]] = {}

    def views(self) -> dict[ObjectId, View]:
        return {each["_id"]: look(each) for each in documents(self.server.primary, MESSAGES)}

    def places(self) -> dict[str, list[dict[str, Any]]]:
        found = documents(self.server.primary, PLACES)
        return {each["_id"]: each["running"] for each in found if "running" in each}

    def waits(self, view: View) -> list[tuple[int, str]]:
        """The calls that wait, by the log."""
        known = view.said
        if known not in self._waits:
            log = PartLog.of(view.chunks)
            self._waits[known] = [(each.part, each.wanted) for each in open_calls(log)]
        return self._waits[known]

    # Writes

    def written(self, operation: Operation) -> None:
        """Judges a write that the server has just performed."""
        assert isinstance(operation, Step)
        before, after = self.now, self.views()
        self.now = after
        for message_id in before.keys() | after.keys():
            old, new = before.get(message_id), after.get(message_id)
            if old is not None and new is not None and old.log_id == new.log_id:
                self._judge_change(operation, old, new)
            elif new is None and old is not None:
                if operation.kind != "delete":
                    broken("Only who deletes a message deletes it", operation)
                # An insert that comes late may bring it back, as it was at first.
                self.acknowledged.pop(old.log_id, None)
                self.stops.discard(old.log_id)
            elif new is not None:
                if operation.kind not in STARTS or old is not None:
                    broken("A message is started where there is none", operation)
                self._judge_move(operation, None, new)
        for view in after.values():
            self._judge_state(operation, view)
        self._judge_places(operation, after)

    def _judge_change(self, operation: Step, old: View, new: View) -> None:
        if new.said[: len(old.said)] != old.said:
            broken("What is stored stays as it is", operation, old.said, new.said)
        self._judge_log(operation, old, new)
        if not old.streams:
            if (old.end, old.said) != (new.end, new.said):
                broken("A message ends once", operation, old, new)
            return
        if not new.streams:
            self._judge_end(operation, old, new)
            return
        if old.stopped and not new.stopped:
            broken("A stop stays", operation)
        if new.stopped and not old.stopped and old.holder is None:
            broken("A message without a worker is not told to stop", operation, old)
        if (old.state, old.work.get("ticket")) != (new.state, new.work.get("ticket")):
            self._judge_move(operation, old, new)
        elif operation.kind == "take":
            self._judge_take_over(operation, old, new)
        elif old.holder != new.holder or old.epoch != new.epoch:
            broken("A lease changes with the state", operation, old, new)
        due = old.work.get("due"), new.work.get("due")
        if due[0] != due[1] and old.state == new.state != "waiting":
            broken("What is due changes with the state", operation, due)
        if operation.kind == "take":
            return
        sign = old.renewed_at != new.renewed_at and operation.holder != old.holder
        if sign and old.holder is not None and old.holder == new.holder:
            broken("Only a worker gives signs of life", operation)

    def _judge_take_over(self, operation: Step, old: View, new: View) -> None:
        if old.holder == new.holder:
            return
        takes = old.state in ("running", PLAIN)
        if not takes or (new.holder is not None and new.epoch <= old.epoch):
            broken("Only a worker takes what is queued", operation, old, new)

    def _judge_log(self, operation: Step, old: View, new: View) -> None:
        added = new.chunks[len(old.chunks) :]
        if not added:
            return
        if not old.streams:
            broken("Nothing is added after the end", operation)
        if operation.kind == "answer" or operation.holder is None:
            waiting = self.waits(old)
            for chunk in added:
                wanted = "approval" if "approval" in chunk["fields"] else "output"
                if (chunk.get("part"), wanted) not in waiting:
                    broken("Only a call that waits is answered", operation, chunk, waiting)
        elif operation.holder != old.holder:
            broken("A worker that was replaced stores nothing", operation, old)
        if old.stopped:
            broken("Nothing is added once a stop is requested", operation)

    def _judge_move(self, operation: Step, old: View | None, new: View) -> None:
        move = None if old is None else old.state, new.state
        kind = operation.kind
        self.moves.add((*move, kind))
        if move != ("blocked", "queued") and kind not in MOVES.get(move, ()):
            broken("A message goes from one state to the next", operation, move)
        if old is None:
            return
        if old.stopped:
            broken("A stop wins", operation, move)
        if old.state == PLAIN:
            if old.holder is not None or old.epoch or not new.epoch or old.chunks:
                broken("Only what nobody has written to gets a queue", operation, old)
            return
        ticket, had = new.work.get("ticket"), old.work.get("ticket")
        if new.state == "blocked" and (ticket is None or ticket == had):
            broken("A message has a new ticket each time it is blocked", operation)
        if new.state in ("queued", "running") and old.state != "waiting" and ticket != had:
            broken("A message keeps its ticket", operation, move)
        counts = [
            new.work[name] - old.work[name] for name in ("crashes", "retries", "max_attempts")
        ]
        if move == ("queued", "running"):
            if old.work["due"] and aware(old.work["due"]) > CLOCK.now:
                broken("A message is claimed once its time has come", operation)
            if old.holder is not None or new.epoch <= old.epoch or counts != [0, 0, 0]:
                broken("A claim is a new lease", operation, old, new)
            return
        if new.epoch != old.epoch:
            broken("Only a claim is a new lease", operation, move)
        if kind == "recover" and old.state == "running":
            if not old.expired or counts != [1, 0, 0]:
                broken("Only a worker that seems dead is replaced", operation, old, counts)
        elif old.state == "running":
            if operation.holder != old.holder and kind != "take":
                broken("Only its worker gives a message away", operation, old, new)
            if counts not in ([0, 0, 0], [0, 1, 0]) or (new.state == "waiting" and counts[1]):
                broken("An attempt is counted once", operation, counts)
        elif counts != [0, 0, 0]:
            broken("An attempt is counted once", operation, counts)
        if old.state == "waiting" and (self.waits(new) or len(new.chunks) == len(old.chunks)):
            broken("A message that waits goes on once all is answered", operation)

    def _judge_end(self, operation: Step, old: View, new: View) -> None:
        if set(new.work) & {"state", "due"}:
            broken("An end leaves nothing to be done", operation, new.work)
        if old.stopped and new.status != "cancelled":
            broken("A stop wins", operation, new.status)
        if operation.kind == "recover":
            if not old.expired:
                broken("Only a worker that seems dead is replaced", operation, old)
            if new.status == "failed" and has_attempts_left(old.work):
                broken("A message fails once it has no attempt left", operation, old.work)
        elif operation.kind == "stop":
            orphan = old.stopped and old.expired
            if (old.holder is not None and not orphan) or new.status != "cancelled":
                broken("A stop ends what has no worker", operation, old)
        elif operation.kind not in WRITERS or operation.holder != old.holder:
            broken("Only its worker ends a message", operation, old)

    def _judge_state(self, operation: Step, view: View) -> None:
        if not view.streams:
            return
        if view.state == PLAIN:
            return
        work, keyed = view.work, "key" in view.work
        running = view.state == "running"
        if running != (view.holder is not None) or running != (view.duration is not None):
            broken("A message has a lease while it runs", operation, view)
        has_ticket = keyed and view.state in ("blocked", "queued", "running")
        if has_ticket != ("ticket" in work):
            broken("A message has a ticket while it has or wants a place", operation, view)
        expires = view.state == "waiting" and any(
            each.get("expires_at") for each in work.get("pending", ())
        )
        if ("due" in work) != (view.state in ("queued", "delayed") or expires):
            broken("What somebody has to look at is due", operation, view)
        if work["crashes"] + work["retries"] + 1 > work["max_attempts"]:
            broken("A message has as many attempts as it may", operation, work)
        pending = [(each["part"], each["wanted"]) for each in work.get("pending", ())]
        if pending != self.waits(view):
            broken("What waits is what the log says", operation, pending, self.waits(view))
        if view.state == "waiting" and not pending:
            broken("A message waits for something", operation)

    def _judge_places(self, operation: Step, views: dict[ObjectId, View]) -> None:
        listed = [each["ticket"] for running in self.places().values() for each in running]
        taken = set(listed)
        if len(taken) < len(listed):
            broken("A message has one place", operation, listed)
        leases: dict[Any, list[View]] = defaultdict(list)
        for view in views.values():
            if not view.streams or "key" not in view.work:
                continue
            if view.holder is not None:
                leases[view.key].append(view)
            if view.state in ("queued", "running") and view.work["ticket"] not in taken:
                broken("What may run has a place", operation, view)
        for running in leases.values():
            if len(running) > running[0].work["limit"]:
                broken("No more of a key run at once than may", operation, running)

    # Outcomes

    def appended(self, step: Step, log_id: ObjectId, *said: str) -> None:
        """Takes note of an append that returned."""
        self.acknowledged[log_id].update(said)

    def check_acknowledged(self) -> None:
        """Checks that what was promised to be stored is stored."""
        for view in self.now.values():
            missing = self.acknowledged[view.log_id] - set(view.said)
            if missing:
                broken("Acknowledged is stored", missing, view.said)

    def check_swept(self) -> None:
        """Checks what is true right after a sweep in which nothing went wrong."""
        living = {view.work.get("ticket") for view in self.now.values() if view.streams}
        places = self.places()
        for of, running in places.items():
            if not running:
                broken("Of a key that nobody uses nothing is left", of)
            if any(each["ticket"] not in living for each in running):
                broken("No place is held by the dead after a sweep", of, running)
        for view in self.now.values():
            if view.state == "blocked":
                taken = [
                    each
                    for running in places.values()
                    for each in running
                    if any(
                        other.work.get("ticket") == each["ticket"] and other.key == view.key
                        for other in self.now.values()
                    )
                ]
                if len(taken) < view.work["limit"]:
                    broken("Nothing is blocked while there is a place", view, places)
