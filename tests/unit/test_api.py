"""The public API is what it was, or its change is seen in review."""

from pathlib import Path

from tests.api import describe

SNAPSHOT = Path(__file__).parent / "api.txt"


def test_api__is_the_one_of_the_snapshot() -> None:
    assert describe() == SNAPSHOT.read_text(encoding="utf-8"), (
        "The public API changed. If that is meant: python -m tests.api > tests/unit/api.txt"
    )
