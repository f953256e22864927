"""A server that plays recorded-shape events, and keeps what it was asked."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bson import ObjectId
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from converse_mongo import MessageRole, MessageStatus, Part, PartLog, TextPart, parts_of
from converse_mongo.domain.composing import pieces_of
from converse_mongo.domain.part_pieces import numbered
from converse_mongo.domain.validation import now
from converse_mongo.integrations.streams import Content
from tests.web.conftest import serving

Event = dict[str, Any]


class HangUpError(Exception):
    """The server hangs up."""


@dataclass
class Player:
    """What the server plays, one stream for each request, and what it was asked.

    Attributes:
        streams: The events of each stream that is to come.
        cut: The number of events behind which the next stream is cut; ``None`` for no cut.
        hangs_up: True if a cut breaks the connection, and does not end the body.
    """

    streams: list[Sequence[Event]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    cut: int | None = None
    hangs_up: bool = False

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self.answer, methods=["GET", "POST"])])

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        self.asked.append(json.loads(body) if body else dict(request.query_params))
        after = int(request.query_params.get("starting_after", -1))
        events = [each for each in self.streams[0] if each.get("sequence_number", 0) > after]
        if len(self.streams) > 1:
            self.streams.pop(0)
        cut, self.cut = self.cut, None
        return StreamingResponse(self.play(events, cut), media_type="text/event-stream")

    async def play(self, events: Sequence[Event], cut: int | None) -> AsyncIterator[str]:
        for event in events[:cut]:
            name = f"event: {event['type']}\n" if "type" in event else ""
            yield f"{name}data: {json.dumps(event)}\n\n"
        if cut is None:
            yield "data: [DONE]\n\n"
        elif self.hangs_up:
            raise HangUpError


@asynccontextmanager
async def playing(player: Player) -> AsyncIterator[str]:
    async with serving(player.app) as port:
        yield f"http://127.0.0.1:{port}/v1"


async def collect(contents: AsyncIterator[Content]) -> list[Content]:
    return [content async for content in contents]


def reduced(contents: Sequence[Content], *, ended: bool = True) -> list[Part]:
    """The parts of a message to which these contents were written."""
    pieces = [piece for each in pieces_of(contents) for piece in each]
    chunks = numbered(pieces, 0, now(), ObjectId())
    log = PartLog.of([chunk.to_stored() for chunk in chunks])
    return parts_of(log.records(), ended=ended)


@dataclass
class Said:
    """A message, as translators read it."""

    role: MessageRole
    parts: list[Part]
    status: MessageStatus = MessageStatus.COMPLETED
    metadata: dict[str, Any] = field(default_factory=dict)
    id: ObjectId = field(default_factory=ObjectId)


def user(*parts: Part | str) -> Said:
    return Said(MessageRole.USER, [TextPart(e) if isinstance(e, str) else e for e in parts])


def assistant(*parts: Part, **more: Any) -> Said:
    return Said(MessageRole.ASSISTANT, list(parts), **more)
