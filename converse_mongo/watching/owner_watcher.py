"""Watchers of an owner: the news of a list of conversations, as it happens."""

from collections import deque
from itertools import islice
from types import TracebackType
from typing import Self

from bson import ObjectId

from converse_mongo.domain.events import OwnerEvent
from converse_mongo.domain.owners import OwnerKey
from converse_mongo.watching.hub import Hub
from converse_mongo.watching.owner_topic import (
    CONVERSATIONS_PER_READ,
    Known,
    OwnerTopic,
    State,
    is_behind,
    learn,
)
from converse_mongo.watching.watcher import retry_reads

__all__ = ["OwnerWatcher"]


class OwnerWatcher:
    """An asynchronous iterator over the news of all conversations of an owner, from now on.

    It yields conversations that are started, saved or gone, and messages that are added or end:
    what a live list shows, with what is being answered. Watch a conversation for its chunks.

    Use it in a plain ``async for``, or as ``async with ... as events``, which attaches at once:
    what you list after that and what it yields leave no gap between them. It has no end and no
    cursor: list again when you come back.

    While it is attached nothing is lost and nothing comes twice; of each conversation the messages
    come in order, each before its end. Saves of a conversation may come as one event. It holds no
    queue, and may be as slow as it likes: it knows what it told of each conversation, and reads
    what it missed.

    Iterating raises:
        ConverseClosedError: The facade was closed.
        WatchError: The hub crashed.
        PyMongoError: MongoDB refused a read. Lost connections are waited out.
    """

    def __init__(self, hub: Hub, owner: OwnerKey) -> None:
        self._hub = hub
        self._owner = owner
        self._topic: OwnerTopic | None = None
        self._began = False
        self._state = State()
        self._index = 0
        self._behind: dict[ObjectId, Known | None] = {}
        self._ready: deque[OwnerEvent] = deque()
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
                if self._ready or await self._go_on(topic, self._state):
                    return self._ready.popleft()
            raise StopAsyncIteration
        except BaseException:
            # The exception's traceback may live long and would keep the topic alive.
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
        topic, self._topic = self._topic, None
        if topic is not None:
            self._hub.leave(topic)

    async def _enter(self) -> OwnerTopic:
        topic = self._topic = self._hub.join_owner(self._owner)
        await retry_reads(topic, topic.attach)
        if topic.failure is not None:
            raise topic.failure
        if not self._began:
            self._began, self._state = True, topic.state.copy()
        self._join(topic, self._state)
        return topic

    def _join(self, topic: OwnerTopic, state: State) -> None:
        """Goes on at the end of the window, once it has read what that has told others."""
        self._index = topic.window.head
        goals = {key: topic.state.get(key) for key in {*state, *topic.state}}
        self._behind = {key: goal for key, goal in goals.items() if is_behind(state.get(key), goal)}

    async def _go_on(self, topic: OwnerTopic, state: State) -> bool:
        """Takes an event of the window, or reads, or waits; whether there is an event now."""
        window = topic.window
        if self._behind:
            goals = dict(islice(self._behind.items(), CONVERSATIONS_PER_READ))
            rest = await retry_reads(
                topic,
                lambda: topic.reach(state, goals, lambda event, _: self._ready.append(event)),
            )
            for key in goals.keys() - rest:
                self._behind.pop(key, None)
        elif self._index < window.first:
            self._join(topic, state)
        elif (told := window.get(self._index)) is not None:
            event, base = told
            known = state.get(event.conversation_id)
            if base is not None and known is not None and known.end < base.end:
                # The window began with it later than this watcher.
                self._behind[event.conversation_id] = base
            else:
                self._index += 1
                if learn(state, event, base):
                    self._ready.append(event)
        elif topic.stale or topic.dirty:
            await retry_reads(topic, topic.catch_up)
        else:
            waiter = window.waiter()
            try:
                await waiter
            finally:
                window.forget(waiter)
        return bool(self._ready)
