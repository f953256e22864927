"""The command line: ``converse-mongo demo``, ``serve``, ``worker``, ``queue``, and others.

Each command imports what it needs after its arguments are known to be good.
"""

import argparse
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version

from converse_mongo.tools.arguments import (
    Commands,
    Parser,
    add_data,
    add_database,
    add_port,
    add_uri,
    count,
    database,
    given,
    not_negative,
    positive,
)
from converse_mongo.tools.signals import INTERRUPTED, terminable
from converse_mongo.tools.terminal import one_line

PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command, and returns its exit code.

    2 means that the command could not start; the reason is one line on standard error. 130 means
    that Ctrl-C ended it. The help of each command explains 0 and 1.

    Raises:
        SystemExit: The arguments are invalid, or a signal ended the command.
    """
    # Show characters that the terminal's encoding lacks as escapes.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        if "run" not in arguments:
            parser.print_help()
            return 0
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            code: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        if (reason := _reason(error)) is None:
            raise
        sys.stderr.write(f"converse-mongo: {one_line(reason)}\n")
        return 2
    return code


def _reason(error: Exception) -> str | None:
    """Returns the text of an error of MongoDB or of this library; of others, ``None``."""
    from pymongo.errors import PyMongoError

    from converse_mongo.domain.errors import ConverseError
    from converse_mongo.driver import failures

    if isinstance(error, PyMongoError):
        return failures.reason(error)
    return str(error) if isinstance(error, ConverseError) else None


def _show_warning(message: Warning | str, *_: object) -> None:
    """Shows a warning, such as that of an option in the URI, without the line that it is from."""
    sys.stderr.write(f"converse-mongo: {one_line(str(message))}\n")


# Arguments


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="converse-mongo",
        description="AI conversations in MongoDB, stored while they stream and watched live.",
    )
    parser.add_argument(
        "--version", action="version", version=f"converse-mongo {version('converse-mongo')}"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_demo(commands)
    _add_serve(commands)
    _add_server(commands)
    _add_worker(commands)
    _add_queue(commands)
    _add_tail(commands)
    _add_doctor(commands)
    return parser


def _add_demo(commands: "Commands[Parser]") -> None:
    parser = commands.add_parser(
        "demo",
        help="stream a text in workers and watch it in other processes",
        description="Streams a text into MongoDB token by token in a worker that is killed, in one "
        "that goes on and then hands over, and in a third. Three other processes watch it: one "
        "from the start, one that joins half-way, one that is killed and resumes. Exits with 0 if "
        "all texts are equal, else with 1.",
        epilog="Without --text it streams redirected standard input, or else a sample.",
    )
    add_uri(parser, "default: CONVERSE_URI, else a temporary embedded server")
    parser.add_argument(
        "--database",
        type=database,
        default="converse_demo",
        metavar="NAME",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--text", metavar="FILE", help="the text to stream, in UTF-8; - for standard input"
    )
    parser.add_argument(
        "--tokens-per-second",
        type=positive,
        default=120.0,
        metavar="N",
        help="the speed of the workers; default: %(default)g",
    )
    parser.set_defaults(run=_demo)


def _add_serve(commands: "Commands[Parser]") -> None:
    parser = commands.add_parser(
        "serve",
        help="serve a chat for browsers",
        description="Serves the chat. Without OPENAI_API_KEY, a built-in text answers.",
    )
    add_uri(parser, "default: CONVERSE_URI, else a temporary embedded server")
    add_database(parser, "converse_chat")
    add_data(parser)
    parser.add_argument("--host", type=given, default="127.0.0.1", help="default: %(default)s")
    add_port(parser, 8000)
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="serve requests for this host, such as chat.example.com; may be repeated; default: "
        "CHAT_HOSTS, and the names of the loopback interface if it listens there",
    )
    parser.set_defaults(run=_serve)


def _add_server(commands: "Commands[Parser]") -> None:
    parser = commands.add_parser(
        "server",
        help="run the embedded server alone",
        description="Runs the embedded server until Ctrl-C, as the replica set rs0 on 127.0.0.1, "
        "to try the examples of the documentation without a MongoDB. In production, use MongoDB.",
    )
    add_data(parser)
    add_port(parser, 27017)
    parser.set_defaults(run=_server)


def _add_worker(commands: "Commands[Parser]") -> None:
    parser = commands.add_parser(
        "worker",
        help="generate the answers of queues",
        description="Generates the answers of queued messages with a function of your application, "
        "until a signal. SIGTERM hands over what runs to other workers, and exits with 0; Ctrl-C "
        "does the same, and exits with 130. A second signal does not wait for the grace.",
    )
    parser.add_argument(
        "target",
        metavar="MODULE:FUNCTION",
        help="what writes an answer, such as app:respond; modules are found from the working "
        "directory",
    )
    parser.add_argument(
        "--queue",
        action="append",
        type=given,
        metavar="NAME",
        help="a queue; may be repeated; default: default",
    )
    parser.add_argument(
        "--concurrency",
        type=count,
        default=100,
        metavar="N",
        help="the most answers at a time; default: %(default)s",
    )
    parser.add_argument(
        "--grace",
        type=not_negative,
        default=10.0,
        metavar="SECONDS",
        help="the time that answers have to reach a point to go on from, at the end; default: "
        "%(default)g",
    )
    parser.add_argument(
        "--timeout", type=positive, metavar="SECONDS", help="the most for an attempt; default: none"
    )
    parser.add_argument(
        "--silence",
        type=positive,
        metavar="SECONDS",
        help="the most without a write or a heartbeat; default: none",
    )
    parser.add_argument(
        "--lease",
        type=positive,
        default=30.0,
        metavar="SECONDS",
        help="the time after which others take it for dead if it is; default: %(default)g",
    )
    parser.add_argument(
        "--start-over",
        action="store_true",
        help="void what earlier attempts have written, for a function that always begins anew",
    )
    parser.add_argument(
        "--telemetry",
        action="store_true",
        help="give metrics and spans to OpenTelemetry, which your module sets up, or "
        "opentelemetry-instrument",
    )
    add_uri(parser, "default: CONVERSE_URI")
    add_database(parser, "the database in the URI")
    parser.set_defaults(run=_worker)


def _add_queue(commands: "Commands[Parser]") -> None:
    parser = commands.add_parser(
        "queue",
        help="show queued messages, and retry or cancel one",
        description="Shows queued messages, and retries or cancels one.",
    )

    def show_help(_: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    parser.set_defaults(run=show_help)
    kinds = parser.add_subparsers(title="commands", metavar="COMMAND")
    listing = kinds.add_parser(
        "list",
        help="count the messages of queues by state, or list them",
        description="Counts the messages of queues by what they wait for, and shows since when the "
        "oldest of those that are due is waiting.",
    )
    listing.add_argument(
        "--queue",
        action="append",
        type=given,
        metavar="NAME",
        help="a queue; may be repeated; default: all",
    )
    listing.add_argument(
        "--messages", action="store_true", help="list the messages, the oldest of each queue first"
    )
    listing.add_argument(
        "--limit",
        type=count,
        default=100,
        metavar="N",
        help="the most messages; default: %(default)s",
    )
    retrying = kinds.add_parser(
        "retry",
        help="end the delay of a message",
        description="Lets a worker take a delayed message at once. Exits with 1 if it is not "
        "delayed.",
    )
    canceling = kinds.add_parser(
        "cancel",
        help="stop a message",
        description="Stops a message: one that waits is cancelled, and of one that runs the worker "
        "is told to stop. Exits with 1 if it has ended before.",
    )
    for each in (retrying, canceling):
        each.add_argument("message_id", metavar="MESSAGE_ID")
    canceling.add_argument("--reason", type=given, metavar="TEXT", help="stored as the reason")
    for each, run in ((listing, _queue_list), (retrying, _queue_retry), (canceling, _queue_cancel)):
        add_uri(each, "default: CONVERSE_URI")
        add_database(each, "the database in the URI")
        each.set_defaults(run=run)


def _add_tail(commands: "Commands[Parser]") -> None:
    parser = commands.add_parser(
        "tail",
        help="follow a message",
        description="Prints the text of a message as it is stored; a terminal also gets a line for "
        "each thought, tool call, source and other part. Exits with 0 when the message is "
        "completed, with 1 if it failed or was cancelled.",
    )
    parser.add_argument("message_id", metavar="MESSAGE_ID")
    add_uri(parser, "default: CONVERSE_URI")
    add_database(parser, "the database in the URI")
    parser.add_argument(
        "--after", type=int, metavar="N", help="start after this sequence; default: at the start"
    )
    parser.add_argument(
        "--parts", action="store_true", help="print all of the other parts, not a line of each"
    )
    parser.add_argument(
        "--json", action="store_true", help="print each event as a line of JSON instead"
    )
    parser.set_defaults(run=_tail)


def _add_doctor(commands: "Commands[Parser]") -> None:
    parser = commands.add_parser(
        "doctor",
        help="check a server and this installation",
        description="Checks a server and this installation, and suggests fixes. It changes "
        "nothing. Exits with 1 if a check failed, else with 0.",
    )
    add_uri(parser, "default: CONVERSE_URI")
    add_database(parser, "the database in the URI")
    parser.set_defaults(run=_doctor)


def _uri(arguments: argparse.Namespace) -> str | None:
    return arguments.uri or os.environ.get("CONVERSE_URI") or None


def _required_uri(arguments: argparse.Namespace) -> str:
    uri = _uri(arguments)
    if uri is None:
        from converse_mongo.domain.errors import ConfigurationError

        raise ConfigurationError("No server given: pass --uri mongodb://... or set CONVERSE_URI.")
    return uri


def _checked_uri(arguments: argparse.Namespace) -> str:
    """Returns the URI of a server that answers.

    Raises:
        ConverseError: None was given, or it does not answer.
    """
    uri = _required_uri(arguments)
    from converse_mongo.tools import servers

    servers.check_server(uri)
    return uri


def _need(extra: str, *names: str) -> None:
    """Checks that the packages of an extra are installed.

    Raises:
        ConfigurationError: One is missing.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        from converse_mongo.domain.errors import ConfigurationError
        from converse_mongo.driver.installed import install_command

        raise ConfigurationError(
            f"This command needs {' and '.join(missing)}: {install_command(extra)}"
        )


