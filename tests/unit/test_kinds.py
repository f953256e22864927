"""The filter of kinds: what it leaves reduces to the same parts of these kinds, for any log."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from converse_mongo import MessageChunk, PartIdentity, PartLog
from converse_mongo.domain.part_identity import start_of
from converse_mongo.watching.kinds import KindFilter
from tests.model.part_logs import VECTORS, as_json, logs, stored

AT = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = ["text", "reasoning", "tool_call", "data", "step", "new"]


def check(chunks: list[dict[str, Any]], kinds: set[str], behind: int) -> None:
    """Checks a watcher that has the first chunks against a reader of the whole log."""
    made = [MessageChunk.from_stored({"created_at": AT, **chunk}) for chunk in chunks]

    async def identify(part: int) -> PartIdentity | None:
        start = start_of(made[part])
        return None if start.kind is None else PartIdentity(start.kind, start.name)

    async def watch() -> PartLog:
        log, kept = PartLog.of(chunks[:behind]), KindFilter(kinds)
        for chunk in made[behind:]:
            shown = await kept(chunk, identify)
            if shown is not None:
                assert shown.sequence == chunk.sequence
                log.add(shown)
        return log

    expected, found = (
        [log.metadata, *(each for each in log.records() if each["kind"] in kinds)]
        for log in (PartLog.of(chunks), asyncio.run(watch()))
    )
    assert as_json(found) == as_json(expected)


def test_any_kinds__of_known_logs() -> None:
    for vector in VECTORS:
        chunks = stored(vector["chunks"])
        for kind in KINDS:
            check(chunks, {kind}, 0)
            check(chunks, {kind}, len(chunks) // 2)


@settings(max_examples=100, deadline=None)
@given(logs([]), st.sets(st.sampled_from(KINDS)), st.floats(0, 1))
def test_any_kinds__of_any_log(chunks: list[dict[str, Any]], kinds: set[str], at: float) -> None:
    check(chunks, kinds, int(at * len(chunks)))
