"""Handlers: functions that the writing process calls with events, after the write."""

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

from converse_mongo.domain.events import Event

logger = logging.getLogger("converse_mongo")

E = TypeVar("E", bound=Event)
Handler: TypeAlias = Callable[[E], Awaitable[Any] | Any]


class Handlers:
    """The handlers by event class."""

    def __init__(self) -> None:
        self._handlers: dict[type[Event], list[Handler[Any]]] = {}

    def on(self, event_type: type[E], handler: Handler[E]) -> Callable[[], None]:
        """Calls ``handler`` with events of ``event_type``; returns a function that removes it."""
        handlers = self._handlers.setdefault(event_type, [])
        handlers.append(handler)

        def off() -> None:
            if handler in handlers:
                handlers.remove(handler)

        return off

    def wants(self, event_type: type[Event]) -> bool:
        """Returns whether ``event_type`` has a handler, to build no event in vain."""
        return any(
            handlers and issubclass(event_type, wanted)
            for wanted, handlers in self._handlers.items()
        )

    async def publish(self, event: Event) -> None:
        """Calls the handlers of ``event`` in the order they were added, one at a time.

        One that raises is logged; the others run, and the write that came before stands.
        """
        for wanted, handlers in list(self._handlers.items()):
            if not isinstance(event, wanted):
                continue
            for handler in list(handlers):
                try:
                    result = handler(event)
                    if inspect.isawaitable(result):
                        await result
                except Exception:
                    logger.exception("Handler %r of %s raised", handler, event.type)
