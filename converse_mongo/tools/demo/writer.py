"""The writer process: streams the text on its standard input into a message, token by token.

It starts the message first and then waits for the text, as an application waits for a model; so
viewers can be there before the first token.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from converse_mongo.documents.messages import Message
from converse_mongo.tools.demo.programs import converse_from_environment, run_program
from converse_mongo.tools.demo.reports import Appended, Finished, Started, tell
from converse_mongo.tools.demo.texts import tokenise

__all__ = ["write"]


async def write(database: str, question: str, tokens_per_second: float) -> None:
    """Starts a conversation and streams the answer into it.

    Raises:
        ConverseError: Something could not be stored.
    """
    async with converse_from_environment(database) as converse:
        conversation = await converse.start_conversation(
            title="The demonstration", metadata={"provider": "demo"}, owner=("user", "demo")
        )
        await conversation.add_user_message(question)
        message = await conversation.start_streaming_assistant({"model": "demo"})
        async with _failed_if_interrupted(message):
            tell(Started(str(conversation.id), str(message.id)))
            text = (await asyncio.to_thread(sys.stdin.buffer.read)).decode("utf-8")
            tokens = tokenise(text)
            async for token in _paced(tokens, tokens_per_second):
                sent_at = time.time()
                chunk = await message.append_chunk(token)
                tell(Appended(chunk.sequence, sent_at))
                _heed_cancellation()
            await message.complete_streaming({"total_tokens": len(tokens), "finish_reason": "stop"})
            tell(Finished(len(tokens)))


@asynccontextmanager
async def _failed_if_interrupted(message: Message) -> AsyncIterator[None]:
    """Ends a message that nobody will go on with, so that its viewers do not wait for ever."""
    try:
        yield
    except asyncio.CancelledError:
        await asyncio.shield(message.fail_streaming("The demonstration was interrupted."))
        raise


def _heed_cancellation() -> None:
    """Raises a cancellation that asyncio.wait_for, which PyMongo uses, swallowed on Python 3.11."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _paced(tokens: Sequence[str], per_second: float) -> AsyncIterator[str]:
    """``tokens`` at a steady rate; after a slow append the next ones follow sooner."""
    start = time.monotonic()
    for number, token in enumerate(tokens):
        await asyncio.sleep(max(0.0, start + number / per_second - time.monotonic()))
        yield token


def main() -> None:
    """The entry point of the process."""
    parser = argparse.ArgumentParser(prog="converse_mongo.tools.demo.writer", description=__doc__)
    parser.add_argument("--database", required=True)
    parser.add_argument("--question", required=True)
    parser.add_argument("--tokens-per-second", type=float, required=True)
    arguments = parser.parse_args()
    run_program(write(arguments.database, arguments.question, arguments.tokens_per_second))


if __name__ == "__main__":
    main()
