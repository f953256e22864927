"""Sessions: ``python -m nox -s tests`` runs the tests; ``python -m nox -l`` lists all."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests", "system", "lint", "types", "imports", "docs"]

PROJECT = nox.project.load_toml("pyproject.toml")


EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]


def extras(*names: str) -> list[str]:
    """The requirements of extras, with those of the extras that they include."""
    found = []
    for name in names:
        for requirement in EXTRAS[name]:
            included = re.fullmatch(r"converse-mongo\[(.+)\]", requirement)
            found += extras(*included[1].split(",")) if included else [requirement]
    return list(dict.fromkeys(found))


DRIVERS = {
    # What the users of each driver install, and what the tests need beside it.
    "motor": [".[motor,demo,web]", "mongomock-motor>=0.0.36"],
    "pymongo": [".[demo,web]", "beanie>=2"],
}


# Each process has a server of its own, and waits for it much of the time.
PARALLEL = ["-n", str(min((os.cpu_count() or 1) + 1, 4)), "--dist", "worksteal"]
# Browsers compute all the time.
BROWSERS = ["-n", "auto", "--maxprocesses", "4", "--dist", "worksteal"]


def runs(python: str) -> bool:
    """Whether this Python is there; a name on the path may be a shim for one that is not."""
    found = shutil.which(f"python{python}")
    if found is None:
        return False
    return subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0


PYTHONS = [python for python in ("3.11", "3.12", "3.13") if runs(python)]
PYTHON = PYTHONS[0]


def group(name: str) -> list[str]:
    return nox.project.dependency_groups(PROJECT, name)


# What a driver or a Python can change; all else is the session "system".
EACH_DRIVER = [
    *("tests/integration", "tests/app"),
    "tests/docs/test_programs.py::test_program_of_a_driver__runs_as_printed",
]
# Run once: what the rooms above the driver make of events and documents that are late, out of date
# or of a later version. They are plain dictionaries there. The tests of watching, restarts, owners
# and guarantees run with each driver, and so do all of them in the session "lowest".
ABOVE_DRIVERS = [
    f"tests/integration/test_{name}.py" for name in ("comparison", "formats", "outdated_reads")
]
UNITS = {
    "motor": ["tests/unit"],
    # The others are of modules that no driver reaches.
    "pymongo": [f"tests/unit/test_{name}.py" for name in ("change_streams", "driver")],
}


@nox.session(python=PYTHONS)
@nox.parametrize("driver", list(DRIVERS))
def tests(session: nox.Session, driver: str) -> None:
    """The library's tests, with each driver and each Python that is there."""
    session.install(*DRIVERS[driver], *group("test"))
    once = [] if driver == "motor" else [f"--ignore={path}" for path in ABOVE_DRIVERS]
    arguments = [*UNITS[driver], *EACH_DRIVER, *once, *PARALLEL]
    session.run("python", "-m", "pytest", *(session.posargs or arguments))


# What only the session "browser" runs, and what it runs again for the tests in it that need node.
WITH_NODE = [f"tests/web/{name}.py" for name in ("test_client", "test_part_log")]
WITH_NODE += [f"tests/web/ai_sdk/test_{name}.py" for name in ("client", "docs")]
PARTLY_WITH_NODE = [
    f"tests/web/ai_sdk/test_{name}.py" for name in ("sub_agents", "tool_calls", "ui_stream")
]


@nox.session(python=PYTHON)
def system(session: nox.Session) -> None:
    """Once for all drivers: model, faults, documentation, commands, web edge, chat."""
    session.install(*DRIVERS["motor"], *group("test"))
    folders = ("model", "faults", "docs", "acceptance", "web", "chat", "integrations")
    others = [f"--ignore={path}" for path in WITH_NODE]
    arguments = [*(f"tests/{folder}" for folder in folders), *others, *PARALLEL]
    session.run("python", "-m", "pytest", *(session.posargs or arguments))


