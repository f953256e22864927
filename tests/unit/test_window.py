"""The window: bounded, shared, and fair to who waits."""

import asyncio

from converse_mongo.watching.window import Window


def test_window__forgets_the_oldest() -> None:
    window: Window[str] = Window(max_events=3, max_weight=100, first=10)
    for event in "abcde":
        window.put(event, 1)
    assert (window.first, window.head) == (12, 15)
    assert [window.get(index) for index in range(10, 17)] == [
        *(None, None),
        *"cde",
        *(None, None),
    ]


def test_window__is_bounded_in_weight_and_keeps_one() -> None:
    window: Window[str] = Window(max_events=100, max_weight=10)
    for number in range(20):
        window.put(str(number), 4)
        assert window.head - window.first <= 2
    window.put("big", 1000)
    assert (window.first, window.head, window.get(20)) == (20, 21, "big")


def test_window__jumps() -> None:
    window: Window[str] = Window(10, 10)
    window.put("a", 1)
    window.jump(7)
    assert (window.first, window.head, window.get(0), window.get(7)) == (7, 7, None, None)
    window.put("b", 1)
    assert window.get(7) == "b"


async def test_waiter__one_that_gives_up_does_not_wake_the_others() -> None:
    window: Window[str] = Window(10, 10)
    waiters = [window.waiter() for _ in range(3)]
    assert window.waiting == 3
    waiters[0].cancel()
    window.forget(waiters[0])
    window.forget(waiters[0])  # twice is no harm
    assert window.waiting == 2
    assert not any(waiter.done() for waiter in waiters[1:])
    window.put("a", 1)
    await asyncio.gather(*waiters[1:])
    assert window.waiting == 0
