"""The context of the endpoints: the parts of a web edge, and the body of a request."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import HTTPConnection, Request

from converse_mongo.converse import Converse
from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.domain.owners import check_owner
from converse_mongo.web.access import Access
from converse_mongo.web.errors import MediaTypeError, RequestError, TooLargeError
from converse_mongo.web.frames import Frames
from converse_mongo.web.limits import Limits, Slots
from converse_mongo.web.open_streams import StreamOptions, Streams
from converse_mongo.web.presenter import Presenter
from converse_mongo.web.turns import Turns

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class WebContext:
    """The parts of a web edge.

    Attributes:
        streams: The options of streams and sockets.
        open_streams: Those that are open.
        stream_slots: How many each key has.
        frames: The frames of events.
        limits: How much clients may take.
        origins: Other sites whose pages may open a WebSocket.
        max_body_bytes: The largest body of a request.
        max_message_bytes: The largest text of a message, in bytes of UTF-8.
    """

    converse: Converse
    access: Access
    turns: Turns
    presenter: Presenter
    streams: StreamOptions
    open_streams: Streams
    stream_slots: Slots
    frames: Frames
    limits: Limits
    origins: frozenset[str]
    max_body_bytes: int
    max_message_bytes: int

    async def conversation(self, request: Request) -> Conversation:
        """The conversation in the path of a request, which may see it."""
        return await self.access.conversation(request, request.path_params["conversation"])

    async def message(self, request: Request, conversation: Conversation) -> Message:
        """The message in the path of a request, which may see it."""
        return await self.access.message(conversation, request.path_params["message"])

    def key(
        self,
        request: HTTPConnection,
        conversation: Conversation | None,
        owner: tuple[str, Any] | None = None,
    ) -> Hashable:
        """Who takes an answer or a stream, for the limits by key; ``None`` has no limit.

        Args:
            owner: Whose stream it is, if it is not one of a conversation.
        """
        if self.limits.key is not None:
            return self.limits.key(request, conversation)
        named = owner if conversation is None else conversation.owner
        return None if named is None else check_owner(named).pair

    async def body(self, request: Request, model: type[M]) -> M:
        """The body of a request; an empty one is an empty JSON object.

        It must be sent as JSON. A form on another site could send anything else with the cookies of
        the user, and without a preflight request.

        Raises:
            MediaTypeError: It is not sent as JSON.
            TooLargeError: It is larger than ``max_body_bytes``; no more than that was read.
            RequestError: It is not valid.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise MediaTypeError
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.max_body_bytes:
                raise TooLargeError(f"The body is larger than {self.max_body_bytes} bytes.")
        try:
            return model.model_validate_json(body or b"{}", context=self.max_message_bytes)
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
        return RequestError("The body is not valid JSON.")
    name = ".".join(map(str, first["loc"])) or "body"
    return RequestError(f"{name}: {first['msg']}.")
