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
