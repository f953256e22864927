"""Saves: fields that the application changed."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from bson import ObjectId
from pymongo.errors import OperationFailure

from converse_mongo.domain.errors import (
    ConversationNotFoundError,
    MessageNotFoundError,
    MessageTooLargeError,
)
from converse_mongo.domain.events import MessageUpdated
from converse_mongo.domain.summaries import SUMMARY, ConversationSummary
from converse_mongo.domain.types import MessageRole
from converse_mongo.driver import servers
from converse_mongo.driver.collections import Collection
from converse_mongo.driver.failures import is_too_large
from converse_mongo.store import updates
from converse_mongo.store.collections import Collections

__all__ = ["Saves"]


class Saves:
    """Saves fields that are not the library's own."""

    def __init__(self, collections: Collections) -> None:
        self._collections = collections

    async def save_conversation(self, conversation_id: ObjectId, update: updates.Document) -> int:
        """Applies ``update`` to a conversation, and returns the revision that it then has.

        Raises:
            ConversationNotFoundError: There is no such conversation.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        key, conversations = {"_id": conversation_id}, self._collections.conversations
        call = partial(self._collections.call, what=f"save conversation {conversation_id}")
        # Whoever gets the document back from an update has its image written into the oplog.
        result = await call(conversations.update_one, key, update)
        stored: Any = await call(conversations.find_one, key, SUMMARY)
        if stored is None or not result.matched_count:
            raise ConversationNotFoundError(conversation_id)
        saved = ConversationSummary.from_stored(stored)
        await self._collections.handlers.publish(saved.updated())
        return saved.revision

    async def save_unaddressable(
        self,
        collection: Collection,
        key: Mapping[str, Any],
        changes: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]],
    ) -> None:
        """Saves keys that hold dots or dollars, of a document that is there; see ``store.updates``.

        Raises:
            InvalidMetadataError: The database is one of mongomock's, which cannot do that.
            MessageTooLargeError: The document would be too large.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        for assigned, removed in changes.values():
            self._collections.check_keys(assigned, dict.fromkeys(removed))
        update, what = updates.save_unaddressable(changes), f"save {key['_id']}"
        try:
            await self._collections.call(collection.update_one, dict(key), update, what=what)
        except OperationFailure as error:
            if is_too_large(error):
                raise MessageTooLargeError(key["_id"]) from error
            raise

    async def save_message(self, key: Mapping[str, Any], update: updates.Document) -> int:
        """Applies ``update`` to a message, and returns the revision that it then has.

        Raises:
            MessageNotFoundError: There is no such message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        message_id, messages = key["_id"], self._collections.messages
        update = updates.mark_saved(update, servers.mark_type(messages))
        call = partial(self._collections.call, what=f"save message {message_id}")
        try:
            await call(messages.update_one, key, update)
        except OperationFailure as error:
            if is_too_large(error):
                raise MessageTooLargeError(message_id) from error
            raise
        stored: Any = await call(messages.find_one, key, {"revision": 1, "role": 1})
        if stored is None:
            raise MessageNotFoundError(message_id)
        revision: int = stored["revision"]
        await self._collections.handlers.publish(
            MessageUpdated(
                conversation_id=key["conversation_id"],
                message_id=message_id,
                role=MessageRole(stored["role"]),
                revision=revision,
            )
        )
        return revision
