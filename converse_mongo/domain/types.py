"""Roles, statuses and aliases: the words every other module uses."""

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from bson import ObjectId

__all__ = [
    "Granularity",
    "IdLike",
    "MessageRole",
    "MessageStatus",
    "Metadata",
    "Retention",
    "WatchMode",
]

Metadata: TypeAlias = Mapping[str, Any]
"""What BSON can hold, under string keys."""

IdLike: TypeAlias = str | ObjectId
"""An id as callers have it: an ``ObjectId`` or its 24 hexadecimal digits."""

Retention: TypeAlias = Literal["keep", "compact"] | timedelta
"""What becomes of the chunks of an ended message: kept, or merged away, at once or later."""

Granularity: TypeAlias = Literal["flush", "token"]
"""What a writer makes a chunk of: all that it stores in one write, or each token."""


class MessageRole(StrEnum):
    """Who speaks in a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"


class MessageStatus(StrEnum):
    """The state of a message; all but ``STREAMING`` are final."""

    STREAMING = "streaming"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether a message in this state never changes its text again."""
        return self is not MessageStatus.STREAMING


class WatchMode(StrEnum):
    """How watchers learn of news: pushed by the server, or asked for at an interval."""

    CHANGE_STREAM = "change_stream"
    POLLING = "polling"
