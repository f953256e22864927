"""The package for node beside these tests, which has the AI SDK."""

from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent

needs_node = pytest.mark.skipif(
    not (PACKAGE / "node_modules").is_dir(),
    reason="needs node and packages from npm: python -m nox -s browser",
)
