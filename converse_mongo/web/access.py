"""Access: who may see a conversation, and what everybody else is told (nothing)."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from bson import ObjectId
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from converse_mongo.converse import Converse
from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.domain.errors import (
    ConfigurationError,
    InvalidIdError,
    NotFoundError,
)
from converse_mongo.domain.events import Event
from converse_mongo.domain.types import MessageRole
from converse_mongo.domain.validation import object_id
from converse_mongo.web.errors import UnknownError

__all__ = ["Access", "Authorize"]

Authorize: TypeAlias = Callable[[HTTPConnection, Conversation], bool | Awaitable[bool]]
"""Answers whether a request may read a conversation and write to it."""


class Access:
    """Finds what a request names, if it may see that.

    What there is not and what the request may not see is the same :class:`UnknownError`. The
    conversation is looked at before anything in it, so that a refused request writes nothing: not
    even the end of an orphan that it would have met.

    Args:
        converse: Where the conversations are.
        authorize: Answers whether a request may see one.
        roles: Whose messages browsers are shown.
    """

    def __init__(
        self, converse: Converse, authorize: Authorize, roles: frozenset[MessageRole]
    ) -> None:
        if not callable(authorize):
            raise ConfigurationError(
                f"authorize={authorize!r}: pass a function of a request and a conversation that "
                "answers True or False. There is no default, since none would be safe."
            )
        self._converse = converse
        self._authorize = authorize
        self._roles = roles

    async def conversation(self, request: HTTPConnection, conversation_id: str) -> Conversation:
        """The conversation with an id.

        Raises:
            UnknownError: There is none, or it is not for this request.
        """
        try:
            conversation = await self._converse.get_conversation(conversation_id)
        except (InvalidIdError, NotFoundError) as error:
            raise UnknownError from error
        try:
            answer = self._authorize(request, conversation)
            if inspect.isawaitable(answer):
                answer = await answer
        except HTTPException as error:
            # A 401 or 403 here would say that the conversation exists.
            raise UnknownError from error
        if not isinstance(answer, bool):
            raise TypeError(f"authorize answered {answer!r}: it has to answer True or False.")
        if not answer:
            raise UnknownError
        return conversation

    async def message(self, conversation: Conversation, message_id: str) -> Message:
        """A message of a conversation that the request may see, with its text.

        Raises:
            UnknownError: There is none, or browsers are not shown such messages.
        """
        try:
            message = await conversation.get_message(message_id)
        except (InvalidIdError, NotFoundError) as error:
            raise UnknownError from error
        if not self.shows(message.role):
            raise UnknownError
        return message

    async def message_id(self, conversation: Conversation, message_id: str) -> ObjectId:
        """The id of such a message, without reading its text.

        Raises:
            UnknownError: There is none, or browsers are not shown such messages.
        """
        try:
            key = object_id(message_id, "message")
        except InvalidIdError as error:
            raise UnknownError from error
        store, match = conversation.store(), {"_id": key, "conversation_id": conversation.id}
        stored: Any = await store.call(
            store.messages.find_one, match, {"role": 1}, what=f"read message {message_id}"
        )
        if stored is None or not self.shows(MessageRole(stored["role"])):
            raise UnknownError
        return key

    def shows(self, role: MessageRole) -> bool:
        """Whether browsers are shown messages of this role."""
        return role in self._roles

    def shows_event(self, event: Event) -> bool:
        """Whether browsers are shown an event: those of messages by the role of these."""
        role: MessageRole | None = getattr(event, "role", None)
        return role is None or self.shows(role)
