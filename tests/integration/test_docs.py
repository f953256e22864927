"""The documentation is true: its programs run as printed, and it names what there is.

A Python block whose first line is a file name (``# writer.py``) is a complete program and is run,
as is every block that calls ``asyncio.run``. A text block after it, behind "It prints:" or behind
nothing, is its output, where ``...`` stands for anything. All other blocks must at least compile.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from pymongo import MongoClient

import converse_mongo
from converse_mongo import Conversation, Converse, Message
from tests.conftest import USES_MOTOR

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    page for page in [ROOT / "README.md", *DOCS.rglob("*.md")] if "_build" not in page.parts
)
TIMEOUT = 60.0

FENCE = re.compile(r"^```(?P<language>[\w{}-]*)[^\n]*\n(?P<body>.*?)^```[ \t]*$", re.M | re.S)
NAME = re.compile(r"# ([\w-]+\.py)\n")
BEFORE_OUTPUT = re.compile(r"\s*(It prints:)?\s*")
URI = re.compile(r"mongodb://localhost:27017/?(\?replicaSet=rs0)?(?=[\"'])")
DATABASE = re.compile(r"""(database=f?["']|get_database\(["'])""")

FED_BY = {"viewer.py": "writer.py"}
"""Programs that take the first line that another one prints as their argument."""


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


@dataclass
class Runner:
    """Runs programs in a directory, on the test server and in databases of their own."""

    directory: Path
    uri: str
    prefix: str

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
        assert done.returncode == 0, f"{block} failed:\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, f"{block} complained:\n{done.stderr}"
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "CONVERSE_URI": self.uri,
            "PYTHONIOENCODING": "utf-8",
            "PYTHONPATH": str(ROOT),
        }


@pytest.fixture
def runner(tmp_path: Path, server_uri: str) -> Iterator[Runner]:
    prefix = f"docs_{uuid4().hex[:12]}_"
    yield Runner(tmp_path, server_uri, prefix)
    with MongoClient[dict[str, object]](server_uri) as client:
        for name in client.list_database_names():
            if name.startswith(prefix):
                client.drop_database(name)


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


def test_docs__have_programs() -> None:
    pages = {block.page.relative_to(ROOT).as_posix() for block in PROGRAMS}
    assert {"docs/quickstart.md", "docs/howto/resume.md", "docs/howto/testing.md"} <= pages
    assert sum(block.output is not None for block in PROGRAMS) >= 10


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_program__runs_as_printed(block: Block, runner: Runner) -> None:
    if "AsyncIOMotorClient" in block.code and not USES_MOTOR:
        pytest.skip("this program is for Motor")
    if "AsyncMongoClient" in block.code and USES_MOTOR:
        pytest.skip("this program is for PyMongo Async")
    arguments = []
    if feeder := FED_BY.get(block.name):
        arguments = runner.run(find_program(block.page, feeder)).splitlines()[:1]
        assert arguments, f"{feeder} printed nothing"
    printed = runner.run(block, *arguments)
    if block.name.startswith("test_"):
        assert re.search(r"\d+ passed", printed), printed
    check_output(block, printed)


def test_quickstart__viewer_joins_while_the_writer_writes(runner: Runner) -> None:
    page = DOCS / "quickstart.md"
    viewer = find_program(page, "viewer.py")
    with subprocess.Popen(
        runner.command(find_program(page, "writer.py")),
        cwd=runner.directory,
        env=runner.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        try:
            assert writer.stdout is not None
            message_id = writer.stdout.readline().strip()
            assert message_id, "the writer printed no id"
            check_output(viewer, runner.run(viewer, message_id))
            assert writer.wait(TIMEOUT) == 0
        finally:
            writer.kill()


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block__compiles_and_imports_what_there_is(block: Block) -> None:
    tree = compile(
        block.code,
        str(block),
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST,
        dont_inherit=True,
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "converse_mongo":
            missing = [each.name for each in node.names if not hasattr(converse_mongo, each.name)]
            assert not missing, f"{block} imports {missing}"


def test_reference__names_everything_public() -> None:
    pages = "\n".join(
        page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")
    )
    missing = [
        name
        for name in converse_mongo.__all__
        if not re.search(rf":: converse_mongo\.{re.escape(name)}\b", pages)
    ]
    assert not missing


def test_reference__has_the_values_of_the_limits() -> None:
    page = (DOCS / "reference" / "types.md").read_text(encoding="utf-8")
    found = dict(
        re.findall(r":: converse_mongo\.(MAX_\w+)\n   :type: int\n   :value: (\d+)\n", page)
    )
    limits = [name for name in converse_mongo.__all__ if name.startswith("MAX_")]
    assert found == {name: str(getattr(converse_mongo, name)) for name in limits}


async def test_reference__describes_every_field_and_index(converse: Converse) -> None:
    conversation = await converse.start_conversation("title", {"a": 1}, ("user", 1), {"b": 2})
    message = await conversation.start_streaming_assistant()
    await message.append_chunk("x", {"c": 3})
    await message.complete_streaming()
    message.metadata["d"] = 4
    await message.save()

    page = (DOCS / "reference" / "collections.md").read_text(encoding="utf-8")
    described, chunk_fields = (
        set(re.findall(r"^\| `(\w+)` \| [a-zA-Z]", part, re.M))
        for part in page.split("A chunk in `chunks`:")
    )
    stored = await converse.message_model.find_one(converse.message_model.id == message.id)
    assert stored is not None
    store = converse.message_model.store()
    raw = await store.messages.find_one({"_id": message.id})
    assert raw is not None
    assert set(raw) <= described
    assert set(raw["chunks"][0]) <= chunk_fields
    assert set(await store.conversations.find_one({"_id": conversation.id}) or ()) <= described
    for model in (Conversation, Message):
        for index in model.Settings.indexes:
            assert f"`{index.document['name']}`" in page


@pytest.mark.parametrize("command", [(), ("demo",), ("tail",), ("doctor",)], ids=" ".join)
def test_reference__shows_the_help_of_the_command_line(command: tuple[str, ...]) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "converse_mongo.cli", *command, "--help"],
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT,
    )
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    assert " ".join(shown.stdout.split()) in " ".join(page.split())


def test_pages__name_no_path_of_a_machine() -> None:
    for page in PAGES:
        found = re.search(r"(?<![\w/])/(home|root|work|tmp|Users)/", page.read_text("utf-8"))
        assert found is None, f"{page}: {found}"
