"""Positions: each new message gets the next position in its conversation."""

from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from typing import Any, NamedTuple, TypeAlias

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from converse_mongo.domain.errors import ConversationNotFoundError
from converse_mongo.domain.validation import now
from converse_mongo.store import updates
from converse_mongo.store.collections import Collections, WriteQueue, back_off

Insert: TypeAlias = Callable[[int], Awaitable[Any]]
"""Inserts a document at a position; ``DuplicateKeyError`` says that the position is taken."""

_POSITIONS = ["conversation_id", "position"]
"""The fields of the index that gives each position to one message."""


class Added(NamedTuple):
    """The position of a message that was added.

    Attributes:
        position: The position.
        is_new: ``False`` if a message with that id was found instead of inserted: from an earlier
            try of the same call, or from another caller.
    """

    position: int
    is_new: bool


class Positions:
    """Adds conversations, and messages to them."""

    def __init__(self, collections: Collections) -> None:
        self._collections = collections

    async def add_message(
        self,
        queue: WriteQueue,
        conversation_id: ObjectId,
        new_id: ObjectId | None,
        insert: Insert,
    ) -> Added:
        """Inserts a message at the next position of its conversation.

        A position is used only once the previous one is in the database, and the unique index on
        (conversation_id, position) gives each to one writer. So messages become visible in the
        order of their positions, without a gap, with any number of writers: a reader that has seen
        position *n* has seen all positions before it. If a writer dies between its insert and the
        update of the counter, the next one collides and updates it. In a transaction it looks
        instead, since a collision would end that, and each further one.

        Args:
            queue: The queue of the conversation.
            conversation_id: The conversation.
            new_id: The id of the message, if it was made for this call, or for the same generation:
                if it is in the database, an earlier try inserted it.
            insert: Inserts the message at a position.

        Raises:
            ConversationNotFoundError: The conversation does not exist; nothing was written.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        messages, conversations = self._collections.messages, self._collections.conversations
        call = partial(
            self._collections.call, what=f"add a message to conversation {conversation_id}"
        )
        position = 0

        async def is_taken() -> bool:
            at = {"conversation_id": conversation_id, "position": position}
            return await messages.find_one(at, {"_id": 0, "position": 1}) is not None

        async def insert_next() -> bool:
            # Each try reads anew: another message may have had the position, and be deleted.
            nonlocal position
            conversation = await conversations.find_one(
                {"_id": conversation_id}, {"next_position": 1}
            )
            if conversation is None:
                raise ConversationNotFoundError(conversation_id)
            position = conversation["next_position"]
            if self._collections.session is not None and await is_taken():
                return False
            await insert(position)
            return True

        async with queue.lock:
            for attempt in count():
                inserted = is_new = True
                try:
                    inserted = await call(insert_next)
                except DuplicateKeyError as error:
                    stored: Any = new_id and await call(
                        messages.find_one,
                        {"_id": new_id, "conversation_id": conversation_id},
                        {"position": 1},
                    )
                    if stored:
                        position, is_new = stored["position"], False
                    elif new_id is not None and _index_of(error) == ["_id"]:
                        await back_off(attempt)  # what had the id is deleted
                        continue
                    elif _index_of(error) == _POSITIONS or await call(is_taken):
                        inserted = False  # what collided may be gone again
                    else:  # a unique index of the application
                        raise
                await call(
                    conversations.update_one,
                    {"_id": conversation_id},
                    updates.move_next_position(position, now()),
                )
                if inserted:
                    return Added(position, is_new)
                await back_off(attempt)
        raise AssertionError("unreachable")

    async def mark_used(self, conversation_id: ObjectId, position: int) -> None:
        """Moves the counter past a position whose message is to be deleted, unless it is there.

        A process may have died before it moved the counter. Whoever has seen the message would take
        another one at its position for the same.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        await self._collections.call(
            self._collections.conversations.update_one,
            {"_id": conversation_id, "next_position": {"$lte": position}},
            updates.move_next_position(position, now()),
            what=f"delete a message of conversation {conversation_id}",
        )

    async def add_conversation(
        self, new_id: ObjectId | None, insert: Callable[[], Awaitable[Any]]
    ) -> None:
        """Inserts a conversation; ``new_id`` as in :meth:`add_message`.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        what = "start a conversation"
        try:
            await self._collections.call(insert, what=what)
        except DuplicateKeyError:
            if new_id is None or not await self._collections.call(
                self._collections.conversations.find_one, {"_id": new_id}, {"_id": 1}, what=what
            ):
                raise


def _index_of(error: DuplicateKeyError) -> list[str]:
    """Returns the fields of the index in which something collided, if the server names them."""
    return list((error.details or {}).get("keyPattern", ()))
