"""Items: what an output item of OpenAI's Responses is as a part of a message."""

import mimetypes
from collections.abc import Mapping
from typing import Any

from bson import ObjectId

from converse_mongo.domain.parts import Executor, Part, SourceDocumentPart, SourceUrlPart
from converse_mongo.integrations.streams import Parts, get, parsed, text_at

BUILT_IN: Mapping[str, tuple[str, Executor]] = {
    "code_interpreter_call": ("code_interpreter", "provider"),
    "file_search_call": ("file_search", "provider"),
    "image_generation_call": ("image_generation", "provider"),
    "mcp_approval_request": ("", "provider"),
    "mcp_call": ("", "provider"),
    "web_search_call": ("web_search", "provider"),
    # The application runs these, and OpenAI waits for their output.
    "apply_patch_call": ("apply_patch", "server"),
    "computer_call": ("computer", "server"),
    "local_shell_call": ("local_shell", "server"),
    "shell_call": ("shell", "server"),
}
"""The tools that OpenAI defines, by the type of their item: the name of the tool, and who runs it.
The name of a tool of an MCP server is in the item."""

OUTPUTS = frozenset(
    {"apply_patch_call_output", "computer_call_output", "custom_tool_call_output"}
    | {"function_call_output", "local_shell_call_output", "shell_call_output"}
)
"""Items that are the output of a call."""

_NOT_INPUT = frozenset({"type", "id", "status", "call_id", "caller", "created_by"})
_FAILURES = frozenset({"failed", "incomplete"})


def executor_of(item: Mapping[str, Any]) -> Executor:
    """Returns who runs the tool of an item."""
    environment = item.get("environment")
    if item["type"] == "shell_call" and get(environment, "type") == "container_reference":
        return "provider"
    return BUILT_IN[item["type"]][1]


def call_id_of(item: Mapping[str, Any]) -> str:
    """Returns the id of a call: some servers give none."""
    return text_at(item, "call_id") or text_at(item, "id") or f"call_{ObjectId()}"


def outcome_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that the whole item of a built-in tool sets."""
    status = text_at(item, "status")
    match item["type"]:
        case "web_search_call":
            action = dict(item.get("action") or {})
            sources = action.pop("sources", None) or []
            fields: dict[str, Any] = {"input": action, "output": {"sources": sources}}
        case "file_search_call":
            queries, results = item.get("queries") or [], item.get("results") or []
            fields = {"input": {"queries": queries}, "output": {"results": results}}
        case "code_interpreter_call":
            given = {"code": item.get("code") or "", "container_id": item.get("container_id")}
            fields = {"input": given, "output": {"outputs": item.get("outputs") or []}}
        case "image_generation_call":
            hidden = {"result", "error", "svg_usage"}
            given = {n: v for n, v in item.items() if n not in _NOT_INPUT | hidden}
            fields = {"input": given, "output": {"result": item.get("result")}}
            if item.get("error"):
                fields["error"] = text_at(item["error"], "message") or "failed"
        case "mcp_call":
            fields = {"output": item.get("output")} | parsed(text_at(item, "arguments"))
            if item.get("error"):
                error = item["error"]
                told = error if isinstance(error, str) else text_at(error, "message")
                fields["error"] = told or "failed"
        case "mcp_approval_request":
            return {**parsed(text_at(item, "arguments")), "approval": {"id": item["id"]}}
        case _:
            given = {name: value for name, value in item.items() if name not in _NOT_INPUT}
            return {"input": given}
    if status in _FAILURES:
        fields.setdefault("error", status)
    return fields  # with an error, the output does not count


def sources_of(key: str, annotations: list[Any], parts: Parts) -> list[Part]:
    """Returns the sources that the annotations of a text name, each once."""
    found: dict[tuple[str, str], Part] = {}
    for annotation in annotations:
        cited = get(annotation, "url_citation") or annotation
        url, title = text_at(cited, "url"), text_at(cited, "title")
        if url:
            name, part = ("url", url), parts.data(f"{key}/{url}")
            found.setdefault(name, SourceUrlPart(url, title=title or None, provider=part))
            continue
        file_id, filename = text_at(annotation, "file_id"), text_at(annotation, "filename")
        if file_id:
            media = mimetypes.guess_type(filename)[0] or "application/octet-stream"
            data = parts.data(f"{key}/{file_id}", annotation=annotation)
            found.setdefault(
                ("file", file_id),
                SourceDocumentPart(
                    filename or file_id, media, filename=filename or None, id=file_id, provider=data
                ),
            )
    return list(found.values())
