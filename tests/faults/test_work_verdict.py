"""The verdict on workers, and the observer, notice each promise that is broken."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from converse_mongo.domain.work import places_id, stored_key
from tests.faults.observing import Shot, held_throughout, oddities
from tests.faults.work_records import (
    AnswerRecord,
    AttemptRecord,
    FollowerRecord,
    LifeRecord,
    StopRecord,
    WorkEvidence,
    WorkViewerRecord,
)
from tests.faults.work_schedules import MessagePlan, PhasePlan, draw_work
from tests.faults.work_verdict import REASON, UNFINISHED, judge_work


def plan(number: int, **fields: Any) -> MessagePlan:
    usual: dict[str, Any] = {
        "number": number,
        "conversation": 0,
        "question": "",
        "queue": "odd",
        "limit": 1,
        "key": "a",
        "max_attempts": 3,
        "style": "go_on",
        "phases": (PhasePlan(tokens=4),),
        "retries": 0,
        "fails": False,
    }
    return replace(draw_work(0).messages[0], **usual | fields)


def text(sequence: int, content: str) -> dict[str, Any]:
    return {"sequence": sequence, "content": content}


def life(of: MessagePlan, chunks: list[dict[str, Any]], number: int = 0, **document: Any) -> Any:
    """A message whose viewer has seen all."""
    work = {"max_attempts": of.max_attempts, **document.pop("work", {})}
    status = document.get("status", "completed")
    content = document.pop("content", "".join(chunk["content"] for chunk in chunks))
    events: list[dict[str, Any]] = [{"type": "chunk.received", **chunk} for chunk in chunks]
    if status == "streaming":
        pending = [call["call_id"] for call in work["pending"]]
        events.append({"type": "message.suspended", "attempt": 1, "pending": pending})
    else:
        events.append({"type": f"message.{status}", "chunk_count": len(chunks)})
    stored = {"next_sequence": len(chunks), "lease": {"epoch": 1}, "work": work, "status": status}
    return LifeRecord(
        plan=of,
        life=number,
        message_id=f"{of.number}",
        document=stored | document,
        chunks=chunks,
        content=content,
        viewer=WorkViewerRecord(name=f"{of.number}.{number}", events=events),
    )


def attempt(epoch: int, stored: int, begins: float, **fields: Any) -> AttemptRecord:
    return AttemptRecord(
        epoch=epoch,
        attempt=fields.pop("attempt", 1),
        begins=begins,
        shown=fields.pop("shown", (0, "")),
        writing=stored - 1,
        stored=stored,
        held_until=begins + 1,
        **fields,
    )


def followed() -> LifeRecord:
    """Its first worker died, another one went on."""
    contents = ["<0.0.1.0>", "<0.0.1.1>", "<0.0.2.0>", "<0.0.2.1>"]
    found: LifeRecord = life(
        plan(0),
        [text(number, content) for number, content in enumerate(contents)],
        lease={"epoch": 2},
        work={"crashes": 1},
    )
    shown = (2, "<0.0.1.0><0.0.1.1>")
    found.attempts = {
        1: attempt(1, 2, 0.0),
        2: attempt(2, 2, 2.0, attempt=2, shown=shown, how="completed"),
    }
    return found


def asked() -> LifeRecord:
    """It asked for an approval, began anew, asked again, and was answered."""
    of = plan(1, phases=(PhasePlan(tokens=1, asks="approval"), PhasePlan(tokens=1)), style="reset")
    chunks = [
        text(0, "<1.0.1.0>"),
        {"sequence": 1, "content": "", "event": "reset", "fields": {"from": 0}},
        text(2, "<1.0.2.0>"),
        {
            "sequence": 3,
            "content": "",
            "event": "start",
            "fields": {"kind": "tool_call", "name": "ask", "call_id": "1.0.2.0"},
        },
        {"sequence": 4, "content": "", "event": "set", "part": 3, "fields": {"input": {}}},
        answer_chunk(5, "7001"),
        text(6, "<1.0.3.0>"),
    ]
    found: LifeRecord = life(
        of,
        chunks,
        content="<1.0.2.0><1.0.3.0>",
        lease={"epoch": 3},
        work={"retries": 1},
    )
    found.attempts = {
        1: attempt(1, 1, 4.0, how="Retry"),
        2: attempt(
            *(2, 1, 6.0), attempt=2, shown=(1, "<1.0.1.0>"), resets=(1, 1), asks=["1.0.2.0"]
        ),
        3: attempt(3, 1, 8.0, attempt=2, shown=(6, "<1.0.2.0>")),
    }
    found.answers = [
        AnswerRecord(call="1.0.2.0", value=7001, result="stored"),
        AnswerRecord(call="1.0.2.0", value=8000, result="CallNotPendingError"),
    ]
    return found


def answer_chunk(sequence: int, reason: str) -> dict[str, Any]:
    approval = {"id": "x", "approved": True, "reason": reason}
    fields = {"approval": approval}
    return {"sequence": sequence, "content": "", "event": "set", "part": 3, "fields": fields}


def waiting() -> LifeRecord:
    """Nobody answers it."""
    of = plan(2, phases=(PhasePlan(tokens=1, asks="output", answered="never"), PhasePlan(tokens=1)))
    found: LifeRecord = life(
        of,
        [text(0, "<2.0.1.0>")],
        status="streaming",
        work={"state": "waiting", "pending": [{"call_id": "2.0.1.0"}]},
    )
    found.attempts = {1: attempt(1, 1, 10.0, how="suspended")}
    return found


def deleted() -> LifeRecord:
    found: LifeRecord = life(plan(3), [])
    found.document, found.delete_begun, found.deleted = None, True, True
    found.viewer.events, found.viewer.gone = [], True
    return found


def stopped() -> LifeRecord:
    found: LifeRecord = life(
        plan(3), [text(0, "<3.1.1.0>")], 1, status="cancelled", stop_reason=REASON
    )
    found.attempts = {1: attempt(1, 1, 12.0, how="StreamStoppedError")}
    found.stop_begun = True
    found.stops = [StopRecord(status="cancelled", epoch=1, count=1)]
    return found


def failed() -> LifeRecord:
    found: LifeRecord = life(
        plan(4, max_attempts=1),
        [],
        status="failed",
        error="interrupted in attempt 1 of 1",
        work={"crashes": 1},
    )
    return found


def started_over() -> LifeRecord:
    """Its first worker died, and the library voided what it had written for the next one."""
    found: LifeRecord = life(
        plan(5, style="start_over", question="aborted", phases=(PhasePlan(tokens=2),)),
        [
            text(0, "<5.0.1.0>"),
            {"sequence": 1, "content": "", "event": "reset", "fields": {"from": 0}},
            text(2, "<5.0.2.0>"),
            text(3, "<5.0.2.1>"),
        ],
        content="<5.0.2.0><5.0.2.1>",
        lease={"epoch": 2},
        work={"crashes": 1},
    )
    found.attempts = {
        1: attempt(1, 1, 14.0),
        2: attempt(2, 2, 16.0, attempt=2, shown=(1, "<5.0.1.0>"), resets=(1, 1), how="completed"),
    }
    return found


FOLLOWED, ASKED, WAITING, DELETED, STOPPED, FAILED, STARTED_OVER = range(7)


def evidence() -> WorkEvidence:
    """That of a run in which all went well."""
    lives = [followed(), asked(), waiting(), deleted(), stopped(), failed(), started_over()]
    follower = FollowerRecord(number=0, questions=[(5, 0)])
    for each in lives:
        viewer = WorkViewerRecord(name="", events=list(map(dict, each.viewer.events)))
        follower.viewers[each.plan.number, each.life] = viewer
    return WorkEvidence(
        lives=lives, places=[{"_id": "sweep"}], questions=[(5, 0)], followers=[follower]
    )


def test_verdict__nothing_is_wrong() -> None:
    assert judge_work(evidence()) == []


def change(which: int, **fields: Any) -> Callable[[WorkEvidence], None]:
    """Has the document of a message say something else."""

    def harm(found: WorkEvidence) -> None:
        document = found.lives[which].document
        assert document is not None
        for name, value in fields.items():
            within = document
            *path, last = name.split("__")
            for each in path:
                within = within[each]
            within[last] = value

    return harm


def change_life(which: int, **fields: Any) -> Callable[[WorkEvidence], None]:
    def harm(found: WorkEvidence) -> None:
        vars_of = found.lives[which]
        for name, value in fields.items():
            setattr(vars_of, name, value)

    return harm


def change_attempt(which: int, epoch: int, **fields: Any) -> Callable[[WorkEvidence], None]:
    def harm(found: WorkEvidence) -> None:
        for name, value in fields.items():
            setattr(found.lives[which].attempts[epoch], name, value)

    return harm


def change_viewer(which: int, **fields: Any) -> Callable[[WorkEvidence], None]:
    def harm(found: WorkEvidence) -> None:
        for name, value in fields.items():
            setattr(found.lives[which].viewer, name, value)

    return harm


def rewrite(which: int, *contents: str) -> Callable[[WorkEvidence], None]:
    """Stores other chunks of text, as the viewer and every reader see them."""

    def harm(found: WorkEvidence) -> None:
        of = found.lives[which]
        attempts = of.attempts
        again = life(of.plan, [text(*pair) for pair in enumerate(contents)], of.life)
        assert of.document is not None
        of.chunks, of.content, of.viewer = again.chunks, again.content, again.viewer
        of.document["next_sequence"], of.attempts = len(contents), attempts

    return harm


def see(which: int, number: int, **fields: Any) -> Callable[[WorkEvidence], None]:
    """Shows the viewer another event."""

    def harm(found: WorkEvidence) -> None:
        found.lives[which].viewer.events[number] |= fields

    return harm


def answer_again(found: WorkEvidence) -> None:
    asked = found.lives[ASKED]
    asked.chunks.insert(6, answer_chunk(6, "8000"))
    asked.chunks[7]["sequence"] = 7
    assert asked.document is not None
    asked.document["next_sequence"] = 8


def take_answer_away(found: WorkEvidence) -> None:
    found.lives[ASKED].chunks[5] = {**answer_chunk(5, "x"), "fields": {"title": "x"}}


def answer_with(value: str) -> Callable[[WorkEvidence], None]:
    def harm(found: WorkEvidence) -> None:
        found.lives[ASKED].chunks[5] = answer_chunk(5, value)

    return harm


def tell_both(found: WorkEvidence) -> None:
    answers = found.lives[ASKED].answers
    answers[1] = replace(answers[1], result="stored")


def refuse_oddly(found: WorkEvidence) -> None:
    answers = found.lives[ASKED].answers
    answers[1] = replace(answers[1], result="WatchError")


def lose_an_event(which: int, number: int) -> Callable[[WorkEvidence], None]:
    def harm(found: WorkEvidence) -> None:
        del found.lives[which].viewer.events[number]

    return harm


def repeat_an_event(which: int, number: int) -> Callable[[WorkEvidence], None]:
    def harm(found: WorkEvidence) -> None:
        events = found.lives[which].viewer.events
        events.insert(number, dict(events[number]))

    return harm


def take_a_place(found: WorkEvidence) -> None:
    found.places.append({"_id": "odd", "running": [{"ticket": 1}]})


def complain(found: WorkEvidence) -> None:
    found.complaints.append("the observer: 2 leases of a at once")


def come_from_nowhere(found: WorkEvidence) -> None:
    found.strangers.append("77")


def do_not_void(found: WorkEvidence) -> None:
    found.lives[STARTED_OVER].chunks[1] = text(1, "")


def store_an_aborted_question(found: WorkEvidence) -> None:
    found.questions.append((5, -1))


def forget_a_question(found: WorkEvidence) -> None:
    found.questions.clear()


def follow_wrongly(*questions: tuple[int, int]) -> Callable[[WorkEvidence], None]:
    def harm(found: WorkEvidence) -> None:
        found.followers[0].questions[:] = questions

    return harm


def follow_a_stranger(found: WorkEvidence) -> None:
    found.followers[0].viewers[5, -1] = WorkViewerRecord(name="")


def do_not_follow(found: WorkEvidence) -> None:
    del found.followers[0].viewers[5, 0]


def follow_with_a_gap(found: WorkEvidence) -> None:
    del found.followers[0].viewers[5, 0].events[1]


def follow_without_an_end(found: WorkEvidence) -> None:
    del found.followers[0].viewers[5, 0].events[-1]


def follow_oddly(found: WorkEvidence) -> None:
    found.followers[0].odd.append("saw something")


STILL = {"status": "streaming", "work__state": "queued"}


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        # Ends
        (change(FOLLOWED, **STILL), "never ended: it is queued"),
        (change(FOLLOWED, **STILL | {"work__state": "blocked"}), "never ended: it is blocked"),
        (change(WAITING, work__pending=[]), "never ended: it is waiting"),
        (change(WAITING, work__pending=[{"call_id": "2.0.1.1"}]), "never ended: it is waiting"),
        (change_life(FOLLOWED, document=None), "nobody has deleted it"),
        (change_life(STOPPED, deleted=True), "was deleted, and is still there"),
        (change(FOLLOWED, work__state="running"), "has ended, and is running"),
        (change(FOLLOWED, work__crashes=3), r"\(3, 0\) crashes and retries are more"),
        (change(ASKED, work__retries=3), r"\(0, 3\) crashes and retries are more"),
        (change(FAILED, work__crashes=0), r"interrupted in attempt 1 of 1, with \(0, 0\)"),
        (change(FAILED, error="the provider is busy"), "gave up retries"),
        (change(FAILED, error="The answer made no progress."), "failed as silent"),
        (change(FAILED, error=UNFINISHED), r"failed after an outage, with \(1, 0\)"),
        (change(FOLLOWED, status="failed", error=UNFINISHED), "last attempt left with completed"),
        (change(FAILED, error="no such model"), "failed with the error no such model"),
        (change_life(STOPPED, stop_begun=False), "nobody had asked for a stop"),
        (change(STOPPED, stop_reason=None), "for the reason None"),
        (rewrite(FOLLOWED, "<0.0.1.0>", "<0.0.1.1>", "<0.0.2.0>"), "completed with 3 tokens of 4"),
        # Text
        (change(FOLLOWED, next_sequence=5), "next_sequence is 5 with 4 chunks"),
        (change_life(FOLLOWED, content="<0.0.1.0>"), "the text is not that of the chunks"),
        (change(FOLLOWED, content="x"), "the stored text is not that of the chunks"),
        (
            rewrite(FOLLOWED, "<0.0.1.0>", "<0.0.2.0>", "<0.0.1.1>", "<0.0.2.1>"),
            "written behind its successor",
        ),
        (
            rewrite(FOLLOWED, "<0.0.1.1>", "<0.0.1.0>", "<0.0.2.0>", "<0.0.2.1>"),
            r"attempt 1 has stored \[1, 0\]",
        ),
        (
            rewrite(FOLLOWED, "<0.0.1.0>", "<0.0.1.0>", "<0.0.2.0>", "<0.0.2.1>"),
            r"attempt 1 has stored \[0, 0\]",
        ),
        (
            rewrite(FOLLOWED, "<0.0.1.0>", "<0.0.1.1>", "<0.0.2.1>"),
            r"attempt 2 has stored \[1\]",
        ),
        (change_attempt(FOLLOWED, 1, stored=3), "was told of 3 stored tokens, of 2"),
        (change_attempt(FOLLOWED, 1, writing=0), "has stored 2, more than it wrote"),
        (
            rewrite(FOLLOWED, "<0.0.1.0>", "<0.0.1.1>", "<0.0.2.0>", "<0.1.2.1>"),
            "tokens of another message",
        ),
        (
            rewrite(FOLLOWED, "<0.0.1.0>", "<0.0.1.1>", "<0.0.2.0>", "<0.0.3.0>"),
            r"attempts \[3\] have written, and never began",
        ),
        (rewrite(FOLLOWED, "x<0.0.1.0>"), "no token begins with 'x"),
        (change_attempt(FOLLOWED, 2, shown=(1, "<0.0.1.0><0.0.1.1>")), "shown another text"),
        (change_attempt(ASKED, 2, resets=(0, 0)), "1 resets are stored, 0 to 0"),
        (change_attempt(ASKED, 2, resets=(2, 2)), "1 resets are stored, 2 to 2"),
        (change_attempt(ASKED, 2, asks=["1.0.2.1"]), "told that the calls {'1.0.2.1'}"),
        # Attempts
        (change_attempt(FOLLOWED, 2, attempt=4), "attempt 4 of 3 began"),
        (change_attempt(FOLLOWED, 1, attempt=3), "attempt 2 followed attempt 3"),
        (change_attempt(FOLLOWED, 2, how="KeyError"), "left with KeyError"),
        (change(FOLLOWED, lease__epoch=1), "attempt 2 began, of 1"),
        (change_attempt(ASKED, 1, begins=0.5), "2 messages of a in odd had workers at once, of 1"),
        (take_a_place, "places of odd are still taken"),
        (change_attempt(FOLLOWED, 1, phases=(0, 1)), "does not know what attempt 1 left"),
        (change_attempt(FOLLOWED, 1, how="suspended"), "attempt 1 suspended cost an attempt"),
        (change_attempt(FOLLOWED, 1, how="completed"), "followed attempt 1, which completed it"),
        (change(FOLLOWED, status="cancelled"), "last attempt has completed it; it is cancelled"),
        # Stops and answers
        (change(STOPPED, status="completed"), "was told cancelled; it is completed"),
        (
            change_life(FOLLOWED, stops=[StopRecord(status="streaming", epoch=2, count=4)]),
            "it was to stop, and is completed",
        ),
        (change(STOPPED, lease__epoch=2), "behind the stop attempt 2 began"),
        (
            change_life(STOPPED, stops=[StopRecord(status="cancelled", epoch=1, count=0)]),
            "behind the stop 1 chunks",
        ),
        (answer_again, r"was answered with \['7001', '8000'\]"),
        (take_answer_away, "is stored, as was said, and is not"),
        (answer_with("9"), "has the answer 9, which nobody gave"),
        (answer_with("expired"), "has expired, which it cannot"),
        (tell_both, "two were told that their answers"),
        (refuse_oddly, "met WatchError"),
        # Viewers
        (lose_an_event(FOLLOWED, 1), r"not in order: \[\(0, 2\)\]"),
        (lose_an_event(FOLLOWED, 3), "saw 3 of 4 chunks"),
        (repeat_an_event(FOLLOWED, 1), r"not in order: \[\(1, 1\)\]"),
        (see(FOLLOWED, 1, content="<0.0.1.2>"), "saw other text than is stored"),
        (see(ASKED, 1, fields={"from": 7}), "saw other parts than are stored"),
        (see(FOLLOWED, 1, content="<0.1.1.1>"), "its viewer saw tokens of another message"),
        (lose_an_event(FOLLOWED, -1), r"saw the ends \[\]"),
        (see(FOLLOWED, -1, type="message.failed"), "saw the ends .*failed"),
        (repeat_an_event(FOLLOWED, -1), "saw the ends"),
        (see(FOLLOWED, -1, chunk_count=3), "was told of 3 chunks"),
        (see(WAITING, -1, pending=[]), "while .* wait"),
        (change_viewer(FOLLOWED, gone=True), "was told that it is gone"),
        (change_viewer(DELETED, gone=False), "never came to an end"),
        # What starts over
        (do_not_void, r"attempts \[1, 2\] have written, and nothing was voided"),
        (change_life(STARTED_OVER, content="<5.0.1.0>"), r"text of attempts \[1\] is left"),
        (change(STARTED_OVER, lease__epoch=3), r"attempt 3 completed it with text of \[2\]"),
        (change_attempt(STARTED_OVER, 1, how="suspended"), "all that it asks for would be void"),
        # Transactions
        (store_an_aborted_question, r"the questions \[\(5, 0\), \(5, -1\)\] are stored"),
        (forget_a_question, r"the questions \[\] are stored"),
        (follow_wrongly(), r"conversation 0 saw the questions \[\]"),
        (follow_wrongly((5, -1), (5, 0)), r"conversation 0 saw the questions \[\(5, -1"),
        (follow_a_stranger, r"saw the messages \[\(5, -1\)\], which nobody has queued"),
        # Viewers of conversations
        (do_not_follow, "the viewer of its conversation never saw it"),
        (follow_with_a_gap, r"in its conversation, its viewer saw chunks .*\(0, 2\)"),
        (follow_without_an_end, r"in its conversation, its viewer saw the ends \[\]"),
        (follow_oddly, "the viewer of conversation 0 saw something"),
        # What processes notice
        (complain, "2 leases of a at once"),
        (come_from_nowhere, "nobody has queued message 77"),
    ],
)
def test_verdict__notices(harm: Callable[[WorkEvidence], None], words: str) -> None:
    found = evidence()
    harm(found)
    wrong = judge_work(found)
    assert any(re.search(words, each) for each in wrong), wrong


def created(life: int, **about: Any) -> dict[str, Any]:
    return {"type": "message.created", "message_id": "m", "metadata": {"life": life, **about}}


def test_follower__tells_the_lives_of_a_message_apart() -> None:
    follower = FollowerRecord(number=0)
    events = [
        {"type": "message.queued", "message_id": "n"},
        {**created(0, question=3), "message_id": "q"},
        created(0, m=3),
        {"type": "chunk.received", "message_id": "m", "sequence": 0},
        {"type": "message.queued", "message_id": "m", "cursor": None},
        created(1, m=3),
        {"type": "chunk.received", "message_id": "m", "sequence": 1},
        created(0, m=3),
    ]
    for number, event in enumerate(events[:-1]):
        follower.take({"cursor": str(number), **event})
    assert follower.cursor == "6"
    assert follower.questions == [(3, 0)]
    seen = {key: viewer.chunks for key, viewer in follower.viewers.items()}
    assert [[chunk["sequence"] for chunk in chunks] for chunks in seen.values()] == [[0], [1]]
    assert list(seen) == [(3, 0), (3, 1)]
    (before,) = follower.odd
    assert "before its message was created" in before
    follower.take({"cursor": "7", **events[-1]})
    assert "message 3.0 created twice" in follower.odd[-1]


# The observer


KEY = str(stored_key("a"))
PLACES = places_id("odd", KEY)


def stored(**fields: Any) -> dict[str, Any]:
    """A message that a worker has."""
    work = {
        "queue": "odd",
        "key": KEY,
        "limit": 1,
        "state": "running",
        "ticket": 1,
        "max_attempts": 3,
    }
    document = {
        "_id": "m",
        "status": "streaming",
        "lease": {"holder": 1, "duration": 3.0},
        "work": work | fields.pop("work", {}),
    }
    return document | fields


def taken(*tickets: int) -> list[dict[str, Any]]:
    return [{"_id": PLACES, "running": [{"ticket": ticket} for ticket in tickets]}]


def test_observer__nothing_is_wrong() -> None:
    shot = Shot.of([stored()])
    assert held_throughout(shot, taken(1), shot) == []
    assert oddities([stored()]) == []


def test_observer__two_leases_at_once() -> None:
    two = [stored(), stored(lease={"holder": 2, "duration": 3.0})]
    shot = Shot.of(two)
    assert held_throughout(shot, taken(1), shot) == [
        f"2 leases of {PLACES} at once, with a limit of 1"
    ]
    # One after the other, though each read has two.
    other = Shot.of([stored(lease={"holder": 3, "duration": 3.0}), two[1]])
    assert held_throughout(shot, taken(1), other) == []


def test_observer__too_many_places() -> None:
    shot = Shot.of([stored()])
    (wrong,) = held_throughout(shot, taken(1, 2), shot)
    assert "2 places" in wrong


def test_observer__a_place_that_is_given_back_too_early() -> None:
    shot = Shot.of([stored()])
    (wrong,) = held_throughout(shot, taken(2), shot)
    assert "holds the place 1" in wrong
    assert held_throughout(shot, taken(2), Shot.of([])) == []


HELD: dict[str, Any] = {"holder": 1, "duration": 3.0}
FREE: dict[str, Any] = {"holder": None, "duration": None}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (stored(work={"state": "queued", "due": 1}), "queued, with a holder: True"),
        (stored(lease=FREE), "running, with a holder: False"),
        (stored(lease={"holder": None, "duration": 3.0}), "running, with a lease of 3.0 s"),
        (
            stored(lease=FREE, work={"state": "queued", "due": 1}, stop_requested_at=1),
            "is to stop, and nobody has it",
        ),
        (stored(work={"due": 1}), "running, and due at 1"),
        (stored(lease=FREE, work={"state": "queued"}), "queued, and due at None"),
        (stored(work={"state": None}), "without a state"),
        (stored(lease=FREE, work={"state": "waiting"}), "waits for nobody"),
        (stored(lease=FREE, work={"state": "delayed", "due": 1}), "delayed, and has the ticket 1"),
        (stored(work={"crashes": 2, "retries": 1}), "streams after 2 crashes, 1 retries"),
        (stored(status="completed"), "has ended, and still has"),
    ],
)
def test_observer__what_no_document_may_say(document: dict[str, Any], words: str) -> None:
    assert any(words in wrong for wrong in oddities([document])), oddities([document])
