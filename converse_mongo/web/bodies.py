"""Bodies of requests: JSON objects of bounded size."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from converse_mongo.web.errors import MediaTypeError, RequestError, TooLargeError

__all__ = ["Limits", "read_object", "text_field"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a request may carry.

    Attributes:
        body: In all, in bytes.
        message: The text of a message, in bytes of UTF-8.
    """

    body: int
    message: int


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """The JSON object that a request carries; an empty body is an empty one.

    It has to say that it is JSON: anything else a form on another site can send, with the cookies
    of the user, and without the browser asking first.

    Raises:
        MediaTypeError: It is not sent as JSON.
        TooLargeError: It is larger than ``limit`` bytes; no more than that was read.
        RequestError: It is no JSON, or no object.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise TooLargeError(f"The body is larger than {limit} bytes.")
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise MediaTypeError
    try:
        found = json.loads(body or b"{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError("The body is no JSON.") from error
    if not isinstance(found, dict):
        raise RequestError("The body must be a JSON object.")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def text_field(
    body: Mapping[str, Any], name: str, limit: int, *, required: bool = False
) -> str | None:
    """A field of a body that is text, of at most ``limit`` bytes in UTF-8.

    Raises:
        RequestError: It is missing, empty or no text.
        TooLargeError: It is too large.
    """
    value = body.get(name)
    if value is None and not required:
        return None
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{name} must be text, and not empty.")
    if len(value.encode("utf-8", "surrogatepass")) > limit:
        raise TooLargeError(f"{name} is larger than {limit} bytes.")
    return value
