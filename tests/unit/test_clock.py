"""The server's clock, estimated between two answers, however late they come."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from converse_mongo.store import clock as module
from converse_mongo.store.clock import ESTIMATED_SECONDS, MARGIN_SECONDS, ServerClock

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class World:
    """A server whose clock is right, and an answer of it that takes its time.

    Attributes:
        now: The seconds that have passed since noon.
    """

    class reader:  # noqa: N801 - of the interface
        server_time = None

    def __init__(self, way_there: float = 0, way_back: float = 0) -> None:
        self.now = 0.0
        self._ways = way_there, way_back

    async def call(self, _: object, what: str) -> datetime:
        self.now += self._ways[0]
        said = self.time
        self.now += self._ways[1]
        return said

    @property
    def time(self) -> datetime:
        return NOON + timedelta(seconds=self.now)


def clock_in(world: Any, monkeypatch: pytest.MonkeyPatch) -> ServerClock:
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: world.now))
    return ServerClock(world)


async def test_new_id__has_the_time_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    clock = clock_in(world, monkeypatch)
    assert clock.new_id().generation_time > NOON
    await clock.read()
    world.now += 3600
    first, second = clock.new_id(), clock.new_id()
    assert first.generation_time == second.generation_time == world.time
    assert first < second


@pytest.mark.parametrize("ways", [(0, 0), (0, 5), (5, 0), (2, 3)])
async def test_clock__is_between_its_bounds_however_late_the_answer_came(
    ways: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(*ways)
    clock = clock_in(world, monkeypatch)
    assert clock.estimate() is clock.latest() is None
    assert await clock.read() == NOON + timedelta(seconds=ways[0])
    world.now += 7
    estimate, latest = clock.estimate(), clock.latest()
    assert estimate is not None
    assert latest is not None
    assert estimate <= world.time <= latest - timedelta(seconds=MARGIN_SECONDS)
    assert latest - estimate == timedelta(seconds=sum(ways) + MARGIN_SECONDS)
    assert clock.seconds_until(estimate) == pytest.approx(0)


async def test_clock__is_estimated_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(1, 1)
    clock = clock_in(world, monkeypatch)
    await clock.read()
    world.now += ESTIMATED_SECONDS
    assert await clock.now() == world.time - timedelta(seconds=1)
    assert clock.latest() is not None
    world.now += 1
    assert clock.estimate() is clock.latest() is None
    assert clock.seconds_until(world.time) == pytest.approx(1), "for those who may be wrong"
    asked = world.now
    assert await clock.now() == NOON + timedelta(seconds=asked + 1)
