"""The model: who does what at the same time, and what goes wrong meanwhile."""

from collections.abc import Callable, Collection, Sequence
from typing import ClassVar, NamedTuple, TypeAlias, TypeVar

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from converse_mongo.domain.types import MessageStatus
from tests.model import activities
from tests.model.server import CLOCK, Fate, Operation
from tests.model.simulation import IDLE_TIMEOUT, LEASE, Process, Simulation
from tests.model.world import MAX_LIVE_BYTES, MAX_LIVE_BYTES_WITH_PARTS

__all__ = ["HASTY", "PARTS", "Move", "Protocol"]

T = TypeVar("T")

AT_ONCE = 2
"""How many things a process does at the same time."""
MOST_CHUNKS = 24
MANY_TOPICS = 8
RETENTION = 50.0


class Move(NamedTuple):
    """Something that a process may do."""

    process: str
    verb: str


WRITERS: dict[str, list[str]] = {
    "append": ["append", "append_again"],
    "write": ["write"],
    "lease": ["acquire", "take_over", "renew", "release"],
    "end": ["end", "end_as_writer"],
    "read": ["load"],
}
OTHERS: dict[str, list[Move]] = {
    "read": [Move("reader", "load"), Move("follower", "follow")],
    "sweep": [Move("sweeper", "sweep")],
    "stop": [Move("sweeper", "stop")],
    "compact": [Move("sweeper", "compact"), Move("other sweeper", "compact")],
    "restart": [Move("sweeper", "delete"), Move("alpha", "save")],
}
ENDS = ("end", "end_as_writer", "stop")
EVENTS: dict[str, list[str]] = {
    "trouble": ["interruption", "arrival", "arrival"],
    "crash": ["crash", "crash"],
    "time": ["lease runs out", "lease runs out", "time passes"],
    "failover": ["isolation", "failover", "failover", "failover"],
    "restart": ["restart", "restart"],
    "lag": ["majority falls behind"] * 4 + ["majority catches up"],
}
HASTY = "lag"
"""The topic of those who do not wait for a majority, which is not there where it is needed."""

PARTS = "parts"
"""The topic of those who write parts as well as text."""

Schedule: TypeAlias = list[tuple[int, Fate]]
"""Whose call is answered next, and how."""

fates = st.sampled_from([Fate.DONE] * 6 + [*Fate])
schedules = st.lists(st.tuples(st.integers(0, 2), fates), max_size=6)
endings = st.lists(st.sampled_from(["", "é", "😀"]), min_size=1, max_size=3)
troubles = st.sampled_from([Fate.ANSWER_LOST, Fate.REQUEST_LOST, Fate.LATE])
statuses = st.sampled_from([status for status in MessageStatus if status.is_final])


def moves_about(topics: Collection[str]) -> list[Move]:
    """The moves that have to do with ``topics``."""
    found = [Move("", "go on")]
    for topic in topics:
        found += [Move(name, verb) for verb in WRITERS.get(topic, ()) for name in ("alpha", "beta")]
        found += OTHERS.get(topic, ())
    return found


def of_machine(draw: Callable[["Protocol"], st.SearchStrategy[T]]) -> st.SearchStrategy[T]:
    """Draws what the machine has to offer in this example."""
    return st.runner().flatmap(draw)


