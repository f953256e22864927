"""The libraries that the page of the chat brings along are those of the record."""

from tests import vendored


def test_vendored_files__are_unchanged() -> None:
    assert vendored.differences() == []
