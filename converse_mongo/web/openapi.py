"""The OpenAPI description of the routes, to be merged into that of an application."""

import re
from typing import Any, Literal

from pydantic import TypeAdapter

from converse_mongo.web import chat, conversations
from converse_mongo.web.models import ErrorBody
from converse_mongo.web.operations import Operation

NOTHING_LEFT = "Nothing is left to stream"

_NAMES = re.compile(r"{(\w+)}")
_ID = "^[0-9a-f]{24}$"


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
    summary, description = operation.summary
    error = _json(_schema(ErrorBody, "serialization"))
    responses: dict[str, Any] = {
        str(status): {"description": meaning, **error}
        for status, meaning in operation.errors.items()
    }
    responses[str(operation.status)] = {"description": summary, **answer_content(operation)}
    if operation.may_be_over:
        responses["204"] = {"description": NOTHING_LEFT}
    return {
        "summary": summary,
        **({"description": description} if description else {}),
        "tags": ["conversations"],
        "responses": responses,
        **request_of(operation),
    }


def request_of(operation: Operation) -> dict[str, Any]:
    """The parameters and the body of an operation."""
    found: dict[str, Any] = {"parameters": _parameters(operation)}
    if operation.method == "POST":
        body = _json(_schema(operation.accepts, "validation"))
        found["requestBody"] = {**body, "required": True}
    return found


def answer_content(operation: Operation) -> dict[str, Any]:
    """The content of a response that is not an error, and its headers."""
    answer = _schema(operation.answer, "serialization")
    found = _events(answer, operation.last_data) if operation.streams else _json(answer)
    if operation.media_type is not None:
        found = {"content": {operation.media_type: {"schema": {"type": "string"}}}}
    if operation.headers:
        found["headers"] = {
            name: {"description": meaning, "schema": {"type": "string"}}
            for name, meaning in operation.headers.items()
        }
    return found


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "name": each,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": operation.patterns.get(each, _ID)},
        }
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


def _events(data: dict[str, Any], last_data: str | None) -> dict[str, Any]:
    """A stream of events, whose data JSON Schema can describe, and OpenAPI 3.1 cannot."""
    description = "Server-sent events; the data of each is JSON."
    if last_data is not None:
        description += f" The data of the last one is {last_data}, which is not JSON."
    schema = {
        "type": "string",
        "description": description,
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
        return {
            key: inlined(each)
            for key, each in value.items()
            if key != "discriminator" and (key, each) != ("default", None)
        }

    found: dict[str, Any] = inlined(schema)
    return found
