"""Visibility: which events of a conversation a browser is shown."""

from bson import ObjectId

from converse_mongo.conversations import Conversation
from converse_mongo.events import Event, MessageCreated
from converse_mongo.web.access import Access

__all__ = ["Visibility"]

MAX_KNOWN = 256


class Visibility:
    """Tells the events of messages that browsers are shown from those of others.

    Only the creation of a message says its role. For one that was created before the stream began,
    the database is asked, once.
    """

    def __init__(self, access: Access, conversation: Conversation) -> None:
        self._access = access
        self._conversation = conversation
        self._known: dict[ObjectId, bool] = {}

    async def shows(self, event: Event) -> bool:
        """Whether to send an event."""
        if self._access.shows_all:
            return True
        message_id: ObjectId | None = getattr(event, "message_id", None)
        if message_id is None:
            return True
        shown = self._known.get(message_id)
        if shown is None:
            if isinstance(event, MessageCreated):
                shown = self._access.shows(event.role)
            else:
                shown = await self._access.shows_message(self._conversation, message_id)
            if len(self._known) >= MAX_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[message_id] = shown
        return shown
