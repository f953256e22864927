"""The runner: ``python -m benchmarks [name ...]``.

Exits with 1 if a benchmark broke off or what it streamed did not come back equal. A missed target
is shown, and is no failure: times on a busy machine decide nothing.
"""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from pymongo.errors import PyMongoError
from rich.console import Console

from benchmarks import append_cost, long_message, plain_array
from benchmarks.figures import BenchmarkError, Figure
from benchmarks.reports import print_figures, write_figures
from benchmarks.servers import URI_VARIABLE, open_server
from benchmarks.settings import Setting
from converse_mongo import ConverseError

Benchmark: TypeAlias = Callable[[Setting], Awaitable[list[Figure]]]

BENCHMARKS: dict[str, Benchmark] = {
    "append_cost": append_cost.run,
    "plain_array": plain_array.run,
    "long_message": long_message.run,
}
MIN_ROUNDS = 5
MIN_CHUNKS = 100_000
LOG_WIDTH = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the chosen benchmarks, each on a server of its own, and returns the exit code."""
    arguments = _parser().parse_args(argv)
    unknown = sorted(set(arguments.names) - BENCHMARKS.keys())
    if unknown:
        sys.stderr.write(f"No benchmark {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}.\n")
        return 2
    # A table in a log is not to be folded for a terminal that is not there.
    console = Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)
    progress = Console(stderr=True, style="dim")
    # So that the server and all children are ended, as they are after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    for name in arguments.names or BENCHMARKS:
        progress.print(f"{name} …")
        try:
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
        )
        start = time.monotonic()
        figures = asyncio.run(_figures(BENCHMARKS[name], setting))
        seconds = time.monotonic() - start
        print_figures(console, name, figures, seconds)
        if arguments.output is not None:
            write_figures(arguments.output, name, setting, figures, seconds)


async def _figures(benchmark: Benchmark, setting: Setting) -> list[Figure]:
    return await benchmark(setting)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(BENCHMARKS)}"
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
        "--output", type=Path, metavar="DIRECTORY", help="where to write NAME.json for each"
    )
    return parser


def _rounds(text: str) -> int:
    return _at_least(text, MIN_ROUNDS)


def _chunks(text: str) -> int:
    return _at_least(text, MIN_CHUNKS)


def _at_least(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
