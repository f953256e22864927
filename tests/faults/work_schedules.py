"""Schedules of workers: what is queued, who asks for what, and what goes wrong meanwhile."""

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from converse_mongo.domain.work import MAX_ATTEMPTS
from tests.faults.reports import RETRY_SECONDS
from tests.faults.schedules import FAILPOINTS, Fault, Kind

__all__ = [
    "WEBS",
    "WEB_QUEUE",
    "WORKERS",
    "MessagePlan",
    "PhasePlan",
    "WorkCrash",
    "WorkSchedule",
    "draw_work",
]

WORKERS, WEBS, MESSAGES, CONVERSATIONS = 3, 2, 20, 3
WEB_QUEUE = "web"
"""The queue of what the web processes generate by themselves."""

WorkCrash: TypeAlias = tuple[str, int]
"""A write of a message in its queue that a process dies just before, by SIGKILL, and which time."""

WORKER_CRASHES = (
    *("claim", "hand_over", "retry", "suspend", "recover", "promote", "take_place"),
    *("give_back", "undelay", "begin_sweep", "answer"),
)
WEB_CRASHES = ("take_place", "promote", "give_back", "answer", "recover")

Answered: TypeAlias = Literal["early", "late", "never"]

Ambush: TypeAlias = tuple[Literal["stop", "delete", "restart"], Literal["begins", "asks", "turns"]]

Style: TypeAlias = Literal["go_on", "reset", "start_over"]
"""Whether another attempt goes on behind what is stored, or voids it, or the library does."""

Question: TypeAlias = Literal["", "stored", "aborted"]
"""The question that is stored in one transaction with an answer; before it one may be aborted."""

_STREAM_ONLY = ("history-lost", "cursor-lost", "unknown")
_COMMANDS = (("update",), ("update",), ("find",), ("update", "find"), ("getMore",), ("aggregate",))


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePlan:
    """A part of an answer, up to where it ends, or asks people.

    Attributes:
        tokens: How many are written.
        asks: What is asked for behind them; empty for nothing.
        answered: When people answer: as soon as they are asked, once the message waits, or never.
        twice: Whether two answer at once.
        expires: After how many seconds the call is denied, if ever.
        lingers: Seconds between the call and the suspend.
    """

    tokens: int
    asks: Literal["", "approval", "output"] = ""
    answered: Answered = "late"
    twice: bool = False
    expires: float | None = None
    lingers: float = 0.0

    @property
    def may_wait(self) -> bool:
        """Whether its message may wait for ever."""
        return bool(self.asks) and self.answered == "never" and self.expires is None


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagePlan:
    """A message that is queued.

    Attributes:
        number: Its number.
        at: When it is queued: the part of all tokens that has been written by then.
        web: Who queues and watches it.
        conversation: The number of its conversation.
        queue: The name of its queue.
        limit: That of its key.
        key: Its key, if its queue has a limit.
        priority: See ``Conversation.start_streaming_message``, as for the next two.
        delay: See there.
        max_attempts: See there.
        style: What another attempt does.
        question: What it is queued with.
        phases: What is written.
        retries: How many attempts ask for another one.
        retry_after: Seconds until then.
        fails: Whether its attempts raise an error in the end.
        hangs: Whether its first attempt stands still, where workers end what is silent.
        twice: Whether both web processes queue it, and stop it, at once.
        ambush: What is done to it, right as an attempt begins, asks people, or is about to leave.
        heeds: Whether it hands over as soon as its worker is closed.
        flush_every: After how many tokens it waits until they are stored.
        pause: Seconds between two tokens.
        padding: The longest that a token is made, in characters.
        slowness: The longest that its viewer takes over an event, in seconds.
        restless: Whether its viewer leaves and comes back now and then.
        seed: Of what its viewer does by chance.
    """

    number: int
    at: float
    web: int
    conversation: int
    queue: str
    limit: int | None
    key: str | None
    priority: int
    delay: float | None
    max_attempts: int
    style: Style
    question: Question
    phases: tuple[PhasePlan, ...]
    retries: int
    retry_after: float
    fails: bool
    hangs: bool
    twice: bool
    ambush: Ambush | None
    heeds: bool
    flush_every: int
    pause: float
    padding: int
    slowness: float
    restless: bool
    seed: int

    @property
    def is_of_web(self) -> bool:
        """Whether the web processes generate it by themselves, with ``Generations``."""
        return self.queue == WEB_QUEUE

    @property
    def tokens(self) -> int:
        """How many tokens the whole answer has."""
        return sum(phase.tokens for phase in self.phases)

    def phase_of(self, call_id: str) -> PhasePlan:
        """The phase that a call is of."""
        return self.phases[int(call_id.rpartition(".")[2])]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkSchedule:
    """One run.

    Attributes:
        seed: What it was drawn from.
        lease: Seconds.
        messages: What is queued.
        start_over: Whether the library voids what is stored before another attempt, of workers and
            of web processes.
        concurrency: How many messages a worker takes at a time.
        grace: Seconds that a worker that is closed gives its messages.
        silence: Seconds without progress after which a worker ends an attempt, if ever.
        page_chunks: How many chunks a message embeds in the processes that write.
        patience: Seconds for which workers try a call again.
        socket_timeout: Seconds after which a client gives up a silent server.
        retry_writes: Whether the drivers try by themselves, too.
        streams: Which workers and webs follow a change stream; the others poll.
        crashes: Where the first lives of workers and webs end by themselves.
        faults: What goes wrong, by time.
    """

    seed: int
    lease: float
    messages: tuple[MessagePlan, ...]
    start_over: tuple[bool, bool]
    concurrency: int
    grace: float
    silence: float | None
    page_chunks: int
    patience: float
    socket_timeout: float
    retry_writes: bool
    streams: tuple[bool, ...]
    crashes: tuple[WorkCrash | None, ...]
    faults: tuple[Fault, ...]

    @property
    def tokens(self) -> int:
        """How many tokens are written if all goes well."""
        return sum(message.tokens for message in self.messages)

    def describe(self) -> str:
        """One line that tells runs apart."""
        kinds: list[str] = [fault.kind for fault in self.faults]
        kinds += [f"dies before {crash[0]} {crash[1]}" for crash in self.crashes if crash]
        counts = Counter(kinds)
        said = [f"{kind} x {count}" if count > 1 else kind for kind, count in counts.items()]
        return f"lease {self.lease:.1f}, {len(self.messages)} messages: {', '.join(said)}"


