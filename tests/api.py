"""The public API as text: ``python -m tests.api > tests/unit/api.txt`` takes a change of it."""

import enum
import inspect
import re
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from pydantic import BaseModel

import converse_mongo
import converse_mongo.embedded
import converse_mongo.integrations.anthropic
import converse_mongo.integrations.openai
import converse_mongo.integrations.pydantic_ai
import converse_mongo.telemetry
import converse_mongo.web
import converse_mongo.web.fastapi

__all__ = ["describe"]

MODULES = (
    converse_mongo,
    converse_mongo.web,
    converse_mongo.web.fastapi,
    converse_mongo.integrations.anthropic,
    converse_mongo.integrations.openai,
    converse_mongo.integrations.pydantic_ai,
    converse_mongo.embedded,
    converse_mongo.telemetry,
)
OURS = "converse_mongo."
PREFIX = re.compile(r"\b(?:[a-z_]+\.)+(?=\w)")


def describe() -> str:
    """Each public name, with its signature, fields, members or value."""
    return "".join(f"{line}\n" for module in MODULES for line in _module(module))


def _module(module: ModuleType) -> Iterator[str]:
    for name in sorted(module.__all__):
        if name != "__version__":
            yield from _describe(f"{module.__name__}.{name}", getattr(module, name))


def _describe(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, FunctionType):
        yield f"{name}{_signature(value)}"
    elif not isinstance(value, type):
        yield f"{name} = {PREFIX.sub('', repr(value))}"
    else:
        bases = ", ".join(base.__name__ for base in value.__bases__)
        yield f"class {name}({bases})" if issubclass(value, Exception) else f"class {name}"
        yield from (f"    {line}" for line in _members(value))


def _members(kind: type) -> Iterator[str]:
    if issubclass(kind, enum.Enum):
        yield from (f"{member.name} = {member.value!r}" for member in kind)
        return
    if issubclass(kind, BaseModel):
        yield from (f"{name} (field)" for name in sorted(kind.model_fields))
    elif "__init__" in vars(kind):
        yield f"__init__{_signature(kind.__init__)}"
    for name in sorted(dir(kind)):
        found = inspect.getattr_static(kind, name)
        of = getattr(found, "__func__", getattr(found, "fget", found))
        if name.startswith("_") or not getattr(of, "__module__", "").startswith(OURS):
            continue
        if isinstance(found, property):
            yield f"{name} (property)"
        elif isinstance(found, staticmethod | classmethod):
            yield f"{name}{_signature(of)} ({type(found).__name__})"
        elif isinstance(found, FunctionType):
            yield f"{name}{_signature(found)}"


def _signature(function: Any) -> str:
    parameters = inspect.signature(function).parameters.values()
    return "(" + ", ".join(_parameter(each) for each in parameters) + ")"


def _parameter(parameter: inspect.Parameter) -> str:
    """A parameter without its annotation, which Python's versions print in different ways."""
    bare = str(parameter.replace(annotation=inspect.Parameter.empty))
    if isinstance(parameter.default, type) and parameter.default is not inspect.Parameter.empty:
        bare = f"{parameter.name}={parameter.default.__name__}"
    return f"{bare} (keyword)" if parameter.kind is parameter.KEYWORD_ONLY else bare


if __name__ == "__main__":
    sys.stdout.write(describe())
