"""The watcher of an owner, as applications iterate over it."""

from typing import Self

from converse_mongo.domain.events import MessageSuspended, OwnerEvent
from converse_mongo.domain.owners import OwnerKey
from converse_mongo.watching.hub import Hub
from converse_mongo.watching.owner_feed import OwnerFeed
from converse_mongo.watching.watcher import retry_reads


class OwnerWatcher:
    """An asynchronous iterator over the events of all conversations of an owner, from now on.

    It yields conversations that are started, saved or deleted, messages that are added, and their
    ends: the contents of a live list, and the answers that are being streamed. For chunks, watch a
    conversation. Of the work of a queued message it yields a :class:`MessageSuspended` when people
    have to answer tool calls, or others than before, and when it goes on a :class:`MessageQueued`
    or :class:`MessageStarted`.

    Use it in a plain ``async for``, or as ``async with ... as events``, which attaches at once: no
    event is missed between that and a list that you read afterwards. It has no end and no cursor:
    read the list again when you come back.

    While it is attached no event is lost or repeated. The messages of a conversation come in order,
    each before its end. Several saves may come as one event, and of a conversation that is deleted
    before it was read only the deletion comes. The watcher has no queue and may be slow: it knows
    what it reported of each conversation, and reads the difference.

    Iterating raises:
        ConverseClosedError: The facade was closed.
        WatchError: The hub crashed.
        PyMongoError: MongoDB refused a read. After lost connections it reads again.
    """

    def __init__(self, hub: Hub, owner: OwnerKey) -> None:
        self._hub = hub
        self._feed = OwnerFeed(owner, hub.owner_routes)
        self._attached = self._iterating = self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OwnerEvent:
        if self._iterating:
            raise RuntimeError("This watcher is being iterated already: make one for each task.")
        if self._closed:
            raise StopAsyncIteration
        self._iterating = True
        feed = self._feed
        try:
            await self._enter()
            while not self._closed:
                if feed.failure is not None:
                    raise feed.failure
                if feed.events:
                    return feed.events.popleft()
                if feed.dirty:
                    await retry_reads(feed, feed.catch_up)
                else:
                    feed.wake.clear()
                    await feed.wake.wait()
            raise StopAsyncIteration
        except BaseException:
            self._leave()
            raise
        finally:
            self._iterating = False

    async def __aenter__(self) -> Self:
        """Attaches; raises as iterating does."""
        try:
            await self._enter()
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def waiting(self) -> list[MessageSuspended]:
        """The answers that wait for people, in no order.

        Once it is attached, they are those from before the first event. Later, they are those
        behind the last event, or behind some of the events that follow.
        """
        return self._feed.waiting

    async def aclose(self) -> None:
        """Ends the watching; iterating further ends at once."""
        self._closed = True
        self._leave()

    def __del__(self) -> None:
        self._leave()

    async def _enter(self) -> None:
        if self._attached:
            return
        self._attached = True
        self._hub.join_owner(self._feed)
        if not self._feed.ready:
            await retry_reads(self._feed, self._feed.catch_up)
        if self._feed.failure is not None:
            raise self._feed.failure

    def _leave(self) -> None:
        if self._attached:
            self._attached = False
            # It reads what happens meanwhile when it comes back. A task that waits in it wakes.
            self._feed.mark_stale()
            self._hub.leave(self._feed)
