"""What ``converse-mongo tail`` shows of parts."""

from typing import Any

import pytest
from bson import ObjectId

from converse_mongo import (
    DataPart,
    FilePart,
    PartDelta,
    PartEnd,
    PartSet,
    PartStart,
    ReasoningPart,
    SourceDocumentPart,
    SourceUrlPart,
    StepPart,
    TextPart,
    ToolCallPart,
)
from converse_mongo.domain.composing import Composer, pieces_of
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.part_pieces import PartPiece, PartRef, numbered
from converse_mongo.domain.validation import now
from converse_mongo.tools.folding import Folding
from converse_mongo.tools.terminal import printable

EVIL = "\x1b]52;c;eA==\x07\x1b[2J\u202e"


def folded(*written: Any, whole: bool = False) -> str:
    """What is on the terminal in the end."""
    found: list[str] = []
    folding = Folding(found.append, whole=whole, safe=True)
    pieces = [piece for each in pieces_of(written) for piece in each]
    for chunk in numbered(pieces, 0, now(), ObjectId()):
        folding.add(chunk)
    folding.end()
    return "".join(found)


def under(call: int, *parts: Any) -> list[PartPiece]:
    """Parts of a sub-agent."""
    pieces = [
        piece for part in parts for piece in Composer(PartRef("tool_call", call)).pieces(part)
    ]
    return [piece for piece in pieces if isinstance(piece, PartPiece)]


CALL = ToolCallPart("search", "c1")


def test_parts__are_a_line_each_between_the_text() -> None:
    assert folded(
        *("Let me ", "look."),
        ReasoningPart("short"),
        ReasoningPart("word " * 300),
        *(PartStart(CALL, "c"), PartSet("c", {"input": {"q": "mongo"}})),
        *("Mean", "while. "),
        *(PartSet("c", {"output": {"hits": 3}}), PartSet("c", {"title": "Search"})),
        *under(8, TextPart("A sub-agent.")),
        SourceUrlPart("https://example.com", title="A page"),
        SourceDocumentPart("A paper", "application/pdf"),
        FilePart("gridfs://1", "image/png", name="a.png"),
        DataPart("weather", {"c": 21}),
        *(PartStart(StepPart(), "s"), PartEnd("s", {"usage": {"tokens": 3}})),
        "Done.",
    ).splitlines() == [
        "Let me look.",
        "[reasoning] short",
        f"[reasoning] {('word ' * 12)[:60]}… (1,500 characters)",
        "Meanwhile. ",
        '[search {"q": "mongo"}] → {"hits": 3}',
        "  [text] A sub-agent.",
        "[source] A page https://example.com",
        "[source] A paper application/pdf",
        "[file] a.png image/png gridfs://1",
        '[data weather] {"c": 21}',
        "Done.",
    ]


def test_calls__without_an_outcome_are_shown_at_the_end() -> None:
    denied = {"id": "a", "approved": False}
    calls = [
        ToolCallPart("wait", "c1", input={}),
        ToolCallPart("ask", "c2", input={}, approval=denied),
        ToolCallPart("try", "c3", input={}, error="no"),
    ]
    assert folded(*calls) == "[ask {}] → denied\n[try {}] → error: no\n[wait {}] → interrupted\n"


def test_resets_and_redactions__are_told() -> None:
    reset, reason = PartPiece("reset", fields={"from": 0}), {"reason": "a\nname"}
    told = [
        *("In vain.", CALL, reset, "Again. ", PartPiece("redact", PartRef(None, 3), reason)),
        *("b", PartPiece("redact", PartRef(None, 5))),
    ]
    assert folded(*told).splitlines() == [
        *("In vain.", "[starting again]", "Again. ", "[redacted: a name]", "b", "[redacted]")
    ]


def test_deltas__build_no_part_again(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    record = PartLog.record

    def counted(self: PartLog, number: int) -> Any:
        built.append(number)
        return record(self, number)

    monkeypatch.setattr(PartLog, "record", counted)
    deltas = [PartDelta("r", "word ")] * 50
    folded(PartStart(ReasoningPart("A "), "r"), *deltas, PartEnd("r"))
    assert len(built) <= 3


def test_whole_parts__are_shown_if_asked_for() -> None:
    thought = "word " * 300
    call = ToolCallPart("search", "c1", input={"q": "x" * 100}, output=thought)
    step = [PartStart(StepPart(), "s"), PartEnd("s", {"usage": {"tokens": 3}})]
    shown = folded(ReasoningPart(thought), call, *step, whole=True).splitlines()
    assert shown == [
        f"[reasoning] {thought}",
        f'[search {{"q": "{"x" * 100}"}}] → {thought}',
        '[step] {"usage": {"tokens": 3}}',
    ]


def test_parts__do_not_steer_the_terminal() -> None:
    call = ToolCallPart(EVIL, "c", input={EVIL: EVIL}, error=EVIL)
    parts = [
        *(call, ReasoningPart(EVIL), SourceUrlPart(EVIL, title=EVIL), DataPart(EVIL, EVIL)),
        *(FilePart(EVIL, EVIL), PartPiece("redact", PartRef(None, 0), {"reason": EVIL}), EVIL),
    ]
    for whole in (False, True):
        shown = folded(*parts, whole=whole)
        assert shown == printable(shown)
