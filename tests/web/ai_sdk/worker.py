"""A worker whose answer has everything: ``python -m tests.web.ai_sdk.worker URI DATABASE``.

It writes one thing for each line of its standard input. When what it wrote is stored, it prints a
line: the name of what it would write next, or how its attempt ended. It ends with its input.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

from converse_mongo import (
    Conversation,
    Converse,
    CustomPart,
    DataPart,
    FilePart,
    Message,
    SourceDocumentPart,
    SourceUrlPart,
    ToolCallPart,
)
from converse_mongo.writing.writer import MessageWriter

__all__ = ["BREAKS"]

BREAKS = "the rest of a text"
"""Before this, a test may end the worker as a crash does."""

Gate = Callable[[str], Awaitable[None]]


class Script:
    """One attempt."""

    def __init__(self, writer: MessageWriter, reader: asyncio.StreamReader) -> None:
        self.writer = writer
        self._reader = reader

    async def gate(self, name: str) -> None:
        """Returns when this may be written."""
        await self.writer.flush()
        tell(name)
        if not await self._reader.readline():
            os._exit(0)

    async def look_around(self) -> None:
        """The first step: all that needs nobody."""
        writer, gate = self.writer, self.gate
        await gate("a thought")
        await writer.write_reasoning("Let me ")
        await gate("the rest of a thought")
        await writer.write_reasoning("think.")
        await gate("a text that ends it")
        await writer.write("I ask ")
        await gate("more of a text")
        await writer.write("around. ")
        await gate("two calls")
        paris = await writer.start_tool_call("weather", call_id="paris", title="Weather")
        rome = await writer.start_tool_call("weather", call_id="rome")
        await gate("half of their inputs")
        await paris.input_delta('{"city": "Pa')
        await rome.input_delta('{"city": "Ro')
        await gate("the rest of their inputs")
        await rome.set_input({"city": "Rome"})
        await paris.set_input({"city": "Paris"})
        async with paris.execution(), rome.execution():
            await gate("what is known so far")
            await rome.set_output({"degrees": "about 20"}, preliminary=True)
            await gate("an error")
            await paris.set_error("no such city")
            await gate("an output")
            await rome.set_output({"degrees": 21})
        await gate("sources and a file")
        await writer.write(SourceUrlPart("https://example.org", title="Example", id="s1"))
        await writer.write(SourceDocumentPart("Report", "application/pdf", id="s2"))
        await writer.write(FilePart("https://example.org/a.png", "image/png"))
        await gate("data")
        await writer.write(DataPart("progress", 1, id="p"))
        await writer.write(DataPart("moment", "gone", transient=True))
        await gate("data in their place")
        await writer.write(DataPart("progress", 2, id="p"))
        await writer.write(CustomPart("marker", color="red"))

    async def research(self) -> None:
        """The second step: a sub-agent."""
        writer, gate = self.writer, self.gate
        call = await writer.start_tool_call("research", call_id="research")
        await call.set_input({"topic": "cats"})
        async with call.execution():
            agent = call.nested()
            await gate("a thought of a sub-agent")
            await agent.write_reasoning("Two pages ")
            await gate("the rest of it")
            await agent.write_reasoning("will do.")
            await gate("a call of a sub-agent")
            search = await agent.start_tool_call("search", call_id="search")
            await gate("its input")
            await search.set_input({"q": "cats"})
            await gate("a text of a sub-agent below")
            await search.nested().write("I search.")
            await gate("its output")
            await search.set_output(["a cat", "another cat"])
            for at in range(3):
                await gate(f"a text of a sub-agent {at}")
                await agent.write("Cats purr, and purr again. ")
            await gate("its end")
            await call.set_output("Cats purr.")

    async def ask(self) -> None:
        """The third step: it is begun twice, and asks people and the page."""
        writer, gate = self.writer, self.gate
        await gate("a text to take back")
        await writer.write("It is")
        await gate("a call to take back")
        voided = await writer.start_tool_call("erase", call_id="voided")
        await voided.input_delta('{"pa')
        await gate("a reset")
        await writer.reset()
        await gate("a text")
        await writer.write("I have ")
        await gate(BREAKS)
        await writer.write("to ask. ")
        await gate("a call that needs approval")
        erase = await writer.start_tool_call("erase", call_id="erase")
        await erase.set_input({"path": "notes.txt"})
        await gate("the request")
        await erase.request_approval("may_erase")
        await gate("a call of the page")
        locate = await writer.start_tool_call("locate", call_id="locate", executor="client")
        await locate.set_input({})

    async def finish(self, message: Message) -> None:
        """The last step, when all is answered."""
        writer, gate = self.writer, self.gate
        [erase] = [part for part in message.unfinished_calls if part.call_id == "erase"]
        call = writer.continue_tool_call(erase)
        async with call.execution():
            await gate("the output of what was approved")
            await call.set_output("erased")
        await gate("the last thought")
        await writer.write_reasoning("All is done.")
        await gate("the last text")
        await writer.write("Done in ")
        [locate] = [part for part in message.parts if is_call(part, "locate")]
        await gate("the end")
        await writer.write(f"{locate.fields['output']['city']}.")
        writer.metadata["finish_reason"] = "stop"


def is_call(part: object, call_id: str) -> bool:
    """Whether a part is the call with this id."""
    return isinstance(part, ToolCallPart) and part.call_id == call_id


def tell(line: str) -> None:
    """Prints a line."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main(uri: str, database: str) -> None:
    """Works until its input ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def respond(_: Conversation, message: Message) -> None:
        async with message.writer(flush_interval=0.005) as writer:
            script = Script(writer, reader)
            await writer.reset()  # what a crash left in the middle of a step
            done = sum(part.kind == "step" and part.closed for part in message.parts)
            for step in (script.look_around, script.research, script.ask)[done:]:
                async with writer.step():
                    await step()
            if any(part.state == "approval-requested" for part in calls_of(message)) or done < 3:
                await writer.suspend()
            else:
                async with writer.step():
                    await script.finish(message)
        tell("ended")

    async with (
        Converse(uri, database=database) as converse,
        converse.worker(respond, poll_interval=0.5) as worker,
    ):
        await worker.run()


def calls_of(message: Message) -> list[ToolCallPart]:
    """The calls of a message."""
    return [part for part in message.parts if isinstance(part, ToolCallPart)]


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
