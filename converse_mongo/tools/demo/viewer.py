"""A viewer process: watches a message to its end, and reports each event as it comes."""

import argparse
import time

from converse_mongo.domain.events import ChunkReceived, MessageFailed
from converse_mongo.tools.demo.programs import converse_from_environment, run_program
from converse_mongo.tools.demo.reports import Ended, Seen, Watching, tell

__all__ = ["view"]


async def view(database: str, message_id: str, after: int | None) -> None:
    """Watches ``message_id`` from behind the sequence ``after``.

    Raises:
        ConverseError: It cannot be watched.
    """
    async with (
        converse_from_environment(database) as converse,
        converse.watch_message(message_id, after=after) as events,
    ):
        tell(Watching(time.time(), converse.watch_mode))
        async for event in events:
            received_at = time.time()
            if isinstance(event, ChunkReceived):
                tell(Seen(event.chunk.sequence, event.chunk.content, received_at))
            else:
                error = event.error if isinstance(event, MessageFailed) else None
                tell(Ended(event.chunk_count, error))


def main() -> None:
    """The entry point of the process."""
    parser = argparse.ArgumentParser(prog="converse_mongo.tools.demo.viewer", description=__doc__)
    parser.add_argument("message_id")
    parser.add_argument("--database", required=True)
    parser.add_argument("--after", type=int)
    arguments = parser.parse_args()
    run_program(view(arguments.database, arguments.message_id, arguments.after))


if __name__ == "__main__":
    main()
