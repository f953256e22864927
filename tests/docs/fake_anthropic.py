"""A server that answers like Anthropic's, for the programs of the documentation."""

from starlette.requests import Request
from starlette.responses import Response

from tests.chat.fake_openai import ANSWER, sent
from tests.integrations.anthropic_events import CITED, SEARCH, stream, text, thinking, tool_use


async def answer(request: Request) -> Response:
    """Calls the first tool, if there is one, once; with a second one, pauses, once."""
    asked = await request.json()
    told = [
        block["type"]
        for message in asked["messages"]
        for block in message["content"]
        if isinstance(block, dict)
    ]
    tools, thought = asked.get("tools", []), thinking("Hm.")
    if tools and "tool_result" not in told:
        call = tool_use({"query": "MongoDB"}, tools[0]["name"])
        return sent(stream(thought, call, stop="tool_use", name="msg_1"))
    if len(tools) > 1 and "server_tool_use" not in told:
        return sent(stream(thought, SEARCH[0], stop="pause_turn", name="msg_2"))
    found = [SEARCH[1]] if len(tools) > 1 else []
    said = text("".join(ANSWER), *([CITED] if found else []))
    return sent(stream(*found, thought, said, name="msg_3"))
