"""Types: the roles, statuses and aliases that every other module uses."""

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from bson import ObjectId

Metadata: TypeAlias = Mapping[str, Any]
"""Values that BSON can hold, under string keys."""

IdLike: TypeAlias = str | ObjectId
"""An id: an ``ObjectId`` or its 24 hexadecimal digits."""

Retention: TypeAlias = Literal["keep", "compact"] | timedelta
"""The fate of the chunks of an ended message: kept, or merged, at once or later."""

DEFAULT_RETENTION: Retention = timedelta(days=1)
"""Viewers that come back within hours read few chunks; the years after that take little space."""

Granularity: TypeAlias = Literal["flush", "token"]
"""A writer makes a chunk of all that it stores in one write, or of each token."""


class MessageRole(StrEnum):
    """The speaker of a message."""

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
        """True if a message in this state never changes its text again."""
        return self is not MessageStatus.STREAMING


class WatchMode(StrEnum):
    """The source of news for watchers: pushed by the server, or polled at an interval."""

    CHANGE_STREAM = "change_stream"
    POLLING = "polling"
