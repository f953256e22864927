"""The Python blocks of the documentation, and what runs them.

A Python block whose first line is a file name (``# writer.py``) is a complete program, as is every
block that calls ``asyncio.run``. A text block after it, behind "It prints:" or behind nothing, is
its output, where ``...`` stands for anything.
"""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    page for page in [ROOT / "README.md", *DOCS.rglob("*.md")] if "_build" not in page.parts
)
TIMEOUT = 60.0

FENCE = re.compile(r"^```(?P<language>[\w{}-]*)[^\n]*\n(?P<body>.*?)^```[ \t]*$", re.M | re.S)
NAME = re.compile(r"# ([\w-]+\.py)\n")
BEFORE_OUTPUT = re.compile(r"\s*(It prints(, for example)?:)?\s*")
URI = re.compile(r"mongodb://localhost:27017/?(\?replicaSet=rs0)?(?=[\"'])")
DATABASE = re.compile(r"""(database=f?["']|get_database\(["'])""")


@dataclass(frozen=True)
class Block:
    """A Python block of a page, with the output that the page says it has."""

    page: Path
    line: int
    code: str
    output: str | None

    @property
    def name(self) -> str:
        named = NAME.match(self.code)
        return named[1] if named else "example.py"

    @property
    def is_program(self) -> bool:
        return NAME.match(self.code) is not None or "asyncio.run(" in self.code

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    fences = list(FENCE.finditer(text))
    for index, fence in enumerate(fences):
        if fence["language"] != "python":
            continue
        output = None
        if index + 1 < len(fences):
            following = fences[index + 1]
            between = text[fence.end() : following.start()]
            if following["language"] == "text" and BEFORE_OUTPUT.fullmatch(between):
                output = following["body"]
        yield Block(page, text.count("\n", 0, fence.start()) + 1, fence["body"], output)


BLOCKS = [block for page in PAGES for block in read_blocks(page)]
PROGRAMS = [block for block in BLOCKS if block.is_program]


class Forks:
    """A process that runs programs in forks of itself; see :mod:`tests.docs.forks`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.docs.forks"],
            cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def run(
        self, path: Path, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program in its directory."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        output, errors = path.with_suffix(".stdout"), path.with_suffix(".stderr")
        job = {
            "path": str(path),
            "arguments": list(arguments),
            "directory": str(path.parent),
            "environment": dict(environment),
            "output": str(output),
            "errors": str(errors),
        }
        stdin.write(json.dumps(job).encode() + b"\n")
        stdin.flush()
        if not select.select([stdout], [], [], TIMEOUT)[0]:
            self.close()
            raise AssertionError(f"{path.name} did not end: {errors.read_text(encoding='utf-8')}")
        code = int(stdout.readline())
        texts = (each.read_text(encoding="utf-8") for each in (output, errors))
        return subprocess.CompletedProcess(str(path), code, *texts)

    def close(self) -> None:
        """Ends the process, and what it has begun."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@dataclass
class Runner:
    """Runs programs in a directory, on the test server and in databases of their own."""

    directory: Path
    uri: str
    prefix: str
    forks: Forks | None = None
    extra: dict[str, str] = field(default_factory=dict)

    def write(self, block: Block) -> Path:
        code = URI.sub(lambda _: self.uri, block.code)
        code = DATABASE.sub(lambda found: found[1] + self.prefix, code)
        path = self.directory / block.name
        path.write_text(code, encoding="utf-8")
        return path

    def command(self, block: Block, *arguments: str) -> list[str]:
        path = str(self.write(block))
        if block.name.startswith("test_"):
            return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path]
        return [sys.executable, path, *arguments]

    def run(self, block: Block, *arguments: str) -> str:
        if block.name.startswith("test_") or self.forks is None:
            done = subprocess.run(
                self.command(block, *arguments),
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                encoding="utf-8",
                timeout=TIMEOUT,
            )
        else:
            done = self.forks.run(self.write(block), arguments, self.environment)
        assert done.returncode == 0, f"{block} failed:\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, f"{block} complained:\n{done.stderr}"
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **self.extra,
            "CONVERSE_URI": self.uri,
            "PYTHONIOENCODING": "utf-8",
            "PYTHONPATH": str(ROOT),
        }


def find_program(page: Path, name: str) -> Block:
    return next(block for block in PROGRAMS if block.page == page and block.name == name)


def check_output(block: Block, printed: str) -> None:
    if block.output is None:
        return
    wanted = "".join(
        ".*?" if part == "..." else re.escape(part)
        for part in re.split(r"(\.\.\.)", strip_lines(block.output))
    )
    assert re.fullmatch(wanted, strip_lines(printed), re.S), (
        f"{block} printed\n{printed}\ninstead of\n{block.output}"
    )


def strip_lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
