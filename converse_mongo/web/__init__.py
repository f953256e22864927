"""The web edge: live, resumable streams over HTTP, for Starlette and FastAPI.

It needs the extra ``web``; no other part of the library imports it.
"""

from converse_mongo.documents.responding import Respond
from converse_mongo.web.access import Authorize, OwnerOf
from converse_mongo.web.errors import BusyError, RequestError
from converse_mongo.web.generations import Generations
from converse_mongo.web.limits import Limits
from converse_mongo.web.open_streams import Streams
from converse_mongo.web.openapi import openapi_paths
from converse_mongo.web.prompts import prompt_messages, without_replaced
from converse_mongo.web.routes import routes

__all__ = [
    "Authorize",
    "BusyError",
    "Generations",
    "Limits",
    "OwnerOf",
    "RequestError",
    "Respond",
    "Streams",
    "openapi_paths",
    "prompt_messages",
    "routes",
    "without_replaced",
]
