"""Refusals: requests that are not served, in the form that the routes of the library have."""

from collections.abc import Mapping

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

CODES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed"}
INVALID = "The request is invalid."
SENTENCES = {404: "Not found.", 405: "The request is not possible here."}


class Refusal(HTTPException):
    """A request is not served.

    FastAPI passes this class on unchanged, also where it reads a body.

    Args:
        status: The HTTP status.
        code: A code for programs.
        message: A sentence for users.
        explained: What is wrong, for a developer.
    """

    def __init__(
        self, status: int, code: str, message: str = INVALID, *, explained: str | None = None
    ) -> None:
        super().__init__(status, message)
        self.code = code
        self.explained = explained


def refused(error: HTTPException) -> JSONResponse:
    """Returns the response for a refusal, or for one of FastAPI or Starlette."""
    status = error.status_code
    if isinstance(error, Refusal):
        return _response(status, error.code, error.detail, error.headers, error.explained)
    code = CODES.get(status, "refused")
    return _response(status, code, SENTENCES.get(status, INVALID), error.headers)


async def on_refusal(_: Request, error: Exception) -> JSONResponse:
    """Handles ``HTTPException``."""
    assert isinstance(error, HTTPException)  # noqa: S101
    return refused(error)


async def on_invalid_request(_: Request, error: Exception) -> JSONResponse:
    """Handles invalid bodies. What was sent is not repeated: it may be large, or no valid text."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _response(422, "invalid_request", INVALID, detail="The body is not valid JSON.")
    name = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return _response(422, "invalid_request", INVALID, detail=f"{name}: {first['msg']}.")


async def on_invalid_input(_: Request, __: Exception) -> JSONResponse:
    """Handles texts that cannot be stored."""
    return _response(400, "invalid_request", "This text cannot be stored.")


async def on_unavailable(_: Request, __: Exception) -> JSONResponse:
    """Handles a MongoDB that does not answer."""
    message = "The service is not available. Try again."
    return _response(503, "unavailable", message, {"retry-after": "2"})


async def on_error(_: Request, __: Exception) -> JSONResponse:
    """Handles all other errors; the server logs them."""
    return _response(500, "internal", "Something went wrong. Try again later.")


def _response(
    status: int,
    code: str,
    message: str,
    headers: Mapping[str, str] | None = None,
    detail: str | None = None,
) -> JSONResponse:
    told = {"code": code, "message": message}
    if detail is not None:
        told["detail"] = detail
    return JSONResponse({"error": told}, status, {"cache-control": "no-store", **(headers or {})})
