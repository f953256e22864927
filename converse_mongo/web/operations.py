"""Operations: endpoints with their paths and models, from which routes and OpenAPI are made."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
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
        media_type: The media type of a response that is a file; ``None`` for JSON or a stream.
        last_data: The data of the last event of a stream, if that is not JSON.
        patterns: The patterns of names in the path that are not ids.
        headers: The headers of the response that clients may read, and what they mean.
    """

    endpoint: Endpoint
    method: str
    path: str
    answer: Any
    accepts: type[BaseModel] | None = None
    status: int = 200
    streams: bool = False
    may_be_over: bool = False
    media_type: str | None = None
    last_data: str | None = None
    patterns: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name among the operations."""
        return self.endpoint.__name__

    @property
    def summary(self) -> tuple[str, str]:
        """A line that describes it, and what else is to be said, in Markdown."""
        first, _, rest = (inspect.getdoc(self.endpoint) or "").partition("\n\n")
        summary, _, more = " ".join(first.split()).partition(".")
        parts = [more.strip(), *(" ".join(each.split()) for each in rest.split("\n\n"))]
        return summary, "\n\n".join(each for each in parts if each).replace("``", "`")

    @property
    def errors(self) -> dict[int, str]:
        """The statuses of its errors, and what they mean."""
        found = {400: "Invalid", 404: "Not found", 500: "Failed", 503: "Unavailable: try again"}
        if self.method == "POST":
            found |= {408: "Not received in time", 409: "Not possible now"}
            found |= {413: "Too large", 415: "Not JSON", 501: "Answers are not available here"}
        if self.method == "POST" or self.streams:
            found[429] = "Too much is in progress: try again"
        return found


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
