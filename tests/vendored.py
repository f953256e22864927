"""The JavaScript libraries that the page of the chat brings along, unchanged from npm.

``python -m tests.vendored`` fetches them anew in the versions of the record, with the texts of
their licenses; ``git diff`` is then empty. ``python -m tests.vendored dompurify@latest`` updates
one. Run ``tests/browser`` afterwards. Needs npm.
"""

import argparse
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).parents[1] / "converse_mongo/tools/chat/static/vendor"
RECORD = VENDOR / "vendored.json"
LICENSES = VENDOR / "LICENSES.txt"


def differences() -> list[str]:
    """The files that are not as the record says; needs no network."""
    hashes = json.loads(RECORD.read_text(encoding="utf-8"))["sha256"]
    present = {path.name: sha256(path.read_bytes()) for path in VENDOR.iterdir() if path != RECORD}
    return sorted(name for name in hashes | present if hashes.get(name) != present.get(name))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def unpacked(wanted: str, directory: Path) -> tuple[Path, dict[str, Any]]:
    """Fetches a package such as ``name@1.2.3``; returns its directory and its manifest."""
    directory.mkdir()
    command = ["npm", "pack", wanted, "--silent"]
    subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
    [archive] = directory.glob("*.tgz")
    with tarfile.open(archive) as packed:
        packed.extractall(directory, filter="data")
    root = next(path.parent for path in directory.glob("*/package.json"))
    return root, json.loads((root / "package.json").read_bytes())


def license_of(root: Path, manifest: dict[str, Any], note: str = "") -> str:
    """The license of a package; of two, it is the first that we take."""
    text = min(root.glob("LICENSE*"), key=lambda path: len(path.name))
    title = f"{manifest['name']} {manifest['version']}, {manifest['license']}{note}"
    return f"{title}\n{'=' * len(title)}\n\n{text.read_text(encoding='utf-8').strip()}\n"


def update(versions: dict[str, str], scratch: Path) -> None:
    """Fetches the libraries, and writes their files, their licenses and the record.

    Args:
        versions: The versions by name; those of the record for all others.
        scratch: An empty directory.
    """
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    written: dict[Path, bytes] = {}
    licenses = []
    for number, (name, library) in enumerate(record["libraries"].items()):
        version = versions.get(name, library["version"])
        root, manifest = unpacked(f"{name}@{version}", scratch / str(number))
        library |= {"version": manifest["version"], "license": manifest["license"]}
        written[VENDOR / library["file"]] = (root / library["from"]).read_bytes()
        licenses.append(license_of(root, manifest))
        for part in library.get("bundles", ()):
            wanted = f"{part}@{manifest['dependencies'][part]}"
            bundled = unpacked(wanted, scratch / f"{number}-{part}")
            licenses.append(license_of(*bundled, f" (a part of {library['file']})"))
    written[LICENSES] = "\n\n".join(licenses).encode()
    record["sha256"] = {path.name: sha256(data) for path, data in written.items()}
    written[RECORD] = f"{json.dumps(record, indent=2)}\n".encode()
    for path, data in written.items():
        path.write_bytes(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wanted", nargs="*", metavar="NAME@VERSION")
    wanted = parser.parse_args().wanted
    with tempfile.TemporaryDirectory() as scratch:
        update(dict(each.rsplit("@", 1) for each in wanted), Path(scratch))
