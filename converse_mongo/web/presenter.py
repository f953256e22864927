"""The presenter: turns documents and events into what browsers may see of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from converse_mongo.domain.events import Event
from converse_mongo.domain.jsonable import jsonable
from converse_mongo.web.models import EventView

PRIVATE_ERROR = "The answer could not be completed."
SAFE_ERRORS = frozenset({"interrupted"})
"""Errors that the library itself stores, for an orphan."""

_EVENTS: TypeAdapter[EventView] = TypeAdapter(EventView)


@dataclass(frozen=True, slots=True)
class Presenter:
    """The context in which views are made.

    Attributes:
        show_errors: Whether the stored error of a failed message is for users.
        show_metadata: Picks what users may see of metadata.
    """

    show_errors: bool
    show_metadata: Callable[[Mapping[str, Any]], Mapping[str, Any]]

    def event(self, event: Event) -> EventView:
        """An event, without its cursor and without the owner, whose name is the application's."""
        return _EVENTS.validate_python(event, context=self)

    def metadata(self, metadata: Mapping[str, Any]) -> Any:
        """The metadata that users may see."""
        return jsonable(self.show_metadata(metadata))

    def error(self, error: str) -> str:
        """The error that users may see."""
        return error if self.show_errors or error in SAFE_ERRORS else PRIVATE_ERROR
