"""Notices: hints for the running writers and workers of this process. No MongoDB here."""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, Protocol, TypeAlias

from bson import ObjectId

Listener: TypeAlias = Callable[[ObjectId | None], None]
"""Called with the holder of a new lease, or ``None`` for other news."""


class WriterNotices:
    """Passes hints about messages to their writers.

    A hint carries no truth: the writer looks at the message itself.
    """

    def __init__(self) -> None:
        self.messages: dict[ObjectId, ObjectId] = {}
        """Message id to conversation id of all messages with a listener."""
        self.on_listen: Callable[[], None] | None = None
        """Called after a listener was added."""
        self.on_leave: Callable[[], None] | None = None
        """Called after the last listener of a message was removed."""
        self.hints = 0
        """The number of hints of a change stream."""
        self._listeners: dict[ObjectId, list[Listener]] = {}

    def listen(
        self, message_id: ObjectId, conversation_id: ObjectId, listener: Listener
    ) -> Callable[[], None]:
        """Calls ``listener`` with hints about a message, until the returned function is called."""
        self.messages[message_id] = conversation_id
        self._listeners.setdefault(message_id, []).append(listener)
        if self.on_listen is not None:
            self.on_listen()

        def stop() -> None:
            listeners = self._listeners.get(message_id, [])
            if listener in listeners:
                listeners.remove(listener)
            if not listeners:
                self._listeners.pop(message_id, None)
                self.messages.pop(message_id, None)
                if self.on_leave is not None:
                    self.on_leave()

        return stop

    def listeners(self, message_id: ObjectId) -> int:
        """Returns the number of listeners of a message."""
        return len(self._listeners.get(message_id, ()))

    def tell(self, message_id: ObjectId, holder: ObjectId | None = None) -> None:
        """Notifies the listeners of a message, with the holder of a new lease if there is one."""
        for listener in list(self._listeners.get(message_id, ())):
            listener(holder)

    def tell_conversation(self, conversation_id: ObjectId) -> None:
        """Notifies the listeners of all messages of a conversation."""
        for message_id, own in list(self.messages.items()):
            if own == conversation_id:
                self.tell(message_id)


class QueueListener(Protocol):
    """A worker that hears of messages."""

    def opened(
        self,
        queue: str,
        message_id: ObjectId,
        due: datetime | None,
        queued_at: datetime | None,
        stored: Mapping[str, Any] | None,
    ) -> None:
        """Hears that a message waits for a worker.

        Args:
            queue: The name of its queue.
            message_id: The message.
            due: When it can be claimed; ``None`` for at once.
            queued_at: When it was queued, if the hint has it, and it can be claimed at once.
            stored: Its header as it is stored, if the hint has it.
        """

    def gone(self, message_id: ObjectId, holder: ObjectId | None) -> None:
        """Hears that a message has a worker, or has ended.

        Args:
            message_id: The message.
            holder: The holder of its lease, if it has a worker.
        """

    def look(self) -> None:
        """Hears that there may be messages that no hint told of."""


class Openings:
    """Passes hints about messages that wait for a worker to the workers of their queues.

    A hint carries no truth: a worker claims the message, or does not get it.
    """

    def __init__(self) -> None:
        self.on_listen: Callable[[], None] | None = None
        """Called after a listener was added."""
        self.on_leave: Callable[[], None] | None = None
        """Called after a listener was removed."""
        self.polls_every: Callable[[], float | None] = lambda: None
        """Seconds between two looks of who hears no hints; ``None`` while there are hints."""
        self._listeners: list[tuple[frozenset[str], QueueListener]] = []

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def listen(self, queues: Collection[str], listener: QueueListener) -> Callable[[], None]:
        """Tells a listener of messages in some queues, until the returned function is called."""
        entry = frozenset(queues), listener
        self._listeners.append(entry)
        if self.on_listen is not None:
            self.on_listen()

        def stop() -> None:
            if entry in self._listeners:
                self._listeners.remove(entry)
                if self.on_leave is not None:
                    self.on_leave()

        return stop

    def tell(
        self,
        queue: str,
        message_id: ObjectId,
        due: datetime | None,
        queued_at: datetime | None = None,
        stored: Mapping[str, Any] | None = None,
    ) -> None:
        """Tells that a message waits for a worker; see :class:`QueueListener`."""
        for queues, listener in list(self._listeners):
            if queue in queues:
                listener.opened(queue, message_id, due, queued_at, stored)

    def tell_gone(self, message_id: ObjectId, holder: ObjectId | None) -> None:
        """Tells that a message has a worker, or has ended; see :class:`QueueListener`."""
        for _, listener in list(self._listeners):
            listener.gone(message_id, holder)

    def tell_all(self) -> None:
        """Tells that there may be messages that no hint told of."""
        for _, listener in list(self._listeners):
            listener.look()
