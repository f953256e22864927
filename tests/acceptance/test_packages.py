"""Wheel and source distribution have what git tracks, and nothing that lies around."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_SHIPPED = {".gitattributes", ".pre-commit-config.yaml"}
"""Settings of tools for those who work in a clone. Those of git are left to Hatch."""
STRAYS = (
    ".env",
    "converse_mongo/.DS_Store",
    "converse_mongo/.env",
    "converse_mongo/notes.txt",
    "converse_mongo/tools/chat/.env.local",
    "converse_mongo/tools/chat/static/.DS_Store",
    "converse_mongo/tools/chat/static/app.js.map",
    "converse_mongo/tools/chat/static/app.js~",
    "converse_mongo/tools/chat/static/vendor/markdown-it.js.map",
    "converse_mongo/tools/chat/static/vendor/node_modules/thing/index.js",
    "converse_mongo/tools/chat/secrets.json",
    "converse_mongo/tools/demo/notes.md",
    "converse_mongo/web/client/node_modules/.package-lock.json",
    "converse_mongo/web/client/node_modules/thing/gyp/thing.py",
    "converse_mongo/web/client/node_modules/thing/index.js",
    "converse_mongo/web/client/package-lock.json",
    "converse_mongo/web/client/types/index.d.ts.map",
    "converse_mongo/web/__pycache__/thing.cpython-311.pyc",
    "docs/notes.txt",
    "id_ed25519",
    "tests/.env",
    "tests/browser/node_modules/thing/index.js",
    "tests/chat/recording.har",
)

Contents = tuple[set[str], set[str]]


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    listed = subprocess.run(
        [git, "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def untidy(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is tracked, with files beside it that nobody may get."""
    root = tmp_path_factory.mktemp("untidy")
    for name in tracked:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    for name in STRAYS:
        assert name not in tracked
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("secret")
    return root


def build(root: Path, output: Path) -> Contents:
    """The names of the files in the wheel and in the source distribution."""
    code = (
        "import sys; from hatchling import build as hatch; "
        "hatch.build_wheel(sys.argv[1]); hatch.build_sdist(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(output)], cwd=root, check=True)
    [wheel], [source] = output.glob("*.whl"), output.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as zipped, tarfile.open(source) as tarred:
        files = [each.name for each in tarred.getmembers() if each.isfile()]
        return set(zipped.namelist()), {name.partition("/")[2] for name in files}


@pytest.mark.parametrize("tree", ["of git with strays", "as it is"])
def test_packages__have_what_git_tracks(
    tracked: list[str], untidy: Path, tmp_path: Path, tree: str
) -> None:
    wheel, source = build(untidy if tree == "of git with strays" else ROOT, tmp_path)
    information = {name for name in wheel if name.partition("/")[0].endswith(".dist-info")}
    assert wheel - information == {name for name in tracked if name.startswith("converse_mongo/")}
    # Hatch adds the settings of git, and what the index knows of the package.
    ours = {name for name in source if Path(name).name not in (".gitignore", "PKG-INFO")}
    expected = {name for name in tracked if Path(name).name not in NOT_SHIPPED | {".gitignore"}}
    assert ours == expected
