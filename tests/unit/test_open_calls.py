"""Open calls: what waits for people, behind any log; and what an append says of it."""

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo import ToolCallPart
from converse_mongo.domain import open_calls
from converse_mongo.domain.composing import Composer
from converse_mongo.domain.errors import InvalidInputError
from converse_mongo.domain.open_calls import closed_by, expire_at, first_expiry, may_change_more
from converse_mongo.domain.part_log import TOOL_CALL, PartLog
from converse_mongo.domain.part_pieces import AnyPiece, PartPiece, PartRef, numbered
from converse_mongo.domain.parts import Executor
from converse_mongo.domain.work import PendingCall

AT = datetime(2026, 1, 1, tzinfo=UTC)
ASKED = {"id": "a"}


def log_of(*pieces: AnyPiece) -> PartLog:
    return PartLog.of([chunk.to_stored() for chunk in numbered(pieces, 0, AT, ObjectId())])


@pytest.mark.parametrize(
    ("executor", "fields", "wanted"),
    [
        ("server", {"input": 1}, None),
        ("server", {"input": 1, "approval": ASKED}, "approval"),
        ("server", {"approval": {**ASKED, "approved": None}}, "approval"),
        ("server", {"approval": {**ASKED, "approved": True}}, None),
        ("server", {"approval": {**ASKED, "approved": False}}, None),
        ("server", {"approval": ASKED, "started": True}, None),
        ("server", {"approval": ASKED, "output": 1}, None),
        ("provider", {"input": 1}, None),
        ("client", {}, None),
        ("client", {"input": None}, "output"),
        ("client", {"input": 1, "started": True}, "output"),
        ("client", {"input": 1, "approval": ASKED}, "approval"),
        ("client", {"input": 1, "approval": {**ASKED, "approved": True}}, "output"),
        ("client", {"input": 1, "approval": {**ASKED, "approved": False}}, None),
        ("client", {"input": 1, "output": None}, None),
        ("client", {"input": 1, "output": 1, "preliminary": True}, "output"),
        ("client", {"input": 1, "error": "e"}, None),
    ],
)
def test_open__is_a_call_that_waits_for_people(
    executor: Executor, fields: dict[str, Any], wanted: str | None
) -> None:
    _, pieces = Composer().start(ToolCallPart("t", "c", executor=executor, **fields))
    found = open_calls.open_calls(log_of(*pieces))
    assert [each.wanted for each in found] == ([wanted] if wanted else [])
    for each in found:
        assert (each.part, each.call_id) == (0, "c")
        assert each.approval_id == ("a" if wanted == "approval" else None)


def test_open__keeps_when_it_expires_while_it_waits_for_the_same() -> None:
    composer = Composer()
    ref, pieces = composer.start(ToolCallPart("t", "c", executor="client", approval=ASKED))
    log = log_of(*pieces)
    known = expire_at(open_calls.open_calls(log), AT)
    assert first_expiry(known) == AT
    assert open_calls.open_calls(log, known) == known
    assert expire_at(known, AT + timedelta(1)) == known
    approved = {"approval": {**ASKED, "approved": True}, "input": 1}
    log = log_of(*pieces, composer.change(ref, "set", approved))
    [call] = open_calls.open_calls(log, known)
    assert (call.wanted, call.expires_at) == ("output", None)


def pieces_at(random: Random, log: PartLog, refs: list[PartRef]) -> list[AnyPiece]:
    """Some pieces that a writer could append, with references as it has them."""
    pieces: list[AnyPiece] = []
    for _ in range(random.randint(1, 3)):
        fields: dict[str, Any] = {}
        for name, values in FIELDS.items():
            if random.random() < 0.25:
                fields[name] = random.choice(values)
        kind = random.choice(["start", "start", "set", "set", "set", "end", "redact", "reset"])
        ref = random.choice(refs) if refs else None
        if kind == "start":
            composer = Composer()
            executor: Executor = random.choice(["server", "client"])
            ref, begun = composer.start(ToolCallPart("t", "c", executor=executor, **fields))
            refs.append(ref)
            pieces += begun
        elif kind == "reset":
            pieces.append(PartPiece("reset", fields={"from": random.randint(0, log.next_sequence)}))
        elif ref is not None:
            if random.random() < 0.3 and ref.number is not None:
                ref = PartRef(random.choice([None, TOOL_CALL]), ref.number)  # of somebody else
            pieces.append(PartPiece(kind, ref, {} if kind == "redact" else fields))
    return pieces


FIELDS: dict[str, list[Any]] = {
    "input": [1],
    "output": [1],
    "error": ["e"],
    "preliminary": [True, False],
    "started": [True, False],
    "approval": [{"id": i, "approved": a} for i in "ab" for a in (None, True, False, "odd")],
}


def test_append__says_what_waits_behind_it() -> None:
    read = told = 0
    for seed in range(1000):
        random = Random(seed)
        log, refs = PartLog(), list[PartRef]()
        pending: list[PendingCall] = []
        for _ in range(6):
            pieces = pieces_at(random, log, refs)
            chunks = numbered(pieces, log.next_sequence, AT, ObjectId())
            for piece, chunk in zip(pieces, chunks, strict=True):
                log.add(chunk)
                if isinstance(piece, PartPiece) and piece.marks is not None:
                    piece.marks.number = chunk.sequence
            now = open_calls.open_calls(log)
            if may_change_more(pieces):
                read += 1
            else:
                told += 1
                closed = closed_by(chunks)
                assert [each for each in pending if each.part not in closed] == now, seed
            pending = now
    assert read
    assert told


def test_append__of_what_tools_of_the_server_do_is_not_looked_up() -> None:
    composer = Composer()
    ref, pieces = composer.start(ToolCallPart("t", "c"))
    for fields in ({"input": 1}, {"started": True}, {"output": 1, "preliminary": True}):
        pieces.append(composer.change(ref, "set", fields))
    pieces.append(composer.change(ref, "set", {"approval": {"id": "a", "approved": True}}))
    pieces.append(composer.change(ref, "set", {"output": 1}))
    assert not may_change_more(pieces)


def test_answer__sets_what_the_call_waits_for() -> None:
    call = PendingCall(part=3, call_id="c", wanted="approval", approval_id="a")
    piece = open_calls.piece_of(open_calls.approval("c", approved=True, reason="r"), call)
    assert piece.fields == {"approval": {"id": "a", "approved": True, "reason": "r"}}
    assert (piece.event, piece.part and piece.part.number) == ("set", 3)
    denied = open_calls.piece_of(open_calls.expiry(call), call)
    assert denied.fields["approval"] == {"id": "a", "approved": False, "reason": "expired"}
    call = PendingCall(part=3, call_id="c", wanted="output")
    assert open_calls.piece_of(open_calls.output("c", 5), call).fields == {"output": 5}
    assert open_calls.piece_of(open_calls.failure("c", "e"), call).fields == {"error": "e"}
    assert open_calls.piece_of(open_calls.expiry(call), call).fields == {"error": "expired"}
    with pytest.raises(InvalidInputError, match="approved must be True or False"):
        open_calls.approval("c", approved="yes")
    with pytest.raises(InvalidInputError):
        open_calls.piece_of(open_calls.output("c", object()), call)
