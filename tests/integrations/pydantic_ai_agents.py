"""Agents whose model follows a script, and a worker of them as a process of its own.

The model tells what to say from the messages alone, so that it goes on in any process.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from converse_mongo import Converse
from converse_mongo.integrations.pydantic_ai import pydantic_ai_respond

Said = str | dict[int, Any]
Script = Sequence[Sequence[Said]]
"""What the model says, for each of its calls in a run."""

QUEUE = "default"
LEASE = 2.0
QUESTIONS = "How many?", "And now?"


def call(tool: str, arguments: str = "{}", call_id: str = "call_1", at: int = 0) -> Said:
    return {at: DeltaToolCall(tool, arguments, tool_call_id=call_id)}


def is_prompt(part: Any) -> bool:
    """Whether a user says it, and no tool, and not the agent about an output."""
    return isinstance(part, UserPromptPart) and part.content in ("Hi", "And?", *QUESTIONS)


class Scripted:
    """A model that follows a script.

    Attributes:
        script: What it says.
        asked: The messages of each call.
        before: Called before each piece, with the number of the call and of the piece.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[list[ModelMessage]] = []
        self.before: Callable[[int, int], Any] | None = None

    async def __call__(self, messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[Any]:
        self.asked.append(list(messages))
        step = 0
        for message in messages:
            if isinstance(message, ModelResponse):
                step += 1
            elif any(is_prompt(part) for part in message.parts):
                step = 0
        for number, piece in enumerate(self.script[step]):
            if self.before is not None:
                await self.before(step, number)
            yield piece

    def agent(self, **options: Any) -> Agent[Any, Any]:
        return Agent(FunctionModel(stream_function=self), **options)


def dumped(messages: Sequence[ModelMessage]) -> list[dict[str, Any]]:
    """Messages in JSON types; the oldest versions of Pydantic warn of unions without a reason."""
    found: list[dict[str, Any]] = ModelMessagesTypeAdapter.dump_python(
        [*messages], mode="json", warnings=False
    )
    return found


def normal(messages: Sequence[ModelMessage], *, times: bool = True) -> list[dict[str, Any]]:
    """Messages in JSON types, without what the store does not have: see the page "Pydantic AI"."""
    found = dumped(messages)
    for message in found:
        for name in ("run_id", "conversation_id", "instructions"):
            message.pop(name, None)
        parts = message["parts"]
        if message["kind"] == "request":
            del message["timestamp"]
            message["parts"] = parts = [p for p in parts if p["part_kind"] != "system-prompt"]
        for part in [*parts, message]:
            if part.get("part_kind") == "user-prompt" or not times:
                part.pop("timestamp", None)
    return found


def told(messages: Sequence[ModelMessage]) -> list[tuple[str, Any]]:
    """What the parts of messages say."""
    found = dumped(messages)
    return [
        (part["part_kind"], part.get("content", part.get("args")))
        for message in found
        for part in message["parts"]
    ]


def results(messages: Sequence[ModelMessage]) -> dict[str, tuple[str, Any]]:
    """The outcomes of the calls, and what the model is told of them."""
    return {
        part.tool_call_id: (part.outcome, part.content)
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if part.part_kind == "tool-return"
    }


ERASE: Script = [
    ["I look. ", call("erase", '{"path": "/data"}')],
    ["Do", "ne."],
]


def say(word: str) -> None:
    """Tells the process that watches this one."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def hang(word: str) -> None:
    """Says where this process is, and stays there."""
    say(word)
    await asyncio.Event().wait()


def agent_that_hangs(where: str) -> Agent[Any, Any]:
    model = Scripted(ERASE)

    async def before(step: int, number: int) -> None:
        if where == f"model {step} {number}":
            await hang(where)

    model.before = before
    agent = model.agent(output_type=[str, DeferredToolRequests])

    @agent.tool_plain(requires_approval=where == "approval")
    async def erase(path: str) -> str:
        if where == "tool":
            await hang(where)
        return f"erased {path}"

    return agent


async def work(uri: str, database: str, where: str) -> None:
    """Works until it is killed."""
    respond = pydantic_ai_respond(agent_that_hangs(where))
    async with (
        Converse(uri, database=database, lease=LEASE) as converse,
        converse.worker(respond, queues=[QUEUE]) as worker,
    ):
        say("ready")
        await worker.run()


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
