"""Leases: as a document has them, as users see them, and until when they hold."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo import Lease

AT = datetime(2026, 1, 1, tzinfo=UTC)
HOLDER = ObjectId()


@pytest.mark.parametrize("stored", [None, {}, {"epoch": None, "holder": None}])
def test_lease__of_a_message_that_has_none_is_never_over(stored: dict[str, Any] | None) -> None:
    lease = Lease.from_stored(stored)
    assert lease == Lease()
    assert not lease.has_expired(AT)


def test_lease__is_the_same_read_with_the_document_or_by_itself() -> None:
    stored = {"epoch": 2, "holder": HOLDER, "renewed_at": AT.replace(tzinfo=None), "duration": 3.0}
    lease = Lease.from_stored(stored)
    assert lease == Lease.model_validate(stored)
    assert lease.renewed_at == AT
    assert lease.model_dump(mode="json")["holder"] == str(HOLDER)


def test_lease__is_over_behind_its_duration() -> None:
    lease = Lease(renewed_at=AT, duration=3.0)
    assert not lease.has_expired(AT + timedelta(seconds=3))
    assert lease.has_expired(AT + timedelta(seconds=3.001))


@pytest.mark.parametrize(
    ("other", "held"),
    [
        (Lease(epoch=2, holder=HOLDER, duration=1.0), True),
        (Lease(epoch=3, holder=HOLDER), False),
        (Lease(epoch=2, holder=ObjectId()), False),
        (Lease(epoch=2), False),
    ],
)
def test_lease__is_held_by_one_writer(other: Lease, held: bool) -> None:
    assert Lease(epoch=2, holder=HOLDER).is_held_by(other) is held
