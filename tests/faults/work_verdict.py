"""The verdict on a run of workers: what all processes were told, against what is stored."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from converse_mongo.domain.open_calls import EXPIRED
from converse_mongo.domain.part_log import PartLog
from tests.faults.work_records import FollowerRecord, LifeRecord, WorkEvidence, WorkViewerRecord

__all__ = ["REASON", "UNFINISHED", "judge_work", "work_tokens_of"]

REASON = "enough"
"""The reason of every stop that is requested."""

_TOKEN = re.compile(r"<(\d+)\.(\d+)\.(\d+)\.(\d+)·*>")
_INTERRUPTED = re.compile(r"interrupted in attempt (\d+) of (\d+)")

Token = tuple[int, int, int, int]
"""The number of a message, that of its life, the epoch of the attempt, the number of the token."""

UNFINISHED = "The answer could not be generated."
OUTAGES = ("WriterFailedError", "StoreUnavailableError")
BUSY, PLANNED, SILENT = "the provider is busy", "no such model", "The answer made no progress."

LEAVES = {
    *("completed", "suspended", "detached", "Retry", "ValueError", "CancelledError"),
    *(
        "StreamStoppedError",
        "WriterFencedError",
        "MessageNotStreamingError",
        "MessageNotFoundError",
    ),
    *("WriterFailedError", "StoreUnavailableError", "ConverseClosedError"),
}
"""How an attempt may end."""


def judge_work(evidence: WorkEvidence) -> list[str]:
    """Everything that is wrong; nothing, where all promises were kept."""
    wrong = list(evidence.complaints)
    wrong += [f"nobody has queued message {stranger}" for stranger in evidence.strangers]
    for life in evidence.lives:
        found = [*_end(life), *_attempts(life), *_viewer(life)]
        if life.document is not None:
            found += [*_tokens(life), *_text(life), *_stops(life), *_answers(life)]
            if life.plan.style == "start_over":
                found += _started_over(life)
        if evidence.followers:
            found += _followed(life, evidence.followers[life.plan.conversation])
        wrong += [f"{life.name}: {each}" for each in found]
    wrong += _questions(evidence)
    wrong += _limits(evidence.lives)
    wrong += [
        f"places of {each['_id']} are still taken: {each['running']}"
        for each in evidence.places
        if each.get("running")
    ]
    return wrong


def work_tokens_of(content: str) -> list[Token]:
    """The tokens that a text consists of; nothing may be between."""
    found, end = [], 0
    for match in _TOKEN.finditer(content):
        if match.start() != end:
            break
        found.append((int(match[1]), int(match[2]), int(match[3]), int(match[4])))
        end = match.end()
    if end != len(content):
        raise ValueError(f"no token begins with {content[end : end + 20]!r}")
    return found


def _tokens_in(chunks: Iterable[dict[str, Any]]) -> list[Token]:
    return [token for chunk in chunks for token in work_tokens_of(chunk["content"])]


# How it ended


def _end(life: LifeRecord) -> Iterator[str]:
    document = life.document
    if document is None:
        if not life.delete_begun:
            yield "it is gone, and nobody has deleted it"
        return
    if life.deleted:
        yield "it was deleted, and is still there"
    work, error = document["work"], document.get("error")
    status, at = document["status"], (work.get("crashes", 0), work.get("retries", 0))
    is_crash = bool(error and _INTERRUPTED.fullmatch(error))
    if sum(at) + (not is_crash) > work["max_attempts"]:
        yield f"{at} crashes and retries are more than {work['max_attempts']} attempts"
    if status == "streaming":
        if not life.waits_rightly:
            yield f"it never ended: it is {work.get('state')}, pending {work.get('pending')}"
        return
    if "state" in work:
        yield f"it has ended, and is {work['state']}"
    if status == "completed":
        yield from _completed(life)
    elif status == "cancelled":
        if not life.stop_begun:
            yield "cancelled, and nobody had asked for a stop"
        elif document.get("stop_reason") != REASON:
            yield f"cancelled for the reason {document.get('stop_reason')}"
    elif is_crash:
        if sum(at) != work["max_attempts"]:
            yield f"{error}, with {at} crashes and retries"
    elif error == SILENT:
        if sum(at) + 1 != work["max_attempts"]:
            yield f"failed as silent, with {at} crashes and retries"
    elif error == UNFINISHED:
        last = life.attempts.get(document["lease"]["epoch"])
        if last is not None and last.how not in OUTAGES:
            yield f"failed though its last attempt left with {last.how}"
        if sum(at) + 1 != work["max_attempts"]:
            yield f"failed after an outage, with {at} crashes and retries"
    elif error == BUSY:
        if not life.plan.retries or sum(at) + 1 != work["max_attempts"]:
            yield f"gave up retries, with {at} crashes and retries"
    elif error != PLANNED or not life.plan.fails:
        yield f"failed with the error {error}"


def _completed(life: LifeRecord) -> Iterator[str]:
    plan = life.plan
    if plan.fails:
        yield "completed, though its attempts fail"
    written = len(_TOKEN.findall(life.content))
    least = plan.phases[-1].tokens if plan.style == "reset" else plan.tokens
    if not least <= written <= plan.tokens:
        yield f"completed with {written} tokens of {plan.tokens}"


# What is stored


def _tokens(life: LifeRecord) -> Iterator[str]:
    sequences = [chunk["sequence"] for chunk in life.chunks]
    if sequences != list(range(len(sequences))):
        yield f"{len(sequences)} chunks have the sequences {sequences}"
    assert life.document is not None
    if life.document["next_sequence"] != len(sequences):
        yield f"next_sequence is {life.document['next_sequence']} with {len(sequences)} chunks"
    try:
        tokens = _tokens_in(life.chunks)
    except ValueError as error:
        yield str(error)
        return
    if any(token[:2] != (life.plan.number, life.life) for token in tokens):
        yield "it has tokens of another message"
        return
    marks = [mark for chunk in life.chunks for mark in _marks(chunk)]
    if odd := [pair for pair in pairwise(marks) if pair[0] > pair[1]]:
        yield f"an attempt has written behind its successor: {odd}"
    if strange := {*marks} - {*life.attempts}:
        yield f"attempts {sorted(strange)} have written, and never began"
    for epoch, attempt in life.attempts.items():
        numbers = [number for *_, by, number in tokens if by == epoch]
        if numbers != list(range(len(numbers))):
            yield f"attempt {epoch} has stored {numbers}"
        if len(numbers) < attempt.stored:
            yield f"attempt {epoch} was told of {attempt.stored} stored tokens, of {len(numbers)}"
        if len(numbers) > attempt.writing + 1:
            yield f"attempt {epoch} has stored {len(numbers)}, more than it wrote"


def _started_over(life: LifeRecord) -> Iterator[str]:
    """What is wrong where the library voids what is stored before each further attempt."""
    writers: set[int] = set()
    for chunk in life.chunks:
        if chunk.get("event") == "reset":
            writers = set()
        writers |= {*_marks(chunk)}
        if len(writers) > 1:
            yield f"attempts {sorted(writers)} have written, and nothing was voided in between"
            return
    if left := {*_epochs(life.content)} - writers:
        yield f"text of attempts {sorted(left)} is left, which is void"
    assert life.document is not None
    last = life.document["lease"]["epoch"]
    if life.document["status"] == "completed" and writers != {last}:
        yield f"attempt {last} completed it with text of {sorted(writers)}"
    if any(attempt.how == "suspended" for attempt in life.attempts.values()):
        yield "it was suspended, though all that it asks for would be void"


def _epochs(content: str) -> list[int]:
    return [epoch for *_, epoch, _ in work_tokens_of(content)]


def _marks(chunk: dict[str, Any]) -> list[int]:
    """The epochs of the attempts that wrote a chunk, as far as it tells."""
    if chunk.get("event") == "start":
        call = chunk["fields"].get("call_id")
        return [int(call.split(".")[2])] if call else []
    return _epochs(chunk["content"])


def _text(life: LifeRecord) -> Iterator[str]:
    log = PartLog.of(life.chunks)
    assert life.document is not None
    if log.text() != life.content:
        yield "the text is not that of the chunks"
    if life.document["status"] != "streaming":
        stored = life.document.get("content")
        if stored not in (log.text(), "", None):
            yield "the stored text is not that of the chunks"
    resets = sum(chunk.get("event") == "reset" for chunk in life.chunks)
    least = sum(attempt.resets[1] for attempt in life.attempts.values())
    most = sum(attempt.resets[0] for attempt in life.attempts.values())
    if not least <= resets <= most:
        yield f"{resets} resets are stored, {least} to {most} were made"
    for epoch, attempt in life.attempts.items():
        count, content = attempt.shown
        if PartLog.of(life.chunks[:count]).text() != content:
            yield f"attempt {epoch} was shown another text than was stored"
        ids = {chunk["fields"].get("call_id") for chunk in life.chunks if "fields" in chunk}
        if lost := {*attempt.asks} - ids:
            yield f"attempt {epoch} was told that the calls {lost} are stored"


# Who wrote


def _attempts(life: LifeRecord) -> Iterator[str]:
    attempts = [life.attempts[epoch] for epoch in sorted(life.attempts)]
    for attempt in attempts:
        if attempt.attempt > life.plan.max_attempts:
            yield f"attempt {attempt.attempt} of {life.plan.max_attempts} began"
        if attempt.how is not None and attempt.how not in LEAVES:
            yield f"attempt {attempt.epoch} left with {attempt.how}"
    for one, other in pairwise(attempts):
        if one.attempt > other.attempt:
            yield f"attempt {other.attempt} followed attempt {one.attempt}"
        if one.phases[1] > other.phases[0]:
            yield f"attempt {other.epoch} does not know what attempt {one.epoch} left to it"
        follows = one.epoch + 1 == other.epoch
        if follows and one.how in ("suspended", "detached") and one.attempt != other.attempt:
            yield f"that attempt {one.epoch} {one.how} cost an attempt"
        if one.how == "completed":
            yield f"attempt {other.epoch} followed attempt {one.epoch}, which completed it"
    if life.document is None or not attempts:
        return
    status = life.document["status"]
    if attempts[-1].how == "completed" and status != "completed" and not life.stop_begun:
        yield f"its last attempt has completed it; it is {status}"
    epoch = (life.document.get("lease") or {}).get("epoch", 0)
    if attempts[-1].epoch > epoch:
        yield f"attempt {attempts[-1].epoch} began, of {epoch}"


def _limits(lives: Sequence[LifeRecord]) -> Iterator[str]:
    """Who had leases of a key at once, for certain: from a claim's answer to a stored token."""
    keys: dict[tuple[str, str, int], list[tuple[float, int]]] = {}
    for life in lives:
        plan = life.plan
        if plan.key is None or plan.limit is None:
            continue
        moments = keys.setdefault((plan.queue, plan.key, plan.limit), [])
        for attempt in life.attempts.values():
            if attempt.held_until is not None and attempt.held_until > attempt.begins:
                moments += [(attempt.begins, 1), (attempt.held_until, -1)]
    for (queue, key, limit), moments in keys.items():
        count = most = 0
        for _, step in sorted(moments):
            count += step
            most = max(most, count)
        if most > limit:
            yield f"{most} messages of {key} in {queue} had workers at once, of {limit}"


