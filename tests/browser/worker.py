"""A worker of the chat, as a process: ``python -m tests.browser.worker URI DATABASE``.

Its answer has ten words, of which the first attempt says five and then hangs, until it is killed.
It asks people first if the question says so.
"""

import asyncio
import sys

from converse_mongo import Conversation, Converse, Message, ToolCallPart
from converse_mongo.web import prompt_messages

WORDS = [f"w{number} " for number in range(10)]
HALF = WORDS[:5]
ASK = "May you?"


async def respond(conversation: Conversation, message: Message) -> None:
    """Writes the answer, or the rest of it."""
    said = await prompt_messages(conversation, message, limit=5)
    async with message.writer(flush_interval=0.01) as writer:
        if said[-1].content.startswith(ASK):
            calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
            if not calls:
                for name in ("delete_files", "send_mail"):
                    call = await writer.start_tool_call(name, call_id=name)
                    await call.set_input({})
                    await call.request_approval()
                await writer.suspend()
                return
            given = [call.approval.approved for call in calls if call.approval is not None]
            await writer.write(", ".join("yes" if each else "no" for each in given))
            return
        for word in WORDS[len(message.content.split()) :]:
            await writer.write(word)
            if message.attempt == 1 and word == HALF[-1]:
                await writer.flush()
                await asyncio.Event().wait()


async def main(uri: str, database: str) -> None:
    """Works until it is killed."""
    async with (
        Converse(uri, database=database) as converse,
        converse.worker(respond, poll_interval=0.5) as worker,
    ):
        await worker.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
