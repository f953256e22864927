"""The presenter: turns documents and events into what browsers may see of them."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

from pydantic import TypeAdapter

from converse_mongo.documents.messages import Message
from converse_mongo.documents.part_views import is_shown, shown_chunk
from converse_mongo.documents.presentation import Presentation, Shown, as_json
from converse_mongo.documents.views import MessageView
from converse_mongo.domain.chunks import PartChunk
from converse_mongo.domain.events import ChunkReceived, Event, MessageSuspended
from converse_mongo.domain.part_identity import PartIdentity
from converse_mongo.domain.work import PendingCall
from converse_mongo.web.errors import InternalError
from converse_mongo.web.models import EventView, MessageWithPartsCreated, PartChunkReceived

logger = logging.getLogger("converse_mongo")

_EVENTS: TypeAdapter[EventView] = TypeAdapter(EventView)

ShowParts: TypeAlias = Callable[[PartIdentity], bool | Collection[str]]
"""Picks what users may see of a part: all of it, nothing, or the fields of these names."""


@dataclass(frozen=True)
class Calls:
    """The identities of the tool calls that an event names, in order."""

    identities: Sequence[PartIdentity | None]


Lacking: TypeAlias = PartIdentity | Message | Calls | None
"""What an event lacks to be shown: the identity of its part, those of the calls that it names, or
its message, which has parts."""

CHOICES = 1024


class PartChoice:
    """What users may see of parts, by their identities. The application is asked once for each.

    Args:
        show_parts: Asks the application. A part is hidden if it raises.
    """

    def __init__(self, show_parts: ShowParts) -> None:
        self._show_parts = show_parts
        self._choices = lru_cache(CHOICES)(self._ask)

    def __call__(self, identity: PartIdentity) -> Shown:
        """Returns what users may see of a part."""
        return self._choices(identity) if identity.is_short else self._ask(identity)

    def _ask(self, identity: PartIdentity) -> Shown:
        try:
            found = self._show_parts(identity)
            if isinstance(found, bool):
                return found
            if isinstance(found, str | bytes | Mapping) or not isinstance(found, Collection):
                raise TypeError(f"it returned an object of the type {type(found).__name__}")
            return frozenset(found)
        except Exception:
            logger.exception("show_parts failed for a part of the kind %.100r", identity.kind)
            return False


@dataclass(frozen=True)
class Presenter(Presentation):
    """The context in which views are made.

    Attributes:
        show_errors: Whether stored errors of failed messages and reasons of stops are for users.
        show_metadata: Picks what users may see of metadata; ``None`` for all that is not about
            errors, or all.
        show_parts: Picks what users may see of parts; ``None`` for all.
        in_stream: Whether a stream has begun, which goes on without metadata that cannot be shown.
    """

    show_errors: bool
    show_metadata: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None
    show_parts: "PartChoice | None" = None
    in_stream: bool = False

    def event(
        self, event: Event, lacking: Lacking = None
    ) -> EventView | PartChunkReceived | MessageWithPartsCreated:
        """An event, without its cursor and without the owner, whose name is the application's.

        Args:
            event: The event.
            lacking: The identity of the part of a chunk, without which it is hidden; the message
                that was added, if it has parts; or the identities of the calls that wait.
        """
        if isinstance(event, ChunkReceived) and isinstance(event.chunk, PartChunk):
            identity = lacking if isinstance(lacking, PartIdentity) else None
            return PartChunkReceived(
                type=event.type,
                conversation_id=event.conversation_id,
                message_id=event.message_id,
                role=event.role,
                chunk=shown_chunk(event.chunk, identity, self),
            )
        if isinstance(event, MessageSuspended) and self.show_parts is not None:
            known = lacking.identities if isinstance(lacking, Calls) else ()
            pairs = zip(event.pending, known, strict=False)
            pending = [call for call, identity in pairs if self._shows(identity)]
            event = replace(event, pending=pending)
        shown = _EVENTS.validate_python(event, context=self)
        if isinstance(lacking, Message):
            parts = MessageView.model_validate(lacking, context=self).parts
            return MessageWithPartsCreated.model_construct(**dict(shown), parts=parts or [])
        return shown

    def _shows(self, identity: PartIdentity | None) -> bool:
        return identity is not None and is_shown(identity, self)

    @property
    def streaming(self) -> "Presenter":
        """This one, for a stream that has begun."""
        return replace(self, in_stream=True)

    def metadata(self, metadata: Mapping[str, Any]) -> Any:
        """The metadata that users may see.

        Raises:
            InternalError: ``show_metadata`` failed, and no stream has begun.
        """
        try:
            if self.show_metadata is None:
                return as_json(metadata) if self.show_errors else super().metadata(metadata)
            shown = self.show_metadata(metadata)
            if not isinstance(shown, Mapping):
                raise TypeError(f"it returned an object of the type {type(shown).__name__}")
            return as_json(shown)
        except Exception as error:
            logger.exception("show_metadata failed")
            if self.in_stream:
                return {}
            raise InternalError from error

    def part(self, identity: PartIdentity) -> Shown:
        """What users may see of a part."""
        return True if self.show_parts is None else self.show_parts(identity)

    def shows_call(self, call: PendingCall, records: Sequence[Mapping[str, Any]] | None) -> bool:
        """Whether users may see that a tool call waits: if they may see the call."""
        if self.show_parts is None:
            return True
        return any(record["part"] == call.part for record in records or ())

    def error(self, error: str) -> str:
        """The error that users may see."""
        return error if self.show_errors else super().error(error)

    def reason(self, reason: str | None) -> str | None:
        """The reason of a stop that users may see."""
        return reason if self.show_errors else None
