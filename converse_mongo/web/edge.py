"""What all endpoints share: where the conversations are, who may see them, and how it is told."""

from dataclasses import dataclass

from converse_mongo.converse import Converse
from converse_mongo.web.access import Access
from converse_mongo.web.answers import Answers
from converse_mongo.web.bodies import Limits
from converse_mongo.web.streams import StreamOptions
from converse_mongo.web.visibility import Visibility
from converse_mongo.web.wire import Wire

__all__ = ["NO_STORE", "Edge"]

NO_STORE = {"cache-control": "no-store"}


@dataclass(frozen=True, slots=True)
class Edge:
    """The parts of a web edge."""

    converse: Converse
    access: Access
    visibility: Visibility
    answers: Answers
    wire: Wire
    streams: StreamOptions
    limits: Limits
