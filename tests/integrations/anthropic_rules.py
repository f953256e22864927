"""What Anthropic's API refuses, as its errors say it."""

import itertools
import json
import re
from typing import Any

ID = re.compile(r"^[a-zA-Z0-9_-]+$")


def check(messages: list[Any]) -> None:
    """Fails for messages that the API answers with an error."""
    json.dumps(messages, allow_nan=False).encode()
    roles = [message["role"] for message in messages]
    assert all(one != other for one, other in itertools.pairwise(roles)), roles
    open_calls: list[str] = []
    served: dict[str, int] = {}
    names: set[str] = set()
    for number, message in enumerate(messages):
        content = message["content"]
        assert content, "content must be non-empty"
        assert not isinstance(content, str) or content.strip()
        blocks = [] if isinstance(content, str) else content
        results = [each["tool_use_id"] for each in blocks if each["type"] == "tool_result"]
        # "`tool_use` ids were found without `tool_result` blocks immediately after"
        assert results == open_calls
        assert [each["type"] for each in blocks[: len(results)]] == ["tool_result"] * len(results)
        open_calls = []
        for block in blocks:
            kind = block["type"]
            if kind == "text":
                # "text content blocks must contain non-whitespace text"
                assert block["text"].strip()
            if kind in ("tool_use", "server_tool_use", "mcp_tool_use"):
                assert isinstance(block["input"], dict)
                assert ID.match(block["id"])
                assert block["id"] not in names, "`tool_use` ids must be unique"
                names.add(block["id"])
                if kind == "tool_use":
                    open_calls.append(block["id"])
                else:
                    served[block["id"]] = number
            elif kind == "tool_result":
                # "content cannot be empty if `is_error` is true"
                assert block.get("content") or not block.get("is_error")
            elif kind.endswith("_tool_result"):
                assert served.pop(block["tool_use_id"], None) is not None, "a result without a call"
            elif kind == "thinking":
                assert block["signature"]
        if message["role"] == "assistant":
            # "The final block in an assistant message cannot be `thinking`"
            assert blocks[-1]["type"] not in ("thinking", "redacted_thinking")
    assert not open_calls
    last = max((n for n, role in enumerate(roles) if role == "assistant"), default=-1)
    # "was found without a corresponding `web_search_tool_result` block"
    assert set(served.values()) <= {last}
    if served:
        behind = messages[last + 1 :]
        told = [each for message in behind for each in message["content"]]
        assert all(isinstance(each, dict) and each["type"] == "tool_result" for each in told)
    if roles and roles[-1] == "assistant" and messages[-1]["content"][-1]["type"] == "text":
        text = messages[-1]["content"][-1]["text"]
        assert text == text.rstrip(), "final assistant content cannot end with trailing whitespace"
