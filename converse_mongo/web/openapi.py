"""The OpenAPI description of the routes, to be merged into that of an application."""

import inspect
import re
from typing import Any, Literal

from pydantic import TypeAdapter

from converse_mongo.web import chat, conversations
from converse_mongo.web.models import ErrorBody
from converse_mongo.web.operations import Operation

_NAMES = re.compile(r"{(\w+)}")


def openapi_paths(prefix: str = "", *, owner: bool = False) -> dict[str, Any]:
    """The ``paths`` of an OpenAPI 3.1 description of the routes of :func:`routes`.

    With FastAPI: ``app.openapi()["paths"].update(openapi_paths("/api"))``, once all routes of the
    application itself are there.

    Args:
        prefix: Where the routes are mounted, such as ``"/api"``.
        owner: Whether :func:`routes` was given an ``owner``.
    """
    paths: dict[str, Any] = {}
    for each in all_operations(owner=owner):
        paths.setdefault(prefix + each.path, {})[each.method.lower()] = _described(each)
    return paths


def all_operations(*, owner: bool) -> list[Operation]:
    """All operations of the web edge, with the stream of an owner or without."""
    return conversations.table + chat.table + (conversations.owner_table if owner else [])


def _described(operation: Operation) -> dict[str, Any]:
    summary, *_ = (inspect.getdoc(operation.endpoint) or "").partition(".")
    errors = {
        "400": "Invalid",
        "404": "Not found",
        "500": "Failed",
        "503": "Unavailable: try again",
    }
    if operation.method == "POST":
        errors |= {"408": "Not received in time", "409": "Not possible now"}
        errors |= {"413": "Too large", "415": "Not JSON", "501": "Answers are not available here"}
    if operation.method == "POST" or operation.streams:
        errors["429"] = "Too much is in progress: try again"
    error = _json(_schema(ErrorBody, "serialization"))
    responses: dict[str, Any] = {
        status: {"description": description, **error} for status, description in errors.items()
    }
    answer = _schema(operation.answer, "serialization")
    responses[str(operation.status)] = {
        "description": summary,
        **(_events(answer) if operation.streams else _json(answer)),
    }
    if operation.may_be_over:
        responses["204"] = {"description": "Nothing is left to stream"}
    found = {
        "summary": summary,
        "tags": ["conversations"],
        "parameters": _parameters(operation),
        "responses": responses,
    }
    if operation.method == "POST":
        found["requestBody"] = _json(_schema(operation.accepts, "validation"))
    return found


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    name = {"type": "string", "pattern": "^[0-9a-f]{24}$"}
    found: list[dict[str, Any]] = [
        {"name": each, "in": "path", "required": True, "schema": name}
        for each in _NAMES.findall(operation.path)
    ]
    if operation.method == "GET" and operation.accepts is not None:
        query = _schema(operation.accepts, "validation")["properties"]
        found += [{"name": each, "in": "query", "schema": schema} for each, schema in query.items()]
        if "after" in query:
            found.append({"name": "Last-Event-ID", "in": "header", "schema": query["after"]})
    return found


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _events(data: dict[str, Any]) -> dict[str, Any]:
    """A stream of events, whose data JSON Schema can describe, and OpenAPI 3.1 cannot."""
    schema = {
        "type": "string",
        "description": "Server-sent events; the data of each is JSON.",
        "contentMediaType": "application/json",
        "contentSchema": data,
    }
    return {"content": {"text/event-stream": {"schema": schema}}}


def _schema(model: Any, mode: Literal["validation", "serialization"]) -> dict[str, Any]:
    """The JSON schema of a model, without references: it becomes part of another document."""
    schema = TypeAdapter(model).json_schema(mode=mode, ref_template="{model}")
    definitions = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return inlined(definitions[value["$ref"]])
        return {key: inlined(each) for key, each in value.items() if key != "discriminator"}

    found: dict[str, Any] = inlined(schema)
    return found
