"""Events of OpenAI's Responses, in the shape in which its API sends them."""

from collections.abc import Iterable, Iterator
from typing import Any

Event = dict[str, Any]
Item = dict[str, Any]

USAGE = {
    "input_tokens": 12,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 34,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 46,
}
CITED = {
    "type": "url_citation",
    "url": "https://example.com/a",
    "title": "A page",
    "start_index": 0,
    "end_index": 2,
}
OF_FILE = {"type": "file_citation", "file_id": "file-1", "filename": "notes.pdf", "index": 0}


def response(status: str, output: Iterable[Item] = (), **more: Any) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": "gpt-test",
        "output": list(output),
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": USAGE if status == "completed" else None,
        **more,
    }


def message(*contents: Item, status: str = "completed", name: str = "msg_1") -> Item:
    return {
        "id": name,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": list(contents),
    }


def said(text: str, *annotations: Item) -> Item:
    return {"type": "output_text", "text": text, "annotations": list(annotations)}


def refused(text: str) -> Item:
    return {"type": "refusal", "refusal": text}


def reasoning(
    *summary: str, encrypted: str | None = "secret", content: Iterable[str] = (), name: str = "rs_1"
) -> Item:
    item: Item = {
        "id": name,
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text} for text in summary],
    }
    if encrypted is not None:
        item["encrypted_content"] = encrypted
    if content:
        item["content"] = [{"type": "reasoning_text", "text": text} for text in content]
    return item


def function_call(
    arguments: str, name: str = "search", call_id: str = "call_1", **more: Any
) -> Item:
    return {
        "id": f"fc_{call_id}",
        "type": "function_call",
        "status": "completed",
        "name": name,
        "call_id": call_id,
        "arguments": arguments,
        **more,
    }


def custom_call(text: str) -> Item:
    return {
        "id": "ctc_1",
        "type": "custom_tool_call",
        "name": "python",
        "call_id": "call_9",
        "input": text,
    }


