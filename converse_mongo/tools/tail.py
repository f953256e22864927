"""Follows a message, and prints its text as it is stored."""

import asyncio
import json
import sys

from converse_mongo.converse import Converse
from converse_mongo.domain.events import (
    ChunkReceived,
    MessageCancelled,
    MessageEvent,
    MessageFailed,
)
from converse_mongo.tools.servers import SELECTION_SECONDS
from converse_mongo.tools.terminal import one_line, printable, printable_json


def run(uri: str, database: str | None, message_id: str, after: int | None, as_json: bool) -> int:
    """Prints a message until it ends. Returns 0 if it is completed, else 1.

    A terminal gets a text that cannot steer it; anything else gets the text as it is stored.

    Args:
        uri: The MongoDB server.
        database: The name of the database; by default that of the URI.
        message_id: The id of the message.
        after: The last sequence to leave out; ``None`` for none.
        as_json: Whether to print each event as a line of JSON instead.

    Raises:
        ConverseError: The message is not there, or MongoDB cannot be reached.
    """
    return asyncio.run(_follow(uri, database, message_id, after, as_json))


async def _follow(
    uri: str, database: str | None, message_id: str, after: int | None, as_json: bool
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
        write = _write_json if as_json else _write_text
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


def _write_text(event: MessageEvent) -> None:
    if isinstance(event, ChunkReceived):
        content = event.chunk.content
        sys.stdout.write(printable(content) if sys.stdout.isatty() else content)
    elif sys.stdout.isatty():
        sys.stdout.write("\n")  # so that the shell's prompt starts a line
    sys.stdout.flush()
