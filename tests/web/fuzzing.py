"""Requests that schemathesis makes up from an OpenAPI description."""

import asyncio
import copy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def with_known_ids(description: Mapping[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """The description, with ids that are there: others are a 404 before they are anything."""
    known = copy.deepcopy(dict(description))
    for path, operations in known["paths"].items():
        for operation in operations.values():
            for each in operation.get("parameters", ()):
                if each["in"] == "path":
                    each["schema"] = {"type": "string", "enum": [ids.get(each["name"], "0")]}
            if path.endswith("/chat") and "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                schema["properties"]["id"] = {"type": "string", "enum": [ids["conversation"]]}
    return known


async def find_server_errors(description: Path, url: str, header: str, examples: int) -> str:
    """Sends made-up requests; what it found as text, empty if no answer was a server error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", str(description)),
        *("--url", url, "--header", header),
        *("--checks", "not_a_server_error", "--max-examples", str(examples)),
        *("--phases", "examples,coverage,fuzzing", "--no-color"),
        cwd=description.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        printed = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return printed if process.returncode else ""