WEB_SEARCH: Item = {
    "id": "ws_1",
    "type": "web_search_call",
    "status": "completed",
    "action": {
        "type": "search",
        "query": "mongo",
        "sources": [{"type": "url", "url": "https://a"}],
    },
}
FILE_SEARCH: Item = {
    "id": "fs_1",
    "type": "file_search_call",
    "status": "completed",
    "queries": ["mongo"],
    "results": [{"file_id": "file-1", "filename": "notes.pdf", "score": 0.5, "text": "it"}],
}
CODE: Item = {
    "id": "ci_1",
    "type": "code_interpreter_call",
    "status": "completed",
    "code": "print(1)",
    "container_id": "cntr_1",
    "outputs": [{"type": "logs", "logs": "1"}],
}
IMAGE: Item = {
    "id": "ig_1",
    "type": "image_generation_call",
    "status": "completed",
    "result": "aGVsbG8=",
    "revised_prompt": "A cat",
    "output_format": "png",
}
MCP: Item = {
    "id": "mcp_1",
    "type": "mcp_call",
    "status": "completed",
    "name": "lookup",
    "server_label": "wiki",
    "arguments": '{"q": "mongo"}',
    "output": "a database",
}
MCP_TOOLS: Item = {
    "id": "mcpl_1",
    "type": "mcp_list_tools",
    "server_label": "wiki",
    "tools": [{"name": "lookup", "input_schema": {"type": "object"}}],
}
MCP_ASKS: Item = {
    "id": "mcpr_1",
    "type": "mcp_approval_request",
    "name": "lookup",
    "server_label": "wiki",
    "arguments": '{"q": "mongo"}',
}
COMPUTER: Item = {
    "id": "cu_1",
    "type": "computer_call",
    "status": "completed",
    "call_id": "call_cu",
    "action": {"type": "click", "button": "left", "x": 1, "y": 2},
    "pending_safety_checks": [{"id": "sc_1", "code": "malicious", "message": "Look"}],
}
LOCAL_SHELL: Item = {
    "id": "lsh_1",
    "type": "local_shell_call",
    "status": "completed",
    "call_id": "call_ls",
    "action": {"type": "exec", "command": ["ls"], "env": {}},
}
SHELL: Item = {
    "id": "sh_1",
    "type": "shell_call",
    "status": "completed",
    "call_id": "call_sh",
    "action": {"commands": ["ls"]},
    "environment": {"type": "container_reference", "container_id": "cntr_1"},
}
SHELL_OUTPUT: Item = {
    "id": "sho_1",
    "type": "shell_call_output",
    "status": "completed",
    "call_id": "call_sh",
    "output": [{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
}
PATCH: Item = {
    "id": "ap_1",
    "type": "apply_patch_call",
    "status": "completed",
    "call_id": "call_ap",
    "operation": {"type": "delete_file", "path": "a.txt"},
}
COMPACTION: Item = {"id": "cmp_1", "type": "compaction", "encrypted_content": "squeezed"}

_PROGRESS = {
    "web_search_call": ("in_progress", "searching", "completed"),
    "file_search_call": ("in_progress", "searching", "completed"),
    "image_generation_call": ("in_progress", "generating", "completed"),
    "code_interpreter_call": ("in_progress", "interpreting", "completed"),
    "mcp_call": ("in_progress", "completed"),
    "mcp_list_tools": ("in_progress", "completed"),
}


def pieces(text: str) -> list[str]:
    return [text[start : start + 4] for start in range(0, len(text), 4)]


def stream(
    *items: Item, ends: str = "completed", background: bool = False, **more: Any
) -> list[Event]:
    """The events of a response with these items, numbered."""
    flag: dict[str, Any] = {"background": background}
    events: list[Event] = [
        {"type": "response.created", "response": response("in_progress", **flag)},
        {"type": "response.in_progress", "response": response("in_progress", **flag)},
    ]
    for index, item in enumerate(items):
        events += [{**event, "output_index": index} for event in _of_item(item)]
    ended = response(ends, items, **flag, **more)
    events.append({"type": f"response.{ends}", "response": ended})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def _of_item(item: Item) -> Iterator[Event]:
    kind, name = item["type"], item.get("id")
    empty: Item = {
        "content": [],
        "summary": [],
        "arguments": "",
        "input": "",
        "code": "",
        "result": None,
    }
    begun = {n: empty.get(n, v) for n, v in item.items() if n != "encrypted_content"}
    if "status" in item:
        begun["status"] = "in_progress"
    yield {"type": "response.output_item.added", "item": begun}
    for event in _inside(item):
        yield {**event, "item_id": name}
    for progress in _PROGRESS.get(kind, ()):
        yield {"type": f"response.{kind}.{progress}", "item_id": name}
    yield {"type": "response.output_item.done", "item": item}


def _inside(item: Item) -> Iterator[Event]:
    match item["type"]:
        case "message":
            for index, content in enumerate(item["content"]):
                for event in _of_content(content):
                    yield {**event, "content_index": index}
        case "reasoning":
            for index, each in enumerate(item["summary"]):
                for event in _of_thought("reasoning_summary", each):
                    yield {**event, "summary_index": index}
            for index, each in enumerate(item.get("content", [])):
                for piece in pieces(each["text"]):
                    yield {
                        "type": "response.reasoning_text.delta",
                        "delta": piece,
                        "content_index": index,
                    }
                yield {
                    "type": "response.reasoning_text.done",
                    "text": each["text"],
                    "content_index": index,
                }
        case "function_call":
            yield from _growing("response.function_call_arguments", item["arguments"], "arguments")
        case "custom_tool_call":
            yield from _growing("response.custom_tool_call_input", item["input"], "input")
        case "mcp_call":
            yield from _growing("response.mcp_call_arguments", item["arguments"], "arguments")
        case "code_interpreter_call":
            yield from _growing("response.code_interpreter_call_code", item["code"], "code")


def _growing(name: str, text: str, whole: str) -> Iterator[Event]:
    for piece in pieces(text):
        yield {"type": f"{name}.delta", "delta": piece}
    yield {"type": f"{name}.done", whole: text}


def _of_content(content: Item) -> Iterator[Event]:
    is_text = content["type"] == "output_text"
    name, field = ("output_text", "text") if is_text else ("refusal", "refusal")
    begun = {**content, field: "", **({"annotations": []} if is_text else {})}
    yield {"type": "response.content_part.added", "part": begun}
    text = content[field]
    for number, piece in enumerate(pieces(text)):
        yield {"type": f"response.{name}.delta", "delta": piece, "logprobs": []}
        for index, each in enumerate(content.get("annotations", []) if number == 0 else []):
            yield {
                "type": "response.output_text.annotation.added",
                "annotation": each,
                "annotation_index": index,
            }
    yield {"type": f"response.{name}.done", field: text, "logprobs": []}
    yield {"type": "response.content_part.done", "part": content}


def _of_thought(name: str, each: Item) -> Iterator[Event]:
    yield {"type": f"response.{name}_part.added", "part": {**each, "text": ""}}
    for piece in pieces(each["text"]):
        yield {"type": f"response.{name}_text.delta", "delta": piece}
    yield {"type": f"response.{name}_text.done", "text": each["text"]}
    yield {"type": f"response.{name}_part.done", "part": each}
