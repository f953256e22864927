"""The agents of the pages on approvals, ended where a crash hurts most."""

import asyncio
from typing import Any

import pytest

from converse_mongo import (
    Approval,
    Converse,
    Message,
    MessageStatus,
    MessageSuspended,
    MessageWriter,
    ToolCallPart,
    ToolOutput,
)
from tests.docs.blocks import BLOCKS, DOCS
from tests.streams import SOON


def respond_of(name: str) -> Any:
    """The ``respond`` of a page that asks for an approval."""
    path = DOCS / "howto" / name
    (block,) = [
        block for block in BLOCKS if block.page == path and "request_approval()" in block.code
    ]
    names: dict[str, Any] = {}
    code = block.code.removesuffix("asyncio.run(main())\n")
    exec(compile(code, str(block), "exec"), names)  # noqa: S102 - our own pages
    return names["respond"]


@pytest.mark.parametrize("name", ["approvals.md", "ai-sdk.md"])
async def test_agent__that_ends_before_it_waits_asks_all_the_same(
    converse: Converse, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    suspend, ended = MessageWriter.suspend, list[MessageWriter]()

    async def end_first(writer: MessageWriter, *arguments: Any, **options: Any) -> None:
        if not ended:
            ended.append(writer)
            await writer.detach()
            return
        await suspend(writer, *arguments, **options)

    monkeypatch.setattr(MessageWriter, "suspend", end_first)
    conversation = await converse.start_conversation()
    message: Message = await conversation.start_streaming_assistant(queue="default")
    waits = 0
    async with asyncio.timeout(SOON), converse.worker(respond_of(name)) as worker:
        running = asyncio.create_task(worker.run())
        async for event in converse.watch_message(message.id):
            if isinstance(event, MessageSuspended):
                waits += 1
                answers = [
                    Approval(call.call_id, approved=True)
                    if call.wanted == "approval"
                    else ToolOutput(call.call_id, "here")
                    for call in event.pending
                ]
                await converse.answer_tool_calls(message.id, answers)
        worker.close()
        await running
    read = await converse.get_message(message.id)
    assert (read.status, waits, len(ended)) == (MessageStatus.COMPLETED, 1, 1)
    states = [part.state for part in read.parts if isinstance(part, ToolCallPart)]
    assert states == ["output-available"] * len(states) != []
