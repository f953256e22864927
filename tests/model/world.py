"""A world in which time passes, and calls are answered, when the simulation says so."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from converse_mongo.domain.chunks import PART_OVERHEAD
from converse_mongo.domain.validation import CHUNK_OVERHEAD
from converse_mongo.driver import retry
from converse_mongo.store import (
    appends,
    calls,
    clock,
    ends,
    leases,
    pages,
    places,
    queues,
    recovery,
    updates,
)
from converse_mongo.store.collections import WriteQueue
from converse_mongo.store.pages import Pages
from tests.model.server import CLOCK
from tests.model.simulation import contract, pause

PAGE_CHUNKS = 3
SEAL_DELAY = 1.0
MAX_LIVE_BYTES = 6 * (CHUNK_OVERHEAD + 12)
MAX_LIVE_BYTES_WITH_PARTS = 4 * (CHUNK_OVERHEAD + PART_OVERHEAD + 100)


async def no_wait(attempt: int) -> None:
    """Waits for nothing."""


async def wait_a_second(attempt: int) -> None:
    """Waits while others go on."""
    await pause(1)


def simulate(monkeypatch: pytest.MonkeyPatch, *, hasty: bool = False, parts: bool = False) -> None:
    """Makes pages small, waits short, and all clocks that of the simulation.

    Args:
        hasty: Whether appends wait for room, as long as a majority is behind.
        parts: Whether there is room for parts.
    """
    import mongomock

    most = MAX_LIVE_BYTES_WITH_PARTS if parts else MAX_LIVE_BYTES

    monkeypatch.setattr(pages, "PAGE_CHUNKS", PAGE_CHUNKS)
    for module in (appends, calls, updates):
        monkeypatch.setattr(module, "MAX_LIVE_BYTES", most)
    for module in (appends, calls, ends, recovery):
        monkeypatch.setattr(module, "now", CLOCK.read)
    for module in (appends, calls, clock, leases, pages):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=CLOCK.monotonic))
    monkeypatch.setattr(pages, "_FIRST_DELAY_SECONDS", 0)
    monkeypatch.setattr(mongomock, "utcnow", CLOCK.read_naive)
    for module in (appends, calls, ends, places, queues):
        monkeypatch.setattr(module, "back_off", no_wait)
    monkeypatch.setattr(recovery, "pause", pause)
    monkeypatch.setattr(retry, "random_pause", lambda *_: 0.0)
    if hasty:
        have_appends_wait(monkeypatch)


def have_appends_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has an append wait for room, and all else be tried again once."""
    call, seal = retry.call, Pages.seal

    async def call_twice(*arguments: Any, **options: Any) -> Any:
        return await call(*arguments, **{**options, "timeout": 0})

    async def watched(self: Pages, queue: WriteQueue, key: Mapping[str, Any]) -> bool:
        judge, moved = contract(), False
        judge.seals(queue, delay=2 * SEAL_DELAY)
        try:
            moved = await seal(self, queue, key)
        finally:
            judge.sealed(queue, moved=moved)
        return moved

    monkeypatch.setattr(retry, "call", call_twice)
    monkeypatch.setattr(Pages, "seal", watched)
    monkeypatch.setattr(appends, "back_off", wait_a_second)
    monkeypatch.setattr(pages, "_FIRST_DELAY_SECONDS", SEAL_DELAY)
