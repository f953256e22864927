"""Cursors: the position of a watcher in a conversation, small enough for an event id."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from bson import ObjectId

from converse_mongo.domain.errors import InvalidCursorError

NOW = "now"
"""As ``after`` of ``watch_conversation``: start behind everything stored."""
ENDED = "end"
"""In the place of a sequence of a message: its end was received as well."""

_COUNT = r"(?:0|[1-9][0-9]{0,17})"
_FORM = re.compile(rf"([0-9a-f]{{24}})\.({_COUNT})((?:\.{_COUNT}-{_COUNT})*)")


@dataclass(frozen=True, slots=True)
class ConversationCursor:
    """The part of a conversation that was seen.

    Messages become visible in the order of their positions (see ``store.positions``), so a single
    number says which were seen. Those of them that have not ended are listed: a cursor grows with
    the number of messages that stream at one time, not with the conversation.

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
        """Parses a cursor.

        Raises:
            InvalidCursorError: It is not a cursor, or belongs to another conversation.
        """
        found = _FORM.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise InvalidCursorError(
                f"after={text!r} is not a valid cursor: pass the cursor of an event of "
                "watch_conversation, None to start at the beginning, or 'now' for new events only."
            )
        if found[1] != str(conversation_id):
            raise InvalidCursorError(
                f"after={text!r} belongs to conversation {found[1]}, not to {conversation_id}."
            )
        pairs = [part.split("-") for part in found[3].split(".") if part]
        end, opened = int(found[2]), {int(p): int(s) for p, s in pairs}
        positions = list(opened)
        if (
            len(pairs) > len(opened)
            or positions != sorted(positions)
            or max(opened, default=-1) >= end
        ):
            raise InvalidCursorError(f"after={text!r} is not valid: the cursor contradicts itself.")
        return cls(conversation_id, end, opened)

    def covers(self, other: "ConversationCursor") -> bool:
        """Returns whether everything seen at ``other`` was also seen here."""
        if other.end > self.end:
            return False
        return all(
            other.open.get(position, sequence + 1) <= sequence
            for position, sequence in self.open.items()
            if position < other.end
        )

    def created(self, streaming: bool) -> "ConversationCursor":
        """Returns the cursor behind the creation of the next message."""
        opened = {**self.open, self.end: 0} if streaming else self.open
        return ConversationCursor(self.conversation_id, self.end + 1, opened)

    def appended(self, position: int, next_sequence: int) -> "ConversationCursor":
        """Returns the cursor behind a chunk of an open message."""
        return ConversationCursor(
            self.conversation_id, self.end, {**self.open, position: next_sequence}
        )

    def ended(self, position: int) -> "ConversationCursor":
        """Returns the cursor behind the end of an open message."""
        still_open = {key: value for key, value in self.open.items() if key != position}
        return ConversationCursor(self.conversation_id, self.end, still_open)


def message_cursor(message_id: object, chunk_count: int, *, ended: bool) -> str | None:
    """The cursor behind the first ``chunk_count`` chunks of a message; ``None`` for its start."""
    if ended:
        return f"{message_id}.{ENDED}"
    return f"{message_id}.{chunk_count - 1}" if chunk_count else None
