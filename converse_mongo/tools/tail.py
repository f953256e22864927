"""Follows a message, and prints what is stored of it."""

import asyncio
import json
import sys
from collections.abc import Callable

from converse_mongo.converse import Converse
from converse_mongo.domain.events import (
    ChunkReceived,
    FinalEvent,
    MessageCancelled,
    MessageEvent,
    MessageFailed,
)
from converse_mongo.tools.folding import Folding
from converse_mongo.tools.servers import SELECTION_SECONDS
from converse_mongo.tools.terminal import one_line, printable_json


def run(
    uri: str,
    database: str | None,
    message_id: str,
    after: int | None,
    *,
    as_json: bool = False,
    whole: bool = False,
) -> int:
    """Prints a message until it ends. Returns 0 if it is completed, else 1.

    A terminal gets the text of the answer, and a line for each other part; none of it can steer it.
    Anything else gets the text as it is stored, and a line where it is begun again.

    Args:
        uri: The MongoDB server.
        database: The name of the database; by default that of the URI.
        message_id: The id of the message.
        after: The last sequence to leave out; ``None`` for none.
        as_json: True to print each event as a line of JSON instead.
        whole: True to print other parts as well, and all of them.

    Raises:
        ConverseError: The message is not there, or MongoDB cannot be reached.
    """
    write = _write_json if as_json else text_writer(whole=whole)
    return asyncio.run(_follow(uri, database, message_id, after, write))


async def _follow(
    uri: str,
    database: str | None,
    message_id: str,
    after: int | None,
    write: Callable[[MessageEvent], None],
) -> int:
    async with (
        Converse(
            uri,
            database,
            create_indexes=False,  # this command only reads
            client_options={"serverSelectionTimeoutMS": int(SELECTION_SECONDS * 1000)},
        ) as converse,
        converse.watch_message(message_id, after) as events,
    ):
        async for event in events:
            write(event)
            if isinstance(event, MessageFailed):
                return _complain(f"the message failed: {event.error}")
            if isinstance(event, MessageCancelled):
                why = f": {event.reason}" if event.reason else ""
                return _complain(f"the message was cancelled{why}")
    return 0


def _complain(text: str) -> int:
    sys.stderr.write(f"converse-mongo: {one_line(text)}\n")
    return 1


def _write_json(event: MessageEvent) -> None:
    line = json.dumps(event.to_dict(), ensure_ascii=False)
    sys.stdout.write(f"{printable_json(line)}\n")
    sys.stdout.flush()


def text_writer(*, whole: bool) -> Callable[[MessageEvent], None]:
    """Returns what writes events as text."""
    is_terminal = sys.stdout.isatty()
    shown = Folding(sys.stdout.write, parts=is_terminal or whole, whole=whole, safe=is_terminal)

    def write(event: MessageEvent) -> None:
        if isinstance(event, ChunkReceived):
            shown.add(event.chunk)
        elif isinstance(event, FinalEvent):
            shown.end()  # so that the shell's prompt starts a line
        sys.stdout.flush()

    return write
