"""The context of the endpoints: the parts of a web edge, and the body of a request."""

import asyncio
import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import HTTPConnection, Request

from converse_mongo.converse import Converse
from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.listings import History
from converse_mongo.documents.messages import Message
from converse_mongo.domain.owners import check_owner
from converse_mongo.web.access import Access
from converse_mongo.web.answering import Answering
from converse_mongo.web.bodies import (
    Parsing,
    Pending,
    check_media_type,
    kept_keys,
    read_slices,
)
from converse_mongo.web.errors import EMPTY, InternalError, RequestError, TooLargeError
from converse_mongo.web.frames import Frames
from converse_mongo.web.json_reader import ObjectReader
from converse_mongo.web.limits import Limits, Slots
from converse_mongo.web.models import BLANK, ChatBody, ChatId
from converse_mongo.web.open_streams import StreamOptions, Streams
from converse_mongo.web.pages import read_page
from converse_mongo.web.presenter import Presenter
from converse_mongo.web.turns import Turns

UNNAMED_BYTES = 1024 * 1024
"""The bytes of a body that are read before it names its conversation, where nobody was asked who
sends it."""

M = TypeVar("M", bound=BaseModel)

logger = logging.getLogger("converse_mongo")


@dataclass(frozen=True, slots=True)
class WebContext:
    """The parts of a web edge.

    Attributes:
        answering: Starts the answers; ``None`` if another process does.
        streams: The options of streams and sockets.
        open_streams: Those that are open.
        stream_slots: How many each key has.
        frames: The frames of events.
        limits: How much clients may take.
        parsing: Parses bodies.
        pending: Counts what is kept of the bodies of the AI SDK that are being received.
        unnamed: Counts what is kept of those that have not named their conversation yet.
        origins: Other sites whose pages may open a WebSocket.
        max_body_bytes: The largest body of a request.
        max_message_bytes: The largest text of a message, in bytes of UTF-8.
    """

    converse: Converse
    access: Access
    turns: Turns
    answering: Answering | None
    presenter: Presenter
    streams: StreamOptions
    open_streams: Streams
    stream_slots: Slots
    frames: Frames
    limits: Limits
    pending: Pending
    unnamed: Pending
    parsing: Parsing
    origins: frozenset[str]
    max_body_bytes: int
    max_message_bytes: int

    async def conversation(self, request: Request) -> Conversation:
        """The conversation in the path of a request, which may see it."""
        return await self.access.conversation(request, request.path_params["conversation"])

    async def message(self, request: Request, conversation: Conversation) -> Message:
        """The message in the path of a request, which may see it."""
        return await self.access.message(conversation, request.path_params["message"])

    async def history(
        self, conversation: Conversation, limit: int, before: int | None = None
    ) -> History:
        """A page of the messages that browsers see; see :func:`read_page`."""
        return await read_page(
            conversation, self.access.roles, limit, before, self.limits.page_bytes
        )

    def key(
        self,
        request: HTTPConnection,
        conversation: Conversation | None,
        owner: tuple[str, Any] | None = None,
    ) -> Hashable:
        """Who takes an answer or a stream, for the limits by key; ``None`` has no limit.

        Args:
            owner: Whose stream it is, if it is not one of a conversation.

        Raises:
            InternalError: ``Limits.key`` raised, or returned what cannot be a key.
        """
        if self.limits.key is None:
            named = owner if conversation is None else conversation.owner
            return None if named is None else check_owner(named).pair
        try:
            found = self.limits.key(request, conversation)
            hash(found)
        except Exception as error:
            logger.exception("Limits.key failed")
            raise InternalError from error
        return found

    async def body(self, request: Request, model: type[M]) -> M:
        """The body of a request, which must be JSON; an empty one is an empty object.

        Raises:
            MediaTypeError: It is not sent as JSON.
            TooLargeError: It is larger than ``max_body_bytes``; no more than that was read.
            SlowBodyError: It was not received in time.
            RequestError: It is not valid.
        """
        check_media_type(request)
        reader = ObjectReader(kept_keys(model), self.max_body_bytes)
        limit, seconds = self.max_body_bytes, self.limits.body_seconds
        async for each in read_slices(request, limit=limit, seconds=seconds):
            await self.parsing.feed(request, reader, each)
        return await self._parsed(reader, model)

    async def chat_body(self, request: Request) -> tuple[Conversation, ChatBody]:
        """The body of a request of ``useChat``, and the conversation that it names.

        The owner is asked before it is read, and the conversation is authorized as soon as its id
        was read, which the AI SDK sends first. Until then, without an owner, little of it is read.
        Of the messages, only the last is kept.

        Raises:
            UnknownError: The request has no owner, or may not see the conversation.
            NotFoundError: The conversation does not exist.
            InvalidIdError: This is not an id.
            TooLargeError: The id comes too late.
            LimitError: Too many bytes of such bodies are kept for the key.
            BusyError: Too many are kept in all.

        It also raises the errors of :meth:`body`. ``max_body_bytes`` is the most that is kept;
        ``Limits.chat_bytes`` the most that is read.
        """
        key: Hashable = None
        if self.access.has_owner:
            key = await self.access.owner(request)
        check_media_type(request)
        reader = ObjectReader(kept_keys(ChatBody), self.max_body_bytes, last_of="messages")
        limit, seconds = self.limits.chat_bytes, self.limits.body_seconds
        conversation: Conversation | None = None
        received = 0
        with self.pending.body() as keep, self.unnamed.body() as keep_unnamed:
            async for each in read_slices(request, limit=limit, seconds=seconds):
                await self.parsing.feed(request, reader, each)
                received += len(each)
                if conversation is None and (name := reader.get("id")) is not None:
                    known = self._validated(b'{"id":%b}' % name, ChatId)
                    conversation = await self.access.conversation(request, known.id)
                    keep_unnamed(0, None)
                    if not self.access.has_owner:
                        key = self.key(request, conversation)
                if conversation is not None or self.access.has_owner:
                    keep(reader.held, key)
                elif received > UNNAMED_BYTES:
                    raise TooLargeError(
                        detail=f"The first {UNNAMED_BYTES} bytes do not have the id of the chat: "
                        "send it before the messages, as the AI SDK does."
                    )
                else:
                    keep_unnamed(reader.held, None)
        body = await self._parsed(reader, ChatBody)
        return conversation or await self.access.conversation(request, body.id), body

    async def _parsed(self, reader: ObjectReader, model: type[M]) -> M:
        kept = reader.end()
        await asyncio.sleep(0)
        return self._validated(kept, model)

    def _validated(self, kept: bytes, model: type[M]) -> M:
        try:
            return model.model_validate_json(kept, context=self.max_message_bytes)
        except ValidationError as error:
            raise _explained(error) from error

    def checked(self, model: type[M], values: Mapping[str, Any]) -> M:
        """A model of other values, such as the query of a request.

        Raises:
            TooLargeError: A text among them is too large.
            RequestError: They are not valid.
        """
        try:
            return model.model_validate(dict(values), context=self.max_message_bytes)
        except ValidationError as error:
            raise _explained(error) from error


def _explained(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return RequestError(detail="The body is not valid JSON.")
    name = ".".join(map(str, first["loc"])) or "body"
    detail = f"{name}: {first['msg']}."
    is_empty = (first["type"], name) == (BLANK, "content")
    return RequestError(EMPTY if is_empty else None, detail=detail)
