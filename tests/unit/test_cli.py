"""The parts of the command line that need neither server nor processes."""

import asyncio
import importlib.util
import signal
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo import IndexModel

from converse_mongo.tools import cli
from converse_mongo.tools.demo.recording import Recording, Seen, StoredMessage, Viewer
from converse_mongo.tools.demo.texts import tokenise
from converse_mongo.tools.doctor import (
    Level,
    check_default_concern,
    check_oplog_window,
    check_topology,
    missing_indexes,
)
from converse_mongo.tools.signals import terminable

# Tokens


@given(st.text(st.characters(codec="utf-8")))
def test_tokens__joined_are_the_text(text: str) -> None:
    tokens = tokenise(text)
    assert "".join(tokens) == text
    assert all(0 < len(token) <= 12 for token in tokens)


# The verdict

TOKENS = ["one ", "two ", "three"]


def seen(*sequences: int, since: float = 9.5) -> list[Seen]:
    return [Seen(number, TOKENS[number], 10.0 + number, since) for number in sequences]


def recording_of(received: list[Seen]) -> Recording:
    """A stream of three chunks, written at 9, 10 and 11, that one viewer watched from 9.5 on."""
    text = "".join(TOKENS)
    return Recording(
        text,
        len(TOKENS),
        [Viewer("viewer", seen=received, end="message.completed")],
        sent_at={number: 9.0 + number for number in range(3)},
        finished=True,
        stored=StoredMessage("completed", text, list(enumerate(TOKENS))),
    )


def test_verdict__of_equal_texts_is_good() -> None:
    assert recording_of(seen(0, 1, 2)).verdict() == {"stored": [], "viewer": []}


@pytest.mark.parametrize(
    "received",
    [
        seen(0, 1),
        seen(0, 2),
        seen(0, 2, 1),
        seen(0, 1, 1, 2),
        [*seen(0, 1), Seen(2, "3", 12.0, 9.5)],
        [*seen(0), Seen(1, "two three", 11.0, 9.5), Seen(2, "", 12.0, 9.5)],
        [],
    ],
    ids=["cut", "gap", "disorder", "repeat", "changed", "moved", "nothing"],
)
def test_verdict__of_a_viewer_who_saw_something_else_is_bad(received: list[Seen]) -> None:
    verdict = recording_of(received).verdict()
    assert verdict["viewer"]
    assert verdict["stored"] == []


@pytest.mark.parametrize("end", [None, "message.failed", "message.cancelled"])
def test_verdict__of_a_viewer_without_a_good_end_is_bad(end: str | None) -> None:
    recording = recording_of(seen(0, 1, 2))
    recording.viewers[0].end = end
    assert recording.verdict() == {"stored": [], "viewer": [f"its final event is {end}"]}


@pytest.mark.parametrize(
    "change",
    [
        {"status": "failed"},
        {"content": "one two thrEe"},
        {"chunks": [(0, "one "), (1, "two "), (2, "four")]},
        {"chunks": [(0, "one "), (2, "three"), (1, "two ")]},
        {"chunks": [(0, "one "), (1, "two three")]},
    ],
)
def test_verdict__of_a_stored_message_that_differs_is_bad(change: dict[str, Any]) -> None:
    recording = recording_of(seen(0, 1, 2))
    recording.stored = recording.stored._replace(**change)
    assert recording.verdict()["stored"]


def test_latencies__are_of_what_was_written_while_the_viewer_watched() -> None:
    recording = recording_of(seen(0, 1, 2))
    assert recording.latencies(recording.viewers[0]) == [1000.0, 1000.0]


def test_latencies__of_a_viewer_that_resumed_are_without_what_it_caught_up_on() -> None:
    recording = recording_of(seen(0) + seen(1, 2, since=10.5))
    assert recording.latencies(recording.viewers[0]) == []


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal__ends_a_command_as_ctrl_c_does(number: signal.Signals) -> None:
    cleaned_up = False
    # Under nohup the tests themselves ignore SIGHUP.
    outside = signal.signal(number, signal.SIG_DFL)

    async def command() -> None:
        nonlocal cleaned_up
        try:
            signal.raise_signal(number)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned_up = True

    try:
        with pytest.raises(SystemExit) as exited, terminable():
            asyncio.run(command())
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, outside)
    assert (exited.value.code, cleaned_up) == (128 + number, True)


def test_signal__that_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


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
    assert "must be a number greater than 0" in capsys.readouterr().err
