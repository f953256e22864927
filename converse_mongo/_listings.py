"""Listings: the conversations of an owner, and the messages of a conversation."""

from collections.abc import AsyncIterator, Generator, Mapping
from typing import Any, TypeVar, cast

from beanie import Document
from beanie.odm.utils.parsing import parse_obj
from bson import ObjectId
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pymongo import ASCENDING, DESCENDING

from converse_mongo._state import MessageState
from converse_mongo._validation import MAX_CONTENT_BYTES, check_content
from converse_mongo.chunks import ChunkLog
from converse_mongo.errors import InvalidInputError
from converse_mongo.messages import Message
from converse_mongo.store import Store
from converse_mongo.types import MessageStatus

__all__ = ["MessageList", "Owner", "list_conversations"]

MESSAGES_PER_READ = 100
CONVERSATIONS_PER_READ = 100

C = TypeVar("C", bound=Document)


class Owner(BaseModel):
    """Who a conversation belongs to: a kind of thing in the application, and its id there."""

    model_config = ConfigDict(frozen=True)

    type: str
    id: str

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, value: Any) -> Any:
        if isinstance(value, tuple | list) and len(value) == 2:
            value = {"type": value[0], "id": value[1]}
        if isinstance(value, dict) and isinstance(value.get("id"), int | ObjectId):
            value = {**value, "id": str(value["id"])}
        if isinstance(value, dict):
            for part in value.values():
                check_content(part)
        return value

    @property
    def pair(self) -> tuple[str, str]:
        """The type and the id."""
        return self.type, self.id


async def list_conversations(
    model: type[C], store: Store, owner: tuple[str, Any] | Owner, limit: int | None
) -> AsyncIterator[C]:
    """Yields the conversations of an owner, those that were added to last first.

    Raises:
        InvalidInputError: The owner is no pair of a type and an id.
        StoreUnavailableError: MongoDB gave no answer.
    """
    try:
        whose = Owner.model_validate(owner)
    except ValidationError as error:
        raise InvalidInputError(
            f"{owner!r} is no owner: pass a type and an id, such as ('user', '42')."
        ) from error

    async def read(match: dict[str, Any], size: int) -> list[dict[str, Any]]:
        order = [("updated_at", DESCENDING), ("_id", DESCENDING)]
        found: list[dict[str, Any]] = (
            await store.conversations.find(match).sort(order).limit(size).to_list(size)
        )
        return found

    match: dict[str, Any] = {"owner.type": whose.type, "owner.id": whose.id}
    left = limit
    while left is None or left > 0:
        size = CONVERSATIONS_PER_READ if left is None else min(left, CONVERSATIONS_PER_READ)
        page = await store.call(read, match, size, what=f"list the conversations of {whose}")
        for stored in page:
            yield cast(C, parse_obj(model, stored))
        if len(page) < size:
            return
        left = None if left is None else left - size
        last = page[-1]
        match["$or"] = [
            {"updated_at": {"$lt": last["updated_at"]}},
            {"updated_at": last["updated_at"], "_id": {"$lt": last["_id"]}},
        ]


class MessageList:
    """The messages of a conversation in order; awaited it is a list, iterated it reads by and by.

    The chunks of ended messages stay in the database; a message that streams comes with its chunks
    and its text so far.
    """

    def __init__(
        self,
        model: type[Message],
        store: Store,
        conversation_id: ObjectId,
        start: int,
        limit: int | None,
    ) -> None:
        self._model = model
        self._store = store
        self._conversation_id = conversation_id
        self._start = start
        self._limit = limit

    def __await__(self) -> Generator[Any, None, list[Message]]:
        return self._all().__await__()

    async def _all(self) -> list[Message]:
        return [message async for message in self]

    async def __aiter__(self) -> AsyncIterator[Message]:
        start, left = self._start, self._limit
        while left is None or left > 0:
            size = MESSAGES_PER_READ if left is None else min(left, MESSAGES_PER_READ)
            page = await self._read(start, size)
            for message in page:
                yield message
            if len(page) < size:
                return
            left = None if left is None else left - size
            start = (page[-1].position or 0) + 1

    async def _read(self, start: int, size: int) -> list[Message]:
        store, conversation_id = self._store, self._conversation_id
        what = f"list the messages of conversation {conversation_id}"

        async def read(match: dict[str, Any], projection: Any) -> list[dict[str, Any]]:
            cursor = store.messages.find(match, projection).sort([("position", ASCENDING)])
            found: list[dict[str, Any]] = await cursor.limit(size).to_list(size)
            return found

        match = {"conversation_id": conversation_id, "position": {"$gte": start}}
        page = await store.call(read, match, {"chunks": 0, "chunk_lengths": 0}, what=what)
        for stored in page:
            if stored["status"] == MessageStatus.STREAMING.value:
                await store.leases.settle_if_expired(MessageState.from_stored(stored))
        # Only the chunks hold the text of a message that streams, or ended a moment ago.
        textless = [stored["_id"] for stored in page if _needs_chunks(stored)]
        whole: dict[ObjectId, dict[str, Any]] = {}
        if textless:
            them = {"_id": {"$in": textless}, "conversation_id": conversation_id}
            for stored in await store.call(read, them, None, what=what):
                await store.call(store.reader.add_moved_chunks, stored, what=what)
                whole[stored["_id"]] = stored
        return [_load_listed(self._model, whole.get(stored["_id"], stored)) for stored in page]


def _needs_chunks(stored: Mapping[str, Any]) -> bool:
    if stored.get("content_bytes", 0) > MAX_CONTENT_BYTES:
        return False
    return stored["status"] == MessageStatus.STREAMING.value or (
        bool(stored.get("next_sequence")) and not stored.get("content")
    )


def _load_listed(model: type[Message], stored: dict[str, Any]) -> Message:
    if "chunks" not in stored and stored.get("next_sequence"):
        stored["chunks"] = ChunkLog.not_loaded()
    return cast(Message, parse_obj(model, stored))