# Commands. They end at once on Ctrl-C until they are terminable.


def _demo(arguments: argparse.Namespace) -> int:
    uri = _uri(arguments)
    _need("demo", "rich", *(["secantus"] if uri is None else []))
    from converse_mongo.tools.servers import check_server

    if uri is not None:
        check_server(uri)
    from converse_mongo.tools.demo import app

    with terminable():
        return app.run(uri, arguments.database, arguments.text, arguments.tokens_per_second)


def _serve(arguments: argparse.Namespace) -> int:
    uri = _uri(arguments)
    needed = "fastapi", "openai", "uvicorn", "websockets"
    _need("chat", *needed, *(["secantus"] if uri is None else []))
    from converse_mongo.domain.errors import ConfigurationError
    from converse_mongo.embedded import make_private
    from converse_mongo.tools import servers, terminal

    if uri is not None:
        if arguments.data is not None:
            raise ConfigurationError(
                "--data is for the embedded server: pass it without --uri and CONVERSE_URI."
            )
        servers.check_server(uri)
    elif arguments.data is not None:
        make_private(arguments.data)  # the rest takes seconds to import
    sockets = servers.listen(arguments.host, arguments.port)
    terminal.log()
    from converse_mongo.tools.chat.server import serve

    with terminable():
        return serve(
            uri,
            sockets,
            arguments.host,
            servers.location(uri, arguments.data),
            database=arguments.database,
            data=arguments.data,
            allowed_hosts=arguments.allow_host,
        )


