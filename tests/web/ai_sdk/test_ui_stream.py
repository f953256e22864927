"""What the AI SDK makes of the stream is what the history has, at each chunk of any log."""

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from shutil import which
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo import (
    CustomPart,
    DataPart,
    FilePart,
    PartDelta,
    PartEnd,
    PartSet,
    PartStart,
    ReasoningPart,
    SourceDocumentPart,
    SourceUrlPart,
    TextPart,
    ToolCallPart,
)
from converse_mongo.documents.part_views import shown_chunks, shown_records
from converse_mongo.documents.presentation import Presentation
from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.composing import pieces_of
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.part_pieces import PartPiece, numbered
from converse_mongo.domain.parts import StepPart
from converse_mongo.domain.validation import now
from converse_mongo.web.ui_parts import ui_parts
from converse_mongo.web.ui_stream import UiStream
from tests.model.part_logs import VECTORS
from tests.model.part_logs import stored as chunks_of
from tests.web.ai_sdk.node import PACKAGE, needs_node


def log_of(*contents: Any) -> list[dict[str, Any]]:
    """The chunks of what an application writes, as they are stored."""
    pieces = [piece for each in pieces_of(contents) for piece in each]
    return [chunk.to_stored() for chunk in numbered(pieces, 0, now(), ObjectId())]


def reset(first: int) -> PartPiece:
    return PartPiece("reset", fields={"from": first})


def call(name: str, call_id: str, **fields: Any) -> ToolCallPart:
    return ToolCallPart(name, call_id, **fields)


def growing(key: str, **fields: Any) -> list[Any]:
    """A call whose input is written by and by."""
    started = PartStart(call("weather", key, **fields), key)
    return [started, PartDelta(key, '{"city": "Pa'), PartDelta(key, 'ris"}')]


STEP_END = {"finish_reason": "tool-calls", "model": "m"}

EVERY_PART: list[Any] = [
    PartStart(StepPart(), "s1"),
    PartStart(ReasoningPart(""), "r"),
    PartDelta("r", "Let me "),
    PartDelta("r", "think"),
    PartEnd("r"),
    "I ",
    "look. ",
    *growing("c1", title="The weather"),
    PartSet("c1", {"input": {"city": "Paris"}}),
    PartSet("c1", {"started": True}),
    PartSet("c1", {"output": {"t": 1}, "preliminary": True}),
    PartSet("c1", {"output": None, "preliminary": True}),
    PartSet("c1", {"output": {"t": 2}}),
    *growing("c2"),
    PartSet("c2", {"input": {"city": "Paris"}}),
    PartSet("c2", {"error": "no such city"}),
    call("search", "p1", executor="provider", input={"q": "x"}, output=[1, None]),
    PartStart(call("mcp", "d1", dynamic=True), "d1"),
    PartDelta("d1", "{}"),
    PartSet("d1", {"input": {}}),
    PartSet("d1", {"output": "done"}),
    call("mcp", "d2", dynamic=True, executor="provider", input=1, error="broken"),
    PartEnd("s1", STEP_END),
    PartStart(StepPart(), "s2"),
    "Text",
    *growing("c3"),
    PartEnd("c3", {"input": {"city": "Paris"}}),
    PartSet("c3", {"approval": {"id": "a3"}}),
    PartSet("c3", {"approval": {"id": "a3", "approved": True, "reason": "go"}}),
    PartSet("c3", {"started": True}),
    PartSet("c3", {"output": "sunny"}),
    PartStart(call("rm", "c4", input={"path": "/"}, approval={"id": "a4"}), "c4"),
    PartSet("c4", {"approval": {"id": "a4", "approved": False, "reason": "never"}}),
    call("rm", "c5", input={}, approval={"id": "a5", "approved": True, "automatic": True}),
    PartStart(call("ask", "c6", executor="client", input={"q": 1}), "c6"),
    PartSet("c6", {"output": "yes"}),
    call("twice", "c6", input={}, output=1),
    SourceUrlPart("https://example.org", title="Example", id="u1"),
    SourceUrlPart("https://example.org/2"),
    SourceDocumentPart("Report", "application/pdf", filename="report.pdf"),
    FilePart("https://example.org/a.png", "image/png", name="a.png"),
    CustomPart("reasoning_file", url="https://example.org/r.png", media_type="image/png"),
    CustomPart("openai.compaction", state="abc"),
    CustomPart("marker"),
    CustomPart("odd", value=[{"__proto__": 1, "constructor": {"prototype": {}}}]),
    DataPart("weather", {"t": 1}, id="w"),
    DataPart("weather", {"t": 2}, id="w"),
    DataPart("note", None),
    DataPart("progress", 50, transient=True),
    TextPart("a whole text"),
    "and ",
    "more",
    PartStart(ReasoningPart(""), "r2"),
    PartDelta("r2", "open"),
    "text beside it",
    PartDelta("r2", " on"),
    *growing("c7"),
]