# Stops and answers


def _stops(life: LifeRecord) -> Iterator[str]:
    document = life.document
    assert document is not None
    for stop in life.stops:
        if stop.status == "streaming":
            if document["status"] != "cancelled":
                yield f"it was to stop, and is {document['status']}"
            continue
        if document["status"] != stop.status:
            yield f"whoever stopped it was told {stop.status}; it is {document['status']}"
        epoch = (document.get("lease") or {}).get("epoch", 0)
        if epoch != stop.epoch:
            yield f"behind the stop attempt {epoch} began"
        if document["next_sequence"] != stop.count:
            yield f"behind the stop {document['next_sequence'] - stop.count} chunks were stored"


def _answers(life: LifeRecord) -> Iterator[str]:
    calls: dict[int, str] = {}
    given: dict[str, list[Any]] = {}
    for chunk in life.chunks:
        fields = chunk.get("fields") or {}
        if chunk.get("event") == "start" and "call_id" in fields:
            calls[chunk["sequence"]] = fields["call_id"]
        elif chunk.get("part") in calls and (value := _answer_in(fields)) is not None:
            given.setdefault(calls[chunk["part"]], []).append(value)
    for call, values in given.items():
        if len(values) > 1:
            yield f"call {call} was answered with {values}"
        known = [str(answer.value) for answer in life.answers if answer.call == call]
        if values[0] == EXPIRED:
            if life.plan.phase_of(call).expires is None:
                yield f"call {call} has expired, which it cannot"
        elif values[0] not in known:
            yield f"call {call} has the answer {values[0]}, which nobody gave"
    for answer in life.answers:
        if answer.result == "stored" and str(answer.value) not in given.get(answer.call, ()):
            yield f"the answer {answer.value} to {answer.call} is stored, as was said, and is not"
        if answer.result not in ANSWERS:
            yield f"the answer {answer.value} to {answer.call} met {answer.result}"
    taken = [answer.call for answer in life.answers if answer.result == "stored"]
    if twice := sorted({call for call in taken if taken.count(call) > 1}):
        yield f"two were told that their answers to {twice} are stored"


