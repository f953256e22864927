"""What a page of the AI SDK says of tool calls: the answers that it means, and no more.

A page sends the assistant's message as it has it. Only answers to calls that wait in the database
are read from it; the rest is the client's copy.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from converse_mongo.domain.part_log import TOOL_CALL, PartLog, Record, part_number
from converse_mongo.domain.stored_values import StoredValue
from converse_mongo.domain.work import PendingCall
from converse_mongo.web.errors import RequestError


class Said(NamedTuple):
    """What a page says of a call.

    Attributes:
        approval_id: The id of the request that it answers; ``None`` if it answers none.
        approved: The answer.
        reason: The reason of the answer.
        has_output: Whether it has an output.
        output: The output.
        error: The error in place of an output.
    """

    approval_id: str | None = None
    approved: bool = False
    reason: str | None = None
    has_output: bool = False
    output: Any = None
    error: str | None = None


def said_of_calls(message: Mapping[str, Any], names: Mapping[int, str]) -> dict[int, Said]:
    """Returns what a UI message says of its tool calls, by their numbers.

    Args:
        message: The UI message.
        names: The ids on the page of the calls that it shows, by their numbers.

    Raises:
        RequestError: It has no parts.
    """
    parts = message.get("parts")
    if not isinstance(parts, list):
        raise RequestError(detail="messages: The last one has no parts.")
    said = {part["toolCallId"]: _said(part) for part in parts if _is_call(part)}
    return {number: said[name] for number, name in names.items() if name in said}


def _is_call(part: Any) -> bool:
    if not isinstance(part, dict) or not isinstance(part.get("toolCallId"), str):
        return False
    kind = part.get("type")
    return isinstance(kind, str) and (kind.startswith("tool-") or kind == "dynamic-tool")


def _said(part: Mapping[str, Any]) -> Said:
    state, approval = part.get("state"), part.get("approval")
    found = Said()
    if isinstance(approval, dict) and isinstance(approval.get("id"), str):
        approved, reason = approval.get("approved"), approval.get("reason")
        if isinstance(approved, bool):
            found = Said(
                approval["id"],
                approved,
                reason if isinstance(reason, str) and reason.strip() else None,
            )
    if state == "output-available" and part.get("preliminary") is not True:
        return found._replace(has_output=True, output=part.get("output"))
    if state == "output-error" and isinstance(part.get("errorText"), str):
        return found._replace(error=part["errorText"])
    return found


def answers_to(
    pending: Iterable[PendingCall], said: Mapping[int, Said]
) -> Iterator[dict[str, Any]]:
    """Yields the bodies of the answers to calls that wait, of what a page says."""
    for call in pending:
        found = said.get(call.part)
        if found is None:
            continue
        if call.wanted == "approval":
            if found.approval_id == call.approval_id is not None:
                body = {"call_id": call.call_id, "approved": found.approved}
                yield body if found.reason is None else {**body, "reason": found.reason}
        elif found.error is not None:
            yield {"call_id": call.call_id, "error": found.error}
        elif found.has_output:
            yield {"call_id": call.call_id, "output": found.output}


def answered_at(chunks: Iterable[Mapping[str, Any]], said: Mapping[int, Said]) -> int | None:
    """Returns where the answers were stored that a page repeats: the sequence of the first of them.

    Args:
        chunks: The chunks of the message, as they are stored.
        said: What the page says.

    Returns:
        ``None`` if it says nothing that people have answered, or something else than they did.
    """
    log, begun, found = PartLog(), 0, None
    for chunk in chunks:
        if "append_id" in chunk:
            begun = chunk["sequence"]
        number = part_number(chunk.get("part"))
        before = None if number is None else log.record(number)
        log.add(chunk)
        if before is None or before["kind"] != TOOL_CALL or chunk.get("event") != "set":
            continue
        same = _repeats(before, log.counted, said.get(before["part"]))
        if same is False:
            return None
        if same:
            found = begun
    return found


def _repeats(before: Record, counted: Mapping[str, Any], found: Said | None) -> bool | None:
    """Whether a page repeats an answer; ``None`` if it says nothing of that, or that is none."""
    if found is None:
        return None
    approval = counted.get("approval")
    if isinstance(approval, Mapping) and isinstance(approval.get("approved"), bool):
        if approval.get("automatic") is True or found.approval_id != approval.get("id"):
            return None
        return bool(found.approved == approval["approved"])
    if before["fields"].get("executor") != "client" or not counted.keys() & {"output", "error"}:
        return None
    if "error" in counted:
        return bool(found.error == counted["error"])
    if not found.has_output:
        return None
    stored = counted["output"]
    return isinstance(stored, StoredValue) or bool(found.output == stored)
