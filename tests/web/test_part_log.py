"""The reducers in Python and in JavaScript: they agree about any log."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from converse_mongo.domain.part_log import PartLog
from tests.model.part_logs import as_in_javascript, as_json, logs

REDUCE = Path(__file__).parent / "client" / "reduce.mjs"

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


def test_reducers__agree() -> None:
    made: list[list[dict[str, Any]]] = []

    @settings(max_examples=300, deadline=None, database=None)
    @given(logs([]))
    def make(log: list[dict[str, Any]]) -> None:
        made.append(log)

    make()
    done = subprocess.run(
        ["node", str(REDUCE)],  # noqa: S607
        input=json.dumps(made).encode(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    pairs = zip(made, json.loads(done.stdout), strict=True)
    wrong = [(log, found) for log, found in pairs if as_json(found) != as_json(reduced(log))]
    if wrong:
        log, found = min(wrong, key=lambda each: len(each[0]))
        assert found == reduced(log), log
        assert as_json(found) == as_json(reduced(log)), log


def reduced(chunks: list[dict[str, Any]]) -> Any:
    log = PartLog()
    numbers = [log.add(chunk) for chunk in chunks]
    snapshot = log.snapshot()
    reduced = {"numbers": numbers, "text": log.text(), "snapshot": snapshot, "resumed": snapshot}
    return json.loads(json.dumps(reduced), parse_float=as_in_javascript)
