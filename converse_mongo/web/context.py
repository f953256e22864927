"""What all endpoints share: where the conversations are, who may see them, and how it is told."""

from dataclasses import dataclass

from converse_mongo.converse import Converse
from converse_mongo.web.access import Access
from converse_mongo.web.bodies import Limits
from converse_mongo.web.presenter import Presenter
from converse_mongo.web.streams import StreamOptions
from converse_mongo.web.turns import Turns

__all__ = ["NO_STORE", "WebContext"]

NO_STORE = {"cache-control": "no-store"}


@dataclass(frozen=True, slots=True)
class WebContext:
    """The parts of a web edge."""

    converse: Converse
    access: Access
    turns: Turns
    presenter: Presenter
    streams: StreamOptions
    limits: Limits
