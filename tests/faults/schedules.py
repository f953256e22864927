"""Schedules: what is written and watched, and what goes wrong meanwhile. Drawn from a seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

__all__ = ["Crash", "Fault", "Kind", "Schedule", "ViewerPlan", "draw"]

Kind: TypeAlias = Literal[
    "cut",  # the connections of a proxy are reset
    "refuse",  # and new ones, too, for a while
    "delay",  # a proxy takes its time
    "deaf",  # a proxy holds back requests, answers or both
    "failpoint",  # the server fails, drops or holds back commands
    "kill_server",  # SIGKILL, and a start on the same data
    "freeze_server",  # SIGSTOP, and SIGCONT
    "kill_writer",  # SIGKILL; another resumes, or nobody does
    "vanish_writer",  # the same while its last requests are on their way, which are lost
    "pause_writer",  # SIGSTOP, and SIGCONT after another has taken over, or not
    "take_over",  # another process resumes the message of a writer that lives
    "detach_writer",  # it lets go, and another resumes
    "kill_viewer",  # SIGKILL; it comes back with what it had last
    "pause_viewer",  # SIGSTOP, and SIGCONT
    "stop",  # a stop is requested
    "recover",  # somebody looks for orphans
    "save",  # a copy of the message from before its first chunk is saved
    "interject",  # another message is added to the conversation
    "kill_worker",  # SIGKILL; another one comes
    "pause_worker",  # SIGSTOP, and SIGCONT
    "close_worker",  # it hands over what it has; another one comes
    "kill_web",  # SIGKILL; it comes back, and asks again for what had no answer
    "pause_web",  # SIGSTOP, and SIGCONT
    "delete",  # a message is deleted
    "restart",  # and started anew under the same id
]

Crash: TypeAlias = tuple[Literal["trim", "end", "fill", "compact", "finish_compaction"], int]
"""A write that a writer dies just before, by SIGKILL, and which time it is about to make it."""

Writing: TypeAlias = Literal["writer", "append_chunk", "append_chunks"]

Way: TypeAlias = Literal["text", "reasoning", "call", "output", "data"]
"""As text of the answer, alone or behind data; as a thought; as the input of a tool call; or by a
sub-agent, whose call then gets its output."""
WAYS: tuple[Way, ...] = ("text", "text", "reasoning", "reasoning", "call", "output", "data")

Settling: TypeAlias = Literal["watchers", "get_message", "recover_stale", "sweeper"]

SILENCING = frozenset(
    {
        *("refuse", "delay", "deaf", "failpoint", "kill_server", "freeze_server"),
        *("kill_writer", "vanish_writer", "pause_writer", "detach_writer"),
    }
)
"""After these a writer that lives may have been silent for longer than a lease."""

ASIDES: tuple[tuple[Kind, float], ...] = (
    *(("stop", 0.12), ("recover", 0.12), ("save", 0.12), ("interject", 0.12)),
)
"""What applications do beside writing and watching, and how often."""

MOST_IN_BATCH = 12

STEADY_LEASE = 3.0
"""The shortest lease, in seconds, that a busy machine alone does not make a writer miss."""

FAILPOINTS: dict[str, dict[str, Any]] = {
    # Not applied, and applied with an error after all.
    "not-primary": {"errorCode": 10107},
    "shutting-down": {"errorCode": 91},
    "connection-closed": {"closeConnection": True},
    "slow": {"blockConnection": True},
    "slow-and-closed": {"blockConnection": True, "closeConnection": True},
    "majority-lost": {"writeConcernError": {"code": 91, "errmsg": "shutting down"}},
    "majority-slow": {"writeConcernError": {"code": 64, "errmsg": "waiting timed out"}},
    # Of change streams only.
    "history-lost": {"errorCode": 286},
    "cursor-lost": {"errorCode": 43},
    "unknown": {"errorCode": 8000},
}
_STREAM_ONLY = ("history-lost", "cursor-lost", "unknown")
_WRITES = (("update",), ("update", "insert"), ("update",), ("insert",))
_READS = (("find",), ("find", "update", "insert"))
_STREAMS = (("getMore",), ("getMore", "aggregate"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong once.

    Attributes:
        kind: What.
        at: When: the part of all tokens that has been written by then.
        seconds: How long it lasts, or until what follows it.
        target: ``"writers"``, ``"viewers"`` or ``"all"``; or the number of a writer or viewer.
        how: More of it; see what draws it.
        times: For a failpoint, how many commands it meets.
        commands: And which.
    """

    kind: Kind
    at: float
    seconds: float = 0.0
    target: str | int = "all"
    how: str = ""
    times: int = 0
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewerPlan:
    """Somebody who watches.

    Attributes:
        watches: The message, or its conversation.
        at: When it comes, as for a fault; 0 is before the first token.
        slowness: The longest that it takes over an event, in seconds.
        restless: Whether it gives up waiting now and then, and goes on.
        window: How many events its process holds.
        change_streams: Whether it follows a change stream, else it polls.
        seed: Of what it does by chance.
    """

    watches: Literal["message", "conversation"]
    at: float
    slowness: float
    restless: bool
    window: int
    change_streams: bool
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One run.

    Attributes:
        seed: What it was drawn from.
        writing: How the text is written.
        writers: How many processes write at once; more than one only without ``writer``.
        tokens: How many each of them writes, and each that resumes.
        padding: The longest that a token is made, in characters.
        pause: Seconds between two of them.
        granularity: Of a writer, as are the next four.
        interrupt: See there.
        flush_interval: See there.
        flush_every: After how many tokens it waits until they are stored; 0 for never.
        max_buffered: See there.
        page_chunks: How many chunks a message embeds in the processes that write.
        lease: Seconds; also for the message while it has no writer.
        compact: Whether chunks are merged away at the end.
        socket_timeout: Seconds after which a client gives up a silent server.
        retry_writes: Whether the driver of a writer tries by itself, too.
        crash: Where the first writer dies by itself.
        resumed: Whether another process resumes after that.
        viewers: Who watches.
        settled_by: Who ends what nobody writes to any more.
        faults: What goes wrong, by time.
    """

    seed: int
    writing: Writing
    writers: int
    tokens: int
    padding: int
    pause: float
    granularity: Literal["flush", "token"]
    interrupt: bool
    flush_interval: float
    flush_every: int
    max_buffered: int
    page_chunks: int
    lease: float
    compact: bool
    socket_timeout: float
    retry_writes: bool
    crash: Crash | None
    resumed: bool
    viewers: tuple[ViewerPlan, ...]
    settled_by: Settling
    faults: tuple[Fault, ...]

    @property
    def most_at_once(self) -> int:
        """How many tokens a writer may have handed over in the call that it makes."""
        return MOST_IN_BATCH if self.writing == "append_chunks" else 1

    @property
    def parts(self) -> bool:
        """Whether some tokens are written in parts."""
        # Each event waits for the one before.
        waits = self.max_buffered < 1024 or self.flush_every == 1 or self.page_chunks == 1
        if self.writing == "append_chunk" or (waits and self.tokens * self.writers > 90):
            return False
        return random.Random(f"{self.seed} parts").random() < 0.7

    def way_of(self, writer: int, number: int) -> Way:
        """How a writer writes a token."""
        if not self.parts:
            return "text"
        return random.Random(f"{self.seed} {writer} {number} way").choice(WAYS)

    @property
    def may_be_silenced(self) -> bool:
        """Whether a writer may seem dead, so that its message may end as interrupted."""
        return (
            self.lease < STEADY_LEASE
            or self.crash is not None
            or any(fault.kind in SILENCING for fault in self.faults)
        )

    @property
    def may_be_stopped(self) -> bool:
        """Whether somebody asks for a stop."""
        return any(fault.kind == "stop" for fault in self.faults)

    def describe(self) -> str:
        """One line that tells runs apart."""
        parts = " with parts" if self.parts else ""
        kinds: list[str] = [fault.kind for fault in self.faults]
        if self.crash is not None:
            kinds.insert(0, f"crash before {self.crash[0]}")
        what = self.writing if self.writers == 1 else f"{self.writers} x {self.writing}"
        return f"{what}{parts}, {len(self.viewers)} viewers: {', '.join(kinds)}"


def draw(seed: int) -> Schedule:
    """The schedule of a seed: always the same."""
    chance = random.Random(seed)
    writing: Writing = chance.choices(
        ("writer", "append_chunk", "append_chunks"), weights=(70, 15, 15)
    )[0]
    writers = 1 if writing == "writer" else chance.choice((1, 2, 3))
    settled_by: Settling = chance.choice(
        ("watchers", "watchers", "get_message", "recover_stale", "sweeper")
    )
    fewest = 1 if settled_by == "watchers" else 0
    viewers = tuple(_viewer(chance) for _ in range(chance.choice((1, 1, 2, 2, 3, fewest))))
    compact = chance.random() < 0.25
    crash = _crash(chance, compact) if chance.random() < 0.2 else None
    faults = [
        _fault(chance, writing == "writer", writers, len(viewers))
        for _ in range(chance.choice((1, 2, 2, 3)) - (crash is not None))
    ]
    faults += [
        Fault(kind=kind, at=chance.random()) for kind, share in ASIDES if chance.random() < share
    ]
    is_long = writers == 1 and chance.random() < 0.1
    tokens = chance.randint(600, 800) if is_long else chance.randint(30, 150) // writers
    pages = (1, 4, 16) if crash is not None and crash[0] == "trim" else (1, 4, 16, 16, 256)
    return Schedule(
        seed=seed,
        writing=writing,
        writers=writers,
        tokens=tokens,
        padding=chance.choice((0, 0, 20, 2000)),
        pause=0.0 if is_long else chance.choice((0.0, 0.004, 0.01, 0.02)),
        granularity=chance.choice(("flush", "token")),
        interrupt=chance.random() < 0.3,
        flush_interval=chance.choice((0.005, 0.04, 0.2)),
        flush_every=chance.choice((0, 0, 1, 10)),
        max_buffered=chance.choice((50, 1024, 1024 * 1024)),
        page_chunks=256 if is_long else chance.choice(pages),
        lease=chance.choice((1.0, 1.0, 2.0, STEADY_LEASE)),
        compact=compact,
        socket_timeout=chance.choice((1.2, 2.0)),
        retry_writes=chance.random() < 0.5,
        crash=crash,
        resumed=writing == "writer" and chance.random() < 0.5,
        viewers=viewers,
        settled_by=settled_by,
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
    )


def _viewer(chance: random.Random) -> ViewerPlan:
    return ViewerPlan(
        watches=chance.choice(("message", "message", "conversation")),
        at=chance.choice((0.0, 0.0, chance.random())),
        slowness=chance.choice((0.0, 0.0, 0.03)),
        restless=chance.random() < 0.3,
        window=chance.choice((8, 64, 512)),
        change_streams=chance.random() < 0.85,
        seed=chance.randrange(2**32),
    )


def _crash(chance: random.Random, compact: bool) -> Crash:
    if compact:
        return chance.choice(("end", "fill", "compact", "finish_compaction")), 1
    point: Literal["trim", "end", "fill"] = chance.choice(("trim", "trim", "end", "fill"))
    return point, chance.randint(1, 4) if point == "trim" else 1


def _fault(chance: random.Random, leased: bool, writers: int, viewers: int) -> Fault:
    """A fault; ``leased`` says whether the text is written by a writer that another may follow."""
    kinds: list[tuple[Kind, int]] = [
        *(("cut", 3), ("refuse", 2), ("delay", 1), ("deaf", 4), ("failpoint", 4)),
        *(("kill_server", 3), ("freeze_server", 1), ("kill_writer", 3), ("vanish_writer", 2)),
        ("pause_writer", 2),
    ]
    if leased:
        kinds += [("take_over", 2), ("detach_writer", 1)]
    if viewers:
        kinds += [("kill_viewer", 3), ("pause_viewer", 1)]
    names, weights = zip(*kinds, strict=True)
    kind: Kind = chance.choices(names, weights=weights)[0]
    at = chance.choice((0.0, chance.random(), chance.random(), chance.random()))
    link = chance.choice(("writers", "writers", "viewers", "all"))
    writer = chance.randrange(writers)
    followed = "followed" if leased and chance.random() < 0.6 else "left"
    match kind:
        case "cut":
            return Fault(kind=kind, at=at, target=link)
        case "refuse" | "delay":
            return Fault(kind=kind, at=at, target=link, seconds=chance.uniform(0.1, 1.5))
        case "deaf":
            hears_no = chance.choice(("requests", "answers", "answers", "both"))
            then = chance.choice(("deliver", "drop"))
            seconds = chance.choice((chance.uniform(0.05, 0.5), chance.uniform(1.0, 2.5)))
            return Fault(kind=kind, at=at, target=link, seconds=seconds, how=f"{hears_no} {then}")
        case "failpoint":
            return _failpoint(chance, at, link)
        case "kill_server":
            return Fault(kind=kind, at=at, seconds=chance.choice((0.0, chance.uniform(0, 1.5))))
        case "freeze_server":
            return Fault(kind=kind, at=at, seconds=chance.uniform(0.1, 2.5))
        case "kill_writer" | "vanish_writer" | "pause_writer":
            seconds = chance.choice((0.0, chance.uniform(0, 0.8), chance.uniform(0, 2.5)))
            return Fault(kind=kind, at=at, target=writer, seconds=seconds, how=followed)
        case "take_over" | "detach_writer":
            return Fault(kind=kind, at=at, seconds=chance.uniform(0, 0.5), how="followed")
        case "kill_viewer" | "pause_viewer":
            who = chance.randrange(viewers)
            return Fault(kind=kind, at=at, target=who, seconds=chance.uniform(0, 1.0))
        case _:
            raise AssertionError(kind)


def _failpoint(chance: random.Random, at: float, target: str) -> Fault:
    how = chance.choice(list(FAILPOINTS))
    commands: Sequence[tuple[str, ...]]
    if how in _STREAM_ONLY:
        # Of a writer this would fail reads of pages, which it may.
        target, commands = "viewers", _STREAMS
    elif how.startswith("majority"):
        commands = _WRITES
    else:
        commands = (*_WRITES, *_READS, *_STREAMS)
    return Fault(
        kind="failpoint",
        at=at,
        target=target,
        how=how,
        seconds=chance.uniform(0.05, 2.0) if how.startswith("slow") else 0.0,
        times=chance.randint(1, 5),
        commands=chance.choice(commands),
    )
