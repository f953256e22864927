"""Operations: endpoints with their paths and models, from which routes and OpenAPI are made."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import BaseModel
from starlette.requests import Request

from converse_mongo.web.context import WebContext

Endpoint: TypeAlias = Callable[[WebContext, Request], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    """An endpoint and its place.

    Attributes:
        endpoint: Returns a response, or what ``answer`` makes one of. Its docstring describes it.
        answer: The model of the response; of a stream, that of the data of its events.
        accepts: The model of the query of a GET, or of the body of a POST.
        status: The status of a response that is not an error.
        streams: Whether the response is a stream of server-sent events.
        may_be_over: Whether there may be nothing left to stream.
    """

    endpoint: Endpoint
    method: str
    path: str
    answer: Any
    accepts: type[BaseModel] | None = None
    status: int = 200
    streams: bool = False
    may_be_over: bool = False


class Operations(list[Operation]):
    """A table of operations. Calling it makes a decorator that adds an endpoint to it."""

    def __call__(
        self, method: str, path: str, *more: Any, **options: Any
    ) -> Callable[[Endpoint], Endpoint]:
        """Decorates an endpoint; the arguments are the attributes of its :class:`Operation`."""

        def add(endpoint: Endpoint) -> Endpoint:
            self.append(Operation(endpoint, method, path, *more, **options))
            return endpoint

        return add
