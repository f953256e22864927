"""The settings of the chat, and the environment variables for them."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from converse_mongo import ConfigurationError
from converse_mongo.tools.chat.hosts import Hosts

DATABASE = "converse_chat"
MODEL = "gpt-4o-mini"
LEASE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of the chat.

    Attributes:
        uri: The MongoDB replica set.
        database: The name of the database.
        api_key: The API key of the model; without one, a built-in text answers.
        base_url: The address of the model; ``None`` for OpenAI.
        model: The name of the model.
        timeout: Seconds to wait for the model.
        max_retries: The number of retries before the first token.
        canned_delay: The mean number of seconds between two tokens of the built-in text.
        lease: Seconds without a heartbeat after which the writer of an answer is presumed dead.
        lifetime: Seconds after which a stream to a browser ends; the browser then reconnects.
        hosts: The names under which it is served; see :class:`Hosts`. Empty for any.
        queue: The queue in which answers wait for workers; "" to write them in this process.
    """

    uri: str = field(repr=False)  # never in a log, as what has a key or a password in it
    database: str = DATABASE
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = field(default=None, repr=False)
    model: str = MODEL
    timeout: float = 60.0
    max_retries: int = 2
    canned_delay: float = 0.035
    lease: float = LEASE
    lifetime: float = 3600.0
    hosts: tuple[str, ...] = ()
    queue: str = ""

    @classmethod
    def from_environment(
        cls, uri: str, database: str | None = None, hosts: Iterable[str] = ()
    ) -> Self:
        """Reads the settings from the environment; arguments take precedence.

        Args:
            uri: The MongoDB replica set.
            database: The name of the database.
            hosts: The names under which it is served, beside those in CHAT_HOSTS.

        Raises:
            ConfigurationError: CHAT_LEASE is not a number above 0, or a name is invalid.
        """
        given = os.environ.get("CHAT_LEASE") or str(LEASE)
        try:
            lease = float(given)
        except ValueError:
            lease = math.nan
        if not (math.isfinite(lease) and lease > 0):
            raise ConfigurationError(
                f"CHAT_LEASE must be a number of seconds above 0, got {given!r}."
            )
        named = os.environ.get("CHAT_HOSTS", "").split(",")
        hosts = (*hosts, *filter(None, map(str.strip, named)))
        Hosts(hosts)  # they are valid
        return cls(
            uri=uri,
            database=database or os.environ.get("CONVERSE_DATABASE") or DATABASE,
            api_key=os.environ.get("OPENAI_API_KEY") or None,
            base_url=os.environ.get("OPENAI_BASE_URL") or None,
            model=os.environ.get("CHAT_MODEL") or MODEL,
            lease=lease,
            hosts=hosts,
            queue=os.environ.get("CHAT_QUEUE", ""),
        )
