"""Work: what a caller may ask for, and how a document has it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from converse_mongo.domain.errors import InvalidInputError
from converse_mongo.domain.work import (
    MAX_NAME_BYTES,
    Job,
    PendingCall,
    Work,
    WorkState,
    places_id,
    stored_key,
)

AT = datetime(2026, 1, 1, tzinfo=UTC)
TICKET = ObjectId()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"queue": ""}, "from 1 to 512 bytes"),
        ({"queue": 5}, "must be str, not int"),
        ({"queue": "x" * (MAX_NAME_BYTES + 1)}, "from 1 to 512 bytes"),
        ({"queue": "\ud800"}, "lone surrogate"),
        ({"key": ""}, "from 1 to 512 bytes"),
        ({"key": ()}, "a tuple of str"),
        ({"key": 5}, "a tuple of str"),
        ({"key": ("user", 42)}, "must be str, not int"),
        ({"key": ("x" * 300, "y" * 300)}, "from 1 to 512 bytes"),
        ({"priority": 2**31}, "priority must be less than"),
        ({"priority": -(2**31) - 1}, "priority must be an integer of at least"),
        ({"priority": 1.5}, "priority must be an integer"),
        ({"priority": True}, "priority must be an integer"),
        ({"delay": -1}, "delay must be from 0"),
        ({"delay": float("nan")}, "delay must be from 0"),
        ({"delay": "1"}, "delay must be a number of seconds"),
        ({"limit": 1}, "pass a key as well"),
        ({"key": "k", "limit": 0}, "limit must be an integer of at least 1"),
        ({"key": "k", "limit": 1001}, "limit must be at most 1000"),
        ({"max_attempts": 0}, "max_attempts must be an integer of at least 1"),
        ({"max_attempts": 2**31}, "max_attempts must be less than"),
    ],
)
def test_job__that_cannot_be_stored(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        Job(**{"queue": "q", **wrong})


def test_key__of_one_text_is_none_of_a_tuple() -> None:
    keys: list[Any] = ["a", ("a",), ("a", "b"), "a,b", '["a"]', '"a"', ("a,b",), ('a","b',)]
    assert len({stored_key(key) for key in keys}) == len(keys)
    assert len({places_id(q, stored_key(k) or "") for q in ("q", '"q"') for k in keys}) == 16


@given(st.lists(st.one_of(st.text(), st.lists(st.text(min_size=1), min_size=1)), min_size=2))
def test_key__collides_with_no_other(keys: list[Any]) -> None:
    plain = [tuple(key) if isinstance(key, list) else key for key in keys]
    try:
        stored = [stored_key(key) for key in plain]
    except InvalidInputError:
        return
    assert len(set(stored)) == len(set(plain))


@pytest.mark.parametrize(
    ("job", "state", "available", "due"),
    [
        (Job(queue="q"), "queued", None, 0),
        (Job(queue="q", delay=0), "queued", None, 0),
        (Job(queue="q", delay=5), "queued", 5, 5),
        (Job(queue="q", key="k"), "blocked", None, None),
        (Job(queue="q", key="k", delay=5), "delayed", 5, 5),
    ],
)
def test_work__of_a_job(job: Job, state: str, available: int | None, due: int | None) -> None:
    def at(seconds: int | None) -> datetime | None:
        return None if seconds is None else AT + timedelta(seconds=seconds)

    work = Work.of(job, AT)
    assert (work.state, work.available_at, work.due) == (state, at(available), at(due))
    assert work.limit == (None if job.key is None else 1)


def test_work__is_the_same_read_with_the_document_or_by_itself() -> None:
    call = {"part": 1, "call_id": "c", "wanted": "approval", "approval_id": "a", "expires_at": AT}
    stored = {
        "queue": "q",
        "key": '"k"',
        "priority": 2,
        "state": "waiting",
        "limit": 3,
        "ticket": TICKET,
        "pending": [call, {"part": 2, "call_id": "d", "wanted": "output"}],
        "available_at": AT.replace(tzinfo=None),
        "due": AT.replace(tzinfo=None),
        "crashes": 1,
        "retries": 2,
        "max_attempts": 9,
        "trace": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    work = Work.from_stored(stored)
    assert work == Work.model_validate(stored)
    assert work is not None
    assert (work.state, work.due, work.places_id) == (WorkState.WAITING, AT, '["q","k"]')
    assert (work.attempt, work.is_last_attempt) == (4, False)
    assert [each.to_stored() for each in work.pending] == stored["pending"]
    assert str(work.pending[0]) == "c (its approval)"
    assert Work.from_stored(None) is None


def test_work__stores_what_it_has() -> None:
    assert dict(Work(queue="q", crashes=2)) == {
        "queue": "q",
        "priority": 0,
        "crashes": 2,
        "retries": 0,
        "max_attempts": 3,
    }
    assert Work(queue="q", crashes=2).is_last_attempt
    assert dict(PendingCall(part=1, call_id="c", wanted="output")) == {
        "part": 1,
        "call_id": "c",
        "wanted": "output",
    }
