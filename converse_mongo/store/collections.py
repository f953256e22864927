"""Collections: what all writes share, with retries and the queues of writers."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from bson import ObjectId
from pymongo.errors import OperationFailure

from converse_mongo.domain.errors import (
    ConverseClosedError,
    InvalidMetadataError,
    MessageTooLargeError,
)
from converse_mongo.domain.metadata import is_addressable
from converse_mongo.domain.telemetry import Probe
from converse_mongo.domain.types import DEFAULT_RETENTION, MessageRole
from converse_mongo.domain.validation import check_retention
from converse_mongo.driver import collections, retry
from converse_mongo.driver.collections import Collection
from converse_mongo.driver.failures import is_too_large
from converse_mongo.store.handlers import Handlers
from converse_mongo.store.reads import Reader

T = TypeVar("T")

PAGES = "message_chunk_pages"
"""The collection of the chunks that long messages no longer embed."""

VALUES = "message_values"
"""The collection of the values of parts that are too large for a chunk."""

PLACES = "message_places"
"""The collection of the places of queued messages that have a key."""

_BACKOFF_SECONDS = 0.002
_BACKOFF_MAX_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a facade that writes depend on.

    Attributes:
        retry_timeout: Seconds for which a call is retried.
        lease: Seconds without a heartbeat after which a writer is presumed dead.
        idle_timeout: The same for a message that streams without a writer; ``None`` for never.
        retention: Seconds from the end of a message to the merge of its chunks; ``None`` for never.
    """

    retry_timeout: float = 30.0
    lease: float = 30.0
    idle_timeout: float | None = 600.0
    retention: float | None = check_retention(DEFAULT_RETENTION)


class WriteQueue:
    """The writers in this process of one message, or one conversation, one after the other.

    Without it they would race to the server, where one wins and all others retry. Writers in other
    processes still race; the filters of the updates decide.

    Attributes:
        lock: Held during a write.
        next_sequence: The sequence that the message is expected to assign next.
        page_start: The expected sequence of the first chunk that it embeds.
        live_bytes: The expected size of its embedded chunks.
        role: The role of the message.
        has_work: True if the message was queued for workers.
        asked_by: The holder of the lease that last appended something behind which calls wait.
        sealing: True while its chunks are being moved to a page.
        failed_seals: The number of such moves in a row without effect.
        next_seal: The time of the next try, by the clock of this process.
    """

    __slots__ = (
        "__weakref__",
        "asked_by",
        "failed_seals",
        "has_work",
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
        self.has_work = False
        self.asked_by: ObjectId | None = None
        self.sealing = False
        self.failed_seals = 0
        self.next_seal = 0.0

    def learn(self, next_sequence: int, page_start: int, live_bytes: int) -> None:
        """Adopts what a copy of the message knows, if that is newer."""
        if next_sequence > self.next_sequence:
            self.next_sequence = next_sequence
            self.page_start, self.live_bytes = page_start, live_bytes


def _anywhere() -> None:
    """Accepts every event loop, for a store that no facade has opened."""


@dataclass(eq=False, repr=False)
class Collections:
    """One set of collections, and calls to them that are retried.

    Attributes:
        messages: The messages.
        conversations: The conversations.
        pages: The chunks that long messages no longer embed.
        values: The values of parts that are too large for a chunk.
        places: The places of queued messages that have a key.
        committed: The messages as watchers see them: without what a failover may roll back.
        handlers: The handlers of events.
        options: The options of the facade.
        reader: Reads from the same collections.
        troubles: The number of calls that failed for a transient reason.
        closing: True once no writer may begin.
        closed: True once no call may begin.
        check_home: Raises in another event loop than the facade was opened in.
        session: The session of every call, in a transaction.
        probe: Is told what happens; ``None`` for nobody.
        queues: The queues in use.
    """

    messages: Collection
    conversations: Collection
    pages: Collection = None
    values: Collection = None
    places: Collection = None
    committed: Collection = None
    handlers: Handlers = field(default_factory=Handlers)
    options: Options = field(default_factory=Options)
    reader: Reader = field(init=False)
    troubles: int = field(default=0, init=False)
    closing: bool = field(default=False, init=False)
    closed: bool = field(default=False, init=False)
    check_home: Callable[[], None] = field(init=False)
    session: Any = field(default=None, init=False)
    probe: Probe | None = field(default=None, init=False)
    queues: WeakValueDictionary[Hashable, WriteQueue] = field(
        default_factory=WeakValueDictionary, init=False
    )

    def __post_init__(self) -> None:
        if self.pages is None:
            self.pages = collections.sibling(self.messages, PAGES)
        if self.values is None:
            self.values = collections.sibling(self.messages, VALUES)
        if self.places is None:
            self.places = collections.sibling(self.messages, PLACES)
        if self.committed is None:
            self.committed = self.messages
        self.reader = Reader(self.messages, self.conversations, self.pages)
        self.check_home = _anywhere

    def queue(self, key: Hashable) -> WriteQueue:
        """Returns the queue of a conversation, or of a message; it exists as long as it is used.

        Args:
            key: The id of a conversation; for a message, its id and its ``log_id``, to tell it from
                another message with the same id.
        """
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = WriteQueue()
        return queue

    async def after_commit(self, action: "Callable[[Collections], Awaitable[None]]") -> None:
        """Does something to what is stored: at once, and in a transaction after its commit.

        Args:
            action: Gets the collections to do it with.
        """
        await action(self)

    def check_keys(self, *mappings: Mapping[str, Any]) -> None:
        """Refuses keys that no path can name if the database is a mock.

        Raises:
            InvalidMetadataError: There is such a key; nothing was written.
        """
        keys = [key for mapping in mappings for key in mapping if not is_addressable(key)]
        if keys and collections.is_mock(self.messages):
            raise InvalidMetadataError(
                f"The key {keys[0]!r} contains a dot or begins with '$': MongoDB can store it, but "
                "mongomock cannot. Nothing was written."
            )

    async def call(
        self,
        function: Callable[..., Awaitable[T]],
        *arguments: Any,
        what: str,
        on_retry: Callable[[], None] | None = None,
        at_most: float = math.inf,
        repeat: bool = True,
    ) -> T:
        """Awaits a call, and retries it for ``retry_timeout`` seconds after transient errors.

        See ``retry.call``. It gives up after ``at_most`` seconds in any case, and after one try
        unless ``repeat`` says that the call is safe to repeat.

        Raises:
            StoreUnavailableError: No answer in that time.
            ConverseClosedError: The facade was closed.
            ConfigurationError: The facade was opened in another event loop.
        """
        self.check_open()
        return await retry.call(
            function,
            *arguments,
            what=what,
            timeout=min(self.options.retry_timeout, at_most),
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
        """Counts a failed call: a writer without heartbeats may be alive, and cut off as well."""
        self.troubles += 1


async def back_off(attempt: int) -> None:
    """Waits a random time, so that writers in several processes do not collide repeatedly."""
    await asyncio.sleep(retry.random_pause(attempt, _BACKOFF_SECONDS, _BACKOFF_MAX_SECONDS))


@contextmanager
def name_too_large(message_id: ObjectId) -> Iterator[None]:
    """Names the message in the error of a write that makes a document too large.

    Raises:
        MessageTooLargeError: The write in the block raised such an error.
    """
    try:
        yield
    except OperationFailure as error:
        if is_too_large(error):
            raise MessageTooLargeError(message_id) from error
        raise
