"""Sessions: ``python -m nox -s tests`` runs the tests; ``python -m nox -l`` lists all."""

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests", "lint", "types", "imports", "docs"]

PYTHONS = ["3.11", "3.12", "3.13"]
INSTALLED = [python for python in PYTHONS if shutil.which(f"python{python}")] or PYTHONS[:1]
DRIVERS = ["motor", "pymongo"]
# What each driver's users install, beside the embedded server for the tests.
EXTRAS = {"motor": ".[demo]", "pymongo": "."}
TEST_PACKAGES = {
    "motor": ["mongomock-motor>=0.0.36"],
    "pymongo": ["beanie>=2", "secantusdb>=0.7.0b3", "rich>=13.7"],
}
FOLDERS = {
    # mongomock-motor poses as Motor, so what runs on it runs with that driver.
    "motor": ["tests"],
    "pymongo": ["tests"],
}


def install(session: nox.Session, driver: str, *groups: str) -> None:
    """Installs the package as the users of ``driver`` do, and what tests need."""
    dependencies = nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), *groups)
    session.install(EXTRAS[driver], *TEST_PACKAGES[driver], *dependencies)


@nox.session(python=INSTALLED)
@nox.parametrize("driver", DRIVERS)
def tests(session: nox.Session, driver: str) -> None:
    """All tests, with each driver and each Python that is there."""
    install(session, driver, "test")
    session.run("python", "-m", "pytest", *(session.posargs or FOLDERS[driver]))


@nox.session(python="3.11")
@nox.parametrize("driver", DRIVERS)
def lowest(session: nox.Session, driver: str) -> None:
    """The tests with the oldest dependencies that the package allows."""
    session.install("uv>=0.9")
    resolved = Path(session.create_tmp()) / f"lowest-{driver}.txt"
    extra = ["--extra", "motor"] if driver == "motor" else []
    session.run(
        "uv",
        "pip",
        "compile",
        "pyproject.toml",
        *extra,
        "--resolution",
        "lowest-direct",
        "--python-version",
        "3.11",
        "--quiet",
        "--output-file",
        str(resolved),
    )
    install(session, driver, "test")
    session.install("-r", str(resolved))
    session.run("python", "-m", "pytest", *(session.posargs or FOLDERS[driver]))


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install(*nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python="3.11")
def types(session: nox.Session) -> None:
    """Mypy, strict, tests included."""
    install(session, "motor", "types")
    session.run("mypy")


@nox.session(python="3.11")
def imports(session: nox.Session) -> None:
    """Import-linter: imports point one way, and only one module knows the driver."""
    install(session, "motor", "imports")
    session.run("lint-imports")


@nox.session(python="3.11")
def docs(session: nox.Session) -> None:
    """The documentation, with every warning an error."""
    install(session, "motor", "docs")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")
