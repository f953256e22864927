"""The OpenAPI description of the routes, to be merged into that of an application."""

from typing import Any

__all__ = ["openapi_paths"]

_ID = {"type": "string", "pattern": "^[0-9a-f]{24}$"}
_TEXT: dict[str, Any] = {"type": "string"}
_NULLABLE_TEXT = {"type": ["string", "null"]}
_TIME = {"type": "string", "format": "date-time"}
_COUNT = {"type": "integer", "minimum": 0}
_OBJECT: dict[str, Any] = {"type": "object"}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": required | optional, "required": list(required)}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_CONVERSATION = _object(
    {
        "id": _ID,
        "title": _NULLABLE_TEXT,
        "metadata": _OBJECT,
        "created_at": _TIME,
        "updated_at": _TIME,
    }
)
_MESSAGE = _object(
    {
        "id": _ID,
        "conversation_id": _ID,
        "position": _COUNT,
        "role": _TEXT,
        "status": {"type": "string", "enum": ["streaming", "completed", "failed", "cancelled"]},
        "content": _TEXT,
        "chunk_count": _COUNT,
        "metadata": _OBJECT,
        "replaces": _NULLABLE_TEXT,
        "error": _NULLABLE_TEXT,
        "stop_reason": _NULLABLE_TEXT,
        "created_at": _TIME,
        "completed_at": _NULLABLE_TEXT,
    }
)
_PAGE = _object(
    {
        "messages": {"type": "array", "items": _MESSAGE},
        "before": {"type": ["integer", "null"]},
        "cursor": _NULLABLE_TEXT,
    }
)
_STATUS = _object({"id": _ID, "status": _TEXT})
_STOPPED = _object({"stopped": {"type": "array", "items": _STATUS}})
_ERROR = _object({"error": _object({"code": _TEXT, "message": _TEXT})})
_UI_MESSAGE = _object(
    {"role": _TEXT, "parts": {"type": "array", "items": _OBJECT}}, id=_TEXT, metadata=_OBJECT
)
_REASON = _object({}, reason=_TEXT)


def openapi_paths(prefix: str = "", *, owner: bool = False) -> dict[str, Any]:
    """The ``paths`` of an OpenAPI 3.1 description of what :func:`routes` gives.

    With FastAPI: ``app.openapi()["paths"].update(openapi_paths("/api"))``, once all routes of the
    application itself are there.

    Args:
        prefix: Where the routes are mounted, such as ``"/api"``.
        owner: Whether :func:`routes` was given an ``owner``.
    """
    one = "/conversations/{conversation}"
    message = f"{one}/messages/{{message}}"
    chat = "/chat/{conversation}"
    paths = {
        one: {"get": _operation("The conversation", _CONVERSATION)},
        f"{one}/events": {"get": _stream("The stream of the conversation", resumes=True)},
        f"{one}/messages": {
            "get": _operation(
                "A page of history", _PAGE, _query("limit", 1, 200), _query("before", 0)
            ),
            "post": _operation(
                "What a user says",
                _object({"message": _MESSAGE, "answer": _nullable(_MESSAGE)}),
                body=_object({"content": _TEXT}, request_id=_TEXT),
                status=201,
            ),
        },
        f"{one}/stop": {"post": _operation("Stop all answers", _STOPPED, body=_REASON)},
        message: {"get": _operation("A message", _MESSAGE)},
        f"{message}/events": {
            "get": _stream("The stream of the message", resumes=True, may_be_over=True)
        },
        f"{message}/retry": {
            "post": _operation(
                "Another answer instead of the last one",
                _object({"answer": _nullable(_MESSAGE)}),
                body=_OBJECT,
                status=201,
            )
        },
        f"{message}/stop": {"post": _operation("Stop the answer", _STATUS, body=_REASON)},
        "/chat": {
            "post": _stream(
                "What a user says to the AI SDK's useChat",
                body=_object(
                    {"id": _TEXT},
                    messages={"type": "array", "items": _UI_MESSAGE},
                    trigger={"type": "string", "enum": ["submit-message", "regenerate-message"]},
                    messageId=_TEXT,
                ),
            )
        },
        chat: {
            "get": _operation(
                "The messages that useChat begins with",
                {"type": "array", "items": _UI_MESSAGE},
                _query("limit", 1, 200),
            )
        },
        f"{chat}/stream": {"get": _stream("The answer that is being written", may_be_over=True)},
        f"{chat}/stop": {"post": _operation("Stop the answers", _STOPPED, body=_OBJECT)},
    }
    if owner:
        paths["/events"] = {"get": _stream("The news of all conversations of the user")}
    for path, operations in paths.items():
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        for operation in operations.values():
            operation["parameters"] += [
                {"name": name, "in": "path", "required": True, "schema": _ID} for name in names
            ]
    return {prefix + path: operations for path, operations in paths.items()}


def _operation(
    summary: str,
    answer: dict[str, Any],
    *parameters: dict[str, Any],
    body: dict[str, Any] | None = None,
    status: int = 200,
) -> dict[str, Any]:
    content = {"application/json": {"schema": answer}}
    found = _described(summary, list(parameters), body)
    found["responses"][str(status)] = {"description": summary, "content": content}
    return found


def _stream(
    summary: str,
    *,
    body: dict[str, Any] | None = None,
    resumes: bool = False,
    may_be_over: bool = False,
) -> dict[str, Any]:
    where = [
        {"name": "after", "in": "query", "schema": _TEXT},
        {"name": "Last-Event-ID", "in": "header", "schema": _TEXT},
    ]
    found = _described(summary, where if resumes else [], body)
    content = {"text/event-stream": {"schema": _TEXT}}
    found["responses"]["200"] = {"description": summary, "content": content}
    if may_be_over:
        found["responses"]["204"] = {"description": "There is nothing more to come"}
    return found


def _described(
    summary: str, parameters: list[dict[str, Any]], body: dict[str, Any] | None
) -> dict[str, Any]:
    content = {"application/json": {"schema": _ERROR}}
    statuses = {"400": "Not understood", "404": "Not there", "503": "Try again"}
    if body is not None:
        statuses |= {"409": "Not now", "413": "Too large", "415": "Not JSON"}
    found: dict[str, Any] = {
        "summary": summary,
        "tags": ["conversations"],
        "parameters": parameters,
        "responses": {
            status: {"description": description, "content": content}
            for status, description in statuses.items()
        },
    }
    if body is not None:
        found["requestBody"] = {"content": {"application/json": {"schema": body}}}
    return found


def _query(name: str, least: int, most: int | None = None) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most})
    return {"name": name, "in": "query", "schema": schema}
