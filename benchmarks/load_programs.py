"""The child processes of the load test: its writers and its viewers."""

import asyncio
import os
import sys
from collections.abc import Sequence

from benchmarks.children import SERVER_VARIABLE, tell
from benchmarks.load_viewers import view
from benchmarks.load_writers import write
from converse_mongo import Converse


async def main(arguments: Sequence[str]) -> None:
    """Runs the program that ``arguments`` name."""
    program, database, seconds, *rest = arguments
    uri = os.environ[SERVER_VARIABLE]
    # The first writer comes before the others and makes the indexes.
    async with Converse(uri, database=database, create_indexes=program == "write") as converse:
        if program == "write":
            await write(converse, float(seconds), int(rest[0]), float(rest[1]))
        else:
            await view(converse, float(seconds), rest)
        tell("finished")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
