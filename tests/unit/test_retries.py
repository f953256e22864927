"""Retries: which errors lead to another attempt, and when."""

from typing import Any

import pytest

from converse_mongo import InvalidInputError, Retry, RetryPolicy


def test_pause__doubles_up_to_the_longest() -> None:
    policy = RetryPolicy(5, 1.0, 0, longest=5.0)
    assert [policy.pause(number) for number in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert policy.pause(10_000) == 5.0
    assert RetryPolicy(backoff=0).pause(3) == 0


def test_pause__is_shorter_by_chance() -> None:
    pauses = {RetryPolicy(5, 8.0, 0.5).pause(0) for _ in range(50)}
    assert len(pauses) > 1
    assert all(4.0 <= pause <= 8.0 for pause in pauses)


def test_pause__is_the_one_that_was_asked_for() -> None:
    assert RetryPolicy().pause(0, Retry(after=0.25)) == 0.25
    assert RetryPolicy().pause(0, Retry(after=0)) == 0
    assert RetryPolicy(backoff=2, jitter=0).pause(0, Retry("busy")) == 2


def test_pause__is_that_of_the_policy_for_a_class_that_does_not_call_the_one_above() -> None:
    class Limited(Retry):
        def __init__(self, status: int) -> None:
            self.status = status

    assert RetryPolicy(backoff=2, jitter=0).pause(0, Limited(429)) == 2
    assert (Limited(429).reason, Limited(429).after) == ("", None)


def test_wants__what_it_names() -> None:
    assert not RetryPolicy().wants(ConnectionError())
    assert RetryPolicy().wants(Retry())
    named = RetryPolicy(retry_on=(ConnectionError, TimeoutError))
    assert named.wants(ConnectionResetError())
    assert not named.wants(ValueError())
    chosen = RetryPolicy(retry_on=lambda error: "busy" in str(error))
    assert chosen.wants(ValueError("busy"))
    assert not chosen.wants(ValueError("no"))
    assert not RetryPolicy(retry_on=lambda _: True).wants(KeyboardInterrupt())


def test_allows__so_many() -> None:
    assert [RetryPolicy(2).allows(number) for number in range(4)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max": -1}, "max must be"),
        ({"backoff": -1}, "backoff must be"),
        ({"longest": float("nan")}, "longest must be"),
        ({"jitter": 2}, "jitter must be from 0 to 1"),
        ({"jitter": "a"}, "jitter must be a number"),
        ({"retry_on": [ValueError]}, "retry_on must be"),
        ({"retry_on": (ValueError, 5)}, "retry_on must be"),
    ],
)
def test_policy__that_makes_no_sense_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        RetryPolicy(**options)
    with pytest.raises(InvalidInputError, match="after must be"):
        Retry(after=-1)