RESETS: list[list[Any]] = [
    [*["a", "b"], reset(0), "c"],
    [PartStart(StepPart(), "s"), "a", call("t", "c", input=1), reset(1), "b", PartEnd("s")],
    [PartStart(StepPart(), "s"), "a", call("t", "c", input=1), reset(2), "b"],
    [
        *[PartStart(StepPart(), "s"), "a", PartEnd("s"), "b"],
        *[call("t", "c1", input={}, output=1), reset(3), "c"],
    ],
    [
        *[PartStart(StepPart(), "s"), PartStart(ReasoningPart(""), "r"), PartDelta("r", "x")],
        *["a", *growing("c1"), reset(3), PartDelta("r", "y"), "b", *growing("c1")],
    ],
    [*growing("c1"), "a", reset(3), "b", PartSet("c1", {"input": 1})],
    ["a", call("t", "c", input=1, output=2), reset(1), call("t", "c", input=3)],
    [DataPart("d", 1, id="x"), "a", reset(1), DataPart("d", 2, id="x"), DataPart("d", 3, id="y")],
]

REWRITTEN: list[list[Any]] = [
    [PartStart(SourceUrlPart(""), "u"), "a", PartSet("u", {"url": "https://example.org"})],
    [PartStart(DataPart("d", 1), "d"), "a", PartSet("d", {"data": 2}), "b"],
    [*growing("c1"), PartSet("c1", {"approval": {"id": "a"}}), PartSet("c1", {"input": {}}), "b"],
    [*growing("c1"), "a", PartSet("c1", {"title": "Later"}), "b", PartDelta("c1", " ")],
]

OTHERS: list[list[Any]] = [
    ["", "a", "", "b"],
    [
        *[PartStart(call("agent", "c1", input={}), "c1"), "a"],
        *[PartSet("c1", {"output": {"text": "x"}, "preliminary": True}), "b"],
    ],
    [call("", "", input={})],
    [
        *[call("big", "c1", input="x" * 300_000, output=["y" * 300_000]), "a"],
        *[FilePart("data:x/y;base64," + "x" * 300_000, "x/y"), DataPart("d", "z" * 300_000)],
    ],
    [PartDelta(7, "nothing"), PartSet(8, {"input": 1}), "a"],
]

LOGS: dict[str, list[Any]] = {"every part": EVERY_PART} | {
    f"{name} {at}": log
    for name, logs in (("reset", RESETS), ("rewritten", REWRITTEN), ("other", OTHERS))
    for at, log in enumerate(logs)
}


class Live:
    """The stream of a log, and what a page shows that has it up to each of its chunks."""

    def __init__(self, log: Sequence[Mapping[str, Any]]) -> None:
        presentation = Presentation()
        self.stream = UiStream()
        self.sent: list[list[dict[str, Any]]] = []
        self.shown: list[list[dict[str, Any]]] = []
        state, history = PartLog(), UiStream()
        chunks = [MessageChunk.from_stored(dict(stored)) for stored in log]
        for stored, shown in zip(log, shown_chunks(chunks, presentation), strict=True):
            parts = self.stream.add(shown)
            state.add(stored)
            records = shown_records(state.records(), presentation)
            self.sent.append(self.stream.rewrite(records) if parts is None else parts)
            history.add(shown)
            self.shown.append(ui_parts(records, ended=False, outputs=history.agent_outputs))
        self.end = ui_parts(records, ended=True)


