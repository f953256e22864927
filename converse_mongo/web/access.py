"""Access: finds what a request names, and shows to nobody what is not theirs."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from bson import ObjectId
from starlette.requests import HTTPConnection

from converse_mongo.converse import Converse
from converse_mongo.documents.conversations import Conversation, load_without_context
from converse_mongo.documents.messages import Message
from converse_mongo.domain.errors import ConfigurationError, InvalidCursorError, InvalidInputError
from converse_mongo.domain.events import Event
from converse_mongo.domain.owners import check_owner
from converse_mongo.domain.types import MessageRole
from converse_mongo.domain.validation import object_id
from converse_mongo.web.errors import UndecidedError, UnknownError

logger = logging.getLogger("converse_mongo")

Authorize: TypeAlias = Callable[[HTTPConnection, Conversation], bool | Awaitable[bool]]
"""Answers whether a request may read a conversation and write to it.

The ``context`` of the conversation is not loaded, so that a refusal takes as long as it does for a
conversation that does not exist: reading it raises; ``await conversation.refresh()`` loads it.
"""

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

    @property
    def has_owner(self) -> bool:
        """True if there is a function that answers whose request this is."""
        return self._owner is not None

    async def conversation(self, request: HTTPConnection, conversation_id: str) -> Conversation:
        """The conversation with an id, without its ``context``, which may be large.

        Raises:
            NotFoundError: It does not exist.
            InvalidIdError: This is not an id.
            UnknownError: The request may not see it. It is an :class:`UndecidedError` if that was
                an error of the application: clients see no difference.
        """
        key = object_id(conversation_id, "conversation")
        conversation = await load_without_context(self._converse.conversation_model, key)
        try:
            answer = await _ask(self._authorize, request, conversation)
        except APPLICATION_ERRORS as error:
            _raise_own_cancellation(error)
            logger.exception("authorize failed for conversation %s", key)
            raise UndecidedError from error
        if not isinstance(answer, bool):
            kind = type(answer).__name__  # its repr may hold secrets
            logger.error("authorize returned %s for conversation %s: return a bool", kind, key)
            raise UndecidedError
        if not answer:
            raise UnknownError
        return conversation

    async def owner(self, request: HTTPConnection) -> tuple[str, Any]:
        """The owner whose conversations a request may follow.

        Raises:
            UnknownError: There is none, or the application could not tell.
        """
        if self._owner is None:
            raise UnknownError
        try:
            found: Named = await _ask(self._owner, request)
        except APPLICATION_ERRORS as error:
            _raise_own_cancellation(error)
            logger.exception("owner failed")
            raise UndecidedError from error
        if found is None:
            raise UnknownError
        try:
            return check_owner(found).pair
        except InvalidInputError as error:
            kind = type(found).__name__  # the repr, which the error has, may hold secrets
            logger.error("owner returned %s: return None or a pair of a type and an id", kind)
            raise UndecidedError from error

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

    async def check_sequence(
        self, conversation: Conversation, message_id: ObjectId, sequence: int
    ) -> None:
        """Checks that a message has a chunk, behind which its stream is to go on.

        Raises:
            InvalidCursorError: It has none: the cursor was not made here, or the database was
                restored to an earlier state.
        """
        store = conversation.store()
        match = {"_id": message_id, "conversation_id": conversation.id}
        stored: Any = await store.call(
            store.messages.find_one, match, {"next_sequence": 1}, what=f"read message {message_id}"
        )
        if stored is not None and sequence >= stored.get("next_sequence", 0):
            raise InvalidCursorError(f"Message {message_id} has no chunk {sequence}.")

    def shows(self, role: MessageRole) -> bool:
        """Reports whether browsers see messages of this role."""
        return role in self.roles

    def shows_event(self, event: Event) -> bool:
        """Reports whether browsers see an event; events of messages go by their role."""
        role: MessageRole | None = getattr(event, "role", None)
        return role is None or role in self.roles


APPLICATION_ERRORS = (Exception, asyncio.CancelledError)
"""What functions of the application raise; the latter if they await a task that was cancelled."""


def _raise_own_cancellation(error: BaseException) -> None:
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error  # the request itself was cancelled


async def _ask(function: Callable[..., Any], *arguments: object) -> Any:
    """Calls a function of the application, plain or a coroutine function."""
    answer = function(*arguments)
    return await answer if inspect.isawaitable(answer) else answer
