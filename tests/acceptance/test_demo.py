"""``converse-mongo demo`` as its users run it: real processes, nothing replaced."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import pytest
from bson import ObjectId
from pymongo import MongoClient

DEMO = [sys.executable, "-m", "converse_mongo", "demo"]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "CONVERSE_URI"},
    "PYTHONUTF8": "1",
}
FAST = ("--tokens-per-second", "2000")
SECONDS = 110
TEXT = "Grüße, 世界! 🎉\r\n\n  two  spaces,\ttabs and a last line without an end"


def run_demo(*arguments: str, text: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*DEMO, *arguments], input=text, capture_output=True, timeout=SECONDS, env=ENVIRONMENT
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def start_demo(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*DEMO, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def rows(output: str) -> dict[str, list[str]]:
    """The rows of the tables: name, how, chunks, equal and two times; of workers, a pause."""
    lines = [line for line in output.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    return {name: rest for name, *rest in cells}


def read_until(stream: IO[str] | None, start: str) -> str:
    """The first line that begins with ``start``."""
    assert stream is not None
    for line in stream:
        if line.startswith(start):
            return line
    raise AssertionError(f"no line began with {start!r}")


def connect(uri: str) -> MongoClient[dict[str, Any]]:
    return MongoClient(uri)


def message_id(output: str) -> ObjectId:
    found = re.search(r"message (\w{24})", output)
    assert found
    return ObjectId(found[1])


@pytest.fixture
def database(server_uri: str) -> Iterator[str]:
    """The name of a database on the shared server, which is dropped in the end."""
    name = f"test_{uuid4().hex[:16]}"
    yield name
    with connect(server_uri) as client:
        client.drop_database(name)


def test_demo__of_the_sample_shows_that_all_is_equal() -> None:
    done = run_demo(*FAST)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    table = rows(done.stdout)
    workers = [table.pop(f"worker {number}") for number in (1, 2, 3)]
    assert list(table) == ["viewer 1", "viewer 2", "viewer 3", "stored"]
    assert {row[2] for row in table.values()} == {"yes"}
    assert len({row[1] for row in table.values()}) == 1, "not all have the same number of chunks"
    assert table["stored"][0] == "completed"
    assert sum(int(row[1]) for row in workers) == int(table["stored"][1])
    assert [row[0] for row in workers[:2]] == ["killed (SIGKILL)", "ended (SIGTERM)"]
    assert all(float(row[-1]) > 0 for row in workers[:2]), "nobody went on"
    assert "Everything is equal." in done.stdout


def test_demo__takes_its_text_from_standard_input_and_leaves_it_on_a_given_server(
    server_uri: str, database: str
) -> None:
    done = run_demo(*FAST, "--uri", server_uri, "--database", database, text=TEXT.encode())
    assert done.returncode == 0, done.stderr
    shown = [line[2:] for line in done.stdout.split("\n") if line.startswith("| ")]
    assert "\n".join(shown) == TEXT
    with connect(server_uri) as client:
        stored = client[database]["messages"].find_one(message_id(done.stdout))
    assert stored is not None
    assert (stored["status"], stored["content"]) == ("completed", TEXT)


def test_demo__of_a_file_exits_with_1_when_the_stored_text_is_not_the_streamed_one(
    server_uri: str, database: str, tmp_path: Path
) -> None:
    path = tmp_path / "answer.txt"
    path.write_text("One line.\n" * 30)
    slow = ("--tokens-per-second", "50")
    arguments = ("--uri", server_uri, "--database", database, "--text", str(path))
    with start_demo(*slow, *arguments) as demo, connect(server_uri) as client:
        stored = message_id(read_until(demo.stdout, "* conversation"))
        read_until(demo.stdout, "| One line.")
        messages = client[database]["messages"]
        (message,) = messages.find({"_id": stored}, {"chunks": 1})
        text = next(index for index, chunk in enumerate(message["chunks"]) if chunk["content"])
        messages.update_one({"_id": stored}, {"$set": {f"chunks.{text}.content": "None"}})
        output, errors = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 1
    assert "its joined chunks differ from the input" in output, errors
    assert rows(output)["stored"][2] == "NO"
    assert "Everything is equal." not in output


@pytest.mark.parametrize(
    ("text", "arguments", "complaint"),
    [
        (b"\xff\xfe", (), "not in UTF-8"),
        (b"", ("--text", "-"), "nothing to stream"),
        (b"", ("--text", "/nowhere/answer.txt"), "/nowhere/answer.txt cannot be read"),
        (b"x", ("--uri", "mongodb://127.0.0.1:9/"), "MongoDB cannot be reached"),
    ],
)
def test_demo__that_cannot_begin_says_why_in_one_line(
    text: bytes, arguments: tuple[str, ...], complaint: str
) -> None:
    done = run_demo(*arguments, text=text)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


# Interrupted

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="finds the processes of the demo in /proc"
)


def descendants(pid: int) -> list[int]:
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return children + [grandchild for child in children for grandchild in descendants(child)]


@needs_proc
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_demo__that_is_interrupted_leaves_no_process_behind_and_ends_its_message(
    request: pytest.FixtureRequest, number: signal.Signals, code: int
) -> None:
    # One has a server of its own, and what is on the other's can be read when it is gone.
    uri = request.getfixturevalue("server_uri") if number == signal.SIGINT else None
    database = request.getfixturevalue("database") if uri else ""
    with start_demo(*(("--uri", uri, "--database", database) if uri else ())) as demo:
        interrupted = message_id(read_until(demo.stdout, "* conversation"))
        read_until(demo.stdout, "| ")
        left = descendants(demo.pid)
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=SECONDS)
    assert len(left) >= (7 if uri else 8), "who asked, workers, viewers, and a server of its own"
    assert (demo.returncode, errors) == (code, "")
    assert [pid for pid in left if Path(f"/proc/{pid}").exists()] == []
    if uri:
        with connect(uri) as client:
            stored = client[database]["messages"].find_one(interrupted)
        assert stored is not None
        assert stored["status"] == "cancelled"
        assert "state" not in stored["work"]


@needs_proc
def test_demo__that_is_killed_leaves_no_process_behind() -> None:
    with start_demo() as demo:
        read_until(demo.stdout, "| ")
        left = descendants(demo.pid)
        demo.kill()
        demo.communicate(timeout=SECONDS)
    until = time.monotonic() + SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in left):
        assert time.monotonic() < until, "a process stayed"
        time.sleep(0.05)
