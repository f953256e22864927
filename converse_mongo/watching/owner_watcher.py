"""Watchers of an owner: what happens in all conversations of somebody, as it happens."""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from time import monotonic
from types import TracebackType
from typing import Self

from bson import ObjectId

from converse_mongo.domain.cursors import ConversationCursor
from converse_mongo.domain.errors import NotFoundError, WatchError
from converse_mongo.domain.events import (
    ChunkReceived,
    ConversationDeleted,
    ConversationEvent,
    MessageUpdated,
    OwnerEvent,
)
from converse_mongo.domain.owners import OwnerKey
from converse_mongo.domain.summaries import ChangeMarkers, ConversationSummary
from converse_mongo.watching.hub import Hub
from converse_mongo.watching.owner_topic import News, OwnerTopic
from converse_mongo.watching.watcher import Watcher, retry_reads
from converse_mongo.watching.window import Window

__all__ = ["OwnerWatcher"]

logger = logging.getLogger("converse_mongo")

NEWS_PER_READ = 64
NEWS_PAUSE_SECONDS = 0.02
"""How long messages come first after news were read, so that no flood of news holds them up."""
MAX_AT_REST = 8
"""How many conversations stay watched in which nothing streams, since more may be said in them."""
SAVES_KNOWN = 256


@dataclass(slots=True)
class _Seen:
    """What was seen of a conversation: the messages before a position, and so many saves."""

    end: int
    revision: int

    def is_all_of(self, marks: ChangeMarkers) -> bool:
        """Whether a conversation with these marks has nothing new."""
        return self.end >= marks.next_position and self.revision >= marks.revision


