"""The stream of a message, as the AI SDK reads it.

The stream is a pure function of the log: :class:`UiStream` takes the chunks of a message as
browsers see them, from the first one on, and makes the same parts of them each time. What
``useChat`` makes of these is what :func:`~converse_mongo.web.ui_parts.ui_parts` makes of the
records of the log.

Source: ``process-ui-message-stream.ts`` of npm's ``ai`` 7.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from converse_mongo.domain.part_log import (
    DATA,
    REASONING,
    STEP,
    TEXT,
    TOOL_CALL,
    PartLog,
    Record,
    has_outcome,
    part_number,
)
from converse_mongo.web.ui_agents import AgentOutputs
from converse_mongo.web.ui_parts import (
    INTERRUPTED,
    REDACTED,
    CallNames,
    UiPart,
    approval_of,
    is_on_page,
    text_of,
    values_of,
    whole_part,
)

NOTHING: UiPart = {"type": "message-metadata", "messageMetadata": None}
"""A part that changes nothing."""


class UiStream:
    """Makes the parts of the stream of one message.

    It keeps neither texts nor values, but those of sub-agents at work: else, what a stream takes in
    memory grows with the number of parts.

    Args:
        files: As for :func:`~converse_mongo.web.ui_parts.ui_parts`.

    Attributes:
        next_sequence: The sequence of the next chunk.
    """

    def __init__(self, files: str = "") -> None:
        self._files = files
        self._log = PartLog()
        self._shown: list[int] = []
        """The numbers of the parts that the page has, in order; those of steps, too."""
        self._steps: list[int] = []
        self._spare_step = False
        """Whether the last step of the page was voided, so that the next one takes its place."""
        self._names = CallNames()
        self._calls: dict[int, str] = {}
        self._growing: set[int] = set()
        self._agents = AgentOutputs(files)
        self._changed: list[int] = []
        """The calls whose sub-agents have another output since the last chunk."""

    @property
    def agent_outputs(self) -> dict[int, UiPart]:
        """The outputs of sub-agents at work that the page has, by the numbers of their calls."""
        return self._agents.shown

    @property
    def next_sequence(self) -> int:
        """The sequence of the next chunk."""
        return self._log.next_sequence

    @property
    def is_open(self) -> bool:
        """Whether a text, reasoning or the input of a call may go on in the next part."""
        return (
            self._log.open is not None
            or bool(self._growing)
            or any("input" not in self._fields(each) for each in self._calls)
        )

    def skip_text(self, sequence: int) -> None:
        """Goes on behind chunks of which the first has text of the answer, as have all others."""
        self._log.add({"sequence": 0, "content": "x"})
        self._log.next_sequence = sequence
        self._shown = [0]

    def add(self, chunk: Mapping[str, Any]) -> list[UiPart] | None:
        """Returns the parts of the next chunk, as browsers see it.

        Returns:
            ``None`` if the stream has no parts for what it does: then :meth:`rewrite` has them.
        """
        event = chunk.get("event")
        values = {} if event is None else values_of(chunk)
        before, named = self._log.open, part_number(chunk.get("part"))
        old = {} if named is None or event not in ("set", "end") else self._fields(named)
        number = self._log.add(_without_values(chunk, values, continues=before is not None))
        parts = self._parts_of(chunk, values, number, before, old)
        self._changed = self._agents.add(chunk, values, number, self._log)
        return None if parts is None else parts + list(map(self._agent_output, self._changed))

    def _parts_of(
        self,
        chunk: Mapping[str, Any],
        values: dict[str, Any],
        number: int | None,
        before: int | None,
        old: Mapping[str, Any],
    ) -> list[UiPart] | None:
        """The parts of a chunk.

        Args:
            chunk: The chunk.
            values: Its values.
            number: The number of its part; ``None`` if it has none.
            before: The number of the text that was open before it, or ``None``.
            old: The fields of the part that it names, before it.
        """
        event, sequence = chunk.get("event"), chunk["sequence"]
        parts: list[UiPart] = []
        if before is not None and self._log.open != before:
            parts.append({"type": "text-end", "id": str(before)})
        if event is None and part_number(chunk.get("part")) is None:
            return parts + self._text(chunk, is_new=before is None)
        if event == "metadata":
            return [*parts, {"type": "message-metadata", "messageMetadata": values}]
        if event == "reset":
            reset = self._reset(part_number(values.get("from")))
            return None if reset is None else parts + reset
        if event == "start" and number is None:
            return parts + self._transient(chunk, values)
        if number is None:
            return parts
        record = self._log.record(number)
        if record is None or not is_on_page(record):
            return parts
        if event == "start" and number == sequence:
            return parts + self._begin(number, record["kind"], values)
        if event == "start":
            return [*parts, whole_part(DATA, number, {**values, **_named(record)})]
        if event is None:
            return parts + self._delta(number, record, text_of(chunk.get("delta")))
        if event == "redact":
            is_call = number in self._calls
            return parts + (self._failed(number, REDACTED) if is_call else self._ended(number))
        changed = self._change(number, record, old, values)
        if changed is None:
            return None if self._is_current(number) else parts
        if event == "end":
            changed += self._ended(number)
            if record["kind"] == STEP:
                changed.append({"type": "finish-step"})
        return parts + changed

    def rewrite(self, records: Iterable[Record]) -> list[UiPart]:
        """Returns parts that show the current step anew.

        Args:
            records: The records behind the last chunk, as browsers see them.
        """
        first = self._steps[-1] + 1 if self._steps else 0
        parts = self._reset_step(first)
        for record in records:
            if record["part"] >= first and is_on_page(record):
                parts += self._again(record)
        return parts + [self._agent_output(each) for each in self._changed if each < first]

    def whole(self, records: Iterable[Record]) -> list[UiPart]:
        """Returns the parts of a message that was added whole."""
        parts: list[UiPart] = []
        for record in records:
            if is_on_page(record):
                parts += self._again({**record, "closed": True})
        return parts

    def close(self, *, ended: bool = True) -> list[UiPart]:
        """Returns the parts that come before the end, or before the message waits for people."""
        parts: list[UiPart] = []
        if self._log.open is not None:
            parts.append({"type": "text-end", "id": str(self._log.open)})
        parts += [{"type": "reasoning-end", "id": str(each)} for each in sorted(self._growing)]
        if ended:
            for number in self._calls:
                if not _is_done(self._log.record(number)):
                    parts += self._interrupted(number)
        return parts

    # What a chunk does

    def _text(self, chunk: Mapping[str, Any], *, is_new: bool) -> list[UiPart]:
        if self._log.open is None:
            return [NOTHING]  # an empty text
        parts: list[UiPart] = []
        if is_new:
            self._shown.append(self._log.open)
            parts.append({"type": "text-start", "id": str(self._log.open)})
        return [*parts, text_delta(self._log.open, text_of(chunk.get("content")))]

    def _begin(self, number: int, kind: str, values: dict[str, Any]) -> list[UiPart]:
        if kind == STEP:
            return self._step(number)
        self._shown.append(number)
        if kind == TEXT:
            # As many parts as one that began with its first text: what sweeps a log may do so.
            return [{"type": "text-start", "id": str(number)}, text_delta(number, "")]
        if kind == REASONING:
            self._growing.add(number)
            return [{"type": "reasoning-start", "id": str(number)}]
        if kind != TOOL_CALL:
            return [whole_part(kind, number, values, self._files)]
        self._calls[number] = self._names.of(number, values)
        begun = {"type": "tool-input-start", **self._call(number, values)}
        return [begun, *(self._call_parts(number, values, values, {}) or [])]

    def _step(self, number: int) -> list[UiPart]:
        self._steps.append(number)
        spare, self._spare_step = self._spare_step, False
        return [NOTHING if spare else {"type": "start-step"}]

    def _delta(self, number: int, record: Record, text: str) -> list[UiPart]:
        if number in self._growing:
            return [{"type": "reasoning-delta", "id": str(number), "delta": text}]
        is_written = not {"input", "output", "error"} & record["fields"].keys()
        if number in self._calls and is_written and self._is_current(number):
            name = self._calls[number]
            return [{"type": "tool-input-delta", "toolCallId": name, "inputTextDelta": text}]
        return []

    def _change(
        self,
        number: int,
        record: Record,
        old: Mapping[str, Any],
        given: Mapping[str, Any],
    ) -> list[UiPart] | None:
        new = {name: given.get(name) for name in self._log.counted}
        if number in self._calls:
            if number in self._agents and {"input", "approval"} & new.keys():
                return None
            return self._call_parts(number, {**record["fields"], **new}, new, old)
        if record["kind"] == DATA and "data" in new:
            named = _named(record)
            if "id" not in named:
                return None
            return [whole_part(DATA, number, {**named, "data": new["data"]})]
        is_plain = record["kind"] not in (TEXT, REASONING, STEP)
        return None if new and is_plain else []

    def _call_parts(
        self,
        number: int,
        fields: Mapping[str, Any],
        new: Mapping[str, Any],
        old: Mapping[str, Any],
    ) -> list[UiPart] | None:
        """The parts of fields that a call gets; ``None`` if they come in an order of their own."""
        had_outcome = "output" in old or "error" in old
        gets_outcome = "output" in new or "error" in new
        if old and ({"title", "executor", "dynamic"} & new.keys()):
            return None
        if ("input" in new or "approval" in new) and had_outcome:
            return None
        if "input" in new and (approval_of(old) is not None or not self._is_current(number)):
            return None
        name, parts = {"toolCallId": self._calls[number]}, list[UiPart]()
        if "input" in new:
            begun = {"type": "tool-input-available", **self._call(number, fields)}
            parts.append({**begun, "input": new["input"]})
        approval = approval_of(new)
        if approval is not None:
            parts += self._approval(number, approval, approval_of(old))
            if approval.get("approved") is False and not gets_outcome:
                parts.append({"type": "tool-output-denied", **name})
        if "error" in new:
            parts += self._failed(number, text_of(new["error"]))
        elif "output" in new:
            part = {"type": "tool-output-available", **name, "output": new["output"]}
            is_preliminary = fields.get("preliminary") is True
            parts.append({**part, "preliminary": True} if is_preliminary else part)
        return parts

    def _approval(self, number: int, approval: UiPart, before: UiPart | None) -> list[UiPart]:
        name, parts = self._calls[number], list[UiPart]()
        if before is None or before["id"] != approval["id"]:
            asked = {"type": "tool-approval-request", "approvalId": approval["id"]}
            automatic = {"isAutomatic": True} if "isAutomatic" in approval else {}
            parts.append({**asked, "toolCallId": name, **automatic})
        if "approved" in approval:
            reason = {"reason": approval["reason"]} if "reason" in approval else {}
            parts.append(
                {
                    "type": "tool-approval-response",
                    "approvalId": approval["id"],
                    "approved": approval["approved"],
                    **reason,
                }
            )
        return parts

    def _agent_output(self, number: int) -> UiPart:
        part = {"type": "tool-output-available", "toolCallId": self._calls[number]}
        return {**part, "output": self._agents.shown[number], "preliminary": True}

    def _failed(self, number: int, error: str) -> list[UiPart]:
        name = self._calls[number]
        return [{"type": "tool-output-error", "toolCallId": name, "errorText": error}]

    def _interrupted(self, number: int) -> list[UiPart]:
        fields = self._fields(number)
        if "input" in fields or not self._is_current(number):
            return self._failed(number, INTERRUPTED)
        # What was received of its input is no input.
        part = {"type": "tool-input-error", **self._call(number, fields), "errorText": INTERRUPTED}
        return [part]

    def _call(self, number: int, values: Mapping[str, Any]) -> UiPart:
        name = values.get("name")
        found: UiPart = {
            "toolCallId": self._calls[number],
            "toolName": name if isinstance(name, str) else "",
        }
        if values.get("dynamic") is True:
            found["dynamic"] = True
        if values.get("executor") == "provider":
            found["providerExecuted"] = True
        if isinstance(values.get("title"), str):
            found["title"] = values["title"]
        return found

    def _ended(self, number: int) -> list[UiPart]:
        if number not in self._growing:
            return []
        self._growing.remove(number)
        return [{"type": "reasoning-end", "id": str(number)}]

    def _transient(self, chunk: Mapping[str, Any], values: Mapping[str, Any]) -> list[UiPart]:
        """Data that only those see who watch."""
        is_data = values.get("kind") == DATA and values.get("transient") is True
        if not is_data or "parent" in chunk or not isinstance(values.get("name"), str):
            return []
        if "data" not in values:
            return [NOTHING]  # it was cleared away
        return [{**whole_part(DATA, chunk["sequence"], values), "transient": True}]

    def _reset(self, first: int | None) -> list[UiPart] | None:
        if first is None:
            return []
        step = self._steps[-1] if self._steps else -1
        current = [each for each in self._shown if each > step]
        voided = [each for each in current if each >= first]
        self._names.forget(first)
        self._calls = {at: name for at, name in self._calls.items() if at < first}
        if self._steps and step >= first:
            self._spare_step = True
            self._steps = [each for each in self._steps if each < first]
        elif len(voided) < len(current):
            return None if voided else []
        if current or self._spare_step:
            return self._reset_step(first)
        return []

    def _reset_step(self, first: int) -> list[UiPart]:
        """Takes the parts from a number on away, with all others of the step.

        What grows in earlier steps ends: the SDK forgets it.
        """
        growing = sorted(each for each in self._growing if each < first)
        self._growing.clear()
        self._shown = [each for each in self._shown if each < first]
        ends: list[UiPart] = [{"type": "reasoning-end", "id": str(each)} for each in growing]
        return [*ends, {"type": "reset-step"}]

    # Records

    def _again(self, record: Record) -> list[UiPart]:
        """The parts of a part as it is."""
        number, kind, values = record["part"], record["kind"], values_of(record)
        if kind not in (TEXT, TOOL_CALL):
            parts = self._begin(number, kind, values)
            if kind == REASONING:
                delta = {"type": "reasoning-delta", "id": str(number), "delta": record["text"]}
                parts += [delta] if record["text"] else []
                parts += self._ended(number) if record.get("closed") else []
            elif kind == STEP and record.get("closed"):
                parts.append({"type": "finish-step"})
            return parts
        self._shown.append(number)
        if kind == TEXT:
            parts = [{"type": "text-start", "id": str(number)}, text_delta(number, record["text"])]
            ends = [{"type": "text-end", "id": str(number)}] if record.get("closed") else []
            return [*parts, *ends]
        if number not in self._calls:
            self._calls[number] = self._names.of(number, values)
        call = self._call(number, values)
        parts = [{"type": "tool-input-start", **call}]
        has_error = "error" in values and has_outcome(values)
        if has_error and "input" in values and approval_of(values) is None:
            failed = {"type": "tool-input-error", **call, "input": values["input"]}
            return [*parts, {**failed, "errorText": text_of(values["error"])}]
        if "input" not in values and record.get("text"):
            delta = {"type": "tool-input-delta", "toolCallId": call["toolCallId"]}
            parts.append({**delta, "inputTextDelta": record["text"]})
        parts += self._call_parts(number, values, values, {}) or []
        if number in self._agents:
            parts.append(self._agent_output(number))
        return [*parts, *self._failed(number, REDACTED)] if record.get("redacted") else parts

    def _fields(self, number: int) -> Mapping[str, Any]:
        record = self._log.record(number)
        fields: Mapping[str, Any] = {} if record is None else record["fields"]
        return fields

    def _is_current(self, number: int) -> bool:
        return not self._steps or number > self._steps[-1]


def _is_done(record: Record | None) -> bool:
    if record is None or record.get("redacted") or has_outcome(record["fields"]):
        return True
    approval = approval_of(record["fields"])
    return approval is not None and approval.get("approved") is False


def _named(record: Record) -> dict[str, Any]:
    return {name: record["fields"][name] for name in ("name", "id") if name in record["fields"]}


def text_delta(number: int, text: str) -> UiPart:
    """Returns the part of a text that gets longer."""
    return {"type": "text-delta", "id": str(number), "delta": text}


_KEPT = frozenset(
    {
        *("kind", "name", "id", "call_id", "title", "executor", "dynamic", "transient"),
        *("approval", "preliminary", "from"),
    }
)
"""Fields whose values the stream needs later on."""


def _without_values(
    chunk: Mapping[str, Any], values: Mapping[str, Any], *, continues: bool
) -> dict[str, Any]:
    """A chunk as the state needs it: an event without values, and the first letter of a text."""
    kept = {name: chunk[name] for name in ("sequence", "part", "event", "parent") if name in chunk}
    if chunk.get("event") is None:
        return {**kept, "content": "" if continues else text_of(chunk.get("content"))[:1]}
    if chunk["event"] != "metadata":
        kept["fields"] = {n: v if n in _KEPT else None for n, v in values.items()}
    return kept
