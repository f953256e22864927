"""A site that answers without an end: ``python -m tests.web.shutdown_site URI PORT``."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from converse_mongo import Conversation, Converse, Message
from converse_mongo.web import Generations, routes

GRACE_SECONDS = 0.5


async def respond(conversation: Conversation, message: Message) -> None:
    async with message.writer(interrupt=True) as writer:
        while True:
            await writer.write("again ")
            await asyncio.sleep(0.01)


async def main(uri: str, port: int) -> None:
    converse = Converse(uri, database="shutdown")
    generations = Generations(respond, grace=GRACE_SECONDS)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with converse, generations:
            yield

    made = routes(converse, authorize=lambda *_: True, generations=generations)
    app = Starlette(routes=[Mount("/api", routes=made)], lifespan=lifespan)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_config=None, timeout_graceful_shutdown=1
    )
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
