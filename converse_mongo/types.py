"""Roles, statuses and aliases: the words every other module uses."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeAlias

from bson import ObjectId

__all__ = ["IdLike", "MessageRole", "MessageStatus", "Metadata", "WatchMode"]

Metadata: TypeAlias = Mapping[str, Any]
"""What BSON can hold, under string keys."""

IdLike: TypeAlias = str | ObjectId
"""An id as callers have it: an ``ObjectId`` or its 24 hexadecimal digits."""


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

    @property
    def is_final(self) -> bool:
        """Whether a message in this state never changes its text again."""
        return self is not MessageStatus.STREAMING


class WatchMode(StrEnum):
    """How watchers learn of news: pushed by the server, or asked for at an interval."""

    CHANGE_STREAM = "change_stream"
    POLLING = "polling"
