"""What ``converse-mongo tail`` shows of parts."""

from typing import Any

import pytest
from bson import ObjectId

from converse_mongo import (
    ChunkReceived,
    DataPart,
    FilePart,
    MessageCompleted,
    MessageRole,
    MessageSuspended,
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
from converse_mongo.tools.tail import text_writer
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


def test_sub_agent__is_shown_before_the_outcome_of_its_call() -> None:
    begun = PartStart(ToolCallPart("search", "c1", input={}), "c")
    below = under(0, PartStart(TextPart("Not ended."), "t"), ToolCallPart("look", "c2"))
    assert folded(begun, *below, PartSet("c", {"output": 1}), "Done.").splitlines() == [
        *("  [text] Not ended.", "  [look] → interrupted", "[search {}] → 1", "Done.")
    ]


def test_reset__that_takes_nothing_back_is_not_told() -> None:
    reset = PartPiece("reset", fields={"from": 1})
    assert folded("Kept.", reset, reset, "Go on.") == "Kept.Go on.\n"
    assert folded("Kept.", CALL, reset, reset, "a") == "Kept.\n[starting again]\na\n"


def written_by_tail(*told: Any, whole: bool, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command writes into a file, of an answer that waits for people in between."""
    ids: dict[str, Any] = {"conversation_id": ObjectId(), "message_id": ObjectId()}
    ids["role"] = MessageRole.ASSISTANT
    write = text_writer(whole=whole)
    pieces = [piece for each in pieces_of(told) for piece in each]
    for chunk in numbered(pieces, 0, now(), ObjectId()):
        write(ChunkReceived(chunk=chunk, **ids))
        write(MessageSuspended(attempt=1, pending=[], **ids))
    write(MessageCompleted(chunk_count=0, metadata={}, completed_at=now(), **ids))
    return capsys.readouterr().out


def test_tail__of_an_answer_that_waits_goes_on_with_its_calls(
    capsys: pytest.CaptureFixture[str],
) -> None:
    call = PartStart(ToolCallPart("search", "c1", input={}), "c")
    told = ["a", call, PartSet("c", {"output": 1}), "b"]
    assert written_by_tail(*told, whole=True, capsys=capsys) == "a\n[search {}] → 1\nb\n"
    assert written_by_tail(*told, whole=False, capsys=capsys) == "ab"


def test_tail__of_the_text_alone_tells_where_it_is_begun_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def reset(first: int) -> PartPiece:
        return PartPiece("reset", fields={"from": first})

    told = ["Kept. ", CALL, reset(1), "In vain.", ReasoningPart("x"), reset(3), "Again."]
    assert written_by_tail(*told, whole=False, capsys=capsys) == (
        "Kept. In vain.\n[starting again]\nAgain."
    )


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
