"""A site under attack: ``python -m tests.hostile.site library|chat URI DATABASE``.

It prints its port, and ends when its standard input does: with the test, however that ends.
``GET /probe`` tells how long its loop was blocked since the last such request, as a multiple of a
small piece of work that was measured in the same process; and its memory in MiB: now, and at most
since then. Both are processor time, which depends little on what else the machine does. It needs
Linux.
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from converse_mongo import Conversation, Converse, Message
from converse_mongo.embedded import free_port
from converse_mongo.tools.chat.app import create_app
from converse_mongo.tools.chat.hosts import loopback_hosts
from converse_mongo.tools.chat.settings import Settings
from converse_mongo.web import Generations, Limits, routes
from tests.web.conftest import is_owner, owner

SEND_SECONDS = 1.0
BODY_SECONDS = 1.0
CHAT_BYTES = 4 * 1024 * 1024
PENDING_BYTES = 16 * 1024 * 1024
LARGE_MIB = 12
"""More than the buffers of two sockets hold."""
MIB = 1024 * 1024


def unit() -> float:
    """The processor time, in seconds, of parsing 300 KB of JSON: 4 ms on a slow machine."""
    text = json.dumps([{"id": each, "text": "x" * 20, "parts": [each]} for each in range(5000)])

    def measure() -> float:
        before = time.process_time()
        json.loads(text)
        return time.process_time() - before

    return min(measure() for _ in range(5))


class Probe:
    """Measures the loop that it runs in."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._unit = unit()

    async def watch(self) -> None:
        while True:
            before = time.process_time()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.process_time() - before)

    def read(self) -> dict[str, float]:
        longest, self.longest = self.longest, 0.0
        found = {"blocked": longest / self._unit, "memory": _mib("VmRSS"), "peak": _mib("VmHWM")}
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # begins a new peak
        return found


def _mib(name: str) -> float:
    """A size of this process; see ``man 5 proc``."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = [each for each in status.splitlines() if each.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


async def respond(conversation: Conversation, message: Message) -> None:
    """Repeats a token until it is stopped."""
    async with message.writer(interrupt=True) as writer:
        for number in range(10_000):
            await writer.write(f"{number} ")
            await asyncio.sleep(0.01)


def library(uri: str, database: str) -> Starlette:
    """The routes of the library, with limits that tests can reach in little time."""
    converse = Converse(uri, database=database)
    generations = Generations(respond, grace=0.1)

    async def begin(request: Request) -> Response:
        """Begins a conversation of a user; with ``large``, one whose history is large."""
        user = request.query_params["user"]
        made = await converse.start_conversation(title="A talk", owner=("user", user))
        question = await made.create_user_message("Hello")
        answer = await made.start_streaming_assistant()
        await answer.append_chunk("x")
        if "large" in request.query_params:
            for _ in range(LARGE_MIB):
                await answer.append_chunk("x" * MIB)
        await answer.complete_streaming()
        found = {"c": str(made.id), "q": str(question.id), "m": str(answer.id)}
        return JSONResponse(found)

    async def state(request: Request) -> Response:
        statistics = converse.statistics()
        found = {"watchers": statistics.watchers, "running": generations.running}
        return JSONResponse(found | {"tasks": len(asyncio.all_tasks())})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with converse, generations:
            yield

    made = routes(
        converse,
        authorize=is_owner,
        generations=generations,
        owner=owner,
        send_timeout=SEND_SECONDS,
        limits=Limits(
            body_seconds=BODY_SECONDS, chat_bytes=CHAT_BYTES, pending_bytes=PENDING_BYTES
        ),
    )
    own = [Route("/begin", begin, methods=["POST"]), Route("/state", state)]
    return Starlette(routes=[*own, Mount("/api", routes=made)], lifespan=lifespan)


class Probed:
    """An application with ``/probe``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._probe = Probe()
        self._watching: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._watching is None:
            self._watching = asyncio.create_task(self._probe.watch())
        if scope.get("path") == "/probe":
            await JSONResponse(self._probe.read())(scope, receive, send)
            return
        await self._app(scope, receive, send)


def main() -> None:
    """Serves until the standard input ends."""
    kind, uri, database = sys.argv[1:]
    app: Any
    port = free_port()
    if kind == "library":
        app = library(uri, database)
    else:
        hosts = loopback_hosts("127.0.0.1", port)
        app = create_app(Settings(uri=uri, database=database, canned_delay=0.01, hosts=hosts))
    config = uvicorn.Config(
        Probed(app), "127.0.0.1", port, log_level="warning", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)

    def end_with_input() -> None:
        sys.stdin.read()
        server.should_exit = True

    async def serve() -> None:
        serving = asyncio.create_task(server.serve())
        while not (server.started or serving.done()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        print(port, flush=True)  # noqa: T201
        await serving

    threading.Thread(target=end_with_input, daemon=True).start()
    asyncio.run(serve())


if __name__ == "__main__":
    main()