@nox.session(python=PYTHON)
@nox.parametrize("driver", list(DRIVERS))
def lowest(session: nox.Session, driver: str) -> None:
    """The tests with the oldest dependencies that the package and all its extras allow."""
    session.install("uv>=0.9")
    scratch = Path(session.create_tmp())
    constraints, wanted = scratch / f"{driver}.txt", scratch / f"{driver}.in"
    chosen = extras(*(name for name in EXTRAS if name != "motor"))
    chosen += extras("motor") if driver == "motor" else ["beanie>=2"]
    wanted.write_text("\n".join([*PROJECT["project"]["dependencies"], *chosen]))
    session.run(
        *("uv", "pip", "compile", str(wanted), "--quiet"),
        *("--resolution", "lowest-direct", "--python-version", PYTHON),
        *("--output-file", str(constraints)),
    )
    session.install(*(*DRIVERS[driver], *chosen, *group("test")), "--constraint", str(constraints))
    # The newest of what the tests use must still run with the oldest of what the package uses.
    session.run("uv", "pip", "check", "--python", str(Path(session.bin) / "python"))
    folders = ("unit", "web", "chat", "integrations")
    arguments = [*(f"tests/{folder}" for folder in folders), *EACH_DRIVER, *PARALLEL]
    session.run("python", "-m", "pytest", *(session.posargs or arguments))


NPM = ("tests/web/client", "tests/web/ai_sdk", "tests/browser")


def prepare(session: nox.Session, *packages: str) -> None:
    """Installs what tests need from npm, as the lock files say, and builds a page of the AI SDK."""
    for package in packages:
        with session.chdir(package):
            session.run("npm", "ci", "--no-audit", "--no-fund", external=True)
    with session.chdir("tests/web/ai_sdk"):
        session.run("npm", "run", "build", external=True)


@nox.session(venv_backend="none")
def client(session: nox.Session) -> None:
    """The client in JavaScript: its types and its tests. Needs node and npm."""
    prepare(session, *NPM)
    with session.chdir("tests/web/client"):
        session.run("npm", "run", "types", external=True)
        session.run("npm", "test", external=True)
    session.run("git", "diff", "--exit-code", "--", "converse_mongo/web/client", external=True)


@nox.session(python=PYTHON)
def browser(session: nox.Session) -> None:
    """The chat in chromium, the AI SDK's client, made-up requests.

    Needs node, npm and chromium; pictures of the chat are in build/screenshots afterwards.
    """
    session.install(*DRIVERS["motor"], *group("test"), *group("browser"))
    prepare(session, *(each for each in NPM if not Path(each, "node_modules").is_dir()))
    # Two processes: what drives a browser here is not asynchronous, and the rest is.
    made_up = ["tests/web/test_fuzz.py", "tests/chat/test_fuzz.py"]
    node = [*WITH_NODE, *PARTLY_WITH_NODE]
    session.run("python", "-m", "pytest", *node, *made_up, *PARALLEL)
    session.run("python", "-m", "pytest", *(session.posargs or ["tests/browser", *BROWSERS]))


@nox.session(python=PYTHON)
@nox.parametrize("driver", list(DRIVERS))
def faults(session: nox.Session, driver: str) -> None:
    """500 schedules of faults, some 20 minutes; ``-- --seed 7 --schedules 1`` replays one.

    With ``-- --work`` they are those of workers.
    """
    session.install(*DRIVERS[driver], *group("test"))
    session.run("python", "-m", "tests.faults", *session.posargs)


@nox.session(python=PYTHON)
def hostile(session: nox.Session) -> None:
    """Attacks on the web edge and on the chat: callers, bodies and clients, in tables."""
    session.install(*DRIVERS["motor"], *group("test"))
    session.run("python", "-m", "pytest", "tests/hostile", *session.posargs)


@nox.session(python=PYTHON)
def model(session: nox.Session) -> None:
    """The model alone, with the planted bugs that it takes long to find."""
    session.install(*DRIVERS["motor"], *group("test"))
    session.env["CONVERSE_THOROUGH"] = "1"
    session.run("python", "-m", "pytest", "tests/model", *session.posargs)


@nox.session(python=PYTHON)
@nox.parametrize("driver", list(DRIVERS))
def bench(session: nox.Session, driver: str) -> None:
    """The benchmarks; ``-- appends --output results`` runs one, and keeps its figures."""
    session.install(*DRIVERS[driver], *group("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=PYTHON)
def types(session: nox.Session) -> None:
    """Mypy, strict, tests included."""
    session.install(*DRIVERS["motor"], *group("types"))
    session.run("mypy")


@nox.session(python=PYTHON)
def imports(session: nox.Session) -> None:
    """Import-linter: imports point one way, and only one module knows the driver."""
    session.install(*DRIVERS["motor"], *group("imports"))
    session.run("lint-imports")


@nox.session(python=PYTHON)
def docs(session: nox.Session) -> None:
    """The documentation, with every warning an error."""
    session.install(*DRIVERS["motor"], *group("docs"))
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")
