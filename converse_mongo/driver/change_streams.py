"""Opens the change stream of a database."""

import asyncio
from collections.abc import Callable
from typing import Any

from bson import DatetimeConversion, Timestamp
from pymongo import ReadPreference
from pymongo.read_concern import ReadConcern

from converse_mongo.driver.clients import Database
from converse_mongo.driver.feeds import (
    CLOSE_SECONDS,
    ChangeStream,
    TaskChangeStream,
    ThreadChangeStream,
)
from converse_mongo.driver.installed import SPEAKS_MOTOR
from converse_mongo.driver.servers import _takes_time, committed_time

__all__ = ["open_change_stream"]

# Change feeds


async def open_change_stream(
    database: Database,
    pipeline: list[dict[str, Any]],
    begins: Callable[[Timestamp | None], None] = lambda _: None,
    *,
    secondary: bool = False,
) -> ChangeStream:
    """Opens a change stream on ``database``.

    The stream holds every change that a majority read made from now on does not show yet. Without
    a start time the server would begin behind the last entry that it has applied, and skip what is
    applied but not yet majority-committed. Such a write would be neither in the stream nor in the
    read.

    Args:
        database: The database.
        pipeline: What to tell of each change.
        begins: Told the time behind which the stream begins; ``None`` if the server does not tell
            it, or does not take it for a read.
        secondary: Whether a secondary is asked, where there is one.

    Raises:
        PyMongoError: The server refused it or could not be reached.
    """
    committed = await committed_time(database)
    takes_time = await _takes_time(database, committed)
    # The tick behind it, as the server itself does where it is given no time: what is committed is
    # read, and a change that cannot be decoded is not delivered again.
    start = None if committed is None else Timestamp(committed.time, committed.inc + 1)
    # The server refuses to watch with the read concern "local", which a URI may ask for. Hints are
    # decoded leniently: what another application wrote must not end the stream.
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
    feed: ChangeStream = (
        ThreadChangeStream(database.delegate.with_options(**options), pipeline, start)
        if SPEAKS_MOTOR
        else TaskChangeStream(database.with_options(**options), pipeline, start)
    )
    opening = asyncio.create_task(feed.open(), name="converse_mongo-open")
    try:
        # PyMongo leaves a socket behind when it is cancelled while it connects.
        await asyncio.shield(opening)
    except BaseException:
        await asyncio.wait({opening}, timeout=CLOSE_SECONDS)
        opening.cancel()
        await asyncio.shield(feed.aclose())
        raise
    begins(committed if takes_time else None)
    return feed
