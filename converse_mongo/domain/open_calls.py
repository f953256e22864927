"""Open calls: the tool calls of a message that wait for people, and the answers that they get.

A call waits for an approval that was requested and not given, or for the output of a tool that the
browser runs. A message that was queued stores which of its calls are open, from the append on that
opens them, so that one write can answer them and have the message go on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from converse_mongo.domain.chunks import MessageChunk, PartChunk
from converse_mongo.domain.composing import Composer
from converse_mongo.domain.errors import InvalidInputError
from converse_mongo.domain.part_log import TOOL_CALL, PartLog, has_outcome
from converse_mongo.domain.part_pieces import AnyPiece, PartPiece
from converse_mongo.domain.parts import Approval, ToolCallPart
from converse_mongo.domain.validation import MAX_CHUNK_BYTES, check_content, check_reason
from converse_mongo.domain.work import PendingCall, Wanted

EXPIRED = "expired"
"""The reason of a denial, and the error of an output, that came from nobody in time."""

CLIENT = "client"


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """An answer to a tool call that waits.

    Attributes:
        call_id: The id of the call.
        wanted: What the call is expected to wait for.
        fields: The fields to set; of an approval ``approved`` and, if there is one, ``reason``.
    """

    call_id: str
    wanted: Wanted
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """The output of a tool that the browser, or somebody else, has run; or its error.

    Attributes:
        call_id: The id of the call.
        output: The output, a value that BSON can hold.
        error: The error in place of an output.
    """

    call_id: str
    output: Any = field(default=None, hash=False)
    error: str | None = None


def answer_of(given: object) -> CallAnswer:
    """Returns the answer that an application gives.

    Raises:
        InvalidInputError: It is none, or cannot be stored.
    """
    if isinstance(given, Approval):
        return approval(given.id, given.approved, given.reason)
    if isinstance(given, ToolOutput):
        if given.error is not None:
            return failure(given.call_id, given.error)
        return output(given.call_id, given.output)
    raise InvalidInputError(
        f"Answer a tool call with an Approval or a ToolOutput, not {type(given).__name__}. "
        "Nothing was written."
    )


def approval(call_id: str, approved: object, reason: str | None = None) -> CallAnswer:
    """Makes the answer to a request for an approval.

    Raises:
        InvalidInputError: It is neither true nor false, or the reason cannot be stored.
    """
    if not isinstance(approved, bool):
        raise InvalidInputError(
            f"approved must be True or False, got {approved!r}. Nothing was written."
        )
    given = {} if check_reason(reason) is None else {"reason": reason}
    return CallAnswer(call_id, "approval", {"approved": approved, **given})


def output(call_id: str, value: Any) -> CallAnswer:
    """Makes the answer with the output of a tool."""
    return CallAnswer(call_id, "output", {"output": value})


def failure(call_id: str, error: str) -> CallAnswer:
    """Makes the answer with the error of a tool.

    Raises:
        InvalidInputError: The error cannot be stored.
    """
    check_content(error, MAX_CHUNK_BYTES)
    return CallAnswer(call_id, "output", {"error": error})


def expiry(call: PendingCall) -> CallAnswer:
    """Makes the answer to a call that nobody has answered in time."""
    if call.wanted == "approval":
        return approval(call.call_id, approved=False, reason=EXPIRED)
    return failure(call.call_id, EXPIRED)


def piece_of(answer: CallAnswer, call: PendingCall) -> PartPiece:
    """Returns the piece that answers a call.

    Raises:
        InvalidInputError: The answer cannot be stored.
    """
    fields = answer.fields
    if call.wanted == "approval":
        fields = {"approval": {"id": call.approval_id, **fields}}
    composer = Composer()
    ref = composer.continued(call.part)
    ref.has_input = True  # else nobody could answer it
    return composer.change(ref, "set", fields)


# What is open


def wanted_by(call: ToolCallPart) -> Wanted | None:
    """Returns what a call waits for; ``None`` if it waits for nobody."""
    request = call.approval
    if has_outcome(call.fields) or call.redacted or (request and request.approved is False):
        return None
    if request is not None and request.approved is None and not call.started:
        return "approval"
    return "output" if call.executor == CLIENT and "input" in call.fields else None


def open_calls(log: PartLog, known: Iterable[PendingCall] = ()) -> list[PendingCall]:
    """Returns the calls of a log that wait, in order.

    Args:
        log: The parts of a message.
        known: The calls that were open before: those that still are expire when they did.
    """
    expiries = {_identity(each): each.expires_at for each in known}
    found: list[PendingCall] = []
    for record in log.records():
        if record["kind"] != TOOL_CALL:
            continue
        call = ToolCallPart.from_record(record, ended=False)
        wanted = wanted_by(call)
        if wanted is None:
            continue
        request = call.approval if wanted == "approval" else None
        opened = PendingCall(
            part=record["part"],
            call_id=call.call_id,
            wanted=wanted,
            approval_id=request and request.id,
        )
        expires_at = expiries.get(_identity(opened))
        found.append(opened.model_copy(update={"expires_at": expires_at}))
    return found


def _identity(call: PendingCall) -> tuple[int, Wanted, str | None]:
    return call.part, call.wanted, call.approval_id


def expire_at(calls: Iterable[PendingCall], moment: datetime | None) -> list[PendingCall]:
    """Returns calls that expire at a moment, unless they do so at another already."""
    return [
        each if each.expires_at or not moment else each.model_copy(update={"expires_at": moment})
        for each in calls
    ]


def first_expiry(calls: Iterable[PendingCall]) -> datetime | None:
    """Returns when the first of some calls expires; ``None`` for never."""
    return min([each.expires_at for each in calls if each.expires_at], default=None)


# What an append does to them


def may_change_more(pieces: Iterable[AnyPiece]) -> bool:
    """Returns whether an append may open calls, or void some: then only its log tells."""
    return any(isinstance(piece, PartPiece) and _may_change_more(piece) for piece in pieces)


def _may_change_more(piece: PartPiece) -> bool:
    fields, names = piece.fields, piece.fields.keys() | piece.values.keys()
    if piece.event == "start":
        if fields.get("kind") != TOOL_CALL:
            return False
        is_clients = fields.get("executor") == CLIENT
    elif piece.event in ("set", "end") and piece.part is not None:
        if piece.part.kind not in (TOOL_CALL, None):
            return False
        if "executor" in names or fields.get("started", True) is not True:
            return True
        is_clients = piece.part.is_clients is not False
    else:
        return piece.event == "reset"
    request = fields.get("approval")
    if isinstance(request, Mapping) and not isinstance(request.get("approved"), bool):
        return True
    return is_clients and not names.isdisjoint(("approval", "input", "started"))


def closed_by(chunks: Iterable[MessageChunk]) -> list[int]:
    """Returns parts, by their numbers, that wait for nobody behind an append.

    It is all that an append does to what waits, unless it :func:`may_change_more`.
    """
    return [
        each.part
        for each in chunks
        if isinstance(each, PartChunk) and each.part is not None and _closes(each)
    ]


def _closes(chunk: PartChunk) -> bool:
    if chunk.event == "redact":
        return True
    if chunk.event not in ("set", "end"):
        return False
    names = chunk.fields.keys() | chunk.values.keys()
    if {"output", "error"} & names:
        return chunk.fields.get("preliminary") is not True
    request = chunk.fields.get("approval")
    if isinstance(request, Mapping):
        return isinstance(request.get("approved"), bool)
    return chunk.fields.get("started") is True
