"""Saves of the messages of a watched conversation: which of them are news. No MongoDB here."""

from bson import ObjectId

from converse_mongo.domain.types import MessageRole
from converse_mongo.driver.servers import Mark
from converse_mongo.store.reads import Saved

__all__ = ["SAVES_KNOWN", "SaveNews"]

SAVES_KNOWN = 256


class SaveNews:
    """The last saves of messages that a conversation's watchers were told of.

    Attributes:
        early: Saves of messages whose creation may not have been told yet.
    """

    def __init__(self) -> None:
        self.early: dict[ObjectId, tuple[MessageRole, int]] = {}
        self._revisions: dict[ObjectId, int] = {}
        self._oldest: Mark | None = None

    def begin(self, saves: list[Saved]) -> None:
        """Takes the last saves that are stored, the very last first: none of them is news."""
        self._revisions = {save.message_id: save.revision for save in reversed(saves)}
        # Where there are more, those before are old as well.
        self._oldest = saves[-1].mark if len(saves) == SAVES_KNOWN else None

    def is_old(self, save: Saved) -> bool:
        """Whether a save was made before all that are known."""
        return self._oldest is not None and save.mark < self._oldest

    def is_news(self, message_id: ObjectId, revision: int) -> bool:
        """Whether a save was not told yet."""
        return self._revisions.get(message_id, 0) < revision

    def note(self, message_id: ObjectId, revision: int) -> bool:
        """Notes a save that is about to be told; returns ``False`` if it is not news."""
        if not self.is_news(message_id, revision):
            return False
        self._revisions.pop(message_id, None)  # put back as the last to be forgotten
        self._revisions[message_id] = revision
        if len(self._revisions) > SAVES_KNOWN:
            del self._revisions[next(iter(self._revisions))]
        return True

    def take_early(self) -> dict[ObjectId, tuple[MessageRole, int]]:
        """The early saves, which are then due."""
        early, self.early = self.early, {}
        return early
