"""The child processes of the clients over HTTP: a server of the library, one by hand, the clients.

A server serves until it is ended, and says how it is each time that it is asked.
"""

import asyncio
import gc
import inspect
import json
import os
import resource
import socket
import sys
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import uvicorn
from bson import ObjectId
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.children import SERVER_VARIABLE, tell
from benchmarks.meters import forget_peak, memory
from benchmarks.sse_clients_viewers import COMPLETED, view
from converse_mongo import Converse
from converse_mongo.driver.clients import close_client, open_client
from converse_mongo.watching.changes import SHORTENED
from converse_mongo.web import routes

BACKLOG = 2048
AWAIT_MS = 1000
PATIENCE = 3600.0
"""Seconds that a client may read nothing. By default it is dropped after one minute, and would be
missing in what is measured of it."""


async def serve(app: ASGIApp, watchers: Callable[[], dict[str, int]]) -> None:
    """Serves, and tells how this process is whenever the parent asks.

    Args:
        app: What to serve.
        watchers: What it counts of itself.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    config = uvicorn.Config(app, log_level="warning", access_log=False, backlog=BACKLOG)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    while not server.started:
        if serving.done():
            return await serving
        await asyncio.sleep(0.01)
    tell("serving", port=listener.getsockname()[1])
    telling = asyncio.create_task(_tell_state(watchers))
    await serving
    telling.cancel()
    return None


async def _tell_state(watchers: Callable[[], dict[str, int]]) -> None:
    before = time.process_time()
    while await asyncio.to_thread(sys.stdin.readline):
        used, peak = time.process_time() - before, memory().peak
        gc.collect()
        tell(
            "state",
            resident=memory().resident,
            peak=peak,
            used=used,
            tasks=len(asyncio.all_tasks()),
            **watchers(),
        )
        forget_peak()
        before = time.process_time()


async def library(database: str) -> None:
    """Serves the routes of the library."""
    converse = Converse(os.environ[SERVER_VARIABLE], database=database, create_indexes=False)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:  # noqa: ARG001
        async with converse:
            yield

    edge = routes(converse, authorize=lambda *_: True, send_timeout=PATIENCE)
    app = Starlette(routes=[Mount("/api", routes=edge)], lifespan=lifespan)

    def watchers() -> dict[str, int]:
        found = converse.statistics()
        return {"watchers": found.watchers, "streams": found.streams_opened}

    await serve(app, watchers)


async def by_hand(database: str, kind: str) -> None:
    """Serves what a change stream brings from a queue of each client.

    It is exact only because nothing goes wrong: no stream is lost, and nobody comes late. What a
    client does not read stays in its queue.

    Args:
        kind: Sends it: ``sse-starlette``, Starlette's ``StreamingResponse``, or ``bare`` ASGI, the
            least that can be.
    """
    client = open_client(os.environ[SERVER_VARIABLE], {})
    queues: set[asyncio.Queue[dict[str, Any]]] = set()

    async def body() -> AsyncGenerator[ServerSentEvent, None]:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        queues.add(queue)
        try:
            yield ServerSentEvent(retry=2000, sep="\n")
            while True:
                event = await queue.get()
                text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
                yield ServerSentEvent(text, event=event["type"], id=event["cursor"], sep="\n")
        finally:
            queues.discard(queue)

    headers = {"cache-control": "no-cache"}

    async def of_sse_starlette(_request: Request) -> Response:
        return EventSourceResponse(body(), headers=headers, sep="\n", send_timeout=PATIENCE)

    async def of_starlette(_request: Request) -> Response:
        encoded = (event.encode() async for event in body())
        return StreamingResponse(encoded, headers=headers, media_type="text/event-stream")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:  # noqa: ARG001
        opened = asyncio.Event()
        following = asyncio.create_task(_follow(client[database].messages, queues, opened))
        await opened.wait()
        yield
        following.cancel()
        await asyncio.wait([following])
        await close_client(client)

    path = "/api/conversations/{conversation}/events"
    events = of_starlette if kind == "starlette" else of_sse_starlette
    app, bare = Starlette(routes=[Route(path, events)], lifespan=lifespan), Bare(body)

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        await (app if scope["type"] == "lifespan" else bare)(scope, receive, send)

    found = served if kind == "bare" else app
    await serve(found, lambda: {"watchers": len(queues), "streams": 1})


class Bare:
    """Sends events with nothing between it and the server.

    Args:
        body: Makes the events.
    """

    def __init__(self, body: Callable[[], AsyncGenerator[ServerSentEvent, None]]) -> None:
        self._body = body

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a client until it leaves."""
        serving = asyncio.create_task(self._serve(send))
        while (await receive())["type"] != "http.disconnect":
            pass
        serving.cancel()

    async def _serve(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self._body()) as events:
            async for event in events:
                body = {"type": "http.response.body", "body": event.encode(), "more_body": True}
                await send(body)


async def _follow(
    messages: Any, queues: set[asyncio.Queue[dict[str, Any]]], opened: asyncio.Event
) -> None:
    heads: defaultdict[ObjectId, int] = defaultdict(int)
    stream = messages.watch(SHORTENED, max_await_time_ms=AWAIT_MS)
    if inspect.isawaitable(stream):  # PyMongo's
        stream = await stream
    async with stream:
        opened.set()
        async for change in stream:
            if change["operationType"] != "update":
                continue
            message_id = change["documentKey"]["_id"]
            fields = change["updateDescription"]["updatedFields"]
            chunks = fields.get("chunks")
            if chunks is None:
                chunks = [value for path, value in fields.items() if path.startswith("chunks.")]
            for chunk in chunks:
                if chunk["sequence"] != heads[message_id]:
                    continue  # a new page brings some again
                heads[message_id] += 1
                event = {
                    "type": "chunk.received",
                    "message_id": str(message_id),
                    "chunk": {
                        "sequence": chunk["sequence"],
                        "content": chunk["content"],
                        "created_at": chunk["created_at"].isoformat(),
                        "metadata": {},
                    },
                    "cursor": f"{message_id}.{chunk['sequence']}",
                }
                for queue in queues:
                    queue.put_nowait(event)
            if fields.get("status") == "completed":
                end = {"type": COMPLETED, "message_id": str(message_id)}
                for queue in queues:
                    queue.put_nowait({**end, "cursor": f"{message_id}.end"})


async def main(arguments: Sequence[str]) -> None:
    """Runs the program that ``arguments`` name."""
    program, *rest = arguments
    # Each client is an open file, here and there; by default few are allowed.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if program == "view":
        await view()
    else:
        await (library if program == "library" else by_hand)(*rest)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1:]))
