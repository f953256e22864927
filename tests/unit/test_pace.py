"""How long a hub waits for the next comparison."""

import pytest

from converse_mongo.watching.pace import TIMELY_LOOKS, Pace


def longest(pace: Pace, left: float | None = None) -> float:
    return max(pace.checking(left) for _ in range(200))


def test_pace__grows_to_four_times_while_the_stream_tells_all() -> None:
    pace = Pace(0.25, 2.0, sharded=False)
    lengths = []
    for _ in range(10):
        lengths.append(longest(pace))
        pace.judge(untold=False)
    assert lengths[0] <= 2 < lengths[2]
    assert 7 < lengths[-1] <= 8
    pace.judge(untold=True)
    assert longest(pace) <= 2


def test_pace__has_jitter() -> None:
    pace = Pace(0.25, 2.0, sharded=False)
    assert len({pace.checking(None) for _ in range(100)}) > 50
    assert len({pace.polling() for _ in range(100)}) > 50
    assert all(pace.polling() <= 0.25 for _ in range(100))


def test_pace__never_grows_behind_a_mongos() -> None:
    pace = Pace(0.25, 2.0, sharded=True)
    for _ in range(10):
        pace.judge(untold=False)
    assert longest(pace) <= 2


@pytest.mark.parametrize(("left", "bound"), [(-30.0, 2.0), (0.5, 2.0), (4.0, 5.0), (30.0, 8.0)])
def test_pace__lets_no_orphan_wait(left: float, bound: float) -> None:
    pace = Pace(0.25, 2.0, sharded=False)
    for _ in range(10):
        pace.judge(untold=False)
    assert longest(pace, left) <= bound


def test_pace__takes_a_stream_behind_a_mongos_for_late_until_it_is_in_time() -> None:
    assert not Pace(0.25, 2.0, sharded=False).late
    pace = Pace(0.25, 2.0, sharded=True)
    assert pace.late
    for _ in range(TIMELY_LOOKS - 1):
        pace.note_timely()
    pace.judge(untold=True)
    for _ in range(TIMELY_LOOKS - 1):
        pace.note_timely()
    assert pace.late
    pace.note_timely()
    assert not pace.late
    pace.judge(untold=True)
    assert pace.late
