"""The installed driver: Motor with Beanie 1, or PyMongo Async with Beanie 2."""

from importlib.metadata import version

SPEAKS_MOTOR = version("beanie").startswith("1.")


def driver_name() -> str:
    """Returns ``"motor"`` or ``"pymongo"``: the driver that the installed Beanie uses."""
    return "motor" if SPEAKS_MOTOR else "pymongo"


def driver_versions() -> dict[str, str]:
    """Returns the packages between the library and the server, with their versions."""
    names = ["beanie", "pymongo", "pydantic"] + (["motor"] if SPEAKS_MOTOR else [])
    return {name: version(name) for name in names}


def install_command(*extras: str) -> str:
    """Returns the command that adds extras of this package, with the installed driver.

    The package is on no index yet: the command is for a clone of the repository.
    """
    driver = ["motor"] if SPEAKS_MOTOR else []
    names = ",".join(dict.fromkeys([*driver, *extras]))
    return f'python -m pip install ".[{names}]" (in a clone of the repository)'
