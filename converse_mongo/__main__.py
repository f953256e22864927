"""The entry point of the command line. Ctrl-C ends it in silence, also while it is imported."""

import sys

from converse_mongo.tools.signals import end_at_once


def main() -> int:
    """Runs a command, and returns its exit code."""
    end_at_once()
    from converse_mongo.tools import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
