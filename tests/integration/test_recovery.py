"""Sweeps and the hub go past what is not as it should be: one message harms no other."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import AutoReconnect

from converse_mongo import ConfigurationError, Converse, InvalidInputError, Message, WatchError
from converse_mongo.store.leases import Leases
from converse_mongo.store.pages import Pages
from tests.conftest import Facade
from tests.integration.helpers import DEAD, die, expired, soon, start, stored
from tests.streams import assert_exact, collect, until

# Durations


@pytest.mark.parametrize("option", ["lease", "idle_timeout", "retry_timeout", "poll_interval"])
@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e12])
def test_durations__have_a_bound(option: str, seconds: float) -> None:
    options: dict[str, Any] = {option: seconds}
    with pytest.raises(ConfigurationError, match=option):
        Converse("mongodb://localhost", database="x", **options)


async def test_retention__has_a_bound(converse: Converse) -> None:
    for retention in (timedelta.max, timedelta(days=3_000_000)):
        with pytest.raises(InvalidInputError, match="hundred years"):
            await start(converse, retention=retention)
        with pytest.raises(ConfigurationError):
            Converse("mongodb://localhost", database="x", retention=retention)


@pytest.mark.parametrize("field", ["retention", "lease.duration"])
async def test_durations__that_others_stored_harm_no_watcher(facade: Facade, field: str) -> None:
    converse = await facade(**DEAD)
    message, other = await start(converse), await start(converse)
    await die(converse, message, "text")
    await die(converse, other, "text")
    update = {"$set": {field: 1e300}}
    await message.store().messages.update_one({"_id": message.id}, update)
    viewer = await facade(converse.database_name, poll_interval=0.05, check_interval=0.1)
    async with viewer.watch_message(message.id) as events:
        await soon(anext(events))
        assert (await soon(collect(viewer, other)))[-1].type == "message.failed"
        if field == "retention":
            assert (await soon(anext(events))).type == "message.failed"
            assert (await stored(viewer, message)).content == "text"
        else:
            assert (await stored(viewer, message)).is_streaming
            await message.append_chunk("more")
            assert (await soon(anext(events))).type == "chunk.received"


# Documents that the library did not write, and failures


async def plant(converse: Converse, near: Message, **fields: Any) -> None:
    """Stores a message that the library cannot read, and that sweeps come to first."""
    document = {
        "_id": ObjectId(bytes(12)),
        "conversation_id": near.conversation_id,
        "position": 1,
        "role": "alien",
        "status": "streaming",
        "next_sequence": 0,
        "lease": {"epoch": 1, "renewed_at": near.created_at, "duration": 0.001},
        **fields,
    }
    await converse.message_model.store().messages.insert_one(document)


async def test_sweep__goes_past_what_it_cannot_read(facade: Facade) -> None:
    converse = await facade(**DEAD)
    message = await start(converse, retention=timedelta(milliseconds=1))
    await plant(converse, message, compact_at=message.created_at)
    await die(converse, message, "text")
    await expired(converse, message)
    [end] = await converse.recover_stale()
    assert end.message_id == message.id
    await until(lambda: datetime.now(UTC) > end.completed_at + timedelta(milliseconds=1))
    assert await converse.compact_due() == 1


@pytest.mark.parametrize("what", ["settle_if_expired", "compact"])
async def test_sweep__goes_past_what_fails_unexpectedly(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    converse = await facade(**DEAD)
    messages = [await start(converse, retention=timedelta(milliseconds=1)) for _ in range(3)]
    for each in messages:
        await die(converse, each, "text")
        if what == "compact":
            await each.complete_streaming()
        await expired(converse, each)
    kind: Any = Leases if what == "settle_if_expired" else Pages
    real, tries = getattr(kind, what), 0

    async def fail_first(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise RuntimeError("can't start new thread")
        return await real(self, *arguments, **options)

    monkeypatch.setattr(kind, what, fail_first)
    if what == "compact":
        assert await converse.compact_due() == 2
    else:
        assert len(await converse.recover_stale()) == 2


@pytest.mark.parametrize("sweep", ["recover_stale", "compact_due"])
async def test_sweep__is_tried_again(facade: Facade, sweep: str) -> None:
    converse = await facade(**DEAD)
    message = await start(converse, retention=timedelta(milliseconds=1))
    await die(converse, message, "text")
    if sweep == "compact_due":
        await message.complete_streaming()
    await expired(converse, message)
    reader = message.store().reader
    real, tries = reader.messages, 0

    class Flaky:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def find(self, *arguments: Any) -> Any:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise AutoReconnect("the network is down")
            return real.find(*arguments)

    reader._recent = (Flaky(), reader.conversations, reader.pages)
    assert await getattr(converse, sweep)()
    assert tries > 1


@pytest.mark.parametrize("change_streams", [False, True], ids=["polling", "change stream"])
async def test_hub__goes_past_what_it_cannot_read(facade: Facade, change_streams: bool) -> None:
    converse = await facade()
    dying = await facade(converse.database_name, **DEAD)
    message, live, neighbour = await start(dying), await start(converse), await start(converse)
    await die(dying, message, "text")
    viewer = await facade(
        converse.database_name,
        change_streams=change_streams,
        poll_interval=0.05,
        check_interval=0.1,
    )
    await plant(converse, neighbour)  # there before it is watched
    async with viewer.watch_conversation(neighbour.conversation_id, "now") as events:
        waiting = asyncio.create_task(anext(events))
        watching = asyncio.create_task(collect(viewer, live))
        assert (await soon(collect(viewer, message)))[-1].type == "message.failed"
        await plant(converse, neighbour, _id=ObjectId(), position=2)  # and one that comes
        with pytest.raises((ValueError, WatchError), match="alien"):
            await soon(waiting)
        await live.append_chunk("text")
        await live.complete_streaming()
        assert_exact(await soon(watching), await stored(viewer, live))


async def test_sweep__ends_with_its_facade_though_it_missed_its_cancellation(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade(sweep_interval=3600)
    recovery = converse.message_model.store().recovery
    sweeping: list[Any] = []
    real = recovery.recover_stale

    async def recover_stale() -> Any:
        if not sweeping:
            sweeping.append(asyncio.current_task())
            with contextlib.suppress(asyncio.CancelledError):  # as a driver may, while it connects
                await asyncio.sleep(3600)
        return await real()

    monkeypatch.setattr(recovery, "recover_stale", recover_stale)
    await until(lambda: bool(sweeping))
    await soon(converse.aclose())
    await soon(asyncio.wait(sweeping))
    assert sweeping[0].done()