def read(streams: Iterable[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What the SDK makes of some streams, each read by itself from its start."""
    lines = [json.dumps({"parts": parts}) for parts in streams]
    done = subprocess.run(
        [str(which("node")), str(PACKAGE / "read.mjs")],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(lines)
    return found


def comparable(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parts without what the SDK guesses of the input of a call that is being written."""
    return [
        {key: value for key, value in part.items() if key != "input"}
        if part.get("state") == "input-streaming" or "rawInput" in part
        else part
        for part in json.loads(json.dumps(parts))
    ]


START: dict[str, Any] = {"type": "start", "messageId": "m"}


@needs_node
@pytest.mark.parametrize("name", LOGS)
def test_page__shows_what_the_history_has_at_each_chunk(name: str) -> None:
    live = Live(log_of(*LOGS[name]))
    sent: list[dict[str, Any]] = [START]
    streams = [sent := [*sent, *parts] for parts in live.sent]
    streams.append([*sent, *live.stream.close()])
    for at, (found, shown) in enumerate(zip(read(streams), [*live.shown, live.end], strict=True)):
        assert "errors" not in found, (at, found)
        assert comparable(found["parts"]) == comparable(shown), (at, streams[at][-4:])


@needs_node
def test_reset__of_a_step_leaves_its_boundary_to_the_next_one() -> None:
    begun = [PartStart(StepPart(), "s1"), "a", PartEnd("s1"), PartStart(StepPart(), "s2"), "b"]
    live = Live(log_of(*begun, reset(3), PartStart(StepPart(), "s3"), "c"))
    sent: list[dict[str, Any]] = [START]
    streams = [sent := [*sent, *parts] for parts in live.sent]
    behind_reset, behind_step, end = [each["parts"] for each in read(streams)[-3:]]
    assert behind_reset == [*live.shown[-3], {"type": "step-start"}]
    assert (behind_step, end) == (live.shown[-2], live.shown[-1])


@needs_node
def test_change__shows_a_step_anew_and_what_grows_in_an_earlier_one_ends() -> None:
    # The SDK forgets what is open when a step is reset, and raises at the rest of it. What is
    # written of a call of an earlier step would be a part of its own.
    first = [PartStart(ReasoningPart(""), "r"), PartDelta("r", "a"), *growing("c")]
    url = {"url": "https://example.org"}
    second = [PartStart(StepPart(), "s2"), PartStart(SourceUrlPart(""), "u"), PartSet("u", url)]
    late = [PartDelta("r", "b"), PartEnd("r"), PartDelta("c", " "), PartSet("c", {"input": 1})]
    live = Live(log_of(PartStart(StepPart(), "s1"), *first, *second, *late))
    [found] = read([[START, *(part for parts in live.sent for part in parts)]])
    thought = {"type": "reasoning", "id": "1", "text": "a", "state": "done"}
    begun, source = found["parts"][2], {"type": "source-url", "sourceId": "7", **url}
    step = {"type": "step-start"}
    assert found["parts"] == [step, thought, begun, step, source]
    assert (begun["state"], begun["rawInput"]) == ("input-streaming", '{"city": "Paris"}')


def test_every_part__is_in_the_log_of_that_name() -> None:
    live = Live(log_of(*EVERY_PART))
    sent = {part["type"] for parts in [*live.sent, live.stream.close()] for part in parts}
    assert sent == {
        *("text-start", "text-delta", "text-end"),
        *("reasoning-start", "reasoning-delta", "reasoning-end"),
        *("tool-input-start", "tool-input-delta", "tool-input-available", "tool-input-error"),
        *("tool-approval-request", "tool-approval-response", "tool-output-denied"),
        *("tool-output-available", "tool-output-error"),
        *("source-url", "source-document", "file", "reasoning-file", "custom"),
        *("data-weather", "data-note", "data-progress", "start-step", "finish-step"),
    }
    states = {
        (part["type"], part["state"]) for each in live.shown for part in each if "state" in part
    }
    calls = {state for kind, state in states if kind.startswith("tool-")}
    assert calls == {
        *("input-streaming", "input-available", "approval-requested", "approval-responded"),
        *("output-available", "output-error", "output-denied"),
    }


@needs_node
def test_page__reads_the_stream_of_any_log() -> None:
    made = {"created_at": now()}
    logs = {each["name"]: [made | chunk for chunk in chunks_of(each["chunks"])] for each in VECTORS}
    lives = {name: Live(log) for name, log in logs.items() if log}
    streams = [
        [START, *(part for parts in live.sent for part in parts), *live.stream.close()]
        for live in lives.values()
    ]
    found = read(streams)
    assert [each for each in found if "errors" in each] == []
    other = {
        name
        for (name, live), each in zip(lives.items(), found, strict=True)
        if comparable(each["parts"]) != comparable(live.end)
    }
    assert other == UNTOLD


UNTOLD = {
    # A page keeps what it has of what is redacted: only a reload takes it away.
    "fields: true does not keep text from ending",
    *("plain text is redacted", "closed text is redacted", "reasoning that ended is redacted"),
    "a call is redacted and then set",
    # These are written by nobody: ids and names are texts.
    *("ids of requests are strings or none", "data with ids of wrong types do not replace"),
}