class Protocol(RuleBasedStateMachine):
    """Two writers, a reader and a sweeper; each call may be lost, each process may crash.

    Attributes:
        topics: What happens; ``None`` for everything.
        lagging: Whether the majority may be behind the primary, which may be lost.
    """

    topics: ClassVar[Collection[str]] = sorted({*WRITERS, *OTHERS, *EVENTS} - {HASTY})
    simulation: Simulation

    @initialize(
        without=st.lists(st.sampled_from([*WRITERS, *OTHERS]), unique=True),
        idle_timeout=st.sampled_from([IDLE_TIMEOUT, None]),
        retention=st.sampled_from([RETENTION, 0.0, None]),
        shortest=st.integers(0, 8),
    )
    def start(
        self,
        without: list[str],
        idle_timeout: float | None,
        retention: float | None,
        shortest: int,
    ) -> None:
        """Begins; some topics are left out, so that there are messages that never end."""
        if len(self.topics) < MANY_TOPICS:
            without = []
        self.moves = moves_about([topic for topic in self.topics if topic not in without])
        self.events = ["nothing"] * 4
        for topic in self.topics:
            self.events += EVENTS.get(topic, ())
        self.growth = [move.verb for move in self.moves if move.verb in ("append", "write")]
        self.shortest = shortest if self.growth else 0
        self.simulation = Simulation(
            lagging="failover" in self.topics or HASTY in self.topics,
            hasty=HASTY in self.topics,
            idle_timeout=idle_timeout,
            retention=retention,
            most_live_bytes=MAX_LIVE_BYTES_WITH_PARTS if PARTS in self.topics else MAX_LIVE_BYTES,
            parts=PARTS in self.topics,
        )

    @rule(
        moves=of_machine(
            lambda machine: st.lists(st.sampled_from(machine.moves), min_size=1, max_size=3)
        ),
        first=schedules,
        event=of_machine(lambda machine: st.sampled_from(machine.events)),
        second=schedules,
        finish=st.sampled_from([True, True, False]),
        endings=endings,
        status=statuses,
        fate=troubles,
    )
    def happen(
        self,
        moves: list[Move],
        first: Schedule,
        event: str,
        second: Schedule,
        finish: bool,
        endings: list[str],
        status: MessageStatus,
        fate: Fate,
    ) -> None:
        """Some things happen at the same time, and something comes in between."""
        begun = [
            operation
            for move in moves
            if (operation := self.begin(move, endings, status)) is not None
        ]
        self.play(begun, first)
        match event:
            case "interruption":
                self.interrupt(fate)
            case "arrival":
                self.simulation.arrive()
            case "crash":
                for operation in begun[:1]:
                    self.simulation.crash(operation.process, fate)
            case "lease runs out":
                CLOCK.advance(LEASE + 1)
            case "time passes":
                CLOCK.advance(IDLE_TIMEOUT + 1)
            case "restart":
                self.restart()
            case "isolation" | "failover" | "majority falls behind":
                self.simulation.server.isolated = True
            case "majority catches up":
                self.simulation.server.rejoin()
        self.play(begun, second)
        match event:
            case "isolation":
                self.simulation.server.rejoin()
            case "failover":
                self.simulation.fail_over()
        for operation in begun if finish else ():
            self.simulation.finish(operation)

    def begin(self, move: Move, endings: list[str], status: MessageStatus) -> Operation | None:
        """Has a process do something; if it has enough to do, that goes on instead."""
        simulation = self.simulation
        if move.verb == "go on":
            return next(iter(simulation.waiting), None)
        process = simulation.processes[move.process]
        if len(process.tasks) >= (1 if move.verb == "follow" else AT_ONCE):
            return next(iter(process.tasks))
        match verb := self.fitting(move.verb):
            case "append":
                return activities.append(simulation, process, endings)
            case "write":
                return activities.write(simulation, process, endings)
            case "end":
                return activities.end(simulation, process, status, by_writer=False)
            case "end_as_writer":
                return activities.end(simulation, process, status, by_writer=True)
            case "compact":
                CLOCK.advance(simulation.retention or 0)
        activity: Callable[[Simulation, Process], Operation] = getattr(activities, verb)
        return activity(simulation, process)

    def fitting(self, verb: str) -> str:
        """What to do instead, where a message is too short to end or long enough."""
        contract = self.simulation.contract
        if contract.now.log_id is None:
            return "start"
        length = len(contract.now.log)
        if verb in ENDS and length < self.shortest and not contract.now.ended:
            verb = self.growth[0]
        if verb == "append_again" and not contract.unknown:
            verb = "append"
        return "load" if verb in ("append", "write") and length >= MOST_CHUNKS else verb

    def play(self, operations: Sequence[Operation], schedule: Schedule) -> None:
        """Answers calls of ``operations`` as the schedule says."""
        for index, fate in schedule if operations else ():
            operation = operations[index % len(operations)]
            if operation.request is not None:
                fate = fate if "trouble" in self.topics else Fate.DONE
                self.simulation.answer(operation, fate)

    def restart(self) -> None:
        """Has the message deleted and started anew elsewhere while others go on with it."""
        simulation = self.simulation
        process = simulation.processes["other sweeper"]
        if simulation.contract.now.log_id != process.log_id:
            process.take_up(simulation.contract.now.log_id)
        for activity in (activities.delete, activities.start):
            simulation.finish(activity(simulation, process))

    def interrupt(self, fate: Fate) -> None:
        """Cancels something that a writer does, which goes on all the same."""
        for operation in self.simulation.waiting:
            if operation.kind in ("append", "end") and operation.epoch is not None:
                self.simulation.interrupt(operation, fate)
                return

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.close()
