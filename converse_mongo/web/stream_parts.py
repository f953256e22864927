"""The parts of one stream: what a chunk belongs to decides who sees it."""

import asyncio
from collections import OrderedDict

from bson import ObjectId

from converse_mongo.documents.loading import load_message
from converse_mongo.documents.messages import Message
from converse_mongo.domain.chunks import MessageChunk, PartChunk
from converse_mongo.domain.errors import MessageNotFoundError, StoreUnavailableError
from converse_mongo.domain.events import ChunkReceived, Event, MessageCreated, MessageSuspended
from converse_mongo.domain.part_identity import PartIdentity, start_of
from converse_mongo.domain.part_log import part_number
from converse_mongo.web.presenter import Calls, Lacking

MAX_KNOWN = 512
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between reads of a chunk that the server which is read does not have yet."""


def is_text(event: Event) -> bool:
    """Reports whether an event is text of an answer, which lacks nothing."""
    return type(event) is ChunkReceived and type(event.chunk) is MessageChunk


class StreamParts:
    """Finds what an event of a stream lacks to be shown: the start of its part.

    A start that the stream has sent is remembered: only parts that began before it are read. Each
    stream has its own memory, since a message that was deleted and started anew has other parts
    under the same numbers.

    Args:
        model: The class of the messages.
    """

    def __init__(self, model: type[Message]) -> None:
        self._model = model
        self._known: OrderedDict[tuple[ObjectId, int], PartIdentity | None] = OrderedDict()

    async def of(self, event: Event) -> Lacking:
        """Returns what an event lacks.

        Raises:
            StoreUnavailableError: It could not be read. The event must not be shown without it.
        """
        if isinstance(event, MessageCreated):
            if event.streaming:
                self._forget(event.message_id)  # it may have been deleted, and be started anew
            return await self._message(event) if event.has_parts else None
        if isinstance(event, ChunkReceived) and isinstance(event.chunk, PartChunk):
            return await self._identity(event, event.chunk)
        if isinstance(event, MessageSuspended):
            return Calls([await self._known_or_read(event, each.part) for each in event.pending])
        return None

    def _forget(self, message_id: ObjectId) -> None:
        for key in [each for each in self._known if each[0] == message_id]:
            del self._known[key]

    async def _message(self, event: MessageCreated) -> Message | None:
        key = {"_id": event.message_id, "conversation_id": event.conversation_id}
        try:
            return await load_message(self._model, key)
        except MessageNotFoundError:
            return None  # it was deleted

    async def _identity(self, event: ChunkReceived, chunk: PartChunk) -> PartIdentity | None:
        if chunk.event != "start":
            return await self._find(event, part_number(chunk.part))
        start = start_of(chunk)
        above = None
        if chunk.parent is not None:
            above = await self._find(event, start.parent)
            if above is None:
                return None
        if start.kind is None:
            return None
        return self._keep(event, chunk.sequence, PartIdentity(start.kind, start.name, above))

    async def _find(self, event: ChunkReceived, number: int | None) -> PartIdentity | None:
        if number is None or number >= event.chunk.sequence:
            return None
        return await self._known_or_read(event, number)

    async def _known_or_read(
        self, event: ChunkReceived | MessageSuspended, number: int
    ) -> PartIdentity | None:
        key = event.message_id, number
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        return self._keep(event, number, await self._read(event, number))

    def _keep(
        self, event: ChunkReceived | MessageSuspended, number: int, identity: PartIdentity | None
    ) -> PartIdentity | None:
        if identity is None or identity.is_short:
            self._known[event.message_id, number] = identity
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return identity

    async def _read(
        self, event: ChunkReceived | MessageSuspended, number: int
    ) -> PartIdentity | None:
        store = self._model.store()
        key, what = (event.message_id, event.conversation_id, number), f"read part {number}"
        for pause in PAUSES:
            try:
                return await store.call(store.reader.identity, *key, what=what)
            except LookupError:
                await asyncio.sleep(pause)
        raise StoreUnavailableError(
            f"Part {number} of message {event.message_id} is not there: the message was deleted, "
            "or the server is behind."
        )
