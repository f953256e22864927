"""Sub-agents at work, on pages of the AI SDK: their UI messages so far are preliminary outputs.

Each output replaces the one before it, so it has all of the message. It comes when the sub-agent
has written an eighth more than at the last one: what is sent of a sub-agent stays within a few
times of what it writes. The log alone decides when, so that a page that follows, one that was
loaded, and each stream of a message have the same.

Source: https://ai-sdk.dev/docs/agents/subagents.
"""

import json
from collections.abc import Mapping
from typing import Any

from converse_mongo.domain.part_log import DATA, TOOL_CALL, PartLog, part_number
from converse_mongo.web.ui_parts import UiPart, agent_message, shows_agent, text_of

CHUNK_WEIGHT = 64
"""What a chunk counts beside its text: what it takes to send a part."""
MAX_SHOWN = 256 * 1024
"""Characters of texts and values, about, after which the output stays as it is."""


class AgentOutputs:
    """The preliminary outputs of the calls whose sub-agents are at work.

    It keeps the texts and values of these, up to :data:`MAX_SHOWN` for each.

    Args:
        files: As for :func:`~converse_mongo.web.ui_parts.ui_parts`.
    """

    def __init__(self, files: str = "") -> None:
        self._files = files
        self._agents: dict[int, _Agent] = {}

    @property
    def shown(self) -> dict[int, UiPart]:
        """The outputs that the page has, by the numbers of their calls."""
        return {call: agent.output for call, agent in self._agents.items() if agent.is_shown}

    def __contains__(self, call: int) -> bool:
        """Returns whether the page has an output of a sub-agent for a call."""
        return call in self._agents and self._agents[call].is_shown

    def add(
        self,
        chunk: Mapping[str, Any],
        values: Mapping[str, Any],
        number: int | None,
        log: PartLog,
    ) -> list[int]:
        """Adds the next chunk.

        Args:
            chunk: The chunk, as browsers see it.
            values: Its values.
            number: The number of its part; ``None`` if it has none.
            log: The state of the message behind it.

        Returns:
            The calls that have another output now.
        """
        if chunk.get("event") == "reset":
            first = part_number(values.get("from"))
            return [] if first is None else self._reset(first, chunk, log)
        if number is None or (chunk.get("event") is None and chunk.get("part") is None):
            return []
        call = _call_above(number, log)
        if call is None:
            return []
        if number != call and call not in self._agents and not _is_over(call, log):
            self._agents[call] = _Agent(call, self._files)
        agent = self._agents.get(call)
        if agent is not None and number != call:
            agent.add(chunk, values, number)
        return self._refreshed(call, log, anew=chunk.get("event") == "redact")

    def _reset(self, first: int, chunk: Mapping[str, Any], log: PartLog) -> list[int]:
        self._agents = {call: agent for call, agent in self._agents.items() if call < first}
        found: list[int] = []
        for call, agent in self._agents.items():
            if first <= agent.last:
                agent.void(chunk)
                found += self._refreshed(call, log, anew=True)
        return found

    def _refreshed(self, call: int, log: PartLog, *, anew: bool) -> list[int]:
        agent = self._agents.get(call)
        if agent is None:
            return []
        if _is_over(call, log):
            del self._agents[call]
            return []
        record = log.record(call)
        may_show = record is not None and shows_agent(record, record["fields"])
        return [call] if agent.refresh(may_show=may_show, anew=anew) else []


class _Agent:
    """A sub-agent.

    Args:
        call: The number of its call.
        files: The path of large files.

    Attributes:
        last: The number of the last part that it began.
        output: Its message, as it was last shown.
        is_shown: Whether the page has it.
    """

    def __init__(self, call: int, files: str) -> None:
        self.last = call
        self.is_shown = False
        self._call = call
        self._files = files
        self._written = self._shown = self._size = 0
        begun = {"part": call, "kind": TOOL_CALL, "fields": {}}
        snapshot = {"next_sequence": call + 1, "parts": [begun]}
        self._log: PartLog | None = PartLog.from_snapshot(snapshot)
        self.output: UiPart = agent_message(call, [], files)

    def add(self, chunk: Mapping[str, Any], values: Mapping[str, Any], number: int) -> None:
        """Adds a chunk of one of its parts."""
        self.last = max(self.last, number)
        if self._log is None:
            return
        self._log.add({**_without_values(chunk), "fields": values})
        size = len(text_of(chunk.get("delta")))
        is_replaced = values.get("preliminary") is True or self._log.kind_of(number) == DATA
        if values and not is_replaced:  # else compaction would change what is counted
            size += len(json.dumps(values))
        self._size += size
        self._written += size + CHUNK_WEIGHT

    def void(self, reset: Mapping[str, Any]) -> None:
        """Voids the parts that a reset names."""
        if self._log is not None:
            self._log.add(reset)

    def refresh(self, *, may_show: bool, anew: bool) -> bool:
        """Returns whether the page needs the output, which is made anew if it is time.

        Args:
            may_show: Whether the call is in a state in which it has an output.
            anew: Whether the page has what is gone.
        """
        has_it, self.is_shown = self.is_shown, may_show
        is_due = anew or not has_it or 8 * self._written >= 9 * self._shown
        if not may_show or not is_due or (self._log is None and has_it and not anew):
            return False
        if self._log is not None:
            snapshot = self._log.snapshot()
            self._log = PartLog.from_snapshot(snapshot)  # each text is in one piece
            self.output = agent_message(self._call, snapshot["parts"], self._files)
            self._shown = self._written
            if self._size > MAX_SHOWN:
                self._log = None
        elif anew:
            self.output = agent_message(self._call, [], self._files)
        return True


def _without_values(chunk: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chunk.items() if name not in ("fields", "values")}


def _call_above(number: int, log: PartLog) -> int | None:
    """The call of the answer whose sub-agent, or one below, made a part; a call has itself."""
    record = log.record(number)
    while record is not None and "parent" in record:
        record = log.record(record["parent"])
    return record["part"] if record is not None and record["kind"] == TOOL_CALL else None


def _is_over(call: int, log: PartLog) -> bool:
    """Whether nothing more is shown of a sub-agent: its call has an output, or was redacted."""
    record = log.record(call)
    return (
        record is None
        or bool(record.get("redacted"))
        or bool(record["fields"].keys() & {"output", "error"})
    )
