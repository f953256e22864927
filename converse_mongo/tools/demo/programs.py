"""The programs of the child processes; see ``children``.

The first line that each gets begins with the URI and the database. (A URI may hold a password, and
every user of a machine sees command lines.)

- ``post`` is the web process of an application: it starts a message in a queue. Once it gets a
  second line, it reads the message back.
- ``work`` is a worker. It also takes the tokens per second, and the token at which it waits to be
  told to end, or to be killed. The next line is the text; until it comes, a message that it has
  waits, as an application waits for a model: viewers can attach before the first token.
- ``view`` watches a message. It also takes its id, and optionally a sequence to begin after.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pymongo.errors import PyMongoError

from converse_mongo.converse import Converse
from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.errors import ConverseError
from converse_mongo.domain.events import ChunkReceived, MessageQueued, MessageStarted
from converse_mongo.driver import failures
from converse_mongo.tools.demo.children import fork
from converse_mongo.tools.demo.texts import answer_of, rest_of
from converse_mongo.tools.signals import terminable

QUEUE = "demo"
ATTEMPTS = 100
"""A machine may be so slow that a lease runs out: then there is one more attempt."""
LEASE_SECONDS = 1.0
"""Much shorter than in production, so that the successor of a worker that was killed comes soon."""
GRACE_SECONDS = 1.0
ORPHAN_SECONDS = 5.0
MAX_LINE_BYTES = 2**30


def _tell(*report: Any) -> None:
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def _described(chunk: MessageChunk) -> dict[str, Any]:
    described = chunk.to_dict()
    del described["created_at"]
    return described


async def _post(converse: Converse, lines: asyncio.StreamReader) -> None:
    conversation = await converse.start_conversation(
        title="The demonstration", metadata={"provider": "demo"}, owner=("user", "demo")
    )
    await conversation.add_user_message("How do I read a file in Python?")
    message = await conversation.start_streaming_assistant(
        {"model": "demo"}, queue=QUEUE, max_attempts=ATTEMPTS
    )
    _tell("started", str(conversation.id), str(message.id))
    ended = False
    try:
        ended = bool(await lines.readline())
    finally:
        if not ended:
            await message.request_stop("The demonstration was interrupted.")
    stored = await converse.get_message(message.id)
    chunks = [_described(chunk) async for chunk in stored.iter_chunks()]
    _tell("stored", stored.status.value, stored.content, chunks)


async def _work(
    converse: Converse, lines: asyncio.StreamReader, tokens_per_second: float, hold: int
) -> None:
    loop = asyncio.get_running_loop()
    given: asyncio.Future[str] = loop.create_future()

    async def respond(_: Conversation, message: Message) -> None:
        begin = message.next_sequence  # each token is a chunk
        _tell("attempt", message.attempt, begin)
        async with message.writer(granularity="token", flush_interval=0.001) as writer:
            answer = answer_of(await asyncio.shield(given))
            start = time.monotonic()
            for number, written in enumerate(rest_of(answer, begin), begin):
                due = start + (number - begin) / tokens_per_second
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if number >= hold:
                    await writer.wait_handing_over()
                if writer.handing_over:
                    await writer.detach()
                    return
                _tell("written", number, time.time())
                await writer.write(written)
            writer.metadata["finish_reason"] = "stop"
        _tell("finished")

    async with converse.worker(respond, queues=[QUEUE], grace=GRACE_SECONDS) as worker:

        async def listen() -> None:
            if line := await lines.readline():
                given.set_result(json.loads(line))
                await lines.readline()  # there is none
            worker.close()

        listening = asyncio.create_task(listen(), name="converse_mongo-demo-listen")
        loop.add_signal_handler(signal.SIGTERM, worker.close)
        _tell("ready")
        await worker.run()
    listening.cancel()


async def _view(
    converse: Converse, _: asyncio.StreamReader, message_id: str, after: int | None = None
) -> None:
    async with converse.watch_message(message_id, after) as events:
        _tell("watching", time.time(), converse.watch_mode.replace("_", " "))
        async for event in events:
            received_at = time.time()
            if isinstance(event, ChunkReceived):
                _tell("seen", _described(event.chunk), received_at)
            elif isinstance(event, MessageQueued | MessageStarted):
                _tell("news", event.type, event.attempt)
            else:
                _tell("ended", event.type)


class _Input(asyncio.StreamReaderProtocol):
    def eof_received(self) -> bool | None:
        """Ends this process soon, whatever it waits for: the parent is gone, maybe with MongoDB."""
        timer = threading.Timer(ORPHAN_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()
        return super().eof_received()


async def _run(program: str) -> None:
    lines = asyncio.StreamReader(MAX_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: _Input(lines), sys.stdin)
    line = await lines.readline()
    if not line:  # the parent is gone
        return
    uri, database, *arguments = json.loads(line)
    programs: dict[str, Callable[..., Awaitable[None]]] = {
        "post": _post,
        "work": _work,
        "view": _view,
    }
    options = {"serverSelectionTimeoutMS": 5000}
    async with Converse(uri, database, lease=LEASE_SECONDS, client_options=options) as converse:
        await programs[program](converse, lines, *arguments)


def main() -> None:
    """Forks for each program, and runs it as the whole of a child process."""
    logging.getLogger("converse_mongo").setLevel(logging.ERROR)  # that one goes on is no news
    try:
        with terminable():
            program = fork(int(sys.argv[1]))
            if program is not None:
                asyncio.run(_run(program))
    except BrokenPipeError:  # the parent is gone
        os._exit(1)  # an orderly exit would flush what nobody reads
    except (ConverseError, PyMongoError) as error:
        _tell("failed", failures.reason(error))


if __name__ == "__main__":
    main()
