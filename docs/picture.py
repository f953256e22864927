"""Makes the picture of the landing page: ``python docs/picture.py``.

It runs ``converse-mongo demo`` on an embedded server, and draws what it printed. So every number in
the picture was measured in that run.
"""

import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).with_name("demonstration.svg")
COMMAND = "converse-mongo demo"
WIDTH = 84
TEXT_LINES = 5
"""Lines of the streamed text that are shown; it has many more."""


def run_demonstration() -> list[str]:
    """Runs it, and returns the lines that it printed."""
    program = "import sys; from converse_mongo.tools.cli import main; sys.exit(main(['demo']))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout.splitlines()


def draw(lines: list[str]) -> str:
    """Returns the lines as a picture of a terminal, in SVG that loads nothing."""
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, highlight=False)
        console.print(Text.assemble(("$ ", "green"), (COMMAND, "bold")))
        shown = 0
        for line in lines:
            if line.startswith("| "):
                shown += 1
                if shown > TEXT_LINES:
                    if shown == TEXT_LINES + 1:
                        console.print("| …", style="cyan")
                    continue
            console.print(Text(line, _style(line), no_wrap=True, overflow="ellipsis"))
        drawn = console.export_svg(title=COMMAND, unique_id="demonstration")
    return re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.S)


def _style(line: str) -> str:
    if line.startswith("| "):
        return "cyan"
    if line.startswith("Everything is equal"):
        return "bold green"
    return "dim" if line.startswith("* ") else ""


if __name__ == "__main__":
    PICTURE.write_text(draw(run_demonstration()), encoding="utf-8")
