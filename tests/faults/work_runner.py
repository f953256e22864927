"""Runs a schedule of workers: queues messages, does the harm, and judges what is left."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo import Converse
from tests.faults.children import Child, Children, Report
from tests.faults.harm import Harm
from tests.faults.programs import Access
from tests.faults.proxy import Proxy
from tests.faults.reports import RETRY_SECONDS, Notes
from tests.faults.runs import RUNNER_OPTIONS, child_options, reported
from tests.faults.schedules import Fault
from tests.faults.servers import Server
from tests.faults.work_programs import ABORTED, Observing, Serving, Working
from tests.faults.work_records import (
    AnswerRecord,
    AttemptRecord,
    FollowerRecord,
    LifeRecord,
    StopRecord,
    WorkEvidence,
    WorkViewerRecord,
)
from tests.faults.work_schedules import (
    CONVERSATIONS,
    WEBS,
    WORKERS,
    MessagePlan,
    WorkCrash,
    WorkSchedule,
    draw_work,
)
from tests.faults.work_slots import STALL_SECONDS, Progress, Slot, Web, WebDiedError
from tests.faults.work_verdict import REASON, judge_work

__all__ = ["WorkOutcome", "run_work"]

DEADLINE_SECONDS = 300.0
SETTLE_SECONDS = 150.0
"""How long messages may take to end, once all is healed."""
SEE_SECONDS = 60.0
"""How long viewers may then take."""


@dataclass(frozen=True, kw_only=True)
class WorkOutcome:
    """What became of a run in which all promises were kept."""

    schedule: WorkSchedule
    seconds: float
    ends: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)


async def run_work(seed: int, server: Server) -> WorkOutcome:
    """Runs the schedule of a seed.

    Raises:
        ScheduleFailedError: A promise was broken; says which, and how to do it again.
    """
    schedule = draw_work(seed)
    again = f"--work --seed {seed} --schedules 1"
    return await reported(lambda logs: WorkRun(schedule, server, logs), schedule.describe(), again)


class WorkRun:
    """One run."""

    def __init__(self, schedule: WorkSchedule, server: Server, logs: Path) -> None:
        self._schedule = schedule
        self._server = server
        self._logs = logs
        self._database = f"work_{schedule.seed}_{random.getrandbits(32):08x}"
        self._started = time.monotonic()
        self.notes = Notes(self._started)
        self._done: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._children = Children()
        self._proxies: dict[str, Proxy] = {}
        self._harm = Harm(server, self._proxies, self.notes.note)
        self._progress = Progress(schedule.tokens)
        self._workers = [Slot(f"worker {number}") for number in range(WORKERS)]
        self._webs = [Web(f"web {number}") for number in range(WEBS)]
        self._messages = [_Queued(plan) for plan in schedule.messages]
        self._complaints: list[str] = []
        self._conversations: list[str] = []
        self._followers = [FollowerRecord(number=number) for number in range(CONVERSATIONS)]
        self._answering: set[tuple[int, str]] = set()
        self._waits_for = "the start"
        self._over = False
        self._busy = asyncio.Event()
        self._tasks: asyncio.TaskGroup
        self._asked: set[asyncio.Task[Any]] = set()
        self._converse: Converse

    # What happens

    async def run(self) -> WorkOutcome:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS), AsyncExitStack() as stack:
                stack.push_async_callback(self._server.heal)
                stack.enter_context(self._children)
                for slot in (*self._workers, *self._webs):
                    proxy = await stack.enter_async_context(Proxy(self._server.port))
                    self._proxies[slot.name] = proxy
                self._converse = await stack.enter_async_context(self._facade())
                for _ in range(CONVERSATIONS):
                    conversation = await self._converse.start_conversation("work")
                    self._conversations.append(str(conversation.id))
                async with asyncio.TaskGroup() as self._tasks:
                    await self._play()
                outcome = await self._verdict()
                with contextlib.suppress(PyMongoError):  # it is only for room
                    await self._server.drop(self._database)
                return outcome
        except TimeoutError as error:
            raise AssertionError(f"waited too long for {self._waits_for}") from error

    async def _play(self) -> None:
        log = self._logs / "observer.log"
        program = Observing(self._server.uri, self._database)
        observer = self._children.start("observer", program, log)
        self._tasks.create_task(self._observe(observer))
        for slot in self._workers:
            self._tasks.create_task(self._keep(slot, self._start_worker))
        for web in self._webs:
            self._tasks.create_task(self._keep(web, self._start_web))
        self._waits_for = "the web processes"
        for web in self._webs:
            await web.is_ready.wait()
        for queued in self._messages:
            self._ask(self._queue(queued, queued.plan.at))
        self._waits_for = "the faults"
        faults = [self._do_in_time(fault) for fault in self._schedule.faults]
        await asyncio.gather(*map(self._tasks.create_task, faults))
        await self._harm.heal()
        for slot in (*self._workers, *self._webs):
            slot.resume()
        self._note("all is healed")
        self._progress.finish()
        await self._settle()
        await self._see()
        observer.kill()
        for task in self._asked:
            task.cancel()
        self._over = True
        self._waits_for = "the end of all processes"
        for slot in (*self._workers, *self._webs):
            slot.order(do="close")

    def _note(self, what: str) -> None:
        self.notes.note(what)

    def _ask(self, what: Coroutine[Any, Any, Any]) -> None:
        """Has something be done that others do not wait for."""
        task = self._tasks.create_task(what)
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    def _facade(self) -> Converse:
        return Converse(
            self._server.uri,
            database=self._database,
            lease=self._schedule.lease,
            retention="keep",
            client_options=RUNNER_OPTIONS,
        )

    # Processes

    def _crash(self, slot: Slot, number: int) -> WorkCrash | None:
        crash = self._schedule.crashes[number] if slot.lives == 1 else None
        slot.may_die = crash is not None
        return crash

    def _access(self, slot: Slot, number: int) -> Access:
        schedule = self._schedule
        return Access(
            uri=f"mongodb://127.0.0.1:{self._proxies[slot.name].port}/?directConnection=true",
            database=self._database,
            client_options=child_options(
                f"{slot.name.partition(' ')[0]}s",
                schedule.socket_timeout,
                retry_writes=schedule.retry_writes,
            ),
            options={
                "lease": schedule.lease,
                "retry_timeout": schedule.patience if number < WORKERS else RETRY_SECONDS,
                "poll_interval": 0.1,
                "check_interval": 0.3,
                "retention": "keep",
                "change_streams": schedule.streams[number],
            },
            log=self._logs / f"{slot.name}, life {slot.lives}.log",
        )

    def _start_worker(self, slot: Slot) -> Child:
        number = self._workers.index(slot)
        access, crash = self._access(slot, number), self._crash(slot, number)
        program = Working(access, self._schedule, crash)
        return self._children.start(slot.name, program, access.log, obeys=True)

    def _start_web(self, slot: Slot) -> Child:
        number = WORKERS + self._webs.index(slot)  # type: ignore[arg-type]
        access, crash = self._access(slot, number), self._crash(slot, number)
        program = Serving(access, self._schedule, crash)
        return self._children.start(slot.name, program, access.log, obeys=True)

    async def _keep(self, slot: Slot, start: Callable[[Slot], Child]) -> None:
        """Has a process run in a slot until the run is over, one after the other."""
        while not self._over:
            slot.lives += 1
            slot.was_killed = slot.has_left = False
            slot.child = start(slot)
            self._note(f"{slot.name} starts life {slot.lives}")
            async for report in slot.child.reports():
                self._take(slot, report)
            if not slot.has_left and not slot.was_killed:
                assert slot.may_die, f"{slot.name} died by itself"
                self._done["crash"] += 1
            self._note(f"{slot.name} is {'gone' if slot.has_left else 'dead'}")
            if slot.has_left and not self._over:
                self._done["closed"] += 1
            slot.died()
            await asyncio.sleep(slot.pause)
            slot.pause = 0.0

    def _take(self, slot: Slot, report: Report) -> None:
        match report["kind"]:
            case "broken":
                raise AssertionError(report["error"])
            case "complaint":
                self._complaints.append(f"{slot.name} logged: {report['text']}")
            case "ready":
                slot.is_ready.set()
                if isinstance(slot, Web):
                    self._follow(slot)
                    for queued in self._messages:
                        if queued.plan.web == self._webs.index(slot):
                            for life in queued.lives[:-1]:
                                life.viewer.gone = True
                            self._watch(queued)
            case "left":
                slot.has_left = True
            case "reply":
                assert isinstance(slot, Web)
                slot.replied(report)
            case "event":
                self._seen(report)
            case "followed":
                self._followers[report.pop("conversation")].take(report)
            case "gone":
                life = self._viewed(report["viewer"])
                life.viewer.gone = True
                self._has_left(life, "that it is gone")
            case "returns":
                self._counts["returns"] += 1
            case _:
                self._take_from_attempt(slot, report)

    def _take_from_attempt(self, slot: Slot, report: Report) -> None:
        if report["life"] == ABORTED:
            self._complaints.append(f"message {report['m']} ran, whose transaction was aborted")
            return
        life = self._messages[report["m"]].lives[report["life"]]
        epoch = report["epoch"]
        if life.plan.ambush and report["kind"] == life.plan.ambush[1]:
            self._ambush(life)
        if report["kind"] == "begins":
            self._counts["attempts"] += 1
            self._counts["attempts of web processes"] += isinstance(slot, Web)
            slot.runs.add((report["m"], report["life"], epoch))
            self._busy.set()
            self._note(f"{life.name}: attempt {report['attempt']} begins, epoch {epoch}")
            if epoch in life.attempts:
                self._complaints.append(f"{life.name} had two attempts with the epoch {epoch}")
            life.attempts[epoch] = AttemptRecord(
                epoch=epoch,
                attempt=report["attempt"],
                begins=report["at"],
                shown=(report["count"], report["content"]),
                phases=(report["phase"], 0),
            )
            return
        life.attempts[epoch].take(report)
        match report["kind"]:
            case "writes":
                self._progress.advance()
            case "leaves":
                slot.runs.discard((report["m"], report["life"], epoch))
                cause = f" ({report['cause']})" if report["cause"] not in (None, "NoneType") else ""
                self._note(f"{life.name}: epoch {epoch} leaves: {report['how']}{cause}")
                self._counts[f"left by {report['how']}"] += 1
            case "asks":
                if life.plan.phase_of(report["call"]).answered == "early":
                    self._answer(life, report["call"])

    def _ambush(self, life: LifeRecord) -> None:
        """Does at this moment what is to be done to a message, once."""
        queued, ambush = self._messages[life.plan.number], life.plan.ambush
        if queued.was_ambushed or not life.message_id or life.delete_begun or self._over:
            return
        assert ambush is not None
        queued.was_ambushed = True
        self._counts["ambushes"] += 1
        if ambush[0] == "stop":
            self._stop_by_all(life)
        elif not queued.lock.locked():
            self._ask(self._delete_in_turn(queued, again=ambush[0] == "restart"))

    # Web processes and what they are asked

    async def _order(self, web: int, do: str, **order: Any) -> Report:
        """Has a web process do something, again in its next life if it dies."""
        while True:
            slot = self._webs[web]
            await slot.is_ready.wait()
            with contextlib.suppress(WebDiedError):
                return await slot.ask(do, **order)
            self._counts["asked again"] += 1

    async def _queue(self, queued: "_Queued", at: float = 0.0) -> None:
        await self._progress.reaches(at)
        async with queued.lock:
            await self._enqueue(queued)

    async def _enqueue(self, queued: "_Queued") -> None:
        plan, number = queued.plan, len(queued.lives)
        # A worker may begin before the web process is told that the message is stored.
        life = LifeRecord(
            plan=plan,
            life=number,
            message_id="",
            viewer=WorkViewerRecord(name=f"{plan.number}.{number}"),
        )
        queued.lives.append(life)
        webs = range(WEBS) if plan.twice else [plan.web]
        replies = await asyncio.gather(
            *(
                self._order(
                    web,
                    "enqueue",
                    m=plan.number,
                    life=number,
                    conversation=self._conversations[plan.conversation],
                    generation=f"message {plan.number}",
                )
                for web in webs
            )
        )
        assert {reply.get("life") for reply in replies} == {number}, f"{life.name}: {replies}"
        (life.message_id,) = {reply["message_id"] for reply in replies}
        self._note(f"{life.name} is queued: {life.message_id}")
        self._watch(queued)

    def _watch(self, queued: "_Queued") -> None:
        """Has the last life of a message be watched, from behind what was seen of it."""
        if not queued.lives:
            return
        life, *earlier = reversed(queued.lives)
        viewer = life.viewer
        for before in earlier:
            if not before.viewer.has_begun:
                before.viewer.gone = True  # deleted before the viewer of another life had left
            elif not (before.viewer.gone or before.viewer.has_ended):
                return  # who watches the same id would be told what is not known yet: it is gone
        slot = self._webs[queued.plan.web]
        if not (life.message_id and slot.is_ready.is_set()) or viewer.has_ended or viewer.gone:
            return
        if life.delete_begun:  # the id may be that of another life
            viewer.gone = True
            return
        viewer.has_begun = True
        self._note(f"{life.name}: {slot.name} watches it, behind {viewer.after}")
        slot.order(
            do="watch",
            viewer=viewer.name,
            message_id=life.message_id,
            m=queued.plan.number,
            after=viewer.after,
        )

    def _follow(self, slot: Web) -> None:
        """Has a web process watch its conversations, from behind what was seen of them."""
        for number, follower in enumerate(self._followers):
            if slot is self._webs[number % WEBS]:
                of = self._conversations[number]
                slot.order(do="follow", conversation=number, of=of, after=follower.cursor)

    def _viewed(self, viewer: str) -> LifeRecord:
        number, life = map(int, viewer.split("."))
        return self._messages[number].lives[life]

    def _seen(self, event: Report) -> None:
        life = self._viewed(event.pop("viewer"))
        life.viewer.events.append(event)
        if life.viewer.has_ended:
            self._has_left(life, f"its end, behind {life.viewer.after}")
        for call in event.get("pending", ()):
            if life.plan.phase_of(call).answered != "never":
                self._answer(life, call)

    def _has_left(self, life: LifeRecord, told: str) -> None:
        """Has the next life of a message be watched, if that waited for the viewer of this one."""
        self._note(f"{life.name}: its viewer was told {told}")
        queued = self._messages[life.plan.number]
        if life is not queued.lives[-1]:
            self._watch(queued)

    def _answer(self, life: LifeRecord, call: str) -> None:
        """Has people answer a call, perhaps two at once."""
        key = life.life, call
        if key in self._answering or self._over:
            return
        self._answering.add(key)
        phase = life.plan.phase_of(call)
        for web in range(WEBS if phase.twice else 1):
            self._ask(self._answer_by((life.plan.web + web) % WEBS, life, call, phase.asks))

    async def _answer_by(self, web: int, life: LifeRecord, call: str, asks: str) -> None:
        value = len(life.answers) + random.randrange(1, 1000) * 1000 + web
        slot_of_answer = len(life.answers)
        life.answers.append(AnswerRecord(call=call, value=value, result="MessageNotFoundError"))
        queued = self._messages[life.plan.number]
        async with queued.lock:  # until it is known which message it is
            pass
        if queued.lives[-1] is not life:
            return
        reply = await self._order(
            web,
            "answer",
            message_id=life.message_id,
            call=call,
            asks=asks,
            value=value,
            append_id=str(ObjectId()),
        )
        result = "stored" if reply.get("stored") else reply["error"]
        self._note(f"{life.name}: the answer {value} to {call}: {result}")
        life.answers[slot_of_answer] = AnswerRecord(call=call, value=value, result=result)
        self._counts["answers"] += result == "stored"

    # Harm

    async def _do_in_time(self, fault: Fault) -> None:
        await self._progress.reaches(fault.at)
        self._note(f"{fault.kind} {fault.target} {fault.how} for {fault.seconds:.2f} s")
        if await (self._harm.does(fault) or getattr(self, f"_do_{fault.kind}"))(fault):
            self._done[fault.kind] += 1
        else:
            self._note(f"{fault.kind} came too late")

    async def _do_kill_worker(self, fault: Fault) -> bool:
        return (await self._worker(fault)).kill(fault.seconds)

    async def _do_kill_web(self, fault: Fault) -> bool:
        slot = self._web(fault)
        # What it had asked for and was on its way shall not come later than what follows.
        killed = slot.kill(fault.seconds)
        self._proxies[slot.name].cut()
        return killed

    async def _do_pause_worker(self, fault: Fault) -> bool:
        return await (await self._worker(fault)).stand_still(fault.seconds)

    async def _do_pause_web(self, fault: Fault) -> bool:
        return await self._web(fault).stand_still(fault.seconds)

    async def _do_close_worker(self, fault: Fault) -> bool:
        slot = await self._worker(fault)
        slot.pause = fault.seconds
        slot.order(do="close")
        return slot.child is not None

    async def _worker(self, fault: Fault) -> Slot:
        """A worker that is at something, if one comes to be in time."""
        assert isinstance(fault.target, int)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STALL_SECONDS):
                while not (busy := [slot for slot in self._workers if slot.is_busy]):
                    self._busy.clear()
                    await self._busy.wait()
                return busy[fault.target % len(busy)]
        return self._workers[fault.target]

    def _web(self, fault: Fault) -> Web:
        assert isinstance(fault.target, int)
        return self._webs[fault.target]

    async def _do_recover(self, fault: Fault) -> bool:
        recovered = await self._converse.recover_stale()
        self._note(f"recovered: {[str(event.message_id) for event in recovered]}")
        return True

    async def _do_stop(self, fault: Fault) -> bool:
        life = self._life(fault)
        if life is None:
            return False
        self._stop_by_all(life)
        return True

    def _stop_by_all(self, life: LifeRecord) -> None:
        life.stop_begun = True
        webs = range(WEBS) if life.plan.twice else [(life.plan.web + 1) % WEBS]
        for web in webs:
            self._ask(self._stop(web, life))

    async def _stop(self, web: int, life: LifeRecord) -> None:
        reply = await self._order(web, "stop", message_id=life.message_id, reason=REASON)
        self._note(f"{life.name}: whoever stopped it was told {reply}")
        if "error" not in reply and reply["life"] == life.life:
            stop = StopRecord(status=reply["status"], epoch=reply["epoch"], count=reply["count"])
            life.stops.append(stop)
        elif "error" not in reply:
            self._messages[life.plan.number].lives[reply["life"]].stop_begun = True
        else:
            # It may have met another life.
            for other in self._messages[life.plan.number].lives:
                other.stop_begun = True

    async def _do_delete(self, fault: Fault) -> bool:
        return await self._delete(fault)

    async def _do_restart(self, fault: Fault) -> bool:
        return await self._delete(fault, again=True)

    async def _delete(self, fault: Fault, *, again: bool = False) -> bool:
        assert isinstance(fault.target, int)
        queued = self._messages[fault.target]
        if self._life(fault) is None or queued.lock.locked():
            return False
        self._ask(self._delete_in_turn(queued, again=again))
        return True

    async def _delete_in_turn(self, queued: "_Queued", *, again: bool) -> None:
        async with queued.lock:
            life = queued.lives[-1]
            life.delete_begun = True
            web = (queued.plan.web + 1) % WEBS
            reply = await self._order(web, "delete", message_id=life.message_id, life=life.life)
            assert "error" not in reply, reply
            life.deleted = True
            self._note(f"{life.name} is deleted")
            if again:
                await self._enqueue(queued)

    def _life(self, fault: Fault) -> LifeRecord | None:
        """The message that a fault means, unless it is not queued, or deleted."""
        assert isinstance(fault.target, int)
        lives = self._messages[fault.target].lives
        if not lives or not lives[-1].message_id or lives[-1].delete_begun:
            return None
        return lives[-1]

    # The end

    async def _observe(self, observer: Child) -> None:
        """Listens to the observer, which looks at what is stored without the library."""
        async for report in observer.reports():
            if report["kind"] == "broken":
                raise AssertionError(report["error"])
            self._counts["samples"] += 1
            for wrong in report["wrong"]:
                if (said := f"the observer: {wrong}") not in self._complaints:
                    self._note(said)
                    self._complaints.append(said)

    async def _settle(self) -> None:
        """Waits until all messages have ended, or wait rightly."""
        self._waits_for = "what was asked"
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            with contextlib.suppress(PyMongoError):
                if not self._asked and await self._has_settled():
                    self._note("all has ended, or waits")
                    return
        self._note("not all has ended in time")

    async def _has_settled(self) -> bool:
        settled = True
        for life, document in await self._stored():
            if document is None:
                continue
            life.document = document
            work = document["work"]
            if document["status"] == "streaming" and not life.waits_rightly:
                settled = False
                for call in work.get("pending") or ():
                    phase = life.plan.phase_of(call["call_id"])
                    if work["state"] == "waiting" and phase.answered != "never":
                        self._answer(life, call["call_id"])
        return settled

    async def _see(self) -> None:
        """Waits until all viewers have seen all."""
        self._waits_for = "the viewers"
        deadline = time.monotonic() + SEE_SECONDS
        while time.monotonic() < deadline:
            left = [
                life.name
                for life, document in await self._stored()
                if not (_saw(life.viewer, document) and self._was_followed(life, document))
            ]
            if not left:
                return
            await asyncio.sleep(0.1)
        self._note(f"the viewers of {left} have not seen all")

    def _was_followed(self, life: LifeRecord, document: dict[str, Any] | None) -> bool:
        viewers = self._followers[life.plan.conversation].viewers
        viewer = viewers.get((life.plan.number, life.life))
        return document is None or (viewer is not None and _saw(viewer, document))

    async def _queued(self) -> list[dict[str, Any]]:
        match = {"work": {"$exists": True}}
        return await self._server.documents(self._database, "messages", match)

    async def _stored(self) -> list[tuple[LifeRecord, dict[str, Any] | None]]:
        found = await self._queued()
        by_life = {(each["metadata"]["m"], each["metadata"]["life"]): each for each in found}
        lives = [life for queued in self._messages for life in queued.lives]
        return [(life, by_life.get((life.plan.number, life.life))) for life in lives]

    async def _questions(self) -> list[tuple[int, int]]:
        match = {"metadata.question": {"$exists": True}}
        found = await self._server.documents(self._database, "messages", match)
        return [(each["metadata"]["question"], each["metadata"]["life"]) for each in found]

    async def _verdict(self) -> WorkOutcome:
        self._waits_for = "the verdict"
        await self._converse.message_model.store().key_places.sweep()
        lives = []
        for life, document in await self._stored():
            lives.append(life)
            life.document = document
            if document is None:
                continue
            message = await self._converse.get_message(document["_id"])
            life.content = message.content
            life.chunks = [chunk.to_dict() async for chunk in message.iter_chunks()]
        known = {(life.plan.number, life.life) for life in lives}
        found = await self._queued()
        evidence = WorkEvidence(
            lives=lives,
            questions=await self._questions(),
            followers=self._followers,
            places=await self._server.documents(self._database, "message_places", {}),
            complaints=self._complaints,
            strangers=[
                str(each["_id"])
                for each in found
                if (each["metadata"]["m"], each["metadata"]["life"]) not in known
            ],
        )
        if wrong := judge_work(evidence):
            raise AssertionError("\n".join(wrong))
        return WorkOutcome(
            schedule=self._schedule,
            seconds=time.monotonic() - self._started,
            ends=Counter(_end_of(life) for life in lives),
            counts=self._counts + _sums(lives),
            done=self._done,
        )


def _saw(viewer: WorkViewerRecord, document: dict[str, Any] | None) -> bool:
    if viewer.gone or viewer.has_ended:
        return True
    if document is None or document["status"] != "streaming":
        return False
    works = [event for event in viewer.events if "attempt" in event]
    behind = -1 if viewer.after is None else viewer.after
    return behind + 1 == document["next_sequence"] and bool(works and works[-1].get("pending"))


def _end_of(life: LifeRecord) -> str:
    if life.document is None:
        return "deleted"
    status = str(life.document["status"])
    return "waiting" if status == "streaming" else status


def _sums(lives: list[LifeRecord]) -> Counter[str]:
    works = [life.document["work"] for life in lives if life.document is not None]
    return Counter(
        crashes=sum(work.get("crashes", 0) for work in works),
        retries=sum(work.get("retries", 0) for work in works),
        chunks=sum(len(life.chunks) for life in lives),
        resets=sum(chunk.get("event") == "reset" for life in lives for chunk in life.chunks),
        stopped=sum(len(life.stops) for life in lives),
    )


class _Queued:
    """A message that is queued, and perhaps deleted and started anew."""

    def __init__(self, plan: MessagePlan) -> None:
        self.plan = plan
        self.lives: list[LifeRecord] = []
        self.lock = asyncio.Lock()
        self.was_ambushed = False
