"""Limits: how much one client, one user and one request may take."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TypeAlias

from starlette.requests import HTTPConnection

from converse_mongo.documents.conversations import Conversation
from converse_mongo.domain.errors import ConfigurationError, InvalidInputError
from converse_mongo.domain.validation import check_seconds
from converse_mongo.web.errors import LimitError

MIB = 1024 * 1024

KeyOf: TypeAlias = Callable[[HTTPConnection, Conversation | None], Hashable]
"""Names who takes something, such as a tenant; ``None`` for nobody, whom no limit applies to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of what clients may take. Counts are of one process.

    Attributes:
        answers_per_conversation: The most answers of a conversation that are written at once;
            ``None`` for any number.
        answers_per_key: The most answers of a key that are written at once; ``None`` for any
            number.
        streams_per_key: The most streams and sockets of a key that are open at once; ``None`` for
            any number.
        key: Names who takes something, from a request and its conversation, which is ``None`` for
            the stream of an owner. By default the owner of the conversation, and the one whose
            stream it is. ``None`` is not limited.
        body_seconds: Seconds in which a body must be received.
        request_seconds: Seconds in which a request is answered, and a stream begins. A request that
            takes longer gets the status 503.
        chat_bytes: The largest body of a POST of the AI SDK, which sends the whole history.
        pending_bytes: The most bytes that are kept of such bodies at once, which are those of their
            last messages; more requests get the status 503.
        file_bytes: The largest file in a message, in bytes, if the message has the file itself, and
            not only its address.
        page_bytes: The size at which a page of history ends, in bytes of text, parts and metadata.
            It has at least one message.

    Raises:
        ConfigurationError: One is invalid.
    """

    answers_per_conversation: int | None = 1
    answers_per_key: int | None = 16
    streams_per_key: int | None = 64
    key: KeyOf | None = None
    body_seconds: float = 20.0
    request_seconds: float = 15.0
    chat_bytes: int = 32 * MIB
    pending_bytes: int = 128 * MIB
    page_bytes: int = 4 * MIB
    file_bytes: int = MIB

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "key":
                if value is not None and not callable(value):
                    raise ConfigurationError(f"key={value!r}: pass a function or None.")
            elif each.name.endswith("_seconds"):
                try:
                    check_seconds(value, each.name)
                except InvalidInputError as error:
                    raise ConfigurationError(str(error)) from error
            elif value is None and "_per_" in each.name:
                pass
            elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{each.name}={value!r}: pass an integer, at least 1.")


class Slots:
    """Counts what each key holds.

    Args:
        limit: The most that one key may hold; ``None`` for any number.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._held: Counter[Hashable] = Counter()

    def is_full(self, key: Hashable) -> bool:
        """Returns whether a key holds the most it may."""
        return key is not None and self._limit is not None and self._held[key] >= self._limit

    def check(self, key: Hashable) -> None:
        """Checks that a key may hold one more.

        Raises:
            LimitError: It holds the most it may.
        """
        if self.is_full(key):
            raise LimitError

    @contextmanager
    def hold(self, key: Hashable) -> Iterator[None]:
        """Holds one more; ``None`` holds nothing.

        Raises:
            LimitError: The key holds the most it may.
        """
        self.check(key)
        if key is None:
            yield
            return
        self._held[key] += 1
        try:
            yield
        finally:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]
