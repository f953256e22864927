"""The site of the pages, a process: ``python -m tests.web.ai_sdk.site URI DATABASE PORT [QUEUE]``.

The routes of the library as the documentation mounts them, the page, and under ``/test`` what a
test does behind its back: begin a chat, say what the model says, look at what is stored. It prints
its port, and ends when its standard input does: with the test, however that ends.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from converse_mongo import Conversation, Converse, Message, Queue
from converse_mongo.web import Generations, routes
from tests.web.conftest import Model

__all__ = ["BUNDLE", "SOURCES", "make_app"]

FOLDER = Path(__file__).parent
PAGE, WHOLE = FOLDER / "index.html", FOLDER / "whole.html"
BUNDLE = FOLDER.parents[2] / "build" / "ai_sdk" / "page.js"
SOURCES = FOLDER / "page.jsx", FOLDER / "whole.jsx", FOLDER / "package-lock.json"
"""What it is made of."""
GRACE = 0.5


def is_owner(request: HTTPConnection, conversation: Conversation) -> bool:
    """Who a request comes from stands in its cookie, plainly: this is a test."""
    user = request.cookies.get("user")
    return conversation.owner is not None and conversation.owner.pair == ("user", user)


class Behind:
    """What tests do that no page may.

    Attributes:
        models: One for each conversation, so that tests leave one another alone.
    """

    def __init__(self, converse: Converse) -> None:
        self._converse = converse
        self.models: defaultdict[str, Model] = defaultdict(Model)

    async def respond(self, conversation: Conversation, message: Message) -> None:
        """Writes what a test says."""
        await self.models[str(conversation.id)].respond(conversation, message)

    async def start(self, request: Request) -> Response:
        """POST: a new conversation of a user."""
        owner = "user", (await request.json())["user"]
        conversation = await self._converse.start_conversation(title="A talk", owner=owner)
        return JSONResponse({"id": str(conversation.id)})

    async def say(self, request: Request) -> Response:
        """POST: what the model says next: tokens, ``null`` for its end, ``error`` to fail."""
        body = await request.json()
        model = self.models[request.path_params["chat"]]
        model.say(*body["tokens"])
        if body.get("error") is not None:
            model.say(RuntimeError(body["error"]))
        return JSONResponse({})

    async def look(self, request: Request) -> Response:
        """GET: what is stored, how often the model was asked, and how many watch in all."""
        chat = request.path_params["chat"]
        conversation = await self._converse.get_conversation(chat)
        messages = [
            {
                "id": str(message.id),
                "role": message.role.value,
                "status": message.status.value,
                "content": message.content,
                "metadata": message.metadata,
                "error": message.error,
            }
            for message in await conversation.messages()
        ]
        found: dict[str, Any] = {
            "messages": messages,
            "asked": len(self.models[chat].asked),
            "watchers": self._converse.statistics().watchers,
        }
        return JSONResponse(found)

    @property
    def routes(self) -> list[BaseRoute]:
        """Where they are."""
        return [
            Route("/chats", self.start, methods=["POST"]),
            Route("/chats/{chat}/say", self.say, methods=["POST"]),
            Route("/chats/{chat}", self.look, methods=["GET"]),
        ]


def make_app(converse: Converse, queue: str | None = None) -> Starlette:
    """The site; its answers are for workers, if it has a queue for them."""
    behind = Behind(converse)
    generations = Queue(queue) if queue else Generations(behind.respond, grace=GRACE)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(converse)
            if isinstance(generations, Generations):
                await stack.enter_async_context(generations)
            yield

    return Starlette(
        routes=[
            Mount("/api", routes=routes(converse, authorize=is_owner, generations=generations)),
            Mount("/test", routes=behind.routes),
            Route("/", lambda request: FileResponse(PAGE)),
            Route("/page.js", lambda request: FileResponse(BUNDLE)),
            Route("/whole/", lambda request: FileResponse(WHOLE)),
            Route("/whole.js", lambda request: FileResponse(BUNDLE.with_name("whole.js"))),
        ],
        lifespan=lifespan,
    )


def end_with_input() -> None:
    """Ends this process in order once nobody holds the other end of its standard input."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main(uri: str, database: str, port: str = "0", queue: str | None = None) -> None:
    """Serves until it is told to end."""
    listener = socket.create_server(("127.0.0.1", int(port)))
    config = uvicorn.Config(
        make_app(Converse(uri, database=database), queue),
        log_level="warning",
        timeout_graceful_shutdown=30,
    )
    sys.stdout.write(f"{listener.getsockname()[1]}\n")  # from here on connections wait, at worst
    sys.stdout.flush()
    threading.Thread(target=end_with_input, daemon=True).start()
    asyncio.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main(*sys.argv[1:])
