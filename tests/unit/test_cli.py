"""The parts of the command line that need neither server nor processes."""

import asyncio
import importlib.util
import io
import re
import signal
import socket
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo import IndexModel

from converse_mongo.domain.part_events import PartDelta, PartEnd, PartSet, PartStart
from converse_mongo.driver.installed import driver_name, install_command
from converse_mongo.tools import cli
from converse_mongo.tools.demo.recording import Recording, Seen, StoredMessage, Viewer, Worker
from converse_mongo.tools.demo.texts import answer_of, rest_of, tokenise
from converse_mongo.tools.doctor import (
    Finding,
    Level,
    check_default_concern,
    check_installation,
    check_oplog_window,
    check_topology,
    missing_indexes,
)
from converse_mongo.tools.signals import terminable
from converse_mongo.tools.terminal import printable

# Tokens


@given(st.text(st.characters(codec="utf-8")))
def test_tokens__joined_are_the_text(text: str) -> None:
    tokens = tokenise(text)
    assert "".join(tokens) == text
    assert all(0 < len(token) <= 12 for token in tokens)


def test_rest_of_an_answer__names_the_parts_that_are_stored_by_their_numbers() -> None:
    answer = answer_of("one two")
    starts = {each.key: at for at, each in enumerate(answer) if isinstance(each, PartStart)}
    for begin in range(len(answer) + 1):
        rest = rest_of(answer, begin)
        assert len(rest) == len(answer) - begin
        for before, after in zip(answer[begin:], rest, strict=True):
            if not isinstance(before, PartDelta | PartSet | PartEnd):
                assert after == before
                continue
            number = starts[str(before.part)]
            wanted = number if number < begin else before.part
            assert after == replace(before, part=wanted)


# The verdict

TOKENS = ["one ", "two ", "three"]


def chunk(sequence: int, content: str, **fields: Any) -> dict[str, Any]:
    return {"sequence": sequence, "content": content, **fields}


def seen(*sequences: int, since: float = 9.5) -> list[Seen]:
    return [Seen(chunk(number, TOKENS[number]), 10.0 + number, since) for number in sequences]


def recording_of(received: list[Seen]) -> Recording:
    """A stream of three chunks, written at 9, 10 and 11, that one viewer watched from 9.5 on."""
    text = "".join(TOKENS)
    return Recording(
        text,
        len(TOKENS),
        [Viewer("viewer", seen=received, end="message.completed")],
        sent_at={number: 9.0 + number for number in range(3)},
        finished=True,
        stored=StoredMessage("completed", text, [chunk(*each) for each in enumerate(TOKENS)]),
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
        [*seen(0, 1), Seen(chunk(2, "3"), 12.0, 9.5)],
        [*seen(0, 1), Seen(chunk(2, "three", part=0), 12.0, 9.5)],
        [*seen(0), Seen(chunk(1, "two three"), 11.0, 9.5), Seen(chunk(2, ""), 12.0, 9.5)],
        [],
    ],
    ids=["cut", "gap", "disorder", "repeat", "changed", "of_a_part", "moved", "nothing"],
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
        {"chunks": [chunk(0, "one "), chunk(1, "two "), chunk(2, "four")]},
        {"chunks": [chunk(0, "one "), chunk(2, "three"), chunk(1, "two ")]},
        {"chunks": [chunk(0, "one "), chunk(1, "two three")]},
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


@pytest.mark.parametrize(
    ("sent_by", "pauses"),
    [
        ("aab", [1000.0, None]),
        ("abb", [1000.0, None]),
        ("aaa", [None, None]),
        ("bbb", [None, None]),
        ("bba", [None, 1000.0]),
    ],
)
def test_pause__is_what_the_first_viewer_waited_for_another_worker(
    sent_by: str, pauses: list[float | None]
) -> None:
    recording = recording_of(seen(0, 1, 2))
    recording.workers = [Worker("a", ""), Worker("b", "")]
    recording.sent_by = dict(enumerate(sent_by))
    assert [recording.pause(worker) for worker in recording.workers] == pauses
    assert [recording.written(each) for each in recording.workers] == [
        sent_by.count("a"),
        sent_by.count("b"),
    ]


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
    assert install_command("demo") in errors
    assert errors.count("\n") == 1


def test_install_command__works_in_a_clone_and_names_the_installed_driver() -> None:
    names = "motor,chat" if driver_name() == "motor" else "chat"
    assert install_command("chat").startswith(f'python -m pip install ".[{names}]" ')


