"""The command line: ``converse-mongo demo``, ``serve``, ``tail`` and ``doctor``."""

import argparse
import asyncio
import importlib.util
import json
import math
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from pymongo.errors import PyMongoError

from converse_mongo.converse import Converse
from converse_mongo.domain.errors import ConfigurationError, ConverseError
from converse_mongo.domain.events import (
    ChunkReceived,
    MessageCancelled,
    MessageEvent,
    MessageFailed,
)
from converse_mongo.tools.signals import terminable

SELECTION_SECONDS = 5.0
INTERRUPTED = 130
PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command, and returns its exit code.

    2 means that the command could not start; the reason is one line on standard error. 130 means
    that Ctrl-C ended it. The help of each command explains 0 and 1.

    Raises:
        SystemExit: The arguments are invalid, or a signal ended the command.
    """
    arguments = _parser().parse_args(argv)
    # Show characters that the terminal's encoding lacks as escapes.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with terminable():
            code: int = arguments.run(arguments)
        sys.stdout.flush()
    except (ConverseError, PyMongoError) as error:
        sys.stderr.write(f"converse-mongo: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code


# Arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="converse-mongo",
        description="AI conversations in MongoDB, stored while they stream and watched live.",
    )
    parser.add_argument(
        "--version", action="version", version=f"converse-mongo {version('converse-mongo')}"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_serve(commands)
    _add_tail(commands)
    _add_doctor(commands)
    return parser


Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse gives it no public name


def _add_demo(commands: "Commands[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "demo",
        help="stream a text in one process and watch it in others",
        description="Streams a text into MongoDB token by token in one process, and watches it "
        "in three others: one from the start, one that joins half-way, one that is killed and "
        "resumes. Exits with 0 if all texts are equal, else with 1.",
        epilog="Without --text it streams redirected standard input, or else a sample.",
    )
    _add_server(parser, "default: CONVERSE_URI, else a temporary embedded server")
    parser.add_argument(
        "--database", default="converse_demo", metavar="NAME", help="default: %(default)s"
    )
    parser.add_argument(
        "--text", metavar="FILE", help="the text to stream, in UTF-8; - for standard input"
    )
    parser.add_argument(
        "--tokens-per-second",
        type=_speed,
        default=120.0,
        metavar="N",
        help="the speed of the writer; default: %(default)g",
    )
    parser.set_defaults(run=_demo)


def _add_serve(commands: "Commands[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "serve",
        help="serve a chat for browsers",
        description="Serves the chat. Without OPENAI_API_KEY, a built-in text answers.",
    )
    _add_server(parser, "default: CONVERSE_URI, else a temporary embedded server")
    parser.add_argument(
        "--database", metavar="NAME", help="default: CONVERSE_DATABASE, else converse_chat"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIRECTORY",
        help="the data directory of the embedded server; default: in memory",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="serve requests for this host, such as chat.example.com; may be repeated; default: "
        "CHAT_HOSTS, and the names of the loopback interface if it listens there",
    )
    parser.set_defaults(run=_serve)


def _add_tail(commands: "Commands[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "tail",
        help="follow a message",
        description="Prints the text of a message as it is stored. Exits with 0 when the message "
        "is completed, with 1 if it failed or was cancelled.",
    )
    parser.add_argument("message_id", metavar="MESSAGE_ID")
    _add_server(parser, "default: CONVERSE_URI")
    _add_database(parser)
    parser.add_argument(
        "--after", type=int, metavar="N", help="start after this sequence; default: at the start"
    )
    parser.add_argument(
        "--json", action="store_true", help="print each event as a line of JSON instead"
    )
    parser.set_defaults(run=_tail)


def _add_doctor(commands: "Commands[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "doctor",
        help="check a server and this installation",
        description="Checks a server and this installation, and suggests fixes. It changes "
        "nothing. Exits with 1 if a check failed, else with 0.",
    )
    _add_server(parser, "default: CONVERSE_URI")
    _add_database(parser)
    parser.set_defaults(run=_doctor)


def _add_server(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--uri", help=f"the MongoDB server; {default}")


def _add_database(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--database",
        metavar="NAME",
        help="default: CONVERSE_DATABASE, else the database in the URI",
    )


def _speed(value: str) -> float:
    try:
        speed = float(value)
    except ValueError:
        speed = math.nan
    if not (math.isfinite(speed) and speed > 0):
        raise argparse.ArgumentTypeError(f"must be a number greater than 0, got {value!r}")
    return speed


def _required_uri(arguments: argparse.Namespace) -> str:
    uri: str | None = arguments.uri or os.environ.get("CONVERSE_URI")
    if not uri:
        raise ConfigurationError("No server given: pass --uri mongodb://... or set CONVERSE_URI.")
    return uri


def _database(arguments: argparse.Namespace) -> str | None:
    return arguments.database or os.environ.get("CONVERSE_DATABASE") or None


# Commands


def _demo(arguments: argparse.Namespace) -> int:
    uri = arguments.uri or os.environ.get("CONVERSE_URI") or None
    _need("demo", ["rich"] if uri else ["rich", "secantus"])
    from converse_mongo.tools.demo import app

    return app.run(uri, arguments.database, arguments.text, arguments.tokens_per_second)


def _serve(arguments: argparse.Namespace) -> int:
    uri = arguments.uri or os.environ.get("CONVERSE_URI") or None
    needed = ["fastapi", "openai", "uvicorn", "websockets"]
    _need("chat", needed if uri else [*needed, "secantus"])
    from converse_mongo.tools.chat.server import serve

    serve(
        uri,
        arguments.host,
        arguments.port,
        database=arguments.database,
        data=arguments.data,
        allowed_hosts=arguments.allow_host,
    )
    return 0


def _need(extra: str, names: Sequence[str]) -> None:
    """Checks that the packages of an extra are installed.

    Raises:
        ConfigurationError: One is missing.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise ConfigurationError(
            f"This command needs {' and '.join(missing)}: "
            f"python -m pip install 'converse-mongo[{extra}]'"
        )


def _doctor(arguments: argparse.Namespace) -> int:
    from converse_mongo.tools import doctor

    return asyncio.run(doctor.run(_required_uri(arguments), _database(arguments), sys.stdout.write))


def _tail(arguments: argparse.Namespace) -> int:
    return asyncio.run(_follow(arguments))


async def _follow(arguments: argparse.Namespace) -> int:
    async with (
        Converse(
            _required_uri(arguments),
            _database(arguments),
            create_indexes=False,  # this command only reads
            client_options={"serverSelectionTimeoutMS": int(SELECTION_SECONDS * 1000)},
        ) as converse,
        converse.watch_message(arguments.message_id, arguments.after) as events,
    ):
        write = _write_json if arguments.json else _write_text
        async for event in events:
            write(event)
            if isinstance(event, MessageFailed):
                sys.stderr.write(f"converse-mongo: the message failed: {event.error}\n")
                return 1
            if isinstance(event, MessageCancelled):
                why = f": {event.reason}" if event.reason else ""
                sys.stderr.write(f"converse-mongo: the message was cancelled{why}\n")
                return 1
    return 0


def _write_json(event: MessageEvent) -> None:
    sys.stdout.write(json.dumps(event.to_dict(), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _write_text(event: MessageEvent) -> None:
    if isinstance(event, ChunkReceived):
        sys.stdout.write(event.chunk.content)
    elif sys.stdout.isatty():
        sys.stdout.write("\n")  # so that the shell's prompt starts a line
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
