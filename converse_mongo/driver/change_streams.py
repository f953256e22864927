"""Change streams: opened and read in one way for each driver, behind one interface."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

from bson import DatetimeConversion, Timestamp
from pymongo import ReadPreference
from pymongo.errors import AutoReconnect, PyMongoError
from pymongo.read_concern import ReadConcern

from converse_mongo.driver.clients import Database
from converse_mongo.driver.closing import CLOSE_SECONDS, in_thread
from converse_mongo.driver.deadlines import fresh
from converse_mongo.driver.installed import SPEAKS_MOTOR
from converse_mongo.driver.servers import committed_time, takes_time

Change: TypeAlias = Mapping[str, Any]

MAX_AWAIT_SECONDS = 1.0
"""The time for which the server holds the getMore of an idle stream; a change ends it at once."""
ANSWER_SECONDS = 10.0
"""The additional time for an answer, for a frozen server or a dead connection."""
_ROOM = 1000
_ENDED = "the server closed the change stream"


class ChangeStream(Protocol):
    """A change stream."""

    async def open(self) -> None:
        """Opens the stream.

        Raises:
            PyMongoError: The server refused it or could not be reached.
        """

    async def next_batch(self) -> Sequence[Change]:
        """Returns the changes since the last call; waits for some, and may return none.

        Raises:
            PyMongoError: The stream is lost; the driver could not resume it.
            BSONError: The stream is lost: the driver could not decode a change.
        """

    async def aclose(self) -> None:
        """Closes the cursor on the server and frees the connection, within two seconds."""


class TaskChangeStream:
    """A change stream of PyMongo Async."""

    def __init__(
        self, database: Any, pipeline: list[dict[str, Any]], start: Timestamp | None = None
    ) -> None:
        self._watch = partial(database.watch, pipeline, **_options(start))
        self._stream: Any = None

    async def open(self) -> None:
        with fresh(ANSWER_SECONDS):
            self._stream = await self._watch()

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

    Motor runs every call in one pool of threads that all clients of the process share, and a
    waiting change stream occupies one of them: some ten streams stop all writes. A separate thread
    leaves the pool to the writes, and costs one hop per batch instead of one per event.
    """

    def __init__(
        self, database: Any, pipeline: list[dict[str, Any]], start: Timestamp | None = None
    ) -> None:
        self._watch = partial(database.watch, pipeline, **_options(start))
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
        # Closing the cursor ends the wait of the thread.
        await in_thread(self._close_stream, CLOSE_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._ended.wait()

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()

    # In the thread

    def _run(self) -> None:
        try:
            with fresh(ANSWER_SECONDS):
                self._stream = self._watch()
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
                # The loop may close it at the same time, which PyMongo is not made for: whatever
                # the driver raises then says nothing to anybody.
                with contextlib.suppress(Exception):
                    self._close_stream()
            self._tell(self._finish)

    def _put(self, change: Change) -> None:
        while len(self._changes) >= _ROOM and not self._closing:
            self._room.clear()
            if len(self._changes) >= _ROOM:
                self._room.wait()
        self._changes.append(change)
        if not self._signalled:
            self._signalled = True
            self._tell(self._news.set)

    def _tell(self, callback: Any, *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *arguments)

    # In the loop

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


def _options(start: Timestamp | None) -> dict[str, Any]:
    return {
        "max_await_time_ms": int(MAX_AWAIT_SECONDS * 1000),
        "start_at_operation_time": start,
    }


async def open_change_stream(
    database: Database,
    pipeline: list[dict[str, Any]],
    begins: Callable[[Timestamp | None], None] = lambda _: None,
    *,
    secondary: bool = False,
) -> ChangeStream:
    """Opens a change stream on ``database``.

    The stream has every change that a later majority read does not show yet. Without a start time
    the server would begin behind the last entry that it has applied, and skip writes that are
    applied but not yet majority-committed. They would be neither in the stream nor in the read.

    Args:
        database: The database.
        pipeline: The stages that select changes, and fields of them.
        begins: Called with the time behind which the stream begins; ``None`` if the server does not
            report it, or does not accept it for a read.
        secondary: True to read from a secondary, if there is one.

    Raises:
        PyMongoError: The server refused it or could not be reached.
    """
    committed = await committed_time(database)
    timed = await takes_time(database, committed)
    # The tick behind it, as the server does without a start time: committed changes are read, and a
    # change that cannot be decoded is not delivered again.
    start = None if committed is None else Timestamp(committed.time, committed.inc + 1)
    # The server refuses to watch with the read concern "local", which a URI may set. Changes are
    # decoded leniently: writes of another application must not end the stream.
    options: Any = {
        "read_concern": ReadConcern("majority"),
        "read_preference": (
            ReadPreference.SECONDARY_PREFERRED if secondary else ReadPreference.PRIMARY
        ),
        "codec_options": database.codec_options.with_options(
            datetime_conversion=DatetimeConversion.DATETIME_AUTO,
            unicode_decode_error_handler="replace",
        ),
    }
    stream: ChangeStream = (
        ThreadChangeStream(database.delegate.with_options(**options), pipeline, start)
        if SPEAKS_MOTOR
        else TaskChangeStream(database.with_options(**options), pipeline, start)
    )
    opening = asyncio.create_task(stream.open(), name="converse_mongo-open")
    try:
        # PyMongo leaves a socket open when it is cancelled while it connects.
        await asyncio.shield(opening)
    except BaseException:
        await asyncio.wait({opening}, timeout=CLOSE_SECONDS)
        opening.cancel()
        await asyncio.shield(stream.aclose())
        raise
    begins(committed if timed else None)
    return stream
