"""The programs of the child processes. They report in lines of JSON on standard output.

Each imports what it needs, and then reads its arguments as a line of JSON from standard input: a
URI may hold a password, and every user of a machine sees command lines. They begin with it and the
database. ``write`` also takes the tokens per second. It starts a message, and then waits for its
text on standard input, as an application waits for a model: viewers can attach before the first
token. At the end it reads the message back. ``view`` also takes the id of a message, and optionally
a sequence to begin after, and watches it.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

from pymongo.errors import PyMongoError

from converse_mongo.converse import Converse
from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.errors import ConverseError
from converse_mongo.domain.events import ChunkReceived
from converse_mongo.driver import failures
from converse_mongo.tools.demo.texts import answer_of
from converse_mongo.tools.signals import terminable


def _tell(*report: Any) -> None:
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def _described(chunk: MessageChunk) -> dict[str, Any]:
    described = chunk.to_dict()
    del described["created_at"]
    return described


async def _write(converse: Converse, tokens_per_second: float) -> None:
    conversation = await converse.start_conversation(
        title="The demonstration", metadata={"provider": "demo"}, owner=("user", "demo")
    )
    await conversation.add_user_message("How do I read a file in Python?")
    message = await conversation.start_streaming_assistant({"model": "demo"})
    async with message.writer(granularity="token", flush_interval=0.001) as writer:
        _tell("started", str(conversation.id), str(message.id))
        text = await asyncio.to_thread(sys.stdin.buffer.read)
        start = time.monotonic()
        for number, written in enumerate(answer_of(text.decode())):
            due = start + number / tokens_per_second
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            _tell("written", number, time.time())
            await writer.write(written)
        writer.metadata["finish_reason"] = "stop"
    _tell("finished")
    stored = await converse.get_message(message.id)
    chunks = [_described(chunk) async for chunk in stored.iter_chunks()]
    _tell("stored", stored.status.value, stored.content, chunks)


async def _view(converse: Converse, message_id: str, after: int | None = None) -> None:
    async with converse.watch_message(message_id, after) as events:
        _tell("watching", time.time(), converse.watch_mode.replace("_", " "))
        async for event in events:
            received_at = time.time()
            if isinstance(event, ChunkReceived):
                _tell("seen", _described(event.chunk), received_at)
            else:
                _tell("ended", event.type)


async def _run(program: str, uri: str, database: str, *arguments: Any) -> None:
    options = {"serverSelectionTimeoutMS": 5000}
    run = _write if program == "write" else _view
    async with Converse(uri, database, client_options=options) as converse:
        await run(converse, *arguments)


def main() -> None:
    """Runs a program as the whole of a child process."""
    try:
        with terminable():
            if line := sys.stdin.buffer.readline():  # else the parent is gone
                asyncio.run(_run(sys.argv[1], *json.loads(line)))
    except BrokenPipeError:  # the parent is gone
        os._exit(1)  # an orderly exit would flush what nobody reads
    except (ConverseError, PyMongoError) as error:
        _tell("failed", failures.reason(error))


if __name__ == "__main__":
    main()
