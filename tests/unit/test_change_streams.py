"""The thread that reads a change stream, on a stream that answers as a test says."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from converse_mongo.driver.change_streams import ThreadChangeStream

SECONDS = 10.0
"""How long a stub waits at most."""


class TwiceClosed:
    """A stream whose second ``close`` meets what the first one took away."""

    alive = True

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.session: Any = SimpleNamespace(end=lambda: None)

    def try_next(self) -> None:
        if self.closed.wait(SECONDS):
            raise AutoReconnect("connection closed")

    def close(self) -> None:
        self.closed.set()
        session, self.session = self.session, None
        session.end()


@pytest.mark.parametrize("of", ["the loop and the thread", "the thread alone"])
async def test_thread__ends_whatever_closing_raises(of: str) -> None:
    twice = TwiceClosed()
    if of == "the thread alone":
        twice.session = None
    database = SimpleNamespace(name="any", watch=lambda *_, **__: twice)
    stream = ThreadChangeStream(database, [])
    await stream.open()
    async with asyncio.timeout(SECONDS):
        await stream.aclose()
        await asyncio.to_thread(stream._thread.join)
        with pytest.raises(AutoReconnect):
            await stream.next_batch()
    assert stream._ended.is_set()
