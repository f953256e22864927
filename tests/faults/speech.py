"""How tokens are written, as text and in parts, and what a chunk says."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from converse_mongo import (
    DataPart,
    MessageChunk,
    MessageWriter,
    Part,
    PartDelta,
    PartStart,
    ReasoningPart,
    ToolCall,
    ToolCallPart,
)
from converse_mongo.domain.part_events import PartEvent
from tests.faults.schedules import Way

__all__ = ["Speaker", "contents_of", "said", "tokens_in"]


def said(chunk: Mapping[str, Any]) -> str:
    """The tokens of a chunk, in the form of JSON."""
    return str(chunk["content"] or chunk.get("delta", ""))


def contents_of(way: Way, token: str) -> list[str | Part | PartEvent]:
    """What is appended by hand for a token."""
    match way:
        case "reasoning":
            return [ReasoningPart(token)]
        case "call" | "output":
            return [PartStart(ToolCallPart("tool", token), token), PartDelta(token, token)]
        case "data":
            return [DataPart("progress", token, id="p"), token]
    return [token]


def tokens_in(chunks: list[MessageChunk]) -> list[tuple[str, int]]:
    """The tokens of chunks, with their places."""
    found = [(said(chunk.to_dict()), chunk.sequence) for chunk in chunks]
    return [(token, place) for token, place in found if token]


class Speaker:
    """Writes tokens by a writer, in parts of one answer.

    Args:
        writer: The writer.
        has_output: Is told of each output that is stored, by the id of the call.
    """

    def __init__(self, writer: MessageWriter, has_output: Callable[[str, Any], None]) -> None:
        self._writer = writer
        self._has_output = has_output
        self._call: ToolCall | None = None

    async def say(self, way: Way, token: str) -> Literal["text", "part", "stored"]:
        """Writes a token; returns whether it is text of the answer, or stored by now."""
        writer, call = self._writer, self._call
        if way == "reasoning":
            await writer.write_reasoning(token)
        elif way == "call":
            self._call = await writer.start_tool_call("tool")
            await self._call.input_delta(token)
        elif way == "output" and call is not None:
            self._call = None
            await self._answer(call, token)
            return "stored"
        else:
            if way == "data":
                await writer.write(DataPart("progress", token, id="p"))
            await writer.write(token)
            return "text"
        return "part"

    async def _answer(self, call: ToolCall, token: str) -> None:
        await call.set_input({"of": token})
        async with call.execution():
            await call.set_output("so far", preliminary=True)
            await call.nested().write(token)
            await call.set_output({"of": token})
        self._has_output(call.call_id, {"of": token})
