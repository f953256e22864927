"""Saves: fields that the application changed."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from converse_mongo.domain.errors import (
    ConversationNotFoundError,
    MessageNotFoundError,
)
from converse_mongo.domain.events import MessageUpdated
from converse_mongo.domain.metadata import is_addressable
from converse_mongo.domain.summaries import SUMMARY, ConversationSummary
from converse_mongo.domain.types import MessageRole
from converse_mongo.driver import servers
from converse_mongo.driver.collections import Collection
from converse_mongo.driver.deadlines import bounded
from converse_mongo.store import updates
from converse_mongo.store.collections import Collections, name_too_large

T = TypeVar("T")


@dataclass(slots=True)
class Changes:
    """The changes that a save writes.

    Attributes:
        assign: The paths to set, with their values in BSON.
        remove: The paths to remove.
        unaddressable: By field, the keys that no path can name, since they have dots or a leading
            dollar: those to set with their values, and those to remove.
    """

    assign: dict[str, Any] = field(default_factory=dict)
    remove: list[str] = field(default_factory=list)
    unaddressable: dict[str, tuple[dict[str, Any], list[str]]] = field(default_factory=dict)

    def add_mapping(self, path: str, assign: Mapping[str, Any], remove: Sequence[str]) -> None:
        """Adds changes of single keys of the mapping at ``path``."""
        self.assign |= {f"{path}.{key}": assign[key] for key in assign if is_addressable(key)}
        self.remove += [f"{path}.{key}" for key in remove if is_addressable(key)]
        assigned = {key: assign[key] for key in assign if not is_addressable(key)}
        removed = [key for key in remove if not is_addressable(key)]
        if assigned or removed:
            self.unaddressable[path] = assigned, removed

    def __bool__(self) -> bool:
        return bool(self.assign or self.remove or self.unaddressable)


class Saves:
    """Saves fields that are not the library's own.

    The first two methods also raise:
        InvalidMetadataError: A key has a dot or a leading dollar, and the database is a mock,
            which cannot set it.
        MessageTooLargeError: The document would be too large.
        StoreUnavailableError: No answer for ``retry_timeout`` seconds.
    """

    def __init__(self, collections: Collections) -> None:
        self._collections = collections

    async def save_conversation(
        self, key: Mapping[str, Any], changes: Changes, saved_at: datetime
    ) -> int:
        """Stores changes of a conversation, and returns its new revision.

        Raises:
            ConversationNotFoundError: The conversation does not exist.
        """
        conversations = self._collections.conversations
        await self._save_unaddressable(conversations, key, changes)
        update = updates.save(changes.assign, changes.remove, saved_at)
        call = partial(self._collections.call, what=f"save conversation {key['_id']}")
        # An update that returns the document writes its image into the oplog.
        result = await call(conversations.update_one, key, update)
        stored: Any = await call(conversations.find_one, key, SUMMARY)
        if stored is None or not result.matched_count:
            raise ConversationNotFoundError(key["_id"])
        saved = ConversationSummary.from_stored(stored)
        await self._collections.handlers.publish(saved.updated())
        return saved.revision

    async def save_message(
        self,
        key: Mapping[str, Any],
        changes: Changes,
        saved_at: datetime,
        *,
        role: MessageRole,
    ) -> int:
        """Stores changes of a message, and returns its new revision.

        Raises:
            MessageNotFoundError: The message does not exist.
        """
        message_id, conversation_id = key["_id"], key["conversation_id"]
        messages = self._collections.messages
        await self._save_unaddressable(messages, key, changes)
        update = updates.save_message(
            *(changes.assign, changes.remove, saved_at),
            *(conversation_id, role, servers.mark_type(messages)),
        )
        call = partial(self._collections.call, what=f"save message {message_id}")
        with name_too_large(message_id):
            await call(messages.update_one, key, update)
        stored: Any = await call(messages.find_one, key, {"revision": 1})
        if stored is None:
            raise MessageNotFoundError(message_id)
        revision: int = stored["revision"]
        await self._collections.handlers.publish(
            MessageUpdated(
                conversation_id=conversation_id,
                message_id=message_id,
                role=role,
                revision=revision,
            )
        )
        return revision

    async def apply(
        self,
        run: Callable[[], Awaitable[T]],
        update: Mapping[str, Any],
        *,
        what: str,
        lent: bool = False,
    ) -> T:
        """Makes a write of the application, and retries it only if that is safe.

        Args:
            run: Makes the write.
            update: Its update operators; none for a delete.
            what: A description, for errors.
            lent: True for a transaction that the application began with the driver, and retries
                itself.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds, or to the only try.
            PyMongoError: The write failed; if it is ``lent``, also without an answer.
        """
        if lent:
            return await bounded(self._collections.options.retry_timeout, run)
        repeat = updates.may_repeat(update)
        return await self._collections.call(run, what=what, repeat=repeat)

    async def _save_unaddressable(
        self, collection: Collection, key: Mapping[str, Any], changes: Changes
    ) -> None:
        """Saves keys with dots or dollars, which need an update of their own; see ``updates``."""
        if not changes.unaddressable:
            return
        for assigned, removed in changes.unaddressable.values():
            self._collections.check_keys(assigned, dict.fromkeys(removed))
        update = updates.save_unaddressable(changes.unaddressable)
        what = f"save {key['_id']}"
        with name_too_large(key["_id"]):
            await self._collections.call(collection.update_one, dict(key), update, what=what)
