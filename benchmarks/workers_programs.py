"""The child processes of workers: a worker, and a web process with all ways to write answers.

Both run until they are ended; on SIGTERM, they hand over.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from benchmarks.children import SERVER_VARIABLE, tell
from converse_mongo import Conversation, Converse, Message, Queue, Worker
from converse_mongo.web import Generations, routes

__all__ = ["BARE", "GENERATIONS", "PROGRAMS", "QUEUE", "RESPONDS", "one_token", "until_it_listens"]

PROGRAMS = "benchmarks.workers_programs"
QUEUE, GENERATIONS, BARE = "queue", "generations", "bare"
"""Where the web process has its ways: a queue of workers, ``Generations``, a writer by hand."""


async def one_token(_: Conversation, message: Message) -> None:
    """Writes an answer of one token."""
    async with message.writer() as writer:
        await writer.write("token")


async def token_and_wait(_: Conversation, message: Message) -> None:
    """Writes a token, and waits until another process is to go on, which writes another one."""
    begun = message.next_sequence > 0
    async with message.writer() as writer:
        await writer.write("token")
        await writer.flush()
        if not begun:
            await writer.wait_handing_over()
            await writer.detach({})


RESPONDS = {respond.__name__: respond for respond in (one_token, token_and_wait)}


async def until_it_listens(converse: Converse, worker: Worker) -> None:
    """Waits until a worker has a change stream, and has looked once."""
    while not converse.statistics().streams_opened or not worker.statistics().looks:  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # nothing tells


async def work(converse: Converse, respond: Any) -> None:
    """Generates what is queued."""
    async with converse, converse.worker(respond) as worker:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.close)
        running = asyncio.create_task(worker.run())
        await until_it_listens(converse, worker)
        tell("ready")
        await running


async def serve(converse: Converse, respond: Any) -> None:
    """Serves the routes of the library, once for each way."""
    generations = Generations(respond, start_over=False)
    writing: set[asyncio.Task[None]] = set()

    async def ask(request: Request) -> JSONResponse:
        """What the routes do, without what sees an answer through."""
        body = await request.json()
        conversation = await converse.get_conversation(request.path_params["conversation"])
        question = await conversation.add_user_message(body["content"])
        answer = await conversation.start_streaming_assistant()
        task = asyncio.create_task(respond(conversation, answer))
        writing.add(task)
        task.add_done_callback(writing.discard)
        return JSONResponse({"message": str(question.id), "answer": str(answer.id)}, 201)

    def library(way: Any) -> list[Any]:
        return routes(converse, authorize=lambda *_: True, generations=way)

    by_hand = Route("/conversations/{conversation}/messages", ask, methods=["POST"])
    app = Starlette(
        routes=[
            Mount(f"/{QUEUE}", routes=library(Queue("default"))),
            Mount(f"/{GENERATIONS}", routes=library(generations)),
            Mount(f"/{BARE}", routes=[by_hand, *library(None)]),
        ],
        lifespan=lambda _: _open(converse, generations),
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    serving = asyncio.create_task(server.serve([listener]))
    while not (server.started or serving.done()):  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)
    tell("ready", port=listener.getsockname()[1])
    await serving


@asynccontextmanager
async def _open(converse: Converse, generations: Generations) -> AsyncIterator[None]:
    async with converse, generations:
        while not converse.statistics().streams_opened:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        yield


async def main(arguments: Sequence[str]) -> None:
    """Runs the program that ``arguments`` name."""
    program, database, respond, lease = arguments
    converse = Converse(
        os.environ[SERVER_VARIABLE], database=database, create_indexes=False, lease=float(lease)
    )
    await (work if program == "work" else serve)(converse, RESPONDS[respond])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