class OwnerWatcher:
    """An asynchronous iterator over what happens in all conversations of an owner, from now on.

    Use it in a plain ``async for``, or as ``async with ... as events``, which attaches at once:
    what you list behind that and what it yields then leave no gap between them. It has no end and
    no cursor of its own: who comes back lists again. Each event of a message carries the cursor of
    its conversation, from which ``watch_conversation`` goes on.

    While it is attached nothing is lost: of each message that is added it yields all, in order; of
    those that were streaming already, the chunks from then on and the end. Messages of different
    conversations mingle. It holds no queue, and may be as slow as it likes: it watches those
    conversations in which something happens, and reads what it missed. Saves are news for who
    listens: several may come as one event, and that may come before messages that were added first.

    Iterating raises:
        ConverseClosedError: The facade was closed.
        WatchError: The hub crashed.
        PyMongoError: MongoDB refused a read. Lost connections are waited out.
    """

    def __init__(self, hub: Hub, owner: OwnerKey, *, chunks: bool) -> None:
        self._hub = hub
        self._owner = owner
        self._chunks = chunks
        self._topic: OwnerTopic | None = None
        self._serial = 0
        self._saves = 0
        self._seen: dict[ObjectId, _Seen] | None = None
        self._backlog: dict[ObjectId, News] = {}
        self._read_again_at = 0.0
        self._watchers: dict[ObjectId, Watcher[ConversationEvent]] = {}
        self._streaming: dict[ObjectId, Mapping[int, int]] = {}
        """Of the watched conversations in which something streams, the open part of the cursor."""
        self._ready: deque[OwnerEvent] = deque()
        self._revisions: dict[ObjectId, int] = {}
        self._iterating = False
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OwnerEvent:
        if self._iterating:
            raise RuntimeError("This watcher is being iterated already: make one for each task.")
        if self._closed:
            raise StopAsyncIteration
        self._iterating = True
        try:
            topic = self._topic or await self._enter()
            while not self._closed:
                if topic.failure is not None:
                    raise topic.failure
                event = await self._next(topic)
                if event is not None:
                    return event
            raise StopAsyncIteration
        except BaseException:
            # The exception's traceback may live long and would keep the topics alive.
            self._leave()
            raise
        finally:
            self._iterating = False

    async def __aenter__(self) -> Self:
        """Attaches; raises as iterating does."""
        if self._topic is None:
            try:
                await self._enter()
            except BaseException:
                self._leave()
                raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the watching; iterating further ends at once."""
        self._closed = True
        if self._iterating and self._topic is not None:
            self._topic.window.wake()  # another task waits in it, and is to see that it ended
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        for watcher in self._watchers.values():
            watcher.detach()
        topic, self._topic = self._topic, None
        if topic is not None:
            self._hub.leave(topic)

    async def _enter(self) -> OwnerTopic:
        topic = self._topic = self._hub.join_owner(self._owner)
        await self._look(topic)
        self._saves = topic.window.head
        return topic

    async def _look(self, topic: OwnerTopic) -> None:
        """Begins with the conversations as they are, or finds those that are not as they were."""
        serial, marks = await retry_reads(topic, topic.attach)
        if topic.failure is not None:
            raise topic.failure
        if self._seen is None:
            streaming = await retry_reads(topic, lambda: topic.reader.streaming(list(marks)))
            self._seen = {
                key: _Seen(each.next_position, each.revision) for key, each in marks.items()
            }
            for conversation_id, messages in streaming.items():
                self._watch(conversation_id, messages)
        else:
            unread = News(topic.serial + 1, said=False)  # later than whatever was read of them
            for key in dict.fromkeys([*self._known, *marks]):
                seen, now = self._known.get(key), marks.get(key)
                if not (seen and now and seen.is_all_of(now)):
                    self._backlog.setdefault(key, unread)
        self._serial = serial

    @property
    def _known(self) -> dict[ObjectId, _Seen]:
        return self._seen if self._seen is not None else {}

    async def _next(self, topic: OwnerTopic) -> OwnerEvent | None:
        """The next event, or ``None`` when it is to be asked for again."""
        if self._ready:
            return self._ready.popleft()
        news = topic.stale or bool(self._backlog) or self._serial != topic.serial
        if news and monotonic() >= self._read_again_at:
            await self._read_news(topic)
            self._read_again_at = monotonic() + NEWS_PAUSE_SECONDS
            return None
        windows: list[Window[ConversationEvent]] = []
        for conversation_id, watcher in list(self._watchers.items()):
            window = watcher.window
            if window is None:
                event = await self._poll(conversation_id, watcher)
                if event is not None and self._tells(event):
                    return event
                return None
            windows.append(window)
        if news:
            self._read_again_at = 0.0
            return None
        if self._saves != topic.window.head:
            return self._next_save(topic)
        self._rest()
        await _wait([topic.window, *windows])
        return None

    def _next_save(self, topic: OwnerTopic) -> OwnerEvent | None:
        index = max(self._saves, topic.window.first)
        self._saves = index + 1
        save = topic.window.get(index)
        # One that went to another owner meanwhile is no business of this one any more.
        if save is None or save.conversation_id not in self._known or not self._tells(save):
            return None
        conversation_id = save.conversation_id
        end, opened = self._known[conversation_id].end, self._streaming.get(conversation_id, {})
        return replace(save, cursor=str(ConversationCursor(conversation_id, end, opened)))

    def _tells(self, event: OwnerEvent) -> bool:
        """Whether an event is to be yielded: a save is heard of in two ways."""
        if isinstance(event, ChunkReceived):
            return self._chunks
        if not isinstance(event, MessageUpdated):
            return True
        known = self._revisions.pop(event.message_id, 0)  # put back as the last to be forgotten
        self._revisions[event.message_id] = max(known, event.revision)
        if len(self._revisions) > SAVES_KNOWN:
            del self._revisions[next(iter(self._revisions))]
        return event.revision > known

    # The conversations themselves

    async def _read_news(self, topic: OwnerTopic) -> None:
        if topic.stale:
            await retry_reads(topic, topic.catch_up)
        if self._serial < topic.forgotten:
            await self._look(topic)
        if not self._backlog:
            self._backlog = topic.news_after(self._serial, NEWS_PER_READ)
            told = [news.serial for news in self._backlog.values()]
            self._serial = told[-1] if told else topic.serial
        # Taken out once it was read: who is cancelled meanwhile reads it again.
        some = dict(islice(self._backlog.items(), NEWS_PER_READ))
        found = await retry_reads(topic, lambda: topic.look(some))
        older = [key for key in found.keys() - self._known.keys() if _is_older(topic, found[key])]
        streaming = await retry_reads(topic, lambda: topic.reader.streaming(older))
        for conversation_id, news in some.items():
            del self._backlog[conversation_id]
            there = found.get(conversation_id)
            if there is None or there.owner != self._owner:
                self._end(conversation_id)
            elif conversation_id in older:
                # One of many that were there before, and are not known one by one.
                self._known[conversation_id] = _Seen(there.next_position, there.revision)
                self._ready.append(there.updated())
                self._watch(conversation_id, streaming.get(conversation_id, {}))
            else:
                self._take(news, there)

    def _take(self, news: News, found: ConversationSummary) -> None:
        conversation_id = found.conversation_id
        seen = self._known.get(conversation_id)
        if seen is None:
            seen = self._known[conversation_id] = _Seen(0, found.revision)
            self._ready.append(found.created())
        elif found.revision > seen.revision:
            seen.revision = found.revision
            self._ready.append(found.updated())
        behind = found.next_position > seen.end
        if conversation_id not in self._watchers:
            if news.said or behind:
                self._watch(conversation_id, {})
        elif behind:
            # It is not to be let go of before it has heard of that message.
            self._hub.expect(conversation_id, found.next_position)

    def _end(self, conversation_id: ObjectId) -> None:
        """Takes leave of a conversation that is not there any more, or not this owner's."""
        self._unwatch(conversation_id)
        if self._known.pop(conversation_id, None) is not None:
            self._ready.append(ConversationDeleted(conversation_id=conversation_id))

    # What is said in them

    def _watch(self, conversation_id: ObjectId, streaming: Mapping[int, int]) -> None:
        end = self._known[conversation_id].end
        opened = {position: sequence for position, sequence in streaming.items() if position < end}
        if opened:
            self._streaming[conversation_id] = opened
        self._watchers[conversation_id] = Watcher(
            self._hub,
            Hub.join_conversation,
            conversation_id,
            str(ConversationCursor(conversation_id, end, opened)),
        )

    def _unwatch(self, conversation_id: ObjectId) -> None:
        self._streaming.pop(conversation_id, None)
        watcher = self._watchers.pop(conversation_id, None)
        if watcher is not None:
            watcher.detach()

    async def _poll(
        self, conversation_id: ObjectId, watcher: Watcher[ConversationEvent]
    ) -> ConversationEvent | None:
        try:
            event = await watcher.poll()
        except NotFoundError:
            self._end(conversation_id)
            return None
        except (WatchError, KeyError, TypeError, ValueError, AttributeError):
            if self._topic is None or self._topic.failure is not None:
                raise
            # What is wrong with one conversation is not to be in the way of the others.
            logger.exception("Conversation %s cannot be watched", conversation_id)
            self._unwatch(conversation_id)
            return None
        if event is not None:
            self._note(conversation_id, event)
        return event

    def _note(self, conversation_id: ObjectId, event: ConversationEvent) -> None:
        """Notes how far a conversation was seen, and puts it behind the others."""
        cursor = ConversationCursor.parse(event.cursor, conversation_id)
        self._known[conversation_id].end = cursor.end
        if cursor.open:
            self._streaming[conversation_id] = cursor.open
        else:
            self._streaming.pop(conversation_id, None)
        self._watchers[conversation_id] = self._watchers.pop(conversation_id)
        self._rest()

    def _rest(self) -> None:
        """Lets go of conversations in which nothing streams, but for the last few."""
        if len(self._watchers) <= len(self._streaming) + MAX_AT_REST:
            return
        at_rest = [
            key
            for key, watcher in self._watchers.items()
            if key not in self._streaming and watcher.window is not None
        ]
        for conversation_id in at_rest[:-MAX_AT_REST]:
            self._unwatch(conversation_id)


def _is_older(topic: OwnerTopic, found: ConversationSummary) -> bool:
    return topic.cut is not None and found.created_at <= topic.cut


async def _wait(windows: "list[Window[MessageUpdated] | Window[ConversationEvent]]") -> None:
    waiters = [window.waiter() for window in windows]
    try:
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for window, waiter in zip(windows, waiters, strict=True):
            window.forget(waiter)
