"""The presenter: turns documents and events into what browsers may see of them."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from converse_mongo.documents.views import Presentation, as_json
from converse_mongo.domain.events import Event
from converse_mongo.web.errors import InternalError
from converse_mongo.web.models import EventView

logger = logging.getLogger("converse_mongo")

_EVENTS: TypeAdapter[EventView] = TypeAdapter(EventView)


@dataclass(frozen=True)
class Presenter(Presentation):
    """The context in which views are made.

    Attributes:
        show_errors: Whether stored errors of failed messages and reasons of stops are for users.
        show_metadata: Picks what users may see of metadata; ``None`` for all that is not about
            errors, or all.
        in_stream: Whether a stream has begun, which goes on without metadata that cannot be shown.
    """

    show_errors: bool
    show_metadata: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None
    in_stream: bool = False

    def event(self, event: Event) -> EventView:
        """An event, without its cursor and without the owner, whose name is the application's."""
        return _EVENTS.validate_python(event, context=self)

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

    def error(self, error: str) -> str:
        """The error that users may see."""
        return error if self.show_errors else super().error(error)

    def reason(self, reason: str | None) -> str | None:
        """The reason of a stop that users may see."""
        return reason if self.show_errors else None