ANSWERS = {
    *("stored", "CallNotPendingError", "StreamStoppedError", "MessageNotStreamingError"),
    "MessageNotFoundError",
}
"""What may become of an answer."""


def _answer_in(fields: dict[str, Any]) -> str | None:
    approval = fields.get("approval")
    if isinstance(approval, dict) and approval.get("approved") is not None:
        return str(approval.get("reason"))
    for name in ("output", "error"):
        if name in fields:
            return str(fields[name])
    return None


# What was shown


def _questions(evidence: WorkEvidence) -> Iterator[str]:
    """What is wrong with what was stored in one transaction with a message."""
    asked = [life for life in evidence.lives if life.plan.question]
    expected = {(life.plan.number, life.life) for life in asked}
    if sorted(evidence.questions) != sorted(expected):
        yield f"the questions {evidence.questions} are stored, of {sorted(expected)}"
    for follower in evidence.followers:
        who = f"the viewer of conversation {follower.number}"
        yield from (f"{who} {odd}" for odd in follower.odd)
        own = [
            (life.plan.number, life.life)
            for life in asked
            if life.plan.conversation == follower.number
        ]
        if sorted(follower.questions) != sorted(own):
            yield f"{who} saw the questions {follower.questions}, of {own}"
        known = {(life.plan.number, life.life) for life in evidence.lives}
        if strange := follower.viewers.keys() - known:
            yield f"{who} saw the messages {sorted(strange)}, which nobody has queued"


