"""The ASGI application: its own endpoints, the routes of the library, and the page."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pymongo
from beanie import PydanticObjectId
from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Router
from starlette.staticfiles import StaticFiles

from converse_mongo import (
    Conversation,
    Converse,
    InvalidInputError,
    MessageRole,
    MessageStatus,
    StoreUnavailableError,
)
from converse_mongo.tools.chat import refusals
from converse_mongo.tools.chat.guard import Bounds, Guard
from converse_mongo.tools.chat.hosts import Hosts
from converse_mongo.tools.chat.model import Responder, open_model
from converse_mongo.tools.chat.prompts import title_for
from converse_mongo.tools.chat.security import SecurityHeaders
from converse_mongo.tools.chat.settings import Settings
from converse_mongo.tools.chat.users import User, Visitor, authorize, owner
from converse_mongo.web import Generations, Limits, openapi_paths, routes

STATIC = Path(__file__).parent / "static"
CLIENT = Path(str(files("converse_mongo.web") / "client"))
GRACE_SECONDS = 5.0
"""The time that answers have when the chat is closed."""
CLOSE_SECONDS = 5.0
"""The time that writers then have to store their text."""
MAX_LISTED = 100
MAX_QUESTION_BYTES = 32 * 1024
MAX_FILE_BYTES = 4_000_000
MAX_FILES_BYTES = 8_000_000
"""The size of all files of a question together."""
SLACK_BYTES = 1024 * 1024
MAX_BODY_BYTES = 64 * 1024


class NewConversation(BaseModel):
    """The body of a request that starts a conversation."""

    title: str | None = Field(default=None, max_length=200)


class Writing(BaseModel):
    """What the list of conversations needs of an answer that is being written."""

    id: PydanticObjectId = Field(alias="_id")
    conversation_id: PydanticObjectId
    role: MessageRole


def create_app(settings: Settings) -> FastAPI:
    """Creates the chat as an ASGI application."""
    converse = Converse(
        settings.uri, database=settings.database, lease=settings.lease, sweep_interval=60.0
    )
    model = open_model(settings)
    generations = Generations(
        Responder(model).respond, limit=200, grace=GRACE_SECONDS, start_over=False
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await converse.open()
            async with generations:
                yield
        finally:
            await converse.aclose(CLOSE_SECONDS)
            await model.aclose()

    # FastAPI's own pages load scripts from other hosts, which the security headers forbid.
    app = FastAPI(title="Chat", lifespan=lifespan, docs_url=None, redoc_url=None)
    limits = Limits(file_bytes=MAX_FILE_BYTES)
    app.add_middleware(
        Guard,
        hosts=Hosts(settings.hosts) if settings.hosts else None,
        own={"/api/conversations": Bounds(MAX_BODY_BYTES, limits.body_seconds)},
        # The routes of the library have bounds of their own, within these.
        others=Bounds(
            limits.chat_bytes + SLACK_BYTES, limits.body_seconds + limits.request_seconds + 5
        ),
    )
    app.add_middleware(SecurityHeaders)  # around the guard
    app.add_exception_handler(HTTPException, refusals.on_refusal)
    app.add_exception_handler(RequestValidationError, refusals.on_invalid_request)
    app.add_exception_handler(InvalidInputError, refusals.on_invalid_input)
    app.add_exception_handler(StoreUnavailableError, refusals.on_unavailable)
    app.add_exception_handler(Exception, refusals.on_error)

    @app.get("/api/me")
    async def me(user: Visitor, response: Response) -> dict[str, Any]:
        response.headers["cache-control"] = "no-store"
        files = {"each": MAX_FILE_BYTES, "all": MAX_FILES_BYTES}
        return {"id": user, "model": model.name, "canned": not settings.api_key, "files": files}

    @app.get("/api/conversations")
    async def list_conversations(user: User, response: Response) -> dict[str, Any]:
        response.headers["cache-control"] = "no-store"
        with pymongo.timeout(limits.request_seconds):
            owned = [each async for each in converse.conversations(("user", user), MAX_LISTED)]
            writing = converse.message_model.find(
                {
                    "conversation_id": {"$in": [each.id for each in owned]},
                    "status": MessageStatus.STREAMING.value,
                },
                projection_model=Writing,
            )
            answers: dict[Any, list[str]] = {}
            async for each in writing:
                if each.role is MessageRole.ASSISTANT:
                    answers.setdefault(each.conversation_id, []).append(str(each.id))
        described = [_described(each) | {"writing": answers.get(each.id, [])} for each in owned]
        return {"conversations": described}

    @app.post("/api/conversations", status_code=201)
    async def start_conversation(
        user: User, response: Response, new: NewConversation | None = None
    ) -> dict[str, Any]:
        response.headers["cache-control"] = "no-store"
        named = (new.title or "").strip() if new is not None else ""
        title = title_for(named) if named else None
        with pymongo.timeout(limits.request_seconds):
            begun = await converse.start_conversation(title=title, owner=("user", user))
        return _described(begun)

    app.openapi()["paths"].update(openapi_paths("/api", owner=True))

    # After the endpoints above: the first match serves a request.
    app.mount(
        "/api",
        Router(
            routes(
                converse,
                authorize=authorize,
                generations=settings.queue or generations,
                owner=owner,
                show_errors=True,  # the chat stores only errors that are written for users
                lifetime=settings.lifetime,
                limits=limits,
                max_message_bytes=MAX_QUESTION_BYTES,
                max_body_bytes=MAX_FILES_BYTES * 4 // 3 + SLACK_BYTES,  # in Base64
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
