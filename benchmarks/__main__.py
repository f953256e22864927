"""The runner: ``python -m benchmarks [name ...]``.

Exits with 1 if a benchmark broke off or what it streamed did not come back equal. A missed target
is shown, and is no failure: times on a busy machine decide nothing.
"""

import argparse
import asyncio
import math
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from pymongo.errors import PyMongoError
from rich.console import Console

from benchmarks.figures import BenchmarkError, Figure
from benchmarks.plots import can_draw
from benchmarks.reports import print_figures, write_figures
from benchmarks.servers import URI_VARIABLE, open_server
from benchmarks.settings import Load, Setting
from converse_mongo import ConverseError
from converse_mongo.tools.signals import terminable

BENCHMARKS = (
    "appends",
    "call_costs",
    "writers",
    "long_message",
    "fan_out",
    "sse_clients",
    "storage",
    "resume",
    "reads",
    "parts",
    "workers",
    "job_queue",
    "watch_cost",
    "telemetry",
    "live_latency",
    "whole_job",
    "load",
)
"""Modules, each imported only if it runs: some need packages that others do not."""
ONLY_IF_NAMED = frozenset({"load"})
"""It takes ten minutes."""
DEFAULT = [name for name in BENCHMARKS if name not in ONLY_IF_NAMED]
MIN_ROUNDS = 5
MIN_CHUNKS = 100_000
MIN_MINUTES, MAX_MINUTES = 1.0, 1440.0
MIN_MESSAGES = 2
LOG_WIDTH = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the chosen benchmarks, each on a server of its own, and returns the exit code."""
    arguments = _parser().parse_args(argv)
    unknown = sorted(set(arguments.names) - {*BENCHMARKS})
    if unknown:
        sys.stderr.write(f"No benchmark {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}.\n")
        return 2
    # A table in a log is not to be folded for a terminal that is not there.
    console = Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)
    progress = Console(stderr=True, style="dim")
    if arguments.output is not None and not can_draw():
        progress.print("Matplotlib is not installed: there will be figures, and no pictures.")
    for name in arguments.names or DEFAULT:
        progress.print(f"{name} …")
        try:
            with terminable():
                _run(name, arguments, console, progress)
        except (BenchmarkError, ConverseError, PyMongoError) as error:
            progress.print(
                f"{name} broke off: {error}", style="bold red", markup=False, soft_wrap=True
            )
            return 1
        except KeyboardInterrupt:
            return 130
    return 0


def _run(name: str, arguments: argparse.Namespace, console: Console, progress: Console) -> None:
    with open_server(arguments.uri) as server:
        setting = Setting(
            server=server,
            rounds=arguments.rounds,
            chunks=arguments.chunks,
            note=lambda text: progress.print(f"  {text}", markup=False, highlight=False),
            load=Load(arguments.minutes, arguments.messages, arguments.flush_interval),
            before=arguments.before and arguments.before.resolve(),
        )
        start = time.monotonic()
        figures: list[Figure] = asyncio.run(import_module(f"benchmarks.{name}").run(setting))
        seconds = time.monotonic() - start
        print_figures(console, name, figures, seconds)
        if arguments.output is not None:
            write_figures(arguments.output, name, setting, figures, seconds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"default: {', '.join(DEFAULT)}. Only if named: {', '.join(ONLY_IF_NAMED)}",
    )
    parser.add_argument(
        "--uri", help=f"a replica set to use; default: {URI_VARIABLE}, else an embedded server"
    )
    parser.add_argument(
        "--rounds", type=_rounds, default=7, help=f"at least {MIN_ROUNDS}; default: %(default)d"
    )
    parser.add_argument(
        "--chunks",
        type=_chunks,
        default=400_000,
        help=f"of long_message, at least {MIN_CHUNKS}; default: %(default)d",
    )
    parser.add_argument(
        "--minutes",
        type=_minutes,
        default=10.0,
        help=f"of load, from {MIN_MINUTES:g} to {MAX_MINUTES:g}; default: %(default)g",
    )
    parser.add_argument(
        "--messages",
        type=_messages,
        default=200,
        help=f"of load, at least {MIN_MESSAGES}; default: %(default)d",
    )
    parser.add_argument(
        "--flush-interval",
        type=_seconds,
        default=0.04,
        metavar="SECONDS",
        help="of the writers of load; default: that of the library, %(default)g",
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="CHECKOUT",
        help="of sse_clients and parts, an earlier version: git worktree add CHECKOUT COMMIT",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIRECTORY",
        help="where to write NAME.json and NAME.svg for each, and figures.md with all",
    )
    return parser


def _rounds(text: str) -> int:
    return _at_least(text, MIN_ROUNDS)


def _chunks(text: str) -> int:
    return _at_least(text, MIN_CHUNKS)


def _messages(text: str) -> int:
    return _at_least(text, MIN_MESSAGES)


def _minutes(text: str) -> float:
    return _number(text, MIN_MINUTES, MAX_MINUTES)


def _seconds(text: str) -> float:
    return _number(text, 0.0, 10.0)


def _number(text: str, least: float, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {least:g} to {most:g}")
    return number


def _at_least(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
