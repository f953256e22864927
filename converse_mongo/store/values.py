"""Values: those of parts that are too large for a chunk.

A value is stored first and the chunk that refers to it second, so that no reader finds a reference
without its value. What nothing refers to, such as the value of an append that was refused, goes
with the merge of the chunks, or with the message.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Any

from bson import ObjectId
from pymongo.errors import DuplicateKeyError, PyMongoError

from converse_mongo.domain.errors import (
    ConverseError,
    MessageNotFoundError,
    ValueNotFoundError,
)
from converse_mongo.domain.headers import message_key, pages_of
from converse_mongo.domain.stored_values import LargeValue, StoredValue, references, value_of
from converse_mongo.driver import collections
from converse_mongo.store import updates
from converse_mongo.store.collections import VALUES, Collections

VALUE_PIECE_BYTES = 4 * 1024 * 1024
"""The most bytes of a value in one document."""


class Values:
    """Stores, loads and deletes values that are too large for a chunk."""

    def __init__(self, stored_in: Collections) -> None:
        self._collections = stored_in

    async def store(
        self,
        key: Mapping[str, Any],
        values: Mapping[str, LargeValue],
        *,
        keep_alive: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Stores values of a message; those that are stored already stay as they are.

        Args:
            key: The message.
            values: The values by their ids.
            keep_alive: Called before each write, since many take long.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        call = partial(self._collections.call, what=f"store a value of message {key['_id']}")
        upsert = partial(self._collections.values.update_one, upsert=True)
        for value_id, value in values.items():
            for number, start in enumerate(range(0, len(value.data), VALUE_PIECE_BYTES)):
                if keep_alive is not None:
                    await keep_alive()
                data = value.data[start : start + VALUE_PIECE_BYTES]
                match, update = updates.value(key, value_id, number, data)
                with suppress(DuplicateKeyError):  # an earlier try, which is stored just now
                    await call(upsert, match, update)

    async def load(self, key: Mapping[str, Any], value: StoredValue) -> Any:
        """Returns a value as it was written.

        Raises:
            ValueNotFoundError: It is not there any more, or is damaged.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """

        async def read() -> bytes:
            match = {**pages_of(key), "value_id": value.id}
            cursor = self._collections.values.find(match, {"data": 1}).sort([("number", 1)])
            return b"".join([bytes(piece["data"]) async for piece in cursor])

        data = await self._collections.call(read, what=f"read a value of message {key['_id']}")
        if not data:
            raise ValueNotFoundError(
                key["_id"], "It was replaced, redacted or deleted, or is of another message."
            )
        if len(data) != value.size or (value.hash and sha256(data).hexdigest() != value.hash):
            raise ValueNotFoundError(key["_id"], "What is stored is not what was written.")
        return value_of(data)

    async def load_of(self, message_id: ObjectId, value: StoredValue) -> Any:
        """Returns a value of the message with an id, as :meth:`load` does.

        Raises:
            MessageNotFoundError: The message does not exist.
        """
        found = await self._collections.call(
            self._collections.messages.find_one,
            *({"_id": message_id}, {"conversation_id": 1, "log_id": 1}),
            what=f"read message {message_id}",
        )
        if found is None:
            raise MessageNotFoundError(message_id)
        key = message_key(message_id, found["conversation_id"], found.get("log_id"))
        return await self.load(key, value)

    async def delete(self, key: Mapping[str, Any], ids: Collection[str]) -> None:
        """Deletes some values of a message, given by their ids.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        if ids:
            await self._delete(key, {"value_id": {"$in": list(ids)}})

    async def delete_all(self, key: Mapping[str, Any]) -> None:
        """Deletes all values of a message.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        await self._delete(key, {})

    async def delete_if_gone(self, key: Mapping[str, Any]) -> None:
        """Deletes all values of a message unless it is there: they were stored too late.

        For a caller with an error of its own: if this fails, they are left.
        """
        what, find = f"read message {key['_id']}", self._collections.messages.find_one
        with suppress(ConverseError, PyMongoError):
            if await self._collections.call(find, key, {"_id": 1}, what=what) is None:
                await self.delete_all(key)

    async def delete_others(
        self, key: Mapping[str, Any], kept: Collection[str], messages: collections.Collection
    ) -> None:
        """Deletes the values of a message but some.

        Args:
            key: The message.
            kept: The ids of the values that stay.
            messages: The messages, read and written as the values are to be.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        values = self._collections.values
        if self._collections.session is None:
            values = collections.sibling(messages, VALUES)
        await self._delete(key, {"value_id": {"$nin": list(kept)}}, values)

    async def _delete(
        self,
        key: Mapping[str, Any],
        which: Mapping[str, Any],
        values: collections.Collection = None,
    ) -> None:
        await self._collections.call(
            (self._collections.values if values is None else values).delete_many,
            {**pages_of(key), **which},
            what=f"delete values of message {key['_id']}",
        )


def referred_to(stored: Iterable[Mapping[str, Any]]) -> set[str]:
    """Returns the ids of the values that chunks, events or records refer to."""
    return {value.id for each in stored for value in references(each.get("values")).values()}
