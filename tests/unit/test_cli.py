"""The parts of the command line that need neither server nor processes."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo import IndexModel

from converse_mongo.tools import cli
from converse_mongo.tools.demo.recording import Recording, StoredMessage, ViewerLog, Watch
from converse_mongo.tools.demo.reports import Appended, Ended, Seen, Watching, parse_report, tell
from converse_mongo.tools.demo.texts import tokenise
from converse_mongo.tools.demo.verdict import judge, percentile
from converse_mongo.tools.doctor import (
    Level,
    check_default_concern,
    check_oplog_window,
    check_topology,
    missing_indexes,
)

# Tokens


@given(st.text(st.characters(codec="utf-8")))
def test_tokens__joined_are_the_text(text: str) -> None:
    tokens = tokenise(text)
    assert "".join(tokens) == text
    assert all(0 < len(token) <= 12 for token in tokens)


# Reports


def test_report__comes_back_from_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    report = Seen(3, "Ü\n🎉", 1.5)
    tell(report)
    assert parse_report(capsys.readouterr().out.encode()) == report


def test_report__cut_off_by_a_kill_does_not_count() -> None:
    assert parse_report(b"") is None
    assert parse_report(b'{"report": "seen", "sequence": 3') is None


@pytest.mark.parametrize(
    "line", [b"hello\n", b"[]\n", b'{"report": "x"}\n', b'{"report": "seen"}\n']
)
def test_report__that_is_none_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="is no report"):
        parse_report(line)


# The verdict

TOKENS = ["one ", "two ", "three"]


def seen(*sequences: int) -> list[Seen]:
    return [Seen(number, TOKENS[number], 10.0 + number) for number in sequences]


def recording_of(*watches: list[Seen]) -> Recording:
    """A stream of three chunks, appended at 9, 10 and 11, that one viewer watched from 9.5 on."""
    text = "".join(TOKENS)
    viewer = ViewerLog(
        "viewer",
        watches=[Watch(Watching(9.5, "change_stream"), part) for part in watches],
        ended=Ended(3, None),
    )
    return Recording(
        text,
        len(TOKENS),
        sent_at={number: 9.0 + number for number in range(3)},
        finished=True,
        viewers=[viewer],
        stored=StoredMessage("completed", text, [0, 1, 2], text),
    )


def test_verdict__of_equal_texts_is_good() -> None:
    assert judge(recording_of(seen(0, 1, 2))).equal


def test_verdict__of_two_parts_that_fit_is_good() -> None:
    assert judge(recording_of(seen(0), seen(1, 2))).equal


@pytest.mark.parametrize(
    "parts",
    [
        [seen(0, 1)],
        [seen(0, 2)],
        [seen(0, 2, 1)],
        [seen(0, 1), seen(1, 2)],
        [seen(0), seen(2)],
        [[*seen(0, 1), Seen(2, "3", 12.0)]],
        [],
    ],
    ids=["cut", "gap", "disorder", "repeat", "gap between parts", "changed", "nothing"],
)
def test_verdict__of_a_viewer_who_saw_something_else_is_bad(parts: list[list[Seen]]) -> None:
    verdict = judge(recording_of(*parts))
    assert not verdict.equal
    assert verdict.stored_problems == []


@pytest.mark.parametrize("ended", [None, Ended(3, "broke"), Ended(2, None)])
def test_verdict__of_a_viewer_without_a_good_end_is_bad(ended: Ended | None) -> None:
    recording = recording_of(seen(0, 1, 2))
    recording.viewers[0].ended = ended
    assert judge(recording).problems == ["viewer: it saw no good end"]


@pytest.mark.parametrize(
    "change",
    [
        {"status": "failed"},
        {"content": "one two thrEe"},
        {"joined": "one two "},
        {"sequences": [0, 2, 1]},
        {"sequences": [0, 1]},
    ],
)
def test_verdict__of_a_stored_message_that_differs_is_bad(change: dict[str, Any]) -> None:
    recording = recording_of(seen(0, 1, 2))
    assert recording.stored is not None
    recording.stored = replace(recording.stored, **change)
    assert judge(recording).stored_problems


def test_verdict__times_only_what_was_appended_while_the_viewer_watched() -> None:
    assert judge(recording_of(seen(0, 1, 2))).viewers[0].latencies == [1.0, 1.0]


def test_percentile__is_the_nearest_rank() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99
    assert percentile([7.0], 99) == 7
    assert percentile([], 50) is None


def test_report__of_an_append_holds_its_moment(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Appended(1, 1700000000.123456))
    assert parse_report(capsys.readouterr().out.encode()) == Appended(1, 1700000000.123456)


# The doctor


def test_missing_indexes__are_those_whose_key_or_uniqueness_is_not_there() -> None:
    wanted = [
        IndexModel([("a", 1), ("b", -1)], name="ab", unique=True),
        IndexModel([("c", 1)], name="c"),
    ]
    assert list(missing_indexes(wanted, {})) == ["ab", "c"]
    present = {"ab": {"key": [("a", 1), ("b", -1)]}, "other": {"key": [("c", 1)]}}
    assert list(missing_indexes(wanted, present)) == ["ab"]
    present["ab"]["unique"] = True  # type: ignore[assignment]
    assert list(missing_indexes(wanted, present)) == []


@pytest.mark.parametrize(
    ("hello", "level", "text"),
    [
        ({"setName": "rs0"}, Level.OK, "replica set rs0"),
        ({"msg": "isdbgrid"}, Level.OK, "sharded cluster"),
        ({}, Level.WARN, "standalone"),
    ],
)
def test_topology__without_change_streams_is_a_warning(
    hello: dict[str, str], level: Level, text: str
) -> None:
    finding = check_topology(hello)
    assert finding.level is level
    assert text in finding.text


@pytest.mark.parametrize(("seconds", "level"), [(3599, Level.WARN), (3600, Level.OK)])
def test_oplog__of_less_than_an_hour_is_a_warning(seconds: int, level: Level) -> None:
    assert check_oplog_window([1000, 1000 + seconds]).level is level


@pytest.mark.parametrize(
    ("concern", "level"),
    [
        ({"w": "majority"}, Level.OK),
        ({"w": 1}, Level.WARN),
        ({}, Level.WARN),
        ({"w": 0}, Level.FAIL),
    ],
)
def test_write_concern__below_majority_is_named(concern: dict[str, Any], level: Level) -> None:
    assert check_default_concern(concern, "of the URI").level is level


# The command


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a package look as if it were not installed."""

    def hide(package: str) -> None:
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: None if name == package else find_spec(name, *rest),
        )

    return hide


@pytest.mark.parametrize("package", ["rich", "secantus"])
def test_demo__without_its_packages_says_what_to_install(
    package: str,
    without: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("CONVERSE_URI", raising=False)
    without(package)
    assert cli.main(["demo"]) == 2
    errors = capsys.readouterr().err
    assert "python -m pip install 'converse-mongo[demo]'" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf", "fast"])
def test_demo__refuses_a_speed_that_is_none(speed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.main(["demo", "--tokens-per-second", speed])
    assert exited.value.code == 2
    assert "is no number above 0" in capsys.readouterr().err