def draw_work(seed: int) -> WorkSchedule:
    """The schedule of a seed: always the same."""
    chance = random.Random(f"work {seed}")
    limits = {"even": chance.choice((None, None, 2)), "odd": chance.choice((1, 2))}
    queues = chance.choice((("odd",), ("even", "odd"), ("even", "odd")))
    lease = chance.choice((1.5, 2.0, 3.0))
    apart = random.Random(f"start over {seed}")
    start_over = apart.random() < 0.15, apart.random() < 0.5
    plans = [
        _message(chance, seed, number, (name := chance.choice(queues)), limits[name])
        for number in range(MESSAGES)
    ]
    messages = tuple(
        _from_the_start(each) if start_over[each.is_of_web] else each for each in plans
    )
    faults = [_harm(chance, lease) for _ in range(chance.randint(3, 8))]
    faults += [_aside(chance) for _ in range(chance.randint(2, 7))]
    crashes = [
        (chance.choice(names), chance.randint(1, 4)) if chance.random() < share else None
        for names, share in ((WORKER_CRASHES, 0.4),) * WORKERS + ((WEB_CRASHES, 0.15),) * WEBS
    ]
    return WorkSchedule(
        seed=seed,
        lease=lease,
        messages=messages,
        start_over=start_over,
        concurrency=chance.choice((2, 4, 20)),
        grace=chance.choice((0.1, 1.0)),
        silence=chance.choice((None, 3.0)),
        page_chunks=chance.choice((2, 8, 256)),
        patience=random.Random(f"patience {seed}").choice((RETRY_SECONDS, 1.0)),
        socket_timeout=chance.choice((1.2, 2.0)),
        retry_writes=chance.random() < 0.5,
        streams=tuple(chance.random() < 0.8 for _ in range(WORKERS + WEBS)),
        crashes=tuple(crashes),
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
    )


def _message(
    chance: random.Random, seed: int, number: int, queue: str, limit: int | None
) -> MessagePlan:
    count = chance.choice((1, 1, 1, 2, 2, 3))
    plan = MessagePlan(
        number=number,
        at=chance.choice((0.0, 0.0, chance.uniform(0, 0.7))),
        web=chance.randrange(WEBS),
        conversation=chance.randrange(CONVERSATIONS),
        queue=queue,
        limit=limit,
        key=None if limit is None else f"key {chance.randrange(5)}",
        priority=chance.choice((0, 0, 0, 5, -1)),
        delay=chance.choice((None, None, None, chance.uniform(0.1, 2.0))),
        max_attempts=chance.choice((3, 3, 3, 5, 2, 1)),
        style=chance.choice(("go_on", "go_on", "reset")),
        question=random.Random(f"question {seed} {number}").choice(("", "", "stored", "aborted")),
        phases=tuple(_phase(chance, asks=number < count - 1) for number in range(count)),
        retries=chance.choice((0, 0, 0, 0, 1, 2)),
        retry_after=chance.choice((0.0, 0.0, chance.uniform(0.1, 0.8))),
        fails=chance.random() < 0.05,
        hangs=chance.random() < 0.1,
        twice=chance.random() < 0.3,
        ambush=_ambush(random.Random(f"ambush {seed} {number}")),
        heeds=chance.random() < 0.7,
        flush_every=chance.choice((1, 3, 5)),
        pause=chance.choice((0.02, 0.1, 0.2)),
        padding=chance.choice((0, 0, 20, 500)),
        slowness=chance.choice((0.0, 0.0, 0.02)),
        restless=chance.random() < 0.3,
        seed=chance.randrange(2**32),
    )
    if random.Random(f"web {seed} {number}").random() < 0.7:
        return plan
    own: Any = {"queue": WEB_QUEUE, "limit": None, "key": None, "delay": None, "priority": 0}
    return replace(plan, max_attempts=MAX_ATTEMPTS, **own)


