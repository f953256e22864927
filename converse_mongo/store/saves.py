"""Saves: fields that the application changed."""

from functools import partial
from typing import Any

from bson import ObjectId
from pymongo import ReturnDocument
from pymongo.errors import OperationFailure

from converse_mongo import _driver, _updates
from converse_mongo._driver import is_too_large
from converse_mongo._owned import OWNED, OwnedConversation
from converse_mongo.errors import (
    ConversationNotFoundError,
    MessageNotFoundError,
    MessageTooLargeError,
)
from converse_mongo.events import MessageUpdated
from converse_mongo.store.calls import Calls

__all__ = ["Saves"]


class Saves:
    """Saves fields that are not the library's own."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def save_conversation(self, conversation_id: ObjectId, update: _updates.Document) -> int:
        """Applies ``update`` to a conversation, and returns the revision it made.

        Raises:
            ConversationNotFoundError: There is no such conversation.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        save = partial(
            self._calls.conversations.find_one_and_update,
            projection=OWNED,
            return_document=ReturnDocument.AFTER,
        )
        what = f"save conversation {conversation_id}"
        stored: Any = await self._calls.call(save, {"_id": conversation_id}, update, what=what)
        if stored is None:
            raise ConversationNotFoundError(conversation_id)
        saved = OwnedConversation.from_stored(stored)
        await self._calls.handlers.publish(saved.updated())
        return saved.revision

    async def save_message(
        self, message_id: ObjectId, conversation_id: ObjectId, update: _updates.Document
    ) -> int:
        """Applies ``update`` to a message, and returns the revision it made.

        Raises:
            MessageNotFoundError: There is no such message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        key = _updates.message_key(message_id, conversation_id)
        update = _updates.mark_saved(update, _driver.mark_type(self._calls.messages))
        save = partial(
            self._calls.messages.find_one_and_update,
            projection={"revision": 1},
            return_document=ReturnDocument.AFTER,
        )
        try:
            stored = await self._calls.call(save, key, update, what=f"save message {message_id}")
        except OperationFailure as error:
            if is_too_large(error):
                raise MessageTooLargeError(message_id) from error
            raise
        if stored is None:
            raise MessageNotFoundError(message_id)
        revision: int = stored["revision"]
        await self._calls.handlers.publish(
            MessageUpdated(
                conversation_id=conversation_id, message_id=message_id, revision=revision
            )
        )
        return revision
