"""Change streams, opened and read: one way for each driver, the same to who reads them."""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from bson import Timestamp
from pymongo.errors import AutoReconnect, PyMongoError

from converse_mongo.driver.deadlines import fresh

__all__ = [
    "CLOSE_SECONDS",
    "Change",
    "ChangeStream",
    "TaskChangeStream",
    "ThreadChangeStream",
    "in_thread",
]

logger = logging.getLogger("converse_mongo")

Change: TypeAlias = Mapping[str, Any]

MAX_AWAIT_SECONDS = 1.0
"""How long the server may hold an idle change stream's getMore; news end the wait at once."""
ANSWER_SECONDS = 10.0
"""How much longer a server may take that is frozen, or that a dead connection leads to."""
CLOSE_SECONDS = 2.0
"""How long closing waits for a server that may hang."""
_FEED_ROOM = 1000
_ENDED = "the server closed the change stream"


async def in_thread(function: Callable[[], object], seconds: float) -> None:
    """Calls a function that may block for ever, and waits for it no longer than ``seconds``.

    The thread is a daemon, which unlike those of an executor does not hold up the interpreter's
    exit; an error is of no interest to who closes.
    """
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def call() -> None:
        try:
            function()
        except Exception:
            logger.debug("Closing failed", exc_info=True)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=call, name="converse_mongo-close", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await done.wait()


class ChangeStream(Protocol):
    """A change stream."""

    async def open(self) -> None:
        """Opens the stream.

        Raises:
            PyMongoError: The server refused it or could not be reached.
        """

    async def next_batch(self) -> Sequence[Change]:
        """The changes that came since the last call; waits for some, and may return none.

        Raises:
            PyMongoError: The stream is lost; the driver has tried to resume it.
            BSONError: The stream is lost: the driver could not decode a change.
        """

    async def aclose(self) -> None:
        """Closes the cursor on the server and frees the connection, within two seconds."""


class TaskChangeStream:
    """A change stream of PyMongo Async."""

    def __init__(
        self, database: Any, pipeline: list[dict[str, Any]], start: Timestamp | None = None
    ) -> None:
        self._database = database
        self._pipeline = pipeline
        self._start = start
        self._stream: Any = None

    async def open(self) -> None:
        with fresh(ANSWER_SECONDS):
            self._stream = await self._database.watch(
                self._pipeline,
                max_await_time_ms=int(MAX_AWAIT_SECONDS * 1000),
                start_at_operation_time=self._start,
            )

    async def next_batch(self) -> Sequence[Change]:
        with fresh(MAX_AWAIT_SECONDS + ANSWER_SECONDS):
            change = await self._stream.try_next()
        if change is None and not self._stream.alive:
            raise AutoReconnect(_ENDED)
        return () if change is None else (change,)

    async def aclose(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(PyMongoError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._stream.close()


class ThreadChangeStream:
    """A change stream of the synchronous database under Motor's, read by a thread of its own.

    Motor runs every call in one pool of threads that all clients of the process share, and a change
    stream that waits there holds one of them: some ten streams stop all writes. A thread apart
    leaves the pool to the writes, and costs one hop a batch instead of one an event.
    """

    def __init__(
        self, database: Any, pipeline: list[dict[str, Any]], start: Timestamp | None = None
    ) -> None:
        self._database = database
        self._pipeline = pipeline
        self._start = start
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._news = asyncio.Event()
        self._signalled = False
        self._changes: deque[Change] = deque()
        self._room = threading.Event()
        self._closing = False
        self._stream: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"converse_mongo-changes-{database.name}", daemon=True
        )

    async def open(self) -> None:
        self._thread.start()
        await asyncio.shield(self._opened)

    async def next_batch(self) -> Sequence[Change]:
        await self._news.wait()
        self._news.clear()
        self._signalled = False
        batch = []
        while self._changes:
            batch.append(self._changes.popleft())
        self._room.set()
        if not batch and self._error is not None:
            raise self._error
        if self._ended.is_set():
            self._news.set()
        return batch

    async def aclose(self) -> None:
        self._closing = True
        self._room.set()
        if not self._thread.is_alive():
            return
        # Closing the cursor ends the wait of the thread that reads it.
        await in_thread(self._close_stream, CLOSE_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._ended.wait()

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            with fresh(ANSWER_SECONDS):
                self._stream = self._database.watch(
                    self._pipeline,
                    max_await_time_ms=int(MAX_AWAIT_SECONDS * 1000),
                    start_at_operation_time=self._start,
                )
            self._tell(self._finish_opening, None)
            while not self._closing and self._stream.alive:
                with fresh(MAX_AWAIT_SECONDS + ANSWER_SECONDS):
                    change = self._stream.try_next()
                if change is not None:
                    self._put(change)
            self._error = AutoReconnect(_ENDED)
        except BaseException as error:  # noqa: BLE001 - the loop raises it
            self._tell(self._finish_opening, error)
            self._error = error
        finally:
            if self._closing:
                with contextlib.suppress(PyMongoError):
                    self._close_stream()
            self._tell(self._finish)

    def _put(self, change: Change) -> None:
        while len(self._changes) >= _FEED_ROOM and not self._closing:
            self._room.clear()
            if len(self._changes) >= _FEED_ROOM:
                self._room.wait()
        self._changes.append(change)
        if not self._signalled:
            self._signalled = True
            self._tell(self._news.set)

    def _tell(self, callback: Any, *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(callback, *arguments)

    # What follows runs in the loop.

    def _finish_opening(self, error: BaseException | None) -> None:
        if self._opened.done():
            return
        if error is None:
            self._opened.set_result(None)
        elif isinstance(error, Exception):
            self._opened.set_exception(error)
        else:
            self._opened.cancel()

    def _finish(self) -> None:
        self._ended.set()
        self._news.set()
