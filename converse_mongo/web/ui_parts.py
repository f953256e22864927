"""Parts of messages as the AI SDK's UI messages have them.

Source: ``ui-messages.ts`` of npm's ``ai`` 7.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from converse_mongo.domain.part_identity import HIDDEN
from converse_mongo.domain.part_log import (
    DATA,
    REASONING,
    STEP,
    TEXT,
    TOOL_CALL,
    Record,
    has_outcome,
)
from converse_mongo.web.files import FILES

UiPart: TypeAlias = dict[str, Any]

INTERRUPTED = "The tool call was interrupted."
"""The error of a call whose message ended first: the SDK has no state for that."""
REDACTED = "The tool call was redacted."

MAX_AGENTS = 16
"""The most sub-agents, one in the other, that are shown. MongoDB holds more nested values than some
parsers of JSON."""

_MAX_CUSTOM = 200
_OWN = "converse"
_NO_OUTPUTS: Mapping[int, UiPart] = MappingProxyType({})


def ui_parts(
    records: Iterable[Record],
    *,
    ended: bool,
    of_user: bool = False,
    files: str = "",
    outputs: Mapping[int, UiPart] = _NO_OUTPUTS,
) -> list[UiPart]:
    """Returns the parts of a UI message.

    Args:
        records: The records of the message, as browsers see them.
        ended: Whether the message has ended.
        of_user: Whether a user sent it. Then files come first, with their names, as the SDK sends
            them; in the stream of an answer files have no names.
        files: The path of large files: the number of the part comes behind it.
        outputs: The messages of sub-agents at work, by the numbers of their calls.
    """
    names = CallNames()
    found = [
        _part_of(record, names, files, outputs, ended=ended, of_user=of_user)
        for record in records
        if is_on_page(record)
    ]
    if of_user:
        found.sort(key=lambda part: part["type"] == "text")
    return found


def agent_message(call: int, records: Sequence[Record], files: str = "") -> UiPart:
    """Returns the UI message of a sub-agent so far, which has those of its own sub-agents in it.

    Args:
        call: The number of its call.
        records: The records of what it wrote, as browsers see them, with those below.
        files: As for :func:`ui_parts`.
    """
    written: defaultdict[int, list[Record]] = defaultdict(list)
    depths: dict[int, int] = {call: 1}
    for record in records:
        if (parent := record.get("parent")) is not None:
            written[parent].append({name: record[name] for name in record if name != "parent"})
            depths[record["part"]] = depths.get(parent, 1) + 1
    outputs: dict[int, UiPart] = {}
    for record in reversed(records):  # what is below a call comes behind it
        number = record["part"]
        if number not in written or depths[number] > MAX_AGENTS:
            continue
        if number == call or shows_agent(record, values_of(record)):
            outputs[number] = _message_of(number, written[number], files, outputs)
    return outputs.get(call) or _message_of(call, [], files, {})


def _message_of(
    call: int, records: Iterable[Record], files: str, outputs: Mapping[int, UiPart]
) -> UiPart:
    parts = ui_parts(records, ended=False, files=files, outputs=outputs)
    return {"id": str(call), "role": "assistant", "parts": parts}


def has_agents_at_work(records: Sequence[Record]) -> bool:
    """Returns whether a call of the answer may have the message of its sub-agent as its output."""
    calls = {record["parent"] for record in records if "parent" in record}
    return any(
        record["part"] in calls and is_on_page(record) and shows_agent(record, values_of(record))
        for record in records
    )


def shows_agent(record: Record, values: Mapping[str, Any]) -> bool:
    """Returns whether a call is in a state in which the message of its sub-agent is its output.

    It has its input, no output of its own, and waits for no approval.
    """
    approval = approval_of(values)
    return (
        "input" in values
        and not {"output", "error"} & values.keys()
        and not record.get("redacted")
        and (approval is None or approval.get("approved") is True)
    )


def is_on_page(record: Record) -> bool:
    """Returns whether a page has a part for a record."""
    return "parent" not in record and record["kind"] != HIDDEN


def _part_of(
    record: Record,
    names: "CallNames",
    files: str,
    outputs: Mapping[int, UiPart],
    *,
    ended: bool,
    of_user: bool,
) -> UiPart:
    kind, number, values = record["kind"], record["part"], values_of(record)
    if kind in (TEXT, REASONING):
        if of_user:
            return {"type": kind, "text": record.get("text", "")}
        state = "done" if ended or record.get("closed") else "streaming"
        named = {"id": str(number)} if kind == REASONING else {}
        return {"type": kind, **named, "text": record.get("text", ""), "state": state}
    if kind == TOOL_CALL:
        output = None if ended else outputs.get(number)
        return _call_of(record, values, names.of(number, values), output, ended=ended)
    if kind == STEP:
        return {"type": "step-start"}
    found = whole_part(kind, number, values, files)
    if of_user and kind == "file" and isinstance(values.get("name"), str):
        found["filename"] = values["name"]
    return found


def _call_of(
    record: Record,
    values: Mapping[str, Any],
    name: str,
    so_far: UiPart | None,
    *,
    ended: bool,
) -> UiPart:
    found: UiPart = {"toolCallId": name, **_call_type(values)}
    if isinstance(values.get("title"), str):
        found["title"] = values["title"]
    if values.get("executor") == "provider":
        found["providerExecuted"] = True
    if "input" in values:
        found["input"] = values["input"]
    approval = approval_of(values)
    if approval is not None:
        found["approval"] = approval
    if record.get("redacted"):
        return {**found, "state": "output-error", "errorText": REDACTED}
    if has_outcome(values):
        if "error" in values:
            return {**found, "state": "output-error", "errorText": text_of(values["error"])}
        return {**found, "state": "output-available", "output": values["output"]}
    if approval is not None and approval.get("approved") is False:
        return {**found, "state": "output-denied"}
    if ended:
        return {**found, "state": "output-error", "errorText": INTERRUPTED}
    if "output" in values or so_far is not None:
        more = {"output": values.get("output", so_far), "preliminary": True}
        return {**found, "state": "output-available", **more}
    if "input" not in values and record.get("text"):
        found["rawInput"] = record["text"]
    if approval is not None:
        answered = "approved" in approval
        return {**found, "state": "approval-responded" if answered else "approval-requested"}
    return {**found, "state": "input-available" if "input" in values else "input-streaming"}


def _call_type(values: Mapping[str, Any]) -> UiPart:
    name = values.get("name")
    name = name if isinstance(name, str) else ""
    if values.get("dynamic") is True:
        return {"type": "dynamic-tool", "toolName": name}
    return {"type": f"tool-{name}"}


def approval_of(values: Mapping[str, Any]) -> UiPart | None:
    """Returns the approval of a call; ``None`` if none was requested."""
    found = values.get("approval")
    if not isinstance(found, Mapping) or not isinstance(found.get("id"), str):
        return None
    shown: UiPart = {"id": found["id"]}
    if found.get("automatic") is True:
        shown["isAutomatic"] = True
    if isinstance(found.get("approved"), bool):
        shown["approved"] = found["approved"]
        if isinstance(found.get("reason"), str):
            shown["reason"] = found["reason"]
    return shown


def whole_part(kind: str, number: int, values: Mapping[str, Any], files: str = "") -> UiPart:
    """Returns a part that comes at once: it is the same in the stream and in the message."""

    def text(name: str) -> str:
        value = values.get(name)
        return value if isinstance(value, str) else ""

    def given(**names: str) -> UiPart:
        return {key: values[name] for key, name in names.items() if text(name)}

    if kind == "source_url":
        own = {"sourceId": text("id") or str(number), "url": text("url")}
        return {"type": "source-url", **own, **given(title="title")}
    if kind == "source_document":
        own = {"sourceId": text("id") or str(number), "mediaType": text("media_type")}
        return {
            "type": "source-document",
            **own,
            "title": text("title"),
            **given(filename="filename"),
        }
    if kind in FILES:
        return {
            "type": kind.replace("_", "-"),
            "mediaType": text("media_type"),
            "url": f"{files}{number}" if isinstance(values.get("url"), Mapping) else text("url"),
        }
    if kind == DATA:
        found = {"type": f"data-{text('name')}", "data": values.get("data")}
        return {**found, "id": values["id"]} if isinstance(values.get("id"), str) else found
    custom = {name: value for name, value in values.items() if name != "kind"}
    provider, _, rest = kind[:_MAX_CUSTOM].partition(".")
    name = kind[:_MAX_CUSTOM] if rest else f"{_OWN}.{provider}"
    shown: UiPart = {"type": "custom", "kind": name}
    if custom:
        shown["providerMetadata"] = {provider if rest else _OWN: custom}
    return shown


def readable(value: Any) -> Any:
    """Returns JSON without the keys at which the JSON parser of the SDK raises.

    Source: ``secure-json-parse.ts`` of ``@ai-sdk/provider-utils``.
    """
    if isinstance(value, Mapping):
        return {
            key: readable(each)
            for key, each in value.items()
            if key != "__proto__"
            and not (key == "constructor" and isinstance(each, Mapping) and "prototype" in each)
        }
    return [readable(each) for each in value] if isinstance(value, list) else value


def values_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a record or a chunk; in place of a large one, what is known of it."""
    values = dict(readable(found.get("fields") or {}))
    for name, reference in (found.get("values") or {}).items():
        values.setdefault(name, dict(reference))
    return values


def text_of(value: object) -> str:
    """Returns a text; an empty one for what is none."""
    return value if isinstance(value, str) else ""


class CallNames:
    """The ids of calls on a page, by which it answers them: each has one of its own."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, number: int, values: Mapping[str, Any]) -> str:
        """Returns the id of a call, whose turn it is."""
        name = values.get("call_id")
        if not isinstance(name, str) or not name:
            name = f"call_{number}"
        if self._numbers.setdefault(name, number) != number:
            name = f"{name}#{number}"
            self._numbers[name] = number
        return name

    def forget(self, first: int) -> None:
        """Forgets the calls from a number on."""
        self._numbers = {name: at for name, at in self._numbers.items() if at < first}


def call_names(records: Iterable[Record]) -> dict[int, str]:
    """Returns the ids on the page of the calls that it shows, by their numbers.

    Args:
        records: The records of a message, as browsers see them.
    """
    names = CallNames()
    return {
        record["part"]: names.of(record["part"], values_of(record))
        for record in records
        if record["kind"] == TOOL_CALL and is_on_page(record)
    }