def test_documentation__installs_in_a_way_that_works_from_a_clone() -> None:
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("converse_mongo/**/*.md")]
    known = {*project["optional-dependencies"]}
    for page in pages:
        text = page.read_text("utf-8")
        assert "converse-mongo[" not in text, page
        for names in re.findall(r'pip install .*"\.\[(.*?)\]"', text):
            assert {*names.split(",")} <= known, page
    for name, requirements in project["optional-dependencies"].items():
        # The driver is the user's own choice.
        assert name == "motor" or not re.search("motor|beanie", " ".join(requirements))


ABSENT = "mongodb://127.0.0.1:9/x"
ID = "0123456789abcdef01234567"


def test_command__without_arguments_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: converse-mongo")


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("serve --uri nonsense", "must begin with mongodb://"),
        ("serve --uri mongodb://", "This URI or an option is not valid"),
        ("serve --uri mongodb://user:hunter2@/x@host", "percent-encoded"),
        (f"serve --uri {ABSENT}", "MongoDB cannot be reached (127.0.0.1:9: "),
        (f"demo --uri {ABSENT}", "MongoDB cannot be reached (127.0.0.1:9: "),
        (f"tail {ID} --uri {ABSENT}", "MongoDB cannot be reached (127.0.0.1:9: "),
        ("serve --database a$b", "must not contain '$'"),
        (f"demo --database {'x' * 64}", "must have at most 63 bytes"),
        ("serve --port 99999", "must be a number from 0 to 65535"),
        ("serve --port x", "must be a number from 0 to 65535"),
        ("serve --host nowhere.invalid", "The port 8000 of nowhere.invalid cannot be used"),
        ("serve --port BUSY", "cannot be used: Address already in use"),
        ("serve --port 0 --data FILE", "cannot be used: Not a directory"),
        ("serve --port 0 --data", "expected one argument"),
        (f"serve --data FILE --uri {ABSENT}", "--data is for the embedded server"),
        ("server --port BUSY", "cannot be used: Address already in use"),
        ("server --port 0 --data FILE/x", "cannot be used: Not a directory"),
        ("demo --nonsense", "unrecognized arguments"),
        ("nonsense", "invalid choice"),
    ],
)
def test_command__with_bad_input_says_why_in_one_line(
    command: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("CONVERSE_URI", raising=False)
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        command = command.replace("BUSY", port).replace("FILE", str(tmp_path / "file"))
        try:
            code: object = cli.main(command.split())
        except SystemExit as exited:  # of the parser
            code = exited.code
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert complaint in shown.err
    assert shown.err.startswith("converse-mongo: ")
    assert shown.err.count("\n") == 1
    assert "Topology" not in shown.err
    assert "hunter2" not in shown.err


def test_database__of_the_environment_is_checked_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVERSE_DATABASE", "a b")
    with pytest.raises(SystemExit) as exited:
        cli.main(["serve"])
    assert exited.value.code == 2
    assert "must not contain ' '" in capsys.readouterr().err


def test_warning__is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_server", lambda _: warnings.warn("Odd\n\x1b[2J.", stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        cli.main(["server"])
    assert capsys.readouterr().err == "converse-mongo: Odd ␛[2J.\n"


def test_version__imports_no_odm() -> None:
    code = "import sys; from converse_mongo.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.startswith("converse-mongo ")
    assert "converse_mongo.tools.cli" in done.stderr
    assert not re.search(r"beanie|pymongo|pydantic|rich", done.stderr)


# Terminals


@given(st.text())
def test_printable__leaves_nothing_that_steers_a_terminal(text: str) -> None:
    steering = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
    assert not re.search(steering, printable(text))
    if not re.search(steering, text):
        assert printable(text) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_finding__is_wrapped_at_words_and_colored_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    finding = Finding(Level.WARN, "oplog", "word " * 20 + "\x1b[2J", "advice " * 20)
    terminal, pipe = Terminal(), io.StringIO()
    finding.write(terminal)
    finding.write(pipe)
    lines = terminal.getvalue().splitlines()
    assert lines[0].startswith("\x1b[33mwarn\x1b[0m  oplog")
    assert all(len(re.sub("\x1b\\[\\d+m", "", line)) <= 60 for line in lines)
    assert set(" ".join(lines[1:]).split()) == {"word", "->", "advice", "␛[2J"}
    assert pipe.getvalue().count("\n") == 2
    assert "\x1b" not in pipe.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    finding.write(plain := Terminal())
    assert "\x1b" not in plain.getvalue()


def test_installation__that_the_readme_recommends_is_fine() -> None:
    versions = {"beanie": "1.30.0", "motor": "3.7.1"}
    assert {each.level for each in check_installation(versions)} == {Level.OK}


@pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf", "fast"])
def test_demo__refuses_a_speed_that_is_none(speed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.main(["demo", "--tokens-per-second", speed])
    assert exited.value.code == 2
    assert "must be a number greater than 0" in capsys.readouterr().err
