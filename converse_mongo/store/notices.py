"""Writer notices: hints for the running writers of this process. No MongoDB here."""

from collections.abc import Callable
from typing import TypeAlias

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
