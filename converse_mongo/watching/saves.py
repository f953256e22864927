"""The saves that watchers of a conversation were told of. No MongoDB here."""

from bson import ObjectId

from converse_mongo.driver.servers import Mark
from converse_mongo.store.reads import Saved

SAVES_KNOWN = 256


class SaveNews:
    """Remembers the last saves of messages, so that each is told once.

    Attributes:
        early: Saves of messages that may still have to be read.
    """

    def __init__(self) -> None:
        self.early: dict[ObjectId, tuple[str | None, int]] = {}
        self._revisions: dict[ObjectId, int] = {}
        self._oldest: Mark | None = None

    def begin(self, saves: list[Saved]) -> None:
        """Notes the last stored saves, the latest first. None of them is news."""
        self._revisions = {save.message_id: save.revision for save in reversed(saves)}
        # If there are more, those before are old as well.
        self._oldest = saves[-1].mark if len(saves) == SAVES_KNOWN else None

    def is_old(self, save: Saved) -> bool:
        """Returns whether a save is older than all known ones."""
        return self._oldest is not None and save.mark < self._oldest

    def is_news(self, message_id: ObjectId, revision: int) -> bool:
        """Returns whether a save was not told yet."""
        return self._revisions.get(message_id, 0) < revision

    def note(self, message_id: ObjectId, revision: int) -> bool:
        """Notes a save, and returns whether it is news."""
        if not self.is_news(message_id, revision):
            return False
        self._revisions.pop(message_id, None)  # put it last
        self._revisions[message_id] = revision
        if len(self._revisions) > SAVES_KNOWN:
            del self._revisions[next(iter(self._revisions))]
        return True

    def take_early(self) -> dict[ObjectId, tuple[str | None, int]]:
        """Returns and clears the early saves."""
        early, self.early = self.early, {}
        return early
