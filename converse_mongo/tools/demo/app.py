"""Runs a demonstration: server, processes, screen and verdict."""

import asyncio
import sys
from contextlib import ExitStack
from dataclasses import dataclass

from pymongo.errors import PyMongoError
from rich.console import Console

from converse_mongo.converse import Converse
from converse_mongo.domain.errors import ConverseError
from converse_mongo.embedded import EmbeddedServer
from converse_mongo.tools.demo.children import Children, DemoError
from converse_mongo.tools.demo.performance import Performance, read_back
from converse_mongo.tools.demo.recording import Recording
from converse_mongo.tools.demo.screens import open_screen
from converse_mongo.tools.demo.signals import TERMINATED, cancelling_the_task, exiting
from converse_mongo.tools.demo.tables import print_verdict
from converse_mongo.tools.demo.texts import Answer, read_answer, tokenise
from converse_mongo.tools.demo.verdict import Verdict, judge

__all__ = ["DemoOptions", "run"]

PATIENCE = 45.0
"""For how many seconds a process may be silent before the demonstration is given up."""
SELECTION_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the user asked for.

    Attributes:
        uri: The server; ``None`` starts an embedded one.
        database: The name of the database.
        text: The path of the text; ``None`` takes standard input or the sample.
        tokens_per_second: How fast the writer appends.
    """

    uri: str | None = None
    database: str = "converse_demo"
    text: str | None = None
    tokens_per_second: float = 120.0


def run(options: DemoOptions) -> int:
    """Runs a demonstration and returns its exit code: 0 if every text was equal, else 1.

    Raises:
        ConverseError: It could not begin: no text, no server.
    """
    console = _console()
    answer = read_answer(options.text)
    try:
        with exiting(), ExitStack() as stack:
            uri = options.uri
            if uri is None:
                server = stack.enter_context(EmbeddedServer())
                console.print(
                    f"Embedded server on 127.0.0.1:{server.port}, for this demonstration only."
                )
                uri = server.uri
            verdict = asyncio.run(_perform(console, options, uri, answer))
            print_verdict(console, verdict)
            return 0 if verdict.equal else 1
    except asyncio.CancelledError:
        return TERMINATED
    except DemoError as error:
        sys.stderr.write(f"converse-mongo: {error}\n")
        return 1


def _console() -> Console:
    """Standard output; a terminal only if it is one, whatever the environment says."""
    return Console(force_terminal=sys.stdout.isatty(), highlight=False)


async def _perform(console: Console, options: DemoOptions, uri: str, answer: Answer) -> Verdict:
    with cancelling_the_task():
        selection = {"serverSelectionTimeoutMS": int(SELECTION_SECONDS * 1000)}
        async with Converse(uri, options.database, client_options=selection) as converse:
            try:
                return await _play(console, options, uri, answer, converse)
            except (ConverseError, PyMongoError) as error:
                if isinstance(error, DemoError):
                    raise
                raise DemoError(f"The demonstration broke off: {error}") from error


async def _play(
    console: Console, options: DemoOptions, uri: str, answer: Answer, converse: Converse
) -> Verdict:
    recording = Recording(answer.text, len(tokenise(answer.text)))
    speed = options.tokens_per_second
    with open_screen(console, recording) as screen:
        screen.note(f"{recording.total} tokens of {answer.source}, {speed:g} a second")
        screen.note(f"viewers learn of news by {converse.watch_mode.replace('_', ' ')}")
        async with Children(uri, PATIENCE + 2 / speed) as children:
            performance = Performance(recording, children, screen, options.database)
            started = await performance.play(answer.question, speed)
        recording.stored = await read_back(converse, started.message_id)
        if options.uri is not None:
            screen.note(f"both stay in the database {options.database}")
    return judge(recording)
