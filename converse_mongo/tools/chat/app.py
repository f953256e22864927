"""The ASGI application: its own endpoints, the routes of the library, and the page."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse
from starlette.routing import Router
from starlette.staticfiles import StaticFiles

from converse_mongo import Conversation, Converse, StoreUnavailableError
from converse_mongo.tools.chat.model import Responder, open_model
from converse_mongo.tools.chat.security import SecurityHeaders
from converse_mongo.tools.chat.settings import Settings
from converse_mongo.tools.chat.users import User, authorize, owner
from converse_mongo.web import Generations, openapi_paths, routes

STATIC = Path(__file__).parent / "static"
CLIENT = Path(str(files("converse_mongo.web") / "client"))
MAX_LISTED = 100
MAX_QUESTION_BYTES = 32 * 1024


class NewConversation(BaseModel):
    """The body of a request that starts a conversation."""

    title: str | None = Field(default=None, max_length=200)


def create_app(settings: Settings) -> FastAPI:
    """Creates the chat as an ASGI application."""
    converse = Converse(
        settings.uri, database=settings.database, lease=settings.lease, sweep_interval=60.0
    )
    model = open_model(settings)
    generations = Generations(Responder(model).respond, limit=200)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            async with converse, generations:
                yield
        finally:
            await model.aclose()

    # FastAPI's own pages load scripts from other hosts, which the security headers forbid.
    app = FastAPI(title="Chat", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(SecurityHeaders)

    @app.exception_handler(StoreUnavailableError)
    async def unavailable(_: Request, __: Exception) -> JSONResponse:
        told = {"code": "unavailable", "message": "The service is not available. Try again."}
        return JSONResponse({"error": told}, 503, {"retry-after": "2"})

    @app.get("/api/me")
    async def me(user: User, response: Response) -> dict[str, Any]:
        response.headers["cache-control"] = "no-store"
        return {"id": user, "model": model.name, "canned": not settings.api_key}

    @app.get("/api/conversations")
    async def list_conversations(user: User, response: Response) -> dict[str, Any]:
        response.headers["cache-control"] = "no-store"
        owned = converse.conversations(("user", user), limit=MAX_LISTED)
        return {"conversations": [_described(each) async for each in owned]}

    @app.post("/api/conversations", status_code=201)
    async def start_conversation(
        user: User, response: Response, new: NewConversation | None = None
    ) -> dict[str, Any]:
        response.headers["cache-control"] = "no-store"
        title = (new.title or "").strip() or None if new is not None else None
        return _described(await converse.start_conversation(title=title, owner=("user", user)))

    app.openapi()["paths"].update(openapi_paths("/api", owner=True))

    # After the endpoints above: the first match serves a request.
    app.mount(
        "/api",
        Router(
            routes(
                converse,
                authorize=authorize,
                generations=generations,
                owner=owner,
                show_errors=True,  # the chat stores only errors that are written for users
                lifetime=settings.lifetime,
                max_message_bytes=MAX_QUESTION_BYTES,
            )
        ),
    )
    app.mount("/client", StaticFiles(directory=CLIENT))
    app.mount("/", StaticFiles(directory=STATIC, html=True))
    return app


def _described(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": str(conversation.id),
        "title": conversation.title,
        "created_at": conversation.created_at.isoformat(),
        "updated_at": conversation.updated_at.isoformat(),
    }
