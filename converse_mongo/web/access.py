"""Access: finds what a request names, and shows to nobody what is not theirs."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from bson import ObjectId
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from converse_mongo.converse import Converse
from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.domain.errors import ConfigurationError
from converse_mongo.domain.events import Event
from converse_mongo.domain.types import MessageRole
from converse_mongo.domain.validation import object_id
from converse_mongo.web.errors import UnknownError

Authorize: TypeAlias = Callable[[HTTPConnection, Conversation], bool | Awaitable[bool]]
"""Answers whether a request may read a conversation and write to it."""

Named: TypeAlias = tuple[str, Any] | None
OwnerOf: TypeAlias = Callable[[HTTPConnection], Named | Awaitable[Named]]
"""Answers whose conversations a request may follow; ``None`` for nobody's."""


class Access:
    """Finds what a request names, if the request may see it.

    What does not exist, what the request may not see, and what is not an id give the same response:
    see :func:`converse_mongo.web.responses.error_response`. The conversation is authorized before
    anything in it is read, so that a refused request writes nothing, not even the end of an orphan.

    Args:
        converse: The facade.
        authorize: Answers whether a request may see a conversation.
        owner: Answers whose conversations a request may follow.
        roles: The roles whose messages browsers see.

    Attributes:
        roles: The same.
    """

    def __init__(
        self,
        converse: Converse,
        authorize: Authorize,
        owner: OwnerOf | None,
        roles: frozenset[MessageRole],
    ) -> None:
        if not callable(authorize):
            raise ConfigurationError(
                f"authorize={authorize!r}: pass a function of a request and a conversation that "
                "returns True or False. There is no default, since none would be safe."
            )
        if owner is not None and not callable(owner):
            raise ConfigurationError(
                f"owner={owner!r}: pass a function of a request that returns a pair, such as "
                "('user', '42'), or None."
            )
        self._converse = converse
        self._authorize = authorize
        self._owner = owner
        self.roles = roles

    async def conversation(self, request: HTTPConnection, conversation_id: str) -> Conversation:
        """The conversation with an id.

        Raises:
            NotFoundError: It does not exist.
            InvalidIdError: This is not an id.
            UnknownError: The request may not see it.
        """
        conversation = await self._converse.get_conversation(conversation_id)
        answer = await _ask(self._authorize, request, conversation)
        if not isinstance(answer, bool):
            raise TypeError(f"authorize returned {answer!r}: it must return True or False.")
        if not answer:
            raise UnknownError
        return conversation

    async def owner(self, request: HTTPConnection) -> tuple[str, Any]:
        """The owner whose conversations a request may follow.

        Raises:
            UnknownError: There is none.
        """
        found: Named = None if self._owner is None else await _ask(self._owner, request)
        if found is None:
            raise UnknownError
        return found

    async def message(self, conversation: Conversation, message_id: str) -> Message:
        """A message of a conversation that the request may see, with its text.

        Raises:
            NotFoundError: It does not exist.
            InvalidIdError: This is not an id.
            UnknownError: Browsers do not see its role.
        """
        message = await conversation.get_message(message_id)
        if not self.shows(message.role):
            raise UnknownError
        return message

    async def message_id(self, conversation: Conversation, message_id: str) -> ObjectId:
        """The id of such a message, without reading its text.

        Raises:
            InvalidIdError: This is not an id.
            UnknownError: It does not exist, or browsers do not see its role.
        """
        key = object_id(message_id, "message")
        store, match = conversation.store(), {"_id": key, "conversation_id": conversation.id}
        stored: Any = await store.call(
            store.messages.find_one, match, {"role": 1}, what=f"read message {message_id}"
        )
        if stored is None or not self.shows(MessageRole(stored["role"])):
            raise UnknownError
        return key

    def shows(self, role: MessageRole) -> bool:
        """Reports whether browsers see messages of this role."""
        return role in self.roles

    def shows_event(self, event: Event) -> bool:
        """Reports whether browsers see an event; events of messages go by their role."""
        role: MessageRole | None = getattr(event, "role", None)
        return role is None or role in self.roles


async def _ask(function: Callable[..., Any], *arguments: object) -> Any:
    """Calls a function of the application, plain or a coroutine function."""
    try:
        answer = function(*arguments)
        return await answer if inspect.isawaitable(answer) else answer
    except HTTPException as error:
        # A 401 or 403 would reveal that the conversation exists.
        raise UnknownError from error
