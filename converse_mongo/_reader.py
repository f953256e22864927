"""Reads messages as the watchers and the store need them: without text that nobody asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bson import ObjectId

from converse_mongo._driver import Collection
from converse_mongo._state import COUNTERS, STATE, MessageState
from converse_mongo.chunks import MessageChunk, StoredChunk
from converse_mongo.types import MessageStatus

__all__ = ["Counters", "MessageRow", "Reader", "Saved"]

IDS_PER_QUERY = 1000


@dataclass(frozen=True, slots=True)
class Counters:
    """How far a message is."""

    next_sequence: int
    ended: bool


@dataclass(frozen=True, slots=True)
class MessageRow:
    """A message of a conversation as ``MessageCreated`` tells of it."""

    state: MessageState
    content: str


@dataclass(frozen=True, slots=True)
class Saved:
    """How often a message was saved, and where it is in its conversation."""

    revision: int
    position: int


class Reader:
    """Reads from one pair of collections. A read may always be repeated."""

    def __init__(self, messages: Collection, conversations: Collection) -> None:
        self.messages = messages
        self.conversations = conversations

    # One message

    async def read(
        self, message_id: ObjectId, conversation_id: ObjectId, start: int, limit: int
    ) -> tuple[MessageState, list[MessageChunk]] | None:
        """The state of a message, and up to ``limit`` chunks from sequence ``start``, at one time.

        ``None`` when there is no such message.
        """
        return await self._read(
            {"_id": message_id, "conversation_id": conversation_id}, [start, limit]
        )

    async def read_tail(
        self, message_id: ObjectId, limit: int
    ) -> tuple[MessageState, list[MessageChunk]] | None:
        """The same with the last ``limit`` chunks, for who does not know the conversation yet."""
        return await self._read({"_id": message_id}, -limit)

    async def read_at(
        self, conversation_id: ObjectId, position: int, start: int, limit: int
    ) -> tuple[MessageState, list[MessageChunk]] | None:
        """The same for the message at a position of a conversation."""
        return await self._read(
            {"conversation_id": conversation_id, "position": position}, [start, limit]
        )

    async def _read(
        self, match: Mapping[str, Any], chunks: int | list[int]
    ) -> tuple[MessageState, list[MessageChunk]] | None:
        stored = await self.messages.find_one(match, {**STATE, "chunks": {"$slice": chunks}})
        if stored is None:
            return None
        state = MessageState.from_stored(stored)
        return state, [MessageChunk.from_stored(chunk) for chunk in stored.get("chunks") or ()]

    async def stored_chunks(
        self, message_id: ObjectId, conversation_id: ObjectId
    ) -> list[StoredChunk]:
        """All chunks of a message; none if there is no such message."""
        stored = await self.messages.find_one(
            {"_id": message_id, "conversation_id": conversation_id}, {"chunks": 1}
        )
        return list(stored.get("chunks") or ()) if stored else []

    # Many messages

    async def counters(self, keys: Mapping[ObjectId, ObjectId]) -> dict[ObjectId, Counters]:
        """The counters of messages, given as message id to conversation id; one query for 1,000.

        What is missing from the answer is missing from the database.
        """
        found: dict[ObjectId, Counters] = {}
        ids = list(keys)
        for offset in range(0, len(ids), IDS_PER_QUERY):
            some = ids[offset : offset + IDS_PER_QUERY]
            match = {
                "_id": {"$in": some},
                "conversation_id": {"$in": list({keys[message_id] for message_id in some})},
            }
            async for stored in self.messages.find(match, COUNTERS):
                found[stored["_id"]] = Counters(
                    stored.get("next_sequence", 0),
                    stored["status"] != MessageStatus.STREAMING.value,
                )
        return found

    # Conversations

    async def conversation_end(self, conversation_id: ObjectId) -> int | None:
        """The position that comes next in a conversation; ``None`` if there is no such one.

        Both the counter and the last message may be behind the other: the counter for a moment
        after an insert, the last message once it is deleted.
        """
        found = await self.conversations.find_one({"_id": conversation_id}, {"next_position": 1})
        if found is None:
            return None
        last = await self.messages.find_one(
            {"conversation_id": conversation_id}, {"position": 1}, sort=[("position", -1)]
        )
        counted: int = found["next_position"]
        return max(counted, last["position"] + 1) if last else counted

    async def existing_conversations(self, conversation_ids: Sequence[ObjectId]) -> set[ObjectId]:
        """Which of these conversations there are."""
        found: set[ObjectId] = set()
        for offset in range(0, len(conversation_ids), IDS_PER_QUERY):
            match = {"_id": {"$in": list(conversation_ids[offset : offset + IDS_PER_QUERY])}}
            async for stored in self.conversations.find(match, {"_id": 1}):
                found.add(stored["_id"])
        return found

    async def streaming(
        self, conversation_id: ObjectId, before: int
    ) -> dict[int, tuple[ObjectId, int]]:
        """Position to (id, next sequence) of the streaming messages before a position."""
        match = {
            "conversation_id": conversation_id,
            "status": MessageStatus.STREAMING.value,
            "position": {"$lt": before},
        }
        return {
            stored["position"]: (stored["_id"], stored["next_sequence"])
            async for stored in self.messages.find(match, {**COUNTERS, "position": 1})
        }

    async def rows(
        self, conversation_id: ObjectId, start: int, stop: int, limit: int
    ) -> list[MessageRow]:
        """Up to ``limit`` messages at the positions from ``start`` to before ``stop``, in order."""
        match = {"conversation_id": conversation_id, "position": {"$gte": start, "$lt": stop}}
        cursor = self.messages.find(match, {**STATE, "content": 1}).sort([("position", 1)])
        return [_row(stored) for stored in await cursor.limit(limit).to_list(limit)]

    async def behind(self, ends: Mapping[ObjectId, int]) -> set[ObjectId]:
        """Which of these conversations have messages at or behind the given position."""
        clauses = [
            {"conversation_id": conversation_id, "position": {"$gte": position}}
            for conversation_id, position in ends.items()
        ]
        found: set[ObjectId] = set()
        for offset in range(0, len(clauses), IDS_PER_QUERY):
            match = {"$or": clauses[offset : offset + IDS_PER_QUERY]}
            async for stored in self.messages.find(match, {"conversation_id": 1}):
                found.add(stored["conversation_id"])
        return found

    async def revisions(
        self, conversation_ids: Sequence[ObjectId]
    ) -> dict[ObjectId, dict[ObjectId, Saved]]:
        """Conversation id to message id to what is known of its saves, where there were any."""
        found: dict[ObjectId, dict[ObjectId, Saved]] = {}
        projection = {"conversation_id": 1, "revision": 1, "position": 1}
        for offset in range(0, len(conversation_ids), IDS_PER_QUERY):
            some = list(conversation_ids[offset : offset + IDS_PER_QUERY])
            match = {"conversation_id": {"$in": some}, "revision": {"$gte": 1}}
            async for stored in self.messages.find(match, projection):
                messages = found.setdefault(stored["conversation_id"], {})
                messages[stored["_id"]] = Saved(stored["revision"], stored["position"])
        return found


def _row(stored: Mapping[str, Any]) -> MessageRow:
    state = MessageState.from_stored(stored)
    # The text of a stream comes in its chunks; "created" tells only of a text that was there then.
    return MessageRow(state, "" if state.streamed else stored.get("content") or "")