def _viewer(life: LifeRecord) -> Iterator[str]:
    viewer = life.viewer
    yield from _shown(life, viewer)
    if life.document is None and not (viewer.gone or viewer.has_ended):
        yield "its viewer never came to an end"
    elif life.document is not None and viewer.gone and not life.delete_begun:
        yield "its viewer was told that it is gone"


def _followed(life: LifeRecord, follower: FollowerRecord) -> Iterator[str]:
    viewer = follower.viewers.get((life.plan.number, life.life))
    if viewer is not None:
        yield from (f"in its conversation, {wrong}" for wrong in _shown(life, viewer))
    elif life.document is not None:
        yield "the viewer of its conversation never saw it"


def _shown(life: LifeRecord, viewer: WorkViewerRecord) -> Iterator[str]:
    document, chunks = life.document, viewer.chunks
    sequences = [chunk["sequence"] for chunk in chunks]
    if sequences != list(range(len(sequences))):
        odd = [pair for pair in pairwise([-1, *sequences]) if pair[1] != pair[0] + 1]
        yield f"its viewer saw chunks that are not in order: {odd}"
        return
    marks = [mark for chunk in chunks for mark in _TOKEN.findall(chunk["content"])]
    if any((int(number), int(of)) != (life.plan.number, life.life) for number, of, *_ in marks):
        yield "its viewer saw tokens of another message"
    if document is None:
        return
    if len(chunks) != len(life.chunks):
        yield f"its viewer saw {len(chunks)} of {len(life.chunks)} chunks"
    elif [c["content"] for c in chunks] != [c["content"] for c in life.chunks]:
        yield "its viewer saw other text than is stored"
    elif PartLog.of(chunks).snapshot() != PartLog.of(life.chunks).snapshot():
        yield "its viewer saw other parts than are stored"
    elif PartLog.of(chunks).text() != life.content:
        yield "its viewer has another text than a reader"
    ends = [event for event in viewer.events if "chunk_count" in event]
    if document["status"] == "streaming":
        if ends:
            yield f"its viewer saw the ends {ends}"
        works = [event for event in viewer.events if "attempt" in event]
        pending = [call["call_id"] for call in document["work"].get("pending") or []]
        if not works or works[-1].get("pending") != pending:
            yield f"its viewer was told {works[-1:]}, while {pending} wait"
    elif [event["type"] for event in ends] != [f"message.{document['status']}"]:
        yield f"its viewer saw the ends {ends}"
    elif not viewer.has_ended:
        yield "its viewer saw more behind the end"
    elif ends[0]["chunk_count"] != len(life.chunks):
        yield f"its viewer was told of {ends[0]['chunk_count']} chunks"
