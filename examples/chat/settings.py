"""The settings of the chat, from the environment."""

import os
from dataclasses import dataclass, field
from typing import Self

__all__ = ["Settings"]

DATABASE = "converse_chat"
MODEL = "gpt-4o-mini"
LEASE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the chat has to know.

    Attributes:
        uri: The MongoDB replica set.
        database: The name of the database.
        api_key: The key for the model; without one a built-in text answers instead.
        base_url: Where the model is; ``None`` for OpenAI itself.
        model: The name of the model.
        timeout: Seconds to wait for the model to say something.
        max_retries: How often to ask again before the first token, if the model is not there.
        canned_delay: Seconds between two tokens of the built-in text, on average.
        lease: Seconds without a heartbeat after which the process that writes an answer is taken
            for dead.
        lifetime: Seconds after which a stream to a browser ends, which then connects again.
    """

    uri: str
    database: str = DATABASE
    api_key: str | None = field(default=None, repr=False)  # no log is to have it
    base_url: str | None = None
    model: str = MODEL
    timeout: float = 60.0
    max_retries: int = 2
    canned_delay: float = 0.035
    lease: float = LEASE
    lifetime: float = 3600.0

    @classmethod
    def from_environment(cls, uri: str | None = None, database: str | None = None) -> Self:
        """The settings in the environment, where no argument says otherwise.

        Raises:
            LookupError: Nothing says where MongoDB is.
            ValueError: CHAT_LEASE is no number.
        """
        found = uri or os.environ.get("CONVERSE_URI")
        if not found:
            raise LookupError("Which server? Pass a URI or set CONVERSE_URI.")
        return cls(
            uri=found,
            database=database or os.environ.get("CONVERSE_DATABASE") or DATABASE,
            api_key=os.environ.get("OPENAI_API_KEY") or None,
            base_url=os.environ.get("OPENAI_BASE_URL") or None,
            model=os.environ.get("CHAT_MODEL") or MODEL,
            lease=float(os.environ.get("CHAT_LEASE") or LEASE),
        )
