"""The programs in the how-to on the AI SDK have the types of the SDK."""

import subprocess
from shutil import which

from tests.web.ai_sdk.node import PACKAGE, needs_node


@needs_node
def test_programs__have_the_types_of_the_sdk() -> None:
    done = subprocess.run(
        [str(which("node")), str(PACKAGE / "types.mjs")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    [found] = [line for line in done.stdout.splitlines() if ".jsx:" in line]
    assert found.startswith("wrong.jsx:1 ")  # it is wrong on purpose
