"""What is known of a run of workers: what all processes reported, and what is stored."""

from dataclasses import dataclass, field
from typing import Any

from tests.faults.work_schedules import MessagePlan

__all__ = [
    "AnswerRecord",
    "AttemptRecord",
    "FollowerRecord",
    "LifeRecord",
    "StopRecord",
    "WorkEvidence",
    "WorkViewerRecord",
]


@dataclass(kw_only=True)
class AttemptRecord:
    """What an attempt reported.

    Attributes:
        epoch: The number of the claim.
        attempt: The number of the attempt, as the worker counts.
        begins: When it had its lease for certain, by the clock that all processes share.
        shown: How many chunks there were as it began, and the text that it was shown.
        writing: The number of the token that it was about to write last; -1 for none.
        stored: How many of its tokens it was told are stored.
        held_until: A moment until which it had its lease for certain.
        resets: How often it was about to void what is stored, and was told that it is void.
        asks: The calls that it was told are stored.
        how: How it ended, if it lived to say so.
        phases: The phase that it was to begin with, and that it left to the next one.
    """

    epoch: int
    attempt: int
    begins: float
    shown: tuple[int, str]
    writing: int = -1
    stored: int = 0
    held_until: float | None = None
    resets: tuple[int, int] = (0, 0)
    asks: list[str] = field(default_factory=list)
    how: str | None = None
    phases: tuple[int, int] = (0, 0)

    def take(self, report: dict[str, Any]) -> None:
        match report["kind"]:
            case "writes":
                self.writing = report["number"]
            case "stored":
                self.stored, self.held_until = report["count"], report["at"]
            case "resets":
                self.resets = self.resets[0] + 1, self.resets[1]
            case "has_reset":
                self.resets = self.resets[0], self.resets[1] + 1
            case "asks":
                self.asks.append(report["call"])
            case "leaves":
                self.how = report["how"]
                self.phases = self.phases[0], report["phase"]


@dataclass(frozen=True, kw_only=True)
class StopRecord:
    """What somebody was told who stopped a message.

    Attributes:
        status: Its state.
        epoch: The number of claims, read behind that.
        count: The number of its chunks, read behind that.
    """

    status: str
    epoch: int
    count: int


@dataclass(frozen=True, kw_only=True)
class AnswerRecord:
    """An answer to a call.

    Attributes:
        call: The call.
        value: What was said: of an approval the reason, whose parity says whether.
        result: ``"stored"``, or the name of the error.
    """

    call: str
    value: int
    result: str


@dataclass(kw_only=True)
class WorkViewerRecord:
    """What a viewer was shown, whatever became of its processes.

    Attributes:
        name: Its name.
        events: Its events, as it reported them.
        gone: Whether it was told that the message is gone.
        has_begun: Whether it was there at all.
    """

    name: str
    events: list[dict[str, Any]] = field(default_factory=list)
    gone: bool = False
    has_begun: bool = False

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == "chunk.received"]

    @property
    def after(self) -> int | None:
        """What to go on from."""
        chunks = self.chunks
        return chunks[-1]["sequence"] if chunks else None

    @property
    def has_ended(self) -> bool:
        return bool(self.events) and "chunk_count" in self.events[-1]


@dataclass(kw_only=True)
class FollowerRecord:
    """What a viewer of a conversation was shown, whatever became of its processes.

    Attributes:
        number: That of the conversation.
        cursor: What to go on from.
        viewers: What it saw of each message and its life.
        questions: The messages and lives whose questions it saw.
        odd: What cannot be.
    """

    number: int
    cursor: str | None = None
    viewers: dict[tuple[int, int], WorkViewerRecord] = field(default_factory=dict)
    questions: list[tuple[int, int]] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    _now: dict[str, WorkViewerRecord] = field(default_factory=dict)

    def take(self, event: dict[str, Any]) -> None:
        """Notes an event; of messages with the same id, it is of the one that was created last."""
        self.cursor = event["cursor"] or self.cursor
        if event["type"] != "message.created":
            if (viewer := self._now.get(event["message_id"])) is None:
                self.odd.append(f"saw {event} before its message was created")
            else:
                viewer.events.append(event)
            return
        about = event["metadata"]
        if "question" in about:
            self.questions.append((about["question"], about["life"]))
            return
        key = about["m"], about["life"]
        if key in self.viewers:
            self.odd.append(f"saw message {key[0]}.{key[1]} created twice")
        self._now[event["message_id"]] = self.viewers[key] = WorkViewerRecord(name=str(key))


@dataclass(kw_only=True)
class LifeRecord:
    """A message, up to its end or its deletion; started anew it is another one.

    Attributes:
        plan: What was to happen.
        life: How often it was deleted before.
        message_id: Its id.
        document: What is stored in the end; ``None`` if it is gone.
        chunks: Its chunks.
        content: Its text, as a reader gets it.
        delete_begun: Whether somebody wanted to delete it.
        deleted: Whether they were told that it is.
        attempts: By the epoch.
        viewer: Who watched.
        stops: What those were told who stopped it.
        stop_begun: Whether somebody wanted to.
        answers: The answers to its calls.
    """

    plan: MessagePlan
    life: int
    message_id: str
    document: dict[str, Any] | None = None
    chunks: list[dict[str, Any]] = field(default_factory=list)
    content: str = ""
    delete_begun: bool = False
    deleted: bool = False
    attempts: dict[int, AttemptRecord] = field(default_factory=dict)
    viewer: WorkViewerRecord
    stops: list[StopRecord] = field(default_factory=list)
    stop_begun: bool = False
    answers: list[AnswerRecord] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"message {self.plan.number}.{self.life}"

    @property
    def waits_rightly(self) -> bool:
        """Whether it may wait for people for ever, as it is stored."""
        work = (self.document or {}).get("work", {})
        pending = work.get("pending") or []
        return work.get("state") == "waiting" and any(
            self.plan.phase_of(call["call_id"]).may_wait for call in pending
        )


@dataclass(frozen=True, kw_only=True)
class WorkEvidence:
    """All that is known in the end.

    Attributes:
        lives: The messages.
        places: The documents of the places, behind a last sweep.
        questions: The messages and lives whose questions are stored.
        followers: The viewers of the conversations, by number.
        complaints: What processes noticed by themselves.
        strangers: The ids of messages that nobody has queued.
    """

    lives: list[LifeRecord]
    places: list[dict[str, Any]]
    questions: list[tuple[int, int]] = field(default_factory=list)
    followers: list[FollowerRecord] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
