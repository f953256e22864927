"""The parts of the commands for workers and queues that need neither server nor processes."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bson import ObjectId

from converse_mongo.domain.errors import ConfigurationError
from converse_mongo.store.stuck import Stuck
from converse_mongo.tools import cli
from converse_mongo.tools.doctor import Finding, abandoned, blocked, overdue
from converse_mongo.tools.terminal import age
from converse_mongo.tools.worker import load

APP = """
async def respond(conversation, message): ...
async def one(conversation): ...
def three(conversation, message, model): ...
class Agent:
    async def __call__(self, conversation, message): ...
    async def respond(self, conversation, message): ...
agent = Agent()
text = "text"
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with an application; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    (tmp_path / "the_app.py").write_text(APP)
    (tmp_path / "the_broken.py").write_text("\nimport the_missing\n")
    (tmp_path / "the_failing.py").write_text("import json\njson.loads('{')\n")
    (tmp_path / "the_syntax.py").write_text("def f(:\n")
    yield tmp_path
    for name in {*sys.modules} - before:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["respond", "agent", "agent.respond"])
def test_target__is_found_from_the_working_directory(name: str) -> None:
    found = load(f"the_app:{name}")
    assert found.__module__ == "the_app"


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("the_app", "'the_app' names no function: pass MODULE:FUNCTION."),
        ("the_app:", "names no function"),
        (":respond", "names no function"),
        ("the_app:nothing", "There is no 'nothing' in the module 'the_app'."),
        ("the_app:agent.nothing", "There is no 'agent.nothing' in the module 'the_app'."),
        ("the_app:text", "'text' in the module 'the_app' is no function, but str."),
        ("the_app:one", "cannot be called with a conversation and a message: too many"),
        ("the_app:three", "cannot be called with a conversation and a message: missing a required"),
        ("nowhere:respond", "There is no module 'nowhere' in "),
        ("nowhere.deep:respond", "There is no module 'nowhere.deep' in "),
        ("the_broken:respond", "No module named 'the_missing' (the_broken.py, line 2)."),
        ("the_failing:respond", "cannot be imported: JSONDecodeError: Expecting property name"),
        ("the_syntax:respond", "SyntaxError: invalid syntax (the_syntax.py, line 1)."),
    ],
)
def test_target__that_is_none_is_explained(target: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(target)
    assert complaint in str(raised.value)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("worker", "arguments are required: MODULE:FUNCTION"),
        ("worker the_app:respond", "No server given"),
        ("worker the_app:respond --queue=", "must not be empty"),
        ("worker the_app:respond --concurrency 0", "must be an integer greater than 0"),
        ("worker the_app:respond --concurrency 1.5", "must be an integer greater than 0"),
        ("worker the_app:respond --grace -1", "must be a number of at least 0"),
        ("worker the_app:respond --timeout 0", "must be a number greater than 0"),
        ("worker the_app:respond --silence nan", "must be a number greater than 0"),
        ("worker the_app:respond --lease x", "must be a number greater than 0"),
        ("worker the_app:respond --uri mongodb://127.0.0.1:9/x", "MongoDB cannot be reached"),
        ("queue list", "No server given"),
        ("queue list --limit 0", "must be an integer greater than 0"),
        ("queue retry", "arguments are required: MESSAGE_ID"),
        ("queue cancel x --reason=", "must not be empty"),
        ("queue nonsense", "invalid choice"),
    ],
)
def test_command__with_bad_input_says_why_in_one_line(
    command: str,
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("CONVERSE_URI", raising=False)
    try:
        code: object = cli.main(command.split())
    except SystemExit as exited:  # of the parser
        code = exited.code
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert complaint in shown.err
    assert shown.err.startswith("converse-mongo: ")
    assert shown.err.count("\n") == 1


def test_queue__without_a_command_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["queue"]) == 0
    assert capsys.readouterr().out.startswith("usage: converse-mongo queue")


@pytest.mark.parametrize("make", [overdue, blocked, abandoned])
def test_finding__of_a_queue_cannot_steer_the_terminal(make: Callable[[Stuck], Finding]) -> None:
    stuck = Stuck("\x1b[2J; rm -rf x", [ObjectId(), ObjectId()], 200.0, 0)
    written = io.StringIO()
    make(stuck).write(written)
    assert "\x1b" not in written.getvalue()
    assert "2 messages (the first is " in written.getvalue()
    assert "3 min" in written.getvalue()
    if make is overdue:
        assert "--queue '␛[2J; rm -rf x'" in written.getvalue()
        assert "2 others run" in str(overdue(Stuck("a", [ObjectId()], 60.0, 2)).text)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        *((None, "-"), (-0.4, "0 s"), (0.4, "0 s"), (119.0, "119 s"), (120.0, "2 min")),
        *((7199.0, "119 min"), (7200.0, "2 h"), (172800.0, "2 d"), (1e6, "11 d")),
    ],
)
def test_age__is_for_people(seconds: float | None, shown: str) -> None:
    assert age(seconds) == shown
