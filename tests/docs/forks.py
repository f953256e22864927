"""Runs programs in forks of one process that has imported the library, which takes a second.

It reads a line of JSON for each program, and answers with a line: the exit code. It ends with its
standard input.
"""

import json
import os
import runpy
import sys
import traceback
from typing import Any

import converse_mongo.names
import converse_mongo.web.fastapi  # noqa: F401 - for the programs


def run(job: dict[str, Any]) -> int:
    """Runs a program as ``python PATH ARGUMENTS`` does; returns its exit code."""
    os.chdir(job["directory"])
    os.environ.clear()
    os.environ.update(job["environment"])
    for number, name in ((0, os.devnull), (1, job["output"]), (2, job["errors"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags, 0o600), number)
    sys.argv = [job["path"], *job["arguments"]]
    sys.path.insert(0, str(job["directory"]))
    try:
        runpy.run_path(job["path"], run_name="__main__")
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            sys.stderr.write(f"{code}\n")
        return code if isinstance(code, int) else int(code is not None)
    except BaseException:  # noqa: BLE001 - the interpreter's own last resort
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Runs programs until the standard input ends."""
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            sys.exit(run(job))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
