"""Arguments: the parser of the command line, and the types and options that commands share."""

import argparse
import math
import os
from pathlib import Path
from typing import NoReturn

from converse_mongo.tools.terminal import one_line

MAX_DATABASE_BYTES = 63

Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse gives it no public name


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Ends the command with 2."""
        self.exit(2, f"converse-mongo: {one_line(message)} (see {self.prog} --help)\n")


def add_uri(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the server."""
    parser.add_argument("--uri", type=given, help=f"the MongoDB server; {default}")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds the data directory of the embedded server."""
    parser.add_argument(
        "--data",
        type=path,
        metavar="DIRECTORY",
        help="the data directory of the embedded server; default: in memory",
    )


def add_port(parser: argparse.ArgumentParser, default: int) -> None:
    """Adds the port to listen on."""
    parser.add_argument("--port", type=port, default=default, help="default: %(default)s")


def add_database(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the name of the database."""
    parser.add_argument(
        "--database",
        type=database,
        default=os.environ.get("CONVERSE_DATABASE") or None,
        metavar="NAME",
        help=f"default: CONVERSE_DATABASE, else {default}",
    )


def given(value: str) -> str:
    """Accepts any text that is not empty."""
    if not value:
        raise argparse.ArgumentTypeError("must not be empty")
    return value


def database(value: str) -> str:
    """Accepts the name of a database."""
    # https://www.mongodb.com/docs/manual/reference/limits/#naming-restrictions
    if wrong := set(given(value)).intersection('/\\. "$\0'):
        raise argparse.ArgumentTypeError(f"must not contain {min(wrong)!r}, got {value!r}")
    if len(value.encode(errors="replace")) > MAX_DATABASE_BYTES:
        raise argparse.ArgumentTypeError(f"must have at most {MAX_DATABASE_BYTES} bytes")
    return value


def path(value: str) -> Path:
    """Accepts a path."""
    return Path(given(value))


def port(value: str) -> int:
    """Accepts a port."""
    if not (value.isascii() and value.isdigit() and int(value) <= 65535):
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, got {value!r}")
    return int(value)


def positive(value: str) -> float:
    """Accepts a number greater than 0."""
    if not (number := _number(value)) > 0:
        raise argparse.ArgumentTypeError(f"must be a number greater than 0, got {value!r}")
    return number


def not_negative(value: str) -> float:
    """Accepts a number of at least 0."""
    if not (number := _number(value)) >= 0:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {value!r}")
    return number


def _number(value: str) -> float:
    """Returns a finite number; NaN, which no comparison holds for, if it is none."""
    try:
        number = float(value)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def count(value: str) -> int:
    """Accepts an integer greater than 0."""
    if not (value.isascii() and value.isdigit() and 0 < int(value) < 2**31):
        raise argparse.ArgumentTypeError(f"must be an integer greater than 0, got {value!r}")
    return int(value)
