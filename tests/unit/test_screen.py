"""The screen of the demonstration: rendered Markdown that cannot steer a terminal."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from converse_mongo.tools.demo.recording import Recording, StoredMessage, Viewer
from converse_mongo.tools.demo.screen import Screen, print_verdict

STEERING = re.compile("[\x07\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\x1b(?!\\[[0-9;]*m)")
"""Anything but colors, which rich itself sends."""


def shown(text: str, width: int = 60) -> str:
    """The picture of a text in a terminal."""
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, height=30, color_system="standard"
    )
    screen = Screen(console, Recording(text, 1, [Viewer("viewer 1")]))
    screen.add({"sequence": 0, "content": text})
    console.print(screen._picture())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain(picture: str) -> str:
    return re.sub("\x1b\\[[0-9;]*m", "", picture)


def test_picture__is_rendered_markdown() -> None:
    picture = plain(shown("# Title\n\nSome **bold** text:\n\n- one\n- two\n\n```python\nx = 1\n"))
    assert "Some bold text" in picture
    assert "• one" in picture
    assert "x = 1" in picture
    assert "*" not in picture
    assert "`" not in picture


@pytest.mark.parametrize(
    "text",
    [
        "\x1b]52;c;eA==\x07 \x1b[2J \x9b31m \x7f \r x",
        "&#x202e;reversed &#x9b;31m &#27;[2J",
        "`code \x1b[2J` and\n\n```\n\x1b[2J\n```",
        "[link](http://example.com/\x1b]0;x)",
        "[link](http://example.com/&#x202e;x)",
    ],
)
def test_picture__cannot_steer_the_terminal(text: str) -> None:
    assert not STEERING.search(shown(text))


def test_picture__of_a_long_text_shows_its_end_within_the_screen() -> None:
    text = "\n\n".join(f"Paragraph {number}." for number in range(2000)) + "\n\n```\nlast = 1\n"
    picture = plain(shown(text))
    assert "last = 1" in picture
    assert len(picture.splitlines()) <= 30
    assert all(len(line) <= 60 for line in picture.splitlines())


def test_screen__shows_other_parts_folded_and_the_text_whole() -> None:
    chunks: list[dict[str, Any]] = [
        {"event": "start", "fields": {"kind": "reasoning"}},
        {"part": 0, "delta": "It is \x1b[2J a secret."},
        {"part": 0, "event": "end"},
        {"event": "start", "fields": {"kind": "tool_call", "name": "f", "title": "Search\x1b[2J"}},
        {"part": 3, "event": "set", "fields": {"input": 1, "started": True}},
        {"content": "One.\nTwo."},
        {"part": 3, "event": "set", "fields": {"output": "private"}},
    ]
    terminal = Console(file=io.StringIO(), force_terminal=True, width=60, height=30)
    file = Console(file=io.StringIO(), width=60)
    for console in (terminal, file):
        screen = Screen(console, Recording("", 1, [Viewer("viewer 1")]))
        for sequence, chunk in enumerate(chunks):
            screen.add({"sequence": sequence, "content": "", **chunk})
        if console is file:
            screen.__exit__()
        else:
            console.print(screen._picture())
    assert isinstance(terminal.file, io.StringIO)
    assert isinstance(file.file, io.StringIO)
    picture = plain(terminal.file.getvalue())
    assert re.search("▸ Thought for a while.*▸ Search.*: done.*One.", picture, re.DOTALL)
    assert not STEERING.search(terminal.file.getvalue())
    assert "secret" not in picture
    assert "private" not in picture
    assert not STEERING.search(file.file.getvalue())
    told = [re.sub(".\\[2J", "", line) for line in file.file.getvalue().splitlines()]
    assert told == [
        *("* Thinking…", "* Thought for a while"),
        *("* Search: preparing…", "* Search: working…"),
        *("| One.", "* Search: done", "| Two."),
    ]


def test_verdict__fits_into_60_columns() -> None:
    viewers = [Viewer("viewer 2", "joined after 265 chunks")]
    stored = StoredMessage("completed", "x", [{"sequence": 0, "content": "x"}])
    recording = Recording("x", 1, viewers, stored=stored)
    console = Console(file=io.StringIO(), width=60)
    print_verdict(console, recording)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert any("│ completed" in line for line in lines)