def _from_the_start(plan: MessagePlan) -> MessagePlan:
    """An answer that always begins anew asks nobody: what it would ask for would be void."""
    return replace(plan, style="start_over", phases=(PhasePlan(tokens=plan.tokens),))


def _ambush(chance: random.Random) -> Ambush | None:
    if chance.random() < 0.75:
        return None
    moment: Any = chance.choice(("begins", "asks", "turns", "turns"))
    what: Any = chance.choice(("stop", "stop", "stop", "delete", "restart"))
    return what, moment


def _phase(chance: random.Random, *, asks: bool) -> PhasePlan:
    tokens = chance.randint(2, 9)
    if not asks:
        return PhasePlan(tokens=tokens)
    answered: Answered = chance.choice(("early", "early", "late", "late", "never"))
    waits = chance.random() < 0.3
    expires = chance.choice((None, chance.uniform(0.2, 2.0)))
    return PhasePlan(
        tokens=tokens,
        asks=chance.choice(("approval", "output")),
        answered=answered,
        twice=chance.random() < 0.4,
        expires=None if answered == "never" and waits else expires,
        lingers=chance.choice((0.0, 0.05, 0.3)),
    )


def _harm(chance: random.Random, lease: float) -> Fault:
    kinds: list[tuple[Kind, int]] = [
        *(("kill_worker", 5), ("pause_worker", 6), ("close_worker", 4)),
        *(("kill_web", 2), ("pause_web", 1), ("cut", 3), ("refuse", 2), ("delay", 1)),
        *(("deaf", 4), ("failpoint", 4), ("kill_server", 2), ("freeze_server", 1)),
    ]
    names, weights = zip(*kinds, strict=True)
    kind: Kind = chance.choices(names, weights=weights)[0]
    at = chance.choice((chance.random(), chance.uniform(0, 0.5), 0.02))
    worker, web = chance.randrange(WORKERS), chance.randrange(WEBS)
    longer = lease * chance.uniform(1.1, 1.8)
    way = chance.choice((*[f"worker {worker}"] * 3, f"web {web}", "workers", "all"))
    match kind:
        case "kill_worker" | "close_worker":
            return Fault(kind=kind, at=at, target=worker, seconds=chance.choice((0.0, 0.5)))
        case "pause_worker":
            return Fault(
                kind=kind, at=at, target=worker, seconds=chance.choice((0.5, longer, longer))
            )
        case "kill_web" | "pause_web":
            return Fault(kind=kind, at=at, target=web, seconds=chance.uniform(0, 1.0))
        case "cut":
            return Fault(kind=kind, at=at, target=way)
        case "refuse" | "delay":
            return Fault(kind=kind, at=at, target=way, seconds=chance.uniform(0.1, 1.5))
        case "deaf":
            hears_no = chance.choice(("requests", "answers", "answers", "both"))
            then = chance.choice(("deliver", "drop"))
            seconds = chance.choice(
                (0.3, longer, longer) if way.startswith("worker ") else (0.3, 1.0, 2.0)
            )
            return Fault(kind=kind, at=at, target=way, seconds=seconds, how=f"{hears_no} {then}")
        case "failpoint":
            return _failpoint(chance, at)
        case "kill_server":
            return Fault(kind=kind, at=at, seconds=chance.choice((0.0, chance.uniform(0, 1.5))))
        case "freeze_server":
            return Fault(kind=kind, at=at, seconds=chance.uniform(0.1, 2.5))
        case _:
            raise AssertionError(kind)


def _failpoint(chance: random.Random, at: float) -> Fault:
    how = chance.choice([name for name in FAILPOINTS if name not in _STREAM_ONLY])
    return Fault(
        kind="failpoint",
        at=at,
        target=chance.choice(("workers", "workers", "webs", "all")),
        how=how,
        seconds=chance.uniform(0.05, 1.5) if how.startswith("slow") else 0.0,
        times=chance.randint(1, 5),
        commands=("update",) if how.startswith("majority") else chance.choice(_COMMANDS),
    )


def _aside(chance: random.Random) -> Fault:
    kinds: tuple[Kind, ...] = ("stop", "stop", "delete", "restart", "restart", "recover")
    return Fault(
        kind=chance.choice(kinds), at=chance.uniform(0, 0.9), target=chance.randrange(MESSAGES)
    )
