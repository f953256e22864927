"""AI conversations in MongoDB, stored while they stream and watched live."""

from importlib import import_module

TYPE_CHECKING = False  # as in typing, which takes longer to import than all else here

if TYPE_CHECKING:
    from converse_mongo.names import *  # noqa: F403
    from converse_mongo.names import __all__ as __all__
    from converse_mongo.names import __version__ as __version__
else:
    # On first use: the commands import this package, too, and Beanie takes a second to import.
    def __getattr__(name: str) -> object:
        if not name.startswith("__") or name in ("__all__", "__version__"):
            names = import_module("converse_mongo.names")
            public = {each: getattr(names, each) for each in names.__all__}
            globals().update(public, __all__=names.__all__)
            if name in globals():
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
