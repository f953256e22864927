"""``python -m examples.chat`` serves the chat."""

import argparse
import sys
from pathlib import Path

from converse_mongo import ConverseError

from .server import serve

INTERRUPTED = 130


def main() -> int:
    """Serves the chat, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.chat", description="Serves a chat.")
    parser.add_argument(
        "--uri", help="the MongoDB replica set; default: CONVERSE_URI, else an embedded server"
    )
    parser.add_argument(
        "--database", metavar="NAME", help="default: CONVERSE_DATABASE, else converse_chat"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIRECTORY",
        help="where the embedded server keeps its data; default: in memory",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        serve(
            arguments.uri,
            arguments.host,
            arguments.port,
            database=arguments.database,
            data=arguments.data,
        )
    except ConverseError as error:
        sys.stderr.write(f"chat: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
