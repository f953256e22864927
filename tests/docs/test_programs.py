"""The programs of the documentation run as printed."""

import re
import subprocess

import pytest

from tests.conftest import USES_MOTOR
from tests.docs.blocks import (
    DOCS,
    PROGRAMS,
    ROOT,
    TIMEOUT,
    Block,
    Runner,
    check_output,
    find_program,
)

FED_BY = {"viewer.py": "writer.py"}
"""Programs that take the first line that another one prints as their argument."""

CLIENTS = {"AsyncIOMotorClient": USES_MOTOR, "AsyncMongoClient": not USES_MOTOR}
"""What programs for one driver name, and whether that driver is here."""

FOR_A_DRIVER = [block for block in PROGRAMS if any(name in block.code for name in CLIENTS)]
FOR_ALL = [block for block in PROGRAMS if block not in FOR_A_DRIVER]


def test_docs__have_programs() -> None:
    pages = {block.page.relative_to(ROOT).as_posix() for block in PROGRAMS}
    assert {"docs/quickstart.md", "docs/howto/resume.md", "docs/howto/testing.md"} <= pages
    assert sum(block.output is not None for block in PROGRAMS) >= 10


@pytest.mark.parametrize("block", FOR_ALL, ids=str)
def test_program__runs_as_printed(
    block: Block, runner: Runner, request: pytest.FixtureRequest
) -> None:
    if "openai" in block.code or "anthropic" in block.code:
        runner.extra = request.getfixturevalue("provider")
    arguments = []
    if feeder := FED_BY.get(block.name):
        arguments = runner.run(find_program(block.page, feeder)).splitlines()[:1]
        assert arguments, f"{feeder} printed nothing"
    printed = runner.run(block, *arguments)
    if block.name.startswith("test_"):
        assert re.search(r"\d+ passed", printed), printed
    check_output(block, printed)


@pytest.mark.parametrize("block", FOR_A_DRIVER, ids=str)
def test_program_of_a_driver__runs_as_printed(block: Block, runner: Runner) -> None:
    if not all(here for name, here in CLIENTS.items() if name in block.code):
        pytest.skip("this program is for the other driver")
    check_output(block, runner.run(block))


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
