"""A web application on a port of its own, in the loop of the test, and clients of it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from converse_mongo import Conversation, Converse, Message, Queue
from converse_mongo.web import Generations, routes

OWNER = {"authorization": "ada"}
STRANGER = {"authorization": "eve"}


def is_owner(request: HTTPConnection, conversation: Conversation) -> bool:
    """Who a request comes from stands in its header, plainly: this is a test."""
    user = request.headers.get("authorization")
    return conversation.owner is not None and conversation.owner.pair == ("user", user)


class Server(uvicorn.Server):
    """Leaves signals alone, which belong to the test runner."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@dataclass
class Model:
    """A language model that says what a test tells it to, when the test tells it to."""

    tokens: "asyncio.Queue[str | Exception | None]" = field(default_factory=asyncio.Queue)
    asked: list[Message] = field(default_factory=list)
    conversations: list[Conversation] = field(default_factory=list)
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, *tokens: str | Exception | None) -> None:
        for token in tokens:
            self.tokens.put_nowait(token)

    async def respond(self, conversation: Conversation, message: Message) -> None:
        self.asked.append(message)
        self.conversations.append(conversation)
        self.was_asked.set()
        async with message.writer(interrupt=True, flush_interval=0.005) as writer:
            while (token := await self.tokens.get()) is not None:
                if isinstance(token, Exception):
                    raise token
                await writer.write(token)
            writer.metadata["finish_reason"] = "stop"


def owner(request: HTTPConnection) -> tuple[str, str] | None:
    user = request.headers.get("authorization")
    return None if user is None else ("user", user)


@dataclass
class Site:
    """A running application and a client of it."""

    converse: Converse
    model: Model
    generations: Generations
    http: httpx.AsyncClient
    port: int

    async def conversation(self, user: str = "ada") -> Conversation:
        return await self.converse.start_conversation(title="A talk", owner=("user", user))


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[int]:
    """Runs an application on a free port of the loopback interface."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=5
    )
    server = Server(config)
    running = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
            if running.done():
                running.result()
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await running


@asynccontextmanager
async def working(converse: Converse, respond: Any, **options: Any) -> AsyncIterator[Any]:
    """A worker that runs in the block."""
    options = {"grace": 0.05, "poll_interval": 0.2, **options}
    async with converse.worker(respond, **options) as worker:
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.close()
            await running


BOTH = pytest.mark.parametrize("site", ["here", "queue"], indirect=True)
"""For tests of a site whose answers are written in its process, and by a worker."""

MakeSite = Callable[..., Awaitable[Site]]


@pytest_asyncio.fixture
async def make_site(converse: Converse) -> AsyncIterator[MakeSite]:
    """Starts a site; its arguments are those of ``routes``.

    With ``by="queue"`` a worker writes its answers.
    """
    async with AsyncExitStack() as stack:

        async def make(*, converse: Converse = converse, by: str = "here", **options: Any) -> Site:
            model = Model()
            limit = options.pop("limit", 1000)
            generations = Generations(model.respond, limit=limit, grace=0.05)
            if by == "queue":
                options = {"generations": Queue("default"), **options}
                await stack.enter_async_context(working(converse, model.respond))
            options = {"authorize": is_owner, "generations": generations, **options}
            app = Starlette(routes=[Mount("/api", routes=routes(converse, **options))])
            await stack.enter_async_context(generations)
            port = await stack.enter_async_context(serving(app))
            http = httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}/api", headers=OWNER, timeout=20
            )
            await stack.enter_async_context(http)
            return Site(converse, model, generations, http, port)

        yield make


@pytest_asyncio.fixture
async def site(make_site: MakeSite, request: pytest.FixtureRequest) -> Site:
    """A site with the default options; see ``BOTH``."""
    return await make_site(by=getattr(request, "param", "here"))


@dataclass(frozen=True)
class Sent:
    """A server-sent event as it came over the wire."""

    event: str
    id: str | None
    data: Any


async def read_events(response: httpx.Response) -> AsyncIterator[Sent]:
    """The events of a stream; comments and ``retry`` are left out."""
    name, last, data = "message", None, []
    async for line in response.aiter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "id":
            last = value
        elif key == "data":
            data.append(value)
        elif not line:
            if data:
                text = "\n".join(data)
                yield Sent(name, last, text if text == "[DONE]" else json.loads(text))
            name, data = "message", []


async def read_all(response: httpx.Response) -> list[Sent]:
    return [sent async for sent in read_events(response)]
