"""Work news: what the queued messages of a topic wait for. No MongoDB here.

They are no part of the log, and no cursor shows them. A watcher gets the latest news of each
message whenever it has nothing else to yield, so it may miss news that others followed at once, and
never the last one.
"""

from collections.abc import Collection, Mapping
from typing import Any

from bson import ObjectId

from converse_mongo.domain.events import WorkEvent, work_event
from converse_mongo.domain.types import MessageRole
from converse_mongo.domain.work import Work


class WorkNews:
    """The latest news of the queued messages of a topic.

    Attributes:
        version: Grows with all news.
    """

    def __init__(self) -> None:
        self.version = 0
        self._works: dict[ObjectId, dict[str, Any]] = {}
        self._told: dict[ObjectId, tuple[int, WorkEvent]] = {}

    def read(
        self,
        message_id: ObjectId,
        conversation_id: ObjectId,
        role: str,
        stored: Mapping[str, Any] | None,
    ) -> bool:
        """Takes the work of a message as it is stored; returns whether that is news.

        That it is written in the first attempt, as most are, is none.
        """
        work = Work.from_stored(stored)
        if work is None or work.state is None or role not in set(MessageRole):
            return False
        event = work_event(message_id, conversation_id, MessageRole(role), work)
        before = self._told.get(message_id)
        self._works[message_id] = dict(stored or {})
        if before is None and event.is_usual:
            return False
        if before is not None and before[1] == event:
            return False
        self.version += 1
        self._told[message_id] = self.version, event
        return True

    def change(
        self,
        message_id: ObjectId,
        conversation_id: ObjectId,
        role: str,
        fields: Mapping[str, Any],
    ) -> bool:
        """Takes fields of the work that have changed; returns whether that is news."""
        known = self._works.get(message_id)
        if known is None:
            return False
        return self.read(message_id, conversation_id, role, {**known, **fields})

    def is_behind(self, message_id: ObjectId, work: Work | None) -> bool:
        """Returns whether the stored work of a message is other than what is known."""
        known = Work.from_stored(self._works.get(message_id))
        if work is None or work.state is None:
            return False
        return known is None or (known.state, known.attempt) != (work.state, work.attempt)

    def keep(self, message_ids: Collection[ObjectId]) -> None:
        """Forgets all messages but some."""
        for message_id in self._works.keys() - set(message_ids):
            del self._works[message_id]
            self._told.pop(message_id, None)

    def since(self, version: int) -> list[WorkEvent]:
        """Returns the latest news of each message since a version, the oldest first."""
        return [event for at, event in sorted(self._told.values(), key=_at) if at > version]


def _at(told: tuple[int, WorkEvent]) -> int:
    return told[0]
