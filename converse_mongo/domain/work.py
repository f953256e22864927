"""Work: a message that streams and has no writer waits in a queue for one."""

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from beanie import PydanticObjectId
from pydantic import BaseModel, ConfigDict

from converse_mongo.domain.chunks import UtcDatetime
from converse_mongo.domain.errors import InvalidInputError
from converse_mongo.domain.metadata import aware
from converse_mongo.domain.validation import MAX_SECONDS, check_int

Key: TypeAlias = str | tuple[str, ...]
"""What of a queue is limited together, such as ``("user", "42")``."""

Wanted: TypeAlias = Literal["approval", "output"]
"""What a tool call waits for."""

MAX_NAME_BYTES = 512
"""The longest name of a queue, and the longest key, in bytes of UTF-8."""

MAX_LIMIT = 1000
"""The most messages of a key that run at once: the document of their places has an entry each."""

MAX_ATTEMPTS = 3
"""The attempts that a message has by default."""

_INT32 = 2**31


class WorkState(StrEnum):
    """What a queued message waits for.

    ``queued``: a worker. ``delayed``: its time, and then a place of its key. ``blocked``: a place
    of its key. ``running``: nothing, it has a worker. ``waiting``: people.
    """

    QUEUED = "queued"
    DELAYED = "delayed"
    BLOCKED = "blocked"
    RUNNING = "running"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How a message is to be queued, as a caller wants it.

    Attributes:
        queue: The name of the queue.
        key: Of the messages with the same key, at most ``limit`` have a worker at a time.
        priority: Of the messages of a queue, those with the highest one come first.
        delay: Seconds until a worker may take it; ``None`` for at once.
        limit: That of the key, 1 by default.
        max_attempts: The attempts until it fails: a worker that dies costs one, and so does a
            worker that asks for another. What waited for people, or was handed over, costs none.

    Raises:
        InvalidInputError: One of these cannot be stored; nothing was written.
    """

    queue: str
    key: Key | None = None
    priority: int = 0
    delay: float | None = None
    limit: int | None = None
    max_attempts: int = MAX_ATTEMPTS

    def __post_init__(self) -> None:
        check_queue(self.queue)
        stored_key(self.key)
        _check_int32(self.priority, "priority", -_INT32)
        _check_int32(self.max_attempts, "max_attempts", 1)
        if self.delay is not None:
            check_delay(self.delay)
        if self.limit is None:
            return
        if self.key is None:
            raise InvalidInputError(
                "A limit is that of a key: pass a key as well. Nothing was written."
            )
        if check_int(self.limit, "limit", 1) > MAX_LIMIT:
            raise InvalidInputError(
                f"limit must be at most {MAX_LIMIT}, got {self.limit!r}. Nothing was written."
            )

    @property
    def key_limit(self) -> int | None:
        """How many messages of its key may run at once; ``None`` without a key."""
        return None if self.key is None else self.limit or 1


def check_queue(queue: object) -> str:
    """Returns the name of a queue.

    Raises:
        InvalidInputError: It is no text, is empty, or is too long.
    """
    return _check_text(queue, "The name of a queue")


def stored_key(key: object) -> str | None:
    """Returns a key as it is stored: as JSON, so that different keys never collide.

    Raises:
        InvalidInputError: It is neither a text nor a tuple of texts.
    """
    if key is None:
        return None
    if isinstance(key, str):
        return _json(_check_text(key, "A key"))
    if not isinstance(key, tuple | list) or not key:
        raise InvalidInputError(
            f"A key must be str or a tuple of str, such as ('user', '42'), got {key!r}. "
            "Nothing was written."
        )
    stored = _json([_check_text(each, "Each part of a key") for each in key])
    _check_text(stored, "A key")
    return stored


def check_delay(delay: object, what: str = "delay") -> float:
    """Returns a number of seconds, which may be 0.

    Raises:
        InvalidInputError: It is no such number.
    """
    if isinstance(delay, bool) or not isinstance(delay, int | float):
        raise InvalidInputError(f"{what} must be a number of seconds, got {delay!r}.")
    if not 0 <= delay <= MAX_SECONDS:
        raise InvalidInputError(f"{what} must be from 0 to {MAX_SECONDS} seconds, got {delay!r}.")
    return float(delay)


def _check_int32(value: object, what: str, least: int) -> None:
    if check_int(value, what, least) >= _INT32:
        raise InvalidInputError(f"{what} must be less than {_INT32}, got {value!r}.")


def _check_text(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise InvalidInputError(
            f"{what} must be str, not {type(text).__name__}. Nothing was written."
        )
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{what} contains a lone surrogate, which UTF-8 cannot represent. Nothing was written."
        ) from error
    if not text or size > MAX_NAME_BYTES:
        raise InvalidInputError(
            f"{what} must have from 1 to {MAX_NAME_BYTES} bytes, got {size}. Nothing was written."
        )
    return text


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


_WITH_TICKET = frozenset({WorkState.BLOCKED, WorkState.QUEUED, WorkState.RUNNING})


class PendingCall(BaseModel):
    """A tool call that waits for people.

    Attributes:
        part: The number of the call.
        call_id: Its id.
        wanted: What it waits for: an approval, or its output.
        approval_id: The id of the request for an approval.
        expires_at: When the answer comes too late, by the server's clock; ``None`` for never.
    """

    model_config = ConfigDict(frozen=True)

    part: int
    call_id: str
    wanted: Wanted
    approval_id: str | None = None
    expires_at: UtcDatetime | None = None

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> "PendingCall":
        """Returns the call in a document."""
        expires_at = stored.get("expires_at")
        return cls.model_construct(
            part=stored["part"],
            call_id=stored["call_id"],
            wanted=stored["wanted"],
            approval_id=stored.get("approval_id"),
            expires_at=aware(expires_at) if expires_at else None,
        )

    def to_stored(self) -> dict[str, Any]:
        """Returns the call as it is stored."""
        return dict(self)

    def __iter__(self) -> Generator[tuple[str, Any], None, None]:
        """Yields the fields that are stored."""
        for name, value in super().__iter__():
            if value is not None:
                yield name, value

    def __str__(self) -> str:
        return f"{self.call_id} (its {self.wanted})"


class Work(BaseModel):
    """The place of a message in its queue, and what it waits for.

    Attributes:
        queue: The name of the queue.
        key: The key in its stored form; ``None`` without one.
        priority: The priority.
        state: What it waits for; ``None`` once the message has ended.
        limit: How many messages of its key may run at once; ``None`` without a key.
        ticket: Stands for it among the places of its key. New each time it is blocked; ``None``
            while it is delayed or waits for people. It stays with the message that has ended.
        pending: The tool calls that wait for people.
        available_at: When its delay ends, or the first of the pending calls expires, by the
            server's clock; ``None`` for neither.
        due: Where it is in the order of what workers have to look at; ``None`` if they need not.
        crashes: The attempts that ended since the worker died.
        retries: The attempts whose worker asked for another.
        max_attempts: The attempts until the message fails.
        trace: The trace in which it was queued, as a ``traceparent`` of W3C Trace Context;
            ``None`` without telemetry.
    """

    model_config = ConfigDict(frozen=True)

    queue: str
    key: str | None = None
    priority: int = 0
    state: WorkState | None = None
    limit: int | None = None
    ticket: PydanticObjectId | None = None
    pending: tuple[PendingCall, ...] = ()
    available_at: UtcDatetime | None = None
    due: UtcDatetime | None = None
    crashes: int = 0
    retries: int = 0
    max_attempts: int = MAX_ATTEMPTS
    trace: str | None = None

    @classmethod
    def of(cls, job: Job, moment: datetime, trace: str | None = None) -> "Work":
        """Returns the work of a new message.

        Args:
            job: What the caller wants.
            moment: The time by the server's clock, in whole milliseconds.
            trace: The trace of the caller.
        """
        delayed = bool(job.delay)
        at = moment + timedelta(seconds=job.delay or 0)
        state = WorkState.QUEUED
        if job.key is not None:
            state = WorkState.DELAYED if delayed else WorkState.BLOCKED
        return cls(
            queue=job.queue,
            key=stored_key(job.key),
            priority=job.priority,
            state=state,
            limit=job.key_limit,
            available_at=at if delayed else None,
            due=None if state is WorkState.BLOCKED else at,
            max_attempts=job.max_attempts,
            trace=trace,
        )

    def claimed(self) -> "Work":
        """Returns the work as it is once a worker has it."""
        running = {"state": WorkState.RUNNING, "due": None, "available_at": None}
        return self.model_copy(update=running)

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any] | None) -> "Work | None":
        """Returns the work in a document; ``None`` if the message was never queued."""
        if not stored:
            return None
        state, available_at, due = (stored.get(n) for n in ("state", "available_at", "due"))
        # Without validation: watchers read many, and only the library writes them.
        return cls.model_construct(
            queue=stored["queue"],
            key=stored.get("key"),
            priority=stored.get("priority", 0),
            state=WorkState(state) if state else None,
            limit=stored.get("limit"),
            ticket=stored.get("ticket"),
            pending=tuple(map(PendingCall.from_stored, stored.get("pending") or ())),
            available_at=aware(available_at) if available_at else None,
            due=aware(due) if due else None,
            crashes=stored.get("crashes", 0),
            retries=stored.get("retries", 0),
            max_attempts=stored.get("max_attempts", MAX_ATTEMPTS),
            trace=stored.get("trace"),
        )

    def __iter__(self) -> Generator[tuple[str, Any], None, None]:
        """Yields the fields that are stored."""
        for name, value in super().__iter__():
            if value is not None and value != ():
                yield name, value

    def to_stored(self) -> dict[str, Any]:
        """Returns the work as it is stored."""
        stored = dict(self)
        if self.pending:
            stored["pending"] = [each.to_stored() for each in self.pending]
        return stored

    @property
    def awaited(self) -> tuple[PendingCall, ...] | None:
        """The calls that people have to answer; ``None`` if it does not wait for people."""
        return self.pending if self.state is WorkState.WAITING else None

    @property
    def attempt(self) -> int:
        """The number of the attempt that it is at, or of the next one: 1, 2, 3, and so on."""
        return self.crashes + self.retries + 1

    @property
    def is_last_attempt(self) -> bool:
        """True if the message fails unless this attempt ends it."""
        return self.attempt >= self.max_attempts

    def holds(self, ticket: object) -> bool:
        """Returns whether the message has, or wants, the place of a ticket."""
        return self.ticket == ticket and self.state in _WITH_TICKET

    @property
    def is_last_life(self) -> bool:
        """True if it has ended workers before, and fails if it ends another one."""
        return self.crashes > 0 and self.is_last_attempt

    @property
    def places_id(self) -> str | None:
        """The id of the document with the places of its key; ``None`` without a key."""
        return None if self.key is None else places_id(self.queue, self.key)


def places_id(queue: str, key: str) -> str:
    """Returns the id of the document with the places of a key, given in its stored form."""
    return _json([queue, json.loads(key)])
