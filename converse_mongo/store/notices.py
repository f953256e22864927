"""What running writers of this process want to hear of their messages. No MongoDB here."""

from collections.abc import Callable
from typing import TypeAlias

from bson import ObjectId

__all__ = ["Listener", "WriterNotices"]

Listener: TypeAlias = Callable[[ObjectId | None], None]
"""Takes the holder of a new lease, or ``None`` for other news."""


class WriterNotices:
    """Leads news of messages to those who write to them.

    News are hints, as everywhere: whoever gets one looks at the message itself.
    """

    def __init__(self) -> None:
        self.messages: dict[ObjectId, ObjectId] = {}
        """Message id to conversation id of all messages that somebody listens for."""
        self.on_listen: Callable[[], None] | None = None
        """Called when somebody begins to listen."""
        self.on_leave: Callable[[], None] | None = None
        """Called when the last who listened for a message does not any more."""
        self.hints = 0
        """How many hints of a change stream there were."""
        self._listeners: dict[ObjectId, list[Listener]] = {}

    def listen(
        self, message_id: ObjectId, conversation_id: ObjectId, listener: Listener
    ) -> Callable[[], None]:
        """Calls ``listener`` with news of a message, until the returned function is called."""
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

    def tell(self, message_id: ObjectId, holder: ObjectId | None = None) -> None:
        """Says that there may be news of a message, such as the holder of a new lease."""
        for listener in list(self._listeners.get(message_id, ())):
            listener(holder)
