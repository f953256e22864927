"""A world in which time passes, and calls are answered, when the simulation says so."""

from types import SimpleNamespace

import pytest
from tenacity import wait_none

from converse_mongo.domain.validation import CHUNK_OVERHEAD
from converse_mongo.driver import retry
from converse_mongo.store import appends, ends, leases, pages, recovery, updates
from tests.model.server import CLOCK
from tests.model.simulation import pause

PAGE_CHUNKS = 3
MAX_LIVE_BYTES = 6 * (CHUNK_OVERHEAD + 12)


async def no_wait(attempt: int) -> None:
    """Waits for nothing."""


def simulate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes pages small, waits short, and all clocks that of the simulation."""
    import mongomock

    monkeypatch.setattr(pages, "PAGE_CHUNKS", PAGE_CHUNKS)
    for module in (appends, updates):
        monkeypatch.setattr(module, "MAX_LIVE_BYTES", MAX_LIVE_BYTES)
    for module in (appends, ends, recovery):
        monkeypatch.setattr(module, "now", CLOCK.read)
    for module in (appends, leases, pages):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=CLOCK.monotonic))
    monkeypatch.setattr(pages, "_FIRST_DELAY_SECONDS", 0)
    monkeypatch.setattr(mongomock, "utcnow", CLOCK.read_naive)
    monkeypatch.setattr(appends, "back_off", no_wait)
    monkeypatch.setattr(ends, "back_off", no_wait)
    monkeypatch.setattr(recovery, "pause", pause)
    monkeypatch.setattr(retry, "wait_before_retry", wait_none())
