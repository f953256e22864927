"""Prompting: which messages a model is told."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from converse_mongo.documents.views import replaced_id
from converse_mongo.domain.parts import FilePart, Part, ToolCallPart
from converse_mongo.domain.types import MessageRole, MessageStatus

PROMPT_ROLES = (MessageRole.SYSTEM, MessageRole.USER, MessageRole.ASSISTANT)


class Replacing(Protocol):
    """A message whose metadata may say which one it replaces."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata."""


def replaced_ids(messages: Iterable[Replacing]) -> set[str]:
    """Returns the ids of the messages that others among them replace, whatever became of those."""
    return {found for each in messages if (found := replaced_id(each.metadata)) is not None}


def is_told(role: MessageRole, status: MessageStatus, parts: Iterable[Part]) -> bool:
    """Returns whether a model is told a message.

    One that failed is told only if a tool ran in it: what the tool did is done.
    """
    if role not in PROMPT_ROLES:
        return False
    shown = [part for part in parts if part.parent is None and not part.redacted]
    if status is MessageStatus.FAILED:
        return any(isinstance(part, ToolCallPart) and has_run(part) for part in shown)
    return any(part.text.strip() or isinstance(part, FilePart | ToolCallPart) for part in shown)


def has_run(call: ToolCallPart) -> bool:
    """Returns whether a tool may have had an effect."""
    return call.started or call.state == "output-available"
