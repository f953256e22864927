"""Visibility: which events of a conversation a browser is shown."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple, TypeVar

from bson import ObjectId

from converse_mongo.documents.conversations import Conversation
from converse_mongo.domain.events import (
    Event,
    MessageCreated,
    MessageUpdated,
)
from converse_mongo.web.access import Access

__all__ = ["Visibility"]

E = TypeVar("E", bound=Event)

MAX_KNOWN = 10_000


class _Known(NamedTuple):
    """Whether a message is shown, as it is after so many saves."""

    revision: int
    shown: "asyncio.Future[bool]"


class Visibility:
    """Tells the events of messages that browsers are shown from those of others.

    Only the creation of a message says its role. For one that was created before a stream began,
    the database is asked: once for all streams, and again when the message was saved.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._known: dict[ObjectId, _Known] = {}

    async def shown(self, conversation: Conversation, events: AsyncIterator[E]) -> AsyncIterator[E]:
        """Those events of a conversation that are shown."""
        async for event in events:
            if await self.shows(conversation, event):
                yield event

    async def shows(self, conversation: Conversation, event: Event) -> bool:
        """Whether to send an event of a conversation."""
        message_id: ObjectId | None = getattr(event, "message_id", None)
        if self._access.shows_all or message_id is None:
            return True
        known = self._known.pop(message_id, None)
        if known is None or (isinstance(event, MessageUpdated) and event.revision > known.revision):
            known = self._look(conversation, message_id, event)
        self._known[message_id] = known  # as the last to be forgotten
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
        try:
            return await asyncio.shield(known.shown)  # others wait for it, too
        except Exception:
            if self._known.get(message_id) is known:
                del self._known[message_id]
            raise

    def _look(self, conversation: Conversation, message_id: ObjectId, event: Event) -> _Known:
        if isinstance(event, MessageCreated):
            told = asyncio.get_running_loop().create_future()
            told.set_result(self._access.shows(event.role))
            return _Known(0, told)
        asked = asyncio.ensure_future(self._access.shows_message(conversation, message_id))
        return _Known(event.revision if isinstance(event, MessageUpdated) else 0, asked)
