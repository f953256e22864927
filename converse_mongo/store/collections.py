"""What all writes share: the collections, retries, and queues of the writers of one thing."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from bson import ObjectId

from converse_mongo.domain.errors import ConverseClosedError, InvalidMetadataError
from converse_mongo.domain.metadata import is_addressable
from converse_mongo.domain.types import MessageRole
from converse_mongo.driver import collections, retry
from converse_mongo.driver.collections import Collection
from converse_mongo.store.handlers import Handlers
from converse_mongo.store.reads import Reader

__all__ = ["PAGES", "Collections", "Options", "WriteQueue", "back_off"]

T = TypeVar("T")

PAGES = "message_chunk_pages"
"""The collection of the chunks that long messages do not embed any more."""

_BACKOFF_SECONDS = 0.002
_BACKOFF_MAX_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Options:
    """What a facade was told.

    Attributes:
        retry_timeout: For how many seconds a call is tried again.
        lease: Seconds without a heartbeat after which a writer is presumed dead.
        idle_timeout: The same for a message that streams without a writer; ``None`` for never.
        retention: Seconds after its end until the chunks of a message are merged away; ``None`` for
            never.
    """

    retry_timeout: float = 30.0
    lease: float = 30.0
    idle_timeout: float | None = 600.0
    retention: float | None = None


class WriteQueue:
    """Keeps the writers of one message, or one conversation, of this process in a queue.

    Without it they would race one another to the server, where one wins and all others try again.
    Writers in other processes still race; the filters of the updates decide there.

    Attributes:
        lock: Held by who writes.
        next_sequence: The sequence that the message is thought to expect.
        page_start: The sequence of the first chunk that it is thought to embed.
        live_bytes: What its embedded chunks are thought to take.
        role: Who speaks in the message.
        sealing: Whether somebody moves its chunks to a page right now.
        failed_seals: How often in a row that had no effect.
        next_seal: When to try it again, by the clock of this process.
    """

    __slots__ = (
        "__weakref__",
        "failed_seals",
        "live_bytes",
        "lock",
        "next_seal",
        "next_sequence",
        "page_start",
        "role",
        "sealing",
    )

    def __deepcopy__(self, memo: object) -> "WriteQueue":
        return self  # a copy of a message is written in the same queue

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.next_sequence = 0
        self.page_start = 0
        self.live_bytes = 0
        self.role: MessageRole | None = None
        self.sealing = False
        self.failed_seals = 0
        self.next_seal = 0.0

    def learn(self, next_sequence: int, page_start: int, live_bytes: int) -> None:
        """Takes over what a copy of the message knows, where that is more."""
        if next_sequence > self.next_sequence:
            self.next_sequence = next_sequence
            self.page_start, self.live_bytes = page_start, live_bytes


class Collections:
    """One set of collections, and calls to them that are tried again."""

    def __init__(
        self,
        messages: Collection,
        conversations: Collection,
        *,
        pages: Collection | None = None,
        committed: Collection | None = None,
        handlers: Handlers | None = None,
        options: Options | None = None,
    ) -> None:
        self.messages = messages
        self.committed = messages if committed is None else committed
        """The messages as watchers see them: what no failover takes back."""
        self.conversations = conversations
        self.pages = collections.sibling(messages, PAGES) if pages is None else pages
        self.reader = Reader(messages, conversations, self.pages)
        self.handlers = handlers or Handlers()
        self.options = options or Options()
        self.troubles = 0
        """How often a call has failed for a reason that may pass."""
        self.closing = False
        """Whether no writer may begin any more."""
        self.closed = False
        self.check_home: Callable[[], None] = _anywhere
        """Raises where calls are made in another event loop than the facade was opened in."""
        self.session: Any = None
        """The session that every call is to carry, in a transaction."""
        self.queues: WeakValueDictionary[Hashable, WriteQueue] = WeakValueDictionary()

    def queue(self, key: Hashable) -> WriteQueue:
        """The queue of a conversation, or of a message; it lives as long as somebody holds it.

        Args:
            key: The id of a conversation; of a message, its id and its ``log_id``, since what is
                known of one says nothing of another with the same id.
        """
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = WriteQueue()
        return queue

    def check_keys(self, *mappings: Mapping[str, Any]) -> None:
        """Refuses keys that are no part of a path where the database is one of mongomock's.

        Raises:
            InvalidMetadataError: There is such a key; nothing was written.
        """
        keys = [key for mapping in mappings for key in mapping if not is_addressable(key)]
        if keys and collections.is_mock(self.messages):
            raise InvalidMetadataError(
                f"The key {keys[0]!r} holds a dot or begins with '$': MongoDB can store it, but "
                "mongomock cannot. Nothing was written."
            )

    async def call(
        self,
        function: Callable[..., Awaitable[T]],
        *arguments: Any,
        what: str,
        append_id: ObjectId | None = None,
        on_retry: Callable[[], None] | None = None,
        at_most: float = math.inf,
        repeat: bool = True,
    ) -> T:
        """Awaits a call, again and again for ``retry_timeout`` seconds if need be.

        See ``retry.call``. It gives up after ``at_most`` seconds in any case, and after one try
        unless ``repeat`` says that the call is safe to repeat.

        Raises:
            StoreUnavailableError: No answer for so long.
            ConverseClosedError: The facade was closed.
            ConfigurationError: The facade was opened in another event loop.
        """
        self.check_open()
        return await retry.call(
            function,
            *arguments,
            what=what,
            timeout=min(self.options.retry_timeout, at_most),
            append_id=append_id,
            on_retry=on_retry,
            on_trouble=self.note_trouble,
            repeat=repeat,
        )

    def check_open(self) -> None:
        """Refuses calls that :meth:`call` would not make.

        Raises:
            ConverseClosedError: The facade was closed.
            ConfigurationError: The facade was opened in another event loop.
        """
        self.check_home()
        if self.closed:
            raise ConverseClosedError

    def note_trouble(self) -> None:
        """Takes note that a call has failed: who was silent meanwhile may not be dead."""
        self.troubles += 1


def _anywhere() -> None:
    """Of a store that no facade has opened."""


async def back_off(attempt: int) -> None:
    """Waits a random while, so that writers in several processes do not meet again and again."""
    longest = min(_BACKOFF_SECONDS * 2 ** min(attempt, 10), _BACKOFF_MAX_SECONDS)
    await asyncio.sleep(random.uniform(0, longest))
