"""Change streams that the server refuses: watchers poll, and the log says so once."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from pymongo.errors import InvalidOperation, OperationFailure, PyMongoError

from converse_mongo import (
    Converse,
    WatchMode,
)
from converse_mongo.embedded import EmbeddedServer
from converse_mongo.watching import hub
from tests.conftest import Facade
from tests.streams import assert_exact, collect, until

Feeds = Callable[[], Any]


class LostFeed:
    """A change stream that is lost as soon as it is read."""

    def __init__(self, error: PyMongoError) -> None:
        self._error = error

    async def next_batch(self) -> list[Any]:
        raise self._error

    async def aclose(self) -> None:
        pass


class Gate:
    """Stands between a hub and the server: refuses change streams while it is told to."""

    def __init__(self, converse: Converse, refuse: Callable[[], Any]) -> None:
        the_hub = converse._open_parts.hub
        assert the_hub._open_stream is not None
        self._real = the_hub._open_stream
        self._refuse: Callable[[], Any] | None = refuse
        self.asked = 0
        the_hub._open_stream = self._open

    async def _open(self) -> Any:
        self.asked += 1
        return await self._real() if self._refuse is None else self._refuse()

    def open(self) -> None:
        self._refuse = None


def at_opening(error: PyMongoError) -> Callable[[], Any]:
    def refuse() -> Any:
        raise error

    return refuse


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "converse_mongo" and record.levelno >= logging.WARNING
    ]


REFUSALS = {
    "no rights": OperationFailure("not authorized on chat to execute command", 13),
    "a hosted service": OperationFailure("user is not allowed to do action [changeStream]", 8000),
    "a match": OperationFailure("Error validating $match value for change streams", 8000),
    "no replica set": OperationFailure("only supported on replica sets", 40573),
    "an unknown stage": OperationFailure("Unrecognized pipeline stage name", 40324),
    "a strict API": OperationFailure("Provided apiStrict:true", 323),
    "a namespace": OperationFailure("a collection is required", 73),
    "not enabled": OperationFailure("change streams are not enabled", 376),
    "no code at all": OperationFailure("refused"),
    "a closed client": InvalidOperation("Cannot use a client after close"),
}


@pytest.mark.parametrize("why", REFUSALS)
async def test_refusal__is_polled_with_one_warning_until_it_ends(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    monkeypatch.setattr(hub, "REFUSED_SECONDS", 0.02)
    writer = await facade()
    viewer = await facade(writer.database_name, poll_interval=0.02)
    gate = Gate(viewer, at_opening(REFUSALS[why]))
    message = await (await writer.start_conversation()).start_streaming_assistant()
    watching = asyncio.create_task(collect(viewer, message))
    await until(lambda: gate.asked > 3)
    assert viewer.watch_mode is WatchMode.POLLING
    (warning,) = warnings(caplog)
    assert str(REFUSALS[why]) in warning
    gate.open()
    await until(lambda: viewer.watch_mode is WatchMode.CHANGE_STREAM)
    assert viewer.statistics().streams_opened == 1
    await message.append_chunk("a")
    await message.complete_streaming()
    assert_exact(await watching, await writer.get_message(message.id))
    assert len(warnings(caplog)) == 1


async def test_refusal__waits_for_minutes(facade: Facade) -> None:
    converse = await facade(poll_interval=0.02)
    gate = Gate(converse, at_opening(REFUSALS["a hosted service"]))
    message = await (await converse.start_conversation()).start_streaming_assistant()
    async with converse.watch_message(message.id) as events:
        await until(lambda: converse.watch_mode is WatchMode.POLLING)
        # What was just written is told by polling, many times as fast as the next try comes.
        for number in range(20):
            await message.append_chunk(str(number))
            await anext(events)
    assert gate.asked == 1
    assert hub.REFUSED_SECONDS >= 120


async def test_refusal__of_the_reading_comes_after_some_losses(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub, "REFUSED_SECONDS", 0.02)
    monkeypatch.setattr(hub, "MAX_BACKOFF_SECONDS", 0.02)
    converse = await facade(poll_interval=0.02)
    error = OperationFailure("not authorized", 13)
    gate = Gate(converse, lambda: LostFeed(error))
    message = await (await converse.start_conversation()).start_streaming_assistant()
    watching = asyncio.create_task(collect(converse, message))
    await until(lambda: gate.asked > hub.LOSSES_IN_A_ROW + 5)
    assert len(warnings(caplog)) == hub.LOSSES_IN_A_ROW + 1
    gate.open()
    await message.append_chunk("a")
    await message.complete_streaming()
    assert_exact(await watching, await converse.get_message(message.id))


async def test_refusal__that_changes_is_told_again(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub, "REFUSED_SECONDS", 0.02)
    converse = await facade(poll_interval=0.02)
    gate = Gate(converse, at_opening(REFUSALS["a hosted service"]))
    message = await (await converse.start_conversation()).start_streaming_assistant()
    async with converse.watch_message(message.id):
        await until(lambda: gate.asked > 2)
        gate._refuse = at_opening(REFUSALS["no rights"])
        asked = gate.asked
        await until(lambda: gate.asked > asked + 2)
    assert len(warnings(caplog)) == 2


async def test_refusal__of_a_moment_is_none(failing_server: EmbeddedServer, facade: Facade) -> None:
    """A network error is tried again at once, as ever, though polling steps in meanwhile."""
    converse = await facade(uri=failing_server.uri, poll_interval=0.02)
    gate = Gate(converse, at_opening(OperationFailure("no primary", 133)))
    message = await (await converse.start_conversation()).start_streaming_assistant()
    async with converse.watch_message(message.id):
        await until(lambda: gate.asked > 2)
        assert converse.watch_mode is WatchMode.POLLING
        gate.open()
        await until(lambda: converse.watch_mode is WatchMode.CHANGE_STREAM)
