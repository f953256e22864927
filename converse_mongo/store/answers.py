"""Answers: the ones that are being written, turns to begin one, and stops that come early."""

import logging
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, NamedTuple

from bson import ObjectId
from pymongo.errors import PyMongoError

from converse_mongo.domain.errors import (
    ConversationNotFoundError,
    ConverseError,
    MessageNotFoundError,
    StoreUnavailableError,
    UnknownFormatError,
)
from converse_mongo.domain.headers import HEADER, MessageHeader
from converse_mongo.domain.metadata import aware
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.driver import deadlines
from converse_mongo.store import updates
from converse_mongo.store.collections import Collections, back_off
from converse_mongo.store.leases import Leases

logger = logging.getLogger("converse_mongo")

END_SECONDS = 2.0
"""The time in which a turn is ended, also where the deadline of the caller has passed."""
WAIT_SECONDS = 10.0
"""The time for which a caller waits for its turn."""
CONVERSATION_DELETED = "The conversation was deleted."
"""The reason of the stop of a message whose conversation is gone."""

LOOK_SECONDS = 1.0
"""The time after which a caller that waits looks whether the holder of the turn is dead."""


class EarlyStop(NamedTuple):
    """A stop of an answer that was requested before the answer existed."""

    reason: str | None


class Turn:
    """The right to begin an answer in a conversation, for as long as a lease."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self.stops: list[Mapping[str, Any]] = []
        """The stops that came in the meantime, once the turn has ended."""

    def stop_of(self, message_ids: Collection[ObjectId | None]) -> EarlyStop | None:
        """Returns a stop of everything, or of one of some messages, if one came."""
        for stop in self.stops:
            named = stop["message_ids"]
            if named is None or not set(named).isdisjoint(message_ids):
                return EarlyStop(stop["reason"])
        return None

    @property
    def is_over(self) -> bool:
        """True if it took so long that others may have had their turn since."""
        return time.monotonic() >= self._ends


class Answers:
    """Looks after the answers of conversations: messages of the role ``assistant``."""

    def __init__(self, collections: Collections, leases: Leases) -> None:
        self._collections = collections
        self._leases = leases

    async def running(self, conversation_id: ObjectId) -> list[MessageHeader]:
        """Returns the answers that are being written, in order; ends those that are orphans.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        listed = await self._streaming(conversation_id)
        states = [
            await self._leases.settle_if_expired(state)
            for state in listed
            if state.role is MessageRole.ASSISTANT
        ]
        return [state for state in states if not state.status.is_final]

    async def stop_all(self, conversation_id: ObjectId, reason: str) -> None:
        """Asks for a stop of all that is being written in a conversation, whoever speaks.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        for state in await self._streaming(conversation_id):
            try:
                await self._leases.request_stop(state.key, reason)
            except MessageNotFoundError:
                pass
            except UnknownFormatError as error:
                logger.warning("Message %s was not stopped: %s", state.message_id, error)

    async def _streaming(self, conversation_id: ObjectId) -> list[MessageHeader]:
        match = {"conversation_id": conversation_id, "status": MessageStatus.STREAMING.value}

        async def read() -> list[Mapping[str, Any]]:
            cursor = self._collections.messages.find(match, HEADER).sort([("position", 1)])
            found: list[Mapping[str, Any]] = await cursor.to_list(None)
            return found

        what = f"list what is being written in conversation {conversation_id}"
        stored = await self._collections.call(read, what=what)
        return [MessageHeader.from_stored(each) for each in stored]

    async def state(self, conversation_id: ObjectId, message_id: ObjectId) -> MessageHeader | None:
        """Returns the header of a message; ``None`` if it does not exist.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        return await self._collections.call(
            self._collections.reader.state,
            *(message_id, conversation_id),
            what=f"read message {message_id}",
        )

    async def has_conversation(self, state: MessageHeader) -> bool:
        """Returns whether the conversation of a message exists.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        return await self._collections.call(
            self._collections.reader.has_conversation,
            state.conversation_id,
            what=f"read conversation {state.conversation_id}",
        )

    async def last(self, conversation_id: ObjectId) -> MessageHeader | None:
        """Returns the header of the last message of a user or of the model, if there is one."""
        said = [MessageRole.USER.value, MessageRole.ASSISTANT.value]
        return await self._last({"conversation_id": conversation_id, "role": {"$in": said}})

    async def is_asked_behind(self, conversation_id: ObjectId, position: int) -> bool:
        """Returns whether there is a message of a user behind a position."""
        behind = {"conversation_id": conversation_id, "position": {"$gt": position}}
        return await self._last({**behind, "role": MessageRole.USER.value}) is not None

    async def _last(self, match: Mapping[str, Any]) -> MessageHeader | None:
        stored: Any = await self._collections.call(
            lambda: self._collections.messages.find_one(match, HEADER, sort=[("position", -1)]),
            what=f"read conversation {match['conversation_id']}",
        )
        return MessageHeader.from_stored(stored) if stored else None

    # Turns

    @asynccontextmanager
    async def turn(self, conversation_id: ObjectId) -> AsyncIterator[Turn]:
        """Waits for the turn to begin an answer: of all processes, one has it at a time.

        Who has the turn can look at what is being written, and add a message before another does.
        Afterwards the turn has the stops that came in the meantime: they did not find the message.
        If its process dies, the turn is over once a lease has passed, by the server's clock.

        Raises:
            ConversationNotFoundError: The conversation does not exist.
            StoreUnavailableError: Another has the turn, or MongoDB did not answer.
        """
        holder, turn = ObjectId(), Turn(self._collections.options.lease)
        await self._take_turn(conversation_id, holder)
        try:
            yield turn
        finally:
            # If this fails, the turn ends by itself.
            with suppress(PyMongoError, ConverseError), deadlines.fresh(END_SECONDS):
                turn.stops = await self._end_turn(conversation_id, holder)

    async def _end_turn(
        self, conversation_id: ObjectId, holder: ObjectId
    ) -> list[Mapping[str, Any]]:
        ended: Any = await self._collections.call(
            self._collections.conversations.find_one_and_update,
            *updates.end_turn(conversation_id, holder),
            {"answer_turn.stops": 1},
            what=f"begin an answer in conversation {conversation_id}",
        )
        return [] if ended is None else ended.get("answer_turn", {}).get("stops", [])

    async def _take_turn(self, conversation_id: ObjectId, holder: ObjectId) -> None:
        change = updates.take_turn(conversation_id, holder)
        began = looked = time.monotonic()
        for attempt in count():
            if await self._change(conversation_id, change):
                return
            stored = await self._conversation(conversation_id, "answer_turn")
            turn = stored.get("answer_turn") or {"holder": None}
            if turn["holder"] == holder:  # an earlier try, whose answer was lost
                return
            now = time.monotonic()
            if turn["holder"] is not None and now - looked > LOOK_SECONDS:
                looked = now
                await self._end_if_over(conversation_id, turn)
            if now - began > WAIT_SECONDS:
                raise StoreUnavailableError(
                    f"Could not begin an answer in conversation {conversation_id}: another process "
                    f"has been at it for {WAIT_SECONDS:g} seconds. Nothing was written."
                )
            await back_off(attempt)

    async def _end_if_over(self, conversation_id: ObjectId, turn: Mapping[str, Any]) -> None:
        clock = await self._collections.call(
            self._collections.reader.server_time, what="read the server's clock"
        )
        if (clock - aware(turn["at"])).total_seconds() > self._collections.options.lease:
            await self._change(conversation_id, updates.end_turn(conversation_id, turn["holder"]))

    # Stops that come early

    async def stop_turn(
        self,
        conversation_id: ObjectId,
        message_ids: Sequence[ObjectId] | None,
        reason: str | None,
    ) -> None:
        """Asks whoever is beginning an answer to stop it as soon as it has begun.

        Look for the answer afterwards: it may have been begun meanwhile.

        Args:
            conversation_id: The conversation.
            message_ids: Only if it has, answers or replaces one of these; ``None`` for any.
            reason: Stored with the answer.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        await self._change(conversation_id, updates.stop_turn(conversation_id, message_ids, reason))

    async def stop_early(
        self, conversation_id: ObjectId, message_id: ObjectId, reason: str | None
    ) -> None:
        """Notes the stop of an answer that does not exist yet, for whoever begins it.

        Look for the answer afterwards: it may have been begun meanwhile.

        Raises:
            ConversationNotFoundError: The conversation does not exist.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        change = updates.stop_early(conversation_id, message_id, reason)
        if not await self._change(conversation_id, change):
            await self._conversation(conversation_id, "early_stops")

    async def forget_stop(self, conversation_id: ObjectId, message_id: ObjectId) -> None:
        """Forgets the stop of an answer that did not exist: it is asked for again.

        Raises:
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        await self._change(conversation_id, updates.forget_stop(conversation_id, message_id))

    async def early_stop(self, conversation_id: ObjectId, message_id: ObjectId) -> EarlyStop | None:
        """Returns the stop of an answer that was requested before it existed, if there was one.

        Look for it once the answer is stored: then either this finds the stop, or the stop finds
        the answer.

        Raises:
            ConversationNotFoundError: The conversation does not exist.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        stored = await self._conversation(conversation_id, "early_stops")
        for stop in stored.get("early_stops") or ():
            if stop["message_id"] == message_id:
                return EarlyStop(stop["reason"])
        return None

    async def _conversation(self, conversation_id: ObjectId, field: str) -> Mapping[str, Any]:
        stored: Any = await self._collections.call(
            self._collections.conversations.find_one,
            *({"_id": conversation_id}, {field: 1}),
            what=f"read conversation {conversation_id}",
        )
        if stored is None:
            raise ConversationNotFoundError(conversation_id)
        found: Mapping[str, Any] = stored
        return found

    async def _change(
        self, conversation_id: ObjectId, change: tuple[updates.Document, updates.Document]
    ) -> bool:
        result = await self._collections.call(
            self._collections.conversations.update_one,
            *change,
            what=f"begin an answer in conversation {conversation_id}",
        )
        return bool(result.matched_count)