def _server(arguments: argparse.Namespace) -> int:
    _need("embedded", "secantus")
    from converse_mongo.tools import servers

    with terminable():
        return servers.run_embedded(arguments.data, arguments.port)


def _worker(arguments: argparse.Namespace) -> int:
    if arguments.telemetry:
        _need("otel", "opentelemetry")
    uri = _checked_uri(arguments)
    from converse_mongo.tools import worker

    names = "concurrency", "grace", "timeout", "silence", "start_over"
    return worker.run(
        *(uri, arguments.database, arguments.target, arguments.queue or ["default"]),
        *(arguments.lease, {name: getattr(arguments, name) for name in names}),
        telemetry=arguments.telemetry,
    )


def _queue_list(arguments: argparse.Namespace) -> int:
    uri = _checked_uri(arguments)
    from converse_mongo.tools import queues

    with terminable():
        return queues.list_queues(
            *(uri, arguments.database, arguments.queue),
            messages=arguments.messages,
            limit=arguments.limit,
        )


def _queue_retry(arguments: argparse.Namespace) -> int:
    uri = _checked_uri(arguments)
    from converse_mongo.tools import queues

    with terminable():
        return queues.retry(uri, arguments.database, arguments.message_id)


def _queue_cancel(arguments: argparse.Namespace) -> int:
    uri = _checked_uri(arguments)
    from converse_mongo.tools import queues

    with terminable():
        return queues.cancel(uri, arguments.database, arguments.message_id, arguments.reason)


def _tail(arguments: argparse.Namespace) -> int:
    uri = _checked_uri(arguments)
    from converse_mongo.tools import tail

    with terminable():
        return tail.run(
            *(uri, arguments.database, arguments.message_id, arguments.after),
            as_json=arguments.json,
            whole=arguments.parts,
        )


def _doctor(arguments: argparse.Namespace) -> int:
    uri = _required_uri(arguments)
    from converse_mongo.tools import doctor

    with terminable():
        return doctor.run(uri, arguments.database)


if __name__ == "__main__":
    sys.exit(main())
