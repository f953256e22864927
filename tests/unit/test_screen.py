"""The screen of the demonstration: rendered Markdown that cannot steer a terminal."""

import io
import re

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
    screen.grow(text)
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


def test_verdict__fits_into_60_columns() -> None:
    viewers = [Viewer("viewer 2", "joined after 265 chunks")]
    recording = Recording("x", 1, viewers, stored=StoredMessage("completed", "x", [(0, "x")]))
    console = Console(file=io.StringIO(), width=60)
    print_verdict(console, recording)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert any("│ completed" in line for line in lines)
