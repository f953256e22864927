"""Where a watcher of a conversation stands: small enough to be an event id."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from bson import ObjectId

from converse_mongo.domain.errors import InvalidCursorError

__all__ = ["NOW", "ConversationCursor"]

NOW = "now"
"""As ``after`` of ``watch_conversation``: start behind all that is stored."""

_COUNT = r"(?:0|[1-9][0-9]{0,17})"
_FORM = re.compile(rf"([0-9a-f]{{24}})\.({_COUNT})((?:\.{_COUNT}-{_COUNT})*)")


@dataclass(frozen=True, slots=True)
class ConversationCursor:
    """All that was seen of a conversation.

    Since messages become visible in the order of their positions (see ``store.Store.add_message``),
    a single number says which were seen. Those among them that have not ended are listed; so a
    cursor grows with the number of messages that stream at one time, not with the conversation.

    Attributes:
        conversation_id: The conversation.
        end: Messages at positions before this were seen.
        open: Of these, position to next sequence of the messages whose end was not seen.
    """

    conversation_id: ObjectId
    end: int = 0
    open: Mapping[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [str(self.conversation_id), str(self.end)]
        parts += [f"{position}-{sequence}" for position, sequence in sorted(self.open.items())]
        return ".".join(parts)

    @classmethod
    def parse(cls, text: object, conversation_id: ObjectId) -> "ConversationCursor":
        """The cursor that ``text`` is the text of.

        Raises:
            InvalidCursorError: It is none, or one of another conversation.
        """
        found = _FORM.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise InvalidCursorError(
                f"after={text!r} is no cursor of a conversation: pass the cursor of an event of "
                "watch_conversation, None to start at the beginning, or 'now' for what comes next."
            )
        if found[1] != str(conversation_id):
            raise InvalidCursorError(
                f"after={text!r} is a cursor of conversation {found[1]}, not of {conversation_id}."
            )
        pairs = [part.split("-") for part in found[3].split(".") if part]
        end, opened = int(found[2]), {int(p): int(s) for p, s in pairs}
        positions = list(opened)
        if (
            len(pairs) > len(opened)
            or positions != sorted(positions)
            or max(opened, default=-1) >= end
        ):
            raise InvalidCursorError(f"after={text!r} contradicts itself: it was not made here.")
        return cls(conversation_id, end, opened)

    def covers(self, other: "ConversationCursor") -> bool:
        """Whether nothing was seen at ``other`` that was not seen here."""
        if other.end > self.end:
            return False
        return all(
            other.open.get(position, sequence + 1) <= sequence
            for position, sequence in self.open.items()
            if position < other.end
        )

    def created(self, streaming: bool) -> "ConversationCursor":
        """The cursor behind the creation of the next message."""
        opened = {**self.open, self.end: 0} if streaming else self.open
        return ConversationCursor(self.conversation_id, self.end + 1, opened)

    def appended(self, position: int, next_sequence: int) -> "ConversationCursor":
        """The cursor behind a chunk of an open message."""
        return ConversationCursor(
            self.conversation_id, self.end, {**self.open, position: next_sequence}
        )

    def ended(self, position: int) -> "ConversationCursor":
        """The cursor behind the end of an open message."""
        still_open = {key: value for key, value in self.open.items() if key != position}
        return ConversationCursor(self.conversation_id, self.end, still_open)
