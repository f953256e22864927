"""Events of Anthropic's Messages, in the shape in which its API sends them."""

import json
from collections.abc import Iterator
from typing import Any

Event = dict[str, Any]
Block = dict[str, Any]

USAGE = {
    "input_tokens": 12,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 7,
    "output_tokens": 1,
    "service_tier": "standard",
}
TOTALS = {"output_tokens": 34, "server_tool_use": {"web_search_requests": 1}}

CITED: Block = {
    "type": "web_search_result_location",
    "url": "https://example.com/a",
    "title": "A page",
    "encrypted_index": "index",
    "cited_text": "There are three of them.",
}
OF_PDF: Block = {
    "type": "page_location",
    "cited_text": "three",
    "document_index": 0,
    "document_title": "Notes",
    "file_id": None,
    "start_page_number": 1,
    "end_page_number": 2,
}


def text(text: str, *citations: Block, **more: Any) -> Block:
    cited = {"citations": [*citations]} if citations else {}
    return {"type": "text", "text": text, **cited, **more}


def thinking(text: str, signature: str = "signed") -> Block:
    return {"type": "thinking", "thinking": text, "signature": signature}


REDACTED: Block = {"type": "redacted_thinking", "data": "secret"}


def tool_use(given: Any, name: str = "search", call_id: str = "toolu_1", **more: Any) -> Block:
    """A call; its input as an object, or as the text that the model writes."""
    return {"type": "tool_use", "id": call_id, "name": name, "input": given, **more}


def server_use(name: str, given: Any, call_id: str) -> Block:
    return {"type": "server_tool_use", "id": call_id, "name": name, "input": given}


def result(kind: str, call_id: str, content: Any, **more: Any) -> Block:
    return {"type": f"{kind}_tool_result", "tool_use_id": call_id, "content": content, **more}


FOUND = [
    {
        "type": "web_search_result",
        "url": "https://example.com/a",
        "title": "A page",
        "encrypted_content": "content",
        "page_age": None,
    }
]
SEARCH = (
    server_use("web_search", {"query": "mongo"}, "srvtoolu_1"),
    result("web_search", "srvtoolu_1", FOUND, caller={"type": "direct"}),
)
FETCH = (
    server_use("web_fetch", {"url": "https://example.com/a"}, "srvtoolu_2"),
    result(
        "web_fetch",
        "srvtoolu_2",
        {
            "type": "web_fetch_result",
            "url": "https://example.com/a",
            "retrieved_at": "2026-11-01T00:00:00Z",
            "content": {
                "type": "document",
                "title": "A page",
                "source": {"type": "text", "media_type": "text/plain", "data": "three"},
            },
        },
    ),
)
RAN: Block = {
    "type": "code_execution_result",
    "stdout": "3\n",
    "stderr": "",
    "return_code": 0,
    "content": [],
}
CODE = (
    server_use("code_execution", {"code": "print(3)"}, "srvtoolu_3"),
    result("code_execution", "srvtoolu_3", RAN),
)
BASH = (
    server_use("bash_code_execution", {"command": "ls"}, "srvtoolu_4"),
    result("bash_code_execution", "srvtoolu_4", {**RAN, "type": "bash_code_execution_result"}),
)
FINDS_TOOLS = (
    server_use("tool_search_tool_regex", {"pattern": "."}, "srvtoolu_5"),
    result(
        "tool_search",
        "srvtoolu_5",
        {
            "type": "tool_search_tool_search_result",
            "tool_references": [{"type": "tool_reference", "tool_name": "search"}],
        },
    ),
)
MCP = (
    {
        "type": "mcp_tool_use",
        "id": "mcptoolu_1",
        "name": "lookup",
        "server_name": "wiki",
        "input": {"q": "mongo"},
    },
    {
        "type": "mcp_tool_result",
        "tool_use_id": "mcptoolu_1",
        "is_error": False,
        "content": [{"type": "text", "text": "a database"}],
    },
)
FAILED = (
    server_use("web_search", {"query": "more"}, "srvtoolu_6"),
    result(
        "web_search",
        "srvtoolu_6",
        {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"},
    ),
)
UPLOAD: Block = {"type": "container_upload", "file_id": "file_1"}
COMPACTION: Block = {"type": "compaction", "content": "In short.", "encrypted_content": "more"}
LISTING: Block = {
    "type": "mcp_tool_listing",
    "mcp_server_name": "wiki",
    "tools": [{"name": "lookup", "input_schema": {"type": "object"}}],
}


def message(name: str = "msg_1", model: str = "claude-test") -> dict[str, Any]:
    return {
        "id": name,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": USAGE,
    }


def pieces(text: str) -> list[str]:
    return [text[start : start + 4] for start in range(0, len(text), 4)]


def stream(*blocks: Block, stop: str = "end_turn", name: str = "msg_1", **more: Any) -> list[Event]:
    """The events of a response with these blocks."""
    events: list[Event] = [{"type": "message_start", "message": message(name)}, {"type": "ping"}]
    for index, block in enumerate(blocks):
        events += [{**event, "index": index} for event in _of_block(block)]
    delta = {"stop_reason": stop, "stop_sequence": None, **more}
    events.append({"type": "message_delta", "delta": delta, "usage": TOTALS})
    return [*events, {"type": "message_stop"}]


def _of_block(block: Block) -> Iterator[Event]:
    empty: Block = {"text": "", "thinking": "", "signature": "", "citations": []}
    deltas: list[Block] = []
    match block["type"]:
        case "text":
            cited = block.get("citations", [])
            deltas += [{"type": "citations_delta", "citation": each} for each in cited]
            deltas += [{"type": "text_delta", "text": each} for each in pieces(block["text"])]
        case "thinking":
            for each in pieces(block["thinking"]):
                deltas.append({"type": "thinking_delta", "thinking": each})
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        case "tool_use" | "server_tool_use" | "mcp_tool_use":
            empty["input"] = {}
            written = block["input"]
            written = written if isinstance(written, str) else json.dumps(written)
            deltas += [
                {"type": "input_json_delta", "partial_json": each}
                for each in ("", *pieces("" if written == "{}" else written))
            ]
        case "compaction":
            deltas.append({**block, "type": "compaction_delta"})
            empty["content"] = None
    begun = {name: empty.get(name, value) for name, value in block.items()}
    yield {"type": "content_block_start", "content_block": begun}
    for delta in deltas:
        yield {"type": "content_block_delta", "delta": delta}
    yield {"type": "content_block_stop"}
